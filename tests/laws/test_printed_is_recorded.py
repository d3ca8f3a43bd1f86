"""Law 8: every number on a card, a report and the terminal is a recorded one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from plaudit.cli.printing import show_run_details
from plaudit.cli.summary import show_evaluation_summary, show_run
from plaudit.evaluation.schema import read_metrics
from plaudit.report.card import render_card
from plaudit.report.html import render_report
from tests.objectives import write_run

GOLDEN = Path(__file__).parents[1] / "goldens" / "run"
PACKAGE = Path(__file__).parents[2] / "plaudit"

NUMBER = re.compile(r"(?<![\w.,])(?:\d+:\d\d:\d\d|[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w])")
"""Durations, and numbers by themselves: not the 3 of ``llama3`` or the parts of a version."""


def leaves(value: Any) -> Iterator[Any]:
    """Every key and every value of a JSON document."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def numbers(text: str) -> set[str]:
    return {found.group().rstrip(",") for found in NUMBER.finditer(text)}


def ways_to_write(value: float) -> Iterator[str]:
    """As a fraction, a percentage, with a sign, rounded for people, or in full."""
    for number in (value, 100 * value):
        for decimals in range(5):
            yield f"{number:,.{decimals}f}"
            yield f"{number:+,.{decimals}f}"
    yield str(value)
    if abs(value) < 1e6:
        yield str(timedelta(seconds=round(value)))


def recorded(folder: Path) -> set[str]:
    """Every recorded number in every way to write it, and the numbers in recorded sentences."""
    documents = [json.loads((folder / "metrics.json").read_text(encoding="utf-8"))]
    if (folder / "mistakes.jsonl").exists():
        lines = (folder / "mistakes.jsonl").read_text(encoding="utf-8").splitlines()
        documents += map(json.loads, lines)
    found: set[str] = set()
    for value in leaves(documents):
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, str):
            found |= numbers(value)
        else:
            found |= set(ways_to_write(value))
    return found


def own_words() -> set[str]:
    """Numbers of the fixed words of templates, captions and tables, like the 95% of intervals."""
    sources = [
        *(PACKAGE / "report").rglob("*.jinja"),
        *(PACKAGE / "report").glob("*.py"),
        PACKAGE / "cli" / "printing.py",
        PACKAGE / "cli" / "summary.py",
    ]
    return set().union(*(numbers(path.read_text(encoding="utf-8")) for path in sources))


class Words(HTMLParser):
    """The text of a page, without pictures (their axes have round numbers), styles and scripts."""

    SKIPPED = ("svg", "style", "script")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside += tag in self.SKIPPED

    def handle_endtag(self, tag: str) -> None:
        self.inside -= tag in self.SKIPPED

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.found.append(data)


def card(folder: Path) -> str:
    return render_card(folder)


def report(folder: Path) -> str:
    return " ".join(Words(render_report(folder)).found)


def terminal(folder: Path) -> str:
    metrics = read_metrics(folder)
    screen = StringIO()
    console = Console(file=screen, width=120)
    show_run_details(console, metrics)
    show_run(console, folder, metrics)
    for block in (metrics.eval, metrics.test):
        if block is not None:
            show_evaluation_summary(console, "data", block, lines=(), last=(), rest=None)
    return screen.getvalue()


PLACES = {"card": card, "report": report, "terminal": terminal}


@pytest.mark.parametrize("place", PLACES)
def test_every_number_is_recorded(place: str) -> None:
    printed = numbers(PLACES[place](GOLDEN))
    assert len(printed) > 40
    assert sorted(printed - recorded(GOLDEN) - own_words()) == []


@pytest.mark.parametrize("kind", ["mse", "bce", "ordinal", "davidson"])
@pytest.mark.parametrize("place", PLACES)
def test_every_number_of_ratings_and_ties_is_recorded(
    place: str, kind: str, tmp_path: Path
) -> None:
    write_run(tmp_path, kind)
    printed = numbers(PLACES[place](tmp_path).replace(str(tmp_path), ""))
    assert sorted(printed - recorded(tmp_path) - own_words()) == []


@pytest.mark.heavy
@pytest.mark.parametrize("place", PLACES)
def test_every_number_of_a_real_run_is_recorded(place: str, finished_run: Path) -> None:
    printed = numbers(PLACES[place](finished_run).replace(str(finished_run), ""))
    assert sorted(printed - recorded(finished_run) - own_words()) == []
