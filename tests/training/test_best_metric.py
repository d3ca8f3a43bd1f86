"""A metric that the evaluation data cannot have is an error before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.errors import RecipeError
from plaudit.recipe.load import parse_recipe
from plaudit.training.run import train


def rated(path: Path) -> dict[str, Any]:
    rows = [
        {"prompt": f"Question {number}?", "responses": ["an answer"], "grades": [number % 5]}
        for number in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model": {"base": "embedded"},
        "data": {"train": str(path), "eval_fraction": 0.25, "as_chat": True},
        "loss": {"kind": "mse"},
    }


def test_accuracy_cannot_choose_the_checkpoint_of_a_run_without_pairs(tmp_path: Path) -> None:
    recipe = rated(tmp_path / "rated.jsonl")
    recipe["train"] = {"metric_for_best_model": "eval_accuracy"}
    with pytest.raises(RecipeError) as raised:
        train(recipe, tmp_path / "run")
    assert str(raised.value) == (
        "train.metric_for_best_model: eval_accuracy is not measured, because no pair of the "
        "evaluation data has a known order; expected one of eval_loss, eval_mae."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["eval_mae", "eval_ties", "eval_loss"])
def test_lower_errors_are_better(tmp_path: Path, metric: str) -> None:
    recipe = {**rated(tmp_path / "rated.jsonl"), "train": {"metric_for_best_model": metric}}
    assert parse_recipe(recipe, "recipe").training_arguments["greater_is_better"] is False
