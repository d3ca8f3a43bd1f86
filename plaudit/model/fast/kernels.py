"""Faster kernels for a body's own layers, on request: Liger's, and torch.compile's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from plaudit.errors import ModelError
from plaudit.model.module import classifier

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
            f"train.use_liger_kernel needs a CUDA device, and this run is on {device.type}; "
            "remove it."
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

    Layer by layer, since one compiled layer serves all of them: compiling takes a minute or so,
    whatever the depth. Lengths are dynamic; attention over the packed layout stays outside.

    Raises:
        ModelError: the body has no list of layers.
    """
    layers = getattr(classifier(network).base_model, "layers", None)
    if layers is None:
        raise ModelError(
            f"train.torch_compile compiles a decoder's layers, and {type(network).__name__} has "
            "none by that name; remove it."
        )
    for layer in layers:
        layer.compile(dynamic=True, backend=backend or "inductor", mode=mode)
