"""The HTML report: one file that holds everything it shows, from recorded facts alone."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.errors import DataError
from plaudit.evaluation.metrics.best_of import read_best_of
from plaudit.report import pages
from plaudit.report.comparison import best_of_figure
from plaudit.report.plots import PAGE_WIDTH, Drawn, evaluation_plots, run_plots
from plaudit.report.record import (
    METRICS_FILE,
    MISTAKES_FILE,
    TEMPLATES,
    read_recalibration,
    read_recorded,
    shown_base,
)
from plaudit.storage.atomic import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT_FILE = "report.html"

IN_TABLES = ("slices", "behaviour", "bias")
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
    from jinja2 import UndefinedError

    metrics = read_recorded(folder)
    if "run" not in metrics and "model" not in metrics:
        raise DataError(
            f"{folder / METRICS_FILE} is neither of a run nor of an evaluation; expected what "
            "plaudit train or plaudit eval --out wrote."
        )
    mistakes = _read_mistakes(folder) if with_texts else {}
    try:
        return (
            _environment()
            .get_template("report/page.html.jinja")
            .render(_view(metrics, mistakes), recalibration=read_recalibration(folder))
        )
    except (UndefinedError, KeyError) as error:
        raise DataError(
            f"{METRICS_FILE} in {folder} lacks a fact the report needs ({error}); it was written "
            "by another version, so evaluate the model again."
        ) from error


_Key = tuple[str, int, int, int]


def _key(mistake: Mapping[str, Any]) -> _Key:
    return mistake["dataset"], mistake["number"], mistake["better"], mistake["worse"]


def _read_mistakes(folder: Path) -> dict[_Key, dict[str, Any]]:
    """The texts of the mistakes; none where the file was deleted, as it may be before sharing."""
    path = folder / MISTAKES_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return {_key(row): row for row in map(json.loads, filter(None, lines))}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"Cannot read {path} ({error}); restore it, or delete it for a report without texts."
        ) from error


def _view(metrics: Mapping[str, Any], mistakes: Mapping[_Key, Mapping[str, Any]]) -> dict[str, Any]:
    """What the page is made of: the facts, and beside each evaluation its pictures and texts."""
    run = metrics.get("run")
    # The test data first: they chose nothing.
    blocks = [metrics[name] for name in ("test", "eval") if metrics.get(name)]
    best_of = read_best_of(metrics["best_of"]) if metrics.get("best_of") else None
    return {
        "metrics": metrics,
        "run": run,
        "base": None if run is None else shown_base(run),
        "evaluations": [
            {
                "facts": block,
                "pictures": pages.inline_pictures(
                    (
                        one
                        for one in evaluation_plots(block, PAGE_WIDTH)
                        if one.name not in IN_TABLES
                    ),
                    block["dataset"],
                ),
                "mistakes": [
                    {**entry, "texts": mistakes.get(_key(entry))} for entry in block["mistakes"]
                ],
            }
            for block in blocks
        ],
        "run_pictures": pages.inline_pictures(run_plots(metrics, PAGE_WIDTH), "run") if run else [],
        "best_of_pictures": pages.inline_pictures(
            [Drawn("best_of", best_of_figure(best_of, PAGE_WIDTH), best_of.sentence)]
            if best_of
            else [],
            "run",
        ),
    }


def _environment() -> Environment:
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return pages.showable(value) if plain else value

    # Every value, wherever it comes from: what cannot be seen or written is shown as a sign.
    environment = pages.page_environment(finalize=shown)
    for function in (pages.brief, pages.conversation, pages.preview, pages.shade, pages.spark):
        environment.filters[function.__name__] = function
    script = (TEMPLATES / "report" / "report.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    environment.globals |= {
        # Files of the package, not data.
        "script": Markup(script),
        "script_hash": base64.b64encode(digest).decode("ascii"),
        "style": Markup((TEMPLATES / "report" / "report.css").read_text(encoding="utf-8")),
        "svg": Markup,
    }
    return environment
