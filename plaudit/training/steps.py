"""Which comparisons make which optimizer step.

An optimizer step is counted in comparisons. A rank gets all comparisons of a step at once, and
:class:`~plaudit.training.trainer.RewardTrainer` takes its share and cuts it by tokens. The order
depends on the seed and the epoch alone, so a resumed run sees the rows the uninterrupted one would
have.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from torch.utils.data import DataLoader, Sampler

from plaudit.types import TokenTree


class StepSampler(Sampler[list[int]]):
    """Yields the row numbers of each optimizer step, the same on every rank.

    accelerate's own sharding repeats rows to make ranks even; here the last step of an epoch is
    simply smaller, and a rank without rows runs a filler.
    """

    def __init__(self, rows: int, per_step: int, *, seed: int) -> None:
        self.rows = rows
        self.per_step = per_step
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.rows / self.per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        for step in range(len(self)):
            yield order[step * self.per_step : (step + 1) * self.per_step].tolist()


def equal_shares(trees: Sequence[TokenTree], ranks: int) -> list[list[int]]:
    """Positions in ``trees`` for each rank, in order: equal tokens rather than equal rows.

    The longest tree first, each to the rank with the fewest tokens so far (Graham 1969: at most
    4/3 of the best possible load). Ranks wait for the slowest one at every step. The same trees
    always give the same shares, so every rank knows all of them.
    """
    if ranks == 1:
        return [list(range(len(trees)))]
    sizes = [tree.tokens for tree in trees]
    loads = [(0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for i in sorted(range(len(trees)), key=lambda i: (-sizes[i], i)):
        tokens, rank = heapq.heappop(loads)
        shares[rank].append(i)
        heapq.heappush(loads, (tokens + sizes[i], rank))
    return [sorted(share) for share in shares]


def rows_of_first(sampler: StepSampler, steps: int) -> Iterator[int]:
    """Row numbers of a run's first ``steps`` optimizer steps, in order, epoch after epoch."""
    for epoch, begin in enumerate(range(0, steps, len(sampler))):
        sampler.set_epoch(epoch)
        for rows in islice(sampler, min(len(sampler), steps - begin)):
            yield from rows


class StepLoader(DataLoader[TokenTree]):
    """One batch per optimizer step. The Trainer sets the epoch on the loader it is given."""

    def __init__(self, trees: Sequence[TokenTree], sampler: StepSampler) -> None:
        super().__init__(
            trees,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=list,
        )
        self._steps = sampler

    def set_epoch(self, epoch: int) -> None:
        self._steps.set_epoch(epoch)
