"""``plaudit pull REPO --out DIR``: download a reward model from the Hub."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options


def pull(
    repo: Annotated[str, typer.Argument(help="A Hub id: owner/name.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    revision: options.Revision = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was done on stdout.")] = False,
) -> None:
    """Download a reward model from the Hub: safetensors, no pickles, no code."""
    from plaudit.cli.printing import file_lines, quiet_console
    from plaudit.interop.hub import pull as run

    console = quiet_console()
    with console.status("downloading"):
        done = run(repo, out, revision=revision)
    if json:
        print(json_module.dumps(asdict(done)))
    lines = file_lines(done.files, done.left, left="left there")
    lines.append(f"Written to {out} (commit {done.commit})")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
