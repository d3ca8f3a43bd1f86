"""``plaudit compare A B … DATA…``: which model is really better, judged pair by pair."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli import options
from plaudit.cli.printing import unread_lines
from plaudit.evaluation.compare import p_value

if TYPE_CHECKING:
    from rich.table import Table


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="A B… [DATA]…",
            help="Run folders, checkpoints, evaluation folders or predictions.parquet files, then "
            "labelled data. Without data: the scores recorded in them. One run folder alone: all "
            "its evaluations.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write compare.json and compare.png here.")
    ] = None,
    level: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="A difference needs a p-value below this.")
    ] = 0.05,
    format_: options.Format = None,
    columns: options.Columns = None,
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: Annotated[bool, typer.Option("--json", help="Print compare.json on stdout.")] = False,
) -> None:
    """Compare models or checkpoints on the same pairs: which is really better, and where."""
    from plaudit import __version__
    from plaudit.cli.printing import hush_weight_loading, quiet_console
    from plaudit.compare_models import run_comparison, tell_apart
    from plaudit.recipe.schema import Source
    from plaudit.report.comparison import write_comparison_plot
    from plaudit.storage.atomic import check_new_folder, write_folder

    mapped = options.parse_columns(columns)
    console = quiet_console()
    if out is not None:
        check_new_folder(out)
    candidates, data = tell_apart(arguments)
    if data:
        with console.status("starting"):
            hush_weight_loading()
    compared = run_comparison(
        candidates,
        [Source(path=path, format=format_, columns=mapped) for path in data],
        base=base,
        trust_remote_code=trust_remote_code,
        level=level,
        console=console,
    )
    facts = {"format": 1, "plaudit_version": __version__, **compared}
    if out is not None:
        write_folder(
            out,
            {
                "compare.json": lambda path: path.write_text(
                    json_module.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
                ),
                "compare.png": lambda path: write_comparison_plot(facts, path),
            },
        )
    if json:
        print(json_module.dumps(facts))
    console.print(coverage(facts), highlight=False, markup=False, soft_wrap=True)
    console.print(models_table(facts))
    for line in [*facts["sentences"], *notes(facts)]:
        console.print(line, highlight=False, markup=False)
    if out is not None:
        console.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)


def coverage(facts: Mapping[str, Any]) -> str:
    """How many comparisons all models scored, out of how many, and what became of the others."""
    data, skipped = facts["data"], facts["data"].get("refused", {})
    others = [f"{count:,} rows {reason}" for reason, count in data.get("dropped", {}).items()]
    for name, reasons in skipped.items():
        others += [f"{count:,} {reason} for {name}" for reason, count in reasons.items()]
    if len(skipped) < len(facts["models"]):
        # Recorded scores have no reasons.
        others += [f"{n:,} more in {name} only" for name, n in facts["left_out"].items() if n]
    rows = f" of {data['rows']:,}" if data["scored"] else ""
    why = f" (not compared: {', '.join(others)})" if others else ""
    return f"{facts['comparisons']:,}{rows} comparisons were scored by every model{why}."


def models_table(facts: Mapping[str, Any]) -> Table:
    """Every model with its accuracy and log loss, and p-values against the one that leads."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for heading in ("accuracy [95%]", "p", "log loss [95%]", "p"):
        table.add_column(heading, justify="right")
    for model in facts["models"]:
        table.add_row(
            Text(model["name"]),
            _ended(model["accuracy"], model["accuracy_ci95"]),
            against_leader(facts, "accuracy", model["name"]),
            _ended(model["nll"], model["nll_ci95"]),
            against_leader(facts, "nll", model["name"]),
        )
    return table


def _ended(value: float, ends: tuple[float, float] | None) -> str:
    # Brackets would be read as markup.
    return f"{value:.4f}" if ends is None else f"{value:.4f} \\[{ends[0]:.4f}, {ends[1]:.4f}]"


def against_leader(facts: Mapping[str, Any], metric: str, name: str) -> str:
    """The corrected p-value of a model against the leader, which itself is marked ``best``."""
    leader = facts["best"][metric]["name"]
    if name == leader:
        return "best"
    (contest,) = (c for c in facts["contests"] if {c["a"], c["b"]} == {name, leader})
    p = contest[metric]["p_holm"]
    return "–" if p is None else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def notes(facts: Mapping[str, Any]) -> list[str]:
    """What else must be known: agreement of two, slices that differ, whose data."""
    lines = []
    if len(facts["contests"]) == 1:
        found = facts["contests"][0]["agreement"]
        lines.append(
            f"Both are right about {found['both_right']:,} pairs and wrong about "
            f"{found['both_wrong']:,}; {facts['contests'][0]['a']} alone is right about "
            f"{found['only_a_right']:,}, {facts['contests'][0]['b']} alone about "
            f"{found['only_b_right']:,} (kappa {_short(found['kappa'])}, correlation of reward "
            f"differences {_short(found['pearson'])})."
        )
    lines += slice_lines(facts)
    lines += unread_lines(facts["data"].get("sources") or ())
    if facts["data"]["chose_checkpoint"]:
        lines.append(
            "These data chose the checkpoints, which favours the kept ones slightly; name data "
            "that no run has seen to be sure."
        )
    return lines


def slice_lines(facts: Mapping[str, Any]) -> list[str]:
    """Slices that differ beyond noise: all of two models, else how many there are."""
    differ = [
        entry
        for entry in facts["slices"]
        if entry["p_holm"] is not None and entry["p_holm"] < facts["level"]
    ]
    if differ and len(facts["models"]) > 2:
        names = sorted({f"{entry['column']} {entry['value']}" for entry in differ})
        leader, tests = facts["best"]["nll"]["name"], len(facts["slices"])
        line = f"Slices where {leader} and another model differ in accuracy: {', '.join(names)} "
        return [line + f"({len(differ)} of {tests} tests, corrected)."]
    return [
        f"  {entry['column']} {entry['value']}: {entry['a']} {entry['accuracy_a']:.4f}, "
        f"{entry['b']} {entry['accuracy_b']:.4f} on {entry['pairs']:,} pairs, corrected "
        f"{p_value(entry['p_holm'])}"
        for entry in differ
    ]


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
