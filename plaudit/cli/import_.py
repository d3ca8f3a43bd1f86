"""``plaudit import SRC --out DIR``: another tool's reward model as a plaudit folder."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from plaudit.cli import options
from plaudit.cli.help import MODEL, OUTPUT


def import_model(
    source: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Folder or Hub id of another tool's reward model."),
    ],
    out: options.FolderOut,
    base: options.Base = None,
    source_version: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            rich_help_panel=MODEL,
            help="Version of the tool that trained it: LLaMA-Factory's, or transformers' for "
            "classifiers.",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", rich_help_panel=MODEL, help="LLaMA-Factory template, such as llama3."
        ),
    ] = None,
    output: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            rich_help_panel=MODEL,
            help="Index of the output that is the reward, from 0.",
        ),
    ] = None,
    text: Annotated[
        Literal["chat", "text"] | None,
        typer.Option(
            metavar="KIND",
            rich_help_panel=MODEL,
            help="What the model was trained on: chat (conversations) or text (plain text).",
        ),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option(
            rich_help_panel=MODEL,
            help="Apply the mean and std that OpenRLHF stores in config.json.",
        ),
    ] = True,
    trust_remote_code: options.TrustRemoteCode = False,
    json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print plaudit.json on stdout.")
    ] = False,
) -> None:
    """Convert another tool's reward model to a model folder.

    Rewards are computed as that tool computes them.

    Examples:
      plaudit import my-openrlhf-model --out models/imported
    """
    from plaudit.cli.printing import print_lines, starting

    with starting() as console:
        from plaudit.interop.formats import ReadOptions
        from plaudit.interop.importing import import_model as run

    read = ReadOptions(
        base=base,
        trust_remote_code=trust_remote_code,
        source_version=source_version,
        template=template,
        output=output,
        text=text,
        normalize=normalize,
    )
    with console.status("importing"):
        metadata = run(source, out, read)
    if json:
        options.print_json(metadata)
    assert metadata.origin is not None
    print_lines(console, [f"{metadata.origin.format}: written to {out}"])
