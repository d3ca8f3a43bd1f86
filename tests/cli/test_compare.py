"""``plaudit compare`` through real processes: runs, checkpoints, evaluations, data, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from plaudit.compare_models import ComparisonResult
from plaudit.evaluation.schema import json_safe
from tests.conftest import pair_rows, plaudit, write_jsonl

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def checkpoints(finished_run: Path) -> list[Path]:
    found = sorted(
        (finished_run / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1])
    )
    assert len(found) >= 2
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("compare") / "held_out.jsonl", pair_rows(20, seed=9))


def test_a_run_alone_compares_its_evaluations_without_scoring(
    finished_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "steps"
    done = plaudit("compare", finished_run, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts == json.loads((out / "comparison.json").read_text())
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    history = json.loads((finished_run / "metrics.json").read_text())["eval"]["history"]
    assert [model["name"] for model in facts["models"]] == [f"step {e['step']}" for e in history]
    for model, entry in zip(facts["models"], history, strict=True):
        assert model["accuracy"] == pytest.approx(entry["accuracy"], abs=1e-12)
        assert model["nll"] == pytest.approx(entry["validation_loss"], abs=1e-6)
    assert facts["data"] == {
        "scored": False,
        "chose_checkpoint": True,
        "use": None,
        "skipped": {},
        "dtypes": {},
    }
    assert "These data chose the best checkpoints" in done.stderr


def test_recorded_and_scored_checkpoints_agree(
    finished_run: Path, checkpoints: list[Path], pairs_file: Path
) -> None:
    """Scoring the run's own file again gives the numbers that training recorded (law 3)."""
    first, last = checkpoints[0], checkpoints[-1]
    recorded = plaudit("compare", first, last, "--json")
    assert recorded.returncode == 0, recorded.stderr
    # A prediction file beside them keeps the comparison to the run's evaluation rows.
    rescored = plaudit(
        "compare", first, last, finished_run / "predictions.parquet", pairs_file, "--json"
    )
    assert rescored.returncode == 0, rescored.stderr
    old, new = json.loads(recorded.stdout), json.loads(rescored.stdout)
    assert new["pairs"] == old["pairs"] < 60
    for before, after in zip(old["models"], new["models"], strict=False):
        assert before["name"] == after["name"]
        assert after["accuracy"] == before["accuracy"]
        assert after["nll"] == pytest.approx(before["nll"], abs=1e-5)
    assert new["unmatched"][first.name] == 60 - new["pairs"]
    first_line = rescored.stderr.strip().splitlines()[0]
    assert first_line.startswith(f"{new['comparisons']} of 60 comparisons were scored by every")
    assert f"{60 - new['comparisons']} only in {first.name}" in first_line
    # The kept checkpoint is the run's own model.
    kept = json.loads((finished_run / "metrics.json").read_text())["best"]["step"]
    names = {model["name"]: model for model in new["models"]}
    if f"checkpoint-{kept}" in names:
        assert names[f"checkpoint-{kept}"]["nll"] == pytest.approx(
            names["predictions.parquet"]["nll"], abs=1e-5
        )


def test_examples_have_texts_where_data_was_read(
    finished_run: Path, checkpoints: list[Path], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "compared"
    done = plaudit("compare", finished_run, checkpoints[0], data, "--out", out, fresh=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads((out / "comparison.json").read_text())
    assert facts["pairs"] == 20
    assert facts["data"]["use"]["sources"][0]["path"] == str(data)
    assert facts["data"]["skipped"] == {finished_run.name: {}, checkpoints[0].name: {}}
    for example in facts["examples"]:
        assert example["where"].startswith(str(data))
        assert example["better_text"].endswith("right")
        assert example["worse_text"].endswith("wrong")
    assert json_safe(TypeAdapter(ComparisonResult).validate_python(facts)) == facts
    assert "kappa" in done.stderr
    assert "Written to" in done.stderr


def test_what_is_not_compared_is_said_first(
    finished_run: Path, checkpoints: list[Path], tmp_path: Path
) -> None:
    rows = pair_rows(8)
    rows[1]["chosen"] = [{"role": "assistant", "content": "fox " * 400}]
    rows[2]["rejected"] = rows[2]["chosen"]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    done = plaudit("compare", finished_run, checkpoints[0], data)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stderr.split()).startswith(
        "6 of 8 comparisons were scored by every model (not compared: 1 row identical_responses, "
        f"1 over_length for {finished_run.name}, 1 over_length for {checkpoints[0].name})."
    )


def test_a_checkpoint_is_a_model(checkpoints: list[Path], data: Path, tmp_path: Path) -> None:
    import plaudit as package

    model: Any = package.load(checkpoints[0])
    assert model.metadata.temperature is None
    assert len(model.score("hello", ["one right", "one wrong"])) == 2


def cut_off(checkpoint: Path, folder: Path) -> Path:
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    copy = run / "checkpoints" / checkpoint.name
    shutil.copytree(checkpoint, copy)
    shutil.copy(checkpoint.parents[1] / "recipe.yaml", run)
    return copy


def test_checkpoints_of_an_unfinished_run(
    finished_run: Path,
    checkpoints: list[Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They load in every command, with one warning, and score as they do once the run is done."""
    from plaudit.cli.main import main

    unfinished = cut_off(checkpoints[0], tmp_path)
    scores = []
    for number, model in enumerate((unfinished, checkpoints[0])):
        out = tmp_path / f"{number}.jsonl"
        assert main(["score", str(model), str(data), "--out", str(out)]) == 0
        warned = "unfinished run (step" in " ".join(capsys.readouterr().err.split())
        assert warned == (model == unfinished)
        scores.append([json.loads(line)["rewards"] for line in out.open()])
    assert scores[0] == scores[1]
    for words in (["eval", unfinished, data], ["compare", unfinished, finished_run, data]):
        assert main([*map(str, words)]) == 0
        errors = " ".join(capsys.readouterr().err.split())
        assert errors.count("is from an unfinished run (step") == 1
        assert "no temperature yet" in errors


def bad_input(finished_run: Path, checkpoint: Path, data: Path, folder: Path) -> dict[str, Any]:
    incomplete = cut_off(checkpoint, folder / "b")
    (incomplete / "manifest.json").unlink()
    odd = folder / "odd"
    shutil.copytree(finished_run, odd)
    with (odd / "evaluations" / "step-6.npz").open("wb") as file:
        np.savez(file, reward_N=np.zeros(5))
    damaged, lost, unpredicted = (folder / name for name in ("damaged", "lost", "unpredicted"))
    for run in (damaged, lost, unpredicted):
        shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("checkpoints"))
    (damaged / "evaluations" / "step-6.npz").write_bytes(b"PK")
    (lost / "evaluations" / "step-6.npz").unlink()
    (unpredicted / "predictions.parquet").unlink()
    taken = folder / "taken"
    taken.mkdir()
    (taken / "file").touch()
    return {
        "compare --level was renamed to plaudit compare --alpha": [data, "--level", 0.01],
        "not a run folder": [data, finished_run],
        "Only one model to compare": [finished_run, data],
        "is named twice": [finished_run, finished_run],
        "comes after the data": [finished_run, data, checkpoint],
        "does not exist": [finished_run, checkpoint, folder / "none.jsonl"],
        "is not a complete checkpoint": [incomplete, finished_run, data],
        "has 5 rewards": [odd],
        f"{damaged / 'evaluations' / 'step-6.npz'} is damaged": [damaged],
        f"{lost / 'evaluations' / 'step-6.npz'} is missing": [lost],
        f"{unpredicted / 'predictions.parquet'} is missing": [unpredicted],
        "already exists": [finished_run, "--out", taken],
    }


def test_bad_input_is_one_sentence(
    finished_run: Path,
    checkpoints: list[Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from plaudit.cli.main import main

    for expected, words in bad_input(finished_run, checkpoints[0], data, tmp_path).items():
        assert main(["compare", *map(str, words)]) == 2, expected
        said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert expected in said[-1], said
        assert said[-1].startswith("plaudit: ")
