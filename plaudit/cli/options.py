"""Options that several commands have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from plaudit.cli.help import CHECK, DATA, EVALUATION, MODEL, OUTPUT, TRAINING
from plaudit.errors import DataError
from plaudit.types import Dtype, RewardChoice

if TYPE_CHECKING:
    from plaudit.interop.parity import CheckOptions
    from plaudit.recipe.schema import Source

Model: TypeAlias = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Run folder, or a reward model of another tool."),
]
LabelledData: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(metavar="DATA", help="Files, folders or Hub ids of labelled comparisons."),
]
RowsOut: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FILE",
        rich_help_panel=OUTPUT,
        help="File to write: .jsonl, .jsonl.gz, .json, .csv or .parquet.",
    ),
]
ScoresOut: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        rich_help_panel=OUTPUT,
        help="File to write: .jsonl, .jsonl.gz, .json, .csv or .parquet. "
        "Default: JSON Lines on stdout.",
    ),
]
FolderOut: TypeAlias = Annotated[
    Path,
    typer.Option("--out", metavar="FOLDER", rich_help_panel=OUTPUT, help="Folder to write."),
]
Limit: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, rich_help_panel=DATA, help="Read only the first N rows of each file."
    ),
]
CountsAsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the counts as JSON on stdout.")
]
ResultAsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the result as JSON on stdout.")
]
MetricsAsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print metrics.json on stdout.")
]
Format: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        rich_help_panel=DATA,
        help="Format of the data. Default: recognised from the first row.",
    ),
]
Columns: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="NAME=COLUMN,…",
        rich_help_panel=DATA,
        help="Map the format's columns to the data's: prompt=question,chosen=better. NAME=null "
        "leaves a column unread.",
    ),
]
Base: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", rich_help_panel=MODEL, help="Path or Hub id of the adapter's base model."
    ),
]
Device: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        rich_help_panel=MODEL,
        help="Device to compute on: cpu, cuda, cuda:1, … Default: the first GPU, if any.",
    ),
]
Precision: TypeAlias = Annotated[
    Dtype,
    typer.Option(
        metavar="DTYPE",
        rich_help_panel=MODEL,
        help="Precision of the weights: auto, float32, bfloat16 or float16. The head stays "
        "float32. auto is bfloat16 on a GPU that has it, else float32.",
    ),
]
TrustRemoteCode: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        rich_help_panel=MODEL,
        help="Allow code that comes with the model to run.",
    ),
]
Reward: TypeAlias = Annotated[
    RewardChoice,
    typer.Option(
        metavar="NAME",
        rich_help_panel=MODEL,
        help="Reward of an ensemble of heads: mean, or lower_bound, which is mean - K * spread.",
    ),
]
LowerBoundK: TypeAlias = Annotated[
    float,
    typer.Option(
        "--lower-bound-k", metavar="K", min=0, rich_help_panel=MODEL, help="K of the lower bound."
    ),
]
Alpha: TypeAlias = Annotated[
    float,
    typer.Option(
        metavar="X",
        min=0.0001,
        max=0.5,
        rich_help_panel=EVALUATION,
        help="Significance level (alpha) of the paired tests.",
    ),
]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        rich_help_panel=TRAINING,
        help="Override a key of the recipe: train.seed=7.",
    ),
]
Recipe: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="Recipe file (.yaml), name of a shipped recipe (small-local), run folder (its recipe) "
        "or data file (with --model); looked up in this order.",
    ),
]
BaseModel: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="BASE",
        rich_help_panel=MODEL,
        help="Path or Hub id of the base model (model.base).",
    ),
]
TrainData: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="DATA",
        rich_help_panel=DATA,
        help="File, folder or Hub id to train on (data.train).",
    ),
]
TestData: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--test",
        metavar="DATA",
        rich_help_panel=DATA,
        help="Test data, evaluated once after training (data.test).",
    ),
]
FromLlamaFactory: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--from-llamafactory",
        metavar="FILE",
        rich_help_panel=TRAINING,
        help="Use a LLaMA-Factory reward YAML in place of a recipe.",
    ),
]
Resume: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--resume",
        rich_help_panel=TRAINING,
        help="Resume the run in --out, or in the named run folder.",
    ),
]
Verbose: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--verbose",
        rich_help_panel=OUTPUT,
        help="Print all findings and tables, and a line per logging step.",
    ),
]
Revision: TypeAlias = Annotated[
    str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit of the repository.")
]
Rows: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        rich_help_panel=CHECK,
        help="Rows for the check. Default: held-out rows of the run.",
    ),
]
Tolerance: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        rich_help_panel=CHECK,
        help="Largest allowed difference between rewards. Default: 1e-4.",
    ),
]
NoCheck: TypeAlias = Annotated[
    bool,
    typer.Option("--no-check", rich_help_panel=CHECK, help="Skip the check; the card says so."),
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
