from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from plaudit.evaluation.analysis.baselines import (
    bag_of_words,
    compare_baseline,
    fit_baselines,
    graded_pairs,
    longer,
    score_differences,
)
from plaudit.evaluation.analysis.features import response_text
from plaudit.evaluation.table import Pairs
from plaudit.types import Comparison, Message


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
    with pytest.raises(ValueError, match="judged 2 pairs, the model 3"):
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
