"""The audit as sentences, as ``audit.json`` with every number, and as ``audit.html``.

Every number in a sentence is a recorded one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from plaudit.evaluation.numbers import count, counted, percent, words
from plaudit.recipe.objectives import OBJECTIVES, LearnsFrom
from plaudit.report.pages import inline_pictures
from plaudit.report.plots import (
    BLUE,
    CHANCE,
    GREY,
    ORANGE,
    PAGE_WIDTH,
    Plot,
    Row,
    Style,
    difference_histogram,
    dot_plot,
    drawn_plots,
    make_figure,
    name_rows,
)
from plaudit.report.record import template_environment
from plaudit.storage.atomic import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from plaudit.data.audit.measure import BaselineAccuracy
    from plaudit.data.audit.run import AuditReport, Finding, Histogram, Labels, Surface

AUDIT_FILE = "audit.json"
PAGE_FILE = "audit.html"
HEADINGS: Final = {"error": "Errors", "warning": "Warnings", "info": "Info"}
"""Severities, most severe first."""


def audit_files(report: AuditReport) -> dict[str, Callable[[Path], object]]:
    """The files of an audit by name, each with the function that writes it."""
    page = render_audit(report)
    return {
        AUDIT_FILE: lambda path: write_json(path, asdict(report)),
        PAGE_FILE: lambda path: path.write_text(page, encoding="utf-8"),
    }


def render_audit(report: AuditReport) -> str:
    """The whole page. It loads nothing, and its content security policy forbids scripts."""
    from markupsafe import Markup

    environment = template_environment()
    environment.filters |= {"remark": remark, "share": share}
    # A figure is the package's own markup, of text that it escaped.
    environment.globals["svg"] = Markup
    return environment.get_template("audit.html.jinja").render(
        report=report,
        sentences=sentences(report),
        headings=HEADINGS,
        pictures=inline_pictures(drawn_plots(PLOTS, report, PAGE_WIDTH), "audit"),
    )


# --- sentences ----------------------------------------------------------------------------------


def sentences(report: AuditReport) -> Iterator[str]:
    """Rows, errors, what was not read, the surface baselines, the cleaned copy, the comparison."""
    yield (
        f"{count(report.rows)} rows with {counted(report.shape.prompts, 'prompt')}; "
        f"{count(report.trainable.rows)} can be trained on with loss.kind {report.settings.loss}."
    )
    yield from _label_sentences(report.labels)
    if report.errors:
        most = max(report.errors, key=lambda finding: finding.rows or 0)
        yield (
            f"{counted(len(report.errors), 'error')}; the most frequent: "
            f"{most.title[0].lower()}{most.title[1:]}, {counted(most.rows or 0, 'row')}."
        )
    else:
        yield "No errors."
    yield from filter(None, (part.unread.sentence(part.name) for part in report.parts))
    yield from _surface_sentences(report.surface)
    if (cleaned := report.cleaned) is not None:
        yield (
            f"Cleaned copy: {count(cleaned.kept)} rows kept, {count(cleaned.changed_rows)} "
            f"changed, {count(cleaned.dropped_rows)} dropped, of {count(cleaned.rows)}. "
            f"Change log: {cleaned.change_log}."
        )
    others = [
        f"{part.name} ({counted(part.rows, 'row')})" for part in report.parts if part.kind != "data"
    ]
    yield (
        f"Compared with {', '.join(others)}."
        if others
        else "Overlap with evaluation data and benchmarks was not checked. Name them with --eval "
        "and --suite."
    )


def _label_sentences(labels: Labels) -> Iterator[str]:
    """Labels other than the order of responses, and the objectives that read them."""
    if labels.rated:
        assert labels.ratings is not None, "there are rated rows"
        known = labels.ratings.percentiles
        yield (
            f"{counted(labels.rated, 'row')} with ratings or grades, for "
            f"{_kinds(labels, 'ratings')}: {known['0']:g} to {known['100']:g}, "
            f"median {known['50']:g}."
        )
    if labels.ties:
        assert labels.tie_share is not None, "there are ties"
        yield (
            f"{counted(labels.ties, 'tie')}, for {_kinds(labels, 'order_and_ties')}: "
            f"{percent(labels.tie_share)} of the rows with a known order."
        )
    if labels.soft_labels:
        assert labels.mean_soft_label is not None, "there are soft labels"
        yield (
            f"{counted(labels.soft_labels, 'row')} with a soft label: annotators agree in "
            f"{percent(labels.mean_soft_label)} on average."
        )
    if labels.attributes:
        attributes = (
            f"{one.name} ({counted(one.responses, 'response')}, {one.least:g} to {one.most:g}, "
            f"mean {one.mean:.3g})"
            for one in labels.attributes
        )
        yield f"Attributes: {', '.join(attributes)}."


def _kinds(labels: Labels, learns_from: LearnsFrom) -> str:
    """The objectives that learn from such labels, and can from some of these rows."""
    return ", ".join(
        kind
        for kind, rows in labels.objectives.items()
        if rows and OBJECTIVES[kind].learns_from == learns_from
    )


def _surface_sentences(surface: Surface) -> Iterator[str]:
    """How far length and single words predict the labels."""
    longer, bag = surface.longer, surface.bag_of_words
    if not longer.pairs:
        yield "No pair has a preferred response, so baselines have no accuracy."
        return
    yield (
        f"The longer response is preferred in {_accuracy(longer)} of "
        f"{counted(longer.pairs, 'labelled pair')}."
    )
    if bag is not None:
        yield (
            f"A bag-of-words model, cross-fitted by prompt, ranks {_accuracy(bag)} of "
            f"{counted(bag.pairs, 'pair')} correctly."
        )
    if (best := surface.best) is not None:
        yield (
            f"The strongest baseline ({words(best.name)}) explains up to {percent(best.explained)} "
            "of the labels beyond chance. A useful reward model must exceed its accuracy, "
            f"{percent(best.accuracy)}."
        )


def remark(finding: Finding) -> str:
    """The numbers that a finding's title needs."""
    details = finding.details
    if details.get("agreement") is not None:
        return f"{percent(details['agreement'])} agree"
    if finding.check == "opposite_labels":
        return counted(details["pairs"], "pair")
    if "fields" in details:
        return ", ".join(f"{field} {count(rows)}" for field, rows in details["fields"].items())
    if "max_length" in details:
        return f"{'' if details['exact'] else 'about '}{count(details['max_length'])} tokens"
    if details.get("candidates", 0) > details.get("checked", 0):
        return f"{count(details['checked'])} of {count(details['candidates'])} candidates checked"
    return ""


def share(finding: Finding) -> str:
    """The share of rows, which is not 0 where there are some."""
    assert finding.share is not None, "the check did not apply"
    return "< 0.1%" if finding.share < 0.001 else percent(finding.share)


def _accuracy(baseline: BaselineAccuracy) -> str:
    assert baseline.accuracy_ci95 is not None, "there are pairs"
    low, high = baseline.accuracy_ci95
    return f"{percent(baseline.accuracy)} (95% CI {percent(low)} to {percent(high)})"


def lengths(report: AuditReport, width: float) -> Figure | None:
    better, worse = report.lengths.better_characters, report.lengths.worse_characters
    if better is None or worse is None:
        return None
    figure, (axis,) = make_figure("Response lengths", width)
    for name, part, color in (("better", better, BLUE), ("worse", worse, ORANGE)):
        _stairs(axis, part.histogram, color, f"{name}, median {part.percentiles['50']:,.0f}")
    _logarithmic(axis, "characters")
    axis.set_ylabel("responses")
    return figure


def tokens(report: AuditReport, width: float) -> Figure | None:
    part = report.lengths.conversation_tokens
    if part is None:
        return None
    figure, (axis,) = make_figure("Tokens per row", width)
    _stairs(axis, part.histogram, BLUE, "rows")
    for limit in report.over_lengths:
        if limit.tokens <= part.histogram.edges[-1]:
            style = "-" if limit.is_max_length else ":"
            label = f"{limit.rows:,} rows over {limit.tokens:,} tokens"
            axis.axvline(limit.tokens, color=ORANGE, linestyle=style, linewidth=1.2, label=label)
    _logarithmic(axis, "tokens")
    axis.set_ylabel("rows")
    return figure


def ratings(report: AuditReport, width: float) -> Figure | None:
    part = report.labels.ratings
    if part is None or len(part.levels) < 2:
        return None
    figure, (axis,) = make_figure("Ratings", width)
    bars = axis.bar(range(len(part.levels)), [level.responses for level in part.levels], color=BLUE)
    axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=10)
    axis.set_xticks(range(len(part.levels)), [f"{level.rating:g}" for level in part.levels])
    axis.set(xlabel="rating", ylabel="responses")
    axis.margins(y=0.15)
    return figure


def length_gap(report: AuditReport, width: float) -> Figure | None:
    gaps = report.surface.length_gap
    if gaps is None:
        return None
    figure, (axis,) = make_figure("Length difference", width)
    labels = ("better is longer", "better is shorter")
    difference_histogram(axis, gaps.counts, gaps.edges, labels)
    axis.axvline(0, color=GREY, linewidth=0.9)
    axis.set(xlabel="characters, better − worse (end bins: or more)", ylabel="labelled pairs")
    return figure


def baselines(report: AuditReport, width: float) -> Figure | None:
    surface = report.surface
    interval = Style(BLUE, "o", "accuracy, 95% CI")
    named = {
        "bag of words": surface.bag_of_words,
        "shorter": surface.shorter,
        "longer": surface.longer,
    }
    rows = [
        Row(name, baseline.accuracy, baseline.accuracy_ci95, interval)
        for name, baseline in named.items()
        if baseline is not None and baseline.accuracy is not None
    ]
    label = "accuracy on the labelled pairs"
    return dot_plot("Accuracy of surface baselines", width, rows, (CHANCE,), xlabel=label)


def scripts(report: AuditReport, width: float) -> Figure | None:
    rows = report.scripts.responses[:8]
    if len(rows) < 2:
        return None
    figure, (axis,) = make_figure("Scripts of responses", width)
    counts = [row.count for row in rows]
    bars = axis.barh(range(len(rows)), counts, color=BLUE, height=0.6)
    axis.bar_label(bars, fmt="{:,.0f}", padding=4, fontsize=10)
    name_rows(axis, [row.name or "no letters" for row in rows])
    _logarithmic(axis, "responses")
    axis.set_xlim(0.8, max(counts) * 4)
    return figure


def _stairs(axis: Axes, histogram: Histogram, color: str, label: str) -> None:
    edges = [max(edge, 0.5) for edge in histogram.edges]
    axis.stairs(histogram.counts, edges, fill=True, alpha=0.25, color=color, linewidth=0)
    axis.stairs(histogram.counts, edges, color=color, linewidth=1.4, label=label)


def _logarithmic(axis: Axes, label: str) -> None:
    axis.set(xscale="log", xlabel=f"{label} (logarithmic)")
    axis.xaxis.set_major_formatter("{x:,.0f}")


PLOTS: Final[dict[str, Plot[AuditReport]]] = {
    "lengths": Plot(lengths, "Characters of the better and of the worse response in each row."),
    "length_gap": Plot(
        length_gap, "Characters of the better response − characters of the worse response."
    ),
    "ratings": Plot(ratings, "Ratings or grades of responses."),
    "baselines": Plot(
        baselines,
        "Accuracy of three baselines on the labels: prefer the longer response, prefer the shorter "
        "one, and a bag of words.",
    ),
    "tokens": Plot(tokens, "Tokens of the longest conversation in each row."),
    "scripts": Plot(scripts, "The main script of each response."),
}
