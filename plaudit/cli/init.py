"""``plaudit init``: a commented recipe to edit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options


def init(
    model: options.BaseModel = None,
    data: options.TrainData = None,
    test: options.TestData = None,
    out: Annotated[Path, typer.Option(help="Recipe file to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a recipe with its main keys explained. Nothing is asked, read or downloaded."""
    from plaudit.cli.recipes import RecipeRequest, with_options
    from plaudit.recipe.load import BASE, DATA, starter, starter_text
    from plaudit.storage.atomic import check_new_file, write_text

    if not force:
        check_new_file(out, advice="choose another name, or add --force")
    request = RecipeRequest(model=model or BASE, data=data or [DATA], test=test or ())
    write_text(out, starter_text(with_options(starter(), request)))
    print(f"Wrote {out}. Edit it, then run: plaudit train {shlex.quote(str(out))}")
