"""Whole training loops that take turns: one optimizer step of one side, then one of the other.

Each side's own ``Trainer.train()`` runs as released (its data loader, collator, ``training_step``,
clipping, optimizer, schedule and callbacks) on a stack of its own (greenlet) that is left at the
end of every optimizer step. All sides run in the process's main thread, as a training does: every
thread that computes has OpenMP threads of its own, and where a process has more of them than
cores, libgomp puts all of them to sleep between the parts of a product.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import greenlet
from transformers import Trainer, TrainerCallback

from benchmarks.common import machine


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
        self._stop = False
        self._losses: list[torch.Tensor] = []
        self._watch(trainer)
        trainer.add_callback(_Turnstile(self))
        self._side = greenlet(trainer.train)
        self._side.switch()

    def step(self) -> Step:
        """Let the side take one optimizer step.

        Raises:
            BaseException: whatever stopped the side's training.
        """
        self._losses.clear()
        before, began = machine.load(), time.perf_counter()
        self._side.switch()
        seconds = time.perf_counter() - began
        assert self._losses, "the side's training has ended"
        return Step(
            seconds=seconds,
            loss=float(sum(float(loss) for loss in self._losses)),
            others=machine.load().others_since(before),
        )

    def close(self) -> None:
        """End the training."""
        self._stop = True
        if not self._side.dead:
            self._side.switch()

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
            self._side.parent.switch()
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
