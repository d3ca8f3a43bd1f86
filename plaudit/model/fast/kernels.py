"""Fused elementwise kernels by device and precision, and other libraries' kernels on request.

:data:`KERNELS` has a row for each device and precision; without one, and under autocast to another
precision, a module's own code runs. On CUDA in half precision they are Liger's where liger-kernel
is installed and runs, otherwise PyTorch's RMSNorm and plaudit's rotation.

Shapes: D width of a norm or a head, the last dimension everywhere.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plaudit.errors import ModelError
from plaudit.model.module import classifier

logger = logging.getLogger("plaudit")


@dataclass(frozen=True, slots=True)
class Kernels:
    """What layers of one device and precision compute with.

    Attributes:
        rms_norm: Input, weight and epsilon → ``weight * x / sqrt(mean(x ** 2) + epsilon)``.
        rotate: Queries and keys ``[B, H, T, D]``, cosines and sines ``[B, T, D]`` → both in Llama's
            rotation. What it is given may be overwritten.
        swiglu: Gate and up → ``silu(gate) * up``. What it is given may be overwritten by the
            backward pass.
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    swiglu: Callable[[Tensor, Tensor], Tensor]


def kernels_for(first: Tensor, *others: Tensor) -> Kernels | None:
    """The fused kernels for these tensors, None where there are none.

    Autocast to the precision that the tensors have changes nothing.
    """
    device, dtype = kind = first.device.type, first.dtype
    if kind not in KERNELS:
        return None
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != dtype:
        return None
    if any((tensor.device.type, tensor.dtype) != kind for tensor in others):
        return None
    return KERNELS[kind]()


# ---- plaudit's own


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * x / sqrt(mean(x ** 2) + eps)`` over the last dimension."""
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
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
        inner = torch.linalg.vecdot(grad_x, x).unsqueeze(-1)
        inner.mul_(inverse.pow(3)).div_(-x.shape[-1])
        return grad_x.mul_(inverse).addcmul_(x, inner), grad_weight, None


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Llama's RoPE: ``q`` and ``k`` are ``[B, H, T, D]``, ``cos`` and ``sin`` are ``[B, T, D]``."""
    tables = cos.unsqueeze(1), sin.unsqueeze(1)
    turned_q: Tensor = _Rotate.apply(q, *tables)  # type: ignore[no-untyped-call]
    turned_k: Tensor = _Rotate.apply(k, *tables)  # type: ignore[no-untyped-call]
    return turned_q, turned_k


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


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """As two passes; on a CPU one node for both saves 0.4% of a step."""
    return F.silu(gate) * up


def torch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """PyTorch's fused RMSNorm. It rounds once, behind the weight; Llama's own code also before."""
    # Autocast would widen it to fp32 (torch 2.13).
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, weight.shape, weight, eps)


# ---- by device and precision


@functools.cache
def on_cpu() -> Kernels:
    return Kernels(rms_norm=rms_norm, rotate=rotate, swiglu=swiglu)


@functools.cache
def on_cuda() -> Kernels:
    """Liger's kernels where they are installed and run, otherwise PyTorch's."""
    try:
        from liger_kernel.transformers import functional as liger
    except ImportError:
        return TORCH

    def liger_rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        # Triton launches on the current device; Liger 0.8.5 selects that of the tensors for its
        # other kernels, not for this one.
        with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
            turned: tuple[Tensor, Tensor] = liger.liger_rope(q, k, cos, sin)
        return turned

    found = Kernels(
        # Its gradient would overwrite that of the output, which hooks may still read.
        rms_norm=lambda x, weight, eps: liger.liger_rms_norm(x, weight, eps, in_place=False),
        rotate=liger_rotate,
        swiglu=liger.liger_swiglu,
    )
    return found if _runs(found) else TORCH


def _runs(liger: Kernels) -> bool:
    x = torch.ones(2, 64)
    try:
        x = x.to("cuda", torch.bfloat16)
        liger.rms_norm(x, x[0], 1e-6)
    except Exception as error:
        # Triton fails in many ways where its compiler or one for C is missing.
        logger.warning(
            "liger-kernel is installed, but its kernels do not run here (%s); PyTorch's are used.",
            error,
        )
        return False
    return True


TORCH = Kernels(rms_norm=torch_rms_norm, rotate=rotate, swiglu=swiglu)

KERNELS: dict[tuple[str, torch.dtype], Callable[[], Kernels]] = {
    ("cpu", torch.float32): on_cpu,
    ("cuda", torch.bfloat16): on_cuda,
    ("cuda", torch.float16): on_cuda,
}


# ---- kernels of other libraries, on request


# Liger's fused cross entropy replaces a model's forward by one that computes vocabulary logits.
_NOT_OURS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def apply_liger(network: nn.Module, options: Mapping[str, Any], device: torch.device) -> None:
    """Liger's kernels in a body's norms, rotary positions and MLPs (``train.use_liger_kernel``).

    The Trainer's own switch passes over anything but a ``PreTrainedModel``, with a warning that
    nobody reads. Applied before the self-check, so that it checks what will run.

    Raises:
        ModelError: no CUDA device, no liger-kernel, or none for this architecture.
    """
    if device.type != "cuda":
        raise ModelError(
            f"train.use_liger_kernel needs a CUDA device, but this run uses {device.type}; remove"
            " it."
        )
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError:
        raise ModelError(
            "train.use_liger_kernel needs liger-kernel; install it with pip install "
            "'plaudit[gpu]', or remove it."
        ) from None
    model = classifier(network)
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ModelError(
            f"train.use_liger_kernel is on, but Liger has no kernels for {model.config.model_type};"
            " remove it."
        )
    _apply_liger_kernel_to_instance(model=model, **{**_NOT_OURS, **options})


def compile_layers(network: nn.Module, *, backend: str | None, mode: str | None) -> None:
    """Compile each layer of the body in place (``train.torch_compile``).

    Layer by layer, since one compiled layer serves all of them: compiling takes a minute or so
    at any depth. Lengths are dynamic; attention over the packed layout stays outside.

    Raises:
        ModelError: the body has no list of layers.
    """
    layers = getattr(classifier(network).base_model, "layers", None)
    if layers is None:
        raise ModelError(
            "train.torch_compile compiles the layers of a decoder, which"
            f" {type(network).__name__} does not have; remove it."
        )
    for layer in layers:
        layer.compile(dynamic=True, backend=backend or "inductor", mode=mode)
