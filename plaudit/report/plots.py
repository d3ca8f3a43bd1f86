"""Plots of recorded facts: one function per picture and one row in a table.

A plot of :data:`RUN_PLOTS` takes the metrics of a run, one of :data:`EVALUATION_PLOTS` those of one
evaluation; each returns a figure, or ``None`` where there is nothing to draw.
They compute nothing. Figures are made without pyplot, which keeps global state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from plaudit.evaluation.numbers import words
from plaudit.evaluation.schema import (
    BaselineMetrics,
    EvaluationMetrics,
    HistoryEntry,
    Interval,
    LengthBin,
    MarginHistogram,
    Perturbation,
    RunMetrics,
    read_recorded,
)
from plaudit.report.record import PLOTS_FOLDER, shown_evaluation
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
    """How a picture is drawn in a width of so many inches, and what it shows in words."""

    draw: Callable[[Subject, float], Figure | None]
    caption: str


class Drawn(NamedTuple):
    """A picture with its file name (no ending) and its caption."""

    name: str
    figure: Figure
    caption: str


def write_plots(folder: Path) -> list[Path]:
    """Draw every plot there are facts for into ``folder/plots``; returns the files written.

    Those of an evaluation are drawn of the test data where there are any. Raises DataError (no
    readable metrics.json) and OutputError (the disk).
    """
    metrics = read_recorded(folder)
    block = shown_evaluation(metrics)
    written = []
    of_run = run_plots(metrics) if isinstance(metrics, RunMetrics) else ()
    for drawn in (*of_run, *(evaluation_plots(block) if block else ())):
        path = folder / PLOTS_FOLDER / f"{drawn.name}.png"
        write_atomically(path, partial(save_figure, drawn.figure))
        written.append(path)
    for name in {*RUN_PLOTS, *EVALUATION_PLOTS} - {path.stem for path in written}:
        (folder / PLOTS_FOLDER / f"{name}.png").unlink(missing_ok=True)
    return written


def run_plots(metrics: RunMetrics, width: float = CARD_WIDTH) -> Iterator[Drawn]:
    """The pictures of a training run."""
    return drawn_plots(RUN_PLOTS, metrics, width)


def evaluation_plots(block: EvaluationMetrics, width: float = CARD_WIDTH) -> Iterator[Drawn]:
    """The pictures of one evaluation."""
    return drawn_plots(EVALUATION_PLOTS, block, width)


def drawn_plots(
    table: Mapping[str, Plot[Subject]], subject: Subject, width: float
) -> Iterator[Drawn]:
    """The pictures of a table that the subject has numbers for."""
    for name, plot in table.items():
        figure = plot.draw(subject, width)
        if figure is not None:
            yield Drawn(name, figure, plot.caption)


def card_plots(metrics: RunMetrics, folder: Path) -> list[tuple[str, str]]:
    """(file name, caption) of the plots in ``folder/plots``; the caption names the data."""
    block = shown_evaluation(metrics)
    of = "" if block is None else f" ({block.dataset} data, {block.pairs:,} pairs.)"
    captions = {name: plot.caption for name, plot in RUN_PLOTS.items()}
    captions |= {name: plot.caption + of for name, plot in EVALUATION_PLOTS.items()}
    return [
        (name, caption)
        for name, caption in captions.items()
        if (folder / PLOTS_FOLDER / f"{name}.png").is_file()
    ]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
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
    grid = figure.add_gridspec(len(rows), panels, height_ratios=rows)
    axes = [figure.add_subplot(grid[number]) for number in range(len(rows) * panels)]
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


def _steps(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_xlabel("optimizer step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _history(metrics: RunMetrics) -> tuple[HistoryEntry, ...]:
    return (metrics.eval.history if metrics.eval else None) or ()


def losses(metrics: RunMetrics, width: float) -> Figure | None:
    """Training and validation loss by step, the best checkpoint marked."""
    training = [(p.step, p.loss) for p in metrics.training_curve if p.loss is not None]
    validation = [
        (entry.step, entry.validation_loss)
        for entry in _history(metrics)
        if entry.validation_loss is not None
    ]
    if not training and not validation:
        return None
    figure, (axis,) = make_figure("Loss", width)
    if training:
        mark = "o" if len(training) == 1 else None
        axis.plot(
            *zip(*training, strict=True),
            color=GREY,
            alpha=0.75,
            linewidth=1.1,
            marker=mark,
            label="training",
        )
    if validation:
        axis.plot(
            *zip(*validation, strict=True),
            color=BLUE,
            linewidth=1.8,
            marker="o",
            markersize=4.5,
            label="validation",
        )
    best = metrics.best
    for step, loss in validation:
        if best is not None and step == best.step:
            axis.plot(
                step,
                loss,
                color=ORANGE,
                marker="*",
                markersize=15,
                linestyle="none",
                label=f"best checkpoint: step {step:,}, {loss:.4f}",
            )
            break
    axis.set_ylabel("mean loss per pair (nats)")
    _steps(axis)
    place_legend(figure)
    return figure


def accuracy(metrics: RunMetrics, width: float) -> Figure | None:
    """Accuracy by step with its 95% band, baselines as lines."""
    history = [entry for entry in _history(metrics) if entry.accuracy is not None]
    if not history or metrics.eval is None:
        return None
    figure, (axis,) = make_figure("Accuracy on the evaluation data", width)
    banded = [(e.step, *e.accuracy_ci95) for e in history if e.accuracy_ci95 is not None]
    if len(banded) == 1:
        axis.vlines(*banded[0], color=BLUE, alpha=0.35, linewidth=6)
    elif banded:
        steps, lows, highs = zip(*banded, strict=True)
        axis.fill_between(steps, lows, highs, color=BLUE, alpha=0.16, linewidth=0)
    axis.plot(
        [entry.step for entry in history],
        [entry.accuracy or 0.0 for entry in history],
        color=BLUE,
        linewidth=1.8,
        marker="o",
        markersize=4.5,
        label="this model, 95% interval",
    )
    _baseline_lines(axis, metrics.eval.baselines)
    axis.axhline(0.5, color=GREY, linewidth=1, linestyle=(0, (1, 3)), label="chance: 0.5000")
    axis.set_ylabel("accuracy")
    _steps(axis)
    place_legend(figure)
    return figure


def _baseline_lines(axis: Axes, baselines: Mapping[str, BaselineMetrics | None]) -> None:
    known = {
        name: one.accuracy
        for name, one in baselines.items()
        if one is not None and one.accuracy is not None
    }
    for number, (name, value) in enumerate(known.items()):
        color, line = _BASELINE_STYLES[number % len(_BASELINE_STYLES)]
        label = f"{words(name)}: {value:.4f}"
        axis.axhline(value, color=color, linestyle=line, linewidth=1.3, label=label)


def rewards(block: EvaluationMetrics, width: float) -> Figure | None:
    """Histograms of rewards (chosen, rejected) and of their differences."""
    reward, margin = block.curves.reward, block.curves.margin
    if not reward or not margin:
        return None
    figure, (left, right) = make_figure("Rewards", width, panels=2)
    for name, counts, color in (
        ("chosen", reward.chosen, BLUE),
        ("rejected", reward.rejected, ORANGE),
    ):
        left.stairs(counts, reward.edges, fill=True, alpha=0.3, color=color, linewidth=0)
        left.stairs(counts, reward.edges, color=color, linewidth=1.4, label=name)
    left.set_xlabel("reward")
    left.set_ylabel("responses")
    wrong = [n if edge < 0 else 0 for n, edge in _bins(margin)]
    right_side = [n if edge >= 0 else 0 for n, edge in _bins(margin)]
    right.stairs(right_side, margin.edges, fill=True, color=BLUE, alpha=0.75, label="right or tied")
    right.stairs(wrong, margin.edges, fill=True, color=ORANGE, alpha=0.75, label="wrong")
    right.axvline(0, color=INK, linewidth=0.9)
    right.set_xlabel("difference, chosen − rejected")
    right.set_ylabel("pairs")
    place_legend(figure)
    for axis in (left, right):
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useOffset=False)
        axis.locator_params(axis="x", nbins=6)
        axis.locator_params(axis="y", integer=True)
    return figure


def _bins(histogram: MarginHistogram) -> list[tuple[int, float]]:
    return list(zip(histogram.pairs, histogram.edges[:-1], strict=True))


def length(block: EvaluationMetrics, width: float) -> Figure | None:
    """Accuracy by how much longer the chosen response is."""
    bins = block.curves.length
    if not bins:
        return None
    style = Style(BLUE, "o", "95% interval")
    rows = [
        Row(
            label=f"{_range(entry)} ({entry.pairs:,})",
            value=entry.accuracy or 0.0,
            ends=entry.accuracy_ci95,
            style=style,
        )
        for entry in bins
    ]
    figure, axis = dot_plot("Accuracy by length difference", width, rows)
    _overall(axis, block.accuracy)
    axis.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (1, 3)), label="chance")
    shorter = sum(entry.high < 0 for entry in bins)
    if shorter:
        axis.axhspan(
            -0.6, shorter - 0.5, color=GREY, alpha=0.1, linewidth=0, label="chosen shorter"
        )
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("accuracy")
    place_legend(figure)
    return figure


def _overall(axis: Axes, accuracy: float | None) -> None:
    """A line at the accuracy of all pairs."""
    if accuracy is None:
        return
    axis.axvline(
        accuracy, color=INK, linewidth=1, linestyle="--", label=f"all pairs: {accuracy:.4f}"
    )


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
    figure, (axis, counts) = make_figure(
        "Reliability: does confidence match accuracy?", width, rows=(3, 1)
    )
    axis.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle="--", label="perfect")
    for entries, ece, color, mark, label in (
        (curves.reliability, block.ece, BLUE, "o", "uncalibrated"),
        (
            curves.reliability_calibrated,
            block.ece_calibrated,
            ORANGE,
            "s",
            "temperature (cross-fitted)",
        ),
    ):
        if not entries or ece is None:
            continue
        x = [entry.confidence for entry in entries]
        y = [entry.accuracy for entry in entries]
        ends = (e.accuracy_ci95 or (e.accuracy, e.accuracy) for e in entries)
        lows, highs = zip(*ends, strict=True)
        axis.vlines(x, lows, highs, color=color, alpha=0.3, linewidth=3)
        text = f"{label}: ECE {ece:.4f}"
        axis.plot(x, y, color=color, marker=mark, markersize=4.5, linewidth=1.5, label=text)
        pairs = [entry.pairs for entry in entries]
        counts.vlines(x, 0, pairs, color=color, alpha=0.5, linewidth=4)
        counts.plot(x, pairs, color=color, marker=mark, markersize=3.5, linestyle="none")
    axis.set_ylabel("accuracy, 95%")
    axis.tick_params(labelbottom=False)
    place_legend(figure)
    counts.set_ylabel("pairs")
    counts.set_ylim(bottom=0)
    counts.locator_params(axis="y", nbins=3, integer=True)
    counts.set_xlabel("probability of the preferred response")
    for panel in (axis, counts):
        panel.set_xlim(0.49, 1.01)
    return figure


def risk_coverage(block: EvaluationMetrics, width: float) -> Figure | None:
    """Share of errors among the most confident pairs, by how many of all pairs they are."""
    points = [
        (point.coverage, point.risk, *(point.risk_ci95 or (point.risk, point.risk)))
        for point in block.curves.risk_coverage
        if point.risk is not None
    ]
    if not points:
        return None
    figure, (axis,) = make_figure("Error rate of the most confident pairs", width)
    x, y, lows, highs = zip(*points, strict=True)
    axis.fill_between(x, lows, highs, color=BLUE, alpha=0.16, linewidth=0)
    text = f"this model, 95% (area {block.aurc:.4f})"
    axis.plot(x, y, color=BLUE, linewidth=1.8, marker="o", markersize=4, label=text)
    axis.axhline(y[-1], color=GREY, linewidth=1, linestyle="--", label=f"all pairs: {y[-1]:.4f}")
    axis.set_xlim(0, 1.02)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("share of pairs answered, most confident first")
    axis.set_ylabel("error rate")
    place_legend(figure)
    return figure


_MOST_ROWS = 14


class Style(NamedTuple):
    """How the rows of one kind are marked; colour is never the only sign."""

    color: str
    marker: str
    label: str


class Row(NamedTuple):
    """A line of a dot plot."""

    label: str
    value: float
    ends: Sequence[float] | None
    style: Style


NOT_SIGNIFICANT = Style(BLUE, "o", "not significant")
BELOW = Style(ORANGE, "v", "significantly below the rest")
ABOVE = Style(GREEN, "^", "significantly above the rest")


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
            value=entry.accuracy or 0.0,
            ends=entry.accuracy_ci95,
            style=NOT_SIGNIFICANT
            if not entry.significant
            else BELOW
            if (entry.accuracy or 0.0) < (block.accuracy or 0.0)
            else ABOVE,
        )
        for entry in known[:_MOST_ROWS]
    ]
    if not rows:
        return None
    figure, axis = dot_plot("Accuracy by slice", width, rows)
    _overall(axis, block.accuracy)
    axis.set_xlabel("accuracy, 95% (number of pairs)")
    place_legend(figure)
    return figure


def perturbations(block: EvaluationMetrics, width: float) -> Figure | None:
    """Shares of perturbed responses whose reward fell (degradation), flipped or rose."""
    if block.perturbations is None:
        return None
    rows = [
        Row(words(row.perturbation), *_of_interest(row), _KINDS[row.kind])
        for row in block.perturbations.rows
        if row.responses
    ]
    if not rows:
        return None
    figure, axis = dot_plot("Perturbation tests", width, rows)
    axis.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (1, 3)), label="chance")
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("share of responses, 95%")
    place_legend(figure)
    return figure


def _of_interest(row: Perturbation) -> tuple[float, Interval | None]:
    """The rate by which a perturbation of this kind is judged, with its interval."""
    if row.kind == "degradation":
        return row.fell or 0.0, row.fell_ci95
    if row.kind == "meaning_preserving":
        return row.flipped or 0.0, row.flipped_ci95
    return row.rose or 0.0, row.rose_ci95


_KINDS = {
    "degradation": Style(BLUE, "o", "degradation: fell (high is good)"),
    "meaning_preserving": Style(GREEN, "s", "meaning-preserving: flipped (low is good)"),
    "reward_hacking": Style(ORANGE, "^", "reward hacking: rose (low is good)"),
}


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
    if not rows:
        return None
    figure, axis = dot_plot("Feature bias", width, rows)
    axis.axvline(0, color=INK, linewidth=1, linestyle="--", label="no bias")
    axis.set_xlabel("Δ accuracy, 95%: better response has more − has less (pairs)")
    place_legend(figure)
    return figure


SIGNIFICANT = Style(ORANGE, "D", "significant after adjustment")


def dot_plot(title: str, width: float, rows: Sequence[Row]) -> tuple[Figure, Axes]:
    """Values with their intervals, one below the other."""
    figure, (axis,) = make_figure(title, width)
    figure.set_figheight(1.3 + 0.27 * len(rows))
    for place, row in enumerate(rows):
        color, marker, label = row.style
        if row.ends is not None:
            axis.hlines(place, row.ends[0], row.ends[1], color=color, alpha=0.35, linewidth=5)
        axis.plot(row.value, place, marker, color=color, markersize=6, label=label)
    name_rows(axis, [row.label for row in rows])
    return figure, axis


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
    line = " ".join("".join(c if c.isprintable() else " " for c in drawable(name[:most])).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


RUN_PLOTS: dict[str, Plot[RunMetrics]] = {
    "losses": Plot(losses, "Training and validation loss; the star marks the best checkpoint."),
    "accuracy": Plot(
        accuracy, "Accuracy on the evaluation data with its 95% interval, and the baselines."
    ),
}

EVALUATION_PLOTS: dict[str, Plot[EvaluationMetrics]] = {
    "rewards": Plot(rewards, "Rewards of chosen and rejected responses, and their differences."),
    "reliability": Plot(
        reliability,
        "Accuracy by confidence, before and after the temperature, and how many pairs there are.",
    ),
    "risk_coverage": Plot(
        risk_coverage,
        "Share of errors when only the pairs that the model is surest of are counted.",
    ),
    "length": Plot(
        length,
        "Accuracy by how many characters longer the chosen response is than the rejected one; "
        "in brackets the number of pairs.",
    ),
    "slices": Plot(
        slices,
        "Accuracy by slice of the data, with its 95% interval: significant ones, then the largest, "
        f"at most {_MOST_ROWS}. Slices of few pairs are in the table alone.",
    ),
    "perturbations": Plot(
        perturbations,
        "Perturbed good responses: degradation should lower the reward, a meaning-preserving "
        "perturbation should not flip the ranking, and reward hacking should not raise the reward.",
    ),
    "bias": Plot(
        bias,
        "What can be counted in a response, and how much the model's accuracy depends on it: "
        "without bias the gap is zero. Features with few pairs either way are in the table alone.",
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
    return [*_default(), *_fallbacks(_absent("".join(texts)))[0]]


def _default() -> list[str]:
    import matplotlib

    return list(matplotlib.rcParams["font.family"])


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
        if entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
    }
    # Of fonts that have the same letters a sans serif one, as the rest of the figure.
    names = sorted(
        (name for name in regular if not _NO_LETTERS.search(name)),
        key=lambda name: ("Sans" not in name, "Mono" in name, name),
    )
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
