"""The dtype of a body's weights. Head and adapter stay fp32 beside any of them.

A file of its own, because ``plaudit info`` and the planner ask it without loading transformers.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from plaudit.errors import ModelError
from plaudit.types import Dtype, WeightDtype

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("plaudit")

Purpose: TypeAlias = Literal["score", "lora", "qlora", "full"]
"""What the weights are loaded for: scoring, or one of the methods of training."""

NO_BF16: Final = {
    "score": "its weights are loaded in float32. Set --dtype float16 to halve their memory",
    "lora": "the base is loaded in float32",
    "qlora": "the base computes in float32. Set model.dtype to float16 to halve activations",
}


def choose_dtype(name: Dtype, *, device_type: str, bf16: bool, purpose: Purpose) -> WeightDtype:
    """What ``name`` means on a device of a type, which has ``bf16`` arithmetic or lacks it.

    ``auto`` is bf16 on CUDA, and fp32 elsewhere. Full fine-tuning keeps fp32 weights, because bf16
    would round most updates away; its bf16 comes from autocast.
    """
    if name != "auto":
        return name
    return "bfloat16" if device_type == "cuda" and bf16 and purpose != "full" else "float32"


def dtype_on(name: Dtype, device: torch.device, purpose: Purpose) -> torch.dtype:
    """:func:`choose_dtype` on a device of this machine, with a warning where it lacks bf16.

    Raises:
        ModelError: no precision has this name, or PyTorch finds no such device.
    """
    import torch

    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device is {device}, but PyTorch finds {torch.cuda.device_count()} CUDA devices;"
            " choose another device."
        )
    bf16 = has_bf16(device)
    if name == "auto" and device.type == "cuda" and not bf16 and purpose in NO_BF16:
        logger.warning("%s has no bfloat16, so %s.", device, NO_BF16[purpose])
    return torch_dtype(choose_dtype(name, device_type=device.type, bf16=bf16, purpose=purpose))


def torch_dtype(name: WeightDtype) -> torch.dtype:
    """Torch's dtype of that name.

    Raises:
        ModelError: no precision has this name.
    """
    import torch

    if name not in get_args(WeightDtype):
        raise ModelError(
            f"dtype is {name!r}; expected {', '.join(get_args(WeightDtype))}, or auto to load a"
            " model."
        )
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def has_bf16(device: torch.device) -> bool:
    """Whether a CUDA device computes in bf16; torch emulates it on others (T4, V100)."""
    import torch

    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
