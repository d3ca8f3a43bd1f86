"""``plaudit eval MODEL DATA…``: measure a saved reward model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import options
from plaudit.cli.help import DATA, EVALUATION, OUTPUT
from plaudit.errors import DataError
from plaudit.evaluation.numbers import counted, percent_interval

if TYPE_CHECKING:
    from rich.console import Console

    from plaudit.evaluate_model import Evaluation
    from plaudit.evaluation.schema import BestOf, DataUse, SuiteResult


def evaluate(
    model: options.Model,
    data: options.LabelledData = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="Write metrics, predictions, mistakes, plots and a report to this folder.",
        ),
    ] = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    train_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            rich_help_panel=DATA,
            help="The model's training data, to fit the bag-of-words baseline on.",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PATH]",
            rich_help_panel=EVALUATION,
            help="Run a benchmark suite, from the Hub or a local folder: rewardbench, "
            "rewardbench-2, rm-bench, llmbar, hhh, or pairs for any files.",
        ),
    ] = None,
    best_of: Annotated[
        bool,
        typer.Option(
            "--best-of",
            rich_help_panel=EVALUATION,
            help="Measure best-of-N: the grade of the response with the highest reward.",
        ),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=EVALUATION,
            help="Regression check: exit with 1 if significantly worse than this model or "
            "evaluation on the same pairs.",
        ),
    ] = None,
    regression_metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC",
            rich_help_panel=EVALUATION,
            help="Metric that --baseline tests: accuracy or nll (log loss). Default: both.",
        ),
    ] = None,
    alpha: options.Alpha = 0.05,
    perturbation_tests: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            rich_help_panel=EVALUATION,
            help="Perturbation tests: perturb N good responses, such as 200, in up to 37 ways each "
            "and score the results.",
        ),
    ] = 0,
    limit: options.Limit = None,
    base: options.Base = None,
    dtype: options.Precision = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", rich_help_panel=OUTPUT, help="Print all findings and tables."),
    ] = False,
    json: options.MetricsAsJson = False,
) -> None:
    """Evaluate a reward model on comparisons and benchmarks.

    Measures accuracy, calibration, feature bias, slices and, when asked, robustness, best-of-N and
    benchmark suites.

    Examples:
      plaudit eval runs/first held-out.jsonl --out evals/first
      plaudit eval runs/first --suite rewardbench-2
      plaudit eval runs/second held-out.jsonl --baseline runs/first
    """
    from plaudit import evaluate_model
    from plaudit.cli.printing import quiet_console, silence_weight_loading
    from plaudit.evaluation.regression import RegressionOptions, parse_metrics
    from plaudit.evaluation.suites.run import parse_request

    if not data and (limit is not None or columns or format_ is not None):
        raise DataError(
            "--limit, --columns and --format apply to DATA, not to suites; pass DATA, or remove"
            " them."
        )
    sources = [options.source(path, format_, columns, limit) for path in data or ()]
    request = evaluate_model.EvaluateOptions(
        out=out,
        train_data=tuple(options.source(path, None, columns) for path in train_data or ()),
        suites=tuple(map(parse_request, suite or ())),
        perturbation_tests=perturbation_tests,
        best_of=best_of,
        baseline=baseline,
        regression=RegressionOptions(metrics=parse_metrics(regression_metric or ()), alpha=alpha),
        base=base,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    # Before transformers is imported, which takes seconds.
    evaluate_model.check_evaluation(sources, request)
    console = quiet_console()
    with console.status("starting"):
        silence_weight_loading()
    result = evaluate_model.evaluate(model, sources, request, console=console)
    if json:
        options.print_json(result.metrics)
    show(console, result, out, verbose=verbose)
    check = result.metrics.regression_check
    if check is not None and not check.passed:
        raise typer.Exit(1)


def show(console: Console, result: Evaluation, out: Path | None, *, verbose: bool) -> None:
    """The evaluation, its suites and its regression check, and where they were written."""
    from plaudit.cli.printing import print_lines, show_evaluation
    from plaudit.cli.summary import show_evaluation_summary

    metrics = result.metrics
    data, block = metrics.data, metrics.eval
    used = [] if data is None else data_lines(data)
    last = [line for suite in (metrics.suites or {}).values() for line in suite_lines(suite)]
    if metrics.best_of is not None:
        last += best_of_lines(metrics.best_of)
    if metrics.regression_check is not None:
        last.append(metrics.regression_check.sentence)
    if out is not None:
        last.append(f"Written to {out}: report.html, metrics.json, predictions.parquet")
    if block is None:
        print_lines(console, last)
        return
    if verbose:
        show_evaluation(console, block)
    name = block.dataset
    if data is not None:
        name = ", ".join(dict.fromkeys(source.name for source in data.sources))
    rest = None if verbose else "with --verbose" if out is None else "in the report"
    show_evaluation_summary(console, name, block, lines=used, last=last, rest=rest)


def data_lines(data: DataUse) -> list[str]:
    """The rows that were skipped, and the columns that were not read."""
    skipped = [f"Data: {counted(data.used, 'row')} used{data.skipped}"] if data.skipped else []
    return [*skipped, *data.unread_lines]


def best_of_lines(result: BestOf) -> list[str]:
    """Gold, oracle and proxy by n, powers of two and the largest; then the sentence."""
    lines = [f"best-of-N:{'n':>6}{'KL <=':>8}{'gold':>10}{'oracle':>10}{'proxy':>10}"]
    lines += [
        f"{point.n:>16}{point.kl:>8.3f}{point.gold:>10.4f}{point.oracle:>10.4f}{point.proxy:>10.4f}"
        for point in result.main_points
    ]
    return [*lines, f"  {result.sentence}"]


def suite_lines(result: SuiteResult) -> list[str]:
    """A suite's numbers as its leaderboard prints them, with intervals, and remarks."""
    lines = [f"{result.title}: {result.used:,} of {result.rows:,} rows used (percent, 95% CI)"]
    for score in result.scores:
        ends = score.ci95
        interval = "" if ends is None else f"  ({percent_interval(ends)})"
        lines.append(f"  {score.name:<28} {score.shown:>6}{interval}")
    lines += [f"  {remark}" for remark in result.remarks]
    unread = None if result.unread is None else result.unread.sentence(result.title)
    return lines if unread is None else [*lines, unread]
