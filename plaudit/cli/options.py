"""Options that several commands have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from plaudit.errors import DataError

if TYPE_CHECKING:
    from plaudit.interop.parity import CheckOptions
    from plaudit.recipe.schema import Source

Model: TypeAlias = Annotated[Path, typer.Argument(help="A run folder, or another tool's model.")]
RowsOut: TypeAlias = Annotated[
    Path, typer.Option("--out", help="Where to write: .jsonl, .jsonl.gz, .json, .csv, .parquet.")
]
ScoresOut: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="File to write: .jsonl, .jsonl.gz, .json, .csv or .parquet. "
        "Default: JSON Lines on stdout.",
    ),
]
Limit: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Read only the first N rows of each file.")
]
CountsAsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print the counts on stdout.")
]
Format: TypeAlias = Annotated[str | None, typer.Option("--format", help="Name the data's format.")]
Columns: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="NAME=COLUMN,…",
        help="Where the format's columns are: prompt=question,chosen=better. system=null leaves "
        "the column system unread.",
    ),
]
Base: TypeAlias = Annotated[
    str | None, typer.Option(help="Path or Hub id of the adapter's base model.")
]
TrustRemoteCode: TypeAlias = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python that comes with the model.")
]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value: train.seed=7."),
]
Recipe: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        help="Looked up in this order: a recipe file (.yaml), the name of a shipped recipe "
        "(small-local), a run folder (its recipe), a data file (with --model)."
    ),
]
BaseModel: TypeAlias = Annotated[
    str | None,
    typer.Option("--model", metavar="BASE", help="Path or Hub id of the base (model.base)."),
]
TrainData: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="File, folder or Hub id to train on (data.train); repeatable.",
    ),
]
TestData: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--test", metavar="DATA", help="Evaluated once, after training (data.test); repeatable."
    ),
]
FromLlamaFactory: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--from-llamafactory",
        metavar="YAML",
        help="A reward YAML of LLaMA-Factory, in place of a recipe.",
    ),
]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="Resume the run in --out, or in the named run folder.")
]
Verbose: TypeAlias = Annotated[
    bool,
    typer.Option("--verbose", help="Print all findings and tables, and a line per logging step."),
]
Revision: TypeAlias = Annotated[
    str | None, typer.Option(help="A branch, tag or commit of the repository.")
]
Rows: TypeAlias = Annotated[
    str | None, typer.Option(help="Rows for the check. Default: held-out rows of the run.")
]
Tolerance: TypeAlias = Annotated[
    float | None, typer.Option(help="Largest score difference allowed. Default: 1e-4.")
]
NoCheck: TypeAlias = Annotated[
    bool,
    typer.Option("--no-check", help="Skip the check; the card records that."),
]


def parse_columns(options: Sequence[str] | None) -> dict[str, str | None]:
    """``prompt=question,system=null`` as the ``columns`` of a source.

    Raises:
        DataError: an option has another form, or names a column of the format twice.
    """
    columns: dict[str, str | None] = {}
    for part in (part for option in options or () for part in option.split(",")):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and equals and theirs) or ours in columns:
            raise DataError(
                f"--columns {part}: expected NAME=COLUMN with each NAME once, such as"
                " prompt=question, or NAME=null to leave a column unread."
            )
        columns[ours] = None if theirs == "null" else theirs
    return columns


def source(
    path: str, format_: str | None, columns: Sequence[str] | None, limit: int | None = None
) -> Source:
    """The source that DATA and its options name."""
    from plaudit.recipe.schema import Source

    return Source(path=path, format=format_, columns=parse_columns(columns), max_rows=limit)


def print_json(result: object) -> None:
    """A result on stdout."""
    from plaudit.evaluation.schema import json_safe

    print(json.dumps(json_safe(result)))


def check_options(
    rows: str | None, tolerance: float | None, *, no_check: bool
) -> CheckOptions | None:
    """The check that ends an export or a merge."""
    from plaudit.interop.parity import TOLERANCE, CheckOptions
    from plaudit.recipe.schema import Source

    if no_check:
        return None
    return CheckOptions(
        rows=None if rows is None else Source(path=rows),
        tolerance=TOLERANCE if tolerance is None else tolerance,
    )
