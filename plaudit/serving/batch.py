"""One batch through the model: each distinct conversation once, common beginnings once."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from plaudit.serving.prompts import score_resumed
from plaudit.serving.queue import Job, Slice
from plaudit.serving.rejection import RefusalError
from plaudit.serving.served import Served
from plaudit.tokens.batch import PackedBatcher
from plaudit.tokens.share import share_prefixes
from plaudit.types import FloatArray, IntArray, TokenTree, conversation_digests

logger = logging.getLogger("plaudit.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """A batch in numbers: conversations asked for, found in the cache, and tokens computed.

    ``reused`` are tokens that were not, since an earlier batch had read the same beginning.
    """

    conversations: int
    cached: int
    tokens: int
    reused: int


def score_slices(
    served: Served, slices: Sequence[Slice[Served]], free: Callable[[], None]
) -> Computed:
    """Put rewards into the jobs of the slices; a job that cannot be scored gets its refusal.

    ``free`` gives back what is kept in memory. Only the thread that owns the model may call it.
    """
    wanted: dict[bytes, IntArray] = {}
    first: dict[bytes, Job[Served]] = {}
    before = _reused(served)
    keys = [
        list(conversation_digests(part.job.sequences[part.start : part.stop])) for part in slices
    ]
    known: dict[bytes, float] = {}
    for part, digests in zip(slices, keys, strict=True):
        for key, ids in zip(digests, part.job.sequences[part.start : part.stop], strict=True):
            reward = part.job.known.get(key, served.cache.get(key))
            if reward is not None:
                known.setdefault(key, reward)
                part.job.cached += 1
            elif key not in wanted:
                wanted[key], first[key] = ids, part.job
    failed, tokens = _score_wanted(served, wanted, first, known, free)
    for part, digests in zip(slices, keys, strict=True):
        _hand_over(part, digests, known, failed)
    total = sum(len(digests) for digests in keys)
    return Computed(
        conversations=total,
        cached=sum(key not in wanted for d in keys for key in d),
        tokens=tokens,
        reused=_reused(served) - before,
    )


def _reused(served: Served) -> int:
    return 0 if served.states is None else served.states.reused


def _score_wanted(
    served: Served,
    wanted: dict[bytes, IntArray],
    first: dict[bytes, Job[Served]],
    known: dict[bytes, float],
    free: Callable[[], None],
) -> tuple[dict[bytes, RefusalError], int]:
    """Fill ``known``; what has no reward is told, with why."""
    keys = list(wanted)
    failed: dict[bytes, RefusalError] = {}
    spent: Counter[bytes] = Counter()
    for key, outcome in zip(keys, _rewards(served, keys, wanted, spent, free), strict=True):
        if isinstance(outcome, RefusalError):
            failed[key] = outcome
        elif not math.isfinite(outcome):
            failed[key] = RefusalError(
                "reward_not_finite", "The model's reward of a conversation is not a finite number."
            )
        else:
            known[key] = outcome
            served.cache.put(key, outcome)
    for key, count in spent.items():
        first[key].computed += count
    return failed, spent.total()


def _rewards(
    served: Served,
    keys: Sequence[bytes],
    wanted: dict[bytes, IntArray],
    spent: Counter[bytes],
    free: Callable[[], None],
) -> list[float | RefusalError]:
    """Rewards of distinct conversations; where a batch fails, of all anew and in parts.

    It may have been memory that ran out: nothing is kept for the second try.
    """
    if not keys:
        return []
    try:
        return list(_forward(served, keys, wanted, spent, _resumed))
    except Exception as error:
        logger.warning("batch_failed", extra={"facts": {"error": type(error).__name__}})
    # Behind the except block, whose error holds on to all that the failed pass had computed.
    free()
    parts = _halves(keys) if len(keys) > 1 else [keys]
    return [reward for part in parts for reward in _in_parts(served, part, wanted, spent)]


def _in_parts(
    served: Served, keys: Sequence[bytes], wanted: dict[bytes, IntArray], spent: Counter[bytes]
) -> list[float | RefusalError]:
    """Rewards of whole conversations; where a batch fails, of its halves.

    A conversation that the device has no memory for then fails alone.
    """
    try:
        return list(_forward(served, keys, wanted, spent, _whole))
    except Exception as error:
        if len(keys) == 1:
            logger.exception("conversation_failed")
        else:
            logger.warning("batch_halved", extra={"facts": {"error": type(error).__name__}})
    if len(keys) == 1:
        return [RefusalError("internal_error", "The model failed on a conversation; see the log.")]
    return [r for half in _halves(keys) for r in _in_parts(served, half, wanted, spent)]


def _halves(keys: Sequence[bytes]) -> list[Sequence[bytes]]:
    middle = len(keys) // 2
    return [keys[:middle], keys[middle:]]


TreeScorer: TypeAlias = Callable[
    [Served, Sequence[TokenTree]], tuple[list[FloatArray], Sequence[TokenTree]]
]
"""Rewards of trees, and of each tree what the model computed."""


def _forward(
    served: Served,
    keys: Sequence[bytes],
    wanted: dict[bytes, IntArray],
    spent: Counter[bytes],
    score: TreeScorer,
) -> list[float]:
    sequences = [wanted[key] for key in keys]
    batcher = served.model.batcher
    if not isinstance(batcher, PackedBatcher):
        trees = [
            TokenTree(index=i, prefix=ids[:0], branches=(ids,)) for i, ids in enumerate(sequences)
        ]
        scores, _ = _whole(served, trees)
        for key, ids in zip(keys, sequences, strict=True):
            spent[key] += len(ids)
        return [float(scores_K[0]) for scores_K in scores]
    shared = share_prefixes(sequences, batcher.max_tokens)
    scores, computed = score(served, shared.trees)
    for tree, members in zip(computed, shared.members, strict=True):
        spent[keys[members[0]]] += len(tree.prefix)
        for member, branch in zip(members, tree.branches, strict=True):
            spent[keys[member]] += len(branch)
    return [float(np.asarray(scores_K)[0]) for scores_K in shared.separate(scores)]


def _whole(
    served: Served, trees: Sequence[TokenTree]
) -> tuple[list[FloatArray], Sequence[TokenTree]]:
    return served.model.score_trees(trees), trees


def _resumed(
    served: Served, trees: Sequence[TokenTree]
) -> tuple[list[FloatArray], Sequence[TokenTree]]:
    """Each tree from where it parts from what an earlier batch has read."""
    if served.states is None:
        return _whole(served, trees)
    scores, resumed = score_resumed(served.model, served.states, trees)
    return scores, [replace(one.tree, prefix=one.tree.prefix[one.held.tokens :]) for one in resumed]


def _hand_over(
    part: Slice[Served],
    digests: Sequence[bytes],
    known: dict[bytes, float],
    failed: dict[bytes, RefusalError],
) -> None:
    job = part.job
    if job.over:
        return
    refusal = next((failed[key] for key in digests if key in failed), None)
    if refusal is not None:
        job.over = True
        job.finish(job, refusal)
        return
    job.rewards[part.start : part.stop] = [job.known.setdefault(key, known[key]) for key in digests]
    job.scored += part.stop - part.start
    if job.scored == len(job.sequences):
        job.over = True
        job.finish(job, None)
