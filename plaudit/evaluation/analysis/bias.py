"""Does the model reward how a text looks? Preferences for countable features, and for length.

A model whose errors have nothing to do with a feature is right as often where the better response
has more of it as where it has less; the gap between the two is its bias. The labels' own preference
stands beside the model's, since people may prefer the feature, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from plaudit.evaluation.analysis.features import RESPONSE_FEATURES
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.calibration import folds_of
from plaudit.evaluation.metrics.ranks import correlate
from plaudit.evaluation.metrics.significance import against_the_rest, benjamini_hochberg
from plaudit.evaluation.schema import (
    Bias,
    Correlation,
    CountedAccuracy,
    FeatureBias,
    Interval,
    LengthBias,
)
from plaudit.evaluation.table import CodeArray, Pairs, ScoreTable, codes
from plaudit.types import FloatArray

FEWEST_PER_SIDE = 15
"""A feature needs as many pairs whose better response has more of it, and as many with less."""

ALPHA = 0.05
"""An adjusted p-value below this is significant."""


def measure_bias(table: ScoreTable, paired: Pairs, *, seed: int = 0) -> Bias:
    """Length in detail, and one row per feature."""
    rows = [
        feature_row(
            name,
            table.features_N[name] if name != "characters" else table.characters_N.astype(float),
            paired,
            seed=seed,
        )
        for name in RESPONSE_FEATURES
    ]
    adjusted = benjamini_hochberg([row.p for row in rows])
    features = tuple(
        replace(row, p_adjusted=p, significant=p is not None and p < ALPHA)
        for row, p in zip(rows, adjusted, strict=True)
    )
    return Bias(length=measure_length_bias(table, paired, seed=seed), features=features)


def feature_row(name: str, feature_N: FloatArray, paired: Pairs, *, seed: int = 0) -> FeatureBias:
    """Is the model biased towards a feature? Over the pairs whose responses differ in it.

    ``accuracy_more`` is the accuracy where the better response has more of it, ``accuracy_less``
    where it has less, and ``gap`` the first less the second, with an interval by prompt group and
    the p-value of :func:`against_the_rest`. ``labels_prefer_more`` and ``model_prefers_more`` are
    shares of these pairs (a tie of rewards is half a preference) and ``excess`` the second less the
    first: a model that is merely unsure has an excess towards one half, but no gap.
    """
    rise_P = feature_N[paired.winner_P] - feature_N[paired.loser_P]
    differ_P = np.isfinite(rise_P) & (rise_P != 0)
    inside, rise = paired.where(differ_P), rise_P[differ_P]
    labels = (rise > 0).astype(np.float64)
    model = 0.5 + 0.5 * np.sign(inside.delta_P) * np.sign(rise)
    excess = pairwise.paired_difference(labels, model, inside.group_P)
    sides_CP = _sides(inside, rise)
    tested = min(sides_CP[0].sum(), sides_CP[2].sum()) >= FEWEST_PER_SIDE
    gap, gap_interval = _of_sides(_difference, sides_CP, inside, seed)
    return FeatureBias(
        feature=name,
        pairs=len(inside),
        share_of_pairs=len(inside) / len(paired) if len(paired) else None,
        labels_prefer_more=pairwise.mean(labels),
        model_prefers_more=pairwise.mean(model),
        excess=excess.mean,
        excess_ci95=excess.interval,
        gap=gap,
        gap_ci95=gap_interval,
        p=against_the_rest(inside.delta_P > 0, rise > 0, inside.group_P) if tested else None,
        accuracy_more=_accuracy(inside.where(rise > 0)),
        accuracy_less=_accuracy(inside.where(rise < 0)),
        p_adjusted=None,
        significant=False,
    )


def _accuracy(paired: Pairs) -> CountedAccuracy:
    return pairwise.measured_accuracy(paired.delta_P, paired.group_P)


def measure_length_bias(table: ScoreTable, paired: Pairs, *, seed: int = 0) -> LengthBias:
    """Reward against the characters of a response, and accuracy with length held out of it.

    ``spearman`` is over all responses; ``within_*`` compare responses of one prompt alone (both
    values less their mean in the comparison), which is what a reward model is for. The slope is
    the least-squares one with a constant per comparison, in reward standard deviations per 100
    characters. ``accuracy_balanced`` gives pairs whose better response is longer and those where
    it is shorter equal weight. ``accuracy_without_length`` ranks by the reward less the slope times
    the length, the slope fitted without the pair's own prompt group.
    """
    length_N = table.characters_N.astype(np.float64)
    # Order of first appearance in both: the groups of the responses are those of the pairs.
    group_N = codes(table.group_N)
    comparison_N = codes(list(zip(table.dataset_N, table.number_N, strict=True)))
    reward_N = _centred(table.reward_N, comparison_N)
    centred_N = _centred(length_N, comparison_N)
    spread = float(table.reward_N.std()) if len(table) else 0.0
    slope, slope_interval = _slope(centred_N, reward_N, group_N, seed)
    unit = 100.0 / spread if spread > 0 else np.nan
    labels = _centred(table.grade_N, comparison_N)
    overall, within, label = (
        correlate(*columns, group_N, seed=seed) if len(table) else _NO_CORRELATION
        for columns in (
            (table.reward_N, length_N),
            (reward_N, centred_N),
            (labels, centred_N),
        )
    )
    rise_P = length_N[paired.winner_P] - length_N[paired.loser_P]
    balanced, balanced_interval = _of_sides(_balance, _sides(paired, rise_P), paired, seed)
    without_P = (
        paired.delta_P
        - _slopes_of_others(centred_N, reward_N, group_N, paired.group_P, seed) * rise_P
    )
    (without_interval,) = pairwise.bootstrap_means(
        (without_P > 0).astype(np.float64)[None], paired.group_P, seed=seed
    )
    return LengthBias(
        spearman=overall.spearman,
        spearman_ci95=overall.spearman_ci95,
        within_spearman=within.spearman,
        within_spearman_ci95=within.spearman_ci95,
        labels_within_spearman=label.spearman,
        slope_per_100_characters=slope * unit,
        slope_ci95=None
        if slope_interval is None
        else Interval(slope_interval.low * unit, slope_interval.high * unit),
        chosen_longer=_accuracy(paired.where(rise_P > 0)),
        chosen_shorter=_accuracy(paired.where(rise_P < 0)),
        equal_length=_accuracy(paired.where(rise_P == 0)),
        accuracy_balanced=balanced,
        accuracy_balanced_ci95=balanced_interval,
        accuracy_without_length=pairwise.accuracy(without_P),
        accuracy_without_length_ci95=without_interval,
    )


_NO_CORRELATION = Correlation(pearson=None, pearson_ci95=None, spearman=None, spearman_ci95=None)


def _centred(values_N: FloatArray, code_N: CodeArray) -> FloatArray:
    if not len(values_N):
        return values_N
    means_C = np.bincount(code_N, values_N) / np.bincount(code_N)
    centred_N: FloatArray = values_N - means_C[code_N]
    return centred_N


def _slope(
    x_N: FloatArray, y_N: FloatArray, group_N: CodeArray, seed: int
) -> tuple[float, Interval | None]:
    """Least squares through the origin of centred values, with an interval by prompt group."""
    square = float(x_N @ x_N)
    if not square:
        return np.nan, None
    columns_CP = np.stack([x_N * y_N, x_N * x_N])
    (interval,) = pairwise.group_bootstrap_sums(
        lambda sums_CR: (sums_CR[0] / sums_CR[1])[None], columns_CP, group_N, seed=seed
    )
    return float(x_N @ y_N) / square, interval


def _slopes_of_others(
    x_N: FloatArray, y_N: FloatArray, group_N: CodeArray, group_P: CodeArray, seed: int
) -> npt.NDArray[np.float64]:
    """For each pair the slope fitted on the folds of prompt groups that are not its own."""
    if not len(group_N):
        return np.zeros(len(group_P))
    fold_G = folds_of(int(group_N.max()) + 1, seed=seed)
    fold_N = fold_G[group_N]
    slope_F = np.zeros(int(fold_G.max()) + 1)
    for fold in range(len(slope_F)):
        others = fold_N != fold
        square = float(x_N[others] @ x_N[others])
        slope_F[fold] = float(x_N[others] @ y_N[others]) / square if square else 0.0
    return slope_F[fold_G[group_P]]


def _sides(paired: Pairs, rise_P: FloatArray) -> FloatArray:
    """Columns to sum: pairs whose better response has more, those right, and the same for less."""
    right_P, more_P, less_P = paired.delta_P > 0, rise_P > 0, rise_P < 0
    return np.array([more_P, more_P & right_P, less_P, less_P & right_P], dtype=np.float64)


def _balance(sums_CR: FloatArray) -> FloatArray:
    more, more_right, less, less_right = sums_CR
    both: FloatArray = 0.5 * (more_right / more + less_right / less)
    return both[None]


def _difference(sums_CR: FloatArray) -> FloatArray:
    more, more_right, less, less_right = sums_CR
    gap: FloatArray = more_right / more - less_right / less
    return gap[None]


def _of_sides(
    statistic: Callable[[FloatArray], FloatArray], sides_CP: FloatArray, paired: Pairs, seed: int
) -> tuple[float | None, Interval | None]:
    """A statistic of both sides with its interval by prompt group; None without one of them."""
    if not (sides_CP[0].any() and sides_CP[2].any()):
        return None, None
    (interval,) = pairwise.group_bootstrap_sums(statistic, sides_CP, paired.group_P, seed=seed)
    return float(statistic(sides_CP.sum(axis=1)[:, None])[0, 0]), interval
