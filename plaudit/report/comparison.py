"""Plots of models compared on the same pairs, and of best-of-N."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from plaudit.evaluation.compare import ModelComparison
from plaudit.evaluation.schema import BestOf, Metric
from plaudit.report.plots import (
    BLUE,
    CARD_WIDTH,
    GREEN,
    ORANGE,
    curve,
    make_figure,
    name_rows,
    place_legend,
    short_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS: tuple[tuple[Metric, str], ...] = (
    ("accuracy", "accuracy (95% CI)"),
    ("nll", "log loss in nats (95% CI)"),
)
_BEST, _ALIKE, _WORSE = "best", "not significantly different from the best", "significantly worse"


def comparison_figure(comparison: ModelComparison) -> Figure:
    """One panel per metric, models from top to bottom."""
    figure, panels = make_figure(
        f"Models on the same {comparison.pairs:,} pairs", CARD_WIDTH, panels=2
    )
    figure.set_figheight(1.6 + 0.3 * len(comparison.models))
    for axis, (metric, label) in zip(panels, _PANELS, strict=True):
        _metric_panel(axis, comparison, metric)
        axis.set_xlabel(label)
        name_rows(axis, [short_name(model.name, 24) for model in comparison.models])
        axis.locator_params(axis="x", nbins=5)
        axis.margins(x=0.08)
    panels[1].tick_params(axis="y", labelleft=False)
    place_legend(figure)
    return figure


def _metric_panel(axis: Axes, comparison: ModelComparison, metric: Metric) -> None:
    best = comparison.best.by(metric)
    for place, model in enumerate(comparison.models):
        ends = getattr(model, f"{metric}_ci95")
        leads = model.name == best.name
        alike = model.name in best.not_significantly_better_than
        color = ORANGE if leads else BLUE
        if ends is not None:
            axis.hlines(place, *ends, color=color, alpha=0.3, linewidth=4)
        axis.plot(
            getattr(model, metric),
            place,
            color=color,
            marker="*" if leads else "o",
            markersize=13 if leads else 6,
            markerfacecolor="white" if alike else None,
            linestyle="none",
            label=_BEST if leads else _ALIKE if alike else _WORSE,
        )


def best_of_figure(result: BestOf, width: float = CARD_WIDTH) -> Figure:
    """Gold beside its oracle, and the proxy, over sqrt(KL), with n at the ticks."""
    figure, (left, right) = make_figure(f"Best-of-n on {result.prompts:,} prompts", width, panels=2)
    _curve(left, result, "oracle", GREEN, "oracle: grade of the best response")
    _curve(left, result, "gold", BLUE, "gold: grade of the model's choice")
    left.set_ylabel("mean grade (95% CI)")
    _curve(right, result, "proxy", ORANGE, "proxy: reward of the model's choice")
    right.set_ylabel("reward − prompt mean (95% CI)")
    ticks = result.main_points
    for axis in (left, right):
        axis.set_xticks([point.kl**0.5 for point in ticks], [str(point.n) for point in ticks])
        axis.set_xlabel("n, spaced by √KL")
    place_legend(figure)
    return figure


def _curve(
    axis: Axes, result: BestOf, name: Literal["gold", "oracle", "proxy"], color: str, label: str
) -> None:
    points = [
        (point.kl**0.5, getattr(point, name), getattr(point, f"{name}_ci95"))
        for point in result.curve
    ]
    curve(axis, points, color, label, linewidth=1.5, markersize=3.5)
