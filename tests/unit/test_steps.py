"""Which rows make which optimizer step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.train.steps import StepLoader, StepSampler
from plaudit.types import TokenTree

pytestmark = pytest.mark.heavy


def epoch_of(sampler: StepSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 9))
def test_every_row_stands_in_one_step_of_an_epoch(
    rows: int, per_step: int, seed: int, epoch: int
) -> None:
    sampler = StepSampler(rows, per_step, seed=seed)
    steps = epoch_of(sampler, epoch)
    assert sorted(row for step in steps for row in step) == list(range(rows))
    assert len(steps) == len(sampler) == math.ceil(rows / per_step)
    assert all(len(step) == per_step for step in steps[:-1])
    assert epoch_of(StepSampler(rows, per_step, seed=seed), epoch) == steps


def test_epochs_and_seeds_shuffle_anew() -> None:
    orders = {
        (seed, epoch): tuple(map(tuple, epoch_of(StepSampler(40, 4, seed=seed), epoch)))
        for seed in (1, 2)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == len(orders)


def test_the_loader_follows_the_epoch() -> None:
    trees = [
        TokenTree(index=i, prefix=np.zeros(0, np.int32), branches=(np.zeros(1, np.int32),))
        for i in range(10)
    ]
    loader = StepLoader(trees, StepSampler(10, 4, seed=3))
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        found = [[tree.index for tree in step] for step in loader]
        assert found == epoch_of(StepSampler(10, 4, seed=3), epoch)
    assert len(loader) == 3
