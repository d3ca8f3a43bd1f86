"""Norms and rotary positions of a body in fp32 on a CPU, with fewer passes over memory.

transformers writes them as a chain of operations, each of which reads and writes a whole
activation, and autograd walks the chain back. Here each is one node of the graph that reduces
without a copy, works in place and keeps nothing but its input. What is exchanged is compared with
the module's own code on random numbers first; whatever differs (Gemma's ``1 + weight``, GLM's
interleaved positions) is left alone. In other precisions, under autocast and on other devices
the module's own code runs.

Shapes: D width of a norm or a head, the last dimension everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plaudit.model.fast.exchange import Exchanged

_ROTARY = "apply_rotary_pos_emb"

Rotary = Callable[..., tuple[Tensor, Tensor]]


def fuse_elementwise(network: nn.Module) -> None:
    """Let a network's norms and attentions compute as here, in place, where the check allows.

    Classes are exchanged for subclasses of theirs, so that state, names and every other method are
    inherited; no module of transformers is changed.
    """
    exchanged: dict[type, type] = {}
    for module in network.modules():
        if "forward" in vars(module):
            # Liger's kernel or a hook of accelerate runs in its place; a class cannot change it.
            continue
        kind = type(module)
        if kind not in exchanged:
            exchanged[kind] = _exchange(module)
        if exchanged[kind] is not kind:
            module.__class__ = exchanged[kind]


def _exchange(module: nn.Module) -> type:
    """The class to run a module as; its own where nothing here fits it."""
    kind = type(module)
    if isinstance(module, FusedNorm | FusedRotary):
        return kind
    if _is_rms_norm(module):
        return FusedNorm.of(kind)
    return _with_rotary(kind)


def _ours(*tensors: Tensor) -> bool:
    return not torch.is_autocast_enabled("cpu") and all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors
    )


# ---- norms


class FusedNorm(Exchanged):
    """Mixed in before a norm whose code is Llama's: ``weight * x / rms(x)``."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        out: Tensor
        if _ours(hidden_states, self.weight):
            out = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        else:
            out = super().forward(hidden_states)
        return out


class _RmsNorm(torch.autograd.Function):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467); keeps its input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        out: Tensor = (x * inverse).mul_(weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * x).mul_(inverse).flatten(0, -2).sum(0)
        grad_x = grad * weight
        along = torch.linalg.vecdot(grad_x, x).unsqueeze(-1)
        along.mul_(inverse.pow(3)).div_(-x.shape[-1])
        return grad_x.mul_(inverse).addcmul_(x, along), grad_weight, None


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether a module computes what :class:`_RmsNorm` does, found by trying."""
    parameters = dict(module.named_parameters())
    if set(parameters) != {"weight"} or not isinstance(vars(module).get("variance_epsilon"), float):
        return False
    if len(inspect.signature(module.forward).parameters) != 1:
        # Norms of hybrid models take a gate beside their input.
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *parameters["weight"].shape[:1], generator=generator)
    weight = torch.randn(x.shape[-1], generator=generator)
    own = torch.func.functional_call(module, {"weight": weight}, (x,))
    fused = _RmsNorm.apply(x, weight, vars(module)["variance_epsilon"])  # type: ignore[no-untyped-call]
    return isinstance(own, Tensor) and torch.allclose(own, fused, rtol=1e-5, atol=1e-6)


# ---- rotary positions


class FusedRotary(Exchanged):
    """An attention whose code calls the rotation below.

    The code looks the function up among its module's names, so a copy of it is given names of its
    own, with one of them changed.
    """

    @classmethod
    def of(cls, kind: type) -> type:
        forward = vars(kind)["forward"]
        names = {**forward.__globals__, _ROTARY: _fused_rotary(forward.__globals__[_ROTARY])}
        copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__)
        copy.__kwdefaults__ = forward.__kwdefaults__
        members = {"__module__": kind.__module__, "forward": copy}
        return type(kind.__name__, (cls, kind), members)


class _Rotate(torch.autograd.Function):
    """``x * cos + rotate_half(x) * sin`` (Su et al. 2021, arXiv:2104.09864, in Llama's order)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        low, high = torch.split(x, half, dim=-1)
        sin_low, sin_high = torch.split(sin, half, dim=-1)
        out = torch.mul(x, cos, out=torch.empty_like(x))
        out[..., :half].addcmul_(high, sin_low, value=-1)
        out[..., half:].addcmul_(low, sin_high)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        low, high = torch.split(grad, half, dim=-1)
        sin_low, sin_high = torch.split(sin, half, dim=-1)
        grad_x = torch.mul(grad, cos, out=torch.empty_like(grad))
        grad_x[..., :half].addcmul_(high, sin_high)
        grad_x[..., half:].addcmul_(low, sin_low, value=-1)
        return grad_x, None, None


def _with_rotary(kind: type) -> type:
    """An attention class whose own code calls the fused rotation, or the class as it is."""
    forward = vars(kind).get("forward")
    if not isinstance(forward, FunctionType) or forward.__code__.co_freevars:
        return kind
    own = forward.__globals__.get(_ROTARY)
    if _ROTARY not in forward.__code__.co_names or own is None or not _is_plain(own):
        return kind
    return FusedRotary.of(kind)


def _fused_rotary(own: Rotary) -> Rotary:
    def rotary(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        # Some attentions (ModernBERT's) say as well which dimension the heads are.
        if kwargs or len(args) != 4:
            return own(*args, **kwargs)
        q, k, cos, sin = args
        if not _ours(q, k, cos, sin) or cos.shape[-1] != q.shape[-1]:
            return own(q, k, cos, sin)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return _Rotate.apply(q, cos, sin), _Rotate.apply(k, cos, sin)  # type: ignore[no-untyped-call]

    return rotary


def _is_plain(own: Any) -> bool:
    """Whether a rotary function computes what :class:`_Rotate` does, found by trying."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 3, 8, generator=generator) for _ in range(2))
    cos, sin = (torch.randn(1, 3, 8, generator=generator) for _ in range(2))
    try:
        found = own(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        return False
    return all(
        torch.allclose(theirs, _Rotate.apply(mine, cos[:, None], sin[:, None]), atol=1e-6)  # type: ignore[no-untyped-call]
        for theirs, mine in zip(found, (q, k), strict=True)
    )
