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

from plaudit.storage.atomic import write_text

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
        """A line for each case."""
        whole = asdict(self)
        parts = [{**part, "cases": part.pop("cases")} for part in whole.pop("parts")]
        lines = ",\n".join(_part_lines(part) for part in parts)
        head = json.dumps(whole, indent=1, ensure_ascii=False).removesuffix("\n}")
        write_text(folder / FILE, f'{head},\n "parts": [\n{lines}\n ]\n}}\n')


def _part_lines(part: dict[str, Any]) -> str:
    cases = ",\n".join(f"   {json.dumps(case, ensure_ascii=False)}" for case in part.pop("cases"))
    head = json.dumps(part, ensure_ascii=False).removesuffix("}")
    return f'  {head}, "cases": [\n{cases}\n  ]}}'


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

    def earlier(self, part: str) -> dict[str, Case]:
        """What another part measured, by name, from the record so far."""
        check = read_check(self._folder)
        parts = () if check is None else check.parts
        cases = (case for one in parts if one.name == part for case in one.cases)
        return {case.name: case for case in cases if case.status == "measured"}

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
        print(shown(case), flush=True)


SHOWN: Mapping[str, str] = {
    "tokens_per_second": "{:,.0f} tokens/s",
    "pairs_per_second": "{:.1f} pairs/s",
    "responses_per_second": "{:,.0f} responses/s",
    "seconds": "{:.3g} s",
    "speedup": "{:.2f} x padded",
    "mfu_4n": "{:.1%} MFU",
    "micro_batch_tokens": "{:,} tokens at once",
    "micro_batch_pairs": "{} pairs at once",
    "checkpointed_layers": "{} recomputed",
    "peak_bytes": "{:.1f} GB",
    "predicted_bytes": "planned {:.1f} GB",
    "predicted_over_peak": "{:.2f} of measured",
    "score_error": "scores off {:.1e}",
    "padded_score_error": "padded {:.1e}",
    "gradient_error": "gradients off {:.1e}",
    "padded_gradient_error": "padded {:.1e}",
    "loss": "loss {:.4f}",
    "difference": "difference {:.1e}",
    "largest_difference": "largest difference {:.1e}",
    "weights_difference": "weights {:.1e} apart",
    "rewards_difference": "rewards {:.1e} apart",
    "kernels": "{:,} kernels",
    "operators": "{:,} operators",
    "numbers_asked_for": "{:,} numbers asked for",
    "device_seconds": "{:.3g} s",
    "matmul_share": "{:.0%} products",
    "attention_share": "{:.0%} attention",
    "copies_share": "{:.0%} copies",
    "elementwise_share": "{:.0%} elementwise",
    "matmul_tflops": "products {:,.1f} TFLOP/s",
    "copy_gb_per_second": "copies {:,.0f} GB/s",
    "published_tflops": "published {:,.0f} TFLOP/s",
    "memory_bytes": "{:.1f} GB",
    "driver": "driver {}",
    "torch": "torch {}",
    "transformers": "transformers {}",
    "attention_forms": "attention {}",
    "liger": "Liger {}",
    "steps": "{} steps",
}
"""What of a case the terminal shows, in this order, where a case has it; check.json has all."""


def shown(case: Case) -> str:
    """A case in one line; of a failed one the last line of its note under it."""
    columns = []
    for key, form in SHOWN.items():
        value = case.numbers.get(key)
        if value is not None:
            in_gb = key.endswith("_bytes") and isinstance(value, (int, float))
            columns.append(form.format(value / 1e9 if in_gb else value))  # type: ignore[operator]
    forms = case.numbers.get("attention")
    if isinstance(forms, dict):
        columns.append("+".join(sorted({name.removesuffix(" scored") for name in forms})))
    if case.status == "not run":
        columns.append(case.note)
    if not columns and case.numbers:
        # Nothing that is a measure: its first fact.
        columns.append(str(next(iter(case.numbers.values())))[:90])
    text = "".join(f"{column:>19}  " for column in columns).rstrip()
    line = f"  {MARKS[case.status]} {case.name:<52} {text}".rstrip()
    last = case.note.strip().splitlines()[-1:] if case.status == "failed" else []
    return "\n".join([line, *(f"       {note}" for note in last)])


MARKS: Mapping[Status, str] = {
    "passed": "ok  ",
    "failed": "FAIL",
    "measured": "    ",
    "not run": "--  ",
}


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in this thread when ``seconds`` are over."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    # Again after that: Python drops what is raised inside a destructor.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1), 10.0)
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
