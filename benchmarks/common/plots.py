"""Plots of results: lines over a size, and stacked bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def lines(
    path: Path,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """One line per name over the points it has."""
    figure, axes = _axes()
    for name, points in series.items():
        ordered = sorted(points)
        axes.plot([p[0] for p in ordered], [p[1] for p in ordered], marker="o", label=name)
    axes.set(xlabel=x, ylabel=y)
    if log_x:
        at = sorted({point[0] for points in series.values() for point in points})
        axes.set_xscale("log")
        axes.set_xticks(at, [f"{value:,.0f}" for value in at], minor=False)
        axes.minorticks_off()
    if log_y:
        axes.set_yscale("log")
    # Room above the highest point, where a flat line would lie on the frame.
    axes.margins(y=0.1)
    axes.set_ylim(bottom=None if log_y else 0)
    _name(axes, len(series))
    _save(figure, path)


def bars(path: Path, series: Mapping[str, Mapping[str, float]], *, y: str) -> None:
    """One stacked bar per name, its parts in their order."""
    figure, axes = _axes()
    parts = dict.fromkeys(part for bar in series.values() for part in bar)
    bottoms = dict.fromkeys(series, 0.0)
    for part in parts:
        heights = [bar.get(part, 0.0) for bar in series.values()]
        axes.bar(list(series), heights, bottom=list(bottoms.values()), label=part, width=0.6)
        bottoms = {n: bottoms[n] + h for n, h in zip(series, heights, strict=True)}
    axes.set(ylabel=y)
    _name(axes, len(parts))
    _save(figure, path)


def _name(axes: Any, count: int) -> None:
    """A legend beside the axes, where it hides nothing; one series needs none."""
    if count > 1:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)


def _axes() -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
