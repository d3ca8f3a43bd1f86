"""``plaudit calibrate``: what it stores, what it leaves alone, and its exit codes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plaudit.cli.main import main
from tests.conftest import pair_rows, write_jsonl

pytestmark = pytest.mark.heavy


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run of its own, with a temperature that makes every probability certain."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    # Through plaudit, since the folder's manifest lists the file.
    from plaudit.model.checkpoint import read_metadata, write_metadata

    write_metadata(folder, replace(read_metadata(folder), temperature=0.0026))
    return folder


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    rows = pair_rows(60, seed=5)
    for row in rows[::4]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        row["remark"] = "turned round"
    rows.append({**rows[0], "rejected": rows[0]["chosen"]})
    return write_jsonl(tmp_path / "unseen.jsonl", rows)


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "plaudit.json").read_text(encoding="utf-8"))
    return facts


def test_a_better_temperature_is_stored_and_said(
    run: Path, unseen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quarter of the labels is turned round, so certainty costs much."""
    before = facts_of(run)
    assert main(["calibrate", str(run), str(unseen), "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["stored"]
    assert (result["pairs"], result["prompts"]) == (60, 60)
    assert result["before"]["temperature"] == 0.0026
    assert result["after"]["log_loss"] < result["before"]["log_loss"]
    assert 0 < result["gain_ci95"][0] < result["gain"]
    assert result["data"]["used"] == 60
    said = " ".join(shown.err.split())
    assert f"{result['sentence']} (1 of 61 rows skipped: " in said
    assert "unseen: ignored columns: subset, remark (26% of rows)." in said
    after = facts_of(run)
    assert (after["temperature"] or 1.0) == result["after"]["temperature"]
    assert after["temperature_fit"]["log_loss_before"] == result["before"]["log_loss"]
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"temperature", "temperature_fit"}
    # The recorded results are of the temperature before: card and report say so.
    for name in ("README.md", "report.html"):
        text = (run / name).read_text(encoding="utf-8")
        assert "A temperature was fitted after training with" in text
        assert "(stored after training)" in text or "<small>stored after training" in text
    assert not list(run.glob("*.partial"))

    from plaudit.reward_model import load

    model = load(run)
    assert model.metadata.temperature == after["temperature"]
    assert 0.01 < model.prefer("the quick brown fox", "is right", "is wrong") < 0.99

    # Once more on the same pairs: nothing is better, nothing is written, exit code 1.
    stored = (run / "plaudit.json").read_bytes()
    assert main(["calibrate", str(run), str(unseen)]) == 1
    assert "The temperature stays" in capsys.readouterr().err
    assert (run / "plaudit.json").read_bytes() == stored


def test_what_cannot_be_calibrated_is_one_sentence(
    run: Path, unseen: Path, tiny_base: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = (run / "plaudit.json").read_bytes()
    (checkpoint,) = sorted((run / "checkpoints").iterdir())[:1]
    cases = [
        ((tiny_base, unseen), "not a plaudit model folder"),
        (("someone/reward-model", unseen), "plaudit pull"),
        (
            (checkpoint, unseen),
            f"is a checkpoint, and only its run has a temperature; calibrate {run}",
        ),
        ((run, pairs_file), "is training data of this model"),
        ((run, run / "nothing.jsonl"), "nothing.jsonl"),
    ]
    for arguments, sentence in cases:
        assert main(["calibrate", *map(str, arguments)]) == 2, arguments
        error = capsys.readouterr().err
        assert sentence in " ".join(error.split()), error
        assert "Traceback" not in error
    assert (run / "plaudit.json").read_bytes() == stored
    unfinished = [(checkpoint, f"finish it with plaudit train {run} --resume")]
    (run / "training.json").write_text("{}", encoding="utf-8")
    (run / "metrics.json").unlink()
    unfinished.append((run, f"The evaluation of {run} has not finished"))
    for folder, sentence in unfinished:
        assert main(["calibrate", str(folder), str(unseen)]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    (run / "training.json").unlink()
    (run / "plaudit.json").unlink()
    assert main(["calibrate", str(run), str(unseen)]) == 2
    assert f"The training of {run} has not finished" in " ".join(capsys.readouterr().err.split())
