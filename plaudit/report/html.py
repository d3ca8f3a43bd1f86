"""The HTML report: one file that holds everything it shows, from recorded facts alone."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit.errors import DataError
from plaudit.files import write_text
from plaudit.report.plots import CAPTIONS
from plaudit.report.record import (
    FORMATS,
    PLOTS_FOLDER,
    TEMPLATES,
    evaluations,
    read_metrics,
    shown_base,
)

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT_FILE = "report.html"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from ``metrics.json`` and the plots beside it.

    The page loads nothing: pictures are inside it, there is no script, and its own policy forbids
    both. Raises DataError (no usable metrics.json) and OutputError (the disk).
    """
    path = folder / REPORT_FILE
    write_text(path, render_report(folder))
    return path


def render_report(folder: Path) -> str:
    """The whole page. Raises DataError."""
    from jinja2 import UndefinedError

    metrics = read_metrics(folder)
    try:
        return (
            _environment()
            .get_template("report.html.jinja")
            .render(
                **metrics,
                base=shown_base(metrics["run"]),
                evaluations=evaluations(metrics),
                plots=_pictures(folder),
            )
        )
    except (UndefinedError, KeyError) as error:
        raise DataError(
            f"metrics.json in {folder} lacks a fact the report needs ({error}); it was written by "
            "another version, so evaluate the model again."
        ) from error


def _pictures(folder: Path) -> list[tuple[str, str]]:
    """(data URI, caption) of every plot there is."""
    pictures = []
    for name, caption in CAPTIONS.items():
        path = folder / PLOTS_FOLDER / f"{name}.png"
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            pictures.append((f"data:image/png;base64,{data}", caption))
    return pictures


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FORMATS)
    return environment
