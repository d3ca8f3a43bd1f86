"""Worker processes by fork: they inherit what they work on instead of being sent a copy."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from plaudit.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKER_ROWS = 2048
"""Rows that pay for a worker process; fewer than two workers' worth are done in this one."""


def worker_count(rows: int) -> int:
    """Processes for ``rows`` rows: one a core where there is work for it, else 1.

    Where processes cannot be forked, each would spend ten seconds on imports and read again what it
    works with, so there is one.
    """
    if "fork" not in multiprocessing.get_all_start_methods() or sys.platform == "darwin":
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), rows // WORKER_ROWS))


def map_forked(
    work: Callable[[Item], Result], items: Iterable[Item], *, rows: int, doing: str
) -> Iterator[Result]:
    """``work`` on every item, in forked workers where there are enough ``rows``.

    Results come in the items' order. Workers inherit ``work`` and all that it refers to.

    Raises:
        DataError: a worker was killed; ``doing`` says what it did ("a process that encodes").
    """
    workers = worker_count(rows)
    if workers == 1:
        yield from map(work, items)
        return
    global _inherited
    _inherited = work
    waiting: deque[Future[Result]] = deque()
    try:
        with _forked_pool(workers) as pool:
            for item in items:
                waiting.append(pool.submit(_work, item))
                # Bounded, so that a slow reader does not fill the memory with results.
                if len(waiting) > 3 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"{doing} was killed, most likely out of memory; close other programs, or use fewer"
            " processes with taskset -c 0."
        ) from error
    finally:
        _inherited = None


_inherited: Callable[[Any], Any] | None = None
"""What the workers do."""


def _work(item: Any) -> Any:
    assert _inherited is not None
    return _inherited(item)


@contextlib.contextmanager
def _forked_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Forked workers, which have the module globals of this moment."""
    parallel = os.environ.get("TOKENIZERS_PARALLELISM")
    # Threads of a tokenizer do not live on in a fork, and there is a process a core already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("fork"), initializer=_start_worker
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        if parallel is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = parallel


def _start_worker() -> None:
    # Ctrl-C is for the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler may hold a lock that was taken when this process was forked.
    logging.disable()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
