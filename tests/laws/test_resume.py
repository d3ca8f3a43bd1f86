"""Law 4: after a kill at any moment, a resumed run ends where the uninterrupted one does."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from plaudit.cli.main import main
from plaudit.model.checkpoint import read_objective
from plaudit.storage.manifest import find_damage
from plaudit.training import checkpoints
from plaudit.training.callbacks import keep_events
from tests.conftest import pair_rows, plaudit, recipe_of, rows_with_ties, write_jsonl
from tests.warm import Popen, environment_of_a_user, python


@contextmanager
def running(recipe: Path, out: Path, *options: str) -> Iterator[Popen]:
    process = Popen(
        [python(), "-m", "plaudit", "train", str(recipe), "--out", str(out), *options],
        stderr=subprocess.PIPE,
        text=True,
        env=environment_of_a_user(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(happened: Callable[[], bool], process: Popen) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert process.poll() is None, f"ended early: {process.stderr and process.stderr.read()}"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.002)


def checkpoint_of(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"checkpoint-{step}"


@pytest.fixture(scope="module")
def recipe(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 steps; LoRA dropout makes the random state matter, ties what the objective learns."""
    folder = tmp_path_factory.mktemp("resume")
    data = write_jsonl(folder / "pairs.jsonl", rows_with_ties(140, seed=4))
    recipe = recipe_of(tiny_base, data, num_train_epochs=3, eval_steps=8, logging_steps=4)
    recipe["lora"] = {"r": 4, "lora_dropout": 0.2}
    recipe["loss"] = {"kind": "davidson"}
    del recipe["report"]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a fresh process: the others fork one that has imported its modules."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = plaudit("train", recipe, "--out", out, fresh=True)
    assert done.returncode == 0, done.stderr
    return out


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights bit for bit, and every number that does not tell the time."""
    name = "adapter_model.safetensors"
    assert (found / name).read_bytes() == (expected / name).read_bytes()
    one, two = (json.loads((p / "metrics.json").read_text()) for p in (found, expected))
    for block in ("eval", "best", "overfit", "data", "training_curve"):
        assert one[block] == two[block], block
    assert one["train"]["steps"] == two["train"]["steps"]
    assert read_objective(found) == read_objective(expected)
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
    _, *arguments = command.split()
    resumed = plaudit(*arguments)
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


@pytest.fixture(scope="module")
def killed_in_evaluation(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed after its model was written and before anything was measured of it."""
    out = tmp_path_factory.mktemp("killed") / "run"

    def trained() -> bool:
        return (out / "training.json").is_file() and (out / "manifest.json").is_file()

    with running(recipe, out) as process:
        wait_until(trained, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "metrics.json").exists()
    return out


def rewards_in_plain_transformers(run: Path, texts: list[str]) -> list[float]:
    """As a user without plaudit gets them: PEFT and transformers alone."""
    import torch
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    model = AutoPeftModelForSequenceClassification.from_pretrained(
        run, num_labels=1, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(run)
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        return [model(**tokenizer(t, return_tensors="pt")).logits.item() for t in texts]


def test_a_kill_in_the_evaluation_loses_nothing(
    killed_in_evaluation: Path,
    uninterrupted: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model is there before it is evaluated, and --resume evaluates it without training."""
    from plaudit.reward_model import load

    monkeypatch.setattr(logging.getLogger("plaudit"), "propagate", True)
    out = tmp_path / "run"
    shutil.copytree(killed_in_evaluation, out)
    question, answers = "what is it?", ["forty two right", "no wrong"]
    model = load(out)
    assert model.score(question, answers) == load(uninterrupted).score(question, answers)
    assert model.metadata.temperature is None
    (warning,) = set(caplog.messages)
    assert "is trained but not evaluated" in warning
    assert rewards_in_plain_transformers(out, answers) == rewards_in_plain_transformers(
        uninterrupted, answers
    )
    assert "To finish the evaluation" in (out / "README.md").read_text()
    # Nothing could be trained from here.
    shutil.rmtree(out / "checkpoints")
    with running(out, out, "--resume") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "training loss" not in errors
    assert "validation loss" not in errors
    assert "changed on resuming" not in errors
    assert_same_run(out, uninterrupted)
    assert not (out / "training.json").exists()


def test_commands_on_a_run_that_is_not_evaluated_say_so(
    killed_in_evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = killed_in_evaluation
    before = sorted(out.iterdir())
    for command in (["report", str(out)], ["card", str(out)]):
        assert main(command) == 2
        sentence = " ".join(capsys.readouterr().err.split())
        assert f"{out} is trained but not evaluated, so it has no metrics.json" in sentence
        assert f"plaudit train {out} --resume" in sentence
    test = write_jsonl(tmp_path / "test.jsonl", pair_rows(30, seed=9))
    assert main(["eval", str(out), str(test)]) == 0
    assert f"{out} is trained but not evaluated" in " ".join(capsys.readouterr().err.split())
    assert sorted(out.iterdir()) == before


def test_killed_while_the_evaluation_is_written(
    killed_in_evaluation: Path,
    uninterrupted: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the predictions, and between the metrics and the report."""
    from plaudit.reward_model import load

    out = tmp_path / "run"
    shutil.copytree(killed_in_evaluation, out)
    for name in ("predictions.parquet", "metrics.json"):
        with running(out, out, "--resume") as process:
            wait_until((out / name).is_file, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
        load(out)
    assert not (out / "report.html").exists()
    monkeypatch.setattr(logging.getLogger("plaudit"), "propagate", True)
    caplog.clear()
    assert load(out).metadata == load(uninterrupted).metadata
    assert caplog.messages == []
    with running(out, out, "--resume") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same_run(out, uninterrupted)
    assert not (out / "training.json").exists()
    assert "To finish the evaluation" not in (out / "README.md").read_text()
    assert (out / "report.html").is_file()


def test_an_evaluation_that_fails_names_the_model_and_is_run_again(
    killed_in_evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(killed_in_evaluation, out)
    in_the_way = out / "predictions.parquet"
    in_the_way.mkdir()
    assert main(["train", str(out), "--resume"]) == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert f"The evaluation failed; the trained model is in {out}" in errors
    assert f"without training again: plaudit train {out} --resume" in errors
    assert not (out / "metrics.json").exists()
    in_the_way.rmdir()
    assert main(["train", str(out), "--resume"]) == 0
    assert "training loss" not in capsys.readouterr().err
    assert (out / "metrics.json").is_file()


def test_what_only_measures_may_change(
    killed_in_evaluation: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """A run goes on with other perturbation tests and a test set, and records them."""
    out = tmp_path / "run"
    shutil.copytree(killed_in_evaluation, out)
    test = write_jsonl(tmp_path / "test.jsonl", pair_rows(30, seed=9))
    settings = ("evaluate.perturbation_tests=0", f"data.test={test}")
    options = [text for setting in settings for text in ("--set", setting)]
    with running(out, out, "--resume", *options) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "changed on resuming: evaluate.perturbation_tests: 200 → 0" in errors
    assert "changed on resuming: data.test: [] →" in errors
    assert "training loss" not in errors
    metrics, before = (json.loads((p / "metrics.json").read_text()) for p in (out, uninterrupted))
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert metrics["test"]["pairs"] == 30
    assert before["test"] is None
    assert metrics["eval"]["accuracy"] == before["eval"]["accuracy"]
    assert metrics["best"] == before["best"]
    assert before["eval"]["perturbations"] is not None
    assert metrics["test"]["perturbations"] is None
    recorded = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recorded["evaluate"]["perturbation_tests"] == 0
    assert [source["path"] for source in recorded["data"]["test"]] == [str(test)]
    assert str(test) in json.loads((out / "data.json").read_text())


def test_a_run_trains_on_with_other_measurements(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoints of before have the recipe of before; the weights are the same."""
    out = stopped_before_its_end(uninterrupted, tmp_path / "run")
    newest = max((out / "checkpoints").iterdir(), key=checkpoints.step_of)
    shutil.rmtree(newest)
    assert main(["train", str(out), "--resume", "--set", "evaluate.calibrate=false"]) == 0
    assert "changed on resuming: evaluate.calibrate: true → false" in capsys.readouterr().err
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (uninterrupted / name).read_bytes()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["eval"]["stored_temperature"] is None
    assert "calibrate: false" in (newest / "training_recipe.yaml").read_text()


def test_a_run_without_a_checkpoint_says_what_changed(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stopped_before_its_end(uninterrupted, tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    assert main(["train", str(out), "--resume", "--set", "evaluate.calibrate=false"]) == 0
    assert "changed on resuming: evaluate.calibrate: true → false" in capsys.readouterr().err
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (uninterrupted / name).read_bytes()


@pytest.mark.parametrize(
    "setting",
    [
        "train.learning_rate=1",
        "train.eval_steps=9",
        "train.metric_for_best_model=eval_accuracy",
        "evaluate.early_stopping_patience=2",
        "data.eval_fraction=0.2",
    ],
)
def test_what_trains_or_chooses_may_not_change(
    setting: str, killed_in_evaluation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = killed_in_evaluation
    before = (out / "recipe.yaml").read_bytes()
    assert main(["train", str(out), "--resume", "--set", setting]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    key = setting.partition("=")[0]
    assert f"was started with another recipe (changed keys: {key})" in " ".join(errors.split())
    assert (out / "recipe.yaml").read_bytes() == before


def test_a_finished_run_changes_its_report_alone(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    assert main(["train", str(out), "--resume", "--set", "evaluate.calibrate=false"]) == 2
    sentence = " ".join(capsys.readouterr().err.split())
    assert "is finished, so only keys of the report section can change" in sentence
    assert "(changed keys: evaluate.calibrate)" in sentence
    (out / "report.html").unlink()
    assert main(["train", str(out), "--resume", "--set", "report.html=false"]) == 0
    assert not (out / "report.html").exists()
    assert "html: false" in (out / "recipe.yaml").read_text()


def test_events_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    keep_events(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
