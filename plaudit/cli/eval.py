"""``plaudit eval MODEL DATA…``: measure a saved reward model."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[list[str], typer.Argument(help="Files or Hub ids of labelled comparisons.")],
    out: Annotated[
        Path | None, typer.Option(help="Write metrics.json and predictions.parquet here.")
    ] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Name the data's format.")] = None,
    train_data: Annotated[
        list[str] | None,
        typer.Option(help="Fit the bag-of-words baseline on this (the model's training data)."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Where an adapter's base is now.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python that comes with the model.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print metrics.json on stdout.")] = False,
) -> None:
    """Measure a reward model on data: accuracy with its interval, calibration, baselines."""
    from plaudit.cli.screen import evaluation_lines, hush_weight_loading, quiet_console
    from plaudit.recipe import Source

    console = quiet_console()
    with console.status("starting"):
        hush_weight_loading()
        from plaudit.evaluate.run import evaluate as run
        from plaudit.serve.scorer import load
    with console.status("loading the model"):
        reward_model = load(model, base=base, trust_remote_code=trust_remote_code)
    result = run(
        reward_model,
        [Source(path=path, format=format_) for path in data],
        out=out,
        baseline_data=[Source(path=path) for path in train_data or ()],
        console=console,
    )
    if json:
        print(json_module.dumps(result.metrics))
    for line in evaluation_lines(result.metrics["eval"]):
        console.print(line, highlight=False, markup=False)
    dropped = result.metrics["data"]["dropped"]
    if dropped:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items())
        console.print(f"  dropped: {counts}", highlight=False, markup=False)
    if out is not None:
        console.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)
