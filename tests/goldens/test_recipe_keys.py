"""The table of ``train`` and ``lora`` keys is that of the installed transformers and peft."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.heavy
def test_the_table_is_what_the_script_writes() -> None:
    generate = runpy.run_path(str(ROOT / "scripts" / "generate_recipe_keys.py"))["generate"]
    written = (ROOT / "plaudit" / "recipe" / "hf_keys.json").read_text(encoding="utf-8")
    assert written == generate(), "run: python scripts/generate_recipe_keys.py"


@pytest.mark.heavy
def test_what_the_recipe_passes_on_is_accepted(tmp_path: Path) -> None:
    """Every key's own default goes through both classes: the types in the table are theirs."""
    from peft import LoraConfig
    from transformers import TrainingArguments

    from plaudit.recipe.load import parse_recipe
    from plaudit.recipe.schema import LORA_DEFAULTS

    recipe = parse_recipe({"model": {"base": "x"}, "data": {"train": "y"}}, "test")
    arguments = recipe.training_arguments
    accepted = TrainingArguments(output_dir=str(tmp_path), **arguments)
    assert accepted.load_best_model_at_end is True
    assert LoraConfig(**LORA_DEFAULTS).r == 8
