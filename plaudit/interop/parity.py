"""The check that ends every export and merge: real rows scored by what was written.

Shapes: R responses, all comparisons together, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plaudit.errors import PlauditError
from plaudit.types import Affine, FloatArray

TOLERANCE = 1e-4
"""Largest difference allowed between fp32 scores, relative where scores are over 1."""


class ParityError(PlauditError):
    """What was written does not give the scores of what it was written from; it was removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """One check. ``largest_difference`` is over all responses, in the written model's own units.

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


def largest_difference(found_R: Sequence[float], expected_R: FloatArray) -> float:
    """Over all responses; infinite where a score is not a number."""
    difference_R = np.abs(np.asarray(found_R, dtype=np.float64) - expected_R)
    return float(np.nan_to_num(difference_R, nan=np.inf).max(initial=0.0))


def allowed(tolerance: float, expected_R: FloatArray) -> float:
    """``tolerance``, times the largest score where that is over 1."""
    return tolerance * max(1.0, float(np.abs(expected_R).max(initial=0.0)))


def given_by(affine: Affine, rewards_R: FloatArray) -> FloatArray:
    """Rewards in the units of the tool."""
    return affine.scale * rewards_R + affine.offset


def order_changes(before: Sequence[FloatArray], after: Sequence[FloatArray]) -> int:
    """Comparisons whose responses stand in another order."""
    return sum(
        not np.array_equal(np.argsort(a, kind="stable"), np.argsort(b, kind="stable"))
        for a, b in zip(before, after, strict=True)
    )


def refuse_difference(parity: Parity, what: str) -> None:
    """Raise when the scores are further apart than allowed.

    Raises:
        ParityError: they are.
    """
    if not parity.largest_difference <= parity.tolerance:
        raise ParityError(
            f"{what} gives other scores: {parity.largest_difference:.3g} apart at most on "
            f"{parity.responses} responses ({parity.rows}), where {parity.tolerance:.3g} is "
            "allowed. Nothing was written; please report this with the model's plaudit.json, or "
            "see what is written with --no-check."
        )
