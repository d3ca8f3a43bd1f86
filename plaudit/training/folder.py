"""The run folder: made once, resumed on request, never overwritten."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plaudit.errors import OutputError, TrainingError
from plaudit.evaluation.schema import METRICS_FILE
from plaudit.evaluation.table import EVALUATIONS_FOLDER, evaluated_steps, rewards_file
from plaudit.planning.microbatch import MicroBatches
from plaudit.recipe.changes import Change, changes
from plaudit.recipe.load import (
    CHECKPOINT_RECIPE,
    RUN_RECIPE,
    dump_recipe,
    load_recipe,
    parse_recipe,
    shipped_recipes,
)
from plaudit.recipe.schema import Recipe
from plaudit.recipe.yaml import read_yaml
from plaudit.report.record import MISTAKES_FILE
from plaudit.storage.atomic import check_new_folder, write_json, write_text, writing
from plaudit.storage.manifest import MANIFEST_FILE, TRAINING_FILE, find_damage, write_model_manifest
from plaudit.training import checkpoints

logger = logging.getLogger("plaudit")


class _Inside:
    """A path inside the run folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: RunFolder, owner: type[RunFolder] | None = None) -> Path:
        return folder.path / self.name


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    recipe = _Inside(RUN_RECIPE)
    checkpoints = _Inside("checkpoints")
    evaluations = _Inside(EVALUATIONS_FOLDER)
    """Rewards of the evaluation sets at each evaluation: ``step-N.npz``."""
    events = _Inside("events.jsonl")
    logs = _Inside("logs")
    """Of experiment trackers, a folder each."""
    metrics = _Inside(METRICS_FILE)
    predictions = _Inside("predictions.parquet")
    mistakes = _Inside(MISTAKES_FILE)
    environment = _Inside("environment.json")
    data = _Inside("data.json")
    """Fingerprints of the data files when the run was started."""
    training = _Inside(TRAINING_FILE)
    """How training ended, until the run is evaluated."""
    base = _Inside("base")
    """Where a run on the embedded base keeps its copy."""

    micro_batches = _Inside("micro_batches.json")
    """How the run splits a step into micro-batches."""

    def recorded_micro_batches(self) -> MicroBatches | None:
        """How the run splits its steps, None before it has decided.

        A resumed run keeps it: another split gives the same gradient only up to rounding.
        """
        if not self.micro_batches.is_file():
            return None
        record = _read_record(self.micro_batches)
        try:
            return MicroBatches(**record)
        except TypeError as error:
            raise _damaged(self.micro_batches, error) from None

    def record_micro_batches(self, chosen: MicroBatches) -> None:
        """Note for a resumed run how this one splits its steps."""
        if is_main_process():
            write_json(self.micro_batches, asdict(chosen))

    def resume_command(self) -> str:
        """What to type to resume this run, with the launcher it was started by."""
        launcher = f"torchrun --nproc_per_node={rank_count()} -m " if rank_count() > 1 else ""
        # A shipped recipe of the same name would come first.
        path = f"./{self.path}" if str(self.path) in shipped_recipes() else str(self.path)
        return f"{launcher}plaudit train {shlex.quote(path)} --resume"


def check_run_folder(path: Path) -> None:
    """A folder with something in it is never written over.

    Raises:
        OutputError: ``path`` is a file, or a folder that is not empty.
    """
    if (path / RUN_RECIPE).is_file():
        check_new_folder(path, advice="resume the run in it with --resume, or choose another name")
    check_new_folder(path)


def start_folder(path: Path, recipe: Recipe) -> RunFolder:
    """Make the folder and write the resolved recipe into it; other ranks only name it.

    Raises:
        OutputError: the folder exists with content, or cannot be made.
    """
    folder = RunFolder(path)
    if not is_main_process():
        return folder
    check_run_folder(path)
    try:
        with writing(path):
            folder.path.mkdir(parents=True, exist_ok=True)
        write_text(folder.recipe, dump_recipe(recipe))
    except OutputError:
        with suppress(OSError):
            path.rmdir()
        raise
    return folder


def is_main_process() -> bool:
    """Whether this process writes; the launcher's variable is there before torch is asked."""
    return os.environ.get("RANK", "0") == "0"


def rank_count() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def resume_folder(path: Path, recipe: Recipe) -> RunFolder:
    """The folder of a stopped run.

    Raises:
        OutputError: no run there, one of a recipe that trains differently, or a finished one that
            was measured differently.
    """
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise OutputError(
            f"No run to resume in {path} (no recipe.yaml); remove --resume to start a run."
        )
    changed = list(changes(load_recipe(folder.recipe), recipe))
    if keys := _keys_that_train(changed):
        raise OutputError(
            f"The run in {path} was started with another recipe (changed keys: {keys}); resume it"
            f" with its own recipe ({folder.recipe}), or choose another --out."
        )
    late = ", ".join(change.key for change in changed if not change.key.startswith("report."))
    if late and folder.metrics.is_file():
        raise OutputError(
            f"The run in {path} is finished, so only keys of the report section can change (changed"
            f" keys: {late}); evaluate its model with plaudit eval, or choose another --out."
        )
    return folder


def _keys_that_train(changed: Iterable[Change]) -> str:
    return ", ".join(change.key for change in changed if change.role == "trains")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnd:
    """How training ended: the trainer's state as JSON, the seconds that training took, the recipe.

    ``recipe`` is YAML.
    """

    state: str
    seconds: float
    recipe: str


def write_training_end(folder: RunFolder, end: TrainingEnd) -> None:
    """Record that the model in the folder is the trained one.

    It, the record and the run's evaluations get a manifest.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(folder.training, asdict(end))
    evaluations = (
        rewards_file(folder.evaluations, step).relative_to(folder.path).as_posix()
        for step in evaluated_steps(folder.evaluations)
    )
    write_model_manifest(folder.path, [TRAINING_FILE, *evaluations])


def remove_training_end(folder: RunFolder) -> None:
    """The run is evaluated: its model is listed without the end of training."""
    if folder.training.is_file():
        folder.training.unlink()
        write_model_manifest(folder.path)


def checkpoint_to_resume(folder: RunFolder) -> Path | None:
    """The newest checkpoint whose files are as they were written, None before the first one.

    Removes checkpoints that a kill left half-written.

    Raises:
        TrainingError: there are checkpoints, and none can be used.
        OutputError: another number of processes wrote the checkpoint.
    """
    checkpoints.remove_incomplete(folder.checkpoints)
    latest = checkpoints.latest_intact(folder.checkpoints)
    if latest is not None and checkpoints.ranks_of(latest) != rank_count():
        raise OutputError(
            f"The run in {folder.path} was started with {checkpoints.ranks_of(latest)} processes"
            f" and is resumed with {rank_count()}, which would change its steps; resume with the"
            " same number of processes."
        )
    return latest


def check_recipe(
    folder: RunFolder, start: TrainingEnd | Path | None, recipe: Recipe
) -> Sequence[Change]:
    """The run resumes with the recipe that it was trained with until ``start``, a checkpoint.

    None is its first step, before which ``recipe.yaml`` has the recipe that it was started with.
    Returns what is measured differently from here on.

    Raises:
        OutputError: the recipe in the run folder was changed or damaged since.
    """
    if isinstance(start, TrainingEnd):
        text, file = start.recipe, folder.training
        advice = f"restore the values that {file} records"
    elif start is None:
        return list(changes(load_recipe(folder.recipe), recipe))
    else:
        file = start / CHECKPOINT_RECIPE
        text = file.read_text(encoding="utf-8")
        advice = f"restore it from {file}"
    changed = list(changes(parse_recipe(read_yaml(text, str(file)), str(file)), recipe))
    if keys := _keys_that_train(changed):
        raise OutputError(
            f"{folder.recipe} was changed since the run was trained (changed keys: {keys});"
            f" {advice} to resume the run, or start a new run with another --out."
        )
    return changed


def read_training_end(folder: RunFolder) -> TrainingEnd | None:
    """The end of training, None before it or where one of its files is damaged (a warning)."""
    if not folder.training.is_file():
        return None
    # The record is written after the model. A kill just then leaves no manifest, and no damage.
    listed = (folder.path / MANIFEST_FILE).is_file()
    damage = find_damage(folder.path) if listed else None
    if damage is None:
        try:
            return TrainingEnd(**json.loads(folder.training.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            damage = f"{TRAINING_FILE} cannot be read ({error})"
    logger.warning(
        "The trained model is damaged: %s/%s. Training resumes from a checkpoint.",
        folder.path,
        damage,
    )
    return None


def check_data_unchanged(
    folder: RunFolder, sources: Mapping[str, str], tests: Mapping[str, str]
) -> None:
    """Note what the data are when a run starts, and hold a resumed run to it.

    Both map paths to fingerprints. A resumed run may have ``tests``, the test files, that it did
    not have before.

    Raises:
        OutputError: a file is not what it was.
    """
    before: Mapping[str, str] = {}
    now = {**sources, **tests}
    if folder.data.is_file():
        before = _read_record(folder.data)
        known = [path for path in now if path in before or path in sources]
        changed = sorted(path for path in known if before.get(path) != now[path])
        if changed:
            raise OutputError(
                f"The data of the run in {folder.path} have changed ({', '.join(changed)});"
                " restore them, or start a new run with another --out."
            )
    if is_main_process():
        write_json(folder.data, {**before, **now})


def _read_record(path: Path) -> dict[str, Any]:
    """What a run recorded when it was started.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
        error: object = "not a mapping"
    except (OSError, ValueError) as caught:
        error = caught
    raise _damaged(path, error)


def _damaged(path: Path, error: object) -> TrainingError:
    return TrainingError(
        f"{path} is damaged ({error}); restore it from a backup, or start the run again with"
        " another --out."
    )
