"""Law 5: what training saved scores, once loaded, as it did in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from plaudit.evaluation.table import read_table
from plaudit.reward_model import RewardModel, load
from plaudit.training.run import train
from tests.conftest import recipe_of, set_metadata
from tests.laws.test_one_score import ROWS, assert_same, python_scores, transformers_scores


@pytest.fixture(scope="module")
def model(finished_run: Path) -> RewardModel:
    return load(finished_run)


@pytest.fixture(scope="module")
def full_run(tiny_base: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "full"
    train({**recipe_of(tiny_base, pairs_file, num_train_epochs=1), "lora": None}, folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_loaded_run_gives_the_scores_of_training(
    method: str, request: pytest.FixtureRequest, pairs_file: Path
) -> None:
    run: Path = request.getfixturevalue("finished_run" if method == "lora" else "full_run")
    model = load(run)
    table = read_table(run / "predictions.parquet")
    assert table.reward_N.std() > 1e-3
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    for i in range(0, len(table), 2):
        row = rows[int(str(table.comparison_N[i]).rpartition(":")[2]) - 1]
        assert_same(
            [table.reward_N[i : i + 2].tolist()],
            [model.score(row["prompt"], [row["chosen"], row["rejected"]])],
        )


def test_full_fine_tuning_saves_a_whole_classifier(full_run: Path) -> None:
    expected = python_scores(load(full_run), ROWS)
    assert_same(transformers_scores(full_run, ROWS, adapter=False, batch=7), expected)


def test_a_moved_run_loads_with_its_base_named(
    finished_run: Path, tiny_base: Path, tmp_path: Path, model: RewardModel
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished_run, moved)
    set_metadata(moved, base="/gone")
    found = python_scores(load(moved, base=str(tiny_base)), ROWS[:2])
    assert_same(found, python_scores(model, ROWS[:2]))


def test_a_base_beside_the_adapter_is_found(
    finished_run: Path, tiny_base: Path, tmp_path: Path, model: RewardModel
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished_run, moved)
    shutil.copytree(tiny_base, moved / "base")
    set_metadata(moved, base="/gone")
    assert_same(python_scores(load(moved), ROWS[:2]), python_scores(model, ROWS[:2]))
