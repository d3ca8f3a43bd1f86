"""Checkpoints that can be trusted after a kill at any moment, and after damage to their files."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from plaudit.errors import TrainingError
from plaudit.manifest import (
    MANIFEST_FILE,
    find_damage,
    read_manifest,
    write_manifest,
)

logger = logging.getLogger("plaudit")

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_OLD_MARKER = "complete"
"""The last file of a checkpoint of plaudit 0.1.0, which wrote no manifest."""
_NOT_WEIGHTS = ("optimizer", "scheduler", "scaler", "rng_state", "counters-", "train")
"""What names of files start with that only resuming from their own checkpoint reads."""


def mark_complete(checkpoint: Path) -> None:
    """List every file in the manifest, once all are written. Without it the folder counts as none.

    Raises:
        OutputError: it cannot be written.
    """
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    names = (path.relative_to(checkpoint).as_posix() for path in files)
    write_manifest(checkpoint, (name for name in names if name != MANIFEST_FILE))


def mark_incomplete(checkpoint: Path) -> None:
    """Take the manifest away before a checkpoint is written over."""
    (checkpoint / MANIFEST_FILE).unlink(missing_ok=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of the checkpoint was written."""
    return (checkpoint / MANIFEST_FILE).is_file()


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint folder is named after."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def latest_intact(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written; None before the first one.

    Every byte is read. Where newer ones are damaged, one warning names the files. A run ends with
    the weights of its best checkpoint, so a checkpoint needs the weights of its best one, too.

    Raises:
        TrainingError: there are checkpoints, and none can be used.
    """
    damaged: list[str] = []
    complete = filter(is_complete, _checkpoints(folder))
    for checkpoint in sorted(complete, key=step_of, reverse=True):
        problem = _find_problem(checkpoint)
        if problem is None:
            if damaged:
                logger.warning(
                    "Damaged checkpoint in %s: %s. Training resumes from %s.",
                    folder,
                    "; ".join(damaged),
                    checkpoint.name,
                )
            return checkpoint
        damaged.append(problem)
    if damaged:
        raise TrainingError(
            f"No checkpoint in {folder} can be resumed: {'; '.join(damaged)}. Restore these files "
            f"from a backup, or delete {folder} to start the run from the beginning."
        )
    old = [path.name for path in _checkpoints(folder) if _is_old(path)]
    if old:
        raise TrainingError(
            f"plaudit 0.1.0 wrote the checkpoints in {folder} ({', '.join(sorted(old))}) and "
            "recorded no checksums, so damage would go unnoticed. Finish the run with plaudit "
            "0.1.0, or start it again with another --out."
        )
    return None


def find_weight_damage(checkpoint: Path) -> str | None:
    """What is wrong with the files that hold a checkpoint's weights, None where nothing is."""
    return find_damage(checkpoint, lambda name: not name.startswith(_NOT_WEIGHTS))


def best_of(checkpoint: Path) -> Path | None:
    """The best checkpoint when this one was written, where the run folder is now.

    A run folder may have moved since the trainer's state recorded the path.
    """
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    recorded = state.get("best_model_checkpoint")
    return None if recorded is None else checkpoint.parent / Path(recorded).name


def remove_incomplete(folder: Path) -> None:
    """Delete checkpoints that a kill left half-written, so that nothing picks them up."""
    for path in _checkpoints(folder):
        if not is_complete(path) and not _is_old(path):
            shutil.rmtree(path)


def remove_later(folder: Path, step: int) -> None:
    """Delete checkpoints after ``step``: a run that resumed before them writes them again."""
    for path in _checkpoints(folder):
        if step_of(path) > step:
            shutil.rmtree(path)


def ranks_of(checkpoint: Path) -> int:
    """How many processes wrote the checkpoint; each left its own counters."""
    return len([name for name in read_manifest(checkpoint) if name.startswith("counters-")])


def _find_problem(checkpoint: Path) -> str | None:
    """The damaged file that keeps a checkpoint from being resumed, None where there is none."""
    damage = find_damage(checkpoint)
    if damage is not None:
        return f"{checkpoint.name}/{damage}"
    best = best_of(checkpoint)
    if best is None or best == checkpoint:
        return None
    if not is_complete(best):
        return f"{checkpoint.name} needs the best one, {best.name}, which is incomplete"
    damage = find_weight_damage(best)
    return None if damage is None else f"{checkpoint.name} needs the best one, {best.name}/{damage}"


def _is_old(checkpoint: Path) -> bool:
    return (checkpoint / _OLD_MARKER).is_file() and not is_complete(checkpoint)


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)]
