"""Expected against given ratings: errors beside the median's, and the curve that plots draw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plaudit.data.perturb.run import build_perturbation_tests
from plaudit.evaluation.analysis.perturbations import Perturbed, perturbation_row
from plaudit.evaluation.schema import EvaluationMetrics
from plaudit.evaluation.summary import EvaluationContext, summarise
from plaudit.types import Comparison, TrainedObjective
from tests.tables import score_table


def evaluated(reward_N: np.ndarray, rating_N: np.ndarray, kind: str) -> EvaluationMetrics:
    """One rated response a prompt, by a model that was trained for ``kind``."""
    pairs = zip(reward_N.tolist(), rating_N.tolist(), strict=True)
    table = score_table([[{"reward": r, "grade": y, "rated": True}] for r, y in pairs])
    objective = TrainedObjective(kind=kind)
    return summarise(table, EvaluationContext(dataset="eval", objective=objective))


def test_the_error_is_compared_with_that_of_the_median_response_by_response() -> None:
    rng = np.random.default_rng(0)
    rating_N = rng.integers(1, 6, 300).astype(float)
    ratings = evaluated(rating_N + rng.normal(0, 0.5, 300), rating_N, "mse").ratings
    assert ratings is not None
    assert ratings.delta_mae == pytest.approx(ratings.mae - ratings.mae_of_median)
    assert ratings.delta_mae_ci95 is not None
    assert ratings.delta_mae_ci95.low < ratings.delta_mae < ratings.delta_mae_ci95.high < 0


def test_the_curve_has_a_bin_for_each_given_rating() -> None:
    rating_N = np.array([3.0, 1.0, 3.0, 5.0] * 5)
    curve = evaluated(np.arange(20.0), rating_N, "huber").curves.ratings
    assert curve is not None
    assert curve.by == "given"
    assert [(one.given, one.responses) for one in curve.bins] == [(1, 5), (3, 10), (5, 5)]
    assert curve.bins[0].expected == np.arange(20.0)[rating_N == 1].mean()
    assert curve.bins[0].given_ci95 is None


def test_more_than_ten_ratings_share_bins_of_equal_numbers() -> None:
    rating_N = np.arange(40.0)
    curve = evaluated(rating_N, rating_N, "mse").curves.ratings
    assert curve is not None
    assert [one.responses for one in curve.bins] == [4] * 10
    assert [one.given for one in curve.bins] == [one.expected for one in curve.bins]


def test_labels_have_bins_of_similar_probabilities() -> None:
    reward_N = np.linspace(-2, 2, 50)
    label_N = (reward_N > 0).astype(float)
    curve = evaluated(reward_N, label_N, "bce").curves.ratings
    assert curve is not None
    assert curve.by == "expected"
    expected = [one.expected for one in curve.bins]
    assert expected == sorted(expected)
    assert 0 < expected[0] < expected[-1] < 1
    assert [one.given for one in curve.bins] == [0.0] * 5 + [1.0] * 5
    assert curve.bins[0].given_ci95 is not None


def test_a_model_of_pairs_has_no_expected_ratings() -> None:
    block = evaluated(np.arange(4.0), np.arange(4.0), "bradley_terry")
    assert block.ratings is None
    assert block.curves.ratings is None


def test_a_response_without_a_worse_one_has_no_ranking_to_flip() -> None:
    single = Perturbed(
        kind="meaning_preserving", name="blank_lines", original=1.0, other=None, perturbed=0.5
    )
    row = perturbation_row("meaning_preserving", "blank_lines", [single] * 4, reward_std=1.0)
    assert (row.responses, row.fell) == (4, 1.0)
    assert (row.flipped, row.flipped_ci95) == (None, None)
    paired = replace(single, other=0.7)
    row = perturbation_row("meaning_preserving", "blank_lines", [single, paired], reward_std=1.0)
    assert row.flipped == 1.0


def test_only_well_rated_responses_are_perturbed() -> None:
    rows = [
        Comparison(
            id=str(number),
            prompt=f"Question {number}?",
            responses=("An answer, which is long enough.",),
            grades=(float(number % 2),),
            rated=True,
            group=str(number),
            source="s",
            where=f"file:{number}",
        )
        for number in range(40)
    ]
    built = build_perturbation_tests(rows, most=10)
    assert len(built.tests) == 10
    assert {int(test.comparison.group) % 2 for test in built.tests} == {1}
    assert not any(test.ordered for test in built.tests)
