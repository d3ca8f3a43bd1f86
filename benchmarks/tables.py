"""Write the tables of the docs from the recorded results; numbers are never typed.

    python -m benchmarks.tables [--check]

Between ``<!-- table: NAME -->`` and ``<!-- end -->`` stands what this command put there: the table
of ``benchmarks/results/NAME/results.json`` with its machine and command, or that there is none yet.
``targets`` is the table of what was aimed for. ``--check`` writes nothing and fails where the page
is not up to date.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from benchmarks.common.machine import REPOSITORY
from benchmarks.common.results import RESULTS, Shown, median, size

PAGES = (
    REPOSITORY / "docs" / "performance.md",
    REPOSITORY / "docs" / "how-to" / "audit-your-data.md",
)
KINDS = ("speed", "quality", "studies", "gpu")
NONE_YET = "Not measured yet.\n"
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
    if question == "targets":
        return targets().markdown()
    record = read(question)
    if record is None:
        return NONE_YET
    shown: Shown = script(question).table(record)
    machine = record["machine"]
    versions = machine["versions"]
    named = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "transformers", "peft", "trl")
        if versions.get(name)
    )
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    return (
        f"{shown.markdown()}\n{where}, {machine['memory_gib']:g} GiB; {named}; "
        f"plaudit at {machine['commit']}, {record['started'][:10]}; `{record['command']}`.\n"
    )


def targets() -> Shown:
    """Every aim, what was measured, and whether it was met."""
    rows: list[tuple[str, ...]] = []
    for what, aim, question, find in TARGETS:
        record = read(question)
        found = None if record is None else find(record)
        if found is None:
            rows.append((what, aim, "not measured yet", ""))
        else:
            measured, met = found
            rows.append((what, aim, measured, "yes" if met else "**no**"))
    return Shown(("what", "aim", "measured", "met"), tuple(rows))


Finder = Callable[[dict[str, Any]], tuple[str, bool] | None]


def _cases(record: dict[str, Any], **wanted: Any) -> Iterator[dict[str, Any]]:
    return (c for c in record["cases"] if all(c.get(k) == v for k, v in wanted.items()))


def _ratio(least: float, side: str, **wanted: Any) -> Finder:
    """How many times faster plaudit is than a side of a training case."""

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
    """Plaudit's peak memory above the model as a share of TRL's."""

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


TARGETS: tuple[tuple[str, str, str, Finder], ...] = (
    (
        "training, 25M, batch 8, against TRL",
        "5x",
        "training",
        _ratio(5.0, "trl", model="25m", batch=8, order="random"),
    ),
    (
        "its peak memory above the model, as a share of TRL's",
        "0.5",
        "training",
        _memory_share(0.5, model="25m", batch=8, order="random"),
    ),
    (
        "training, 25M, batch 1, against TRL",
        "1.6x",
        "training",
        _ratio(1.6, "trl", model="25m", batch=1, order="random"),
    ),
    (
        "training, 25M, batch 8, against length-grouped padding",
        "1.9x",
        "training",
        _ratio(1.9, "padded", model="25m", batch=8, order="grouped"),
    ),
    (
        "training, 25M, against LLaMA-Factory, batch 1, accumulation 4",
        "2.5x",
        "llama_factory",
        _case_ratio(2.5, model="25m", vocabulary=4096),
    ),
    (
        "16 responses of 32 tokens to a prompt of 512",
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
    ("`plaudit score` of one row, cold", "import + 2 s", "start_up", _score),
    ("memory for 10^6 rows", "2 GiB", "data_path", _flat),
    ("cost of a row at 10^6 against 10^4", "1.1x", "data_path", _cost_per_row),
    (
        "served to 64 clients, against scoring the file",
        "0.9x",
        "serving",
        _case_ratio(0.9, kind="throughput"),
    ),
    ("a lone request beyond the bare call, p50", "5 ms", "serving", _overhead),
    (
        "16 responses a prompt served, against each alone",
        "5x",
        "serving",
        _case_ratio(5.0, kind="sixteen"),
    ),
)


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
    """Write the page, or say that it is not up to date."""
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
