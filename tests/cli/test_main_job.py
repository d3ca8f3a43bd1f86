"""The main job through real processes: train, look, score, evaluate, rewrite the card."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import EvalResult, ModelCard

from tests.conftest import pair_rows, plaudit, recipe_of, write_jsonl

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with named evaluation sets and a test set, through the command line."""
    import yaml

    work = tmp_path_factory.mktemp("main-job")
    sets = {
        name: write_jsonl(work / f"{name}.jsonl", pair_rows(count, seed))
        for name, count, seed in (
            ("train", 48, 1),
            ("easy", 11, 2),
            ("hard", 9, 3),
            ("test", 17, 4),
        )
    }
    recipe = recipe_of(tiny_base, sets["train"])
    recipe["data"] = {
        "train": str(sets["train"]),
        "eval": [{"path": str(sets["easy"])}, {"path": str(sets["hard"]), "name": "difficult"}],
        "test": str(sets["test"]),
    }
    del recipe["report"]
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = plaudit("train", work / "recipe.yaml", "--out", work / "run", "--json", fresh=True)
    assert done.returncode == 0, done.stderr
    (work / "stderr.txt").write_text(done.stderr)
    (work / "stdout.txt").write_text(done.stdout)
    return work / "run"


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def test_the_run_folder_is_complete(folder: Path) -> None:
    expected = {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"),
        *("plaudit.json", "metrics.json", "events.jsonl", "predictions.parquet", "report.html"),
        *("recipe.yaml", "environment.json", "plots", "checkpoints", "evaluations"),
    }
    assert expected <= {path.name for path in folder.iterdir()}
    assert {"losses.png", "accuracy.png", "rewards.png", "length.png"} <= {
        path.name for path in (folder / "plots").iterdir()
    }
    assert not list(folder.rglob("*.partial"))


def test_the_terminal_says_what_matters(folder: Path) -> None:
    errors = (folder.parent / "stderr.txt").read_text()
    for said in ("data: 85 of 85 rows used", "validation loss", "bag of words", "Written to"):
        assert said in errors, said


def test_json_on_stdout_is_the_recorded_metrics(folder: Path) -> None:
    assert json.loads((folder.parent / "stdout.txt").read_text()) == metrics_of(folder)


def test_metrics_hold_what_the_design_promises(folder: Path) -> None:
    metrics = metrics_of(folder)
    assert {"steps", "pairs", "tokens", "seconds", "pairs_per_second"} <= metrics["train"].keys()
    promised = {
        *("loss", "accuracy", "accuracy_ci95", "accuracy_half_ties", "ties", "pairs", "ece"),
        *("brier", "nll", "temperature", "ece_calibrated", "nll_calibrated", "slices", "history"),
    }
    assert not [key for key in promised if metrics["eval"][key] is None]
    for baseline in ("longer", "bag_of_words"):
        low, high = metrics["eval"]["baselines"][baseline]["accuracy_ci95"]
        assert low <= metrics["eval"]["baselines"][baseline]["accuracy"] <= high
    assert {"step", "metric", "value"} <= metrics["best"].keys()
    assert metrics["eval"]["chose_checkpoint"] is True
    assert metrics["test"]["chose_checkpoint"] is False
    assert metrics["overfit"]["sentence"]


def test_rows_in_are_rows_used_and_dropped(folder: Path) -> None:
    data = metrics_of(folder)["data"]
    assert data["rows"] == 48 + 11 + 9 + 17
    assert data["rows"] == data["used"] + sum(data["dropped"].values())
    assert {name: part["used"] for name, part in data["splits"].items()} == {
        "train": 48,
        "eval": 20,
        "test": 17,
    }


def test_named_sets_are_reported_each_and_pooled_exactly(folder: Path) -> None:
    block = metrics_of(folder)["eval"]
    sets = block["datasets"]
    assert {name: found["pairs"] for name, found in sets.items()} == {"easy": 11, "difficult": 9}
    pooled = sum(found["accuracy"] * found["pairs"] for found in sets.values()) / 20
    assert block["accuracy"] == pytest.approx(pooled)
    events = [json.loads(line) for line in (folder / "events.jsonl").open()]
    evaluations = [event for event in events if "eval_loss" in event]
    assert {"eval_easy_accuracy", "eval_difficult_loss"} <= evaluations[0].keys()


def test_predictions_have_a_row_per_response_and_give_the_metrics(folder: Path) -> None:
    table = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert len(table) == 2 * (20 + 17)
    tested = [row for row in table if row["dataset"] == "test"]
    right = [
        chosen["reward"] > rejected["reward"]
        for chosen, rejected in zip(tested[::2], tested[1::2], strict=True)
    ]
    assert metrics_of(folder)["test"]["accuracy"] == pytest.approx(sum(right) / 17)
    assert {"subset", "tokens", "characters", "source"} <= table[0].keys()


def test_best_weights_are_the_ones_that_were_saved(folder: Path) -> None:
    metrics = metrics_of(folder)
    history = metrics["eval"]["history"]
    best = min(history, key=lambda entry: entry["validation_loss"])
    assert metrics["best"]["step"] == best["step"]
    assert metrics["eval"]["loss"] == pytest.approx(best["validation_loss"], abs=1e-6)
    name = "adapter_model.safetensors"
    kept = folder / "checkpoints" / f"checkpoint-{best['step']}" / name
    assert kept.read_bytes() == (folder / name).read_bytes()


def test_the_card_parses_with_results(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert "More information needed" not in card.content
    results = card.data.eval_results
    assert results
    assert all(isinstance(result, EvalResult) for result in results)
    accuracies = {r.metric_value for r in results if r.metric_type == "accuracy"}
    assert metrics_of(folder)["test"]["accuracy"] in accuracies
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.get("tags")


def test_the_card_is_rewritten_from_recorded_facts_alone(folder: Path) -> None:
    before = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    assert plaudit("card", folder).returncode == 0
    assert (folder / "README.md").read_text() == before


def test_eval_of_the_test_file_repeats_the_runs_own_numbers(folder: Path, tmp_path: Path) -> None:
    data = folder.parent / "test.jsonl"
    done = plaudit("eval", folder, data, "--out", tmp_path / "eval", "--json", fresh=True)
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert written["model"] == str(folder)
    found, expected = written["eval"], metrics_of(folder)["test"]
    for key in ("accuracy", "loss", "pairs", "ece"):
        assert found[key] == pytest.approx(expected[key], abs=1e-5), key
    assert found["baselines"]["bag_of_words"] is None
    assert (tmp_path / "eval" / "predictions.parquet").is_file()


def test_scores_keep_every_row_in_order(folder: Path, tmp_path: Path) -> None:
    rows = pair_rows(9, seed=9)
    # Beyond the model's 256 tokens: it stays, with a reason.
    rows[4]["chosen"] = [{"role": "assistant", "content": "fox " * 400}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "scored.parquet"
    done = plaudit("score", folder, data, "--out", out, "--json", fresh=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "rows": 9,
        "scored": 8,
        "skipped": {"over_length": 1},
        "resumed": 0,
        "unread": {"rows": 9, "without_prompt": 0, "columns": {"subset": 9}},
    }
    line = f"Scored 8 of 9 rows; skipped: over_length 1; written to {out}"
    unread = f"{data}: ignored columns: subset."
    assert done.stderr.split("\n") == [line, unread, ""]
    written = pq.read_table(out).to_pylist()
    assert [row["prompt"][0]["content"] for row in written] == [
        row["prompt"][0]["content"] for row in rows
    ]
    assert [row["rewards"] is None for row in written] == [i == 4 for i in range(9)]
    assert written[4]["rewards_reason"] == "over_length"
    assert all(math.isfinite(x) for row in written if row["rewards"] for x in row["rewards"])


def test_help_needs_no_torch_and_answers_at_once() -> None:
    started = time.perf_counter()
    done = plaudit("--help", fresh=True)
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in ("train", "eval", "score", "plan", "card"))
    # Importing torch alone takes several seconds; a loaded machine still answers far sooner.
    assert time.perf_counter() - started < 5


def test_early_stopping_ends_a_run_that_gets_worse(
    tiny_base: Path, tmp_path: Path, write_recipe: Callable[[Mapping[str, Any]], Path]
) -> None:
    """Labels without any pattern: validation loss rises as soon as anything is learned."""
    rows = pair_rows(60, seed=5)
    for number, row in enumerate(rows):
        if number % 2:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    recipe = recipe_of(
        tiny_base, write_jsonl(tmp_path / "p.jsonl", rows), num_train_epochs=8, eval_steps=5
    )
    recipe["evaluate"] = {"early_stopping_patience": 2}
    done = plaudit("train", write_recipe(recipe), "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(tmp_path / "run")
    assert metrics["train"]["steps"] < metrics["train"]["planned_steps"]
    assert metrics["best"]["step"] < metrics["train"]["steps"]
