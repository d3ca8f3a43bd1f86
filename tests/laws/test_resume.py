"""Law 4: after a kill at any moment, a resumed run ends where the uninterrupted one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from plaudit.train import checkpoints
from plaudit.train.callbacks import keep_events
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
    """72 steps; LoRA dropout makes the random state matter."""
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


def test_killed_at_several_moments(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Before any checkpoint, in the middle of saving one, and between two."""
    out = tmp_path / "run"

    def saving_a_second_checkpoint() -> bool:
        folder = checkpoint_of(out, 16)
        return folder.is_dir() and not (folder / checkpoints.MARKER).is_file()

    moments: list[Callable[[], bool]] = [
        lambda: (out / "events.jsonl").is_file(),
        saving_a_second_checkpoint,
        lambda: (checkpoint_of(out, 40) / checkpoints.MARKER).is_file(),
    ]
    for number, moment in enumerate(moments):
        with running(recipe, out, *(["--resume"] if number else [])) as process:
            wait_until(moment, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
    with running(recipe, out, "--resume") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same_run(out, uninterrupted)


def test_control_c_keeps_a_checkpoint_and_says_how_to_go_on(
    recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with running(recipe, out) as process:
        wait_until(lambda: (checkpoint_of(out, 8) / checkpoints.MARKER).is_file(), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in errors
    sentence = " ".join(errors.split()).rpartition("plaudit: ")[2]
    assert "checkpoint is kept" in sentence
    command = sentence.rpartition("go on with: ")[2]
    assert command == f"plaudit train {out} --resume"
    assert checkpoints.latest(out / "checkpoints") is not None
    resumed = subprocess.run(
        [sys.executable, "-m", *command.split()],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(out, uninterrupted)


def test_a_checkpoint_without_its_last_file_is_never_resumed(tmp_path: Path) -> None:
    for step, complete in ((5, True), (10, True), (15, False)):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        if complete:
            checkpoints.mark_complete(checkpoint)
    latest = checkpoints.latest(tmp_path)
    assert latest is not None
    assert latest.name == "checkpoint-10"
    checkpoints.remove_incomplete(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5"]


def test_events_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    keep_events(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
