"""``plaudit push FOLDER REPO``: upload a reward model to the Hub."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options


def push(
    folder: Annotated[Path, typer.Argument(help="A run folder or an export.")],
    repo: Annotated[str, typer.Argument(help="Where to: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new one private.")] = False,
    revision: options.Revision = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Upload these too: a pattern, as predictions.parquet."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete weight files there that are not here.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be uploaded, and upload nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was done on stdout.")] = False,
) -> None:
    """Upload a reward model to the Hub: its head and its card are looked at first."""
    from plaudit.cli.printing import file_lines, quiet_console
    from plaudit.interop.hub import push as run

    console = quiet_console()
    with console.status("looking at the folder" if dry_run else "uploading"):
        done = run(
            folder,
            repo,
            private=private,
            revision=revision,
            include=include or (),
            replace=replace,
            dry_run=dry_run,
        )
    if json:
        print(json_module.dumps(asdict(done)))
    lines = file_lines(done.files, done.left, left="left here")
    lines += [f"  note: {note}" for note in done.notes]
    lines.append(
        f"Dry run: nothing was uploaded to {repo}" if dry_run else f"Uploaded to {done.url}"
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
