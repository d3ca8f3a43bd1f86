"""Checkpoints that a kill left half-written are never used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plaudit.train import checkpoints

pytestmark = pytest.mark.heavy


def make(folder: Path, *steps: int, complete: bool = True) -> None:
    for step in steps:
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"x")
        if complete:
            checkpoints.mark_complete(path)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_latest_is_by_number_and_complete(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path / "gone") is None
    assert checkpoints.latest(tmp_path) is None
    make(tmp_path, 9, 100, 20)
    make(tmp_path, 200, complete=False)
    newest = checkpoints.latest(tmp_path)
    assert newest == tmp_path / "checkpoint-100"
    assert newest is not None
    assert checkpoints.step_of(newest) == 100


def test_only_checkpoints_are_touched(tmp_path: Path) -> None:
    make(tmp_path, 5)
    make(tmp_path, 6, complete=False)
    (tmp_path / "checkpoint-mine").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    checkpoints.remove_incomplete(tmp_path)
    assert names(tmp_path) == {"checkpoint-5", "checkpoint-mine", "notes", "checkpoint-7"}
    checkpoints.remove_incomplete(tmp_path / "gone")


def test_later_ones_are_removed(tmp_path: Path) -> None:
    make(tmp_path, 5, 10, 15)
    checkpoints.remove_later(tmp_path, 10)
    assert names(tmp_path) == {"checkpoint-5", "checkpoint-10"}


@pytest.mark.parametrize("best", [5, 10, None])
def test_a_moved_folder_finds_its_best_checkpoint(best: int | None, tmp_path: Path) -> None:
    make(tmp_path, 5, 20)
    state = {"best_global_step": best, "best_model_checkpoint": "/elsewhere/checkpoint-5"}
    path = tmp_path / "checkpoint-20" / "trainer_state.json"
    path.write_text(json.dumps(state))
    checkpoints.repair_state(tmp_path / "checkpoint-20")
    expected = {5: str(tmp_path / "checkpoint-5"), 10: None, None: "/elsewhere/checkpoint-5"}
    assert json.loads(path.read_text())["best_model_checkpoint"] == expected[best]
