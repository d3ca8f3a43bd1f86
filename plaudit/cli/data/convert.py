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
    from plaudit.data.formats.writers import WriteCounts


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
    from plaudit.data.formats import writers
    from plaudit.recipe.schema import Source

    mapped = options.parse_columns(columns)
    console = quiet_console()
    writer = writers.choose_writer(to)
    with console.status("converting"):
        counts = writers.convert(
            Source(path=data, format=format_, columns=mapped), out, writer, pairs=pairs.value
        )
    if json:
        print(json_module.dumps(asdict(counts)))
    for line in count_lines(counts, out):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def count_lines(counts: WriteCounts, out: Path) -> list[str]:
    """What became of the rows: written, skipped and lost, each by its name and in words."""
    from plaudit.data.formats.records import LOSSES, SKIP_REASONS

    lines = [
        f"{counts.used:,} of {counts.read:,} rows became {counts.written:,} rows; written to {out}"
    ]
    lines += [
        f"  skipped {count:,}: {reason} ({SKIP_REASONS.get(reason, 'see the page of formats')})"
        for reason, count in counts.skipped.items()
    ]
    lines += [
        f"  lost in {count:,}: {name} ({LOSSES[name]})" for name, count in counts.losses.items()
    ]
    return lines
