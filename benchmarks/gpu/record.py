"""What a check records: cases with numbers, one record per part, one file for all of them.

A part is a function that gets its :class:`Part` and reports each case as it is done, so what was
measured before an error or the end of its time is kept. Names of numbers end in their unit.
"""

from __future__ import annotations

import gc
import json
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias

from plaudit.storage.atomic import write_json, write_text

FORMAT = 1
FILE = "check.json"
GRACE = 1.25
"""A part is stopped at this many times its allowance; until then it stops itself between cases."""

Status = Literal["passed", "failed", "measured", "not run"]
Value: TypeAlias = float | int | str | bool | list[float] | dict[str, int] | dict[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that was checked or measured.

    ``passed`` and ``failed`` are checks; ``measured`` has numbers alone. ``note`` is what was
    expected, or why it was not run.
    """

    name: str
    status: Status
    numbers: Mapping[str, Value] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """One part. It ``failed`` where a case did, or where ``error`` has a traceback."""

    name: str
    status: Status
    seconds: float
    allowance_seconds: float
    cases: tuple[Case, ...]
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRecord:
    """The file: the command, the machine and the parts in the order in which they ran."""

    format: int
    command: str
    tiny: bool
    started: str
    seconds: float
    machine: Mapping[str, Any]
    parts: tuple[PartRecord, ...]

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))


def read_check(folder: Path) -> CheckRecord | None:
    """The record in ``folder``, None where there is none.

    Raises:
        ValueError: it is of another format.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["format"] != FORMAT:
        raise ValueError(f"{path} has format {found['format']}, expected {FORMAT}")
    parts = tuple(
        PartRecord(**{**part, "cases": tuple(Case(**case) for case in part["cases"])})
        for part in found["parts"]
    )
    return CheckRecord(**{**found, "parts": parts})


class OutOfTime(BaseException):
    """A part is over its time. No library's ``except Exception`` may keep it."""


class Part:
    """Where a part reports its cases, and how much time it has left."""

    def __init__(self, name: str, allowance: float, folder: Path) -> None:
        self.name = name
        self.allowance = allowance
        self._folder = folder
        self._began = time.monotonic()
        self._durations: list[float] = []
        self._cases: list[Case] = []
        self._error = ""

    @property
    def left(self) -> float:
        """Seconds."""
        return self.allowance - (time.monotonic() - self._began)

    def measured(self, name: str, /, **numbers: Value) -> None:
        self._add(Case(name=name, status="measured", numbers=numbers))

    def expect(self, name: str, holds: bool, note: str, /, **numbers: Value) -> None:
        """A check, with what was expected and the numbers that it was decided by."""
        status: Status = "passed" if holds else "failed"
        self._add(Case(name=name, status=status, numbers=numbers, note=note))

    def not_run(self, name: str, why: str) -> None:
        self._add(Case(name=name, status="not run", note=why))

    def attempt(self, name: str, run: Callable[[], object]) -> bool:
        """Run what reports one or more cases; whether it ended without an error.

        An error is a failed case of this name and the part goes on. Where what most attempts so
        far took is no longer left, it is not run.
        """
        if self.left < statistics.median(self._durations or [0.0]):
            self.not_run(name, f"out of time: {max(self.left, 0):.0f} s left")
            return False
        began = time.monotonic()
        try:
            run()
        except Exception:
            # The traceback's frames hold tensors, so its text is kept and nothing else.
            self._add(Case(name=name, status="failed", note=traceback.format_exc(limit=-6)))
            return False
        finally:
            self._durations.append(time.monotonic() - began)
            free_memory()
        return True

    def text(self, name: str, content: str) -> None:
        """A file beside the record."""
        write_text(self._folder / name, content)

    def run(self, function: Callable[[], None]) -> PartRecord:
        """The whole part: ended, failed, or stopped at its time."""
        try:
            with _alarm(self.allowance * GRACE):
                function()
        except OutOfTime:
            self.not_run("the rest", f"stopped after {self.allowance * GRACE:.0f} s")
        except Exception:
            self._error = traceback.format_exc()
        free_memory()
        return self.record()

    def record(self) -> PartRecord:
        ran = [case.status for case in self._cases if case.status != "not run"]
        status: Status = "passed" if ran else "not run"
        if self._error or "failed" in ran:
            status = "failed"
        return PartRecord(
            name=self.name,
            status=status,
            seconds=round(time.monotonic() - self._began, 2),
            allowance_seconds=round(self.allowance, 1),
            cases=tuple(self._cases),
            error=self._error,
        )

    def _add(self, case: Case) -> None:
        self._cases.append(case)
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in case.numbers.items())
        note = case.note.strip().splitlines()[-1] if case.status in ("failed", "not run") else ""
        print(f"  {case.status:9} {case.name}: {shown} {note}".rstrip(": "), flush=True)


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in this thread when ``seconds`` are over."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def free_memory() -> None:
    """Give back what nothing refers to any more; models are cycles of references."""
    # Only a check that runs needs torch; the tables are written without it.
    import torch

    gc.collect()
    if torch.cuda.is_available():
        # After an illegal access every call fails; the error that is recorded is the first.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
