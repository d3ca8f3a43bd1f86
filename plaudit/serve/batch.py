"""One batch through the model: each distinct conversation once, common beginnings once."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from plaudit.serve.cache import digest
from plaudit.serve.prompts import score_resumed
from plaudit.serve.queue import Job, Slice
from plaudit.serve.refusal import RefusalError
from plaudit.serve.served import Served
from plaudit.tokens.batch import PackedBatcher
from plaudit.tokens.share import share_prefixes
from plaudit.types import FloatArray, IntArray, TokenTree

logger = logging.getLogger("plaudit.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """A batch in numbers: conversations asked for, found in the cache, and tokens computed.

    ``reused`` are tokens that were not, since an earlier batch had read the same beginning.
    """

    conversations: int
    cached: int
    tokens: int
    reused: int


def score_slices(served: Served, slices: Sequence[Slice[Served]]) -> Computed:
    """Put rewards into the jobs of the slices; a job that cannot be scored gets its refusal.

    Only the thread that owns the model may call it.
    """
    wanted: dict[bytes, IntArray] = {}
    first: dict[bytes, Job[Served]] = {}
    before = _reused(served)
    keys = [[digest(ids) for ids in part.job.sequences[part.start : part.stop]] for part in slices]
    known: dict[bytes, float] = {}
    for part, digests in zip(slices, keys, strict=True):
        for key, ids in zip(digests, part.job.sequences[part.start : part.stop], strict=True):
            reward = served.cache.get(key)
            if reward is not None:
                known[key] = reward
                part.job.cached += 1
            elif key not in wanted:
                wanted[key], first[key] = ids, part.job
    failed, tokens = _score_wanted(served, wanted, first, known)
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
) -> tuple[dict[bytes, RefusalError], int]:
    """Fill ``known``; what has no reward is told, with why."""
    keys = list(wanted)
    failed: dict[bytes, RefusalError] = {}
    spent: Counter[bytes] = Counter()
    for key, outcome in zip(keys, _rewards(served, keys, wanted, spent), strict=True):
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
    served: Served, keys: Sequence[bytes], wanted: dict[bytes, IntArray], spent: Counter[bytes]
) -> list[float | RefusalError]:
    """Rewards of distinct conversations; where a batch fails, of its halves.

    A conversation that the device has no memory for then fails alone, and only once the memory of
    kept states is free.
    """
    if not keys:
        return []
    try:
        return list(_forward(served, keys, wanted, spent))
    except Exception as error:
        # It may have been memory that ran out.
        freed = served.states is not None and served.states.clear()
        if len(keys) > 1:
            logger.warning("batch_halved", extra={"facts": {"error": type(error).__name__}})
            middle = len(keys) // 2
            halves = (keys[:middle], keys[middle:])
            return [r for half in halves for r in _rewards(served, half, wanted, spent)]
        if freed:
            return _rewards(served, keys, wanted, spent)
        logger.exception("batch_failed")
        return [RefusalError("internal_error", "The model failed on a conversation; see the log.")]


def _forward(
    served: Served, keys: Sequence[bytes], wanted: dict[bytes, IntArray], spent: Counter[bytes]
) -> list[float]:
    sequences = [wanted[key] for key in keys]
    batcher = served.model.batcher
    if not isinstance(batcher, PackedBatcher):
        trees = [
            TokenTree(index=i, prefix=ids[:0], branches=(ids,)) for i, ids in enumerate(sequences)
        ]
        scores = served.model.score_trees(trees)
        for key, ids in zip(keys, sequences, strict=True):
            spent[key] += len(ids)
        return [float(scores_K[0]) for scores_K in scores]
    shared = share_prefixes(sequences, batcher.max_tokens)
    scores, computed = _score_trees(served, shared.trees)
    for tree, members in zip(computed, shared.members, strict=True):
        spent[keys[members[0]]] += len(tree.prefix)
        for member, branch in zip(members, tree.branches, strict=True):
            spent[keys[member]] += len(branch)
    return [float(np.asarray(scores_K)[0]) for scores_K in shared.separate(scores)]


def _score_trees(
    served: Served, trees: Sequence[TokenTree]
) -> tuple[list[FloatArray], list[TokenTree]]:
    """Rewards, and of each tree what the model computed: less where its beginning is kept."""
    if served.states is None:
        return served.model.score_trees(trees), list(trees)
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
    job.rewards[part.start : part.stop] = [known[key] for key in digests]
    job.scored += part.stop - part.start
    if job.scored == len(job.sequences):
        job.over = True
        job.finish(job, None)
