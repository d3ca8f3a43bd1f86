"""Rank metrics and correlations equal SciPy and scikit-learn."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import ndcg_score

from plaudit.evaluation.metrics.ranks import correlate, correlate_strength, measure_ranks, rank
from plaudit.evaluation.table import pairs
from tests.tables import score_table


def table_of(comparisons, groups=None):
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


ANSWER = st.tuples(st.integers(-3, 3), st.integers(-2, 3))
COMPARISONS = st.lists(st.lists(ANSWER, min_size=2, max_size=7), min_size=1, max_size=8)


@settings(deadline=None)
@given(COMPARISONS)
def test_rank_metrics_equal_scipy_and_sklearn(comparisons):
    ranks = rank(table_of(comparisons), fewest=2)
    asked = [c for c in comparisons if len({grade for _, grade in c}) > 1]
    assert len(ranks) == len(asked)
    for number, comparison in enumerate(asked):
        rewards, grades = map(np.array, zip(*comparison, strict=True))
        tau = stats.kendalltau(rewards, grades).statistic
        assert ranks.tau_b_C[number] == pytest.approx(0.0 if math.isnan(tau) else tau, abs=1e-12)
        gains = (grades - grades.min()).astype(float)
        expected = ndcg_score([gains], [rewards])
        assert ranks.ndcg_C[number] == pytest.approx(expected, abs=1e-9)
        first = rewards == rewards.max()
        assert ranks.top1_C[number] == pytest.approx((grades == grades.max())[first].mean())
        assert ranks.chance_C[number] == pytest.approx((grades == grades.max()).mean())
        assert ranks.responses_C[number] == len(comparison)


def test_pairs_alone_have_no_rank_metrics():
    table = table_of([[(1, 1), (0, 0)]] * 3)
    assert measure_ranks(table) is None
    assert len(rank(score_table([]))) == 0


def test_rank_facts_by_hand():
    right, reverse = [(3, 3), (2, 2), (1, 1)], [(1, 3), (2, 2), (3, 1)]
    facts = measure_ranks(table_of([right, right, right, reverse, [(1, 1), (0, 0)]]))
    assert (facts.comparisons, facts.responses) == (4, 12)
    assert (facts.tau_b, facts.top1) == (0.5, 0.75)
    assert facts.top1_by_chance == pytest.approx(1 / 3)
    low, high = facts.top1_ci95
    assert low <= 0.75 <= high


NUMBERS = st.integers(-20, 20).map(lambda value: value / 4)


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 9)), min_size=3, max_size=40))
def test_correlations_equal_scipy(rows):
    x_P, y_P, group = map(np.array, zip(*rows, strict=True))
    facts = correlate(x_P, y_P, group.astype(np.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "pearson": stats.pearsonr(x_P, y_P).statistic,
            "spearman": stats.spearmanr(x_P, y_P).statistic,
        }
    for name, value in expected.items():
        if math.isnan(value):
            assert math.isnan(getattr(facts, name))
        else:
            assert getattr(facts, name) == pytest.approx(value, abs=1e-9)


def test_graded_preferences():
    generator = np.random.default_rng(0)
    strength = generator.integers(1, 4, 300)
    comparisons = [[(s + generator.normal(), s), (0.0, 0)] for s in strength]
    table = table_of(comparisons)
    facts = correlate_strength(table, pairs(table))
    delta_P = pairs(table).delta_P
    assert facts.strength == "grades"
    assert facts.spearman == pytest.approx(stats.spearmanr(delta_P, strength).statistic)
    low, high = facts.pearson_ci95
    assert 0.3 < low < facts.pearson < high < 0.9
    plain = table_of([[(1, 1), (0, 0)], [(2, 1), (0, 0)]])
    assert correlate_strength(plain, pairs(plain)) is None
