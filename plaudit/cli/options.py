"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Model: TypeAlias = Annotated[Path, typer.Argument(help="A run folder, or another tool's model.")]
Format: TypeAlias = Annotated[str | None, typer.Option("--format", help="Name the data's format.")]
Base: TypeAlias = Annotated[str | None, typer.Option(help="Where an adapter's base is now.")]
TrustRemoteCode: TypeAlias = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python that comes with the model.")
]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value: train.seed=7."),
]
Resume: TypeAlias = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
