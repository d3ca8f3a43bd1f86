"""``plaudit score MODEL IN --out OUT``: a reward per response for any file."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import options

if TYPE_CHECKING:
    from plaudit.serve.files import ScoredFile


def score(
    model: options.Model,
    data: options.ToScore,
    out: options.RowsOut,
    format_: options.Format = None,
    columns: options.Columns = None,
    column: Annotated[str, typer.Option(help="The column to add.")] = "rewards",
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.CountsAsJson = False,
) -> None:
    """Score every response of a file, in its order; run again after a stop to go on."""
    write_scores(
        model,
        data,
        out,
        format_=format_,
        columns=columns,
        base=base,
        trust_remote_code=trust_remote_code,
        json=json,
        column=column,
    )


def write_scores(
    model: Path,
    data: str,
    out: Path,
    *,
    format_: str | None,
    columns: list[str] | None,
    base: str | None,
    trust_remote_code: bool,
    json: bool,
    column: str = "rewards",
    picks: str | None = None,
) -> None:
    """Score a file under a progress bar and say what became of its rows."""
    from rich.progress import Progress

    from plaudit.cli.screen import open_model
    from plaudit.recipe import Source
    from plaudit.serve.files import score_file

    source = Source(path=data, format=format_, columns=options.parse_columns(columns))
    console, reward_model = open_model(model, base=base, trust_remote_code=trust_remote_code)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("scoring", total=None)
        scored = score_file(
            reward_model,
            model,
            source,
            out,
            column=column,
            picks=picks,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if json:
        print(json_module.dumps(asdict(scored)))
    console.print(scored_line(scored, out), highlight=False, markup=False, soft_wrap=True)
    for line in scored.unread.lines(data):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def scored_line(scored: ScoredFile, out: Path) -> str:
    """What became of the rows, in one line."""
    refused = "".join(f"; {reason} {count:,}" for reason, count in scored.refused.items())
    gone_on = f" ({scored.resumed:,} of them by an earlier call)" if scored.resumed else ""
    return f"{scored.scored:,} of {scored.rows:,} rows scored{gone_on}{refused}; written to {out}"
