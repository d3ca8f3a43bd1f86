"""How fast are rows read, rendered and encoded, and is memory flat?

    python -m benchmarks.speed.data_path --data hh_harmless.jsonl.gz [--sizes 10_000,1_000_000]

The real rows are repeated with an id of their own and a number in the first turn, so that no two
prompts are the same. Every measurement is a process of its own that does what ``plaudit train``
does before it loads weights: read every row, split off nothing, render and encode with the embedded
base's tokenizer. Its cache folder is new; where plaudit keeps what it encoded, a second process
over the same cache is timed too. Memory is the process's highest resident memory, imports and
worker processes' own left out of it (theirs are in ``workers``).
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import machine, plots
from benchmarks.common.results import (
    Shown,
    console,
    figure,
    median,
    numbers,
    parser,
    show,
    size,
)
from benchmarks.common.results import recorder as start_recorder

QUESTION = "data_path"
# Rounds of large sizes take minutes each; this many rows in all rounds of one size are enough.
ROWS_IN_ALL = 2_000_000


def enlarge(data: Path, out: Path, count: int) -> Path:
    """``count`` rows, each with its own id and prompt."""
    opened = gzip.open if data.suffix == ".gz" else open
    with opened(data, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    with out.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            first, *rest = row["prompt"]
            numbered = {**first, "content": f"{first['content']} ({number})"}
            enlarged = {**row, "id": f"row-{number}", "prompt": [numbered, *rest]}
            file.write(json.dumps(enlarged, ensure_ascii=False) + "\n")
    return out


def encode(data: Path) -> dict[str, Any]:
    """What ``plaudit train`` does with its rows before it loads weights.

    Returns the rows used and their tokens.
    """
    from plaudit.embedded import base_path
    from plaudit.recipe.load import parse_recipe
    from plaudit.tokens.encode import Encoder
    from plaudit.training import corpus
    from plaudit.training.prepare import prepare_tokenizer

    recipe = parse_recipe(
        {
            "model": {"base": "embedded"},
            "data": {"train": str(data), "eval_fraction": None},
            "tokens": {"max_length": 2048},
            "loss": {"margin": "ignore"},
        },
        "benchmark",
    )
    tokenizer = prepare_tokenizer(recipe.model, recipe.tokens, str(base_path()))
    encoder = Encoder(tokenizer=tokenizer, max_length=2048)
    comparisons = corpus.read_comparisons(recipe.data)
    encoded = corpus.encode_corpus(encoder, comparisons, ignored=frozenset({"margin"}))
    use = corpus.data_use(encoded, recipe.data.split_by)
    return {"rows": use.rows, "used": use.used, "tokens": use.tokens.packed}


def child(data: Path) -> None:
    """One measurement, printed as JSON."""
    import resource
    import time

    import plaudit.training.prepare  # noqa: F401  (its imports are not what is measured)

    held = machine.resident()
    machine.reset_peak()
    began = time.perf_counter()
    found = encode(data)
    seconds = time.perf_counter() - began
    # Linux counts in KiB; the largest worker, none where plaudit started none.
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    peak = machine.peak_resident()
    print(json.dumps({**found, "seconds": seconds, "peak": peak, "held": held, "worker": workers}))


def measure(data: Path, cache: Path) -> dict[str, Any]:
    """A fresh process over a cache folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    # Wherever a cache goes by the usual rules, it goes here.
    for name in ("XDG_CACHE_HOME", "HF_HOME", "PLAUDIT_CACHE"):
        environment[name] = str(cache)
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--data", str(data), "--child"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(record: dict[str, Any]) -> Shown:
    """One line per number of rows; cost is relative to the smallest."""
    cases = sorted(record["cases"], key=lambda case: int(case["rows"]))
    first = median([1 / r["rows_per_second"] for r in cases[0]["new"]])
    rows: list[tuple[str, ...]] = []
    for case in cases:
        each = median([1 / r["rows_per_second"] for r in case["new"]])
        rows.append(
            (
                f"{case['rows']:,}",
                str(len(case["new"])),
                figure(1 / each),
                f"{each / first:.2f}x",
                figure(median([r["rows_per_second"] for r in case["again"]])),
                size(median([r["peak"] for r in case["new"]])),
                size(median([r["held"] for r in case["new"]])),
            )
        )
    headings = (
        "rows",
        "rounds",
        "rows/s",
        "relative cost per row",
        "rows/s, cached",
        "peak memory",
        "imports alone",
    )
    return Shown(headings, tuple(rows))


def main() -> None:
    """Parse, measure every size, write after each round."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--data", type=Path, required=True, help="preference rows, JSON lines")
    made.add_argument("--sizes", default="10_000,100_000,1_000_000", help="rows")
    made.add_argument("--child", action="store_true", help="for the command's own processes")
    arguments = made.parse_args()
    if arguments.child:
        child(arguments.data)
        return
    recorder = start_recorder(QUESTION, arguments)
    with tempfile.TemporaryDirectory() as folder:
        for count in numbers(arguments.sizes):
            data = enlarge(arguments.data, Path(folder) / f"{count}.jsonl", count)
            case: dict[str, Any] = {"rows": count, "bytes": data.stat().st_size}
            case |= {"new": [], "again": []}
            recorder.cases.append(case)
            for number in range(max(1, min(arguments.rounds, ROWS_IN_ALL // count))):
                cache = Path(folder) / f"cache-{count}-{number}"
                for key in ("new", "again"):
                    found = measure(data, cache)
                    found["rows_per_second"] = found["rows"] / found["seconds"]
                    case[key].append(found)
                recorder.write()
                console.log(
                    f"{count:,} rows: {case['new'][-1]['rows_per_second']:,.0f} rows/s, "
                    f"{case['again'][-1]['rows_per_second']:,.0f} again, "
                    f"{size(case['new'][-1]['peak'])}"
                )
            data.unlink()
    record = recorder.record()
    show(table(record))
    cases = record["cases"]
    plots.lines(
        recorder.folder / "rows.png",
        {
            "new": [(c["rows"], median([r["rows_per_second"] for r in c["new"]])) for c in cases],
            "second time": [
                (c["rows"], median([r["rows_per_second"] for r in c["again"]])) for c in cases
            ],
        },
        x="rows",
        y="rows per second",
        log_x=True,
    )
    plots.lines(
        recorder.folder / "memory.png",
        {
            "highest": [(c["rows"], median([r["peak"] for r in c["new"]]) / 2**20) for c in cases],
            "imports alone": [
                (c["rows"], median([r["held"] for r in c["new"]]) / 2**20) for c in cases
            ],
        },
        x="rows",
        y="resident memory, MiB",
        log_x=True,
    )


if __name__ == "__main__":
    main()
