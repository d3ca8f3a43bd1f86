"""PEFT's plain LoRA in fewer passes over memory, alone and for layers with a common input.

Shapes: T tokens (rows of the flattened input), I inputs, O outputs, r rank of a LoRA, R that of
all layers with a common input together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plaudit.model.fast.patched import PatchedModule


class FusedLoRA(PatchedModule):
    """PEFT's LoRA of a linear layer; for anything beyond plain LoRA, PEFT's own forward.

    PEFT adds ``lora_B(lora_A(x)) * scaling`` to the base layer's output: a product, a scaled copy
    and a sum, each as large as the output, and the same again backwards. Here one of two forms is
    taken, whichever writes less. For few tokens the thin product is added to the output in place.
    For many the adapter is added to a passing copy of the weight, so that the layer is one product,
    as it is once an adapter is merged.
    """

    # PEFT's layer, which mypy knows in no class that may be mixed in before it.
    active_adapters: Any
    base_layer: Any
    lora_A: Any
    lora_B: Any
    lora_dropout: Any
    lora_variant: Any
    scaling: Any
    merged: Any
    disable_adapters: Any

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or self.plain_adapter() is None:
            forwarded: Tensor = super().forward(x, *args, **kwargs)
            return forwarded
        (out,) = _adapted([self], x)
        return out

    def plain_adapter(self) -> str | None:
        """The one active adapter where it is plain LoRA on a frozen dense layer."""
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        return name if name is not None and self._is_plain(name) else None

    def _is_plain(self, name: str) -> bool:
        """A frozen dense layer, no dropout, no variant (DoRA and others).

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
        )


def project(linears: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """What each of several linear layers makes of ``x``.

    Those that are plain LoRA share the thin products. A layer with hooks, or with a ``forward`` of
    its own as accelerate's offloading sets it, is called.
    """
    joint = [
        linear
        for linear in linears
        if isinstance(linear, FusedLoRA)
        and not _has_more(linear)
        and linear.plain_adapter() is not None
    ]
    if len({linear.base_layer.weight.dtype for linear in joint}) != 1:
        joint = []
    outs = dict(zip(joint, _adapted(joint, x), strict=True)) if joint else {}
    return [outs[linear] if linear in outs else linear(x) for linear in linears]


def _has_more(module: nn.Module) -> bool:
    """Whether calling a module does more than the ``forward`` of its class."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in vars(module)
    )


def _adapted(layers: Sequence[FusedLoRA], x: Tensor) -> tuple[Tensor, ...]:
    """The outputs of plain LoRA layers of one precision."""
    bases = [layer.base_layer for layer in layers]
    names = [layer.active_adapters[0] for layer in layers]
    dtype = bases[0].weight.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    with torch.autocast(x.device.type, enabled=False):
        # The adapter's fp32 weights are small; the activations are not, and stay as they are.
        outs: tuple[Tensor, ...] = _LoraLinears.apply(  # type: ignore[no-untyped-call]
            x.to(dtype),
            tuple(layer.scaling[name] for layer, name in zip(layers, names, strict=True)),
            *(base.weight.to(dtype) for base in bases),
            *(None if base.bias is None else base.bias.to(dtype) for base in bases),
            *(layer.lora_A[name].weight for layer, name in zip(layers, names, strict=True)),
            *(layer.lora_B[name].weight for layer, name in zip(layers, names, strict=True)),
        )
    return outs


class _LoraLinears(torch.autograd.Function):
    """``x @ W.T + c + scaling * (x @ A.T) @ B.T`` of each layer; W and c are frozen.

    A and B, and their gradients, may be of a higher precision than the rest.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scalings: tuple[float, ...], *tensors: Any
    ) -> tuple[Tensor, ...]:
        count = len(scalings)
        weights, biases, downs, ups = (tensors[i * count : (i + 1) * count] for i in range(4))
        x_TI = x.flatten(0, -2)
        outs = []
        low_TR = None
        if _pays(len(x_TI), x.shape[-1], weights[0]):
            for weight, bias, a, b, scaling in zip(
                weights, biases, downs, ups, scalings, strict=True
            ):
                outs.append(F.linear(x, _merged(weight, a, b, scaling), bias))
        else:
            low_TR = x_TI @ torch.cat(downs).to(x.dtype).T
            lows = torch.split(low_TR, [len(a) for a in downs], dim=1)
            for weight, bias, low_Tr, b, scaling in zip(
                weights, biases, lows, ups, scalings, strict=True
            ):
                out = F.linear(x, weight, bias)
                # A view, never a copy: what is added must arrive in `out`.
                out.view(-1, out.shape[-1]).addmm_(low_Tr, b.to(x.dtype).T, alpha=scaling)
                outs.append(out)
        ctx.save_for_backward(x_TI, low_TR, *weights, *downs, *ups)
        ctx.scalings, ctx.shape = scalings, x.shape
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, low_TR, *tensors = ctx.saved_tensors
        count, scalings = len(grads), ctx.scalings
        weights, downs, ups = (tensors[i * count : (i + 1) * count] for i in range(3))
        ranks = [len(a) for a in downs]
        down_RI = torch.cat(downs).to(x_TI.dtype)
        if low_TR is None:
            low_TR = x_TI @ down_RI.T
        grads_TO = [grad.flatten(0, -2) for grad in grads]
        grad_low_TR = torch.cat(
            [
                # The product reads the gradient along its rows; across them it takes twice as long.
                (grad_TO @ b.to(x_TI.dtype).T.contiguous().T).mul_(scaling)
                for grad_TO, b, scaling in zip(grads_TO, ups, scalings, strict=True)
            ],
            dim=1,
        )
        grad_downs = torch.split(_widened(grad_low_TR.T, x_TI, downs[0].dtype), ranks)
        grad_ups = [
            torch.mul(_widened(low_Tr.T, grad_TO, b.dtype).T, scaling, out=torch.empty_like(b))
            for low_Tr, grad_TO, b, scaling in zip(
                torch.split(low_TR, ranks, dim=1), grads_TO, ups, scalings, strict=True
            )
        ]
        grad_x = None
        if ctx.needs_input_grad[0]:
            rest: list[int] = []
            for i, (grad_TO, weight) in enumerate(zip(grads_TO, weights, strict=True)):
                if _pays(len(x_TI), len(weight), weight):
                    weight = _merged(weight, downs[i], ups[i], scalings[i])
                else:
                    rest.append(i)
                grad_x = grad_TO @ weight if grad_x is None else grad_x.addmm_(grad_TO, weight)
            assert grad_x is not None
            if len(rest) == count:
                grad_x.addmm_(grad_low_TR, down_RI)
            elif rest:
                parts = torch.split(grad_low_TR, ranks, dim=1)
                grad_x.addmm_(
                    torch.cat([parts[i] for i in rest], dim=1),
                    torch.cat([downs[i] for i in rest]).to(x_TI.dtype),
                )
            grad_x = grad_x.view(ctx.shape)
        return (grad_x, None, *[None] * (2 * count), *grad_downs, *grad_ups)


def _merged(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return torch.addmm(weight, b.to(weight.dtype), a.to(weight.dtype), alpha=scaling)


def _widened(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b`` in ``dtype``: half precision is multiplied as it is and summed up in fp32."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda and dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    # A CPU has no such product (torch 2.13).
    return a.to(dtype) @ b.to(dtype)


def _pays(tokens: int, width: int, weight: Tensor) -> bool:
    """Whether an adapted copy of the weight costs less than adding to the product it would give.

    For each column of the product the copy writes ``width`` values, the addition one per token; the
    quarter is measured. In half precision the copy would round the adapter away.
    """
    return weight.dtype == torch.float32 and 4 * tokens > 5 * width


def fuse_lora(network: nn.Module) -> None:
    """Patch PEFT's plain LoRA layers, in place.

    PEFT's hook for layer classes (``LoraConfig._register_custom_module``) would also catch the
    subclasses that stand for quantized layers.
    """
    # Imported here: a model without an adapter does not need PEFT.
    from peft.tuners.lora.layer import Linear

    patched = FusedLoRA.of(Linear)
    for module in network.modules():
        if type(module) is Linear:
            module.__class__ = patched
