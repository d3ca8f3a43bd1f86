"""Law 4: after a kill at any moment, a resumed run ends where the uninterrupted one does."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from plaudit.cli.main import main
from plaudit.storage.manifest import find_damage
from plaudit.training import checkpoints
from plaudit.training.callbacks import keep_events
from tests.conftest import pair_rows, recipe_of, write_jsonl


@contextmanager
def running(recipe: Path, out: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "plaudit", "train", str(recipe), "--out", str(out), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert process.poll() is None, f"ended early: {process.stderr and process.stderr.read()}"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.002)


def checkpoint_of(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"checkpoint-{step}"


@pytest.fixture(scope="module")
def recipe(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 steps; LoRA dropout makes the random state matter."""
    folder = tmp_path_factory.mktemp("resume")
    data = write_jsonl(folder / "pairs.jsonl", pair_rows(140, seed=4))
    recipe = recipe_of(tiny_base, data, num_train_epochs=3, eval_steps=8, logging_steps=4)
    recipe["lora"] = {"r": 4, "lora_dropout": 0.2}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    with running(recipe, out) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights bit for bit, and every number that does not tell the time."""
    name = "adapter_model.safetensors"
    assert (found / name).read_bytes() == (expected / name).read_bytes()
    one, two = (json.loads((p / "metrics.json").read_text()) for p in (found, expected))
    for block in ("eval", "best", "overfit", "data", "training_curve"):
        assert one[block] == two[block], block
    assert one["train"]["steps"] == two["train"]["steps"]
    steps = [json.loads(line)["step"] for line in (found / "events.jsonl").open()]
    assert steps == sorted(steps)


def assert_checkpoint_loads(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint of a run that was killed is a model, with one warning."""
    from plaudit.reward_model import load

    model = load(checkpoint)
    assert len(model.score("what is it?", ["forty two right", "no wrong"])) == 2
    assert model.metadata.temperature is None
    (warning,) = set(caplog.messages)
    assert f"{checkpoint} is from an unfinished run (step 40 of 75)" in warning


def test_killed_at_several_moments(
    recipe: Path,
    uninterrupted: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before any checkpoint, in the middle of saving one, and between two."""
    monkeypatch.setattr(logging.getLogger("plaudit"), "propagate", True)
    out = tmp_path / "run"

    def saving_a_second_checkpoint() -> bool:
        folder = checkpoint_of(out, 16)
        return folder.is_dir() and not checkpoints.is_complete(folder)

    moments: list[Callable[[], bool]] = [
        lambda: (out / "events.jsonl").is_file(),
        saving_a_second_checkpoint,
        lambda: checkpoints.is_complete(checkpoint_of(out, 40)),
    ]
    for number, moment in enumerate(moments):
        with running(recipe, out, *(["--resume"] if number else [])) as process:
            wait_until(moment, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert_checkpoint_loads(checkpoint_of(out, 40), caplog)
    with running(recipe, out, "--resume") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same_run(out, uninterrupted)


def test_control_c_keeps_a_checkpoint_and_says_how_to_go_on(
    recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with running(recipe, out) as process:
        wait_until(lambda: checkpoints.is_complete(checkpoint_of(out, 8)), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in errors
    sentence = " ".join(errors.split()).rpartition("plaudit: ")[2]
    assert "with a checkpoint" in sentence
    command = sentence.rpartition("To resume: ")[2]
    assert command == f"plaudit train {out} --resume"
    assert checkpoints.latest_intact(out / "checkpoints") is not None
    resumed = subprocess.run(
        [sys.executable, "-m", *command.split()],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(out, uninterrupted)


def stopped_before_its_end(run: Path, out: Path) -> Path:
    """A copy of a finished run as a kill between the last checkpoint and the model leaves it."""
    shutil.copytree(run, out)
    for name in ("metrics.json", "adapter_model.safetensors", "plaudit.json", "manifest.json"):
        (out / name).unlink()
    return out


def damaged(run: Path, name: str, damage: str) -> str:
    """Damage a file of the newest checkpoint; its name in the run."""
    newest = max((run / "checkpoints").iterdir(), key=checkpoints.step_of)
    path = newest / name
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    return f"{newest.name}/{name}"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", "deleted"),
        ("counters-0.pt", "deleted"),
        ("trainer_state.json", "truncated"),
    ],
)
def test_a_damaged_newest_checkpoint_costs_steps_and_changes_nothing(
    name: str,
    damage: str,
    recipe: Path,
    uninterrupted: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from plaudit.training.run import train

    monkeypatch.setattr(logging.getLogger("plaudit"), "propagate", True)
    out = stopped_before_its_end(uninterrupted, tmp_path / "run")
    path = damaged(out, name, damage)
    train(recipe, out, resume=True)
    assert len({message for message in caplog.messages if path in message}) == 1
    assert_same_run(out, uninterrupted)
    for checkpoint in (out / "checkpoints").iterdir():
        assert find_damage(checkpoint) is None


def test_without_an_intact_checkpoint_there_is_one_sentence(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stopped_before_its_end(uninterrupted, tmp_path / "run")
    for checkpoint in (out / "checkpoints").iterdir():
        (checkpoint / "scheduler.pt").write_bytes(b"")
    assert main(["train", str(out / "recipe.yaml"), "--out", str(out), "--resume"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (sentence,) = [line for line in errors.splitlines() if line.startswith("plaudit: ")]
    assert f"No checkpoint in {out / 'checkpoints'} can be resumed" in sentence
    assert "scheduler.pt has 0 bytes instead of" in sentence


def test_a_recipe_changed_after_the_kill_is_an_error(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stopped_before_its_end(uninterrupted, tmp_path / "run")
    text = (out / "recipe.yaml").read_text()
    assert "seed: 42" in text
    (out / "recipe.yaml").write_text(text.replace("seed: 42", "seed: 43"))
    assert main(["train", str(out), "--resume"]) == 2
    sentence = " ".join(capsys.readouterr().err.split())
    assert f"{out / 'recipe.yaml'} was changed since the run was trained" in sentence
    assert "(changed keys: data.seed" in sentence
    assert f"restore it from {checkpoint_of(out, 75) / 'training_recipe.yaml'}" in sentence


def test_a_kill_after_training_loses_nothing(
    recipe: Path,
    uninterrupted: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model is there before it is evaluated, and --resume evaluates it without training."""
    from plaudit.reward_model import load

    monkeypatch.setattr(logging.getLogger("plaudit"), "propagate", True)
    out = tmp_path / "run"
    with running(recipe, out) as process:
        wait_until(lambda: (out / "training.json").is_file(), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "metrics.json").exists()
    question, answers = "what is it?", ["forty two right", "no wrong"]
    model = load(out)
    assert model.score(question, answers) == load(uninterrupted).score(question, answers)
    assert model.metadata.temperature is None
    (warning,) = set(caplog.messages)
    assert "is trained but not evaluated" in warning
    assert "To finish the evaluation" in (out / "README.md").read_text()
    # Nothing could be trained from here.
    shutil.rmtree(out / "checkpoints")
    with running(recipe, out, "--resume") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "training loss" not in errors
    assert "validation loss" not in errors
    assert_same_run(out, uninterrupted)
    assert not (out / "training.json").exists()


def test_events_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    keep_events(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
