"""The fused LoRA layer computes what PEFT's own does, and steps aside for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from plaudit.model.fast.lora import FusedLoRA, fuse_lora, project


class Body(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(12, 20, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


def adapted(*, base_bias: bool = False, **options: object) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["proj"], **options)  # type: ignore[arg-type]
    network: nn.Module = get_peft_model(Body(base_bias), config)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return network


def gradients(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    network.zero_grad()
    out = network(x)
    out.square().sum().backward()
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {**found, "x": x.grad, "out": out.detach()}


def layers(network: nn.Module) -> list[bool]:
    """Of each LoRA layer, whether it is patched."""
    return [isinstance(m, FusedLoRA) for m in network.modules() if isinstance(m, Linear)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 12), (1, 9, 12), (18, 12), (2, 3, 5, 12)])
def test_fused_equals_peft(bias: bool, shape: tuple[int, ...]) -> None:
    """Few tokens add to the product; 18 fold the adapter forwards, 30 backwards too."""
    network = adapted(base_bias=bias)
    x = torch.randn(*shape)
    expected = gradients(network, x)
    fuse_lora(network)
    assert layers(network) == [True]
    found = gradients(network, x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        largest = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("kind", ["all", "lora_only"])
def test_a_bias_that_trains_gets_its_gradient(kind: str) -> None:
    network = adapted(base_bias=True, bias=kind)
    x = torch.randn(6, 12)
    expected = gradients(network, x)
    assert "base_model.model.proj.base_layer.bias" in expected
    fuse_lora(network)
    found = gradients(network, x)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)


def test_an_input_without_gradient_gets_none() -> None:
    network = adapted()
    fuse_lora(network)
    out = network(torch.randn(4, 12))
    out.sum().backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if "lora_" in n)


def disabled(network: nn.Module) -> None:
    network.base_model.disable_adapter_layers()  # type: ignore[operator, union-attr]


def merged(network: nn.Module) -> None:
    network.merge_adapter()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"use_dora": True}, None),
        ({"lora_bias": True}, None),
        ({"use_rslora": True}, None),
        ({}, disabled),
        ({}, merged),
    ],
)
def test_other_kinds_of_lora_compute_as_peft_does(
    options: dict[str, object], change: Callable[[nn.Module], None] | None
) -> None:
    network = adapted(base_bias=True, **options)
    if change is not None:
        change(network)
    x = torch.randn(6, 12)
    expected = network(x)
    fuse_lora(network)
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


def test_dropout_stays_pefts() -> None:
    network = adapted(lora_dropout=0.5).train()
    x = torch.randn(6, 12)
    torch.manual_seed(3)
    expected = network(x)
    fuse_lora(network)
    torch.manual_seed(3)
    torch.testing.assert_close(network(x), expected)
    network.eval()
    torch.testing.assert_close(network(x), adapted(lora_dropout=0.5).eval()(x))


def test_half_precision_bodies_keep_their_precision() -> None:
    network: Any = adapted()
    network.base_model.model.proj.base_layer.bfloat16()
    fuse_lora(network)
    x = torch.randn(5, 12, dtype=torch.bfloat16)
    assert network(x).dtype == torch.bfloat16
    found = gradients(network, x)
    assert found["base_model.model.proj.lora_A.default.weight"].dtype == torch.float32


def test_autocast_decides_the_precision() -> None:
    network = adapted()
    x = torch.randn(5, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(x)
        fuse_lora(network)
        found = network(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


class Three(nn.Module):
    """Projections of one input, as attention has them; the middle one is narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 20), nn.Linear(12, 10, bias=False), nn.Linear(12, 20)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(project((self.q, self.k, self.v), x), dim=-1)


def three() -> Any:
    torch.manual_seed(0)
    targets = ["q", "k", "v"]
    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets, rank_pattern={"k": 2})
    network = get_peft_model(Three(), config)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return network


@pytest.mark.parametrize("tokens", [7, 14, 18, 30])
def test_layers_with_one_input_equal_peft(tokens: int) -> None:
    """Of 14 tokens the narrow layer alone folds its adapter backwards, of 18 all forwards."""
    network = three()
    x = torch.randn(tokens, 12)
    expected = gradients(network, x)
    fuse_lora(network)
    found = gradients(network, x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        largest = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6 * largest)


class Products(TorchDispatchMode):
    """Notes the shapes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "mm" in func.__name__:
            self.shapes.append(tuple(out.shape))
        return out


def test_thin_products_are_shared_and_not_repeated() -> None:
    network = three()
    fuse_lora(network)
    x = torch.randn(7, 12, requires_grad=True)
    with Products() as forward:
        out = network(x)
    with Products() as backward:
        out.sum().backward()
    # All three adapters have rank 8 together.
    assert forward.shapes.count((7, 8)) == 1
    assert (7, 3) not in forward.shapes
    assert (7, 8) not in backward.shapes
    assert backward.shapes.count((8, 12)) == 1


def with_a_hook(layer: nn.Module, seen: list[Tensor]) -> None:
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))


def with_its_own_forward(layer: nn.Module, seen: list[Tensor]) -> None:
    """As accelerate offloads weights."""
    own = layer.forward

    def forward(x: Tensor) -> Tensor:
        seen.append(x)
        out: Tensor = own(x)
        return out

    layer.forward = forward


@pytest.mark.parametrize("change", [with_a_hook, with_its_own_forward])
def test_a_layer_that_does_more_is_called(
    change: Callable[[nn.Module, list[Tensor]], None],
) -> None:
    network = three()
    x = torch.randn(5, 12)
    expected = network(x)
    fuse_lora(network)
    seen: list[Tensor] = []
    change(network.base_model.model.k, seen)
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 1


def test_adapter_gradients_of_a_half_precision_body_have_full_precision() -> None:
    """Products of bf16 numbers are summed up in fp32, and not rounded to bf16 behind that."""
    network = adapted()
    exact = gradients(network, torch.ones(300, 12))
    network.base_model.model.proj.base_layer.bfloat16()  # type: ignore[union-attr]
    fuse_lora(network)
    found = gradients(network, torch.ones(300, 12, dtype=torch.bfloat16))
    for name in (n for n in found if "lora_" in n):
        assert not torch.equal(found[name], found[name].bfloat16().float()), name
        torch.testing.assert_close(
            found[name], exact[name], rtol=0, atol=0.02 * float(exact[name].abs().max())
        )


def test_adapter_gradients_lie_in_rows() -> None:
    """As the weights do: a gradient that lies otherwise is copied when it is kept."""
    network = three()
    fuse_lora(network)
    adapters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(network(torch.randn(7, 12)).sum(), adapters)
    assert all(gradient.is_contiguous() for gradient in found)
