"""The audit as two files: ``audit.json`` with every number, ``audit.html`` to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.report.audit_words import (
    STYLES,
    compared,
    sentences,
    shown_details,
    shown_share,
)
from plaudit.report.pages import page_environment
from plaudit.report.pictures import inline_pictures
from plaudit.report.plots import (
    BLUE,
    GREY,
    ORANGE,
    PAGE_WIDTH,
    Plot,
    Row,
    Style,
    dot_plot,
    drawn_plots,
    make_figure,
    name_rows,
    place_legend,
)
from plaudit.report.record import words
from plaudit.storage.atomic import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AUDIT_FILE = "audit.json"
PAGE_FILE = "audit.html"


def audit_files(facts: Mapping[str, Any]) -> dict[str, Callable[[Path], object]]:
    """Names of the files of an audit, each with what writes it."""
    page = render_audit(facts)
    return {
        AUDIT_FILE: lambda path: write_json(path, facts),
        PAGE_FILE: lambda path: path.write_text(page, encoding="utf-8"),
    }


def render_audit(facts: Mapping[str, Any]) -> str:
    """The whole page: it loads nothing, and its own policy forbids scripts."""
    from markupsafe import Markup

    environment = page_environment()
    environment.filters |= {"details": shown_details, "share": shown_share}
    # A figure is the package's own markup, of text that it escaped.
    environment.globals["svg"] = Markup
    found = [finding for finding in facts["findings"] if finding["rows"]]
    by_severity = [
        (severity, [finding for finding in found if finding["severity"] == severity])
        for severity in STYLES
    ]
    return environment.get_template("audit.html.jinja").render(
        **{"fixed": None, **facts},
        sentences=sentences(facts),
        compared=compared(facts),
        groups=[(severity, findings) for severity, findings in by_severity if findings],
        clean=[finding for finding in facts["findings"] if finding["rows"] == 0],
        not_looked=[finding for finding in facts["findings"] if finding["rows"] is None],
        pictures=inline_pictures(drawn_plots(PLOTS, facts, PAGE_WIDTH), "audit"),
    )


# --- plots --------------------------------------------------------------------------------------


def lengths(facts: Mapping[str, Any], width: float) -> Figure | None:
    """Characters of better and worse responses."""
    found = {name: facts["lengths"][f"{name}_characters"] for name in ("better", "worse")}
    if None in found.values():
        return None
    figure, (axis,) = make_figure("Lengths of responses", width)
    for (name, part), color in zip(found.items(), (BLUE, ORANGE), strict=True):
        median = part["percentiles"]["50"]
        _stairs(axis, part["histogram"], color, f"{name}, median {median:,.0f}")
    _logarithmic(axis, "characters")
    axis.set_ylabel("responses")
    place_legend(figure)
    return figure


def tokens(facts: Mapping[str, Any], width: float) -> Figure | None:
    """Tokens of the longest conversation of each row, and the lengths that are counted over."""
    part = facts["lengths"]["conversation_tokens"]
    if part is None:
        return None
    figure, (axis,) = make_figure("Tokens of the longest conversation", width)
    _stairs(axis, part["histogram"], BLUE, "rows by their tokens")
    for limit in facts["over_lengths"]:
        if limit["tokens"] <= part["histogram"]["edges"][-1]:
            style = "-" if limit["given"] else ":"
            label = f"{limit['tokens']:,}: {limit['rows']:,} rows over"
            axis.axvline(limit["tokens"], color=ORANGE, linestyle=style, linewidth=1.2, label=label)
    _logarithmic(axis, "tokens")
    axis.set_ylabel("rows")
    place_legend(figure)
    return figure


def length_gap(facts: Mapping[str, Any], width: float) -> Figure | None:
    """How much longer the winner is."""
    gaps = facts["surface"]["length_gap"]
    if gaps is None:
        return None
    figure, (axis,) = make_figure("How much longer is the winner?", width)
    edges = gaps["edges"]
    sides = (("winner is longer", BLUE, 1), ("winner is shorter", ORANGE, -1))
    for label, color, side in sides:
        counts = [
            number if side * (low + high) > 0 else 0
            for number, low, high in zip(gaps["counts"], edges, edges[1:], strict=False)
        ]
        axis.stairs(counts, edges, fill=True, color=color, alpha=0.75, label=label)
    axis.axvline(0, color=GREY, linewidth=0.9)
    axis.set_xlabel("characters, winner − loser (ends: or more)")
    axis.set_ylabel("judged pairs")
    place_legend(figure)
    return figure


def judges(facts: Mapping[str, Any], width: float) -> Figure | None:
    """Accuracy of baselines that do not read."""
    found = {
        words(name): facts["surface"][name]
        for name in ("bag_of_words", "shorter", "longer")
        if facts["surface"][name] and facts["surface"][name]["pairs"]
    }
    if not found:
        return None
    interval = Style(BLUE, "o", "accuracy, 95% interval")
    figure, axis = dot_plot(
        "Accuracy of surface baselines",
        width,
        [
            Row(name, judged["accuracy"], judged["accuracy_ci95"], interval)
            for name, judged in found.items()
        ],
    )
    axis.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (1, 3)), label="chance")
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of labelled pairs")
    place_legend(figure)
    return figure


def scripts(facts: Mapping[str, Any], width: float) -> Figure | None:
    """Scripts of the responses, the most frequent."""
    rows = facts["scripts"]["responses"][:8]
    if len(rows) < 2:
        return None
    figure, (axis,) = make_figure("Scripts of the responses", width)
    names = [row["script"] or "no letters" for row in rows]
    counts = [row["count"] for row in rows]
    places = range(len(rows))
    axis.barh(places, counts, color=BLUE, height=0.6)
    for place, number in zip(places, counts, strict=True):
        axis.annotate(
            f"{number:,}",
            (number, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
        )
    name_rows(axis, names)
    _logarithmic(axis, "responses")
    axis.set_xlim(0.8, max(counts) * 4)
    return figure


def _stairs(axis: Axes, histogram: Mapping[str, Any], color: str, label: str) -> None:
    edges = [max(edge, 0.5) for edge in histogram["edges"]]
    axis.stairs(histogram["counts"], edges, fill=True, alpha=0.25, color=color, linewidth=0)
    axis.stairs(histogram["counts"], edges, color=color, linewidth=1.4, label=label)


def _logarithmic(axis: Axes, label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_xlabel(f"{label} (logarithmic)")


PLOTS: dict[str, Plot] = {
    "lengths": Plot(lengths, "Characters of the better and the worse response of each row."),
    "length_gap": Plot(length_gap, "Characters of the winner less those of the loser."),
    "judges": Plot(
        judges, "Accuracy of the longer, the shorter and a bag of words against the labels."
    ),
    "tokens": Plot(tokens, "Tokens of the longest conversation of each row."),
    "scripts": Plot(scripts, "Scripts that most letters of a response belong to."),
}
