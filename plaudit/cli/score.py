"""``plaudit score MODEL IN --out OUT``: a reward per response for any file."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def score(
    model: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[str, typer.Argument(metavar="IN", help="A file, folder or Hub id.")],
    out: Annotated[Path, typer.Option(help="Where to write: .jsonl, .jsonl.gz or .parquet.")],
    format_: Annotated[str | None, typer.Option("--format", help="Name the data's format.")] = None,
    column: Annotated[str, typer.Option(help="The column to add.")] = "rewards",
    base: Annotated[str | None, typer.Option(help="Where an adapter's base is now.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python that comes with the model.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts on stdout.")] = False,
) -> None:
    """Score every response of a file, in its order; run again after a stop to go on."""
    from rich.progress import Progress

    from plaudit.cli.screen import hush_weight_loading, quiet_console
    from plaudit.recipe import Source

    console = quiet_console()
    with console.status("starting"):
        hush_weight_loading()
        from plaudit.serve.files import score_file
        from plaudit.serve.scorer import load
    with console.status("loading the model"):
        reward_model = load(model, base=base, trust_remote_code=trust_remote_code)
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
