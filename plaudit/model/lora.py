"""PEFT's LoRA layer, computed with fewer passes over the activations.

PEFT adds ``lora_B(lora_A(x)) * scaling`` to the base layer's output: a product, a scaled copy and a
sum, each as large as the output, and the same again backwards. Here the product is added in place,
and backwards the input's gradient is one sum. Parameters, names, saving, merging stay PEFT's.

Shapes: T tokens (rows of the flattened input), r rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FusedLinear(Linear):
    """PEFT's LoRA of a linear layer; where anything beyond plain LoRA is asked, PEFT's forward."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        if args or kwargs or name is None or not self._is_plain(name):
            forwarded: Tensor = super().forward(x, *args, **kwargs)
            return forwarded
        base = self.base_layer
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        assert isinstance(base, nn.Linear)
        dtype = base.weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            # The adapter's fp32 weights are small; the activations are not, and stay as they are.
            out: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
                x.to(dtype),
                base.weight.to(dtype),
                None if base.bias is None else base.bias.to(dtype),
                down.to(dtype),
                up.to(dtype),
                self.scaling[name],
            )
        return out

    def _is_plain(self, name: str) -> bool:
        """One adapter on a frozen dense layer, no dropout, no variant (DoRA and others)."""
        if self.disable_adapters or self.merged or name not in self.lora_A or self.lora_variant:
            return False
        base, dropout = self.base_layer, self.lora_dropout[name]
        return (
            type(base) is nn.Linear
            and not base.weight.requires_grad
            and self.lora_B[name].bias is None
            and (not self.training or not isinstance(dropout, nn.Dropout) or dropout.p == 0.0)
            # ZeRO-3 gathers a layer's weights when that layer is called, and here it is not.
            and not hasattr(base.weight, "ds_id")
        )


class _LoraLinear(torch.autograd.Function):
    """``x @ W.T + b + scaling * (x @ A.T) @ B.T``, W and b frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        x_TD = x.flatten(0, -2)
        low_Tr = x_TD @ a.T
        out = F.linear(x, weight, bias)
        out.flatten(0, -2).addmm_(low_Tr, b.T, alpha=scaling)
        ctx.save_for_backward(x_TD, low_Tr, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, low_Tr, weight, a, b = ctx.saved_tensors
        grad_TD = grad.flatten(0, -2)
        grad_low_Tr = (grad_TD @ b).mul_(ctx.scaling)
        grad_a = grad_low_Tr.T @ x_TD
        # The other order of this product walks the gradient against its rows: 2.4 times slower.
        grad_b = (low_Tr.T @ grad_TD).T.mul(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_TD @ weight).addmm_(grad_low_Tr, a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


def fuse_lora(network: nn.Module) -> None:
    """Let PEFT's plain LoRA layers compute as :class:`FusedLinear`, in place.

    PEFT chooses its layer classes itself, and its hook for own classes
    (``LoraConfig._register_custom_module``) would also catch the subclasses that stand for
    quantized layers. The class is exchanged instead: state and every other method are inherited.
    """
    for module in network.modules():
        if type(module) is Linear:
            module.__class__ = FusedLinear
