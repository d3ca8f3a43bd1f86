"""Checkpoints that can be trusted after a kill at any moment, and after damage to their files."""

from __future__ import annotations

import json
import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path

from plaudit.errors import TrainingError
from plaudit.evaluation.table import EVALUATIONS_FOLDER, evaluated_steps, rewards_file
from plaudit.storage.manifest import (
    COUNTERS,
    MANIFEST_FILE,
    find_damage,
    read_manifest,
    write_manifest,
)

logger = logging.getLogger("plaudit")

STATE_FILE = "trainer_state.json"
INCOMPLETE_FILE = "incomplete"
"""In a checkpoint while its files are written or deleted. A kill leaves it there."""
_RUN = "../../"
"""From a checkpoint to its run, in the names of listed files."""
_NAME = re.compile(r"checkpoint-(\d+)")
_OLD_MARKER = "complete"
"""The last file of a checkpoint of plaudit 0.1.0, which wrote no manifest."""
_NOT_WEIGHTS = ("optimizer", "scheduler", "scaler", "rng_state", COUNTERS, "train", _RUN)
"""What names of files start with that only resuming from their own checkpoint reads."""


def mark_complete(checkpoint: Path) -> None:
    """List every file in the manifest, once all are written, and the run's evaluations until then.

    The evaluations are needed at the end of the run (``training/metrics.py``).

    Raises:
        OutputError: it cannot be written.
    """
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    names = (path.relative_to(checkpoint).as_posix() for path in files)
    own = (MANIFEST_FILE, INCOMPLETE_FILE)
    evaluations = checkpoint.parents[1] / EVALUATIONS_FOLDER
    rewards = (
        f"{_RUN}{EVALUATIONS_FOLDER}/{rewards_file(evaluations, step).name}"
        for step in evaluated_steps(evaluations)
        if step <= step_of(checkpoint)
    )
    write_manifest(checkpoint, [*(name for name in names if name not in own), *rewards])
    (checkpoint / INCOMPLETE_FILE).unlink(missing_ok=True)


def mark_incomplete(checkpoint: Path) -> None:
    """Make the folder, and mark it before its files are written, written over or deleted.

    After a kill, the mark tells a half-written checkpoint from a damaged one.
    """
    checkpoint.mkdir(parents=True, exist_ok=True)
    try:
        # One step, which needs no room on the disk.
        (checkpoint / MANIFEST_FILE).replace(checkpoint / INCOMPLETE_FILE)
    except FileNotFoundError:
        (checkpoint / INCOMPLETE_FILE).touch()


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

    Every byte is read. Half-written checkpoints are left out; one without its manifest is damaged.
    Where newer ones are damaged, one warning names the files. A run ends with the weights of its
    best checkpoint, so a checkpoint needs the weights of its best one, too. It also needs the run's
    evaluations until then, unless no checkpoint has all of its own.

    Raises:
        TrainingError: there are checkpoints, and none can be used.
    """
    found = _checkpoints(folder)
    old = [path for path in found if _is_old(path)]
    damaged: list[str] = []
    start, end = None, "."
    for checkpoint in reversed(found):
        if checkpoint in old or _is_half_written(checkpoint):
            continue
        problem = _find_problem(checkpoint)
        if problem is None:
            lacking = find_damage(checkpoint, lambda name: name.startswith(_RUN))
            if lacking is None:
                start, end = checkpoint, "."
                break
            if start is None:
                # The run still has its model.
                start, end = checkpoint, " without that evaluation."
            problem = f"{checkpoint.name} needs the evaluation {lacking.removeprefix(_RUN)}"
        damaged.append(problem)
    if start is not None:
        if damaged:
            listed = "; ".join(damaged)
            message = "Damaged checkpoint in %s: %s. Training resumes from %s%s"
            logger.warning(message, folder, listed, start.name, end)
        return start
    if damaged:
        raise TrainingError(
            f"No checkpoint in {folder} can be resumed: {'; '.join(damaged)}. Restore these files"
            f" from a backup, or delete {folder} to restart the run from the beginning."
        )
    if old:
        names = ", ".join(sorted(path.name for path in old))
        raise TrainingError(
            f"The checkpoints in {folder} ({names}) were written by plaudit 0.1.0 without"
            " checksums, so damage cannot be detected. Finish the run with plaudit 0.1.0, or"
            " start it again with another --out."
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
    """Delete checkpoints that a kill left half-written. Damaged ones stay."""
    for path in _checkpoints(folder):
        if _is_half_written(path):
            _remove(path)


def remove_later(folder: Path, step: int) -> None:
    """Delete checkpoints after ``step``: a run that resumed before them writes them again."""
    for path in _checkpoints(folder):
        if step_of(path) > step:
            _remove(path)


def remove_oldest(folder: Path, most: int | None, best: Path | None) -> None:
    """Delete the oldest checkpoints until ``most`` are left, never the newest or ``best``.

    None and 0 leave all. Unlike the Trainer's rotation, a kill here leaves nothing that looks
    damaged.
    """
    if most is None or most < 1:
        return
    stored = [path for path in _checkpoints(folder) if not _is_half_written(path)]
    removable = [path for path in stored[:-1] if path != best]
    for path in removable[: max(0, len(stored) - most)]:
        _remove(path)


def ranks_of(checkpoint: Path) -> int:
    """How many processes wrote the checkpoint; each left its own counters."""
    return len([name for name in read_manifest(checkpoint) if name.startswith(COUNTERS)])


def _find_problem(checkpoint: Path) -> str | None:
    """The damaged file that keeps a checkpoint from being resumed, None where there is none.

    The evaluations of the run are left out.
    """
    damage = find_damage(checkpoint, lambda name: not name.startswith(_RUN))
    if damage is not None:
        return f"{checkpoint.name}/{damage}"
    best = best_of(checkpoint)
    if best is None or best == checkpoint:
        return None
    damage = find_weight_damage(best)
    return (
        None
        if damage is None
        else f"{checkpoint.name} needs the best checkpoint, {best.name}/{damage}"
    )


def _is_half_written(checkpoint: Path) -> bool:
    marked = (checkpoint / INCOMPLETE_FILE).is_file() or not any(checkpoint.iterdir())
    return marked and not is_complete(checkpoint)


def _remove(checkpoint: Path) -> None:
    """Delete the mark last: what a kill or a busy file leaves of the folder is half-written."""
    with suppress(OSError):
        mark_incomplete(checkpoint)
        for path in checkpoint.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != INCOMPLETE_FILE:
                path.unlink()
        shutil.rmtree(checkpoint)


def _is_old(checkpoint: Path) -> bool:
    return (checkpoint / _OLD_MARKER).is_file() and not is_complete(checkpoint)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted((p for p in folder.glob("*/") if _NAME.fullmatch(p.name)), key=step_of)
