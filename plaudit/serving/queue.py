"""What waits to be scored, taken in turns: models, then clients, then requests of a client.

One turn takes at most :data:`QUANTUM` tokens of a request, so that ten thousand documents do not
keep two waiting. Token costs count what a conversation adds to the one before it in its request.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, TypeVar

from plaudit.serving.rejection import RefusalError
from plaudit.tokens.encode import common_prefix
from plaudit.types import IntArray

QUANTUM = 1024

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(eq=False, slots=True, kw_only=True)
class Job(Generic[Owner]):
    """The conversations of one request.

    ``owner`` is the loaded model they were encoded for. ``deadline`` is on the monotonic clock.
    ``finish`` is called once, from the thread that scores, with None or why it failed. ``computed``
    counts the tokens that the model computed for it. ``known`` holds its rewards so far by digest:
    equal conversations of a long request have one reward, whichever batches they are in. ``costs``
    are those of :func:`costs_of` where they are known already. With ``action`` that is called in
    place of scoring, for other work that only the model's thread may do, and gives ``result``.
    """

    owner: Owner
    client: str
    sequences: Sequence[IntArray]
    deadline: float
    finish: Callable[[Job[Owner], RefusalError | None], None]
    action: Callable[[], Any] | None = None
    result: Any = None
    costs: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    taken: int = 0
    scored: int = 0
    computed: int = 0
    cached: int = 0
    known: dict[bytes, float] = field(default_factory=dict)
    arrived: float = field(default_factory=time.monotonic)
    began: float | None = None
    over: bool = False

    def __post_init__(self) -> None:
        self.rewards = [0.0] * len(self.sequences)
        if not self.costs:
            self.costs = costs_of(self.sequences)

    @property
    def waiting_tokens(self) -> int:
        return sum(self.costs[self.taken :])


@dataclass(frozen=True, slots=True)
class Slice(Generic[Owner]):
    """Conversations ``[start, stop)`` of a job, taken for one batch."""

    job: Job[Owner]
    start: int
    stop: int


def costs_of(sequences: Sequence[IntArray]) -> list[int]:
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
            clients = self._lanes.get(job.owner, OrderedDict())
            jobs = clients.get(job.client)
            if jobs is not None and job in jobs:
                jobs.remove(job)
                self._left(job)
                self._tidy(job.owner, job.client)

    def close(self) -> None:
        """Let the taker end; what still waits is refused by it."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def take(self, budget: int, *, wait: float, expected: int) -> list[Slice[Owner]] | None:
        """The next batch, all of one owner and of about ``budget`` tokens; None when closed.

        Waits until there is a job. Then, only where fewer than ``expected`` jobs and less than a
        batch are there, for the rest of them, at most ``wait`` seconds.
        """
        with self._ready:
            while not self.jobs and not self._closed:
                self._ready.wait()
            until = time.monotonic() + wait
            while self.jobs < expected and self.tokens < budget and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or not self._ready.wait(left):
                    break
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
                job.over = True
                job.finish(job, late())
            else:
                cost, stop = _turn(job, room, alone=not slices)
                if stop > job.taken:
                    slices.append(Slice(job, job.taken, stop))
                    job.began = now if job.began is None else job.began
                    self.tokens -= cost
                    job.taken = stop
                else:
                    room = 0
                room -= cost
                if job.taken < len(job.sequences):
                    jobs.append(job) if room > 0 else jobs.appendleft(job)
                else:
                    self.jobs -= 1
            if room > 0 and client in clients:
                clients.move_to_end(client)
            self._tidy(owner, client)
        return slices

    def _left(self, job: Job[Owner]) -> None:
        self.jobs -= 1
        self.tokens -= job.waiting_tokens

    def _tidy(self, owner: Owner, client: str) -> None:
        clients = self._lanes.get(owner)
        if clients is None:
            return
        if not clients.get(client):
            clients.pop(client, None)
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


def late() -> RefusalError:
    """A request whose time ran out before its turn."""
    return RefusalError(
        "deadline_exceeded",
        "The request's time ran out while it waited; try again, or allow more time.",
        retry_after=1,
    )
