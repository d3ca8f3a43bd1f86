"""What waits is taken in turns: by model, by client, by request; bounded, with deadlines."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from plaudit.serving.scheduler import QUANTUM, FairQueue, Job, Slice, token_costs

pytestmark = pytest.mark.heavy


def ids(length: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 100, length, dtype=np.int32)


def job(
    client: str, *lengths: int, owner: str = "model", finished: list[Any] | None = None, **more: Any
) -> Job[str]:
    sequences = [ids(length, seed) for seed, length in enumerate(lengths)]
    deadline = more.pop("deadline", time.monotonic() + 60)
    made = Job(
        owner=owner,
        client=client,
        sequences=sequences,
        costs=token_costs(sequences),
        deadline=deadline,
        **more,
    )
    made.finish = (finished if finished is not None else list[Any]()).append
    return made


def taken(queue: FairQueue[str], budget: int) -> list[Slice[str]]:
    slices = queue.take(budget, wait=0, expected=1)
    assert slices is not None
    return slices


def clients(slices: list[Slice[str]]) -> Counter[str]:
    return Counter(part.job.client for part in slices for _ in range(part.start, part.stop))


def test_costs_leave_out_what_the_one_before_had() -> None:
    prompt = ids(30)
    assert token_costs([np.append(prompt, [1]), np.append(prompt, [2, 3])]) == [31, 2]


def test_a_batch_holds_every_waiting_request_that_fits() -> None:
    queue = FairQueue[str](10_000)
    for number in range(5):
        assert queue.put(job(f"c{number}", 40))
    assert clients(taken(queue, 160)) == {"c0": 1, "c1": 1, "c2": 1, "c3": 1}
    assert clients(taken(queue, 160)) == {"c4": 1}
    assert (queue.jobs, queue.tokens) == (0, 0)


def test_a_large_request_does_not_keep_small_ones_waiting() -> None:
    queue = FairQueue[str](10**9)
    queue.put(job("large", *[100] * 200))
    queue.put(job("large", 10))
    queue.put(job("small", 10))
    first = taken(queue, 2 * QUANTUM)
    assert clients(first)["small"] == 1
    assert {part.job.sequences[0].size for part in first} == {100, 10}
    seen = sum(clients(first).values())
    while queue.jobs:
        seen += sum(clients(taken(queue, 2 * QUANTUM)).values())
    assert seen == 202
    assert queue.tokens == 0


def test_a_conversation_over_the_budget_is_taken_alone() -> None:
    queue = FairQueue[str](10_000)
    queue.put(job("a", 500))
    queue.put(job("b", 5))
    assert clients(taken(queue, 100)) == {"a": 1}
    assert clients(taken(queue, 100)) == {"b": 1}


def test_models_take_turns_and_never_share_a_batch() -> None:
    queue = FairQueue[str](10_000)
    for owner in ("one", "two", "one"):
        queue.put(job("a", 10, 10, owner=owner))
    batches = [taken(queue, 15) for _ in range(4)]
    assert [batch[0].job.owner for batch in batches] == ["one", "two", "one", "two"]
    assert all(len({part.job.owner for part in batch}) == 1 for batch in batches)


def test_a_request_that_is_late_is_rejected_when_its_turn_comes() -> None:
    finished: list[Any] = []
    queue = FairQueue[str](10_000)
    queue.put(job("a", 10, deadline=time.monotonic() - 1, finished=finished))
    assert taken(queue, 100) == []
    (rejection,) = finished
    assert rejection.kind == "deadline_exceeded"
    assert (queue.jobs, queue.tokens) == (0, 0)


def test_a_request_that_nobody_waits_for_is_forgotten() -> None:
    queue = FairQueue[str](10_000)
    gone, stays = job("a", 10, 20), job("a", 30)
    queue.put(gone)
    queue.put(stays)
    queue.discard(gone)
    assert (queue.jobs, queue.tokens) == (1, 30)
    assert [part.job for part in taken(queue, 100)] == [stays]
    queue.discard(gone)
    assert (queue.jobs, queue.tokens) == (0, 0)


def test_what_waits_is_bounded() -> None:
    queue = FairQueue[str](50)
    assert queue.put(job("a", 60))
    assert not queue.put(job("b", 1))
    taken(queue, 100)
    assert queue.put(job("b", 1))


def test_a_closed_queue_empties_and_then_ends() -> None:
    queue = FairQueue[str](100)
    queue.put(job("a", 10))
    queue.close()
    assert not queue.put(job("a", 10))
    assert clients(taken(queue, 100)) == {"a": 1}
    assert queue.take(100, wait=0, expected=1) is None


def test_a_lone_request_is_not_kept_waiting() -> None:
    queue = FairQueue[str](100)
    queue.put(job("a", 10))
    began = time.monotonic()
    queue.take(100, wait=30, expected=1)
    assert time.monotonic() - began < 20
