"""Checkpoints that can be trusted after a kill at any moment."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from plaudit.files import write_json, write_text

MARKER = "complete"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Say that every file of the checkpoint is written. Without this it never resumes a run."""
    write_text(checkpoint / MARKER, "")


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint folder is named after."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, None where there is none."""
    complete = [path for path in _checkpoints(folder) if (path / MARKER).is_file()]
    return max(complete, key=step_of, default=None)


def remove_incomplete(folder: Path) -> None:
    """Delete checkpoints that a kill left half-written, so that nothing picks them up."""
    for path in _checkpoints(folder):
        if not (path / MARKER).is_file():
            shutil.rmtree(path)


def remove_later(folder: Path, step: int) -> None:
    """Delete checkpoints after ``step``: a resumed run writes them again."""
    for path in _checkpoints(folder):
        if step_of(path) > step:
            shutil.rmtree(path)


def ranks_of(checkpoint: Path) -> int:
    """How many processes wrote the checkpoint; each left its own counters."""
    return len(list(checkpoint.glob("counters-*.pt")))


def repair_state(checkpoint: Path) -> None:
    """Point the recorded best checkpoint at where the run folder is now (it may have moved)."""
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    best_step = state.get("best_global_step")
    if best_step:
        best = checkpoint.parent / f"checkpoint-{best_step}"
        state["best_model_checkpoint"] = str(best) if (best / MARKER).is_file() else None
        write_json(path, state)


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)]
