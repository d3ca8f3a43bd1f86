"""``plaudit data mutate DATA --out OUT``: hard negatives, and ties, of a known cause."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import options
from plaudit.cli.data.convert import count_lines
from plaudit.errors import DataError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from plaudit.data.formats.records import Writer
    from plaudit.data.perturb.table import Operator
    from plaudit.types import Comparison


def show_operators(asked: bool) -> None:
    """Print the table of operators and end."""
    if asked:
        from plaudit.data.perturb.table import OPERATORS

        for operator in OPERATORS.values():
            languages = ",".join(sorted(operator.languages or {"any"}))
            named = f"{operator.name:20} {operator.kind:10} {operator.severity:8} {languages:4}"
            print(f"{named} {operator.what}")
        raise typer.Exit


def mutate(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, folder or Hub id.")],
    out: options.RowsOut,
    operators: Annotated[
        str,
        typer.Option(
            metavar="NAME,…", help="Operators, or kinds of them: damage, preserving, hack, all."
        ),
    ] = "damage",
    severity: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Only those of these severities: minor, major, critical."
        ),
    ] = None,
    per_row: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many pairs of a row, by operators drawn for it."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other alterations.")] = 42,
    to: Annotated[
        str | None,
        typer.Option(
            help="The format to write (plaudit data convert --list); explicit pairs if not given, "
            "ranked where rewrites make ties."
        ),
    ] = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    list_: Annotated[
        bool,
        typer.Option("--list", callback=show_operators, is_eager=True, help="List the operators."),
    ] = False,
    json: options.CountsAsJson = False,
) -> None:
    """Set each row's best response against alterations of it with a known cause."""
    from plaudit.cli.printing import quiet_console
    from plaudit.data.formats.writers import (
        check_out,
        choose_writer,
        write_comparison,
        write_file,
    )
    from plaudit.data.load import iterate
    from plaudit.data.perturb.run import mutate as run
    from plaudit.data.perturb.table import SEVERITIES, choose_operators
    from plaudit.recipe.schema import Source

    source = Source(path=data, format=format_, columns=options.parse_columns(columns))
    console = quiet_console()
    chosen = choose_operators(
        names_in(operators), SEVERITIES if severity is None else names_in(severity)
    )
    writer = None if to is None else choose_writer(to)
    with console.status("reading"):
        comparisons = [item[3] for item in iterate(source)]
    writer = writer or natural_writer(chosen, comparisons)
    check_out(out, writer)
    with console.status("altering"):
        made = run(comparisons, chosen, seed, per_row=per_row)
        if not made.comparisons:
            raise DataError(
                f"none of the {len(comparisons):,} rows can be altered: {times(made.refused)}."
            )
        outcomes = (write_comparison(writer, pair) for pair in made.comparisons)
        counts = write_file(out, writer, outcomes)
    if json:
        facts = {
            "rows": len(comparisons),
            "not_made": dict(made.refused),
            "languages": dict(made.languages),
            **asdict(counts),
        }
        print(json_module.dumps(facts))
    made_from = f"{len(comparisons):,} rows and {len(chosen)} operators"
    lines = [f"{made_from} made {len(made.comparisons):,} pairs, in the format {writer.name}"]
    if made.refused:
        lines.append(f"  none, by reason and times: {times(made.refused)}")
    if set(made.languages) - {"en"}:
        lines.append(f"  languages of the rows: {times(made.languages)}")
    for line in (*lines, *count_lines(counts, out)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def times(refused: Counter[str]) -> str:
    """Reasons, the most frequent first, each with how often."""
    return ", ".join(f"{reason} {count:,}" for reason, count in refused.most_common())


def names_in(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def natural_writer(operators: Sequence[Operator], comparisons: Sequence[Comparison]) -> Writer:
    """Ranked rows where there are ties, else pairs of plain text or messages, as the rows are."""
    from plaudit.data.formats.writers import WRITERS

    if any(operator.kind == "preserving" for operator in operators):
        return WRITERS["ranked"]
    plain = all(isinstance(comparison.prompt, str) for comparison in comparisons)
    return WRITERS["explicit_text" if plain else "explicit_conversational"]
