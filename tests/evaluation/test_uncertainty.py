"""Does the spread over heads say where an ensemble errs? Worked by hand, and against references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from plaudit.evaluation.metrics.uncertainty import (
    LEVELS,
    confident_pairs,
    cover_ratings,
    measure_uncertainty,
    predict_errors,
    reach,
)
from plaudit.evaluation.table import ScoreTable
from plaudit.types import Outputs, TrainedObjective
from tests.tables import score_table


def ensemble(heads: int) -> Outputs:
    names = tuple(f"head_{number}" for number in range(heads))
    return Outputs(names=names, weights=(1 / heads,) * heads, offsets=(0.0,) * heads, ensemble=True)


def table_of(delta_PH: np.ndarray, outputs: Outputs) -> ScoreTable:
    """A pair a row, whose better response has these outputs and whose other one has zeros."""

    def response(output_H: np.ndarray) -> dict[str, object]:
        named = dict(zip(outputs.names, output_H.tolist(), strict=True))
        return {"reward": float(output_H.mean()), "outputs": named}

    return score_table([[response(row), response(0.0 * row)] for row in delta_PH])


def test_scores_of_four_pairs() -> None:
    """The third and the fourth pair are wrong; the other two are right."""
    delta_P, spread_P = np.array([4.0, 1.0, -0.5, -2.0]), np.array([1.0, 2.0, 2.0, 0.5])
    spread, relative, margin = predict_errors(delta_P, spread_P, np.arange(4))
    # Spreads of the wrong pairs, 2 and 0.5, against 1 and 2: above, equal, below, below.
    assert spread.auroc == 1.5 / 4
    # 4 and 0.25 against 0.25 and 2.
    assert relative.auroc == 2.5 / 4
    # -0.5 and -2 against -4 and -1.
    assert margin.auroc == 3 / 4
    assert (spread.delta_auroc, relative.delta_auroc) == (-0.375, -0.125)
    assert margin.delta_auroc is None
    assert margin.delta_auroc_ci95 is None
    # By falling margin: right, wrong, right, wrong.
    assert margin.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    # By rising spread: wrong, right, then one of each with equal spreads, half an error apiece.
    assert spread.aurc == pytest.approx((1 + 1 / 2 + 1.5 / 3 + 2 / 4) / 4)
    (half,) = (point for point in margin.risk_coverage if point.coverage == 0.5)
    assert (half.pairs, half.risk) == (2, 0.5)


def test_a_difference_of_zero_is_least_certain() -> None:
    delta_P, spread_P = np.array([0.0, 1.0]), np.array([0.0, 3.0])
    _, relative, margin = predict_errors(delta_P, spread_P, np.arange(2))
    assert relative.auroc == margin.auroc == 1.0


def test_auroc_and_its_paired_difference_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    group_P = np.repeat(np.arange(15), rng.integers(1, 5, 15))
    delta_P = np.round(rng.normal(0.5, 1, len(group_P)), 1)
    spread_P = np.round(rng.gamma(2.0, 0.5, len(group_P)), 1) + 0.1
    spread, _, margin = predict_errors(delta_P, spread_P, group_P, seed=7)
    wrong_P = delta_P <= 0
    assert spread.auroc == pytest.approx(roc_auc_score(wrong_P, spread_P))
    assert margin.auroc == pytest.approx(roc_auc_score(wrong_P, -np.abs(delta_P)))
    draws = np.random.default_rng(7)
    members = [np.flatnonzero(group_P == group) for group in range(15)]
    apart = []
    for _ in range(1000):
        drawn = np.concatenate([members[group] for group in draws.integers(15, size=15)])
        if len(set(wrong_P[drawn].tolist())) == 2:
            apart.append(
                roc_auc_score(wrong_P[drawn], spread_P[drawn])
                - roc_auc_score(wrong_P[drawn], -np.abs(delta_P[drawn]))
            )
    ends = np.quantile(apart, [0.025, 0.975])
    assert spread.delta_auroc_ci95 == pytest.approx(ends, abs=1e-12)


def test_the_reach_is_that_of_students_prediction_interval() -> None:
    # Tables of Student's t: 3.182 with 3 degrees of freedom, 12.706 with one.
    assert reach(0.95, 4) == pytest.approx(3.182 * math.sqrt(5 / 4), rel=1e-3)
    assert reach(0.95, 2) == pytest.approx(12.706 * math.sqrt(3 / 2), rel=1e-4)


def test_pairs_that_two_heads_are_sure_of() -> None:
    # One-sided, one degree of freedom: 0, 1.376, 3.078 and 6.314, times the root of 1.5.
    delta_P, spread_P = np.array([4.0, -3.0, 1.0]), np.ones(3)
    levels = confident_pairs(delta_P, spread_P, np.arange(3), 2)
    assert [one.level for one in levels] == list(LEVELS)
    assert [one.pairs for one in levels] == [3, 2, 1, 0]
    assert [one.share for one in levels] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert [one.accuracy for one in levels[:3]] == pytest.approx([2 / 3, 1 / 2, 1])
    assert math.isnan(levels[3].accuracy or 0.0)


def test_intervals_cover_ratings_that_are_one_more_draw() -> None:
    """Heads and rating are draws of one distribution, whose centre and width differ by response."""
    rng = np.random.default_rng(0)
    centre_N, width_N = rng.normal(3, 2, 20_000), rng.gamma(2.0, 1.0, 20_000)
    draw_NH = centre_N[:, None] + width_N[:, None] * rng.normal(size=(20_000, 5))
    found = cover_ratings(draw_NH[:, :4], draw_NH[:, 4], np.arange(20_000))
    assert [one.coverage for one in found.levels] == pytest.approx(LEVELS, abs=0.01)
    spread_N, error_N = draw_NH[:, :4].std(axis=1, ddof=1), draw_NH[:, :4].mean(axis=1)
    expected = stats.spearmanr(spread_N, np.abs(error_N - draw_NH[:, 4])).statistic
    assert found.spearman == pytest.approx(expected)
    assert found.spearman_ci95 is not None
    assert found.spearman_ci95.low > 0.2


def test_an_ensemble_that_disagrees_where_it_errs() -> None:
    rng = np.random.default_rng(1)
    outputs = ensemble(4)
    hard_P = rng.random(400) < 0.3
    delta_PH = (
        np.where(hard_P, 0.0, 2.0)[:, None] + rng.normal(0, np.where(hard_P, 2.0, 0.3), (4, 400)).T
    )
    found = measure_uncertainty(table_of(delta_PH, outputs), outputs, None)
    assert found is not None
    assert (found.heads, found.pairs) == (4, 400)
    assert found.wrong == (delta_PH.mean(axis=1) <= 0).sum()
    assert found.difference_spread == pytest.approx(delta_PH.std(axis=1, ddof=1).mean())
    assert found.reward_spread == pytest.approx(delta_PH.std(axis=1, ddof=1).mean() / 2)
    ends = found.of("spread").auroc_ci95
    assert ends is not None
    assert ends.low > 0.7
    assert [one.accuracy or 0 for one in found.levels] == sorted(
        one.accuracy or 0 for one in found.levels
    )
    assert found.ratings is None


def test_ratings_of_an_ensemble_are_covered_on_the_scale_of_ratings() -> None:
    outputs = ensemble(3)
    heads = {"head_0": 2.0, "head_1": 3.0, "head_2": 4.0}
    row = {"reward": 3.0, "outputs": heads, "rated": True}
    table = score_table([[{**row, "grade": 3.5}], [{**row, "grade": 30.0}]])
    found = measure_uncertainty(table, outputs, TrainedObjective(kind="mse"))
    assert found is not None
    assert found.pairs == 0
    assert found.ratings is not None
    assert found.ratings.spread == 1.0
    assert [one.coverage for one in found.ratings.levels] == [0.5] * 4
    assert found.ratings.levels[0].half_width == pytest.approx(0.8165 * math.sqrt(4 / 3), rel=1e-3)
    labels = score_table([[{**row, "grade": 1.0}], [{**row, "grade": 0.0}]])
    of_labels = measure_uncertainty(labels, outputs, TrainedObjective(kind="bce"))
    assert of_labels is not None
    assert of_labels.ratings is not None
    assert of_labels.ratings.levels == ()


def test_other_heads_have_no_uncertainty() -> None:
    outputs = ensemble(2)
    table = table_of(np.ones((3, 2)), outputs)
    assert measure_uncertainty(table, None, None) is None
    named = Outputs(names=("a", "b"), weights=(0.5, 0.5), offsets=(0.0, 0.0))
    assert measure_uncertainty(table, named, None) is None
