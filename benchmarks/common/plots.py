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
        axes.set_xscale(
            "log", base=2 if max(p[0] for s in series.values() for p in s) < 1e4 else 10
        )
    if log_y:
        axes.set_yscale("log")
    axes.set_ylim(bottom=None if log_y else 0)
    axes.legend(fontsize="small")
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
    axes.legend(fontsize="small")
    _save(figure, path)


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
