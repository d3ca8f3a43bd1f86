"""``plaudit data split IN --out DIR``: parts of a data set that share no prompt."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import options
from plaudit.errors import DataError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from plaudit.data.split import Part


class ByChoice(StrEnum):
    """What is parted: prompts with all their rows, or rows."""

    prompt = "prompt"
    row = "row"


def split(
    data: Annotated[str, typer.Argument(metavar="IN", help="A file, folder or Hub id.")],
    out: Annotated[Path, typer.Option(help="The folder for the parts; one file each.")],
    fractions: Annotated[
        str, typer.Option(metavar="NAME=SHARE,…", help="The parts; they add up to 1.")
    ] = "train=0.8,eval=0.1,test=0.1",
    by: Annotated[
        ByChoice, typer.Option(help="Part prompts with all their rows, or single rows.")
    ] = ByChoice.prompt,
    stratify: Annotated[
        str,
        typer.Option(
            metavar="COLUMN", help="A column whose values all parts hold in equal shares, or none."
        ),
    ] = "source",
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other parts.")] = 42,
    format_: options.Format = None,
    columns: options.Columns = None,
    json: options.CountsAsJson = False,
) -> None:
    """Part a data set by prompt, so that none stands on two sides; rows stay as they are."""
    from plaudit.cli.printing import quiet_console
    from plaudit.data.split import SplitOptions, split_files
    from plaudit.recipe.schema import Source

    mapped = options.parse_columns(columns)
    console = quiet_console()
    with console.status("splitting"):
        parts = split_files(
            Source(path=data, format=format_, columns=mapped),
            out,
            SplitOptions(
                fractions=parse_fractions(fractions),
                by=by.value,
                stratify=None if stratify == "none" else stratify,
                seed=seed,
            ),
        )
    if json:
        print(json_module.dumps([{**asdict(part), "path": str(part.path)} for part in parts]))
    console.print(parts_table(parts, stratify))
    for part in parts[1:]:
        if part.leaks:
            console.print(
                f"{part.leaks:,} of the {part.rows:,} rows of {part.name} have a prompt that is in"
                f" {parts[0].name} too; split --by prompt for none.",
                style="bold",
                highlight=False,
                markup=False,
            )


def parse_fractions(text: str) -> dict[str, float]:
    """``train=0.8,eval=0.2`` as a table. Raises DataError where it is not of that form."""
    parts: dict[str, float] = {}
    for piece in text.split(","):
        name, equals, share = piece.partition("=")
        try:
            value = float(share)
        except ValueError:
            equals = ""
        if not equals or name.strip() in parts:
            raise DataError(
                f"--fractions {text} is not of the form train=0.8,eval=0.1,test=0.1 with a name"
                " for each part."
            )
        parts[name.strip()] = value
    return parts


_MOST_STRATA = 20


def parts_table(parts: Sequence[Part], stratify: str) -> Table:
    """Rows and prompts of each part, and the rows of each stratum where there are several."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("part", overflow="fold")
    for part in parts:
        table.add_column(Text(part.name), justify="right", no_wrap=True)
    table.add_row("rows", *(f"{part.rows:,}" for part in parts))
    table.add_row("prompts", *(f"{part.prompts:,}" for part in parts))
    strata = list(parts[0].strata)
    if len(strata) > 1:
        for stratum in strata[:_MOST_STRATA]:
            table.add_row(
                Text(f"  {stratify}: {printable(stratum)}"),
                *(f"{part.strata[stratum]:,}" for part in parts),
            )
        if len(strata) > _MOST_STRATA:
            table.add_row(f"  and {len(strata) - _MOST_STRATA} more")
    table.add_row("file", *(Text(part.path.name) for part in parts))
    return table
