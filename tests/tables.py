"""Score tables of tests: only what a test is about has to be said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plaudit.evaluation.table import ScoreTable, build_table
from plaudit.types import ScoreRow


def score_row(number: int = 0, response: int = 0, **fields: Any) -> ScoreRow:
    """A response of comparison ``number``, which is its own prompt; the first one is the best."""
    plain: dict[str, Any] = {
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


def table_of_grades(
    comparisons: Iterable[Sequence[tuple[float, float]]], groups: Sequence[object] | None = None
) -> ScoreTable:
    """A table of comparisons given as lists of (reward, grade)."""
    return score_table(
        [
            {
                "reward": float(reward),
                "grade": float(grade),
                "group": str(number if groups is None else groups[number]),
            }
            for reward, grade in comparison
        ]
        for number, comparison in enumerate(comparisons)
    )


def table_of_lengths(
    comparisons: Iterable[Sequence[tuple[float, float, int]]],
    features: Sequence[Sequence[Mapping[str, Any]]] | None = None,
) -> ScoreTable:
    """A table of comparisons given as lists of (reward, grade, characters)."""
    return score_table(
        [
            {
                "reward": float(reward),
                "grade": float(grade),
                "characters": characters,
                "features": {} if features is None else features[number][response],
            }
            for response, (reward, grade, characters) in enumerate(comparison)
        ]
        for number, comparison in enumerate(comparisons)
    )


def table_of_deltas(
    delta_P: np.ndarray, *, groups: int | None = None, column: str = "kind", drop: int = -1
) -> ScoreTable:
    """One pair a comparison with these reward differences; ``drop`` is left out."""
    return score_table(
        [
            {
                "comparison": f"pairs:{pair}",
                "group": f"g{pair % groups if groups else pair}",
                "source": "pairs",
                "reward": reward,
                "metadata": {column: "even" if pair % 2 == 0 else "odd"},
            }
            for reward in (float(delta_P[pair]), 0.0)
        ]
        for pair in range(len(delta_P))
        if pair != drop
    )
