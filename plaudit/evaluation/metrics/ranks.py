"""Rank metrics of comparisons with more than two responses, and correlation with graded labels.

C comparisons, N rows of a score table, P ordered pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.schema import (
    Correlation,
    Interval,
    RankMetrics,
    StrengthCorrelation,
    parts,
)
from plaudit.evaluation.table import CodeArray, Pairs, ScoreTable, codes, unordered_pairs
from plaudit.types import FloatArray

FEWEST = 3
"""A comparison of two responses has nothing that its pair does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Per comparison with at least two different grades: how well its responses are ordered.

    ``chance_C`` is what top-1 would be for a random order. ``group_C`` codes its prompt group and
    ``responses_C`` counts its responses.
    """

    tau_b_C: FloatArray
    top1_C: FloatArray
    chance_C: FloatArray
    ndcg_C: FloatArray
    responses_C: CodeArray
    group_C: CodeArray

    def __len__(self) -> int:
        return len(self.tau_b_C)


def rank(table: ScoreTable, *, fewest: int = FEWEST) -> Ranks:
    """Kendall's tau-b, top-1 and NDCG of each comparison of ``fewest`` responses or more.

    tau-b is 0 where all rewards of a comparison are equal (it is 0/0 there). Top-1 asks whether the
    response of the highest reward has the highest grade; of equal rewards one is taken at random,
    so it can be a fraction. NDCG's gain is the grade above the comparison's lowest, its discount
    log2(place + 1), equal rewards sharing the mean discount of their places (Järvelin and
    Kekäläinen, 2002; McSherry and Najork, 2008).
    """
    known_N = np.isfinite(table.grade_N)
    if not known_N.all():
        table = table.take(known_N)
    comparison_N = codes(list(zip(table.dataset_N, table.number_N, strict=True)))
    count = int(comparison_N.max()) + 1 if len(comparison_N) else 0
    responses_C = np.bincount(comparison_N, minlength=count)
    best_C = _extreme(np.maximum, table.grade_N, comparison_N, count)
    worst_C = _extreme(np.minimum, table.grade_N, comparison_N, count)
    highest_C = _extreme(np.maximum, table.reward_N, comparison_N, count)
    asked_C = (responses_C >= fewest) & (best_C > worst_C)
    best_N = table.grade_N == best_C[comparison_N]
    top_N = table.reward_N == highest_C[comparison_N]
    tops_C = np.bincount(comparison_N, top_N, count)
    top1_C = np.bincount(comparison_N, best_N & top_N, count) / np.maximum(tops_C, 1)
    chance_C = np.bincount(comparison_N, best_N, count) / np.maximum(responses_C, 1)
    gain_N = table.grade_N - worst_C[comparison_N]
    found_C = _discounted(table.reward_N, gain_N, comparison_N, count)
    ideal_C = _discounted(table.grade_N, gain_N, comparison_N, count)
    group_C = np.zeros(count, dtype=np.int64)
    group_C[comparison_N] = codes(table.group_N)
    return Ranks(
        tau_b_C=_tau_b(table.reward_N, table.grade_N, comparison_N, count)[asked_C],
        top1_C=top1_C[asked_C],
        chance_C=chance_C[asked_C],
        ndcg_C=found_C[asked_C] / ideal_C[asked_C],
        responses_C=responses_C[asked_C],
        group_C=group_C[asked_C],
    )


def _extreme(of: np.ufunc, values_N: FloatArray, code_N: CodeArray, count: int) -> FloatArray:
    found_C = np.full(count, -np.inf if of is np.maximum else np.inf)
    of.at(found_C, code_N, values_N)
    return found_C


def _tau_b(reward_N: FloatArray, grade_N: FloatArray, code_N: CodeArray, count: int) -> FloatArray:
    first_P, second_P = unordered_pairs(code_N)
    code_P = code_N[first_P]
    reward_P = np.sign(reward_N[first_P] - reward_N[second_P])
    grade_P = np.sign(grade_N[first_P] - grade_N[second_P])
    concord_C = np.bincount(code_P, reward_P * grade_P, count)
    untied_C = np.bincount(code_P, reward_P != 0, count) * np.bincount(code_P, grade_P != 0, count)
    return np.where(untied_C > 0, concord_C / np.sqrt(np.maximum(untied_C, 1)), 0.0)


def _discounted(
    order_N: FloatArray, gain_N: FloatArray, code_N: CodeArray, count: int
) -> FloatArray:
    """Discounted gain of each comparison, its rows taken by falling ``order_N``."""
    if not len(code_N):
        return np.zeros(0)
    by_order_N = np.lexsort((-order_N, code_N))
    code = code_N[by_order_N]
    order = order_N[by_order_N]
    starts = np.flatnonzero(np.concatenate([[True], code[1:] != code[:-1]]))
    sizes = np.diff([*starts, len(code)])
    place = np.arange(len(code)) - np.repeat(starts, sizes)
    fresh = np.concatenate([[True], (code[1:] != code[:-1]) | (order[1:] != order[:-1])])
    level = np.cumsum(fresh) - 1
    discount = 1.0 / np.log2(place + 2)
    shared = (np.bincount(level, discount) / np.bincount(level))[level]
    return np.bincount(code, gain_N[by_order_N] * shared, count).astype(np.float64)


def measure_ranks(table: ScoreTable, *, seed: int = 0) -> RankMetrics | None:
    """Means over comparisons with intervals by prompt group; ``None`` without K > 2."""
    ranks = rank(table)
    if not len(ranks):
        return None
    series = np.stack([ranks.tau_b_C, ranks.top1_C, ranks.ndcg_C])
    tau_b, top1, ndcg = pairwise.bootstrap_means(series, ranks.group_C, seed=seed)
    return RankMetrics(
        comparisons=len(ranks),
        responses=int(ranks.responses_C.sum()),
        tau_b=float(ranks.tau_b_C.mean()),
        tau_b_ci95=tau_b,
        top1=float(ranks.top1_C.mean()),
        top1_ci95=top1,
        top1_by_chance=float(ranks.chance_C.mean()),
        ndcg=float(ranks.ndcg_C.mean()),
        ndcg_ci95=ndcg,
    )


def correlate_strength(
    table: ScoreTable, paired: Pairs, *, seed: int = 0
) -> StrengthCorrelation | None:
    """Reward difference against the strength of the preference, where the data have degrees.

    The strength is the difference of the grades, or where that is the same for all pairs their
    margin; ``None`` where both are. Pearson and Spearman (of ranks taken once) with intervals by
    prompt group.
    """
    strengths = {
        "grades": table.grade_N[paired.winner_P] - table.grade_N[paired.loser_P],
        "margins": paired.margin_P,
    }
    for name, strength_P in strengths.items():
        if len(paired) and np.ptp(strength_P) > 0:
            found = correlate(paired.delta_P, strength_P, paired.group_P, seed=seed)
            return StrengthCorrelation(strength=name, pairs=len(paired), **parts(found))
    return None


def correlate(
    x_P: FloatArray, y_P: FloatArray, group_P: CodeArray, *, seed: int = 0
) -> Correlation:
    """Pearson and Spearman with 95% intervals by group; ``nan`` where one side is constant."""
    from scipy.stats import rankdata

    def coefficient(a_P: FloatArray, b_P: FloatArray) -> tuple[float, Interval | None]:
        # Centred and scaled first: sums of squares of raw values would lose digits.
        a_P, b_P = _standard(a_P), _standard(b_P)
        columns_CP = np.stack([np.ones(len(a_P)), a_P, b_P, a_P * b_P, a_P * a_P, b_P * b_P])
        (interval,) = pairwise.group_bootstrap_sums(_pearson, columns_CP, group_P, seed=seed)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(_pearson(columns_CP.sum(axis=1)[:, None])[0, 0]), interval

    pearson, pearson_interval = coefficient(x_P, y_P)
    spearman, spearman_interval = coefficient(rankdata(x_P), rankdata(y_P))
    return Correlation(
        pearson=pearson,
        pearson_ci95=pearson_interval,
        spearman=spearman,
        spearman_ci95=spearman_interval,
    )


def _standard(values: FloatArray) -> FloatArray:
    spread = values.std()
    standard: FloatArray = (values - values.mean()) / (spread if spread > 0 else 1.0)
    return standard


def _pearson(sums_CR: FloatArray) -> FloatArray:
    count, a, b, ab, aa, bb = sums_CR
    covariance = ab - a * b / count
    variances = (aa - a * a / count) * (bb - b * b / count)
    correlation: FloatArray = covariance / np.sqrt(variances)
    return correlation[None]
