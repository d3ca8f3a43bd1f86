"""Results as JSON, written after every case, and as a table on the terminal and in the docs."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.machine import REPOSITORY, command, describe_machine
from plaudit.storage.atomic import write_json

RESULTS = REPOSITORY / "benchmarks" / "results"
SEED = 0

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Shown:
    """A table of words: what is printed and what the docs hold."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.headings, tuple("---" for _ in self.headings), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


@dataclass(kw_only=True)
class Recorder:
    """The JSON of one question; :meth:`add` writes it anew, so that a stopped run keeps its cases.

    ``peers`` holds how each other side was configured. ``earlier`` is the record that ``--add``
    goes on with: its cases stay, except those measured again, and its command is named.
    """

    question: str
    folder: Path
    settings: Mapping[str, Any]
    peers: Mapping[str, Any] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    earlier: Mapping[str, Any] | None = None
    machine: dict[str, Any] = field(default_factory=describe_machine)
    started: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"), init=False
    )

    def add(self, case: dict[str, Any]) -> None:
        self.cases.append(case)
        self.write()

    def write(self) -> None:
        write_json(self.folder / "results.json", self.record())

    def record(self) -> dict[str, Any]:
        before = self.earlier or {"cases": [], "command": "", "runs": []}
        measured = {_identity(case) for case in self.cases}
        run = {"command": command(), "started": self.started, "commit": self.machine["commit"]}
        return {
            "question": self.question,
            "command": "; ".join(filter(None, [before["command"], command()])),
            "runs": [*before["runs"], run],
            "started": self.started,
            "machine": self.machine,
            "settings": dict(self.settings),
            "peers": dict(self.peers),
            "cases": [
                *(case for case in before["cases"] if _identity(case) not in measured),
                *self.cases,
            ],
        }


def _identity(case: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a case from the others of its question."""
    names = ("model", "batch", "order", "kind", "prompt", "responses", "vocabulary", "rows", "name")
    more = ("what", "pairs", "shape")
    return tuple(case.get(name) for name in (*names, *more))


def recorder(
    question: str,
    arguments: argparse.Namespace,
    *,
    settings: Mapping[str, Any] | None = None,
    peers: Mapping[str, Any] | None = None,
) -> Recorder:
    """The recorder of a command line, with what stood there before where ``--add`` asks for it."""
    path = arguments.out / "results.json"
    earlier = None
    if arguments.add and path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
    return Recorder(
        question=question,
        folder=arguments.out,
        settings=settings_of(arguments) | dict(settings or {}),
        peers=peers or {},
        earlier=earlier,
    )


def show(shown: Shown) -> None:
    """Print a table."""
    table = Table(box=None)
    for number, heading in enumerate(shown.headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in shown.rows:
        table.add_row(*row)
    Console().print(table)


def parser(description: str | None, question: str) -> argparse.ArgumentParser:
    """The options every command has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--out", type=Path, default=RESULTS / question, help="folder for results.json and the plot"
    )
    made.add_argument("--rounds", type=int, default=5, help="measured rounds after warm-up")
    made.add_argument("--seed", type=int, default=SEED)
    made.add_argument(
        "--add", action="store_true", help="keep the other cases that results.json has"
    )
    return made


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as JSON; of files and folders the last part of the name alone."""
    plain: dict[str, Any] = {}
    for name, value in vars(arguments).items():
        plain[name] = value.name if isinstance(value, Path) else value
    return plain


def words(text: str) -> list[str]:
    """``a,b`` as ``[a, b]``, for options that take several names."""
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    """``1,2`` as ``[1, 2]``; underscores may group digits."""
    return [int(word) for word in words(text)]


def median(values: Sequence[float]) -> float:
    """The median; of an even number of values the mean of the two in the middle."""
    return float(statistics.median(values))


def figure(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
