"""Plots of recorded facts: one function per picture and one row in :data:`PLOTS`.

A plot function takes the content of ``metrics.json`` and returns a figure, or ``None`` where the
facts hold nothing to draw. It computes nothing. Figures are made without pyplot, which keeps
global state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from plaudit.files import write_atomically
from plaudit.report.record import PLOTS_FOLDER, read_metrics, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot: TypeAlias = "Callable[[Mapping[str, Any]], Figure | None]"

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#6E6E6E"
_BASELINE_STYLES = ((ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"))
_SIZE = (7.2, 4.2)


def write_plots(folder: Path) -> list[Path]:
    """Draw every plot there are facts for into ``folder/plots``; returns the files written.

    Raises DataError (no readable metrics.json) and OutputError (the disk).
    """
    metrics = read_metrics(folder)
    written = []
    for name, draw in PLOTS.items():
        figure = draw(metrics)
        path = folder / PLOTS_FOLDER / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        write_atomically(path, partial(_save, figure))
        written.append(path)
    return written


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    # The version matplotlib writes by default would change the bytes with every release.
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def _figure(title: str, panels: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained", facecolor="white")
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(GREY)
        axis.grid(axis="y", color="#E4E4E4", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors="#404040", labelsize=9)
    return figure, axes


def _legend(axis: Axes, **options: Any) -> None:
    axis.legend(fontsize=8.5, frameon=False, **options)


def _steps(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_xlabel("optimizer step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _history(metrics: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    history = (metrics.get("eval") or {}).get("history") or []
    return [entry for entry in history if entry.get(key) is not None]


def losses(metrics: Mapping[str, Any]) -> Figure | None:
    """Training and validation loss by step, the kept step marked."""
    training = [row for row in metrics.get("training_curve") or [] if row.get("loss") is not None]
    validation = _history(metrics, "validation_loss")
    if not training and not validation:
        return None
    figure, (axis,) = _figure("Loss")
    if training:
        x, y = [row["step"] for row in training], [row["loss"] for row in training]
        mark = "o" if len(training) == 1 else None
        axis.plot(x, y, color=GREY, alpha=0.75, linewidth=1.1, marker=mark, label="training")
    if validation:
        x = [row["step"] for row in validation]
        y = [row["validation_loss"] for row in validation]
        axis.plot(x, y, color=BLUE, linewidth=1.8, marker="o", markersize=4.5, label="validation")
    best = metrics.get("best")
    kept = [row for row in validation if best and row["step"] == best["step"]]
    if kept:
        axis.plot(
            kept[0]["step"],
            kept[0]["validation_loss"],
            color=ORANGE,
            marker="*",
            markersize=15,
            linestyle="none",
            label=f"kept: step {kept[0]['step']:,}, {kept[0]['validation_loss']:.4f}",
        )
    axis.set_ylabel("mean loss per pair (nats)")
    _steps(axis)
    _legend(axis)
    return figure


def accuracy(metrics: Mapping[str, Any]) -> Figure | None:
    """Accuracy by step with its 95% band, baselines as lines."""
    history = _history(metrics, "accuracy")
    if not history:
        return None
    figure, (axis,) = _figure("Accuracy on the evaluation data")
    x, y = [row["step"] for row in history], [row["accuracy"] for row in history]
    banded = [row for row in history if row.get("accuracy_ci95")]
    lows = [row["accuracy_ci95"][0] for row in banded]
    highs = [row["accuracy_ci95"][1] for row in banded]
    if len(banded) == 1:
        axis.vlines(banded[0]["step"], lows, highs, color=BLUE, alpha=0.35, linewidth=6)
    else:
        steps = [row["step"] for row in banded]
        axis.fill_between(steps, lows, highs, color=BLUE, alpha=0.16, linewidth=0)
    axis.plot(
        x,
        y,
        color=BLUE,
        linewidth=1.8,
        marker="o",
        markersize=4.5,
        label="this model, 95% interval",
    )
    _baseline_lines(axis, metrics["eval"]["baselines"])
    axis.axhline(0.5, color=GREY, linewidth=1, linestyle=(0, (1, 3)), label="coin: 0.5000")
    axis.set_ylabel("share of pairs ranked right")
    _steps(axis)
    _legend(axis, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
    return figure


def _baseline_lines(axis: Axes, baselines: Mapping[str, Any]) -> None:
    known = {
        name: facts["accuracy"]
        for name, facts in baselines.items()
        if facts is not None and facts["accuracy"] is not None
    }
    for number, (name, value) in enumerate(known.items()):
        color, line = _BASELINE_STYLES[number % len(_BASELINE_STYLES)]
        label = f"{words(name)}: {value:.4f}"
        axis.axhline(value, color=color, linestyle=line, linewidth=1.3, label=label)


def rewards(metrics: Mapping[str, Any]) -> Figure | None:
    """Histograms of rewards (chosen, rejected) and of their differences."""
    curves = (metrics.get("eval") or {}).get("curves") or {}
    reward, margin = curves.get("reward"), curves.get("margin")
    if not reward or not margin:
        return None
    figure, (left, right) = _figure("Rewards on the evaluation data", panels=2)
    for name, color in (("chosen", BLUE), ("rejected", ORANGE)):
        left.stairs(reward[name], reward["edges"], fill=True, alpha=0.3, color=color, linewidth=0)
        left.stairs(reward[name], reward["edges"], color=color, linewidth=1.4, label=name)
    left.set_xlabel("reward")
    left.set_ylabel("responses")
    _legend(left)
    wrong = [n if edge < 0 else 0 for n, edge in _bins(margin)]
    right_side = [n if edge >= 0 else 0 for n, edge in _bins(margin)]
    right.stairs(
        right_side, margin["edges"], fill=True, color=BLUE, alpha=0.75, label="right or tied"
    )
    right.stairs(wrong, margin["edges"], fill=True, color=ORANGE, alpha=0.75, label="wrong")
    right.axvline(0, color="#404040", linewidth=0.9)
    right.set_xlabel("reward difference, chosen less rejected")
    right.set_ylabel("pairs")
    _legend(right)
    for axis in (left, right):
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useOffset=False)
        axis.locator_params(axis="x", nbins=6)
        axis.locator_params(axis="y", integer=True)
    return figure


def _bins(histogram: Mapping[str, Any]) -> list[tuple[int, float]]:
    return list(zip(histogram["pairs"], histogram["edges"][:-1], strict=True))


def length(metrics: Mapping[str, Any]) -> Figure | None:
    """Accuracy by how much longer the chosen response is."""
    bins = ((metrics.get("eval") or {}).get("curves") or {}).get("length")
    if not bins:
        return None
    figure, (axis,) = _figure("Accuracy against length difference")
    places = list(range(len(bins)))
    _points(axis, places, bins)
    axis.axhline(0.5, color=GREY, linewidth=1, linestyle=(0, (1, 3)))
    overall = metrics["eval"]["accuracy"]
    axis.axhline(
        overall, color=BLUE, linewidth=1, linestyle="--", label=f"all pairs: {overall:.4f}"
    )
    split = sum(entry["high"] < 0 for entry in bins)
    if 0 < split < len(bins):
        axis.axvspan(-0.6, split - 0.5, color=GREY, alpha=0.08, linewidth=0)
        axis.text(-0.5, 1.02, "chosen is shorter", fontsize=8.5, color=GREY)
    labels = [f"{_range(entry)}\n{entry['pairs']:,}" for entry in bins]
    axis.set_xticks(places, labels, fontsize=7.5)
    axis.set_xlim(-0.6, len(bins) - 0.4)
    axis.set_ylim(0, 1.08)
    axis.set_ylabel("share of pairs ranked right, 95%")
    axis.set_xlabel("characters of the chosen response less the rejected one's (last line: pairs)")
    _legend(axis, loc="lower right")
    return figure


def _range(entry: Mapping[str, Any]) -> str:
    low, high = (f"{entry[end]:+,}".replace("-", "−") for end in ("low", "high"))
    if entry["low"] == entry["high"]:
        return "equal" if entry["low"] == 0 else low
    return f"{low}\nto {high}"


def _points(axis: Axes, places: Sequence[float], entries: Sequence[Mapping[str, Any]]) -> None:
    """Accuracies with their intervals."""
    for place, entry in zip(places, entries, strict=True):
        if entry["accuracy_ci95"]:
            axis.vlines(place, *entry["accuracy_ci95"], color=BLUE, alpha=0.35, linewidth=5)
    axis.plot(places, [entry["accuracy"] for entry in entries], "o", color=BLUE, markersize=5)


def reliability(metrics: Mapping[str, Any]) -> Figure | None:
    """Accuracy by confidence, before and after the temperature."""
    curves = (metrics.get("eval") or {}).get("curves") or {}
    raw, calibrated = curves.get("reliability"), curves.get("reliability_calibrated")
    if not raw:
        return None
    figure, (axis,) = _figure("Reliability: does confidence match accuracy?")
    axis.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle="--", label="perfect")
    block = metrics["eval"]
    for entries, key, color, mark, label in (
        (raw, "ece", BLUE, "o", "as trained"),
        (calibrated, "ece_calibrated", ORANGE, "s", "with temperature, cross-fitted"),
    ):
        if not entries or block[key] is None:
            continue
        x = [entry["confidence"] for entry in entries]
        y = [entry["accuracy"] for entry in entries]
        ends = [entry["accuracy_ci95"] for entry in entries]
        axis.vlines(
            x, [e[0] for e in ends], [e[1] for e in ends], color=color, alpha=0.3, linewidth=3
        )
        text = f"{label} (ECE {block[key]:.4f})"
        axis.plot(x, y, color=color, marker=mark, markersize=4.5, linewidth=1.5, label=text)
    axis.set_xlabel("probability given to the answer that the model prefers")
    axis.set_ylabel("share of pairs ranked right, 95%")
    axis.set_xlim(0.49, 1.01)
    _legend(axis, loc="upper left")
    return figure


PLOTS: dict[str, Plot] = {
    "losses": losses,
    "accuracy": accuracy,
    "rewards": rewards,
    "length": length,
    "reliability": reliability,
}

CAPTIONS = {
    "losses": "Training and validation loss; the star marks the checkpoint that was kept.",
    "accuracy": "Accuracy on the evaluation data with its 95% interval, and the baselines.",
    "rewards": "Rewards of chosen and rejected responses, and their differences.",
    "length": "Accuracy by how much longer the chosen response is than the rejected one.",
    "reliability": "Accuracy by confidence, before and after the temperature.",
}
