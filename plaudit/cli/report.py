"""``plaudit report RUN`` and ``plaudit card RUN``: written again from recorded metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit.evaluation.numbers import counted


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run folder, or folder written by plaudit eval --out."),
    ],
    texts: Annotated[
        bool,
        typer.Option("--texts/--no-texts", help="Include the prompts and responses of mistakes."),
    ] = True,
) -> None:
    """Rewrite the HTML report and plots from recorded metrics.

    Examples:
      plaudit report runs/first
      plaudit report runs/first --no-texts
    """
    from plaudit.report.html import write_report
    from plaudit.report.plots import write_plots

    plots = write_plots(run)
    print(f"Wrote {write_report(run, with_texts=texts)} and {counted(len(plots), 'plot')}")


def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder with its metrics.json.")],
) -> None:
    """Rewrite a run's model card from recorded metrics.

    Examples:
      plaudit card runs/first
    """
    from plaudit.report.card import write_card

    print(f"Wrote {write_card(run)}")
