"""The check that ends every export and merge: real rows scored by what was written.

Shapes: R responses, all comparisons together, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from plaudit.data.load import open_source
from plaudit.errors import DataError, PlauditError
from plaudit.recipe.load import load_recipe
from plaudit.recipe.schema import Source
from plaudit.reward_model import RewardModel
from plaudit.types import Comparison, FloatArray, TokenTree, as_turns

TOLERANCE = 1e-4
"""Largest difference allowed between fp32 scores, relative where scores are over 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """Which rows a check scores, the run's held-out ones by default, and what it allows."""

    rows: Source | None = None
    tolerance: float = TOLERANCE


class ParityError(PlauditError):
    """What was written does not give the scores of what it was written from; it was removed.

    A result, not a mistake of the user's.
    """

    exit_code = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """One check. ``largest_difference`` is over all responses, in the written model's own units.

    ``tolerance`` is what was allowed, times the largest score where that is over 1.

    ``rounding`` is how far storing in a shorter dtype moved the rewards, and ``order_changes``
    how many comparisons it ranks otherwise; both None in fp32. ``text_differs`` counts responses
    that the tool would encode otherwise from the written folder, and ``text_difference`` is what
    that does to scores; both None where the tool chooses its template elsewhere.
    """

    rows: str
    comparisons: int
    responses: int
    largest_difference: float
    tolerance: float
    rounding: float | None = None
    order_changes: int | None = None
    text_differs: int | None = None
    text_difference: float | None = None


def largest_difference(scores_R: Sequence[float] | FloatArray, expected_R: FloatArray) -> float:
    """Over all responses; infinite where a score is not a number."""
    difference_R = np.abs(np.asarray(scores_R, dtype=np.float64) - expected_R)
    return float(np.nan_to_num(difference_R, nan=np.inf).max(initial=0.0))


def order_changes(before: Sequence[FloatArray], after: Sequence[FloatArray]) -> int:
    """Comparisons whose responses stand in another order."""
    return sum(
        not np.array_equal(np.argsort(a, kind="stable"), np.argsort(b, kind="stable"))
        for a, b in zip(before, after, strict=True)
    )


def compare_scores(
    rows: CheckRows,
    scores_R: Sequence[float] | FloatArray,
    expected_R: FloatArray,
    tolerance: float,
) -> Parity:
    """The scores of what was written beside those it must give."""
    return Parity(
        rows=rows.where,
        comparisons=len(rows.trees),
        responses=len(expected_R),
        largest_difference=largest_difference(scores_R, expected_R),
        tolerance=tolerance * max(1.0, float(np.abs(expected_R).max(initial=0.0))),
    )


def check_difference(parity: Parity, what: str) -> None:
    """Raise when the scores are further apart than allowed.

    Raises:
        ParityError: they are.
    """
    if not parity.largest_difference <= parity.tolerance:
        raise ParityError(
            f"{what} gives different scores: up to {parity.largest_difference:.3g} apart on"
            f" {parity.responses} responses ({parity.rows}); the tolerance is"
            f" {parity.tolerance:.3g}. Nothing was written. Please report this with the model's"
            " plaudit.json, or write it without the check with --no-check."
        )


ROWS = 16
"""Comparisons that a check scores unless the user names a file."""

EMBEDDED = f"documentation:heldout:{4 * ROWS}"
RECIPE_FILE, PREDICTIONS_FILE = "recipe.yaml", "predictions.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRows:
    """Comparisons as the model reads them, with their trees. ``where`` says what they are."""

    comparisons: tuple[Comparison, ...]
    trees: tuple[TokenTree, ...]
    where: str

    def sequences(self) -> list[list[int]]:
        """Each whole conversation as ids, up to the scored token; comparisons in order."""
        return [
            [*map(int, tree.prefix), *map(int, branch)]
            for tree in self.trees
            for branch in tree.branches
        ]


def check_rows(model: RewardModel, folder: Path, rows: Source | None) -> CheckRows:
    """All of ``rows``, or :data:`ROWS` of the run's held-out rows, else of embedded text.

    Raises:
        DataError: ``rows`` cannot be read, or the model can read none of its rows.
    """
    for where, comparisons in _candidates(folder, rows):
        if model.metadata.text == "chat":
            comparisons = [as_turns(comparison) for comparison in comparisons]
        readable = [
            (comparison, outcome)
            for comparison, outcome in zip(comparisons, model.encode(comparisons), strict=True)
            if isinstance(outcome, TokenTree)
        ]
        if readable:
            kept, trees = zip(*readable[: ROWS if rows is None else None], strict=True)
            return CheckRows(comparisons=kept, trees=trees, where=where)
    raise DataError(
        f"The model can score none of the {len(comparisons)} rows of {where} (it reads at most"
        f" {model.metadata.max_length} tokens); use other --rows."
    )


def _candidates(folder: Path, rows: Source | None) -> Iterator[tuple[str, list[Comparison]]]:
    """What they are, and comparisons; the first that the model can read are scored."""
    where, source = "embedded rows", Source(path=EMBEDDED)
    if rows is None:
        yield "the run's held-out rows", _recorded(folder)
    else:
        where, source = rows.path, rows
    yield where, [comparison for *_, comparison in open_source(source).rows]


def _recorded(folder: Path) -> list[Comparison]:
    """The first evaluated comparisons of a run; none where its data moved away or there is none."""
    from plaudit.evaluation.table import read_table

    try:
        data = load_recipe(folder / RECIPE_FILE).data
        evaluated = set(read_table(folder / PREDICTIONS_FILE).comparison_N)
        rows = (
            comparison
            for source in data.test or data.eval or data.train
            for *_, comparison in open_source(source).rows
            if comparison.id in evaluated
        )
        return list(islice(rows, 4 * ROWS))
    except PlauditError:
        return []
