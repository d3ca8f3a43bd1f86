"""``plaudit push`` and ``plaudit pull``: reward models to and from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Run folder or export.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Hub repository: owner/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Create the repository as private.")
    ] = False,
    revision: options.Revision = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Also upload files that match, such as predictions.parquet."
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Delete weight files of the repository that are not in FOLDER."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be uploaded, and upload nothing.")
    ] = False,
    json: options.ResultAsJson = False,
) -> None:
    """Validate and upload a reward model to the Hub.

    The reward head and the model card are checked before anything is uploaded.

    Examples:
      plaudit push runs/first owner/name --dry-run
      plaudit push runs/first owner/name --private
    """
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
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Hub repository: owner/name.")],
    out: options.FolderOut,
    revision: options.Revision = None,
    json: options.ResultAsJson = False,
) -> None:
    """Download a reward model from the Hub.

    Only safetensors, JSON and text files are downloaded: no pickles and no code.

    Examples:
      plaudit pull owner/name --out models/reward-model
    """
    from plaudit.cli.printing import file_lines, print_lines, quiet_console
    from plaudit.interop.hub import pull as run

    console = quiet_console()
    with console.status("downloading"):
        result = run(repo, out, revision=revision)
    if json:
        options.print_json(result)
    lines = file_lines(result.files, result.skipped, skipped="not downloaded")
    print_lines(console, [*lines, f"Written to {out} (commit {result.commit})"])
