"""``plaudit data convert``, ``perturb`` and ``split``: files of rows made of others."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plaudit.cli import options
from plaudit.cli.help import DATA, OUTPUT, PERTURBATION, SPLIT
from plaudit.errors import DataError, printable
from plaudit.evaluation.numbers import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from plaudit.data.formats.writers import WriteCounts
    from plaudit.data.split import Part

# --- convert --------------------------------------------------------------------------------------


def show_formats(asked: bool) -> None:
    """Print the table of writers and end."""
    if asked:
        from plaudit.data.formats.writers import WRITERS

        for writer in WRITERS.values():
            print(f"{writer.name:24} {writer.description}")
        raise typer.Exit


def convert(
    data: Annotated[str, typer.Argument(metavar="DATA", help="File, folder or Hub id.")],
    out: options.RowsOut,
    to: Annotated[
        str,
        typer.Option(metavar="NAME", rich_help_panel=OUTPUT, help="Format to write; see --list."),
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME",
            rich_help_panel=DATA,
            help="Format of the data. Default: recognised from the first row.",
        ),
    ] = None,
    columns: options.Columns = None,
    pairs: Annotated[
        Literal["all", "best-worst", "none"],
        typer.Option(
            metavar="RULE",
            rich_help_panel=OUTPUT,
            help="Pairs of a row with more than two responses, in a format of pairs: all (unequal "
            "grades), best-worst or none.",
        ),
    ] = "all",
    list_: Annotated[
        bool,
        typer.Option("--list", callback=show_formats, is_eager=True, help="List the formats."),
    ] = False,
    json: options.CountsAsJson = False,
) -> None:
    """Convert preference data to another tool's format.

    Counts what the format cannot hold.

    Examples:
      plaudit data convert pairs.jsonl --to openrlhf --out pairs-openrlhf.jsonl
    """
    from plaudit.cli.printing import print_lines, quiet_console
    from plaudit.data.formats import writers

    source = options.source(data, format_, columns)
    console = quiet_console()
    writer = writers.choose_writer(to)
    with console.status("converting"):
        counts = writers.convert(source, out, writer, pairs=pairs)
    if json:
        options.print_json(counts)
    print_lines(console, count_lines(counts, out))


def count_lines(counts: WriteCounts, out: Path) -> list[str]:
    """What became of the rows: written, skipped and lost, each by its name and in words."""
    from plaudit.data.formats.records import LOSSES, SKIP_REASONS

    written, read = counted(counts.written, "row"), counted(counts.read, "row")
    lines = [f"Wrote {written} to {out}, from {counts.used:,} of {read}."]
    lines += [
        f"  skipped {count:,}: {reason} ({SKIP_REASONS.get(reason, 'see the page of formats')})"
        for reason, count in counts.skipped.items()
    ]
    lines += [
        f"  lost in {count:,}: {name} ({LOSSES[name]})" for name, count in counts.losses.items()
    ]
    return lines


# --- perturb --------------------------------------------------------------------------------------


def show_perturbations(asked: bool) -> None:
    """Print the table of perturbations and end."""
    if asked:
        from plaudit.data.perturb.table import PERTURBATIONS

        for one in PERTURBATIONS.values():
            languages = ",".join(sorted(one.languages or {"any"}))
            print(f"{one.name:20} {one.kind:18} {one.severity:8} {languages:4} {one.description}")
        raise typer.Exit


def perturb(
    data: Annotated[str, typer.Argument(metavar="DATA", help="File, folder or Hub id.")],
    out: options.RowsOut,
    perturbations: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            rich_help_panel=PERTURBATION,
            help="Perturbations or kinds of them: degradation, meaning_preserving, "
            "reward_hacking, all; see --list.",
        ),
    ] = "degradation",
    severity: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            rich_help_panel=PERTURBATION,
            help="Severities to include: minor, major, critical. Default: all.",
        ),
    ] = None,
    per_row: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=PERTURBATION,
            help="Maximum number of pairs per row, from perturbations drawn at random.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, rich_help_panel=PERTURBATION, help="Random seed.")
    ] = 42,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=OUTPUT,
            help="Format to write; see plaudit data convert --list. Default: explicit pairs, or "
            "ranked rows if rewrites make ties.",
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
    """Pair good responses with perturbations of them.

    Each pair has a known cause, such as a changed number.

    Examples:
      plaudit data perturb pairs.jsonl --out degraded.jsonl
      plaudit data perturb pairs.jsonl --perturbations reward_hacking --out hacks.jsonl
    """
    from plaudit.cli.printing import print_lines, quiet_console
    from plaudit.data.perturb.run import PerturbOptions, by_count, perturb_file
    from plaudit.data.perturb.table import SEVERITIES

    perturb_options = PerturbOptions(
        perturbations=_names_in(perturbations),
        severities=SEVERITIES if severity is None else _names_in(severity),
        per_row=per_row,
        seed=seed,
        to=to,
    )
    source = options.source(data, format_, columns)
    console = quiet_console()
    with console.status("perturbing"):
        result = perturb_file(source, out, perturb_options)
    made = result.made
    if json:
        numbers = {name: getattr(made, name) for name in ("rows", "not_made", "languages")}
        options.print_json({**numbers, **asdict(result.counts)})
    made_from = (
        f"from {counted(made.rows, 'row')} with {counted(result.perturbations, 'perturbation')}"
    )
    pairs = counted(len(made.comparisons), "pair")
    lines = [f"Made {pairs} {made_from} (format {result.format})."]
    if made.not_made:
        lines.append(f"  skipped: {by_count(made.not_made)}")
    if set(made.languages) - {"en"}:
        lines.append(f"  languages: {by_count(made.languages)}")
    print_lines(console, [*lines, *count_lines(result.counts, out)])


def _names_in(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


# --- split ----------------------------------------------------------------------------------------


def split(
    data: Annotated[str, typer.Argument(metavar="DATA", help="File, folder or Hub id.")],
    out: options.FolderOut,
    fractions: Annotated[
        str,
        typer.Option(
            metavar="NAME=SHARE,…",
            rich_help_panel=SPLIT,
            help="Parts and their shares, summing to 1.",
        ),
    ] = "train=0.8,eval=0.1,test=0.1",
    by: Annotated[
        Literal["prompt", "row"],
        typer.Option(
            metavar="UNIT",
            rich_help_panel=SPLIT,
            help="Split by prompt (all rows of a prompt stay together) or by row.",
        ),
    ] = "prompt",
    stratify: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            rich_help_panel=SPLIT,
            help="Column to stratify by, or none.",
        ),
    ] = "source",
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, rich_help_panel=SPLIT, help="Random seed.")
    ] = 42,
    format_: options.Format = None,
    columns: options.Columns = None,
    json: options.CountsAsJson = False,
) -> None:
    """Split preference data by prompt.

    No two parts share a prompt. Rows are not changed.

    Examples:
      plaudit data split pairs.jsonl --out parts
      plaudit data split pairs.jsonl --fractions train=0.9,test=0.1 --out parts
    """
    from plaudit.cli.printing import quiet_console
    from plaudit.data.split import SplitOptions, split_files

    source = options.source(data, format_, columns)
    console = quiet_console()
    with console.status("splitting"):
        parts = split_files(
            source,
            out,
            SplitOptions(
                fractions=parse_fractions(fractions),
                by=by,
                stratify=None if stratify == "none" else stratify,
                seed=seed,
            ),
        )
    if json:
        options.print_json([{**asdict(part), "path": str(part.path)} for part in parts])
    console.print(parts_table(parts, stratify))
    for part in parts[1:]:
        if part.leaks:
            console.print(
                f"{part.leaks:,} of {part.rows:,} rows of {part.name} have a prompt that is also in"
                f" {parts[0].name}; to avoid that, split --by prompt.",
                style="bold",
                highlight=False,
                markup=False,
            )


def parse_fractions(text: str) -> dict[str, float]:
    """``train=0.8,eval=0.2`` as a table. Raises DataError where it is not of that form."""
    pieces = [piece.partition("=") for piece in text.split(",")]
    try:
        parts = {name.strip(): float(share) for name, _, share in pieces}
    except ValueError:
        parts = {}
    if len(parts) < len(pieces):
        raise DataError(
            f"--fractions {text}: expected NAME=SHARE,… with each NAME once, such as "
            "train=0.8,eval=0.1,test=0.1."
        )
    return parts


_MOST_STRATA = 20


def parts_table(parts: Sequence[Part], stratify: str) -> Table:
    """Rows and prompts of each part, and the rows of each stratum where there are several."""
    from rich.markup import escape
    from rich.text import Text

    from plaudit.cli.printing import results_table

    table = results_table("part", *(escape(part.name) for part in parts))
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
