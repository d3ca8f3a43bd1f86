"""``plaudit best-of MODEL IN --out OUT``: the model's favourite response of every row."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options


def best_of(
    model: options.Model,
    data: Annotated[str, typer.Argument(metavar="IN", help="A file, folder or Hub id.")],
    out: Annotated[Path, typer.Option(help="Where to write: .jsonl, .jsonl.gz or .parquet.")],
    format_: options.Format = None,
    column: Annotated[str, typer.Option(help="The column for the pick, counted from 0.")] = "best",
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts on stdout.")] = False,
) -> None:
    """Pick the response with the highest reward of every row; all rewards are kept beside it."""
    from plaudit.cli.score import score_to_file, scored_line
    from plaudit.cli.screen import open_model
    from plaudit.recipe import Source

    console, reward_model = open_model(model, base=base, trust_remote_code=trust_remote_code)
    scored = score_to_file(
        console, reward_model, model, Source(path=data, format=format_), out, picks=column
    )
    if json:
        print(json_module.dumps(asdict(scored)))
    console.print(scored_line(scored, out), highlight=False, markup=False, soft_wrap=True)
