"""``plaudit eval MODEL DATA…``: measure a saved reward model."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options


def evaluate(
    model: options.Model,
    data: Annotated[list[str], typer.Argument(help="Files or Hub ids of labelled comparisons.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Write metrics.json, predictions.parquet and mistakes.jsonl here."),
    ] = None,
    format_: options.Format = None,
    train_data: Annotated[
        list[str] | None,
        typer.Option(help="Fit the bag-of-words baseline on this (the model's training data)."),
    ] = None,
    behaviour: Annotated[
        int,
        typer.Option(
            min=0,
            help="Alter this many good responses in known ways and score them too; 0 for none.",
        ),
    ] = 200,
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: Annotated[bool, typer.Option("--json", help="Print metrics.json on stdout.")] = False,
) -> None:
    """Measure a reward model on data: accuracy, calibration, bias, behaviour, slices."""
    from plaudit.cli.screen import open_model, show_evaluation
    from plaudit.recipe import Source

    console, reward_model = open_model(model, base=base, trust_remote_code=trust_remote_code)
    from plaudit.evaluate.run import evaluate as run

    result = run(
        reward_model,
        [Source(path=path, format=format_) for path in data],
        out=out,
        baseline_data=[Source(path=path) for path in train_data or ()],
        behaviour=behaviour,
        console=console,
    )
    if json:
        print(json_module.dumps(result.metrics))
    show_evaluation(console, result.metrics["eval"])
    dropped = result.metrics["data"]["dropped"]
    if dropped:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items())
        console.print(f"  dropped: {counts}", highlight=False, markup=False)
    if out is not None:
        console.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)
