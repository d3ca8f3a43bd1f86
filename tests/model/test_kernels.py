"""Kernels on request: compiled layers compute the same, and what cannot be had is refused."""

from __future__ import annotations

import pytest
import torch

from plaudit.errors import ModelError
from plaudit.model.attention.interface import PACKED_ATTENTION
from plaudit.model.fast.fused import apply_liger, compile_layers
from plaudit.model.load import add_lora
from plaudit.model.module import DecoderRewardModule
from plaudit.tokens.batch import pack
from tests.models import make_trees, tiny_classifier

CPU = torch.device("cpu")
LORA = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}


def test_compiled_layers_score_and_learn_alike() -> None:
    """Two rows of different lengths; the graph is compiled, the code generator is not needed."""
    network = add_lora(tiny_classifier("llama"), LORA, quantized=False)
    network.base_model.set_attn_implementation(PACKED_ATTENTION)  # type: ignore[operator, union-attr]
    module = DecoderRewardModule(network)
    batches = [
        pack(make_trees(shapes, seed=3), CPU)
        for shapes in ([(9, (4, 6))], [(5, (7, 2)), (3, (8,))])
    ]

    def run() -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for batch in batches:
            module.zero_grad()
            scores_R = module(batch)
            scores_R.square().sum().backward()
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            found += [scores_R.detach(), *(g.clone() for g in gradients)]
        return found

    expected = run()
    compile_layers(network, backend="aot_eager", mode=None)
    for value, other in zip(run(), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


def test_liger_needs_cuda() -> None:
    with pytest.raises(ModelError, match="needs a CUDA device"):
        apply_liger(tiny_classifier("llama"), {}, CPU)
