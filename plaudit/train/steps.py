"""Which comparisons make which optimizer step.

An optimizer step is counted in comparisons. A rank gets all comparisons of a step at once, and
:class:`~plaudit.train.trainer.RewardTrainer` takes its share and cuts it by tokens. The order
depends on the seed and the epoch alone, so a resumed run sees the rows the uninterrupted one would
have.
"""

from __future__ import annotations

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
