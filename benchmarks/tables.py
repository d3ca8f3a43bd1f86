"""Write the tables of the docs from the recorded results, so that no number is typed by hand.

    python -m benchmarks.tables [--check]

The text between ``<!-- table: NAME -->`` and ``<!-- end -->`` is replaced by the table of
``benchmarks/results/NAME/results.json`` with its machine and command, or by "Not measured yet."
The slots ``gpu_…`` are filled from ``benchmarks/gpu/results/check.json``. ``headline`` and
``costs`` are the summary on the performance page; ``targets`` compares each target
with its measurement. ``--check`` writes nothing and fails if a page is not up to date.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from types import ModuleType
from typing import Any

from benchmarks.common.machine import REPOSITORY
from benchmarks.common.results import RESULTS, Shown, figure, median, size
from benchmarks.gpu.record import read_check
from benchmarks.gpu.tables import TABLES as GPU_TABLES

PAGES = (
    REPOSITORY / "docs" / "performance.md",
    REPOSITORY / "docs" / "reference" / "performance-tables.md",
    REPOSITORY / "docs" / "how-to" / "audit-your-data.md",
)
KINDS = ("speed", "quality", "studies")
CHECKS = REPOSITORY / "benchmarks" / "gpu" / "results"
"""Where the record of a check on a GPU is kept (benchmarks/gpu/check.py)."""
NONE_YET = "Not measured yet.\n"
OLD_COMMAND = re.compile(r"python benchmarks/(\w+)\.py")
"""Commands were recorded before the scripts moved into folders; the docs show how to run them now.
"""
SLOT = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read(question: str) -> dict[str, Any] | None:
    """A question's record, None where it was not measured."""
    path = RESULTS / question / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def script(question: str) -> ModuleType:
    """The command that answers a question; it lies in the folder of its kind."""
    (kind,) = (kind for kind in KINDS if (RESULTS.parent / kind / f"{question}.py").is_file())
    return importlib.import_module(f"benchmarks.{kind}.{question}")


def block(question: str) -> str:
    """A question's table, and what it was measured on and with."""
    if question in SUMMARIES:
        return SUMMARIES[question]().markdown()
    if question in GPU_TABLES:
        check = read_check(CHECKS)
        return NONE_YET if check is None else _signed(GPU_TABLES[question](check), asdict(check))
    record = read(question)
    return NONE_YET if record is None else _signed(script(question).table(record), record)


def _signed(shown: Shown, record: Mapping[str, Any]) -> str:
    """A table with the machine, versions, date and command of its record."""
    machine = record["machine"]
    versions = machine["versions"]
    named = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "transformers", "peft", "trl")
        if versions.get(name)
    )
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    commands = "; ".join(f"`{_as_run_now(one)}`" for one in record["command"].split("; "))
    return (
        f"{shown.markdown()}\n{where}, {machine['memory_gib']:g} GiB; {named}; "
        f"plaudit at {machine['commit']}, {record['started'][:10]}. Commands: {commands}.\n"
    )


def _as_run_now(command: str) -> str:
    return OLD_COMMAND.sub(lambda old: f"python -m {script(old[1]).__name__}", command)


def headline() -> Shown:
    """The main comparisons in one table: training, scoring, serving."""
    rows: list[tuple[str, ...]] = []
    for what, peer, wanted in HEADLINE_TRAINING:
        for case in _cases(read("training") or {"cases": []}, **wanted):
            side = "trl" if peer.startswith("TRL") else "padded"
            ours, theirs = case["sides"]["plaudit"], case["sides"][side]
            above = {name: one["above"] for name, one in case["memory"].items()}
            rows.append(
                (
                    what,
                    peer,
                    f"{figure(ours['pairs_per_second'])} pairs/s",
                    f"{figure(theirs['pairs_per_second'])} pairs/s",
                    f"{theirs['ratio']:.2f}x",
                    f"{size(above['plaudit'])} vs {size(above[side])}",
                )
            )
    for case in _cases(read("llama_factory") or {"cases": []}, model="25m"):
        speed = {name: f"{figure(one)} pairs/s" for name, one in case["pairs_per_second"].items()}
        what = f"train 25M, batch size 1, accumulation 4, vocabulary {case['vocabulary']:,}"
        ratio = f"{case['ratio']:.2f}x"
        rows.append(
            (what, "LLaMA-Factory", speed["plaudit"], speed["llama_factory"], ratio, UNMEASURED)
        )
    for case in _cases(read("responses") or {"cases": []}, model="25m", prompt=512, responses=16):
        speed = {
            name: f"{figure(one)} responses/s" for name, one in case["responses_per_second"].items()
        }
        what = "score 16 responses to a 512-token prompt, 25M"
        ratio = f"{case['ratio']:.2f}x"
        rows.append((what, "padded batches", speed["plaudit"], speed["padded"], ratio, UNMEASURED))
    for what, peer, kind, unit, (mine, other) in HEADLINE_SERVING:
        for case in _cases(read("serving") or {"cases": []}, kind=kind):
            rate = case["rows_per_second" if unit == "rows/s" else "responses_per_second"]
            ours, theirs = (f"{figure(rate[name])} {unit}" for name in (mine, other))
            rows.append((what, peer, ours, theirs, f"{case['ratio']:.2f}x", UNMEASURED))
    headings = (
        "workload",
        "baseline",
        "plaudit",
        "baseline speed",
        "speedup",
        "peak memory above the model, plaudit vs baseline",
    )
    return Shown(headings, tuple(rows))


UNMEASURED = "–"
HEADLINE_TRAINING: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "train 25M, batch size 8",
        "TRL `RewardTrainer`",
        {"model": "25m", "batch": 8, "order": "random"},
    ),
    (
        "train 25M, batch size 8, batches grouped by length",
        "transformers `Trainer`, padded",
        {"model": "25m", "batch": 8, "order": "grouped"},
    ),
    (
        "train 25M, batch size 1",
        "TRL `RewardTrainer`",
        {"model": "25m", "batch": 1, "order": "random"},
    ),
    (
        "train 3.4M (embedded base), batch size 8",
        "TRL `RewardTrainer`",
        {"model": "embedded", "batch": 8, "order": "random"},
    ),
)
HEADLINE_SERVING = (
    (
        "serve 16 responses in one request, 25M",
        "one forward pass per response",
        "sixteen",
        "responses/s",
        ("plaudit", "plain"),
    ),
    (
        "serve 64 clients, one pair per request, 25M",
        "`plaudit score` on the same rows",
        "throughput",
        "rows/s",
        ("server", "file"),
    ),
)


def targets() -> Shown:
    """Every target, what was measured, and whether it was met."""
    return _against_targets(TARGETS)


def costs() -> Shown:
    """The targets that are no comparison with another tool."""
    return _against_targets(
        one for one in TARGETS if one[2] in ("utilisation", "start_up", "data_path")
    )


def _against_targets(chosen: Iterable[Target]) -> Shown:
    rows: list[tuple[str, ...]] = []
    for what, aim, question, find in chosen:
        record = read(question)
        found = None if record is None else find(record)
        if found is None:
            rows.append((what, aim, "not measured yet", ""))
        else:
            measured, met = found
            rows.append((what, aim, measured, "yes" if met else "**no**"))
    return Shown(("metric", "target", "measured", "met"), tuple(rows))


Finder = Callable[[dict[str, Any]], tuple[str, bool] | None]
Target = tuple[str, str, str, Finder]
"""Metric, target, the benchmark that measures it, and the function that finds it in the record."""


def _cases(record: dict[str, Any], **wanted: Any) -> Iterator[dict[str, Any]]:
    return (c for c in record["cases"] if all(c.get(k) == v for k, v in wanted.items()))


def _ratio(least: float, side: str, **wanted: Any) -> Finder:
    """Speedup of plaudit over one side of a training case."""

    def find(record: dict[str, Any]) -> tuple[str, bool] | None:
        for case in _cases(record, **wanted):
            if side in case["sides"]:
                ratio = case["sides"][side]["ratio"]
                return f"{ratio:.2f}x", ratio >= least
        return None

    return find


def _case_ratio(least: float, **wanted: Any) -> Finder:
    def find(record: dict[str, Any]) -> tuple[str, bool] | None:
        for case in _cases(record, **wanted):
            return f"{case['ratio']:.2f}x", case["ratio"] >= least
        return None

    return find


def _memory_share(most: float, **wanted: Any) -> Finder:
    """Plaudit's peak memory above the model divided by TRL's."""

    def find(record: dict[str, Any]) -> tuple[str, bool] | None:
        for case in _cases(record, **wanted):
            held = case.get("memory", {})
            if "trl" in held:
                share = held["plaudit"]["above"] / held["trl"]["above"]
                return f"{share:.2f}", share <= most
        return None

    return find


def _utilisation(least: float, **wanted: Any) -> Finder:
    def find(record: dict[str, Any]) -> tuple[str, bool] | None:
        for case in _cases(record, **wanted):
            reached = median([r["utilisation"] for r in case["rounds"]])
            return f"{reached:.3f}", reached >= least
        return None

    return find


def _seconds(record: dict[str, Any], name: str) -> float:
    (case,) = _cases(record, name=name)
    return median(case["seconds"])


def _help(record: dict[str, Any]) -> tuple[str, bool]:
    seconds = _seconds(record, "plaudit --help")
    return f"{seconds:.3f} s", seconds <= 0.35


def _score(record: dict[str, Any]) -> tuple[str, bool]:
    bare = _seconds(record, "import of torch, transformers, peft")
    more = _seconds(record, "plaudit score, one row") - bare
    return f"import + {more:.2f} s", more <= 2


def _flat(record: dict[str, Any]) -> tuple[str, bool] | None:
    for case in _cases(record, rows=1_000_000):
        peak = max(one["peak"] for one in case["new"])
        return size(peak), peak < 2 * 2**30
    return None


def _cost_per_row(record: dict[str, Any]) -> tuple[str, bool] | None:
    each = {
        case["rows"]: median([1 / one["rows_per_second"] for one in case["new"]])
        for case in record["cases"]
    }
    if not {10_000, 1_000_000} <= each.keys():
        return None
    ratio = each[1_000_000] / each[10_000]
    return f"{ratio:.2f}x", ratio <= 1.1


def _overhead(record: dict[str, Any]) -> tuple[str, bool] | None:
    for case in _cases(record, kind="overhead"):
        more = case["p50_overhead"]
        return f"{more:.1f} ms", more <= 5
    return None


TARGETS: tuple[Target, ...] = (
    (
        "training speed, 25M, batch size 8, relative to TRL",
        "5x",
        "training",
        _ratio(5.0, "trl", model="25m", batch=8, order="random"),
    ),
    (
        "peak memory above the model, same run, relative to TRL (lower is better)",
        "0.5",
        "training",
        _memory_share(0.5, model="25m", batch=8, order="random"),
    ),
    (
        "training speed, 25M, batch size 1, relative to TRL",
        "1.6x",
        "training",
        _ratio(1.6, "trl", model="25m", batch=1, order="random"),
    ),
    (
        "training speed, 25M, batch size 8, relative to length-grouped padding",
        "1.9x",
        "training",
        _ratio(1.9, "padded", model="25m", batch=8, order="grouped"),
    ),
    (
        "training speed, 25M, batch size 1, accumulation 4, relative to LLaMA-Factory",
        "2.5x",
        "llama_factory",
        _case_ratio(2.5, model="25m", vocabulary=4096),
    ),
    (
        "scoring 16 responses of 32 tokens to a 512-token prompt, relative to padding",
        "7x",
        "responses",
        _case_ratio(7.0, model="25m", prompt=512, responses=16),
    ),
    (
        "utilisation in training, 110M",
        "0.75",
        "utilisation",
        _utilisation(0.75, model="110m", kind="training"),
    ),
    (
        "utilisation in scoring, 110M",
        "0.87",
        "utilisation",
        _utilisation(0.87, model="110m", kind="scoring"),
    ),
    ("`plaudit --help`", "0.35 s", "start_up", _help),
    ("`plaudit score` of one row, cold start", "import + 2 s", "start_up", _score),
    ("peak memory for 10^6 rows", "2 GiB", "data_path", _flat),
    ("cost per row at 10^6 rows, relative to 10^4 rows", "1.1x", "data_path", _cost_per_row),
    (
        "serving throughput, 64 clients, relative to scoring the file",
        "0.9x",
        "serving",
        _case_ratio(0.9, kind="throughput"),
    ),
    ("latency overhead of a single request, p50", "5 ms", "serving", _overhead),
    (
        "serving 16 responses per request, relative to one pass per response",
        "5x",
        "serving",
        _case_ratio(5.0, kind="sixteen"),
    ),
)


SUMMARIES: dict[str, Callable[[], Shown]] = {
    "headline": headline,
    "targets": targets,
    "costs": costs,
}


def render(page: str) -> str:
    """The page with every slot filled from the results."""
    return SLOT.sub(lambda slot: f"{slot[1]}\n{block(slot[2])}\n{slot[3]}", page)


def draw_all() -> None:
    """The plots of every question that was measured and has one."""
    for path in sorted(RESULTS.glob("*/results.json")):
        module = script(path.parent.name)
        if "draw" in vars(module):
            module.draw(json.loads(path.read_text(encoding="utf-8")), path.parent)


def main() -> None:
    """Write the pages, or report the one that is not up to date."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--check", action="store_true", help="write nothing")
    made.add_argument("--plots", action="store_true", help="draw the plots of all results anew")
    arguments = made.parse_args()
    if arguments.plots:
        draw_all()
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = render(old)
        if arguments.check and new != old:
            sys.exit(f"{page.name} is not up to date; run python -m benchmarks.tables")
        if not arguments.check:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
