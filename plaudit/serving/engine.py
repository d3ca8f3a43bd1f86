"""The engine: any number of requests on the event loop's side, one thread that owns the models.

Requests that wait are merged into the next batch, whoever sent them. A request that finds the
engine idle is scored at once; where the last batch held several, the next waits a few milliseconds
for as many. The event loop waits for nothing: encoding has a thread of its own, and so have models
that are being loaded.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from plaudit.serving.errors import RejectionError
from plaudit.serving.prometheus import Metrics
from plaudit.serving.scheduler import FairQueue, Job, Slice, score_slices
from plaudit.serving.served_model import ServedModel, open_served
from plaudit.serving.settings import ModelSource, ServerSettings

logger = logging.getLogger("plaudit.serving")

CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 16_384
LONGEST_RETRY = 60

Result = TypeVar("Result")


class Engine:
    """Loaded models, the queue before them and the thread that runs them."""

    def __init__(self, settings: ServerSettings, served: Sequence[ServedModel]) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.draining = False
        self._served = {one.name: one for one in served}
        self._default = served[0].name
        self.queue: FairQueue[ServedModel] = FairQueue(settings.max_waiting_tokens)
        # Tokenizers are not made for several threads at once.
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="plaudit-encode")
        # For large bodies, so that others have turns meanwhile.
        self.parser = ThreadPoolExecutor(1, thread_name_prefix="plaudit-parse")
        self._loading = asyncio.Lock()
        self._reloading: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="plaudit-model", daemon=True)
        # A place for each request from its parsing to its answer.
        self.places = asyncio.Semaphore(settings.max_requests)
        self._speed = 0.0
        on_cpu = next(served[0].model.module.parameters()).device.type == "cpu"
        default_budget = CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS
        self._budget = settings.max_batch_tokens or default_budget
        for one in served:
            self.metrics.version.labels(one.name).set(one.version)

    # ---- what the event loop calls ---------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Finish what waits, then end the threads."""
        self.queue.close()
        if self._thread.is_alive():
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        for executor in (self.encoder, self.parser):
            executor.shutdown(wait=False, cancel_futures=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def models(self) -> tuple[ServedModel, ...]:
        return tuple(self._served.values())

    def model(self, name: str | None, *, exact: bool) -> ServedModel:
        """The model that a request names, or the first one.

        Where one model is served, clients of other tools may call it anything (not ``exact``).

        Raises:
            RejectionError: several models, and none of that name.
        """
        if name is None or (not exact and len(self._served) == 1):
            return self._served[self._default]
        if name not in self._served:
            raise RejectionError(
                "model_not_found",
                f"Unknown model; expected one of {', '.join(self._served)}.",
                param="model",
            )
        return self._served[name]

    async def in_thread(
        self, thread: ThreadPoolExecutor, work: Callable[[], Result], deadline: float
    ) -> Result:
        """Run ``work`` in :attr:`encoder` or :attr:`parser`, behind what is there already.

        Raises:
            RejectionError: time ran out, for example behind a request of many megabytes.
        """
        loop = asyncio.get_running_loop()
        return await self._in_time(loop.run_in_executor(thread, work), deadline)

    async def run(self, job: Job[ServedModel]) -> None:
        """Wait until the job is done.

        Raises:
            RejectionError: the queue is full, time ran out, or a reward is not finite.
        """
        if not job.sequences:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        job.finish = lambda rejection: loop.call_soon_threadsafe(_settle, future, rejection)
        if not self.queue.put(job):
            raise self.overloaded("tokens")
        try:
            await self._in_time(future, job.deadline)
        except (asyncio.CancelledError, RejectionError):
            # Of a request that failed in one batch, the rest may be waiting for another.
            self.queue.discard(job)
            raise

    async def _in_time(self, work: Awaitable[Result], deadline: float) -> Result:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                return await work
        except TimeoutError:
            raise RejectionError(
                "deadline_exceeded",
                "The request timed out; try again, send less, or set a longer timeout.",
                retry_after=self._retry_after(),
            ) from None

    def overloaded(self, what: str) -> RejectionError:
        """The rejection of a request for which there is no room."""
        return RejectionError(
            "overloaded",
            f"Too many queued {what}; try again later.",
            retry_after=self._retry_after(),
        )

    def _retry_after(self) -> int:
        """Seconds in which what waits now will be computed, at the speed seen so far."""
        seconds = self.queue.tokens / self._speed if self._speed else 1.0
        return max(1, min(LONGEST_RETRY, math.ceil(seconds)))

    # ---- new versions ----------------------------------------------------------------------------

    async def reload(self, name: str) -> ServedModel:
        """Load a model's folder again; the version that is there answers until the new one can.

        Raises:
            RejectionError: no such model, or it is being loaded already.
            ModelError: the new version cannot be loaded; the old one stays.
        """
        old = self.model(name, exact=True)
        if name in self._reloading:
            raise RejectionError("conflict", f"{name} is already being loaded.", retry_after=5)
        self._reloading.add(name)
        try:
            source = ModelSource(name=name, path=old.source)
            load = partial(open_served, source, self.settings, version=old.version + 1)
            async with self._loading:
                with loading_thread() as thread:
                    new = await asyncio.get_running_loop().run_in_executor(thread, load)
        finally:
            self._reloading.discard(name)
        self._served[name] = new
        if gc.get_freeze_count():
            # The old version is collected once its last requests are answered.
            gc.unfreeze()
            later = asyncio.get_running_loop().call_later
            later(self.settings.request_timeout, freeze_heap)
        self.metrics.version.labels(name).set(new.version)
        logger.info("model_loaded", extra={"fields": {"model": name, "version": new.version}})
        return new

    # ---- the thread that owns the models ---------------------------------------------------------

    def _run(self) -> None:
        expected = 1
        while True:
            slices = self.queue.take(self._budget, wait=self.settings.wait, expected=expected)
            if slices is None:
                return
            if not slices:
                continue
            try:
                self._score(slices)
            except Exception:
                logger.exception("engine_failed")
                for job in {part.job for part in slices if not part.job.over}:
                    job.end(
                        RejectionError(
                            "internal_error", "Internal server error; see the server log."
                        )
                    )
            expected = len({part.job for part in slices})

    def _score(self, slices: Sequence[Slice[ServedModel]]) -> None:
        began = time.monotonic()
        actions = [part for part in slices if part.job.action is not None]
        plain = [part for part in slices if part.job.action is None]
        for part in plain:
            if part.start == 0:
                self.metrics.waited.observe(began - part.job.arrived)
        if plain:
            owner = plain[0].job.owner
            computed = score_slices(owner, plain, partial(self._free, owner))
            seconds = time.monotonic() - began
            self.metrics.batch(computed, requests=len(plain), seconds=seconds)
            if computed.tokens:
                # What waits is counted before anybody knows what of it was read already.
                speed = (computed.tokens + computed.reused) / max(seconds, 1e-6)
                self._speed = speed if not self._speed else 0.8 * self._speed + 0.2 * speed
        for part in actions:
            self._act(part.job)

    def _act(self, job: Job[ServedModel]) -> None:
        """Do what a job asks; where that fails, once more with nothing kept: it may be memory."""
        assert job.action is not None
        rejection: RejectionError | None = None
        for _ in range(2):
            try:
                job.result, rejection = job.action(), None
                break
            except RejectionError as error:
                rejection = error
                break
            except Exception:
                logger.exception("action_failed")
                rejection = RejectionError(
                    "internal_error", "The model raised an error; see the server log."
                )
            self._free(job.owner)
        job.end(rejection)

    def _free(self, owner: ServedModel) -> None:
        """Give back what all models keep of what they have read; ``owner`` may be replaced."""
        for served in {owner, *self._served.values()}:
            if served.prefix_cache is not None:
                served.prefix_cache.clear()


def freeze_heap() -> None:
    """Keep the objects that are there now (libraries and models) out of garbage collection.

    A large body makes so many objects that the collector looks at all there are, and no thread runs
    meanwhile.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextmanager
def loading_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread to load models in, which ends when that is done; who leaves early does not wait.

    Every thread that computes with torch keeps OpenMP threads of its own until it ends. Once a
    process has more of them than cores, libgomp lets all of them sleep between the parts of a
    product in place of waiting actively: the model's thread must stay the only one.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="plaudit-load")
    try:
        yield executor
    finally:
        executor.shutdown(wait=False)


def _settle(future: asyncio.Future[None], rejection: RejectionError | None) -> None:
    if future.done():
        return
    if rejection is None:
        future.set_result(None)
    else:
        future.set_exception(rejection)
