"""``plaudit merge A B … --out DIR``: average the weights of reward models of one base."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options
from plaudit.errors import ModelError


def merge(
    models: Annotated[list[Path], typer.Argument(help="Runs, checkpoints of runs, or exports.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    weights: Annotated[
        str | None, typer.Option(help="One number each, adding up to 1: 0.5,0.3,0.2.")
    ] = None,
    rows: options.Rows = None,
    tolerance: options.Tolerance = None,
    no_check: options.NoCheck = False,
    base: options.Base = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was done on stdout.")] = False,
) -> None:
    """Average the weights of reward models of one base (WARM), and check the result."""
    from plaudit.cli.printing import hush_weight_loading, parity_lines, quiet_console
    from plaudit.recipe.schema import Source

    numbers = None if weights is None else _numbers(weights)
    console = quiet_console()
    with console.status("starting"):
        hush_weight_loading()
        from plaudit.interop.merge import merge as run
    from plaudit.interop.parity import TOLERANCE

    with options.failed_parity_is_exit_1(), console.status("merging"):
        done = run(
            models,
            out,
            weights=numbers,
            check=not no_check,
            rows=None if rows is None else Source(path=rows),
            tolerance=TOLERANCE if tolerance is None else tolerance,
            base=base,
        )
    if json:
        print(json_module.dumps(asdict(done)))
    lines = [f"Written to {out} ({done.method})", *parity_lines(done.parity)]
    for line in [*lines, *(f"  note: {note}" for note in done.notes)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ModelError(
            f"--weights is {text!r}; expected numbers with commas between them, as 0.5,0.3,0.2."
        ) from None
