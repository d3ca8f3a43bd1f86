"""``plaudit compare A B … DATA…``: paired tests of reward models on the same pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import options
from plaudit.cli.help import OUTPUT
from plaudit.evaluation.compare import p_value
from plaudit.evaluation.numbers import counted, metric, probability
from plaudit.evaluation.schema import Metric

if TYPE_CHECKING:
    from rich.table import Table

    from plaudit.compare_models import ComparisonResult


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|DATA",
            help="Run folders, checkpoints, evaluation folders or predictions.parquet files, then "
            "labelled data. Without data, recorded scores are compared; one run folder alone "
            "compares its evaluations during training.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="Write comparison.json and comparison.png to this folder.",
        ),
    ] = None,
    alpha: options.Alpha = 0.05,
    format_: options.Format = None,
    columns: options.Columns = None,
    base: options.Base = None,
    dtype: options.Precision = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=OUTPUT, help="Print comparison.json on stdout."),
    ] = False,
) -> None:
    """Compare reward models on the same pairs.

    Accuracy and log loss are compared with paired tests, corrected for their number (Holm).

    Examples:
      plaudit compare runs/first runs/second held-out.jsonl
      plaudit compare runs/first
    """
    from plaudit import compare_models
    from plaudit.cli.printing import print_lines, quiet_console, silence_weight_loading
    from plaudit.recipe.schema import Source

    mapped = options.parse_columns(columns)
    console = quiet_console()
    candidates, data = compare_models.split_arguments(arguments)
    if data:
        # Recorded scores are compared without waiting for transformers.
        with console.status("starting"):
            silence_weight_loading()
    result = compare_models.compare(
        candidates,
        [Source(path=path, format=format_, columns=mapped) for path in data],
        compare_models.CompareOptions(
            out=out, alpha=alpha, base=base, dtype=dtype, trust_remote_code=trust_remote_code
        ),
        console=console,
    )
    if json:
        options.print_json(result)
    print_lines(console, [coverage(result)])
    console.print(models_table(result))
    for line in [*result.sentences, *notes(result)]:
        console.print(line, highlight=False, markup=False)
    if out is not None:
        print_lines(console, [f"Written to {out}"])


def coverage(result: ComparisonResult) -> str:
    """How many comparisons all models scored, of how many, and what happened to the others."""
    data = result.data
    others = []
    if data.use is not None:
        others += [
            f"{counted(count, 'row')} {reason}" for reason, count in data.use.dropped.items()
        ]
    for name, reasons in data.skipped.items():
        others += [f"{count:,} {reason} for {name}" for reason, count in reasons.items()]
    if len(data.skipped) < len(result.models):
        # Recorded scores have no reasons.
        others += [f"{n:,} only in {name}" for name, n in result.unmatched.items() if n]
    rows = "" if data.use is None else f" of {data.use.rows:,}"
    why = f" (not compared: {', '.join(others)})" if others else ""
    return f"{result.comparisons:,}{rows} comparisons were scored by every model{why}."


def models_table(result: ComparisonResult) -> Table:
    """Every model with its accuracy and log loss, and p-values against the best one."""
    from rich.text import Text

    from plaudit.cli.printing import results_table, with_interval, wrapping

    accuracy, nll = wrapping("accuracy (95% CI)"), wrapping("log loss (95% CI)")
    table = results_table("model", accuracy, "p", nll, "p")
    for model in result.models:
        table.add_row(
            Text(model.name),
            Text(with_interval(model.accuracy, model.accuracy_ci95)),
            against_best(result, "accuracy", model.name),
            Text(with_interval(model.nll, model.nll_ci95)),
            against_best(result, "nll", model.name),
        )
    return table


def against_best(result: ComparisonResult, by: Metric, name: str) -> str:
    """The corrected p-value of a model against the best one, which itself is marked ``best``."""
    best = result.best.by(by).name
    if name == best:
        return "best"
    (pair,) = (pair for pair in result.model_pairs if {pair.a, pair.b} == {name, best})
    return probability(pair.test(by).p_holm)


def notes(result: ComparisonResult) -> list[str]:
    """Agreement of two models, slices that differ, ignored columns, and what chose the data."""
    lines = []
    if len(result.model_pairs) == 1:
        (pair,) = result.model_pairs
        agreement = pair.agreement
        lines.append(
            f"Pairs ranked correctly: {agreement.both_right:,} by both, "
            f"{agreement.only_a_right:,} only by {pair.a}, {agreement.only_b_right:,} only by "
            f"{pair.b}, {agreement.both_wrong:,} by neither (Cohen's kappa "
            f"{metric(agreement.kappa)}, correlation of reward differences "
            f"{metric(agreement.pearson)})."
        )
    lines += slice_lines(result)
    if result.data.use is not None:
        lines += result.data.use.unread_lines
    if result.data.chose_checkpoint:
        lines.append(
            "These data chose the best checkpoints, which biases their results upward. Compare on "
            "data that no run has seen."
        )
    return lines


def slice_lines(result: ComparisonResult) -> list[str]:
    """Slices that differ significantly: all of two models, else how many there are."""
    differ = [
        entry for entry in result.slices if entry.p_holm is not None and entry.p_holm < result.alpha
    ]
    if differ and len(result.models) > 2:
        names = sorted({f"{entry.column} {entry.value}" for entry in differ})
        best = result.best.nll.name
        line = f"Slices where {best} and another model differ in accuracy: {', '.join(names)} "
        return [line + f"({len(differ)} of {len(result.slices)} tests, corrected)."]
    return [
        f"  {entry.column} {entry.value}: {entry.a} {metric(entry.accuracy_a)}, "
        f"{entry.b} {metric(entry.accuracy_b)} on {counted(entry.pairs, 'pair')}, corrected "
        f"{p_value(entry.p_holm)}"
        for entry in differ
    ]
