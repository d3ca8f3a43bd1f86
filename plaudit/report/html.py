"""The HTML report: one file that holds everything it shows, from recorded metrics alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from plaudit.errors import DataError
from plaudit.evaluation.schema import (
    Mistake,
    MistakeText,
    RunInfo,
    RunMetrics,
    adapter,
    first_mistake,
    read_recorded,
)
from plaudit.evaluation.sentences import best_baseline
from plaudit.report import highlights, pages
from plaudit.report.card import snippet
from plaudit.report.comparison import best_of_figure
from plaudit.report.plots import EVALUATION_PLOTS, PAGE_WIDTH, RUN_PLOTS, Drawn, drawn_plots
from plaudit.report.record import (
    MISTAKES_FILE,
    SCORES,
    TEMPLATES,
    learned_from,
    loss_in_words,
    read_recalibration,
    shown_base,
    template_environment,
)
from plaudit.storage.atomic import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT_FILE = "report.html"

IN_TABLES = ("slices", "perturbations", "bias")
"""Plots of the card that the page shows as tables, which can be searched and sorted."""


def write_report(folder: Path, *, with_texts: bool = True) -> Path:
    """Write ``report.html`` from ``metrics.json`` and ``mistakes.jsonl`` of a run or an evaluation.

    The page loads nothing: pictures, styles and one script are inside it, and its own policy
    forbids every other. Without ``with_texts`` it shows no prompt and no response. Raises DataError
    (no usable metrics.json or mistakes.jsonl) and OutputError (the disk).
    """
    path = folder / REPORT_FILE
    write_text(path, render_report(folder, with_texts=with_texts))
    return path


def render_report(folder: Path, *, with_texts: bool = True) -> str:
    """The whole page. Raises DataError."""
    metrics = read_recorded(folder)
    mistakes = _read_mistakes(folder) if with_texts else {}
    blocks, recalibration = highlights.ordered(metrics), read_recalibration(folder)
    curves = {name: plot for name, plot in EVALUATION_PLOTS.items() if name not in IN_TABLES}
    drawn: dict[str, Iterable[Drawn]] = {
        block.dataset: drawn_plots(curves, block, PAGE_WIDTH) for block in blocks
    }
    run = None
    if isinstance(metrics, RunMetrics):
        run = metrics.run
        drawn["run"] = drawn_plots(RUN_PLOTS, metrics, PAGE_WIDTH)
    elif (best_of := metrics.best_of) is not None:
        figure = best_of_figure(best_of, PAGE_WIDTH)
        drawn["best_of"] = [Drawn("best_of", figure, best_of.sentence)]
    suites = None if isinstance(metrics, RunMetrics) else metrics.suites
    environment = _environment()
    environment.filters["texts"] = lambda mistake: mistakes.get(_key(mistake))
    return environment.get_template("report/page.html.jinja").render(
        metrics=metrics,
        run=run,
        base=None if run is None else shown_base(run),
        learned_from=learned_from(metrics) if isinstance(metrics, RunMetrics) else None,
        the_loss=None if run is None else loss_in_words(run),
        formula=_formula(run),
        usage=None
        if run is None
        else snippet(
            run.method,
            run.chat_template_kind,
            None if run.objective is None else run.objective.outputs,
        ),
        hyperparameters={} if run is None else highlights.grouped_hyperparameters(run),
        evaluations=blocks,
        warnings=highlights.all_warnings(metrics, recalibration),
        most_warnings=highlights.MOST_WARNINGS,
        steps=highlights.next_steps(metrics, recalibration),
        pictures={name: pages.inline_pictures(figures, name) for name, figures in drawn.items()},
        recalibration=recalibration,
        limitations=highlights.limitations(
            measured=bool(blocks or suites),
            loss=None if run is None else run.loss,
            outputs=None if run is None or run.objective is None else run.objective.outputs,
        ),
    )


def _formula(run: RunInfo | None) -> str | None:
    """The loss of a run as a picture, which needs no script and no font."""
    if run is None or run.objective is None:
        return None
    return pages.inline_formula(run.objective.formula)


_Key = tuple[str, int, int, int]


def _key(mistake: Mistake) -> _Key:
    return mistake.dataset, mistake.number, mistake.better, mistake.worse


def _read_mistakes(folder: Path) -> dict[_Key, MistakeText]:
    """The texts of the mistakes; none where the file was deleted, as it may be before sharing."""
    path = folder / MISTAKES_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = (adapter(MistakeText).validate_json(line) for line in lines if line)
        return {_key(row): row for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = first_mistake(error) if isinstance(error, ValidationError) else error
        raise DataError(
            f"Cannot read {path} ({reason}); restore it, or delete it for a report without texts."
        ) from error


def _environment() -> Environment:
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return pages.showable(value) if plain else value

    # Every value, wherever it comes from: what cannot be seen or written is shown as a sign.
    environment = template_environment(shown)
    for function in (pages.brief, pages.conversation, pages.preview, pages.shade, pages.spark):
        environment.filters[function.__name__] = function
    script = (TEMPLATES / "report" / "report.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    for chosen in (
        highlights.slices_to_show,
        best_baseline,
        highlights.leak,
        highlights.worst_outcomes,
    ):
        environment.filters[chosen.__name__] = chosen
    environment.globals |= {
        "kinds": highlights.KINDS,
        "scores": SCORES,
        "titles": highlights.TITLES,
        "truncations": highlights.TRUNCATIONS,
        # Files of the package, not data.
        "script": Markup(script),
        "script_hash": base64.b64encode(digest).decode("ascii"),
        "style": Markup((TEMPLATES / "report" / "report.css").read_text(encoding="utf-8")),
        "svg": Markup,
    }
    return environment
