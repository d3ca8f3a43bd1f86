"""Plots of recorded metrics: one function per picture and one row in a table.

A plot of :data:`RUN_PLOTS` takes the metrics of a run, one of :data:`EVALUATION_PLOTS` those of one
evaluation; each returns a figure, or ``None`` where there is nothing to draw.
They compute nothing. Figures are made without pyplot, which keeps global state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from plaudit.evaluation.numbers import words
from plaudit.evaluation.schema import (
    EvaluationMetrics,
    HistoryEntry,
    Interval,
    LengthBin,
    RunMetrics,
    read_recorded,
)
from plaudit.recipe.objectives import ITEMS
from plaudit.report.record import PLOTS_FOLDER, SCORES, shown_evaluation, without_controls
from plaudit.storage.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#6E6E6E"
GRID, INK = "#E4E4E4", "#404040"
_BASELINE_STYLES = ((ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"))

CARD_WIDTH, PAGE_WIDTH = 7.2, 4.6
"""Inches. A page shows 72 pixels of each: one figure fills a phone, three a desktop, and letters
have one size. A card shows one figure below the other."""

_SIDE_BY_SIDE = 6.0
"""Panels of a narrower figure stand one below the other."""


Subject = TypeVar("Subject")


class Plot(NamedTuple, Generic[Subject]):
    """How a picture is drawn in a width of so many inches, and what it shows in words.

    The legend is added to what ``draw`` returns.
    """

    draw: Callable[[Subject, float], Figure | None]
    caption: str


class Drawn(NamedTuple):
    """A picture with its file name (no ending) and its caption."""

    name: str
    figure: Figure
    caption: str


def write_plots(folder: Path) -> list[Path]:
    """Draw every plot that there are metrics for into ``folder/plots``; returns the files written.

    Those of an evaluation are drawn of the test data where there are any. Raises DataError (no
    readable metrics.json) and OutputError (the disk).
    """
    metrics = read_recorded(folder)
    block = shown_evaluation(metrics)
    written = []
    of_run = drawn_plots(RUN_PLOTS, metrics) if isinstance(metrics, RunMetrics) else ()
    for drawn in (*of_run, *(drawn_plots(EVALUATION_PLOTS, block) if block else ())):
        path = folder / PLOTS_FOLDER / f"{drawn.name}.png"
        write_atomically(path, partial(save_figure, drawn.figure))
        written.append(path)
    for name in {*RUN_PLOTS, *EVALUATION_PLOTS} - {path.stem for path in written}:
        (folder / PLOTS_FOLDER / f"{name}.png").unlink(missing_ok=True)
    return written


def drawn_plots(
    table: Mapping[str, Plot[Subject]], subject: Subject, width: float = CARD_WIDTH
) -> Iterator[Drawn]:
    """The pictures of a table that the subject has numbers for."""
    for name, plot in table.items():
        figure = plot.draw(subject, width)
        if figure is not None:
            place_legend(figure)
            yield Drawn(name, figure, plot.caption)


def card_plots(metrics: RunMetrics, folder: Path) -> list[tuple[str, str]]:
    """(file name, caption) of the plots in ``folder/plots``; the caption names the data."""
    block = shown_evaluation(metrics)
    plots: dict[str, Plot[Any]] = {**RUN_PLOTS, **EVALUATION_PLOTS}
    return [
        (name, plot.caption + (_measured_on(block, name) if name in EVALUATION_PLOTS else ""))
        for name, plot in plots.items()
        if (folder / PLOTS_FOLDER / f"{name}.png").is_file()
    ]


def _measured_on(block: EvaluationMetrics | None, name: str) -> str:
    """The data of a plot, behind its caption."""
    if block is None:
        return ""
    if name == "outputs":
        return f" ({block.dataset} set)"
    rated = block.ratings is not None and (name == "ratings" or not block.pairs)
    count = (
        f"{block.ratings.responses:,} rated responses"
        if rated and block.ratings
        else f"{block.pairs:,} pairs"
    )
    return f" ({block.dataset} set, {count})"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file."""
    # The version matplotlib writes by default would change the bytes with every release.
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def make_figure(
    title: str, width: float, panels: int = 1, rows: Sequence[int] = (1,)
) -> tuple[Figure, list[Axes]]:
    """A figure with panels beside each other and rows of these relative heights.

    Where it is narrow the panels stand one below the other.
    """
    from matplotlib.figure import Figure

    height = 1.2 + 0.42 * width
    if width < _SIDE_BY_SIDE and panels > 1:
        height, rows, panels = 0.85 * panels * height, (1,) * panels, 1
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = [*figure.subplots(len(rows), panels, squeeze=False, height_ratios=rows).flat]
    figure.suptitle(title, fontsize=12.5, x=0.02, ha="left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(GREY)
        axis.grid(axis="y", color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=INK, labelsize=10)
        for name in (axis.xaxis, axis.yaxis):
            name.label.set_fontsize(10.5)
    return figure, axes


def place_legend(figure: Figure) -> None:
    """One legend of all panels below them, where no data are, in as many columns as fit."""
    handles: dict[str, Artist] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(
            handles.values(),
            handles,
            loc="outside lower left",
            ncols=columns,
            fontsize=10,
            frameon=False,
            borderpad=0.2,
            columnspacing=1.2,
            handlelength=1.7,
            handletextpad=0.5,
            labelspacing=0.3,
        )
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width - 0.2 * figure.dpi or columns == 1:
            # The panels keep their height.
            figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
            break
        legend.remove()


def by_step(axis: Axes, label: str) -> None:
    """An axis of optimizer steps, and the label of the other one."""
    from matplotlib.ticker import MaxNLocator

    axis.set(xlabel="optimizer step", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axis.xaxis.set_major_formatter("{x:,.0f}")


def curve(
    axis: Axes,
    points: Sequence[tuple[float, float, Interval | None]],
    color: str,
    label: str,
    *,
    linewidth: float = 1.8,
    markersize: float = 4.5,
) -> None:
    """A line through points (x, y, interval of y) with its band; a lone interval is a bar."""
    x, y, _ = zip(*points, strict=True)
    banded = [(at, *ends) for at, _, ends in points if ends is not None]
    if len(banded) == 1:
        axis.vlines(*banded[0], color=color, alpha=0.35, linewidth=6)
    elif banded:
        at, lows, highs = zip(*banded, strict=True)
        axis.fill_between(at, lows, highs, color=color, alpha=0.16, linewidth=0)
    style: dict[str, Any] = {"linewidth": linewidth, "marker": "o", "markersize": markersize}
    axis.plot(x, y, color=color, label=label, **style)


def _history(metrics: RunMetrics) -> tuple[HistoryEntry, ...]:
    return (metrics.eval.history if metrics.eval else None) or ()


def losses(metrics: RunMetrics, width: float) -> Figure | None:
    """Training and validation loss by step, the best checkpoint marked."""
    training = [(p.step, p.loss) for p in metrics.training_curve if p.loss is not None]
    validation = {
        entry.step: entry.validation_loss
        for entry in _history(metrics)
        if entry.validation_loss is not None
    }
    if not training and not validation:
        return None
    figure, (axis,) = make_figure("Loss", width)
    if training:
        mark = "o" if len(training) == 1 else None
        style: dict[str, Any] = {"alpha": 0.75, "linewidth": 1.1, "marker": mark}
        axis.plot(*zip(*training, strict=True), color=GREY, label="training", **style)
    if validation:
        # Pairwise and listwise objectives are all validated by the loss of Bradley-Terry.
        other = _family(metrics) != "pointwise" and metrics.run.loss != "bradley_terry"
        label = "validation (Bradley-Terry)" if other else "validation"
        curve(axis, [(*point, None) for point in validation.items()], BLUE, label)
    if (best := metrics.best) is not None and best.step in validation:
        loss = validation[best.step]
        label = f"best checkpoint: step {best.step:,}, {loss:.4f}"
        axis.plot(best.step, loss, "*", color=ORANGE, markersize=15, label=label)
    item = ITEMS[_family(metrics)]
    unit = "" if metrics.run.loss in _NOT_IN_NATS else " (nats)"
    by_step(axis, f"mean loss per {item}{unit}")
    return figure


_NOT_IN_NATS = ("hinge", "mse", "huber")


def _family(metrics: RunMetrics) -> str:
    """Whether the loss is of pairs, of rankings or of single responses."""
    objective = metrics.run.objective
    return "pairwise" if objective is None else objective.family


def accuracy(metrics: RunMetrics, width: float) -> Figure | None:
    """Accuracy by step with its 95% band, baselines as lines."""
    points = [
        (entry.step, entry.accuracy, entry.accuracy_ci95)
        for entry in _history(metrics)
        if entry.accuracy is not None
    ]
    if not points or metrics.eval is None:
        return None
    figure, (axis,) = make_figure("Accuracy on the evaluation set", width)
    curve(axis, points, BLUE, "this model, 95% CI")
    known = [
        (name, one.accuracy)
        for name, one in metrics.eval.baselines.items()
        if one is not None and one.accuracy is not None
    ]
    for (name, value), (color, line) in zip(known, cycle(_BASELINE_STYLES), strict=False):
        label = f"{words(name)}: {value:.3f}"
        axis.axhline(value, color=color, linestyle=line, linewidth=1.3, label=label)
    reference(axis.axhline, CHANCE._replace(label="chance: 0.500"))
    by_step(axis, "accuracy")
    return figure


def ratings(block: EvaluationMetrics, width: float) -> Figure | None:
    """Expected against given ratings; of labels 0 and 1 the share of good ones by probability."""
    curve_of = block.curves.ratings
    if curve_of is None:
        return None
    bins, labels = curve_of.bins, curve_of.by == "expected"
    figure, (axis,) = make_figure("Expected and given ratings", width)
    ends = (0.0, 1.0)
    if labels:
        points = [(one.expected, one.given, one.given_ci95) for one in bins]
        curve(axis, points, BLUE, "share of good responses, 95% CI")
        axis.set(xlabel="expected probability of a good response", ylabel="share that is good")
    else:
        points = [
            (one.given, one.expected, Interval(one.expected_p5, one.expected_p95)) for one in bins
        ]
        curve(axis, points, BLUE, "mean expected rating, 5th to 95th percentile")
        axis.set(xlabel="given rating", ylabel="expected rating")
        ends = (bins[0].given, bins[-1].given)
    axis.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", label="expected as given")
    return figure


def rewards(block: EvaluationMetrics, width: float) -> Figure | None:
    """Histograms of rewards (chosen, rejected) and of their differences."""
    reward, margin = block.curves.reward, block.curves.margin
    if not reward or not margin:
        return None
    figure, (left, right) = make_figure("Rewards", width, panels=2)
    sides = (("chosen", reward.chosen, BLUE), ("rejected", reward.rejected, ORANGE))
    for name, counts, color in sides:
        left.stairs(counts, reward.edges, fill=True, alpha=0.3, color=color, linewidth=0)
        left.stairs(counts, reward.edges, color=color, linewidth=1.4, label=name)
    left.set(xlabel="reward", ylabel="responses")
    difference_histogram(right, margin.pairs, margin.edges, ("correct or tied", "wrong"))
    right.axvline(0, color=INK, linewidth=0.9)
    right.set(xlabel="reward margin, chosen − rejected", ylabel="pairs")
    for axis in (left, right):
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useOffset=False)
        axis.locator_params(axis="x", nbins=6)
        axis.locator_params(axis="y", integer=True)
    return figure


def difference_histogram(
    axis: Axes, counts: Sequence[int], edges: Sequence[float], labels: tuple[str, str]
) -> None:
    """A histogram of differences in two colours: bins above zero, and bins below."""
    for label, color, sign in zip(labels, (BLUE, ORANGE), (1, -1), strict=True):
        side = [
            number if sign * (low + high) > 0 else 0
            for number, (low, high) in zip(counts, pairwise(edges), strict=True)
        ]
        axis.stairs(side, edges, fill=True, color=color, alpha=0.75, label=label)


def length(block: EvaluationMetrics, width: float) -> Figure | None:
    """Accuracy by how much longer the chosen response is."""
    bins = block.curves.length
    style = Style(BLUE, "o", "95% CI")
    rows = [
        Row(f"{_range(entry)} ({entry.pairs:,})", entry.accuracy, entry.accuracy_ci95, style)
        for entry in bins
    ]
    lines = (*_overall(block), CHANCE)
    figure = dot_plot("Accuracy by length difference", width, rows, lines, xlabel="accuracy")
    shorter = sum(entry.high < 0 for entry in bins)
    if figure is not None and shorter:
        span: dict[str, Any] = {"color": GREY, "alpha": 0.1, "linewidth": 0}
        figure.axes[0].axhspan(-0.6, shorter - 0.5, label="chosen shorter", **span)
    return figure


def _overall(block: EvaluationMetrics) -> tuple[Reference, ...]:
    """A line at the accuracy of all pairs."""
    accuracy = block.accuracy
    return () if accuracy is None else (Reference(accuracy, f"all pairs: {accuracy:.3f}"),)


def _range(entry: LengthBin) -> str:
    low, high = (f"{end:+,}".replace("-", "−") for end in (entry.low, entry.high))
    if entry.low == entry.high:
        return "equal" if entry.low == 0 else low
    return f"{low} to {high}"


def reliability(block: EvaluationMetrics, width: float) -> Figure | None:
    """Accuracy by confidence, before and after the temperature, over the pairs of each bin."""
    curves = block.curves
    if not curves.reliability:
        return None
    figure, (axis, counts) = make_figure("Reliability diagram", width, rows=(3, 1))
    axis.plot(
        [0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle="--", label="perfect calibration"
    )
    fitted = curves.reliability_calibrated
    for entries, ece, color, mark, label in (
        (curves.reliability, block.ece, BLUE, "o", "uncalibrated"),
        (fitted, block.ece_calibrated, ORANGE, "s", "fitted temperature (cross-fitted)"),
    ):
        if not entries or ece is None:
            continue
        x = [entry.confidence for entry in entries]
        y = [entry.accuracy for entry in entries]
        ends = (e.accuracy_ci95 or (e.accuracy, e.accuracy) for e in entries)
        lows, highs = zip(*ends, strict=True)
        axis.vlines(x, lows, highs, color=color, alpha=0.3, linewidth=3)
        text = f"{label}: ECE {ece:.3f}"
        axis.plot(x, y, color=color, marker=mark, markersize=4.5, linewidth=1.5, label=text)
        pairs = [entry.pairs for entry in entries]
        counts.vlines(x, 0, pairs, color=color, alpha=0.5, linewidth=4)
        counts.plot(x, pairs, color=color, marker=mark, markersize=3.5, linestyle="none")
    axis.set(ylabel="accuracy (95% CI)", xlim=(0.49, 1.01))
    axis.tick_params(labelbottom=False)
    counts.set(
        xlabel="confidence (probability of the preferred response)",
        ylabel="pairs",
        xlim=(0.49, 1.01),
    )
    counts.set_ylim(bottom=0)
    counts.locator_params(axis="y", nbins=3, integer=True)
    return figure


def risk_coverage(block: EvaluationMetrics, width: float) -> Figure | None:
    """Share of errors among the most confident pairs, by how many of all pairs they are."""
    points = [
        (point.coverage, point.risk, point.risk_ci95)
        for point in block.curves.risk_coverage
        if point.risk is not None
    ]
    if not points:
        return None
    figure, (axis,) = make_figure("Risk-coverage curve", width)
    curve(axis, points, BLUE, f"this model, 95% CI (area {block.aurc:.3f})", markersize=4)
    _, overall, _ = points[-1]
    reference(axis.axhline, Reference(overall, f"all pairs: {overall:.3f}", GREY))
    axis.set(xlabel="coverage: share of pairs, most confident first", ylabel="error rate")
    axis.set_xlim(0, 1.02)
    axis.set_ylim(bottom=0)
    return figure


def outputs(block: EvaluationMetrics, width: float) -> Figure | None:
    """Accuracy by the labels of each name: that of the output of the name, and of the others."""
    measured = [one for one in block.outputs if one.own.accuracy is not None][:_MOST_ROWS]
    rows = [
        Row(
            f"{short_name(one.name)}\u200e ({one.own.pairs:,})",
            one.own.accuracy,
            one.own.accuracy_ci95,
            OWN,
        )
        for one in measured
    ]
    label = "accuracy; pairs in parentheses"
    figure = dot_plot("Accuracy by the labels of each name", width, rows, (CHANCE,), xlabel=label)
    if figure is None:
        return None
    (axis,) = figure.axes
    for place, one in enumerate(measured):
        for other in block.outputs:
            if other.name == one.name:
                continue
            cell = next(cell for cell in other.attributes if cell.attribute == one.name)
            color, marker, label = OTHER
            style: dict[str, Any] = {"color": color, "markersize": 5, "label": label}
            axis.plot(cell.accuracy or 0.0, place, marker, fillstyle="none", **style)
    return figure


def uncertainty(block: EvaluationMetrics, width: float) -> Figure | None:
    """Error rate among the pairs that are kept, by each score that may say which to leave out."""
    found = block.uncertainty
    if found is None or not found.pairs:
        return None
    figure, (axis,) = make_figure("Error rate by uncertainty", width)
    styles = {"spread": (BLUE, "o"), "relative_spread": (GREEN, "s"), "margin": (ORANGE, "^")}
    for one in found.scores:
        points = [(p.coverage, p.risk) for p in one.risk_coverage if p.risk is not None]
        color, marker = styles[one.score]
        label = SCORES[one.score]
        if one.aurc is not None:
            label += f" (area {one.aurc:.3f})"
        axis.plot(
            *zip(*points, strict=True),
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1.6,
            label=label,
        )
    axis.set(xlabel="coverage: share of pairs, most certain first", ylabel="error rate")
    axis.set_xlim(0, 1.02)
    axis.set_ylim(bottom=0)
    return figure


def coverage(block: EvaluationMetrics, width: float) -> Figure | None:
    """What the heads say with a probability against how often it is so."""
    found = block.uncertainty
    if found is None:
        return None
    pairs = [(one.level, one.accuracy, one.accuracy_ci95) for one in found.levels if one.pairs]
    of_pairs = [(level, value, ends) for level, value, ends in pairs if value is not None]
    of_ratings = [
        (one.level, one.coverage, one.coverage_ci95)
        for one in (found.ratings.levels if found.ratings is not None else ())
    ]
    if not of_pairs and not of_ratings:
        return None
    figure, (axis,) = make_figure("Nominal and real probability", width)
    if of_pairs:
        curve(axis, of_pairs, BLUE, "accuracy of pairs at least as sure, 95% CI")
    if of_ratings:
        curve(axis, of_ratings, ORANGE, "ratings in the interval, 95% CI")
    axis.plot((0.5, 1), (0.5, 1), color=GREY, linewidth=1, linestyle="--", label="as stated")
    axis.set(xlabel="probability that the heads state", ylabel="share that is so")
    axis.set_ylim(0, 1.02)
    return figure


_MOST_ROWS = 14


class Style(NamedTuple):
    """How the rows of one kind are marked; colour is never the only sign."""

    color: str
    marker: str
    label: str


class Row(NamedTuple):
    """A line of a dot plot; a value that does not exist stands at zero."""

    label: str
    value: float | None
    ends: Sequence[float] | None
    style: Style


class Reference(NamedTuple):
    """A line at a value that others are compared with."""

    value: float
    label: str
    color: str = INK
    linestyle: Any = "--"


CHANCE = Reference(0.5, "chance", GREY, (0, (1, 3)))

NOT_SIGNIFICANT = Style(BLUE, "o", "not significant")
SIGNIFICANT = Style(ORANGE, "D", "significant after adjustment")
BELOW = Style(ORANGE, "v", "significantly below the rest")
ABOVE = Style(GREEN, "^", "significantly above the rest")
OWN = Style(BLUE, "o", "output of this name, 95% CI")
OTHER = Style(GREY, "D", "other outputs")
_KINDS = {
    "degradation": ("fell", Style(BLUE, "o", "degradation: fell (high is good)")),
    "meaning_preserving": (
        "flipped",
        Style(GREEN, "s", "meaning-preserving: flipped (low is good)"),
    ),
    "reward_hacking": ("rose", Style(ORANGE, "^", "reward hacking: rose (low is good)")),
}
"""The rate by which a kind of perturbations is judged, and how its rows are marked."""


def slices(block: EvaluationMetrics, width: float) -> Figure | None:
    """Accuracy of slices with their intervals: significant ones first, then the largest."""
    known = [
        entry
        for entry in block.slices
        if not entry.small and entry.pairs < block.pairs and entry.accuracy_ci95
    ]
    # Stable sorts: by significance, then by size, as the report's table can be sorted too.
    known.sort(key=lambda entry: (not entry.significant, -entry.pairs))
    rows = [
        Row(
            # The mark keeps the count behind a name that is written from right to left.
            label=f"{short_name(words(entry.column) + ': ' + str(entry.value))}\u200e "
            f"({entry.pairs:,})",
            value=entry.accuracy,
            ends=entry.accuracy_ci95,
            style=NOT_SIGNIFICANT
            if not entry.significant
            else BELOW
            if (entry.accuracy or 0.0) < (block.accuracy or 0.0)
            else ABOVE,
        )
        for entry in known[:_MOST_ROWS]
    ]
    label = "accuracy (95% CI); number of pairs in parentheses"
    return dot_plot("Accuracy by slice", width, rows, _overall(block), xlabel=label)


def perturbations(block: EvaluationMetrics, width: float) -> Figure | None:
    """Shares of perturbed responses whose reward fell (degradation), flipped or rose."""
    if block.perturbations is None:
        return None
    rows = []
    for row in block.perturbations.rows:
        rate, style = _KINDS[row.kind]
        if getattr(row, rate) is not None:
            ends = getattr(row, f"{rate}_ci95")
            rows.append(Row(words(row.perturbation), getattr(row, rate), ends, style))
    label = "share of responses (95% CI)"
    return dot_plot("Perturbation tests", width, rows, (CHANCE,), xlabel=label)


def bias(block: EvaluationMetrics, width: float) -> Figure | None:
    """The gap of each feature that could be compared, with its interval."""
    rows = [
        Row(
            label=f"{words(row.feature)} ({row.pairs:,})",
            value=row.gap,
            ends=row.gap_ci95,
            style=SIGNIFICANT if row.significant else NOT_SIGNIFICANT,
        )
        for row in block.bias.features
        if row.gap is not None and row.p is not None
    ]
    label = "gap in accuracy, more − less (95% CI)"
    return dot_plot("Feature bias", width, rows, (Reference(0, "no bias"),), xlabel=label)


def dot_plot(
    title: str, width: float, rows: Sequence[Row], lines: Iterable[Reference], *, xlabel: str
) -> Figure | None:
    """Values with their intervals, one below the other; None without rows.

    With chance among the lines the axis shows all shares.
    """
    if not rows:
        return None
    figure, (axis,) = make_figure(title, width)
    figure.set_figheight(1.3 + 0.27 * len(rows))
    for place, row in enumerate(rows):
        color, marker, label = row.style
        if row.ends is not None:
            axis.hlines(place, row.ends[0], row.ends[1], color=color, alpha=0.35, linewidth=5)
        axis.plot(row.value or 0.0, place, marker, color=color, markersize=6, label=label)
    name_rows(axis, [row.label for row in rows])
    for line in lines:
        reference(axis.axvline, line)
        if line is CHANCE:
            axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel(xlabel)
    return figure


def reference(draw: Callable[..., object], line: Reference) -> None:
    """Draw a reference line with ``axis.axhline`` or ``axis.axvline``."""
    value, label, color, linestyle = line
    draw(value, color=color, linewidth=1, linestyle=linestyle, label=label)


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Rows from top to bottom with their names, which may come from data."""
    axis.set_yticks(range(len(names)))
    # A dollar sign in a name begins no formula.
    axis.set_yticklabels(names, parse_math=False, fontfamily=families_for(names))
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", color=GRID, linewidth=0.8)


def short_name(name: str, most: int = 38) -> str:
    """A name out of data as a label: one line that can be drawn."""
    line = " ".join(without_controls(drawable(name[:most])).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


RUN_PLOTS: dict[str, Plot[RunMetrics]] = {
    "losses": Plot(losses, "Training and validation loss. The star marks the best checkpoint."),
    "accuracy": Plot(
        accuracy, "Accuracy on the evaluation set with its 95% CI, beside the baselines."
    ),
}

EVALUATION_PLOTS: dict[str, Plot[EvaluationMetrics]] = {
    "ratings": Plot(
        ratings,
        "Expected against given ratings; of labels 0 and 1, the share of good responses by "
        "their expected probability.",
    ),
    "outputs": Plot(
        outputs,
        "Accuracy of each output by the labels of its name, beside that of the other outputs.",
    ),
    "uncertainty": Plot(
        uncertainty,
        "Error rate among the most certain pairs, by the share of pairs kept, for each measure of "
        "certainty.",
    ),
    "coverage": Plot(
        coverage,
        "Probability that the heads state, against the share of pairs that are ranked correctly or "
        "of ratings that are inside.",
    ),
    "rewards": Plot(
        rewards, "Rewards of chosen and rejected responses, and the reward margins of the pairs."
    ),
    "reliability": Plot(
        reliability,
        "Accuracy by confidence, uncalibrated and with a fitted temperature, and the number of "
        "pairs in each bin.",
    ),
    "risk_coverage": Plot(
        risk_coverage, "Error rate among the most confident pairs, by the share of pairs kept."
    ),
    "length": Plot(
        length,
        "Accuracy by how many characters longer the chosen response is than the rejected one. "
        "The number of pairs is in parentheses.",
    ),
    "slices": Plot(
        slices,
        f"Accuracy by slice with its 95% CI: at most {_MOST_ROWS} slices, significant ones first, "
        "then the largest. Slices with few pairs are left out.",
    ),
    "perturbations": Plot(
        perturbations,
        "Perturbed good responses: degradation should lower the reward, a meaning-preserving "
        "perturbation should not flip the ranking, and reward hacking should not raise the reward.",
    ),
    "bias": Plot(
        bias,
        "Accuracy where the better response has more of a feature − accuracy where it has less. "
        "It is zero without bias. Features with few pairs are left out.",
    ),
}


# ---- fonts: letters that matplotlib's own lacks come from another installed font, else they are
# drawn as code points. None is bundled: one for Chinese, Japanese and Korean alone weighs more than
# all of plaudit. Pages need none, as the browser draws their texts with its own fonts.

_NO_LETTERS = re.compile(
    r"Last ?Resort|Emoji|Symbols?\b|STIX(Non|Size)|^cm[a-z]{1,2}\d", re.IGNORECASE
)
"""Families that draw boxes, bitmaps or formulas."""


def drawable(text: str) -> str:
    """``text`` with the code point of every letter that no installed font has: ``U+0E44``."""
    lacking = _fallbacks(_absent(text))[1]
    return "".join(f" U+{ord(letter):04X} " if letter in lacking else letter for letter in text)


def families_for(texts: Iterable[str]) -> list[str]:
    """Font families that have the letters of these texts between them, matplotlib's own first."""
    import matplotlib

    return [*matplotlib.rcParams["font.family"], *_fallbacks(_absent("".join(texts)))[0]]


def _absent(text: str) -> frozenset[str]:
    """The letters of ``text`` that matplotlib's own font lacks."""
    from matplotlib.font_manager import FontProperties, findfont

    has = _letters(findfont(FontProperties()))
    return frozenset(letter for letter in text if letter.isprintable() and ord(letter) not in has)


@lru_cache(maxsize=64)
def _fallbacks(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Installed families that have ``letters``, the fewest that do, and the letters none has."""
    if not letters:
        return (), letters
    from matplotlib.font_manager import fontManager

    regular = {
        entry.name: entry.fname
        for entry in fontManager.ttflist
        if entry.style == "normal"
        and entry.weight in (400, "normal", "regular", "book")
        and not _NO_LETTERS.search(entry.name)
    }
    # Of fonts that have the same letters a sans serif one, as the rest of the figure.
    names = sorted(regular, key=lambda name: ("Sans" not in name, "Mono" in name, name))
    wanted = {ord(letter) for letter in letters}
    had = {name: wanted & _letters(regular[name]) for name in names}
    chosen: list[str] = []
    while had and (best := max(had, key=lambda name: len(had[name] & wanted))):
        if not had[best] & wanted:
            break
        wanted -= had.pop(best)
        chosen.append(best)
    return tuple(chosen), frozenset(map(chr, wanted))


@lru_cache(maxsize=512)
def _letters(path: str) -> frozenset[int]:
    """Code points that a font file has outlines for."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        # A damaged or unusual font of the machine is none of the figure's business.
        return frozenset()
