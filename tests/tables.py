"""Score tables of tests: only what a test is about has to be said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plaudit.evaluation.table import ScoreTable, build_table
from plaudit.types import ScoreRow


def score_row(number: int = 0, response: int = 0, **fields: Any) -> ScoreRow:
    """A response of comparison ``number``, which is its own prompt; the first one is the best."""
    plain = {
        "comparison": str(number),
        "group": str(number),
        "dataset": "eval",
        "source": "s",
        "reward": 0.0,
        "grade": -float(response),
        "margin": 0.0,
        "tokens": 1,
        "characters": 1,
    }
    return ScoreRow(number=number, response=response, **(plain | fields))


def score_table(comparisons: Iterable[Sequence[Mapping[str, Any]]]) -> ScoreTable:
    """A table of comparisons, each given as the fields of its responses."""
    return build_table(
        score_row(number, response, **fields)
        for number, comparison in enumerate(comparisons)
        for response, fields in enumerate(comparison)
    )
