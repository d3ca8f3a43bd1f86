"""``plaudit push`` and ``plaudit pull``: reward models to and from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options


def push(
    folder: Annotated[Path, typer.Argument(help="Run folder or export.")],
    repo: Annotated[str, typer.Argument(help="The repository: owner/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    revision: options.Revision = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Upload these too: a pattern such as predictions.parquet; repeatable."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Delete weight files of the repository not in FOLDER."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be uploaded; upload nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result on stdout.")] = False,
) -> None:
    """Validate the reward head and the card of a model folder, then upload it to the Hub."""
    from plaudit.cli.printing import file_lines, print_lines, quiet_console
    from plaudit.interop.hub import PushOptions
    from plaudit.interop.hub import push as run

    console = quiet_console()
    with console.status("validating" if dry_run else "uploading"):
        result = run(
            folder,
            repo,
            PushOptions(
                private=private,
                revision=revision,
                include=include or (),
                replace=replace,
                dry_run=dry_run,
            ),
        )
    if json:
        options.print_json(result)
    lines = file_lines(result.files, result.skipped, skipped="not uploaded")
    lines += [f"  note: {note}" for note in result.notes]
    lines.append(
        f"Dry run: nothing was uploaded to {repo}" if dry_run else f"Uploaded to {result.url}"
    )
    print_lines(console, lines)


def pull(
    repo: Annotated[str, typer.Argument(help="A Hub id: owner/name.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    revision: options.Revision = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result on stdout.")] = False,
) -> None:
    """Download a reward model from the Hub: safetensors, no pickles, no code."""
    from plaudit.cli.printing import file_lines, print_lines, quiet_console
    from plaudit.interop.hub import pull as run

    console = quiet_console()
    with console.status("downloading"):
        result = run(repo, out, revision=revision)
    if json:
        options.print_json(result)
    lines = file_lines(result.files, result.skipped, skipped="not downloaded")
    print_lines(console, [*lines, f"Written to {out} (commit {result.commit})"])
