"""Rank metrics and correlations equal SciPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plaudit.evaluation.metrics.ranks import correlate_strength, measure_ranks, rank
from plaudit.evaluation.table import pairs
from tests.tables import score_table, table_of_grades


def test_pairs_alone_have_no_rank_metrics():
    table = table_of_grades([[(1, 1), (0, 0)]] * 3)
    assert measure_ranks(table) is None
    assert len(rank(score_table([]))) == 0


def test_rank_facts_by_hand():
    right, reverse = [(3, 3), (2, 2), (1, 1)], [(1, 3), (2, 2), (3, 1)]
    facts = measure_ranks(table_of_grades([right, right, right, reverse, [(1, 1), (0, 0)]]))
    assert (facts.comparisons, facts.responses) == (4, 12)
    assert (facts.tau_b, facts.top1) == (0.5, 0.75)
    assert facts.top1_by_chance == pytest.approx(1 / 3)
    low, high = facts.top1_ci95
    assert low <= 0.75 <= high


def test_graded_preferences():
    generator = np.random.default_rng(0)
    strength = generator.integers(1, 4, 300)
    comparisons = [[(s + generator.normal(), s), (0.0, 0)] for s in strength]
    table = table_of_grades(comparisons)
    facts = correlate_strength(table, pairs(table))
    delta_P = pairs(table).delta_P
    assert facts.strength == "grades"
    assert facts.spearman == pytest.approx(stats.spearmanr(delta_P, strength).statistic)
    low, high = facts.pearson_ci95
    assert 0.3 < low < facts.pearson < high < 0.9
    plain = table_of_grades([[(1, 1), (0, 0)], [(2, 1), (0, 0)]])
    assert correlate_strength(plain, pairs(plain)) is None
