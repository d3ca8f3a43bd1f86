"""``plaudit best-of MODEL DATA``: the response with the highest reward of every row."""

from __future__ import annotations

from typing import Annotated

import typer

from plaudit.cli import options


def best_of(
    model: options.Model,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="File, folder, Hub id or - for stdin.")
    ],
    out: options.ScoresOut = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    column: Annotated[str, typer.Option(help="The column for the pick, counted from 0.")] = "best",
    limit: options.Limit = None,
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.CountsAsJson = False,
) -> None:
    """Pick the response with the highest reward of every row; all rewards are kept beside it."""
    from plaudit.cli.score import write_scores

    write_scores(
        model,
        data,
        out,
        format_=format_,
        columns=columns,
        limit=limit,
        base=base,
        trust_remote_code=trust_remote_code,
        json=json,
        picks=column,
    )
