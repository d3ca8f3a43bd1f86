"""Does the spread over the heads of an ensemble say where it errs?

Shapes: N responses, P ordered pairs, H heads. The spread is the sample standard deviation over
heads. The heads disagree because they were trained on other samples and started elsewhere; noise of
the labels is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.ranks import correlate
from plaudit.evaluation.metrics.ratings import (
    auc,
    auc_draws,
    is_binary,
    predictions,
    rated_rows,
)
from plaudit.evaluation.schema import (
    ConfidentPairs,
    ErrorPrediction,
    RatingCoverage,
    RatingUncertainty,
    UncertaintyMetrics,
    UncertaintyScore,
)
from plaudit.evaluation.table import CodeArray, ScoreTable, codes, pairs
from plaudit.types import FloatArray, Outputs, TrainedObjective

LEVELS: Final = (0.5, 0.8, 0.9, 0.95)
"""Nominal probabilities that are compared with what is measured."""


def measure_uncertainty(
    table: ScoreTable,
    outputs: Outputs | None,
    objective: TrainedObjective | None,
    *,
    seed: int = 0,
) -> UncertaintyMetrics | None:
    """All of it for an ensemble, with intervals by prompt group; None for another head."""
    if outputs is None or not outputs.ensemble or not len(table):
        return None
    output_NH = np.stack([table.outputs[name] for name in outputs.names], axis=1)
    paired = pairs(table)
    delta_PH = output_NH[paired.winner_P] - output_NH[paired.loser_P]
    delta_P, spread_P = delta_PH.mean(axis=1), outputs.spreads(delta_PH)
    credit_P = pairwise.pair_credits(delta_P)
    return UncertaintyMetrics(
        heads=len(outputs.names),
        pairs=len(paired),
        wrong=int((delta_P <= 0).sum()),
        reward_spread=float(outputs.spreads(output_NH).mean()),
        difference_spread=pairwise.mean(spread_P),
        scores=predict_errors(delta_P, spread_P, paired.group_P, seed=seed),
        aurc_best_possible=pairwise.risk_coverage(credit_P, credit_P).area,
        levels=confident_pairs(delta_P, spread_P, paired.group_P, len(outputs.names), seed=seed),
        ratings=_of_ratings(table, output_NH, objective, seed=seed),
    )


def uncertainty_scores(
    delta_P: FloatArray, spread_P: FloatArray
) -> Mapping[UncertaintyScore, FloatArray]:
    """The scores of each pair, higher where it is less certain.

    The spread of the reward difference over heads; the spread over the size of the mean difference,
    which is infinite at 0; and minus that size, for which one head suffices.
    """
    size_P = np.abs(delta_P)
    relative_P = np.full(len(delta_P), np.inf)
    np.divide(spread_P, size_P, out=relative_P, where=size_P > 0)
    return {"spread": spread_P, "relative_spread": relative_P, "margin": -size_P}


def predict_errors(
    delta_P: FloatArray, spread_P: FloatArray, group_P: CodeArray, *, seed: int = 0
) -> tuple[ErrorPrediction, ...]:
    """How well each score tells wrong pairs from right ones: AUROC, and error by coverage.

    A tie is wrong; in risk-coverage it is half an error (:func:`pairwise.risk_coverage`).
    """
    wrong_P = (delta_P <= 0).astype(np.float64)
    credit_P = pairwise.pair_credits(delta_P)
    scores = uncertainty_scores(delta_P, spread_P)
    drawn = {
        name: auc_draws(score_P, wrong_P, group_P, seed=seed) for name, score_P in scores.items()
    }
    found = {name: auc(score_P, wrong_P) for name, score_P in scores.items()}
    results = []
    for name, score_P in scores.items():
        risk = pairwise.risk_coverage(-score_P, credit_P)
        other = name != "margin"
        apart_R = drawn[name] - drawn["margin"]
        results.append(
            ErrorPrediction(
                score=name,
                auroc=found[name],
                auroc_ci95=pairwise.percentile_interval(drawn[name]),
                delta_auroc=found[name] - found["margin"] if other else None,
                delta_auroc_ci95=pairwise.percentile_interval(apart_R) if other else None,
                aurc=risk.area,
                risk_coverage=pairwise.risk_curve(risk, group_P),
            )
        )
    return tuple(results)


def reach(level: float, heads: int) -> float:
    """Spreads on either side of the mean that hold one more draw with probability ``level``.

    Student's prediction interval for one more draw from the normal distribution of H draws,
    ``t (1 + 1/H)^(1/2)`` with H - 1 degrees of freedom. It is exact for a normal distribution.
    """
    from scipy.stats import t

    return float(t.ppf((1.0 + level) / 2.0, heads - 1)) * math.sqrt(1.0 + 1.0 / heads)


def confident_pairs(
    delta_P: FloatArray, spread_P: FloatArray, group_P: CodeArray, heads: int, *, seed: int = 0
) -> tuple[ConfidentPairs, ...]:
    """The pairs whose order is sure at each of :data:`LEVELS`, and the accuracy on them.

    The order of a pair is sure with the probability that one more head would agree with the mean
    (:func:`reach`, of one side).
    """
    results = []
    for level in LEVELS if len(delta_P) else ():
        # One side: the interval of 2 level - 1 leaves 1 - level beyond each end.
        sure_P = np.abs(delta_P) >= reach(2.0 * level - 1.0, heads) * spread_P
        measured = pairwise.measured_accuracy(delta_P[sure_P], group_P[sure_P], seed=seed)
        results.append(
            ConfidentPairs(
                level=level,
                share=float(sure_P.mean()),
                accuracy=measured.accuracy,
                accuracy_ci95=measured.accuracy_ci95,
                accuracy_ci95_method=measured.accuracy_ci95_method,
                pairs=measured.pairs,
            )
        )
    return tuple(results)


def _of_ratings(
    table: ScoreTable, output_NH: FloatArray, objective: TrainedObjective | None, *, seed: int
) -> RatingUncertainty | None:
    rows_N = rated_rows(table, objective)
    if objective is None or not len(rows_N):
        return None
    expected_NH = np.stack(
        [predictions(output_N, objective) for output_N in output_NH[rows_N].T], axis=1
    )
    return cover_ratings(
        expected_NH, table.grade_N[rows_N], codes(table.group_N[rows_N]), seed=seed
    )


def cover_ratings(
    expected_NH: FloatArray, rating_N: FloatArray, group_N: CodeArray, *, seed: int = 0
) -> RatingUncertainty:
    """Ratings that heads expect against N > 0 given ones: coverage, and spread against error."""
    heads = expected_NH.shape[1]
    spread_N = expected_NH.std(axis=1, ddof=1)
    error_N = np.abs(expected_NH.mean(axis=1) - rating_N)
    found = correlate(spread_N, error_N, group_N, seed=seed)
    levels = []
    for level in () if is_binary(rating_N) else LEVELS:
        half_N = reach(level, heads) * spread_N
        inside_N = (error_N <= half_N).astype(np.float64)
        levels.append(
            RatingCoverage(
                level=level,
                coverage=float(inside_N.mean()),
                coverage_ci95=pairwise.share_interval(inside_N, group_N, seed=seed).shown,
                half_width=float(half_N.mean()),
            )
        )
    return RatingUncertainty(
        responses=len(rating_N),
        spread=float(spread_N.mean()),
        spearman=found.spearman,
        spearman_ci95=found.spearman_ci95,
        levels=tuple(levels),
    )
