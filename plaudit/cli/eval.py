"""``plaudit eval MODEL DATA…``: measure a saved reward model."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli import options
from plaudit.cli.printing import unread_lines
from plaudit.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

    from plaudit.recipe.schema import Source


def evaluate(
    model: options.Model,
    data: Annotated[
        list[str] | None, typer.Argument(help="Files or Hub ids of labelled comparisons.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write metrics, predictions, mistakes, plots and a report here."),
    ] = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    train_data: Annotated[
        list[str] | None,
        typer.Option(help="Fit the bag-of-words baseline on this (the model's training data)."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PATH]",
            help="Run a benchmark suite, from the Hub or a local folder: rewardbench, "
            "rewardbench-2, rm-bench, llmbar, hhh, or pairs for any files.",
        ),
    ] = None,
    best_of: Annotated[
        bool,
        typer.Option(
            "--best-of", help="Best-of-N: what the model's favourites are worth, by the grades."
        ),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Exit with 1 if significantly worse than this model or evaluation, pair by pair."
        ),
    ] = None,
    gate_metric: Annotated[
        list[str] | None,
        typer.Option(help="What --baseline judges: accuracy, nll (log loss). Default: both."),
    ] = None,
    gate_level: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="The p-value below which worse is worse.")
    ] = 0.05,
    behaviour: Annotated[
        int,
        typer.Option(
            min=0,
            help="Perturbation tests: perturb so many good responses in up to 37 ways each and "
            "score them too, such as 200.",
        ),
    ] = 0,
    limit: options.Limit = None,
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show all findings and tables.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print metrics.json on stdout.")] = False,
) -> None:
    """Measure a reward model: accuracy, calibration, bias, behaviour, slices, benchmarks."""
    from plaudit.cli.printing import open_model
    from plaudit.data.load import with_known_columns
    from plaudit.evaluation.regression import Gate, parse_metrics
    from plaudit.evaluation.suites.request import parse_request
    from plaudit.recipe.schema import Source
    from plaudit.report.best_of import write_best_of_plot

    if not data and not suite:
        raise DataError("nothing to evaluate on; name files or Hub ids, or a --suite.")
    if not data and (limit is not None or columns or format_ is not None):
        raise DataError(
            "--limit, --columns and --format are for DATA; a suite reads all rows of its own files,"
            " so remove them or name data."
        )
    mapped = options.parse_columns(columns)
    gate = Gate(metrics=parse_metrics(gate_metric or ()), level=gate_level)
    requests = [parse_request(asked) for asked in suite or ()]
    sources = [
        Source(path=path, format=format_, columns=mapped, max_rows=limit) for path in data or ()
    ]
    baseline_sources = [Source(path=path, columns=mapped) for path in train_data or ()]
    check_places([*sources, *baseline_sources], out, baseline)
    baseline_sources = [with_known_columns(source) for source in baseline_sources]
    console, reward_model = open_model(model, base=base, trust_remote_code=trust_remote_code)
    from plaudit.compare_models import add_gate
    from plaudit.evaluate_model import add_best_of, add_suites, without_data, write_evaluation
    from plaudit.evaluate_model import evaluate as run

    if sources:
        result = run(
            reward_model,
            sources,
            baseline_data=baseline_sources,
            behaviour=behaviour,
            console=console,
        )
    else:
        result = without_data(reward_model)
    if requests:
        result = add_suites(result, reward_model, requests, console)
    if best_of:
        result = add_best_of(result)
    if baseline is not None:
        result = add_gate(
            result,
            baseline,
            requests,
            gate,
            options={"base": base, "trust_remote_code": trust_remote_code},
            console=console,
        )
    if out is not None:
        write_evaluation(out, result)
        if best_of:
            write_best_of_plot(result.metrics["best_of"], out / "best_of.png")
    if json:
        print(json_module.dumps(result.metrics))
    show(console, result.metrics, out, verbose=verbose)
    if baseline is not None and not result.metrics["gate"]["passed"]:
        raise typer.Exit(1)


def show(console: Console, metrics: Mapping[str, Any], out: Path | None, *, verbose: bool) -> None:
    """The evaluation, its suites and its gate, and where they were written."""
    from plaudit.cli.printing import show_evaluation, show_summary

    others = unread_lines(metrics["data"]["sources"] if metrics["data"] else ())
    for facts in metrics.get("suites", {}).values():
        others += suite_lines(facts)
        if "unread" in facts:
            others += unread_lines([{"name": facts["title"], "unread": facts["unread"]}])
    if "best_of" in metrics:
        others += best_of_lines(metrics["best_of"])
    if "gate" in metrics:
        others.append(metrics["gate"]["sentence"])
    if metrics["eval"] and not verbose:
        show_summary(console, metrics["eval"], skipped=skipped_of(metrics["data"]), others=others)
    else:
        if metrics["eval"]:
            show_evaluation(console, metrics["eval"], skipped=skipped_of(metrics["data"]))
        for line in others:
            console.print(line, highlight=False, markup=False)
    if out is not None:
        console.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)


def skipped_of(data: Mapping[str, Any]) -> str:
    """How many of the rows were skipped, by reason, as a remark behind a count."""
    reasons = data["dropped"]
    if not reasons:
        return ""
    counts = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    return f" ({sum(reasons.values()):,} of {data['rows']:,} rows skipped: {counts})"


def best_of_lines(block: Mapping[str, Any]) -> list[str]:
    """Gold, oracle and proxy by n, powers of two and the largest; the verdict in words."""
    lines = [f"best of n:{'n':>6}{'KL <=':>8}{'gold':>10}{'oracle':>10}{'proxy':>10}"]
    lines += [
        f"{point['n']:>16}{point['kl']:>8.3f}{point['gold']:>10.4f}"
        f"{point['oracle']:>10.4f}{point['proxy']:>10.4f}"
        for point in block["curve"]
        if point["n"] & (point["n"] - 1) == 0 or point["n"] == block["largest_n"]
    ]
    return [*lines, f"  {block['sentence']}"]


def suite_lines(facts: Mapping[str, Any]) -> list[str]:
    """A suite's numbers as its leaderboard prints them, with intervals, and remarks."""
    lines = [f"{facts['title']}: {facts['used']:,} of {facts['rows']:,} rows (percent, 95%)"]
    for score in facts["scores"]:
        ends = score["ci95"]
        interval = "" if ends is None else f"  [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
        lines.append(f"  {score['name']:<28} {score['shown']:>6}{interval}")
    return lines + [f"  {remark}" for remark in facts["remarks"]]


def check_places(sources: Sequence[Source], out: Path | None, baseline: Path | None) -> None:
    """Whether data and baseline are there and results can be written, before a model is loaded.

    Raises:
        PlauditError: one is missing, or ``out`` exists or cannot be made.
    """
    from plaudit.data.load import check_source
    from plaudit.storage.atomic import check_new_folder

    for source in sources:
        check_source(source)
    if out is not None:
        check_new_folder(out)
    if baseline is not None:
        check_candidate(baseline)


def check_candidate(baseline: Path) -> None:
    """Say before anything is scored that the baseline is not there.

    Raises:
        DataError: it is no model and no recorded evaluation.
    """
    from plaudit.compare_models import is_candidate

    if not is_candidate(str(baseline)):
        raise DataError(
            f"--baseline {baseline} is no run folder, checkpoint, model folder, evaluation folder "
            "or predictions.parquet."
        )
