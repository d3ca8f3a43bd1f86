"""How fast are rows audited, and is memory flat?

    python -m benchmarks.speed.audit_size [--sizes 10_000,100_000,1_000_000] [--rounds 1]

Synthetic pairs of realistic length (a vocabulary by Zipf's law; prompts of 60 words and responses
of 150 in the mean, both log-normal), one in a hundred a duplicate and one in a hundred a near
duplicate, with a tenth as many held-out rows, some of whose prompts are in the data. Every
measurement is a process of its own: ``plaudit data audit`` with ``--eval``. Memory is the highest
resident memory of the process, imports included, and beside it that of its largest worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, plots
from benchmarks.common.results import Shown, console, figure, median, numbers, parser, show, size
from benchmarks.common.results import recorder as start_recorder

QUESTION = "audit_size"
VOCABULARY = 50_000
DUPLICATES = 0.01


def words(generator: np.random.Generator, ranks: Any, mean: float) -> str:
    """A text of about ``mean`` words."""
    count = max(3, int(generator.lognormal(np.log(mean) - 0.32, 0.8)))
    return " ".join(f"w{rank}" for rank in ranks(count))


def write_rows(path: Path, count: int, seed: int, prompts: list[str]) -> None:
    """``count`` pairs as JSON lines; some prompts are those given."""
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    edges = np.cumsum(weights / weights.sum())

    def ranks(length: int) -> list[int]:
        found: list[int] = np.searchsorted(edges, generator.random(length)).tolist()
        return found

    before: dict[str, str] = {}
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            chance = generator.random()
            if chance < DUPLICATES and before:
                row = before
            elif chance < 2 * DUPLICATES and before:
                row = {**before, "chosen": before["chosen"] + " more"}
            else:
                row = {
                    "prompt": words(generator, ranks, 60),
                    "chosen": words(generator, ranks, 150),
                    "rejected": words(generator, ranks, 150),
                }
                if prompts and number % 1000 == 0:
                    row["prompt"] = prompts[number // 1000 % len(prompts)]
            file.write(json.dumps(row) + "\n")
            before = row


def child(data: Path, held_out: Path) -> None:
    """One audit, measured, printed as JSON."""
    import resource
    import time

    from plaudit.audit_data import AuditOptions, audit_data

    stages: dict[str, float] = {}
    began = time.perf_counter()

    def on_progress(task: str, done: int, total: int | None) -> None:
        stages[task] = time.perf_counter() - began

    options = AuditOptions(data=[str(data)], eval_data=[str(held_out)])
    report = audit_data(options, on_progress=on_progress).report
    seconds = time.perf_counter() - began
    found = {finding.check: finding.rows for finding in report.findings if finding.rows}
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "rows": report.rows,
                "seconds": seconds,
                "stages": stages,
                "peak": machine.peak_resident(),
                "worker": workers,
                "found": found,
            }
        )
    )


def measure(data: Path, held_out: Path, cache: Path) -> dict[str, Any]:
    """A fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--child", str(data), str(held_out)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PLAUDIT_CACHE": str(cache)},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(record: dict[str, Any]) -> Shown:
    """One line per number of rows."""
    rows = [
        (
            f"{case['rows']:,}",
            size(case["bytes"]),
            figure(median([r["seconds"] for r in case["rounds"]])) + " s",
            figure(median([r["rows"] / r["seconds"] for r in case["rounds"]])),
            size(max(r["peak"] for r in case["rounds"])),
            size(max(r["worker"] for r in case["rounds"])),
        )
        for case in record["cases"]
    ]
    return Shown(
        ("rows", "file size", "time", "rows/s", "peak memory", "largest worker"), tuple(rows)
    )


def main() -> None:
    """Parse, measure every size, write after each round."""
    made = parser(__doc__, QUESTION)
    made.set_defaults(rounds=1)
    made.add_argument("--sizes", default="10_000,100_000,1_000_000", help="rows")
    made.add_argument("--child", nargs=2, type=Path, help="for the command's own processes")
    arguments = made.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    recorder = start_recorder(QUESTION, arguments)
    with tempfile.TemporaryDirectory() as folder:
        for count in numbers(arguments.sizes):
            data, held_out = Path(folder) / "data.jsonl", Path(folder) / "held_out.jsonl"
            write_rows(held_out, max(10, count // 10), arguments.seed + 1, [])
            with held_out.open(encoding="utf-8") as lines:
                prompts = [json.loads(line)["prompt"] for line in islice(lines, 100)]
            write_rows(data, count, arguments.seed, prompts)
            case: dict[str, Any] = {"rows": count, "bytes": data.stat().st_size, "rounds": []}
            recorder.cases.append(case)
            for _ in range(arguments.rounds):
                case["rounds"].append(measure(data, held_out, Path(folder) / "cache"))
                recorder.write()
                found = case["rounds"][-1]
                console.log(f"{count:,} rows: {found['seconds']:.1f} s, {size(found['peak'])}")
            data.unlink()
    record = recorder.record()
    show(table(record))
    plots.lines(
        recorder.folder / "memory.png",
        {
            "highest": [
                (c["rows"], max(r["peak"] for r in c["rounds"]) / 2**20) for c in record["cases"]
            ]
        },
        x="rows",
        y="resident memory, MiB",
        log_x=True,
    )


if __name__ == "__main__":
    main()
