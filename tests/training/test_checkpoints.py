"""Checkpoints that are incomplete or damaged are never resumed, whichever file it is."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from plaudit.errors import ModelError, OutputError, TrainingError
from plaudit.evaluation.table import write_rewards
from plaudit.recipe.load import CHECKPOINT_RECIPE, load_recipe
from plaudit.storage.manifest import (
    MANIFEST_FILE,
    check_model,
    find_damage,
    is_model_file,
    read_manifest,
    rewrite_listed,
    write_model_manifest,
)
from plaudit.training import checkpoints
from plaudit.training.folder import (
    RunFolder,
    TrainingEnd,
    check_recipe,
    checkpoint_to_resume,
    read_training_end,
    write_training_end,
)


def make(folder: Path, *steps: int, best: int | None = None, complete: bool = True) -> None:
    for step in steps:
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"weights")
        (path / "optimizer.pt").write_bytes(b"moments")
        (path / "counters-0.pt").write_bytes(b"counts")
        recorded = None if best is None else f"/elsewhere/checkpoint-{min(best, step)}"
        (path / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": recorded}))
        (checkpoints.mark_complete if complete else checkpoints.mark_incomplete)(path)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line run in this process keeps plaudit's warnings from pytest."""
    monkeypatch.setattr(logging.getLogger("plaudit"), "propagate", True)


def test_latest_is_by_number_and_complete(tmp_path: Path) -> None:
    assert checkpoints.latest_intact(tmp_path / "gone") is None
    assert checkpoints.latest_intact(tmp_path) is None
    make(tmp_path, 9, 100, 20)
    make(tmp_path, 200, complete=False)
    newest = checkpoints.latest_intact(tmp_path)
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


def test_a_checkpoint_without_its_manifest_is_damaged_and_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path)
    make(run.checkpoints, 5, 10)
    before = names(run.checkpoints)
    (run.checkpoints / "checkpoint-10" / MANIFEST_FILE).unlink()
    assert checkpoint_to_resume(run) == run.checkpoints / "checkpoint-5"
    assert f"checkpoint-10/{MANIFEST_FILE} is missing" in caplog.text
    (run.checkpoints / "checkpoint-5" / MANIFEST_FILE).unlink()
    with pytest.raises(TrainingError, match=f"checkpoint-5/{MANIFEST_FILE} is missing"):
        checkpoint_to_resume(run)
    assert names(run.checkpoints) == before


def test_a_kill_while_a_checkpoint_is_deleted_leaves_a_half_written_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, left = Path.unlink, [2]

    def killed(path: Path, **options: bool) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        unlink(path, **options)

    make(tmp_path, 5, 10)
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.remove_later(tmp_path, 5)
    monkeypatch.undo()
    assert names(tmp_path) == {"checkpoint-5", "checkpoint-10"}
    checkpoints.remove_incomplete(tmp_path)
    assert names(tmp_path) == {"checkpoint-5"}


@pytest.mark.parametrize(
    ("most", "best", "left"),
    [
        (None, 5, [5, 10, 15, 20]),
        (0, 5, [5, 10, 15, 20]),
        (1, 10, [10, 20]),
        (1, 20, [20]),
        (2, None, [15, 20]),
        (2, 5, [5, 20]),
        (3, 15, [10, 15, 20]),
    ],
)
def test_the_newest_and_the_best_checkpoint_stay(
    tmp_path: Path, most: int | None, best: int | None, left: list[int]
) -> None:
    make(tmp_path, 20, 5, 15, 10)
    make(tmp_path, 1, complete=False)
    checkpoints.remove_oldest(
        tmp_path, most, None if best is None else tmp_path / f"checkpoint-{best}"
    )
    assert names(tmp_path) == {f"checkpoint-{step}" for step in [1, *left]}


def test_later_ones_are_removed(tmp_path: Path) -> None:
    make(tmp_path, 5, 10, 15)
    checkpoints.remove_later(tmp_path, 10)
    assert names(tmp_path) == {"checkpoint-5", "checkpoint-10"}


def test_a_moved_folder_finds_its_best_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 5, 20, best=5)
    assert checkpoints.best_of(tmp_path / "checkpoint-20") == tmp_path / "checkpoint-5"
    make(tmp_path, 30)
    assert checkpoints.best_of(tmp_path / "checkpoint-30") is None


def test_a_checkpoint_needs_the_weights_of_its_best_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run would end with other weights without them; the optimizer of the best is not read."""
    make(tmp_path, 5, 10, 20, best=10)
    (tmp_path / "checkpoint-10" / "optimizer.pt").unlink()
    assert checkpoints.latest_intact(tmp_path) == tmp_path / "checkpoint-20"
    assert not caplog.text
    (tmp_path / "checkpoint-10" / "model.safetensors").unlink()
    assert checkpoints.latest_intact(tmp_path) == tmp_path / "checkpoint-5"
    (warning,) = set(caplog.messages)
    assert (
        "checkpoint-20 needs the best checkpoint, checkpoint-10/model.safetensors is missing"
        in warning
    )
    shutil.rmtree(tmp_path / "checkpoint-10")
    assert checkpoints.latest_intact(tmp_path) == tmp_path / "checkpoint-5"


def test_a_rewritten_file_leaves_the_other_lines_alone(tmp_path: Path) -> None:
    """Storing a temperature in a checkpoint keeps its optimizer listed, and damage to it."""
    make(tmp_path, 5)
    checkpoint = tmp_path / "checkpoint-5"
    facts = checkpoint / "plaudit.json"
    facts.write_text("{}")
    checkpoints.mark_complete(checkpoint)
    before = read_manifest(checkpoint)
    rewrite_listed(checkpoint, facts.name, '{"temperature": 2}')
    assert find_damage(checkpoint) is None
    after = read_manifest(checkpoint)
    assert {name for name in before if before[name] != after[name]} == {facts.name}
    assert before.keys() == after.keys()
    (checkpoint / MANIFEST_FILE).unlink()
    rewrite_listed(checkpoint, facts.name, "{}")
    assert read_manifest(checkpoint).keys() == {"model.safetensors", facts.name}


@pytest.mark.parametrize("fails", ["plaudit.json", MANIFEST_FILE])
def test_a_full_disk_leaves_file_and_manifest_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    (tmp_path / "plaudit.json").write_text("{}")
    write_model_manifest(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_text = Path.write_text

    def full(path: Path, *arguments: str, **options: str) -> int:
        if path.name.startswith(f".{fails}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="The disk is full"):
        rewrite_listed(tmp_path, "plaudit.json", '{"temperature": 2}')
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_checkpoint_is_not_told_to_lose_its_manifest(tmp_path: Path) -> None:
    make(tmp_path, 5)
    checkpoint = tmp_path / "checkpoint-5"
    (checkpoint / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match="choose another checkpoint") as error:
        check_model(checkpoint)
    assert f"delete {checkpoint}" not in str(error.value)


def test_checkpoints_of_the_first_release_are_kept_and_not_resumed(tmp_path: Path) -> None:
    make(tmp_path / "checkpoints", 5)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-5"
    (checkpoint / MANIFEST_FILE).rename(checkpoint / "complete")
    with pytest.raises(TrainingError, match=r"checkpoint-5.* plaudit 0\.1\.0"):
        checkpoint_to_resume(RunFolder(tmp_path))
    assert names(tmp_path / "checkpoints") == {"checkpoint-5"}


def test_another_number_of_processes(tmp_path: Path) -> None:
    make(tmp_path / "checkpoints", 5)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-5"
    (checkpoint / "counters-1.pt").write_bytes(b"")
    checkpoints.mark_complete(checkpoint)
    with pytest.raises(OutputError, match="2 processes"):
        checkpoint_to_resume(RunFolder(tmp_path))


# ---- every file of a real checkpoint, model folder and end of training, damaged in every way


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= 1
        path.write_bytes(content)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": cut,
    "emptied": lambda path: path.write_bytes(b""),
    "flipped early": flip(0.1),
    "flipped late": flip(0.9),
    "deleted": Path.unlink,
}


def each_damaged(folder: Path, concerned: Callable[[str], bool]) -> Iterator[str]:
    """Damage one file at a time; the caller looks at the folder; the file is put back."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        content = path.read_bytes()
        if not content or not concerned(name):
            continue
        for damage in DAMAGES.values():
            damage(path)
            yield name
            path.write_bytes(content)


@pytest.mark.heavy
def test_every_damaged_file_of_the_newest_checkpoint_falls_back(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(finished_run / "checkpoints", folder)
    evaluations = tmp_path / "evaluations"
    shutil.copytree(finished_run / "evaluations", evaluations)
    first, newest = sorted(folder.iterdir(), key=checkpoints.step_of)
    assert checkpoints.latest_intact(folder) == newest
    damaged = set()
    for name in each_damaged(newest, lambda _: True):
        caplog.clear()
        assert checkpoints.latest_intact(folder) == first, name
        assert f"{newest.name}/{name}" in caplog.text
        assert f"resumes from {first.name}" in caplog.text
        damaged.add(name)
    assert {"optimizer.pt", "scheduler.pt", "counters-0.pt", "rng_state.pth"} < damaged
    listed = {name for name in read_manifest(newest) if not name.startswith("../../evaluations/")}
    assert damaged == {*listed, MANIFEST_FILE}
    # Both need the first evaluation, so none would be left.
    for _ in each_damaged(
        evaluations, lambda name: name == f"step-{checkpoints.step_of(first)}.npz"
    ):
        caplog.clear()
        assert checkpoints.latest_intact(folder) == newest
        assert f"resumes from {newest.name} without that evaluation" in caplog.text
    last = f"step-{checkpoints.step_of(newest)}.npz"
    for _ in each_damaged(evaluations, lambda name: name == last):
        caplog.clear()
        assert checkpoints.latest_intact(folder) == first
        assert f"{newest.name} needs the evaluation evaluations/{last}" in caplog.text


@pytest.mark.heavy
def test_no_intact_checkpoint_is_one_sentence(finished_run: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished_run / "checkpoints", run.checkpoints)
    shutil.copytree(finished_run / "evaluations", run.evaluations)
    for checkpoint in run.checkpoints.iterdir():
        (checkpoint / "scheduler.pt").unlink()
    before = sorted(run.path.rglob("*"))
    with pytest.raises(TrainingError) as error:
        checkpoint_to_resume(run)
    for checkpoint in run.checkpoints.iterdir():
        assert f"{checkpoint.name}/scheduler.pt is missing" in str(error.value)
    assert f"delete {run.checkpoints}" in str(error.value)
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.heavy
def test_a_recipe_changed_since_the_checkpoint_is_named(finished_run: Path) -> None:
    run = RunFolder(finished_run)
    recipe = load_recipe(run.recipe)
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"seed": 43})})
    checkpoint = checkpoints.latest_intact(run.checkpoints)
    assert checkpoint is not None
    recorded = checkpoint / CHECKPOINT_RECIPE
    assert recorded.read_text() == run.recipe.read_text()
    end = TrainingEnd(state="", seconds=1.0, recipe=recorded.read_text())
    for start, advice in ((checkpoint, f"restore it from {recorded}"), (end, str(run.training))):
        check_recipe(run, start, recipe)
        with pytest.raises(OutputError, match=r"\(changed keys: data\.seed\)") as error:
            check_recipe(run, start, other)
        assert advice in str(error.value)


@pytest.mark.heavy
def test_every_damaged_file_of_a_model_is_named(finished_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished_run, model, ignore=shutil.ignore_patterns("checkpoints"))
    check_model(model)
    damaged = set()
    for name in each_damaged(model, is_model_file):
        with pytest.raises(ModelError) as error:
            check_model(model)
        assert f"{model}/{name}" in str(error.value)
        damaged.add(name)
    assert {"adapter_model.safetensors", "adapter_config.json", "plaudit.json"} < damaged
    assert "tokenizer.json" in damaged
    (model / "README.md").write_text("my own card")
    (model / "metrics.json").unlink()
    check_model(model)
    (model / "plaudit.json").write_text("{}")
    (model / MANIFEST_FILE).unlink()
    check_model(model)


def test_a_damaged_end_of_training_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    write_rewards(run.evaluations, 5, np.zeros(4))
    end = TrainingEnd(state='{"global_step": 5}', seconds=2.5, recipe="")
    write_training_end(run, end)
    assert read_training_end(run) == end
    for name in each_damaged(tmp_path, lambda _: True):
        caplog.clear()
        without = not (tmp_path / MANIFEST_FILE).exists()
        training = run.training.exists()
        assert read_training_end(run) == (end if without else None), name
        assert ("trained model is damaged" in caplog.text) == (training and not without)
    # A later plaudit.json gets a manifest of the model alone.
    write_model_manifest(tmp_path)
    assert read_training_end(run) == end
