"""The picture of best-of-N: gold and proxy against the distance from the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.report.plots import (
    BLUE,
    CARD_WIDTH,
    GREEN,
    ORANGE,
    make_figure,
    place_legend,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_best_of_plot(block: Mapping[str, Any], path: Path) -> None:
    """Draw the ``best_of`` block as a PNG file."""
    save_figure(best_of_figure(block), path)


def best_of_figure(block: Mapping[str, Any], width: float = CARD_WIDTH) -> Figure:
    """Gold beside its oracle, and the proxy, over sqrt(KL), where n stands."""
    figure, (left, right) = make_figure(
        f"Best of n on {block['prompts']:,} prompts", width, panels=2
    )
    _curve(left, block, "oracle", GREEN, "grade of the best response")
    _curve(left, block, "gold", BLUE, "grade of the model's choice")
    left.set_ylabel("mean grade, 95%")
    _curve(right, block, "proxy", ORANGE, "reward of the model's choice")
    right.set_ylabel("reward − prompt's mean, 95%")
    shown = [
        point
        for point in block["curve"]
        if point["n"] & (point["n"] - 1) == 0 or point["n"] == block["largest_n"]
    ]
    for axis in (left, right):
        axis.set_xticks([point["kl"] ** 0.5 for point in shown], [str(p["n"]) for p in shown])
        axis.set_xlabel("n, spaced by √KL")
    place_legend(figure)
    return figure


def _curve(axis: Axes, block: Mapping[str, Any], name: str, color: str, label: str) -> None:
    points = block["curve"]
    x = [point["kl"] ** 0.5 for point in points]
    ends = [point[f"{name}_ci95"] for point in points]
    if all(ends):
        lows, highs = [e[0] for e in ends], [e[1] for e in ends]
        axis.fill_between(x, lows, highs, color=color, alpha=0.16, linewidth=0)
    axis.plot(
        x, [point[name] for point in points], color=color, marker="o", markersize=3.5, label=label
    )
