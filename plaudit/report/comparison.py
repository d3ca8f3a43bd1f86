"""The picture of a comparison: every model's accuracy and log loss with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.report.plots import BLUE, GREY, ORANGE, _figure, _save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = (
    ("accuracy", "accuracy_ci95", "share of pairs ranked right, 95%"),
    ("nll", "nll_ci95", "log loss (nats), 95%"),
)


def write_comparison_plot(facts: Mapping[str, Any], path: Path) -> None:
    """Draw the content of ``compare.json`` as a PNG file."""
    _save(comparison_figure(facts), path)


def comparison_figure(facts: Mapping[str, Any]) -> Figure:
    """One panel a metric, models from top to bottom.

    The leader is a star; an open mark cannot be told from it, a filled one is worse.
    """
    figure, panels = _figure(f"Models on the same {facts['pairs']:,} pairs", panels=2)
    figure.set_figheight(max(2.6, 1.4 + 0.3 * len(facts["models"])))
    for axis, (metric, interval, label) in zip(panels, _PANELS, strict=True):
        _panel(axis, facts, metric, interval)
        axis.set_xlabel(label)
        axis.set_yticks(range(len(facts["models"])))
        axis.set_yticklabels([model["name"] for model in facts["models"]], fontsize=8)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x", color="#E4E4E4", linewidth=0.8)
        axis.locator_params(axis="x", nbins=5)
    panels[1].tick_params(axis="y", labelleft=False)
    figure.supxlabel(
        "star: best; open: cannot be told from it; filled: worse (paired, corrected)",
        fontsize=8.5,
        color=GREY,
    )
    return figure


def _panel(axis: Axes, facts: Mapping[str, Any], metric: str, interval: str) -> None:
    best = facts["best"][metric]
    for place, model in enumerate(facts["models"]):
        ends = model[interval]
        if ends is not None:
            axis.hlines(place, *ends, color=BLUE, alpha=0.3, linewidth=4)
        leads = model["name"] == best["name"]
        alike = model["name"] in best["not_told_from"]
        axis.plot(
            model[metric],
            place,
            color=ORANGE if leads else BLUE,
            marker="*" if leads else "o",
            markersize=13 if leads else 6,
            markerfacecolor="white" if alike else None,
            linestyle="none",
        )
