"""What a step leaves for the log, kept on the device until someone reads it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import TrainingError
from plaudit.types import TokenTree


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Sums over all ranks since the last reading."""

    pairs: float
    correct: float
    margin: float
    comparisons: float
    tokens: float
    seconds: float


class Meter:
    """Accumulates on the device; :meth:`read` holds the only copy to the host.

    Host-side numbers (rows, tokens, time) are counted on the host; nothing here makes a step wait
    for the device, except the check for finite losses on a CPU, where waiting costs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._unchecked: list[tuple[Tensor, int, tuple[int, ...]]] = []
        self._last_rows: tuple[int, ...] = ()
        self._clear()

    def _clear(self) -> None:
        # Right pairs and summed margin; what the host knows is counted on the host.
        self._sums_2 = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._pairs = 0
        self._comparisons = 0
        self._tokens = 0
        self._since = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What has been counted since the last reading, for a checkpoint between two logs."""
        return {
            "sums": self._sums_2.clone(),
            "pairs": self._pairs,
            "comparisons": self._comparisons,
            "tokens": self._tokens,
            "seconds": time.perf_counter() - self._since,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a :meth:`state`."""
        self._sums_2 = state["sums"].to(self.device)
        self._pairs = state["pairs"]
        self._comparisons = state["comparisons"]
        self._tokens = state["tokens"]
        self._since = time.perf_counter() - state["seconds"]

    def pause(self, seconds: float) -> None:
        """Leave time out of the throughput (an evaluation, a save)."""
        self._since += seconds

    def add(self, delta_P: Tensor) -> None:
        """Count one micro-batch's pairs, whether they are ordered right, and their margins."""
        self._pairs += delta_P.numel()
        with torch.no_grad():
            self._sums_2 += torch.stack([(delta_P > 0).sum().double(), delta_P.double().sum()])

    def step(self, loss: Tensor, trees: Sequence[TokenTree], step: int) -> None:
        """Close a step: its loss is checked for finiteness here (CPU) or at the next reading."""
        self._comparisons += len(trees)
        self._tokens += sum(tree.tokens for tree in trees)
        self._last_rows = tuple(tree.index for tree in trees)
        self._unchecked.append((loss, step, self._last_rows))
        if self.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Stop if a step's loss since the last check was not finite.

        Raises:
            NotFiniteError: with the step and this rank's rows of it.
        """
        waiting, self._unchecked = self._unchecked, []
        if not waiting:
            return
        finite = torch.isfinite(torch.stack([loss for loss, _, _ in waiting])).tolist()
        for ok, (_, step, rows) in zip(finite, waiting, strict=True):
            if not ok:
                raise NotFiniteError(f"The loss of step {step}", rows)

    def check_after(self, what: str, numbers: Iterable[Tensor]) -> None:
        """Stop if the last step spoiled what is computed after it; ``what`` names that.

        Raises:
            NotFiniteError: with this rank's rows of the last step.
        """
        if not all(bool(torch.isfinite(tensor).all()) for tensor in numbers):
            raise NotFiniteError(what, self._last_rows)

    def read(self, total: Callable[[Tensor], Tensor]) -> Reading:
        """All ranks' sums since the last reading; ``total`` sums a tensor over ranks."""
        self.check()
        host = [self._pairs, self._comparisons, self._tokens]
        counted = torch.tensor(host, dtype=torch.float64, device=self.device)
        sums = total(torch.cat([self._sums_2, counted])).tolist()
        reading = Reading(
            correct=sums[0],
            margin=sums[1],
            pairs=sums[2],
            comparisons=sums[3],
            tokens=sums[4],
            seconds=time.perf_counter() - self._since,
        )
        self._clear()
        return reading


class NotFiniteError(TrainingError):
    """A step that gave no number; ``what`` says where, ``rows`` are this rank's rows in it."""

    def __init__(self, what: str, rows: tuple[int, ...]) -> None:
        super().__init__(f"{what} is not a finite number")
        self.rows = rows
