"""The picture of best-of-N: gold and proxy against the distance from the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.report.plots import BLUE, GREEN, GREY, ORANGE, _figure, _legend, _save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_best_of_plot(block: Mapping[str, Any], path: Path) -> None:
    """Draw the ``best_of`` block as a PNG file."""
    _save(best_of_figure(block), path)


def best_of_figure(block: Mapping[str, Any]) -> Figure:
    """Gold beside its oracle, and the proxy, over sqrt(KL); some n are named above."""
    figure, (left, right) = _figure(f"Best of n on {block['prompts']:,} prompts", panels=2)
    _curve(left, block, "oracle", GREEN, "best there is")
    _curve(left, block, "gold", BLUE, "chosen by the model")
    left.set_ylabel("mean gold grade, 95%")
    _curve(right, block, "proxy", ORANGE, "chosen by the model")
    right.set_ylabel("reward above its prompt's mean, 95%")
    for axis in (left, right):
        axis.set_xlabel("square root of KL, at most (nats)")
        _legend(axis, loc="lower right")
        for point in block["curve"]:
            if point["n"] & (point["n"] - 1) == 0 or point["n"] == block["largest_n"]:
                x = point["kl"] ** 0.5
                axis.axvline(x, color=GREY, linewidth=0.5, alpha=0.4)
                axis.annotate(
                    str(point["n"]),
                    (x, 1.01),
                    xycoords=("data", "axes fraction"),
                    fontsize=7.5,
                    ha="center",
                    color=GREY,
                )
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
