"""``plaudit card RUN``: rewrite the model card from recorded metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(
    run: Annotated[Path, typer.Argument(help="A run folder, with its metrics.json.")],
) -> None:
    """Rewrite a run's model card (README.md) from its recorded metrics."""
    from plaudit.report.card import write_card

    print(f"Wrote {write_card(run)}")
