"""Which keys may change when a run is resumed: every key of a recipe has one role."""

from __future__ import annotations

from typing import Any

import pytest

from plaudit.recipe.changes import ROLES, changes
from plaudit.recipe.load import parse_recipe
from plaudit.recipe.problems import fields_of
from plaudit.recipe.schema import HF_KEYS, MANAGED, Recipe

MAY_CHANGE = {
    "data.test",
    "evaluate.calibrate",
    "evaluate.baselines",
    "evaluate.perturbation_tests",
    "evaluate.perturbation_share",
    "report.html",
    "report.plots",
    "train.report_to",
    "train.run_name",
    "train.project",
    "train.trackio_space_id",
    "train.trackio_bucket_id",
    "train.trackio_static_space_id",
    "train.log_level",
    "train.log_level_replica",
    "train.log_on_each_node",
}


def recipe(**sections: Any) -> Recipe:
    base = {"model": {"base": "base"}, "data": {"train": "pairs.jsonl"}}
    merged = {name: {**base.get(name, {}), **keys} for name, keys in sections.items()}
    return parse_recipe({**base, **merged}, "test")


def test_every_key_of_plaudit_has_a_role() -> None:
    own = {
        f"{section}.{name}"
        for section, field in Recipe.model_fields.items()
        if section not in HF_KEYS
        for name in fields_of(field.annotation)
    }
    assert own == {key for key in ROLES if key.partition(".")[0] not in HF_KEYS}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_keys_of_transformers_train_unless_they_are_named() -> None:
    """A key that a new transformers brings must stay as it is until it is classified."""
    named = {key for key in ROLES if key.partition(".")[0] in HF_KEYS}
    settable = {
        f"{section}.{name}"
        for section, keys in HF_KEYS.items()
        for name, key in keys.items()
        if name not in MANAGED[section] and key.types
    }
    assert named <= settable
    assert {key for key, role in ROLES.items() if role == "measures"} == MAY_CHANGE
    before = recipe()
    for key in sorted(settable):
        section, _, name = key.partition(".")
        after = before.model_copy(
            update={section: {**getattr(before, section), name: "another value"}}
        )
        (change,) = changes(before, after)
        assert (change.key, change.role) == (
            key,
            "measures" if key in MAY_CHANGE else "trains",
        )


@pytest.mark.parametrize(
    ("section", "name", "value", "role"),
    [
        ("evaluate", "calibrate", False, "measures"),
        ("evaluate", "early_stopping_patience", 3, "trains"),
        ("train", "metric_for_best_model", "eval_accuracy", "trains"),
        ("train", "eval_steps", 7, "trains"),
        ("data", "eval", "other.jsonl", "trains"),
        ("data", "test", "test.jsonl", "measures"),
        ("tokens", "max_tokens_per_microbatch", 4096, "splits"),
        ("lora", "r", 4, "trains"),
    ],
)
def test_a_change_has_the_role_of_its_key(section: str, name: str, value: Any, role: str) -> None:
    found = list(changes(recipe(), recipe(**{section: {name: value}})))
    assert [(change.key, change.role) for change in found] == [(f"{section}.{name}", role)]


def test_test_files_train_where_they_give_a_fraction_back_to_the_training_data() -> None:
    before = recipe(data={"test_fraction": 0.1})
    (change,) = changes(before, recipe(data={"test_fraction": 0.1, "test": "test.jsonl"}))
    assert (change.key, change.role) == ("data.test", "trains")


def test_no_adapter_is_one_change() -> None:
    without = parse_recipe(
        {"model": {"base": "base"}, "data": {"train": "pairs.jsonl"}, "lora": None}, "test"
    )
    (change,) = changes(recipe(), without)
    assert (change.key, change.role) == ("lora", "trains")
    assert list(changes(without, without)) == []
