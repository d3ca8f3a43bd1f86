"""Whole training loops that take turns: one optimizer step of one side, then one of the other.

Each side's own ``Trainer.train()`` runs as released (its data loader, collator, ``training_step``,
clipping, optimizer, schedule and callbacks), in a thread that waits at the end of every optimizer
step. Only one of them ever runs at a time, so all meet the machine in the same state.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from common import machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step: seconds from the data loader to cleared gradients, and the mean loss.

    ``others`` are the seconds of processor time that other processes took meanwhile.
    """

    seconds: float
    loss: float
    others: float


class Stepper:
    """Runs ``trainer.train()`` one optimizer step at a time."""

    def __init__(self, trainer: Trainer) -> None:
        self._go = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self._stop = False
        self._error: BaseException | None = None
        self._losses: list[torch.Tensor] = []
        self._watch(trainer)
        trainer.add_callback(_Turnstile(self))
        self._thread = threading.Thread(target=self._run, args=(trainer,), daemon=True)
        self._thread.start()
        self._wait()

    def step(self) -> Step:
        """Let the side take one optimizer step.

        Raises:
            BaseException: whatever stopped the side's training.
        """
        self._losses.clear()
        before, began = machine.load(), time.perf_counter()
        self._go.release()
        self._wait()
        seconds = time.perf_counter() - began
        return Step(
            seconds=seconds,
            loss=float(sum(float(loss) for loss in self._losses)),
            others=machine.load().others_since(before),
        )

    def close(self) -> None:
        """End the training."""
        self._stop = True
        self._go.release()
        self._thread.join()

    def _run(self, trainer: Trainer) -> None:
        try:
            trainer.train()
        except BaseException as error:  # handed to the thread that waits for it
            self._error = error
        self._arrived.release()

    def _wait(self) -> None:
        self._arrived.acquire()
        if self._error is not None:
            raise self._error

    def _watch(self, trainer: Any) -> None:
        """Keep what ``training_step`` returns: the Trainer itself rounds the losses it logs."""
        taken = trainer.training_step

        def training_step(*arguments: Any, **options: Any) -> torch.Tensor:
            loss: torch.Tensor = taken(*arguments, **options)
            self._losses.append(loss.detach())
            return loss

        trainer.training_step = training_step

    def turn(self) -> bool:
        """Hand the machine back, wait for the next turn, and say whether there is one."""
        if not self._stop:
            self._arrived.release()
            self._go.acquire()
        return not self._stop


class _Turnstile(TrainerCallback):
    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.stepper.turn()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if not self.stepper.turn():
            control.should_training_stop = True
        return control
