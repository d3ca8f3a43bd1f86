"""What watches a run: the event log, the progress bar, the last evaluation, the stop signal."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plaudit.evaluation.numbers import duration
from plaudit.evaluation.schema import json_safe
from plaudit.storage.atomic import write_text, writing


class EventLog(TrainerCallback):
    """``events.jsonl``: one line per logging or evaluation step, written as it happens."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        with writing(self.path):
            keep_events(self.path, state.global_step)
            # From here on the run has begun, and its folder stays.
            self.path.touch()
        if state.global_step > 0:
            self._write(state, {"resumed": True})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and logs is not None:
            self._write(state, logs)

    def _write(self, state: TrainerState, event: Mapping[str, Any]) -> None:
        record = json_safe({"step": state.global_step, "time": time.time(), **event})
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def keep_events(path: Path, step: int) -> None:
    """Drop events after ``step`` and a line a kill cut short: a resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in _lines(path):
        try:
            later = json.loads(line)["step"] > step
        except (ValueError, LookupError, TypeError):
            break
        if later:
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))


def count_resumes(path: Path) -> int:
    """How often the run was gone on with, as its events say."""
    return sum('"resumed": true' in line for line in _lines(path))


def _lines(path: Path) -> list[str]:
    """The lines of the event log; a damaged one is not worth a run."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


class LastEvaluation(TrainerCallback):
    """Evaluate and save at the last step even off schedule, so that best and last compare.

    A schedule by epochs ends with an evaluation of its own.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy == "steps":
            control.should_log = True
            control.should_evaluate = True
            control.should_save = args.save_strategy == "steps"


class StopSignal(TrainerCallback):
    """Ctrl-C or SIGTERM ends the run after the step in hand, with a checkpoint; twice, at once."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._agreed(args, state):
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # The Trainer ends the epoch also when it is left early; what is due at a real end is not.
        if control.should_training_stop and self.requested and state.epoch != int(state.epoch or 0):
            control.should_evaluate = False
            control.should_save = False

    def _agreed(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether to stop after this step, the same answer on every rank.

        Ranks hear a signal at different steps, and one that stopped alone would hang the others.
        They ask each other at logging steps only, where they wait for each other anyway.
        """
        if args.world_size == 1:
            return self.requested
        if state.global_step % max(1, int(state.logging_steps)) != 0:
            return False
        flag = torch.tensor([int(self.requested)], device=args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        self.requested = bool(flag.item())
        return self.requested

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over while training runs, and give them back after."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            print(
                "\nStopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr
            )

        if threading.current_thread() is not threading.main_thread():
            # Python lets only the main thread take signals.
            yield
            return
        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_QUIET_SECONDS = 30.0
_MOST_LINES = 100


class ProgressReport(TrainerCallback):
    """Loss, accuracy, pairs per second and time left of a training run.

    On a terminal they stand in one progress bar, and each evaluation is a line above it. Elsewhere
    (a log file, CI) a line of progress is written at most every 30 seconds and at most every 1% of
    the steps: enough to see that a run is alive, and no more than 100 lines however long it is.
    ``verbose`` writes a line every ``logging_steps`` everywhere.
    """

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self.console = console
        self.verbose = verbose
        self._progress: Progress | None = None
        self._started = self._written = time.monotonic()
        self._first_step = self._written_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._started = self._written = time.monotonic()
        self._first_step = self._written_step = state.global_step
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        # What stands beside the bar takes so much at most, counts of steps included.
        room = self.console.width - 65 - 2 * len(str(state.max_steps))
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=max(4, min(40, room))),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
        )
        self._progress.add_task(
            "training", total=state.max_steps, completed=state.global_step, numbers=""
        )
        self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._update(completed=state.global_step)

    def _update(self, **changes: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], **changes)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        if "eval_loss" in logs:
            self._print(state, f"validation loss {logs['eval_loss']:.4f}{_measured(logs, 'eval_')}")
        elif "pairs_per_second" in logs:
            rate = logs["pairs_per_second"]
            speed = f"{rate:.3g} comparisons/s" if rate < 1000 else f"{rate:,.0f} comparisons/s"
            measured = f"loss {logs['loss']:.4f}{_measured(logs)}"
            self._update(numbers=f"{measured}  {speed}")
            if self.verbose or (self._progress is None and self._due(state)):
                self._written, self._written_step = time.monotonic(), state.global_step
                self._print(state, f"  training {measured}", f"  {speed}{self._left(state)}")

    def _due(self, state: TrainerState) -> bool:
        """Whether a line may be written: long enough after the last one, and steps enough."""
        waited = time.monotonic() - self._written >= _QUIET_SECONDS
        return waited and (state.global_step - self._written_step) * _MOST_LINES >= state.max_steps

    def _left(self, state: TrainerState) -> str:
        """The time left at the speed so far."""
        done = state.global_step - self._first_step
        remaining = state.max_steps - state.global_step
        if done <= 0 or remaining <= 0:
            return ""
        seconds = (time.monotonic() - self._started) / done * remaining
        return f"  {duration(seconds)} left"

    def _print(self, state: TrainerState, measured: str, end: str = "") -> None:
        """One aligned line, of training or of an evaluation."""
        width = len(str(state.max_steps))
        self.console.print(
            f"step {state.global_step:>{width}}/{state.max_steps}  epoch {state.epoch or 0:.2f}  "
            f"{measured}{end}",
            highlight=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        """Give the terminal back, also when training stopped with an error."""
        if self._progress is not None:
            self._progress.stop()


def _measured(logs: Mapping[str, Any], prefix: str = "") -> str:
    """What stands behind a loss: accuracy on pairs, the error on ratings, or nothing."""
    names = {"accuracy": "accuracy", "mae": "MAE"}
    return "".join(
        f"  {shown} {logs[prefix + name]:.3f}"
        for name, shown in names.items()
        if prefix + name in logs
    )
