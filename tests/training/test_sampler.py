"""Which rows make which optimizer step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.training.trainer import StepLoader, StepSampler, equal_shares
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


def tree_of(tokens: int) -> TokenTree:
    ids = np.zeros(tokens, np.int32)
    return TokenTree(index=0, prefix=ids[1:], branches=(ids[:1],))


@given(st.lists(st.integers(1, 900), max_size=40), st.integers(1, 8))
def test_ranks_share_a_step_by_tokens(sizes: list[int], ranks: int) -> None:
    """Every tree once; no rank has more than twice the best possible load."""
    trees = [tree_of(size) for size in sizes]
    shares = equal_shares(trees, ranks)
    assert len(shares) == ranks
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(sizes[i] for i in share) for share in shares]
    lightest_possible = max(sum(sizes) / ranks, max(sizes, default=0))
    assert max(loads) <= 2 * lightest_possible
    # The heaviest rank took its shortest tree last, when no rank had fewer tokens.
    heaviest = shares[loads.index(max(loads))]
    if heaviest:
        assert max(loads) - min(sizes[i] for i in heaviest) <= min(loads)
