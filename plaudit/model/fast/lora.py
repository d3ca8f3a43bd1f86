"""PEFT's LoRA layer, computed with fewer passes over the activations.

PEFT adds ``lora_B(lora_A(x)) * scaling`` to the base layer's output: a product, a scaled copy and a
sum, each as large as the output, and the same again backwards. Here one of two forms is taken,
whichever writes less. For few tokens the thin product is added to the output in place. For many
the adapter is added to a passing copy of the weight, so that the layer is one product, as it is
once an adapter is merged. Parameters, names, saving, merging stay PEFT's.

Shapes: T tokens (rows of the flattened input), I inputs, O outputs, r rank.
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
        """One adapter on a frozen dense layer, no dropout, no variant (DoRA and others).

        A base bias that trains (``lora.bias``) would get no gradient here. Thin layers that are no
        plain ones hold their weights elsewhere: FSDP gathers them when it is called.
        """
        if self.disable_adapters or self.merged or name not in self.lora_A or self.lora_variant:
            return False
        base, dropout = self.base_layer, self.lora_dropout[name]
        return (
            type(base) is nn.Linear
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
            and type(self.lora_A[name]) is nn.Linear
            and type(self.lora_B[name]) is nn.Linear
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
        x_TI = x.flatten(0, -2)
        if _pays(len(x_TI), x.shape[-1], weight):
            out = F.linear(x, torch.addmm(weight, b, a, alpha=scaling), bias)
        else:
            out = F.linear(x, weight, bias)
            # A view, never a copy: what is added must arrive in `out`.
            out.view(-1, out.shape[-1]).addmm_(x_TI @ a.T, b.T, alpha=scaling)
        ctx.save_for_backward(x_TI, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight, a, b = ctx.saved_tensors
        grad_TO = grad.flatten(0, -2)
        low_Tr = x_TI @ a.T
        # Both products read the gradient along its rows; across them they take twice as long.
        grad_low_Tr = (grad_TO @ b.T.contiguous().T).mul_(ctx.scaling)
        grad_b = (low_Tr.T @ grad_TO).T.mul(ctx.scaling)
        grad_a = grad_low_Tr.T @ x_TI
        grad_x = None
        if ctx.needs_input_grad[0]:
            if _pays(len(x_TI), len(weight), weight):
                grad_x = grad_TO @ torch.addmm(weight, b, a, alpha=ctx.scaling)
            else:
                grad_x = (grad_TO @ weight).addmm_(grad_low_Tr, a)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


def _pays(tokens: int, width: int, weight: Tensor) -> bool:
    """Whether an adapted copy of the weight costs less than adding to the product it would give.

    For each column of the product the copy writes ``width`` values, the addition one per token; the
    quarter is measured. In half precision the copy would round the adapter away.
    """
    return weight.dtype == torch.float32 and 4 * tokens > 5 * width


def fuse_lora(network: nn.Module) -> None:
    """Let PEFT's plain LoRA layers compute as :class:`FusedLinear`, in place.

    PEFT chooses its layer classes itself, and its hook for own classes
    (``LoraConfig._register_custom_module``) would also catch the subclasses that stand for
    quantized layers. The class is exchanged instead: state and every other method are inherited.
    """
    for module in network.modules():
        if type(module) is Linear:
            module.__class__ = FusedLinear
