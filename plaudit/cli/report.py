"""``plaudit report RUN`` and ``plaudit card RUN``: written again from recorded metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or what plaudit eval --out wrote.")],
    texts: Annotated[
        bool,
        typer.Option(
            "--texts/--no-texts", help="Show prompts and responses of the mistakes, or none."
        ),
    ] = True,
) -> None:
    """Rewrite the report (report.html) and the plots of a run or an evaluation."""
    from plaudit.report.html import write_report
    from plaudit.report.plots import write_plots

    plots = write_plots(run)
    print(f"Wrote {write_report(run, with_texts=texts)} and {len(plots)} plots")


def card(
    run: Annotated[Path, typer.Argument(help="A run folder, with its metrics.json.")],
) -> None:
    """Rewrite a run's model card (README.md) from its recorded metrics."""
    from plaudit.report.card import write_card

    print(f"Wrote {write_card(run)}")
