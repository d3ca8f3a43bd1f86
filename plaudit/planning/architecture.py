"""A base model's configuration and sizes, without its weights.

``architectures.json`` holds, for each architecture, the values of its published ``config.json`` on
which sizes depend, and the Hub ids that share them: common models need no Hub. What only matters
when the model runs (rotary frequencies, token ids) is left out. Sizes are counted on the model
itself, built without storage (meta device).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from plaudit import embedded
from plaudit.errors import ModelError
from plaudit.model.load import (
    BaseRequest,
    add_lora,
    freeze_layers,
    load_config,
    trainable_parameters,
)
from plaudit.model.module import classifier


@cache
def architectures() -> dict[str, dict[str, Any]]:
    """Configuration values by architecture, each with the ``names`` of its Hub ids."""
    text = files("plaudit.planning").joinpath("architectures.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


def find_architecture(base: str) -> dict[str, Any] | None:
    """The configuration values of a Hub id in the table; upper and lower case do not matter."""
    for known in architectures().values():
        if base.lower() in (name.lower() for name in known["names"]):
            return {key: value for key, value in known.items() if key != "names"}
    return None


def read_config(base: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The transformers configuration of a base with one label: local folder, table, then the Hub.

    Raises:
        ModelError: no such folder or table entry, and the Hub and its cache do not have it.
    """
    base = str(embedded.base_path()) if base == embedded.NAME else base
    values = None if Path(base).exists() else find_architecture(base)
    if values is not None:
        return AutoConfig.for_model(num_labels=1, **values)
    return load_config(
        BaseRequest(base=base, revision=revision, trust_remote_code=trust_remote_code)
    )


# ---- sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Counts, not bytes.

    ``linear``: weights of the body's linear layers, the ones a token is multiplied with.
    ``adapter``: LoRA weights. ``attention_width``: heads times head size, summed over layers.
    """

    architecture: str
    layers: int
    hidden: int
    attention_width: int
    total: int
    trainable: int
    body: int
    linear: int
    adapter: int


def measure(
    config: Any, lora: Mapping[str, Any] | None, *, activations: str, frozen_layers: int = 0
) -> ModelSize:
    """Build the classifier (and its LoRA) without storage and count.

    ``activations`` is the dtype hidden states have while training (``bfloat16``, ``float32``), and
    ``frozen_layers`` are those that the recipe keeps as they are.

    Raises:
        ModelError: transformers has no sequence classifier for the architecture, a target of LoRA
            matches no module, PEFT rejects the LoRA options, or there are fewer layers than frozen
            ones.
    """
    network = build(config, lora, activations)
    freeze_layers(network, frozen_layers)
    body = classifier(network).base_model
    layers = int(config.num_hidden_layers)
    heads = int(config.num_attention_heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    trainable, total = trainable_parameters(network)
    return ModelSize(
        architecture=str(config.model_type),
        layers=layers,
        hidden=int(config.hidden_size),
        attention_width=layers * heads * head_size,
        total=total,
        trainable=trainable,
        body=sum(p.numel() for name, p in body.named_parameters() if not _is_copy(name)),
        linear=sum(
            layer.weight.numel()
            for name, layer in body.named_modules()
            if isinstance(layer, nn.Linear) and not _is_copy(name)
        ),
        adapter=sum(p.numel() for name, p in network.named_parameters() if ".lora_" in name),
    )


def _is_copy(name: str) -> bool:
    """Whether PEFT added what has this name to the body: LoRA weights, or frozen originals."""
    return ".lora_" in name or ".original_module" in name


def build(config: Any, lora: Mapping[str, Any] | None, dtype: str) -> nn.Module:
    """The classifier without storage (meta device), with its adapter.

    Raises:
        ModelError: as :func:`measure`.
    """
    with torch.device("meta"):
        try:
            network: nn.Module = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
                config, dtype=getattr(torch, dtype)
            )
        except ValueError as error:
            raise ModelError(
                f"transformers has no sequence classifier for architecture {config.model_type!r}; "
                "choose another model.base."
            ) from error
        if lora is None:
            return network
        # How the adapter starts does not change its size, and some starts need the base's weights.
        return add_lora(network, {**lora, "init_lora_weights": True})
