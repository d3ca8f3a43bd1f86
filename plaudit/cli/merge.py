"""``plaudit merge A B … --out DIR``: average the weights of reward models of one base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options
from plaudit.cli.help import MODEL
from plaudit.errors import ModelError


def merge(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL", help="Run folders, checkpoints or exports.")
    ],
    out: options.FolderOut,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,…",
            rich_help_panel=MODEL,
            help="One weight per model, summing to 1: 0.5,0.3,0.2. Default: equal weights.",
        ),
    ] = None,
    rows: options.Rows = None,
    tolerance: options.Tolerance = None,
    no_check: options.NoCheck = False,
    base: options.Base = None,
    json: options.ResultAsJson = False,
) -> None:
    """Average the weights of reward models with the same base.

    This is WARM (weight-averaged reward models). The check loads the result and compares rewards.

    Examples:
      plaudit merge runs/first runs/second --out models/average
    """
    from plaudit.cli.printing import parity_lines, print_lines, starting

    numbers = None if weights is None else _numbers(weights)
    with starting() as console:
        from plaudit.interop.merge import MergeOptions
        from plaudit.interop.merge import merge as run

    with console.status("merging"):
        check = options.check_options(rows, tolerance, no_check=no_check)
        result = run(models, out, MergeOptions(weights=numbers, base=base, check=check))
    if json:
        options.print_json(result)
    lines = [f"Written to {out} ({result.method})", *parity_lines(result.parity)]
    print_lines(console, [*lines, *(f"  note: {note}" for note in result.notes)])


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ModelError(
            f"--weights is {text!r}; expected numbers with commas between them, as 0.5,0.3,0.2."
        ) from None
