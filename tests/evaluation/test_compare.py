"""Paired comparison: statistics against independent implementations, verdicts, sentences."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from plaudit.errors import DataError
from plaudit.evaluation.compare import (
    METRICS,
    ModelComparison,
    Scored,
    align,
    compare_aligned,
    kappa,
    slice_masks,
)
from plaudit.evaluation.metrics.pairwise import paired_test
from tests.tables import table_of_deltas


def test_kappa_of_two_perfect_models_is_not_a_number() -> None:
    assert np.isnan(kappa(np.ones(4), np.ones(4)))


def test_seven_pairs_by_hand() -> None:
    """A is right about five pairs, B about two of them and one that A misses; one tie is wrong."""
    a = np.array([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 0.0])
    b = np.array([1.0, 1.0, -1.0, -1.0, -1.0, 1.0, -1.0])
    result = compare_aligned(
        align(
            [Scored(name="A", table=table_of_deltas(a)), Scored(name="B", table=table_of_deltas(b))]
        )
    )
    found = result.model_pairs[0]
    assert found.accuracy.a == pytest.approx(5 / 7)
    assert found.accuracy.b == pytest.approx(3 / 7)
    # Three discordant pairs against one: P(3 or more of 4, either side) = 2 * 5/16.
    assert found.accuracy.p == pytest.approx(10 / 16)
    assert found.agreement.only_a_right == 3
    assert found.agreement.only_b_right == 1
    assert result.models[0].ties == 1
    right, wrong, tie = np.log1p(np.exp([-1.0, 1.0, 0.0]))
    assert result.models[0].nll == pytest.approx((5 * right + wrong + tie) / 7)
    assert found.accuracy.better is None
    assert "do not differ significantly in accuracy" in result.sentences[0]
    stored = json.dumps(asdict(result), allow_nan=False)
    assert TypeAdapter(ModelComparison).validate_json(stored) == result


def test_pairs_that_share_prompts_are_not_judged_as_independent() -> None:
    a_P, b_P = np.ones(20), np.zeros(20)
    a_P[5:10] = 0
    alone = paired_test("accuracy", a_P, b_P, np.arange(20))
    shared = paired_test("accuracy", a_P, b_P, np.arange(20) % 4)
    assert alone.name == "McNemar, exact"
    assert shared.name == "paired t by prompt group"
    assert shared.p is not None
    assert alone.p is not None
    assert shared.p > alone.p


def noisy(seed: int, quality: float, count: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).normal(loc=quality, size=count)


def test_eight_alike_do_not_differ_and_one_better_does() -> None:
    shared = noisy(0, 0.6)
    # Eight copies that differ by a little noise: the same quality.
    alike = [
        Scored(name=f"s{n}", table=table_of_deltas(shared + 0.05 * noisy(n + 1, 0.0)))
        for n in range(8)
    ]
    result = compare_aligned(align(alike))
    assert len(result.model_pairs) == 28
    assert result.best.accuracy.significant == 0
    assert "No two of the 8 models differ significantly in accuracy" in result.sentences[0]
    better = Scored(name="good", table=table_of_deltas(shared + 1.0))
    result = compare_aligned(align([*alike, better]))
    for metric in METRICS:
        assert result.best.by(metric).name == "good"
        assert len(result.best.by(metric).better_than) == 8
    assert result.sentences[0].startswith("good has the best accuracy")
    assert "after Holm correction for 36 tests" in result.sentences[1]


def test_over_confidence_shows_in_log_loss_and_not_in_accuracy() -> None:
    delta = noisy(3, 0.4)
    result = compare_aligned(
        align(
            [
                Scored(name="calm", table=table_of_deltas(delta)),
                Scored(name="loud", table=table_of_deltas(9 * delta)),
            ]
        )
    )
    accuracy, loss = result.sentences
    assert "do not differ significantly" in accuracy
    assert loss.startswith("calm is significantly better than loud in log loss")
    (pair,) = result.model_pairs
    for sentence, test, digits in (
        (accuracy, pair.test("accuracy"), 3),
        (loss, pair.test("nll"), 4),
    ):
        assert f": {test.a:.{digits}f} and {test.b:.{digits}f} on {result.pairs} pairs" in sentence
        assert re.search(rf"Δ [+-]\d\.\d{{{digits}}} \(", sentence)


def test_false_findings_stay_at_their_rate() -> None:
    """Two equal models, 400 times: McNemar's exact test finds a difference in at most 5%."""
    generator = np.random.default_rng(11)
    found = 0
    for _ in range(400):
        a_P, b_P = (generator.uniform(size=(2, 200)) < 0.7).astype(float)
        p = paired_test("accuracy", a_P, b_P, np.arange(200)).p
        found += p is not None and p < 0.05
    assert found <= 0.05 * 400 + 2 * np.sqrt(400 * 0.05 * 0.95)


def test_rows_that_one_model_lacks_are_left_out_and_counted() -> None:
    a, b = noisy(1, 0.5, 10), noisy(2, 0.5, 10)
    aligned = align(
        [
            Scored(name="A", table=table_of_deltas(a)),
            Scored(name="B", table=table_of_deltas(b, drop=4)),
        ]
    )
    assert len(aligned.paired) == 9
    assert aligned.unmatched == {"A": 1, "B": 0}
    assert aligned.delta_MP[1].tolist() == np.delete(b, 4).tolist()
    assert aligned.delta_MP[0].tolist() == np.delete(a, 4).tolist()


def test_rows_in_another_order_are_matched() -> None:
    a = noisy(1, 0.5, 6)
    table = table_of_deltas(a)
    turned = table.take(np.array([2, 3, 0, 1, 4, 5, 6, 7, 8, 9, 10, 11]))
    aligned = align([Scored(name="A", table=table), Scored(name="B", table=turned)])
    assert aligned.delta_MP[0].tolist() == aligned.delta_MP[1].tolist()


def test_nothing_in_common_is_said() -> None:
    a = table_of_deltas(noisy(1, 0.5, 6))
    other = np.empty(12, dtype=object)
    other[:] = "elsewhere"
    b = replace(a, source_N=other)
    with pytest.raises(DataError, match="not evaluated on the same comparisons"):
        align([Scored(name="A", table=a), Scored(name="B", table=b)])


def test_slices_have_sizes_and_corrected_p_values() -> None:
    a = np.where(np.arange(80) % 2 == 0, 1.0, 1.0)
    b = np.where(np.arange(80) % 2 == 0, -1.0, 1.0)
    aligned = align(
        [Scored(name="A", table=table_of_deltas(a)), Scored(name="B", table=table_of_deltas(b))]
    )
    names = [(column, value) for column, value, _ in slice_masks(aligned.table, aligned.paired)]
    assert names == [("kind", "even"), ("kind", "odd")]
    even, odd = compare_aligned(aligned).slices
    assert (even.pairs, even.accuracy_a, even.accuracy_b) == (40, 1.0, 0.0)
    assert even.p_holm == pytest.approx(2 * even.p)
    assert odd.p_holm == 1.0
    assert not even.small


def test_examples_have_the_widest_gaps() -> None:
    a = np.array([3.0, 1.0, -1.0, -5.0])
    b = np.array([-1.0, -9.0, 1.0, 1.0])
    result = compare_aligned(
        align(
            [Scored(name="A", table=table_of_deltas(a)), Scored(name="B", table=table_of_deltas(b))]
        )
    )
    assert [(e.right, e.id) for e in result.examples] == [
        ("a", "pairs:1"),
        ("a", "pairs:0"),
        ("b", "pairs:3"),
        ("b", "pairs:2"),
    ]
