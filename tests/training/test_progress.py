"""What a run prints while it trains: one bar on a terminal, few lines elsewhere."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from plaudit.training import callbacks
from plaudit.training.callbacks import ProgressReport

STEPS = 1000
LOGS = {"loss": 0.5522, "accuracy": 0.68, "pairs_per_second": 55.4}
EVALUATION = {"eval_loss": 0.5631, "eval_accuracy": 0.7143}


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(callbacks, "time", made)
    return made


def printed(clock: Clock, *, seconds: float, every: int = 10, **options: Any) -> list[str]:
    """The lines of a run of 1,000 steps that take so long each, evaluated at step 500."""
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=options.pop("terminal", False))
    report = ProgressReport(console, **options)
    state = cast(
        TrainerState,
        SimpleNamespace(global_step=0, max_steps=STEPS, epoch=0.0, is_world_process_zero=True),
    )
    args, control = cast(TrainingArguments, None), cast(TrainerControl, None)
    report.on_train_begin(args, state, control)
    for step in range(1, STEPS + 1):
        clock.now += seconds
        state.global_step, state.epoch = step, step / STEPS
        report.on_step_end(args, state, control)
        if step % every == 0:
            report.on_log(args, state, control, logs=LOGS)
        if step == 500:
            report.on_log(args, state, control, logs=EVALUATION)
    report.close()
    return screen.getvalue().splitlines()


def of_training(lines: list[str]) -> list[str]:
    return [line for line in lines if "training loss" in line]


def test_a_short_run_writes_a_line_every_half_minute(clock: Clock) -> None:
    lines = of_training(printed(clock, seconds=0.125))
    numbers = "training loss 0.5522  accuracy 0.680  55.4 comparisons/s"
    assert lines == [
        f"step  240/1000  epoch 0.24    {numbers}  0:01:35 left",
        f"step  480/1000  epoch 0.48    {numbers}  0:01:05 left",
        f"step  720/1000  epoch 0.72    {numbers}  0:00:35 left",
        f"step  960/1000  epoch 0.96    {numbers}  0:00:05 left",
    ]


def test_a_long_run_writes_no_more_than_a_hundred(clock: Clock) -> None:
    assert len(of_training(printed(clock, seconds=60, every=1))) == 100


def test_an_evaluation_is_a_line_in_the_same_columns(clock: Clock) -> None:
    lines = printed(clock, seconds=60)
    (evaluation,) = (line for line in lines if "validation" in line)
    assert evaluation == "step  500/1000  epoch 0.50  validation loss 0.5631  accuracy 0.714"
    for line in of_training(lines):
        assert line.index("accuracy") == evaluation.index("accuracy")
        assert line.index("loss") == evaluation.index("loss")


def test_verbose_writes_every_logging_step(clock: Clock) -> None:
    assert len(of_training(printed(clock, seconds=0.1, verbose=True))) == STEPS // 10


def test_a_terminal_gets_a_bar_and_the_evaluations(clock: Clock) -> None:
    lines = printed(clock, seconds=60, terminal=True)
    assert not of_training(lines)
    text = "\n".join(lines)
    assert "validation loss 0.5631" in text
    assert "loss 0.5522  accuracy 0.680  55.4 comparisons/s" in text
