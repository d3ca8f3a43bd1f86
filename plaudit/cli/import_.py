"""``plaudit import SRC --out DIR``: another tool's reward model as a plaudit folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from plaudit.cli import options


def import_model(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder or Hub id of another tool's reward model.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    base: options.Base = None,
    source_version: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="The version that trained it: LLaMA-Factory's, or transformers' for classifiers.",
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="LLaMA-Factory's template, such as llama3.")
    ] = None,
    output: Annotated[
        int | None, typer.Option(min=0, help="Number of the output that is the reward, from 0.")
    ] = None,
    text: Annotated[
        Literal["chat", "text"] | None,
        typer.Option(help="Trained on conversations or on plain text."),
    ] = None,
    normalize: Annotated[
        bool, typer.Option(help="Apply the mean and std that OpenRLHF keeps in config.json.")
    ] = True,
    trust_remote_code: options.TrustRemoteCode = False,
    json: Annotated[bool, typer.Option("--json", help="Print plaudit.json on stdout.")] = False,
) -> None:
    """Read another tool's reward model by its own rules; write a plaudit model folder."""
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
