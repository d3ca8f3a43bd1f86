"""Training on from a reward model: it starts where that one stood, and ends in one that loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import plaudit
from plaudit.errors import RecipeError
from plaudit.evaluation.table import read_table
from plaudit.training.run import TrainedRun, train
from tests.conftest import recipe_of, set_metadata
from tests.foreign import BASE, LLAMA_FACTORY, opened

PROMPT = [{"role": "user", "content": "what is it?"}]
ANSWERS = ["this is right", "no that is wrong"]
STANDING = {"max_steps": 1, "learning_rate": 0.0}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """LLaMA-Factory's adapter, its base beside it."""
    folder = tmp_path / "adapter"
    shutil.copytree(LLAMA_FACTORY / "adapter", folder)
    shutil.copytree(BASE, folder / "base")
    return folder


def run_on(source: Path, pairs: Path, out: Path, **changes: Any) -> TrainedRun:
    recipe = {**recipe_of(source, pairs, **changes.pop("train", STANDING)), **changes}
    return train(recipe, out)


def first_and_last(source: Path, run: Path) -> tuple[list[float], list[float]]:
    return (
        plaudit.load(source).score(PROMPT, ANSWERS),
        plaudit.load(run).score(PROMPT, ANSWERS),
    )


@pytest.mark.parametrize("lora", [{}, None, {"r": 8, "target_modules": "all-linear"}])
def test_a_run_without_a_learning_rate_is_the_model_it_began_from(
    lora: Any, adapter: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """Adapter trained on or merged: template, release and bias of LLaMA-Factory stay."""
    run = run_on(adapter, pairs_file, tmp_path / "run", lora=lora)
    began, ended = first_and_last(adapter, run.folder)
    assert ended == pytest.approx(began, abs=2e-5)
    facts = json.loads((run.folder / "plaudit.json").read_text())
    assert facts["kind"] == ("full" if lora is None else "adapter")
    assert facts["rendering"]["template"] == "llama3"
    assert facts["reward_transform"]["offset"] == pytest.approx(-0.0507467, abs=1e-6)


def test_training_on_changes_the_adapter_and_agrees_with_its_own_evaluation(
    adapter: Path, pairs_file: Path, tmp_path: Path
) -> None:
    run = run_on(adapter, pairs_file, tmp_path / "run", train={"max_steps": 8})
    began, ended = first_and_last(adapter, run.folder)
    assert abs(began[0] - ended[0]) > 1e-3
    assert run.metrics.run.lora["r"] == 8
    assert sorted(run.metrics.run.lora["target_modules"]) == sorted(
        ["up_proj", "q_proj", "gate_proj", "down_proj", "v_proj", "k_proj", "o_proj"]
    )
    table = read_table(run.folder / "predictions.parquet")
    model = plaudit.load(run.folder)
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    for i in range(0, len(table), 2):
        row = rows[int(str(table.comparison_N[i]).rpartition(":")[2]) - 1]
        found = model.score(row["prompt"], [row["chosen"], row["rejected"]])
        assert found == pytest.approx(table.reward_N[i : i + 2].tolist(), abs=1e-5)


def test_a_plaudit_run_is_trained_on_and_can_be_moved(
    finished_run: Path, pairs_file: Path, tmp_path: Path
) -> None:
    run = run_on(finished_run, pairs_file, tmp_path / "second")
    began, ended = first_and_last(finished_run, run.folder)
    assert ended == pytest.approx(began, abs=1e-6)
    # The run's adapter names the first run's base, not the first run.
    facts = json.loads((run.folder / "plaudit.json").read_text())
    first = json.loads((finished_run / "plaudit.json").read_text())
    assert facts["base"] == first["base"]


def test_the_template_variables_of_a_run_stay(
    finished_run: Path, pairs_file: Path, tmp_path: Path
) -> None:
    warm_start = tmp_path / "begun"
    shutil.copytree(finished_run, warm_start)
    set_metadata(warm_start, chat_template_kwargs={"tone": "dry", "enable_thinking": True})
    run = run_on(
        warm_start,
        pairs_file,
        tmp_path / "run",
        tokens={"max_length": 128, "chat_template_kwargs": {"enable_thinking": False}},
    )
    ended = json.loads((run.folder / "plaudit.json").read_text())
    assert ended["chat_template_kwargs"] == {"tone": "dry", "enable_thinking": False}


def test_a_base_inside_a_run_is_copied(adapter: Path, pairs_file: Path, tmp_path: Path) -> None:
    run = run_on(adapter, pairs_file, tmp_path / "run")
    before = plaudit.load(run.folder).score(PROMPT, ANSWERS)
    shutil.rmtree(adapter)
    assert plaudit.load(run.folder).score(PROMPT, ANSWERS) == before


def test_lora_settings_that_are_not_the_adapters_are_refused(
    adapter: Path, pairs_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(RecipeError, match=r"sets r 4 \(the adapter has 8\).*lora: null"):
        run_on(adapter, pairs_file, out, lora={"r": 4})
    assert not out.exists()


def test_a_whole_model_is_the_base_of_a_new_adapter(
    adapter: Path, pairs_file: Path, tmp_path: Path
) -> None:
    whole = run_on(adapter, pairs_file, tmp_path / "whole", lora=None).folder
    run = run_on(whole, pairs_file, tmp_path / "run")
    began, ended = first_and_last(whole, run.folder)
    assert ended == pytest.approx(began, abs=1e-5)
    assert opened(whole, base=None).score(PROMPT, ANSWERS) == pytest.approx(began)
    facts = json.loads((run.folder / "plaudit.json").read_text())
    assert (facts["kind"], facts["base"]) == ("adapter", str(whole))
