"""``plaudit data perturb DATA --out OUT``: hard negatives, and ties, of a known cause."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import Annotated

import typer

from plaudit.cli import options
from plaudit.cli.data.convert import count_lines


def show_perturbations(asked: bool) -> None:
    """Print the table of perturbations and end."""
    if asked:
        from plaudit.data.perturb.table import PERTURBATIONS

        for one in PERTURBATIONS.values():
            languages = ",".join(sorted(one.languages or {"any"}))
            print(f"{one.name:20} {one.kind:18} {one.severity:8} {languages:4} {one.description}")
        raise typer.Exit


def perturb(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, folder or Hub id.")],
    out: options.RowsOut,
    perturbations: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="Perturbations, or kinds of them: degradation, meaning_preserving, "
            "reward_hacking, all.",
        ),
    ] = "degradation",
    severity: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Only those of these severities: minor, major, critical."
        ),
    ] = None,
    per_row: Annotated[
        int | None,
        typer.Option(min=1, help="Most pairs of a row, by perturbations drawn for it."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other perturbations.")] = 42,
    to: Annotated[
        str | None,
        typer.Option(
            help="The format to write (plaudit data convert --list). Default: explicit pairs, "
            "ranked rows where rewrites make ties."
        ),
    ] = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    list_: Annotated[
        bool,
        typer.Option(
            "--list", callback=show_perturbations, is_eager=True, help="List the perturbations."
        ),
    ] = False,
    json: options.CountsAsJson = False,
) -> None:
    """Pair each row's best response with perturbations of it, each of a known cause."""
    from plaudit.cli.printing import quiet_console
    from plaudit.data.perturb.run import PerturbOptions, by_count, perturb_file
    from plaudit.data.perturb.table import SEVERITIES
    from plaudit.recipe.schema import Source

    source = Source(path=data, format=format_, columns=options.parse_columns(columns))
    console = quiet_console()
    with console.status("perturbing"):
        result = perturb_file(
            source,
            out,
            PerturbOptions(
                perturbations=_names_in(perturbations),
                severities=SEVERITIES if severity is None else _names_in(severity),
                per_row=per_row,
                seed=seed,
                to=to,
            ),
        )
    if json:
        facts = {
            "rows": result.rows,
            "not_made": dict(result.not_made),
            "languages": dict(result.languages),
            **asdict(result.counts),
        }
        print(json_module.dumps(facts))
    made_of = f"{result.rows:,} rows and {result.perturbations} perturbations"
    lines = [f"{made_of} made {result.pairs:,} pairs, in the format {result.format}"]
    if result.not_made:
        lines.append(f"  not made, by reason: {by_count(result.not_made)}")
    if set(result.languages) - {"en"}:
        lines.append(f"  languages of the rows: {by_count(result.languages)}")
    for line in (*lines, *count_lines(result.counts, out)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _names_in(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
