"""Law 7: no prompt is on both sides of a split unless asked for; then the leak is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit.recipe.schema import DataSection, Source
from plaudit.training.corpus import read_comparisons
from tests.conftest import plaudit, recipe_of, write_jsonl

PROMPTS = st.lists(st.sampled_from([f"question {n}?" for n in range(12)]), min_size=8, max_size=60)


def rows_of(prompts: list[str]) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "chosen": f"answer {n}", "rejected": f"other {n}"}
        for n, prompt in enumerate(prompts)
    ]


def prompts_of(part: Any) -> list[str]:
    return [str(comparison.prompt) for comparison in part]


def parts(file: Path, **fields: Any) -> tuple[list[str], list[str], list[str]]:
    """The prompts of training, evaluation and test comparisons, one a comparison."""
    read = read_comparisons(DataSection(train=(Source(path=str(file)),), **fields))
    held_out = (list(part.values()) for part in (read.evaluation, read.test))
    evaluation, test = ([p for part in parts for p in prompts_of(part)] for parts in held_out)
    return prompts_of(read.train), evaluation, test


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(prompts=PROMPTS, seed=st.integers(0, 9))
def test_a_split_by_prompt_has_no_prompt_twice(
    prompts: list[str], seed: int, tmp_path: Path
) -> None:
    """A prompt of many rows, in any order, lies in one part of three."""
    rows = rows_of([*prompts, "a?", "b?", "c?", "d?"])
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    three = parts(file, eval_fraction=0.2, test_fraction=0.2, seed=seed)
    assert all(three)
    assert sum(map(len, three)) == len(rows)
    assert len(set().union(*three)) == sum(len(set(part)) for part in three)


@pytest.mark.heavy
@pytest.mark.parametrize("way", ["split by row", "a file of its own"])
def test_a_leak_that_was_asked_for_is_counted_and_said(
    way: Literal["split by row", "a file of its own"], tiny_base: Path, tmp_path: Path
) -> None:
    rows = rows_of([f"question {n % 9}?" for n in range(40)])
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    fields: dict[str, Any] = {"split_by": "row", "eval_fraction": 0.3}
    if way == "a file of its own":
        alike = [f"question {n}?" for n in range(5, 15)]
        fields = {"eval": [{"path": str(write_jsonl(tmp_path / "eval.jsonl", rows_of(alike)))}]}
    recipe = recipe_of(tiny_base, train, max_steps=1)
    recipe["data"] = {"train": [{"path": str(train)}], **fields}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")

    done = plaudit("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    leaked = metrics["data"]["leaked_prompts"]
    if way == "a file of its own":
        assert leaked == 4  # questions 5 to 8
    else:
        seen, held_out, _ = parts(train, **fields)
        assert leaked == sum(prompt in seen for prompt in held_out) > 0
    said = " ".join((done.stdout + done.stderr).split())
    assert f"{leaked} evaluation or test comparisons have a prompt that" in said
