from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plaudit.evaluation.analysis.bias import feature_row, measure_bias, measure_length_bias
from plaudit.evaluation.table import build_table, pairs
from plaudit.types import ScoreRow


def table_of(comparisons, features=None):
    """A table of comparisons given as lists of (reward, grade, characters)."""
    return build_table(
        ScoreRow(
            comparison=str(number),
            number=number,
            group=str(number),
            dataset="eval",
            source="s",
            response=response,
            reward=float(reward),
            grade=float(grade),
            margin=0.0,
            tokens=1,
            characters=characters,
            features={} if features is None else features[number][response],
        )
        for number, comparison in enumerate(comparisons)
        for response, (reward, grade, characters) in enumerate(comparison)
    )


ANSWERS = st.lists(
    st.tuples(st.integers(-9, 9).map(lambda r: r / 2), st.integers(0, 2), st.integers(0, 50)),
    min_size=2,
    max_size=4,
)


@settings(deadline=None, max_examples=50)
@given(st.lists(ANSWERS, min_size=3, max_size=12))
def test_slope_and_spearman_equal_statsmodels_and_scipy(comparisons):
    table = table_of(comparisons)
    facts = measure_length_bias(table, pairs(table))
    length, reward = table.characters_N.astype(float), table.reward_N
    number = table.number_N
    dummies = (number[:, None] == np.unique(number)).astype(float)
    within = length - dummies @ (dummies.T @ length / dummies.sum(0))
    if (within != 0).sum() > 1 and reward.std() > 0 and abs(within).max() > 1e-9:
        slope = sm.OLS(reward, np.column_stack([length, dummies])).fit().params[0]
        expected = slope * 100 / reward.std()
        assert facts.slope_per_100_characters == pytest.approx(expected, rel=1e-7, abs=1e-7)
    if length.std() > 0 and reward.std() > 0:
        expected = stats.spearmanr(reward, length).statistic
        assert facts.spearman == pytest.approx(expected, abs=1e-9)


def simulated(liking, count=1500, seed=0):
    """Quality decides the labels; the reward is measure_pairs and ``liking`` for length."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        measure_pairs = generator.normal(size=2)
        characters = generator.integers(50, 950, size=2)
        reward = measure_pairs + generator.normal(0, 0.5, 2) + liking * (characters - 500) / 260
        better = measure_pairs[0] > measure_pairs[1]
        rows.append(
            [
                (reward[0], better, int(characters[0])),
                (reward[1], not better, int(characters[1])),
            ]
        )
    return table_of(rows)


def test_a_liking_for_length_is_found_and_taken_out():
    table = simulated(1.0)
    found = measure_bias(table, pairs(table))
    row, length = found.features[0], found.length
    assert row.feature == "characters"
    assert row.significant
    assert row.gap_ci95[0] > 0.2
    assert row.gap == pytest.approx(length.chosen_longer.accuracy - length.chosen_shorter.accuracy)
    assert row.excess_ci95[0] > 0.1
    assert row.labels_prefer_more == pytest.approx(0.5, abs=0.05)
    assert length.chosen_longer.accuracy > length.chosen_shorter.accuracy + 0.2
    assert length.slope_per_100_characters > 0.15
    assert length.slope_ci95[0] > 0
    plain = simulated(0.0)
    accuracy = float((pairs(plain).delta_P > 0).mean())
    assert length.accuracy_without_length == pytest.approx(accuracy, abs=0.02)
    assert length.accuracy_without_length > (pairs(table).delta_P > 0).mean() + 0.05


def test_noise_is_no_leaning_where_the_labels_have_one():
    """Labels like longer responses in four of five pairs; the model is right in 70% of either."""
    generator = np.random.default_rng(4)
    rows = []
    for _ in range(2000):
        longer_wins, right = generator.random() < 0.8, generator.random() < 0.7
        lengths = (20, 10) if longer_wins else (10, 20)
        rows.append([(float(right), 1, lengths[0]), (float(not right), 0, lengths[1])])
    table = table_of(rows)
    row = measure_bias(table, pairs(table)).features[0]
    assert row.excess_ci95[1] < -0.1
    assert row.gap_ci95[0] < 0 < row.gap_ci95[1]
    assert not row.significant


def test_no_liking_is_not_found():
    table = simulated(0.0)
    found = measure_bias(table, pairs(table))
    assert not found.features[0].significant
    assert found.length.slope_ci95[0] < 0 < found.length.slope_ci95[1]


def test_balanced_accuracy_is_the_mean_of_both_sides():
    longer_right, longer_wrong = [(1, 1, 9), (0, 0, 3)], [(0, 1, 9), (1, 0, 3)]
    shorter_right = [(1, 1, 3), (0, 0, 9)]
    table = table_of([longer_right] * 6 + [longer_wrong] * 2 + [shorter_right])
    facts = measure_length_bias(table, pairs(table))
    assert facts.chosen_longer.accuracy == 0.75
    assert facts.chosen_shorter.accuracy == 1.0
    assert facts.accuracy_balanced == pytest.approx(0.875)


def test_a_feature_row_by_hand():
    # Labels prefer the list in 1 of 3 pairs that differ, the model in 2 and a tie.
    comparisons = [
        [(2, 1, 1), (1, 0, 1)],
        [(1, 1, 1), (2, 0, 1)],
        [(1, 1, 1), (1, 0, 1)],
        [(2, 1, 1), (1, 0, 1)],
    ]
    lists = [(3, 0), (0, 2), (0, 1), (4, 4)]
    features = [[{"list_items": more} for more in pair] for pair in lists]
    table = table_of(comparisons, features)
    row = feature_row("list_items", table.features_N["list_items"], pairs(table))
    assert row.pairs == 3
    assert row.labels_prefer_more == pytest.approx(1 / 3)
    assert row.model_prefers_more == pytest.approx(2.5 / 3)
    assert row.excess == pytest.approx(0.5)
    assert row.gap == 1.0
    assert row.accuracy_more.pairs == 1
    assert (row.accuracy_less.pairs, row.accuracy_less.accuracy) == (2, 0.0)
    assert row.accuracy_less.accuracy_ci95 == pytest.approx((0.0, 0.6576), abs=1e-3)
    assert row.accuracy_less.accuracy_ci95_method == "wilson"
    assert row.p is None


def test_without_texts_or_pairs_nothing_is_claimed():
    empty = build_table([])
    found = measure_bias(empty, pairs(empty))
    assert all(row.pairs == 0 and row.p is None for row in found.features)
    table = simulated(0.0, count=30)
    rows = {row.feature: row for row in measure_bias(table, pairs(table)).features}
    assert rows["headings"].pairs == 0
    assert rows["characters"].pairs == 30
