"""``plaudit score MODEL IN --out OUT``: a reward per response for any file."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options


def score(
    model: options.Model,
    data: Annotated[str, typer.Argument(metavar="IN", help="A file, folder or Hub id.")],
    out: Annotated[Path, typer.Option(help="Where to write: .jsonl, .jsonl.gz or .parquet.")],
    format_: options.Format = None,
    column: Annotated[str, typer.Option(help="The column to add.")] = "rewards",
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts on stdout.")] = False,
) -> None:
    """Score every response of a file, in its order; run again after a stop to go on."""
    from rich.progress import Progress

    from plaudit.cli.screen import open_model
    from plaudit.recipe import Source

    console, reward_model = open_model(model, base=base, trust_remote_code=trust_remote_code)
    from plaudit.serve.files import score_file

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("scoring", total=None)
        scored = score_file(
            reward_model,
            model,
            Source(path=data, format=format_),
            out,
            column=column,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if json:
        print(json_module.dumps(asdict(scored)))
    refused = "".join(f"; {reason} {count:,}" for reason, count in scored.refused.items())
    gone_on = f" ({scored.resumed:,} of them by an earlier call)" if scored.resumed else ""
    console.print(
        f"{scored.scored:,} of {scored.rows:,} rows scored{gone_on}{refused}; written to {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
