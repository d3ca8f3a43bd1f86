"""The recipe of a run that names only a base and data, and its text with every key explained."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from plaudit.recipe.hf_keys import LORA_CONFIG, TRAINING_ARGUMENTS
from plaudit.recipe.schema import Draft, Recipe, Section
from plaudit.recipe.yaml import write_yaml

BASE: Final = "Qwen/Qwen3-0.6B"
DATA: Final = "pairs.jsonl"
"""What stands in for a base and data that are not named."""

TRAINING: Final[Mapping[str, Any]] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "seed": 42,
}
"""Training arguments of a first LoRA run; of its ten evaluations the best checkpoint is kept."""

WRITTEN: Final[Mapping[str, tuple[str, ...]]] = {
    "model": ("base", "dtype"),
    "lora": ("r", "lora_alpha", "lora_dropout", "target_modules"),
    "data": ("train", "eval_fraction", "split_by", "seed"),
    "tokens": ("max_length", "truncation"),
    "train": tuple(TRAINING),
    "evaluate": ("calibrate", "baselines"),
    "report": ("html", "plots"),
}
"""The keys that :func:`starter_text` writes, by section."""

SUGGESTED: Final[Mapping[str, Mapping[str, Any]]] = {
    "data": {"eval": "eval.jsonl", "test": "test.jsonl"},
    "tokens": {"chat_template": "template.jinja"},
    "train": {"report_to": "tensorboard"},
    "evaluate": {"early_stopping_patience": 3},
}
"""Keys that it writes as comments, with an example."""


def starter() -> Draft:
    """The recipe that a base and data are laid over; every other key is at its default."""
    return Draft("the recipe", {"train": dict(TRAINING)})


def starter_text(draft: Draft) -> str:
    """A checked draft as a commented recipe: its main keys with their values.

    Raises:
        RecipeError: the draft is no recipe.
    """
    values = draft.check().model_dump(mode="json")
    values["data"]["train"] = draft.values["data"]["train"]
    lines = ["# Every key is described in docs/reference/recipe.md."]
    for section, names in WRITTEN.items():
        about = Recipe.model_fields[section].description
        lines += ["", f"# {about}", f"{section}:"]
        for name in names:
            lines += _key(section, name, values[section][name])
        for name, example in SUGGESTED.get(section, {}).items():
            if name in draft.values.get(section, {}):
                lines += _key(section, name, draft.values[section][name])
            else:
                lines += _key(section, name, example, mark="# ")
    return "\n".join(lines) + "\n"


def _key(section: str, name: str, value: Any, mark: str = "") -> Iterator[str]:
    """A key with its value below its description, indented; ``mark`` stands in front of it."""
    yield from (f"  # {line}" for line in textwrap.wrap(description(section, name), 96))
    yield from (f"  {mark}{line}" for line in write_yaml({name: value}).splitlines())


def description(section: str, name: str) -> str:
    """What a key of a section means, in one sentence."""
    if section in ("train", "lora"):
        return {"train": TRAINING_ARGUMENTS, "lora": LORA_CONFIG}[section][name].description
    kind = Recipe.model_fields[section].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, Section)
    return kind.model_fields[name].description or ""
