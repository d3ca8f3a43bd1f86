from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from plaudit.evaluation.analysis.features import response_text
from plaudit.evaluation.analysis.surface import (
    bag_of_words,
    compare_baseline,
    feature_row,
    fit_baselines,
    graded_pairs,
    longer,
    measure_bias,
    measure_length_bias,
    score_differences,
)
from plaudit.evaluation.table import Pairs, pairs
from plaudit.types import Comparison, Message
from tests.tables import score_table, table_of_lengths


def comparison(number, *responses, grades=None):
    return Comparison(
        id=str(number),
        prompt="p",
        responses=responses,
        grades=grades if grades is not None else (1.0, 0.0),
        group=str(number),
        source="s",
        where=f"s:{number}",
    )


def polite_pairs(count, seed):
    generator = np.random.default_rng(seed)
    nouns = np.array(["tree", "river", "stone", "cloud", "road", "lamp"])
    for number in range(count):
        shared = " ".join(generator.choice(nouns, 5))
        other = " ".join(generator.choice(nouns, 5))
        yield comparison(number, f"please {shared}", f"never {other}")


def test_bag_of_words_learns_from_training_pairs_alone():
    train, held_out = list(polite_pairs(60, 1)), list(polite_pairs(30, 2))
    delta_P = score_differences(bag_of_words(train), held_out)
    assert (delta_P > 0).all()
    turned = [comparison(row.id, *reversed(row.responses)) for row in held_out]
    assert score_differences(bag_of_words(train), turned) == pytest.approx(-delta_P)
    assert (score_differences(bag_of_words(train), held_out) == delta_P).all()


def test_bag_of_words_without_anything_to_learn_ties():
    held_out = list(polite_pairs(3, 2))
    no_words = [comparison(0, "...", "!!!")]
    no_order = [comparison(0, "a b", "c d", grades=(1.0, 1.0))]
    for train in (no_words, no_order, []):
        assert (score_differences(bag_of_words(train), held_out) == 0).all()
    assert len(score_differences(bag_of_words(held_out), [])) == 0


def test_bag_of_words_learns_from_a_single_pair():
    assert (
        score_differences(
            bag_of_words([comparison(0, "good", "bad")]), [comparison(1, "good", "bad")]
        )
        > 0
    )


def test_longer_counts_characters_of_the_response():
    rows = [comparison(0, "abc", "ab"), comparison(1, "ab", "ab"), comparison(2, "", "abcd")]
    assert list(score_differences(longer([]), rows)) == [1, 0, -4]


def test_many_responses_make_all_ordered_pairs():
    rows = [
        comparison(0, "a", "b", grades=(0.0, 1.0)),
        comparison(1, "a", "b", "c", grades=(2.0, 0.0, 2.0)),
    ]
    winner_P, loser_P = graded_pairs(rows)
    assert list(zip(winner_P, loser_P, strict=True)) == [(1, 0), (2, 3), (4, 3)]


def test_measured_facts():
    rows = [comparison(0, "abc", "ab"), comparison(1, "ab", "ab"), comparison(2, "", "abcd")]
    fitted = fit_baselines(["longer", "bag_of_words"], [])
    assert fitted["bag_of_words"] is None
    assert compare_baseline(pairs_of([1.0, 1.0, 1.0]), None) is None
    facts = compare_baseline(pairs_of([1.0, 1.0, -1.0]), score_differences(fitted["longer"], rows))
    assert facts.accuracy == pytest.approx(1 / 3)
    assert (facts.ties, facts.pairs) == (1, 3)
    low, high = facts.accuracy_ci95
    assert low < 1 / 3 < high
    assert facts.delta_accuracy == pytest.approx(1 / 3)
    assert (facts.only_model_right, facts.only_baseline_right) == (1, 0)
    assert facts.share_explained == pytest.approx(0.0)
    assert (facts.accuracy_where_wrong, facts.pairs_where_wrong) == (0.5, 2)


def pairs_of(delta, group=None):
    delta_P = np.asarray(delta, dtype=np.float64)
    numbers = np.arange(len(delta_P))
    return Pairs(
        winner_P=2 * numbers,
        loser_P=2 * numbers + 1,
        delta_P=delta_P,
        margin_P=np.zeros(len(delta_P)),
        comparison_P=numbers,
        group_P=numbers if group is None else group,
    )


def test_the_model_is_compared_on_the_same_pairs():
    generator = np.random.default_rng(3)
    model_P = generator.normal(0.5, 1, 400)
    baseline_P = np.where(generator.random(400) < 0.9, model_P, -model_P)
    facts = compare_baseline(pairs_of(model_P), baseline_P)
    low, high = facts.delta_accuracy_ci95
    assert low < facts.delta_accuracy < high
    # Pairing removes what both have in common: each accuracy alone is far less certain.
    alone = facts.accuracy_ci95
    assert high - low < 0.7 * (alone[1] - alone[0])
    table = [[0, facts.only_model_right], [facts.only_baseline_right, 0]]
    assert facts.p == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert facts.test == "McNemar, exact"
    grouped = compare_baseline(pairs_of(model_P, np.arange(400) // 2), baseline_P)
    assert grouped.test == "paired t by prompt group"


def test_a_baseline_of_other_pairs_is_refused():
    with pytest.raises(ValueError, match="scored 2 pairs, the model 3"):
        compare_baseline(pairs_of([1.0, 1.0, 1.0]), np.ones(2))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "image", "url": "x"}, "b"], "a\n\nb"),
        ({"answer": "é"}, '{"answer": "é"}'),
        (7, "7"),
    ],
)
def test_response_text_tolerates_any_content(content, text):
    assert response_text((Message(role="assistant", content=content),)) == text


def test_response_text_joins_turns():
    turns = (Message(role="assistant", content="a"), Message(role="tool", content="b"))
    assert response_text(turns) == "a\nb"
    assert response_text("as it is\n") == "as it is\n"


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
    return table_of_lengths(rows)


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


def test_noise_is_no_bias_where_the_labels_have_one():
    """Labels like longer responses in four of five pairs; the model is right in 70% of either."""
    generator = np.random.default_rng(4)
    rows = []
    for _ in range(2000):
        longer_wins, right = generator.random() < 0.8, generator.random() < 0.7
        lengths = (20, 10) if longer_wins else (10, 20)
        rows.append([(float(right), 1, lengths[0]), (float(not right), 0, lengths[1])])
    table = table_of_lengths(rows)
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
    table = table_of_lengths([longer_right] * 6 + [longer_wrong] * 2 + [shorter_right])
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
    table = table_of_lengths(comparisons, features)
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
    empty = score_table([])
    found = measure_bias(empty, pairs(empty))
    assert all(row.pairs == 0 and row.p is None for row in found.features)
    table = simulated(0.0, count=30)
    rows = {row.feature: row for row in measure_bias(table, pairs(table)).features}
    assert rows["headings"].pairs == 0
    assert rows["characters"].pairs == 30
