"""p-values: of paired answers, of a slice against the rest, and of many looks at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from plaudit.evaluation.metrics.pairwise import PairedDifference
from plaudit.types import FloatArray


def mcnemar(only_a_right: int, only_b_right: int) -> float:
    """Two-sided exact p-value that two judges are right equally often (McNemar, 1947).

    Only pairs where one is right and the other is not say anything; under equality each falls to
    either side like a fair coin. Assumes independent pairs.
    """
    from scipy.stats import binomtest

    discordant = only_a_right + only_b_right
    return float(binomtest(only_a_right, discordant).pvalue) if discordant else 1.0


def clustered_p(difference: PairedDifference) -> float | None:
    """Two-sided p-value that a paired mean difference is zero: Student's t over prompt groups.

    With one pair per group this is the paired t-test. ``None`` with fewer than two groups.
    """
    from scipy.stats import t

    if difference.standard_error is None:
        return None
    if difference.standard_error == 0:
        return 1.0 if difference.mean == 0 else 0.0
    statistic = abs(difference.mean) / difference.standard_error
    return float(2 * t.sf(statistic, difference.groups - 1))


def against_the_rest(
    right_P: npt.NDArray[np.bool_],
    inside_P: npt.NDArray[np.bool_],
    group_P: npt.NDArray[np.int64],
) -> float | None:
    """Two-sided p-value that pairs inside a slice are right as often as those outside it.

    The z-test of two proportions with the pooled variance; where pairs of a prompt go together, so
    that the variance by prompt group (of the same null hypothesis) is larger, that one is used.
    ``None`` where one side is empty.
    """
    from scipy.stats import norm

    inside, total = int(inside_P.sum()), len(right_P)
    if inside in (0, total):
        return None
    share = float(right_P.mean())
    weight_P = np.where(inside_P, 1 / inside, -1 / (total - inside))
    difference = float(weight_P @ right_P)
    independent = share * (1 - share) * float(weight_P @ weight_P)
    _, code_P = np.unique(group_P, return_inverse=True)
    sums_G = np.bincount(code_P, weight_P * (right_P - share))
    variance = max(independent, float(sums_G @ sums_G))
    if variance == 0:
        return 1.0
    return float(2 * norm.sf(abs(difference) / math.sqrt(variance)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that hold the chance of any false finding (Holm, 1979); None stays None."""
    known, order = _sorted(p_values)
    steps = known * np.arange(len(known), 0, -1)
    return _restore(np.minimum(np.maximum.accumulate(steps), 1.0), order, len(p_values))


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that hold the share of false findings among all findings (1995).

    None stays None.
    """
    known, order = _sorted(p_values)
    steps = known * len(known) / np.arange(1, len(known) + 1)
    falling = np.minimum.accumulate(steps[::-1])[::-1]
    return _restore(np.minimum(falling, 1.0), order, len(p_values))


def _sorted(p_values: Sequence[float | None]) -> tuple[FloatArray, list[int]]:
    """Known p-values in rising order, and where each stands."""
    order = sorted(
        (index for index, p in enumerate(p_values) if p is not None),
        key=lambda index: p_values[index] or 0.0,
    )
    return np.array([p_values[index] for index in order], dtype=np.float64), order


def _restore(adjusted: FloatArray, order: Sequence[int], count: int) -> list[float | None]:
    restored: list[float | None] = [None] * count
    for index, value in zip(order, adjusted, strict=True):
        restored[index] = float(value)
    return restored
