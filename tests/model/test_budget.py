"""The token budget of a GPU, as far as a machine without one can tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from plaudit.model.attention.interface import PACKED_ATTENTION
from plaudit.model.module import DecoderRewardModule
from plaudit.model.scoring import LEAST, MOST, fits, largest_fitting, pairs_of
from plaudit.tokens.batch import make_batchers
from plaudit.training.folder import RunFolder
from plaudit.types import Batch
from tests.models import tiny_classifier

CPU = torch.device("cpu")


@pytest.mark.parametrize("limit", [0, 1, LEAST, 5000, 65_536, 10**9])
def test_the_largest_that_fits_is_found(limit: int) -> None:
    found = largest_fitting(lambda tokens: tokens <= limit)
    assert found == LEAST or found <= limit
    assert found == MOST or found * 2 > limit


def test_pairs_fill_the_budget() -> None:
    trees = pairs_of(1000, 60)
    total = sum(tree.tokens for tree in trees)
    assert 900 < total <= 1000
    assert {max(tree.lengths) for tree in trees} == {60}


class OutOfMemory(DecoderRewardModule):
    def forward(self, batch: Batch) -> Tensor:
        scores_R = super().forward(batch)
        if scores_R.numel() > 8:
            raise torch.OutOfMemoryError("no more")
        return scores_R


def test_trying_leaves_no_trace() -> None:
    network = tiny_classifier("llama")
    network.set_attn_implementation(PACKED_ATTENTION)
    module = OutOfMemory(network).eval()
    batcher = make_batchers("auto", CPU, 2)["packed"]
    tried = [
        fits(module, batcher, tokens, longest=40, autocast=False, device=CPU)
        for tokens in (100, 2000)
    ]
    assert tried == [True, False]
    assert not module.training
    assert all(p.grad is None for p in module.parameters())


def test_a_run_keeps_the_budget_it_began_with(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.budget(lambda: 4096) == 4096
    assert folder.budget(lambda: 8192) == 4096
