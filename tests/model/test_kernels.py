"""Kernels by device and precision, those of other libraries, and compiled layers."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.errors import ModelError
from plaudit.model.attention.interface import PACKED_ATTENTION, forced
from plaudit.model.fast import kernels
from plaudit.model.fast.fused import FusedAttention, FusedGated, FusedRMSNorm, fuse_layers
from plaudit.model.fast.kernels import apply_liger, compile_layers
from plaudit.model.fast.lora import fuse_lora
from plaudit.model.load import add_lora
from plaudit.model.module import DecoderRewardModule, classifier
from plaudit.tokens.batch import pack, pad
from tests.flash_kernel import flash_on_cpu
from tests.models import make_trees, tiny_classifier

CPU = torch.device("cpu")
LORA = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}


def test_compiled_layers_score_and_learn_alike() -> None:
    """Two rows of different lengths; the graph is compiled, the code generator is not needed."""
    network = add_lora(tiny_classifier("llama"), LORA)
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


class Liger:
    """What liger_kernel.transformers.functional documents, written out in fp32.

    Like the kernels of the library it returns rotated queries and keys in place of those given, and
    reads the first half of the tables alone.
    """

    def __init__(self) -> None:
        self.called: set[str] = set()

    def liger_rms_norm(self, x: Tensor, weight: Tensor, eps: float, *, in_place: bool) -> Tensor:
        self.called.add("rms_norm")
        assert not in_place
        inverse = x.float().square().mean(-1, keepdim=True).add(eps).rsqrt()
        return weight * (x.float() * inverse).to(x.dtype)

    def liger_rope(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        self.called.add("rope")

        def turned(x: Tensor) -> Tensor:
            low, high = x.float().chunk(2, dim=-1)
            c, s = (table[:, None, :, : low.shape[-1]].float() for table in (cos, sin))
            return torch.cat([low * c - high * s, high * c + low * s], dim=-1).to(x.dtype)

        return turned(q), turned(k)

    def liger_swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        self.called.add("swiglu")
        return F.silu(gate.float()).to(up.dtype) * up


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Liger:
    """An installed liger-kernel whose functions run here."""
    functional = Liger()
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(
        sys.modules, "liger_kernel.transformers", SimpleNamespace(functional=functional)
    )
    return functional


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("source", "form"), [("torch", "cpu"), ("liger", "varlen"), ("torch", "two_calls")]
)
def test_half_precision_kernels_err_as_padded_batches_do(
    source: str, form: str, lora: bool, liger: Liger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 1 in bf16 with the kernels that CUDA gets: at most 1.5 times the padded error."""
    monkeypatch.setattr(kernels, "_runs", lambda found: True)
    chosen = kernels.on_cuda.__wrapped__() if source == "liger" else kernels.TORCH
    trees = make_trees([(13, (9, 14, 6)), (0, (17, 11)), (21, (8, 8))] * 12, seed=5)

    def network() -> Any:
        if not lora:
            return tiny_classifier("llama")
        adapted = add_lora(tiny_classifier("llama"), LORA)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2, generator=generator)
        return adapted.eval()

    def found(module: DecoderRewardModule, batch: Any) -> list[Tensor]:
        module.zero_grad()
        scores_R = module(batch)
        (scores_R * torch.linspace(-1.0, 2.0, len(scores_R))).sum().backward()
        gradients = [p.grad.float() for p in module.parameters() if p.grad is not None]
        return [scores_R.detach(), torch.cat([g.flatten() for g in gradients])]

    def in_half(whole: Any) -> Any:
        for name, parameter in whole.named_parameters():
            if "lora_" not in name and "score" not in name:
                parameter.data = parameter.data.bfloat16()
        return whole

    exact = found(DecoderRewardModule(network()), pad(trees, 2, CPU))
    plain = found(DecoderRewardModule(in_half(network())), pad(trees, 2, CPU))
    monkeypatch.setitem(kernels.KERNELS, ("cpu", torch.bfloat16), lambda: chosen)
    half = in_half(network())
    classifier(half).set_attn_implementation(PACKED_ATTENTION)
    fuse_lora(half)
    fuse_layers(half)
    kinds = {type(m).__mro__[1] for m in half.modules()}
    assert {FusedRMSNorm, FusedAttention, FusedGated} <= kinds
    with flash_on_cpu(), forced(form):
        fused = found(DecoderRewardModule(half), pack(trees, CPU))
    assert liger.called == ({"rms_norm", "rope", "swiglu"} if source == "liger" else set())
    for one, other, expected in zip(fused, plain, exact, strict=True):
        error, padded = ((x - expected).square().mean().sqrt() for x in (one, other))
        assert error <= 1.5 * padded


def test_autocast_to_the_precision_of_the_body_keeps_the_kernels(
    liger: Liger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``bf16: true`` beside a bf16 base, as recipes of other tools have it, changes nothing."""
    chosen = kernels.TORCH
    monkeypatch.setitem(kernels.KERNELS, ("cpu", torch.bfloat16), lambda: chosen)
    network = tiny_classifier("llama")
    network.base_model.bfloat16()
    network.set_attn_implementation(PACKED_ATTENTION)
    fuse_layers(network.base_model)
    module = DecoderRewardModule(network).eval()
    batch = pack(make_trees([(13, (9, 14, 6)), (0, (17, 11))]), CPU)
    with torch.no_grad():
        expected_R = module(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(module(batch), expected_R, rtol=0, atol=0)
            # The same with kernels that tell whether they were called.
            monkeypatch.setattr(kernels, "_runs", lambda found: True)
            chosen = kernels.on_cuda.__wrapped__()
            module(batch)
    assert liger.called == {"rms_norm", "rope", "swiglu"}


def test_liger_that_does_not_run_is_not_used(
    liger: Liger, caplog: pytest.LogCaptureFixture
) -> None:
    """Here its kernels find no GPU; elsewhere Triton may find no compiler."""
    assert kernels.on_cuda.__wrapped__() is kernels.TORCH
    assert "do not run here" in caplog.text
