"""Fused norms and attentions compute what the modules' own code does, or step aside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ModernBertConfig, ModernBertModel

from plaudit.model.fast.fused import FusedAttention, FusedRMSNorm, fuse_layers
from tests.models import tiny_classifier


def kinds(network: Any) -> set[str]:
    return {
        fused.__name__
        for module in network.modules()
        for fused in (FusedRMSNorm, FusedAttention)
        if isinstance(module, fused)
    }


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {"FusedRMSNorm", "FusedAttention"}),
        ("qwen3", {"FusedRMSNorm", "FusedAttention"}),
        ("gemma2", {"FusedAttention"}),
        ("olmo", {"FusedAttention"}),
        ("glm", {"FusedRMSNorm"}),
        ("gemma3_text", {"FusedAttention"}),
        ("mixtral", {"FusedRMSNorm", "FusedAttention"}),
        ("olmo2", {"FusedRMSNorm", "FusedAttention"}),
        ("starcoder2", {"FusedAttention"}),
        ("phi3", {"FusedRMSNorm"}),
        ("phi", set()),
        ("gpt_neox", set()),
    ],
)
def test_what_differs_is_left_alone(family: str, expected: set[str]) -> None:
    network = tiny_classifier(family)
    fuse_layers(network)
    assert kinds(network) == expected


def outcome(run: Callable[[], Tensor], *leaves: Tensor) -> list[Tensor]:
    out = run()
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)]


def test_a_norm_and_its_gradients() -> None:
    norm = tiny_classifier("llama").model.norm
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 32, requires_grad=True)
    expected = outcome(lambda: norm(x), x, norm.weight)
    fuse_layers(norm)
    assert isinstance(norm, FusedRMSNorm)
    found = outcome(lambda: norm(x), x, norm.weight)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "nemotron"])
def test_a_model_and_its_gradients(family: str) -> None:
    """Under transformers' own attention, so that the rotation is all that differs in it.

    Nemotron rotates half of each head.
    """
    network = tiny_classifier(family)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    leaves = list(network.parameters())
    expected = outcome(lambda: network(input_ids=ids).logits, *leaves)
    fuse_layers(network)
    found = outcome(lambda: network(input_ids=ids).logits, *leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max()))
        )


def test_half_precision_and_autocast_are_the_modules_own() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    half = tiny_classifier("llama").bfloat16()
    full = tiny_classifier("llama")
    expected = half(input_ids=ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected_cast = full(input_ids=ids).logits
    fuse_layers(half)
    fuse_layers(full)
    assert torch.equal(half(input_ids=ids).logits, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full(input_ids=ids).logits, expected_cast)


def test_an_attention_that_says_where_its_heads_are() -> None:
    """ModernBERT calls the rotation with one argument more."""
    config = ModernBertConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    network = ModernBertModel(config)
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = network(input_ids=ids).last_hidden_state
    fuse_layers(network)
    torch.testing.assert_close(network(input_ids=ids).last_hidden_state, expected)


class Gated(torch.nn.Module):
    """A norm as hybrid models have it: Llama's, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))
        self.variance_epsilon = 1e-6

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        if gate is not None:
            hidden_states = hidden_states * torch.nn.functional.silu(gate)
        scale = hidden_states.square().mean(-1, keepdim=True).add(self.variance_epsilon).rsqrt()
        return self.weight * (hidden_states * scale)


def test_a_norm_with_a_gate_is_left_alone() -> None:
    network = torch.nn.Sequential(Gated())
    fuse_layers(network)
    assert kinds(network) == set()


def test_a_forward_put_on_an_instance_is_not_tried() -> None:
    """Liger's kernel would refuse the CPU tensors of the trial."""

    def on_a_gpu(hidden_states: Tensor) -> Tensor:
        raise ValueError("cpu tensor")

    network = tiny_classifier("llama")
    network.model.norm.forward = on_a_gpu
    network.model.layers[0].input_layernorm.forward = on_a_gpu
    fuse_layers(network)
    assert not isinstance(network.model.norm, FusedRMSNorm)
    assert isinstance(network.model.layers[1].input_layernorm, FusedRMSNorm)


def test_other_models_of_the_process_are_not_touched() -> None:
    first, second = tiny_classifier("llama"), tiny_classifier("llama")
    fuse_layers(first)
    assert kinds(second) == set()
    assert type(second.model.layers[0].self_attn) is not type(first.model.layers[0].self_attn)


def test_only_layers_with_positions_rotate() -> None:
    """Some layers of SmolLM3 have no rotary positions; their attention is left alone."""
    network = tiny_classifier("smollm3")
    attentions = [layer.self_attn for layer in network.model.layers]
    for attention, use_rope in zip(attentions, (1, 0, 1), strict=False):
        attention.use_rope = use_rope
    fuse_layers(network)
    assert [isinstance(one, FusedAttention) for one in attentions] == [
        bool(one.use_rope) for one in attentions
    ]


def test_a_setting_that_is_not_handed_on_is_noticed() -> None:
    """An attention that clips its queries computes something else."""
    network = tiny_classifier("olmo")
    network.config.clip_qkv = 0.01
    fuse_layers(network)
    assert kinds(network) == set()
