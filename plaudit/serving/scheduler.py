"""What waits to be scored, and how a batch of it is scored.

The queue takes turns: models, then clients, then requests of a client. One turn takes at most
:data:`QUANTUM` tokens of a request, so that ten thousand documents do not keep two waiting. Token
costs count what a conversation adds to the one before it in its request.

A batch is scored with a cache of outputs, each common beginning of conversations once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np

from plaudit.model.attention.kv_cache import PrefixCache
from plaudit.reward_model import CachedOutputs, as_cached
from plaudit.serving.errors import RejectionError
from plaudit.serving.served_model import ServedModel, score_with_prefix_cache
from plaudit.tokens.batch import PackedBatcher, share_prefixes
from plaudit.tokens.encode import common_prefix
from plaudit.types import IntArray, TokenTree, conversation_digests

QUANTUM = 1024

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(eq=False, slots=True, kw_only=True)
class Job(Generic[Owner]):
    """The conversations of one request.

    ``owner`` is the loaded model they were encoded for. ``deadline`` is on the monotonic clock.
    ``finish`` is called once, by :meth:`end` from the thread that scores, with None or why it
    failed. ``computed`` counts the tokens that the model computed for it. ``known`` holds its
    outputs so far by digest: equal conversations of a long request have one reward, whichever
    batches they are in. ``costs`` are those of :func:`token_costs`. With ``action`` that is called
    in place of scoring, for other work that only the model's thread may do, and gives ``result``.
    """

    owner: Owner
    client: str
    sequences: Sequence[IntArray]
    costs: Sequence[int]
    deadline: float
    action: Callable[[], Any] | None = None
    finish: Callable[[RejectionError | None], object] = field(init=False)
    result: Any = None
    outputs: list[CachedOutputs] = field(init=False)
    taken: int = 0
    scored: int = 0
    computed: int = 0
    cached: int = 0
    known: dict[bytes, CachedOutputs] = field(default_factory=dict)
    arrived: float = field(default_factory=time.monotonic)
    over: bool = False

    def __post_init__(self) -> None:
        self.outputs = [0.0] * len(self.sequences)

    @property
    def waiting_tokens(self) -> int:
        return sum(self.costs[self.taken :])

    def end(self, rejection: RejectionError | None) -> None:
        """It is done, or will not be."""
        self.over = True
        self.finish(rejection)


@dataclass(frozen=True, slots=True)
class Slice(Generic[Owner]):
    """Conversations ``[start, stop)`` of a job, taken for one batch."""

    job: Job[Owner]
    start: int
    stop: int


def token_costs(sequences: Sequence[IntArray]) -> list[int]:
    """Tokens that each conversation adds to the one before it."""
    if not sequences:
        return []
    shared = [0] + [common_prefix([before, after]) for before, after in pairwise(sequences)]
    return [len(ids) - common for ids, common in zip(sequences, shared, strict=True)]


class FairQueue(Generic[Owner]):
    """A bounded queue with any number of givers and one taker."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._ready = threading.Condition()
        self._lanes: OrderedDict[Owner, OrderedDict[str, deque[Job[Owner]]]] = OrderedDict()
        self._closed = False
        self.tokens = 0
        self.jobs = 0

    def put(self, job: Job[Owner]) -> bool:
        """Add a job; False where too many tokens wait already."""
        with self._ready:
            if self.tokens > self._max_tokens or self._closed:
                return False
            clients = self._lanes.setdefault(job.owner, OrderedDict())
            clients.setdefault(job.client, deque()).append(job)
            self.tokens += sum(job.costs)
            self.jobs += 1
            self._ready.notify()
            return True

    def discard(self, job: Job[Owner]) -> None:
        """Take back a job that nobody waits for any more; what is being scored is forgotten."""
        with self._ready:
            job.over = True
            jobs = self._lanes.get(job.owner, OrderedDict()).get(job.client)
            if jobs is not None and job in jobs:
                jobs.remove(job)
                self._left(job)
                self._tidy(job.owner, job.client)

    def close(self) -> None:
        """Let the taker end; it fails what still waits."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def take(self, budget: int, *, wait: float, expected: int) -> list[Slice[Owner]] | None:
        """The next batch, all of one owner and of about ``budget`` tokens; None when closed.

        Waits until there is a job. Then, only where fewer than ``expected`` jobs and less than a
        batch are there, for the rest of them, at most ``wait`` seconds.
        """
        with self._ready:
            self._ready.wait_for(lambda: self.jobs or self._closed)
            self._ready.wait_for(
                lambda: self.jobs >= expected or self.tokens >= budget or self._closed, wait
            )
            if self._closed and not self.jobs:
                return None
            return self._next(budget)

    def _next(self, budget: int) -> list[Slice[Owner]]:
        slices: list[Slice[Owner]] = []
        if not self._lanes:
            return slices
        owner, clients = next(iter(self._lanes.items()))
        self._lanes.move_to_end(owner)
        room, now = budget, time.monotonic()
        while room > 0 and clients:
            client, jobs = next(iter(clients.items()))
            job = jobs.popleft()
            if job.deadline <= now:
                self._left(job)
                job.end(past_deadline())
            else:
                cost, stop = _turn(job, room, alone=not slices)
                if stop > job.taken:
                    slices.append(Slice(job, job.taken, stop))
                    self.tokens -= cost
                    job.taken = stop
                else:
                    room = 0
                room -= cost
                if job.taken < len(job.sequences):
                    jobs.append(job) if room > 0 else jobs.appendleft(job)
                else:
                    self.jobs -= 1
            if room > 0:
                clients.move_to_end(client)
            self._tidy(owner, client)
        return slices

    def _left(self, job: Job[Owner]) -> None:
        self.jobs -= 1
        self.tokens -= job.waiting_tokens

    def _tidy(self, owner: Owner, client: str) -> None:
        clients = self._lanes[owner]
        if not clients[client]:
            del clients[client]
        if not clients:
            del self._lanes[owner]


def _turn(job: Job[Owner], room: int, *, alone: bool) -> tuple[int, int]:
    """Tokens and end of what a job may add: a quantum, and at least one conversation that fits.

    The first of a batch always does.
    """
    cost, stop = 0, job.taken
    while stop < len(job.costs):
        cost += job.costs[stop]
        first = stop == job.taken
        if cost > (room if first else min(room, QUANTUM)) and not (first and alone):
            return cost - job.costs[stop], stop
        stop += 1
    return cost, stop


def past_deadline() -> RejectionError:
    """A request whose time ran out before its turn."""
    return RejectionError(
        "deadline_exceeded",
        "The request timed out in the queue; try again, or set a longer timeout.",
        retry_after=1,
    )


logger = logging.getLogger("plaudit.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStats:
    """A batch in numbers: conversations asked for, found in the cache, and tokens computed.

    ``reused`` are tokens that were not, since an earlier batch had read the same beginning.
    """

    conversations: int
    cached: int
    tokens: int
    reused: int


def score_slices(
    served: ServedModel, slices: Sequence[Slice[ServedModel]], free: Callable[[], None]
) -> BatchStats:
    """Put outputs into the jobs of the slices; a job that cannot be scored gets its rejection.

    ``free`` empties the prefix caches. Only the thread that owns the model may call it.
    """
    batch = _Batch(served)
    keys = [batch.add(part) for part in slices]
    batch.score(free)
    for part, keys_of_part in zip(slices, keys, strict=True):
        batch.hand_over(part, keys_of_part)
    return BatchStats(
        conversations=sum(map(len, keys)),
        cached=sum(key not in batch.wanted for some in keys for key in some),
        tokens=batch.tokens,
        reused=batch.reused,
    )


@dataclass(eq=False, slots=True)
class _Batch:
    """Distinct conversations by digest: those to score, who asked first, and what came of each."""

    served: ServedModel
    wanted: dict[bytes, IntArray] = field(default_factory=dict)
    first: dict[bytes, Job[ServedModel]] = field(default_factory=dict)
    outcomes: dict[bytes, CachedOutputs | RejectionError] = field(default_factory=dict)
    tokens: int = 0
    reused: int = 0

    def add(self, part: Slice[ServedModel]) -> list[bytes]:
        """The digests of a slice's conversations; those without known outputs become wanted."""
        job, sequences = part.job, part.job.sequences[part.start : part.stop]
        keys = list(conversation_digests(sequences))
        for key, ids in zip(keys, sequences, strict=True):
            outputs = job.known.get(key, self.served.cache.get(key))
            if outputs is not None:
                self.outcomes.setdefault(key, outputs)
                job.cached += 1
            elif key not in self.wanted:
                self.wanted[key], self.first[key] = ids, job
        return keys

    def score(self, free: Callable[[], None]) -> None:
        """Find the outcome of every wanted conversation."""
        for key, outputs in zip(self.wanted, self._outputs(list(self.wanted), free), strict=True):
            if isinstance(outputs, RejectionError):
                self.outcomes[key] = outputs
            elif np.isfinite(outputs).all():
                self.outcomes[key] = outputs
                self.served.cache.put(key, outputs)
            else:
                self.outcomes[key] = RejectionError(
                    "reward_not_finite",
                    "The reward of a conversation is NaN or infinite.",
                )

    def hand_over(self, part: Slice[ServedModel], keys: Sequence[bytes]) -> None:
        """Put the outcomes into the slice's job, and finish it where that was its last."""
        job = part.job
        if job.over:
            return
        outputs = []
        for key in keys:
            outcome = self.outcomes[key]
            if isinstance(outcome, RejectionError):
                job.end(outcome)
                return
            outputs.append(job.known.setdefault(key, outcome))
        job.outputs[part.start : part.stop] = outputs
        job.scored += len(outputs)
        if job.scored == len(job.sequences):
            job.end(None)

    def _outputs(
        self, keys: Sequence[bytes], free: Callable[[], None] | None
    ) -> Sequence[CachedOutputs | RejectionError]:
        """Outputs of distinct conversations; where a pass fails, of its halves.

        It may have been memory that ran out: the first failure calls ``free``, and what follows
        goes without a prefix cache. A conversation that the device has no memory for fails alone.
        """
        if not keys:
            return []
        try:
            return self._forward(keys, None if free is None else self.served.prefix_cache)
        except Exception as error:
            if free is None and len(keys) == 1:
                logger.exception("conversation_failed")
            else:
                event = "batch_halved" if free is None else "batch_failed"
                logger.warning(event, extra={"fields": {"error": type(error).__name__}})
        # Behind the except block, whose error holds on to all that the failed pass had computed.
        if free is not None:
            free()
        elif len(keys) == 1:
            message = "The model raised an error on a conversation; see the server log."
            return [RejectionError("internal_error", message)]
        middle = len(keys) // 2
        halves = keys[:middle], keys[middle:]
        return [outputs for half in halves for outputs in self._outputs(half, None)]

    def _forward(
        self, keys: Sequence[bytes], prefix_cache: PrefixCache | None
    ) -> list[CachedOutputs]:
        """Outputs of one pass; its tokens are counted for the jobs that asked first."""
        model, sequences = self.served.model, [self.wanted[key] for key in keys]
        if not isinstance(model.batcher, PackedBatcher):
            found = model.output_trees(
                [
                    TokenTree(index=i, prefix=ids[:0], branches=(ids,))
                    for i, ids in enumerate(sequences)
                ]
            )
            for key, ids in zip(keys, sequences, strict=True):
                self._count(key, len(ids))
            return [as_cached(outputs_KO[0]) for outputs_KO in found]
        shared = share_prefixes(sequences, model.batcher.max_tokens)
        trees, cached = list(shared.trees), [0] * len(shared.trees)
        if prefix_cache is None:
            found = model.output_trees(trees)
        else:
            found, resumed = score_with_prefix_cache(model, prefix_cache, trees)
            trees, cached = [r.tree for r in resumed], [r.cached.tokens for r in resumed]
        self.reused += sum(cached)
        for tree, skipped, members in zip(trees, cached, shared.members, strict=True):
            self._count(keys[members[0]], len(tree.prefix) - skipped)
            for member, branch in zip(members, tree.branches, strict=True):
                self._count(keys[member], len(branch))
        return [as_cached(outputs_KO[0]) for outputs_KO in shared.separate(found)]

    def _count(self, key: bytes, tokens: int) -> None:
        self.first[key].computed += tokens
        self.tokens += tokens
