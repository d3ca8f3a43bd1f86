"""The self-check: a few rows packed and one by one, before anything is trained or scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from plaudit.model.attention.interface import PACKED_ATTENTION
from plaudit.model.module import DecoderRewardModule, classifier
from plaudit.types import Batch, Batcher, TokenTree

# Largest relative difference of hidden states that rounding explains: fp32 shows about 1e-6 over
# a few layers, half precision about its own epsilon times the depth; wrong attention shows 0.1
# and more.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 6e-2, torch.float16: 2e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheckResult:
    """``difference`` is max |packed - separate| over max |separate| of the scored hidden states."""

    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


def check_trees(vocabulary: int) -> list[TokenTree]:
    """Ragged trees of random ids: shared prefix, no prefix, one branch, a one-token branch."""
    generator = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return generator.integers(0, vocabulary, length, dtype=np.int32)

    shapes = [(19, (7, 23, 1)), (0, (9, 12)), (0, (31,)), (6, (40, 5))]
    return [
        TokenTree(index=i, prefix=ids(prefix), branches=tuple(ids(b) for b in branches))
        for i, (prefix, branches) in enumerate(shapes)
    ]


def self_check(
    module: DecoderRewardModule,
    packed: Batcher,
    padded: Batcher,
    *,
    autocast: torch.dtype | None = None,
) -> SelfCheckResult:
    """Compare packed with one-sequence-at-a-time on the loaded weights.

    ``autocast`` is the precision that training will run under, None for that of the weights: it
    decides which attention runs on a GPU.

    The model comes with the attention transformers chose for it (not every architecture has
    SDPA) and leaves with packed attention, in the mode (training or not) it came in.
    """
    network = classifier(module.network)
    trees = check_trees(network.config.get_text_config().vocab_size)
    training = module.training
    module.eval()
    try:
        alone = [
            TokenTree(index=0, prefix=tree.prefix, branches=(branch,))
            for tree in trees
            for branch in tree.branches
        ]
        separate_RD = torch.cat(
            [_hidden(module, padded.collate([tree]), autocast) for tree in alone]
        )
        network.set_attn_implementation(PACKED_ATTENTION)
        packed_RD = _hidden(module, packed.collate(trees), autocast)
    finally:
        module.train(training)
    largest = separate_RD.abs().max().clamp_min(1e-12)
    difference = float((packed_RD - separate_RD).abs().max() / largest)
    return SelfCheckResult(
        difference=difference, tolerance=_tolerance(network.base_model, autocast)
    )


def _tolerance(body: nn.Module, autocast: torch.dtype | None) -> float:
    """That of the coarsest precision in use; 4-bit weights compute in half precision.

    A quantized body has fp32 embeddings and norms beside them, so no one tensor tells.
    """
    used = {parameter.dtype for parameter in body.parameters()}
    if autocast is not None:
        used.add(autocast)
    return max(TOLERANCE.get(dtype, 6e-2) for dtype in used)


@torch.no_grad()
def _hidden(module: DecoderRewardModule, batch: Batch, autocast: torch.dtype | None) -> Tensor:
    with torch.autocast(batch.ends_R.device.type, dtype=autocast, enabled=autocast is not None):
        return module.hidden(batch).float()
