"""Training on from a reward model: its head, rules and adapter kept.

An adapter is trained on as it is, under its own LoRA settings; with ``lora: null`` it is merged
into its base and all weights train. A whole model is the base of whatever the recipe asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from plaudit import embedded
from plaudit.errors import RecipeError
from plaudit.interop.formats import is_reward_model, open_reward_model
from plaudit.interop.records import Opened
from plaudit.model.checkpoint import copy_base, resolve_base
from plaudit.model.load import LoadedBase
from plaudit.recipe.schema import LORA_DEFAULTS, Recipe
from plaudit.training.folder import RunFolder, is_main_process

PLAIN = "sequence classifier"


def open_begun(recipe: Recipe) -> Opened | None:
    """The reward model that ``model.base`` is, None where it is a plain base.

    Raises:
        ModelError: a reward model that cannot be read.
        RecipeError: it cannot be loaded in 4 bits.
    """
    base = recipe.model.base
    if base == embedded.NAME or not is_reward_model(Path(base)):
        return None
    opened = open_reward_model(base, trust_remote_code=recipe.model.trust_remote_code)
    if recipe.model.quantize is None:
        return opened
    if opened.facts.origin is not None and opened.facts.origin.format == PLAIN:
        # Its head is where load_base finds it.
        return None
    raise RecipeError(
        f"model.quantize is 4bit, but model.base {base} is a reward model with rules of its own; "
        "set quantize to null."
    )


def place_begun(opened: Opened, source: Path, folder: RunFolder) -> str:
    """Where the new run's base is; a base kept inside the old run is copied, as runs are moved."""
    if opened.facts.kind == "full":
        return str(source.resolve())
    base = resolve_base(source, opened.facts, None)
    if not Path(base).is_relative_to(source):
        return base
    if is_main_process() and not folder.base.is_dir():
        copy_base(base, folder.path)
    return str(folder.base.resolve() if folder.base.is_dir() else Path(base).resolve())


def load_begun(opened: Opened, recipe: Recipe, dtype: torch.dtype) -> LoadedBase:
    """The weights to train on: an adapter unfrozen, or merged where all weights train.

    Raises:
        RecipeError: LoRA settings that are not the adapter's.
    """
    network: Any = opened.build(dtype)
    if opened.facts.kind == "full":
        return LoadedBase(network=network, fresh_head=False)
    if recipe.lora is None:
        network = network.merge_and_unload()
        network.requires_grad_(True)
    else:
        refuse_other_settings(recipe.lora, network, recipe.model.base)
        network.peft_config["default"].inference_mode = False
        network.set_adapter("default")
    return LoadedBase(network=network, fresh_head=False)


def refuse_other_settings(asked: Mapping[str, Any], network: Any, base: str) -> None:
    """The adapter keeps its shape: what a recipe sets beside the defaults must be what it has.

    Raises:
        RecipeError: another rank, other layers, or anything else that differs.
    """
    own = adapter_settings(network, asked)
    other = [
        f"{key} {_plain(asked[key])} (the adapter has {_plain(own[key])})"
        for key in sorted(asked)
        if asked[key] != LORA_DEFAULTS.get(key) and _plain(asked[key]) != _plain(own[key])
    ]
    if other:
        raise RecipeError(
            f"lora: model.base {base} is an adapter, which is trained on as it is, but the recipe "
            f"sets {', '.join(other)}; remove these keys, or set lora: null to train all weights."
        )


def adapter_settings(network: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter's own values of LoRA's main settings and of ``keys``."""
    config = network.peft_config["default"].to_dict()
    values = {key: config.get(key) for key in dict.fromkeys([*LORA_DEFAULTS, *keys])}
    return {k: sorted(v) if isinstance(v, (set, tuple)) else v for k, v in values.items()}


def with_own_settings(recipe: Recipe, network: Any) -> Recipe:
    """The recipe as the run records it: the LoRA settings that are trained, not those asked for."""
    if recipe.lora is None or not hasattr(network, "peft_config"):
        return recipe
    return recipe.model_copy(update={"lora": adapter_settings(network, recipe.lora)})


def _plain(value: Any) -> Any:
    """Lists, sets and tuples of names compare as sets of them."""
    return sorted(value) if isinstance(value, (list, set, tuple)) else value
