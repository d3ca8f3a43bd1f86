"""``plaudit data convert IN --out OUT --to FORMAT``: preference data for another tool."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import options

if TYPE_CHECKING:
    from plaudit.data.formats.writers import Ledger


class PairsChoice(StrEnum):
    """What becomes of more than two responses in a format of pairs."""

    all = "all"
    best_worst = "best-worst"
    none = "none"


To = Annotated[str, typer.Option("--to", help="The format to write; --list shows them.")]


def show_formats(asked: bool) -> None:
    """Print the table of writers and end."""
    if asked:
        from plaudit.data.formats.writers import WRITERS

        for writer in WRITERS.values():
            print(f"{writer.name:24} {writer.description}")
        raise typer.Exit


def convert(
    data: Annotated[str, typer.Argument(metavar="IN", help="A file, folder or Hub id.")],
    out: options.RowsOut,
    to: To,
    format_: Annotated[
        str | None, typer.Option("--from", help="Name the format of IN; recognised if not given.")
    ] = None,
    columns: options.Columns = None,
    pairs: Annotated[
        PairsChoice,
        typer.Option(
            help="More than two responses in a format of pairs: all pairs of unequal grades, the "
            "best against the worst, or no row."
        ),
    ] = PairsChoice.all,
    list_: Annotated[
        bool,
        typer.Option("--list", callback=show_formats, is_eager=True, help="List the formats."),
    ] = False,
    json: options.CountsAsJson = False,
) -> None:
    """Write preference data in another tool's format; what it cannot hold is counted by name."""
    from plaudit.cli.printing import quiet_console
    from plaudit.data.formats.convert import convert as run
    from plaudit.data.formats.writers import choose_writer
    from plaudit.recipe.schema import Source

    mapped = options.parse_columns(columns)
    console = quiet_console()
    writer = choose_writer(to)
    with console.status("converting"):
        ledger = run(
            Source(path=data, format=format_, columns=mapped), out, writer, pairs=pairs.value
        )
    if json:
        print(json_module.dumps(asdict(ledger)))
    for line in ledger_lines(ledger, out):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def ledger_lines(ledger: Ledger, out: Path) -> list[str]:
    """What became of the rows: written, refused and lost, each by its name and in words."""
    from plaudit.data.formats.writers import LOSSES, REFUSALS

    lines = [
        f"{ledger.used:,} of {ledger.read:,} rows became {ledger.written:,} rows; written to {out}"
    ]
    lines += [
        f"  refused {count:,}: {reason} ({REFUSALS.get(reason, 'see the page of formats')})"
        for reason, count in ledger.refused.items()
    ]
    lines += [
        f"  lost in {count:,}: {name} ({LOSSES[name]})" for name, count in ledger.losses.items()
    ]
    return lines
