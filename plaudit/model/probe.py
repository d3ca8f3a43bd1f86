"""The load-time probe: a few rows packed and one by one, before anything is trained or scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plaudit.model.attention import PACKED_ATTENTION
from plaudit.model.module import DecoderRewardModule, classifier
from plaudit.types import Batch, Batcher, TokenTree

# Largest relative difference of hidden states that rounding explains: fp32 shows about 1e-6 over
# a few layers, half precision about its own epsilon times the depth; wrong attention shows 0.1
# and more.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 6e-2, torch.float16: 2e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """``difference`` is max |packed - separate| over max |separate| of the scored hidden states."""

    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


def probe_trees(vocabulary: int) -> list[TokenTree]:
    """Ragged trees of random ids: shared prefix, no prefix, one branch, a one-token branch."""
    generator = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return generator.integers(0, vocabulary, length, dtype=np.int32)

    shapes = [(19, (7, 23, 1)), (0, (9, 12)), (0, (31,)), (6, (40, 5))]
    return [
        TokenTree(index=i, prefix=ids(prefix), branches=tuple(ids(b) for b in branches))
        for i, (prefix, branches) in enumerate(shapes)
    ]


def probe(module: DecoderRewardModule, packed: Batcher, padded: Batcher) -> ProbeResult:
    """Compare packed with one-sequence-at-a-time on the loaded weights.

    The model comes with the attention transformers chose for it (not every architecture has
    SDPA) and leaves with packed attention, in the mode (training or not) it came in.
    """
    network = classifier(module.network)
    trees = probe_trees(network.config.get_text_config().vocab_size)
    training = module.training
    module.eval()
    try:
        alone = [
            TokenTree(index=0, prefix=tree.prefix, branches=(branch,))
            for tree in trees
            for branch in tree.branches
        ]
        separate_RD = torch.cat([_hidden(module, padded.collate([tree])) for tree in alone])
        network.set_attn_implementation(PACKED_ATTENTION)
        packed_RD = _hidden(module, packed.collate(trees))
    finally:
        module.train(training)
    largest = separate_RD.abs().max().clamp_min(1e-12)
    difference = float((packed_RD - separate_RD).abs().max() / largest)
    dtype = next(iter(network.base_model.parameters())).dtype
    return ProbeResult(difference=difference, tolerance=TOLERANCE.get(dtype, 6e-2))


@torch.no_grad()
def _hidden(module: DecoderRewardModule, batch: Batch) -> Tensor:
    return module.hidden(batch).float()
