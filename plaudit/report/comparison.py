"""The picture of a comparison: every model's accuracy and log loss with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.report.plots import (
    BLUE,
    CARD_WIDTH,
    ORANGE,
    make_figure,
    name_rows,
    place_legend,
    save_figure,
    short_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = (
    ("accuracy", "accuracy_ci95", "accuracy, 95%"),
    ("nll", "nll_ci95", "log loss (nats), 95%"),
)
_BEST, _ALIKE, _WORSE = "best", "not significantly different from the best", "significantly worse"


def write_comparison_plot(facts: Mapping[str, Any], path: Path) -> None:
    """Draw the content of ``compare.json`` as a PNG file."""
    save_figure(comparison_figure(facts), path)


def comparison_figure(facts: Mapping[str, Any]) -> Figure:
    """One panel a metric, models from top to bottom."""
    figure, panels = make_figure(
        f"Models on the same {facts['pairs']:,} pairs", CARD_WIDTH, panels=2
    )
    figure.set_figheight(1.6 + 0.3 * len(facts["models"]))
    for axis, (metric, interval, label) in zip(panels, _PANELS, strict=True):
        _panel(axis, facts, metric, interval)
        axis.set_xlabel(label)
        name_rows(axis, [short_name(model["name"], 24) for model in facts["models"]])
        axis.locator_params(axis="x", nbins=5)
        axis.margins(x=0.08)
    panels[1].tick_params(axis="y", labelleft=False)
    place_legend(figure)
    return figure


def _panel(axis: Axes, facts: Mapping[str, Any], metric: str, interval: str) -> None:
    best = facts["best"][metric]
    for place, model in enumerate(facts["models"]):
        leads = model["name"] == best["name"]
        alike = model["name"] in best["not_told_from"]
        color = ORANGE if leads else BLUE
        ends = model[interval]
        if ends is not None:
            axis.hlines(place, *ends, color=color, alpha=0.3, linewidth=4)
        axis.plot(
            model[metric],
            place,
            color=color,
            marker="*" if leads else "o",
            markersize=13 if leads else 6,
            markerfacecolor="white" if alike else None,
            linestyle="none",
            label=_BEST if leads else _ALIKE if alike else _WORSE,
        )
