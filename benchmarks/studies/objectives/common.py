"""What the studies of objectives share: the pairs of a set, recorded runs, paired differences."""

from __future__ import annotations

import gzip
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy.stats import t

from benchmarks.common.machine import REPOSITORY, command, describe_machine
from plaudit.storage.atomic import write_json

RESULTS = REPOSITORY / "benchmarks" / "studies" / "objectives" / "results"

console = Console(stderr=True)


def read_pairs(data_dir: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """The pairs of a set by prompt."""
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with gzip.open(data_dir / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            by_prompt[json.dumps(row["prompt"], ensure_ascii=False)].append(row)
    return by_prompt


@dataclass(kw_only=True)
class Record:
    """A file of results, written after every run. ``rest`` is what stands beside the runs."""

    path: Path
    runs: list[dict[str, Any]]
    rest: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path) -> Record:
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        rest = {key: known[key] for key in known if key not in ("command", "machine", "runs")}
        return cls(path=path, runs=known.get("runs", []), rest=rest)

    def find(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        return next((one for one in self.runs if wanted.items() <= one.items()), None)

    def add(self, run: dict[str, Any]) -> None:
        self.runs.append(run)
        self.write()

    def write(self) -> None:
        about = {"command": command(), "machine": describe_machine()}
        write_json(self.path, about | {"runs": self.runs} | self.rest)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean over seeds and its 95% interval (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def difference(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]], measure: str
) -> tuple[float, float, float]:
    """The mean difference over the seeds of both, and its 95% interval (paired t)."""
    both = sorted(ours.keys() & theirs.keys())
    return mean_interval([ours[seed][measure] - theirs[seed][measure] for seed in both])


def print_interval(found: tuple[float, float, float], digits: int = 4) -> str:
    """The mean difference with its sign, and its interval where it has one."""
    mean, low, high = found
    if low != low:
        return f"{mean:+.{digits}f}"
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
