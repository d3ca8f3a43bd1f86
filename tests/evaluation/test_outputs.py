"""Named outputs against the labels of their names: worked by hand, and against SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from plaudit.evaluation.metrics.outputs import labels_of, measure_outputs
from plaudit.evaluation.metrics.ratings import measure_ratings
from plaudit.evaluation.summary import EvaluationContext, summarise
from plaudit.types import Outputs, TrainedObjective
from tests.tables import score_table

TWO = Outputs(names=("helpful", "short"), weights=(0.75, -0.25), offsets=(0.0, 0.0))


def response(helpful: float, short: float, /, **labels: float) -> dict[str, Any]:
    """A response with these outputs and attributes."""
    return {
        "outputs": {"helpful": helpful, "short": short},
        "reward": 0.75 * helpful - 0.25 * short,
        "attributes": labels,
    }


TABLE = score_table(
    [
        # Both outputs rank both attributes correctly.
        [response(2.0, 5.0, helpful=4, short=2), response(1.0, 4.0, helpful=3, short=1)],
        # Of opposite attributes, each output ranks its own correctly.
        [response(3.0, 1.0, helpful=5, short=1), response(2.0, 2.0, helpful=2, short=3)],
        # One attribute is missing, and the output of the other one is tied.
        [response(1.0, 1.0, helpful=1), response(1.0, 0.0, helpful=2)],
        # Equal attributes make no pair.
        [response(0.0, 0.0, helpful=3, short=3), response(9.0, 9.0, helpful=3)],
    ]
)


def test_each_output_is_measured_by_the_attribute_of_its_name() -> None:
    helpful, short = measure_outputs(TABLE, TWO, None)
    assert [(one.name, one.weight) for one in (helpful, short)] == [
        ("helpful", 0.75),
        ("short", -0.25),
    ]
    assert (helpful.responses, helpful.prompts, short.responses, short.prompts) == (8, 4, 5, 3)
    assert (helpful.own.pairs, helpful.own.accuracy, helpful.own.ties) == (3, 2 / 3, 1)
    assert (short.own.pairs, short.own.accuracy, short.own.ties) == (2, 1.0, 0)
    matrix = [
        [(cell.attribute, cell.accuracy) for cell in one.attributes] for one in (helpful, short)
    ]
    assert matrix == [
        [("helpful", 2 / 3), ("short", 1 / 2)],
        # The third pair: the output of "short" puts the less helpful response first.
        [("helpful", 1 / 3), ("short", 1.0)],
    ]
    assert (helpful.best_other, short.best_other) == ("short", "helpful")
    assert helpful.delta_accuracy == pytest.approx(1 / 3)
    assert short.delta_accuracy == pytest.approx(1 / 2)
    assert helpful.ratings is short.ratings is None


def test_correlations_are_those_of_scipy() -> None:
    (helpful, short) = measure_outputs(TABLE, TWO, None)
    for one in (helpful, short):
        label_N = TABLE.attributes[one.name]
        known_N = np.isfinite(label_N)
        columns = (TABLE.outputs[one.name][known_N], label_N[known_N])
        assert one.correlation is not None
        assert one.correlation.pearson == pytest.approx(stats.pearsonr(*columns).statistic)
        assert one.correlation.spearman == pytest.approx(stats.spearmanr(*columns).statistic)


def test_an_objective_of_ratings_has_errors_by_output() -> None:
    objective = TrainedObjective(kind="mse")
    helpful, _ = measure_outputs(TABLE, TWO, objective)
    assert helpful.ratings is not None
    error_N = TABLE.outputs["helpful"] - TABLE.attributes["helpful"]
    assert helpful.ratings.mae == pytest.approx(np.abs(error_N).mean())
    assert helpful.ratings.bias == pytest.approx(error_N.mean())
    assert helpful.ratings.responses == 8


def test_the_sum_of_outputs_is_no_expected_rating() -> None:
    row = {"outputs": {"a": 1.0, "b": 2.0}, "reward": 1.5, "grade": 2.0, "rated": True}
    table = score_table([[row], [row | {"grade": 4.0}]])
    objective = TrainedObjective(kind="mse")
    assert measure_ratings(table, objective) is not None
    outputs = {
        ensemble: Outputs(names=("a", "b"), weights=(0.5, 0.5), offsets=(0, 0), ensemble=ensemble)
        for ensemble in (False, True)
    }
    for ensemble, known in outputs.items():
        context = EvaluationContext(dataset="eval", objective=objective, outputs=known)
        block = summarise(table, context)
        assert (block.ratings is not None) == ensemble
        assert (block.curves.ratings is not None) == ensemble
        assert bool(block.outputs) == (not ensemble)
        assert (block.uncertainty is not None) == ensemble


def test_an_output_may_learn_the_preference_itself() -> None:
    outputs = Outputs(names=("preference", "short"), weights=(1.0, 0.0), offsets=(0.0, 0.0))
    both = {"preference": 1.0, "short": 1.0}
    neither = {"preference": 0.0, "short": 0.0}
    table = score_table(
        [
            [{"outputs": both}, {"outputs": neither}],
            # An attribute of this name goes before the order of the row.
            [
                {"outputs": both, "attributes": {"preference": 1.0}},
                {"outputs": neither, "attributes": {"preference": 2.0}},
            ],
            [{"outputs": both, "grade": 4.0, "rated": True}],
        ]
    )
    label_N, rating_N = labels_of(table, "preference")
    assert label_N.tolist() == [0.0, -1.0, 1.0, 2.0, 4.0]
    assert rating_N.tolist() == [False, False, True, True, True]
    preference, short = measure_outputs(table, outputs, None)
    assert (preference.own.pairs, preference.own.accuracy) == (2, 0.5)
    assert preference.correlation is not None
    # No response has a label of the other.
    assert (short.responses, short.own.pairs, short.best_other) == (0, 0, None)
    assert short.correlation is None


def test_comparisons_with_attributes_alone_have_no_order() -> None:
    """Their grades are not known: no metric of pairs, ranks or lengths may count them."""
    unknown = {"grade": np.nan, "characters": 9}
    rows = [[response(n, 1.0, helpful=n) | unknown for n in (1.0, 2.0, 3.0)] for _ in range(3)]
    context = EvaluationContext(dataset="eval", objective=TrainedObjective(kind="mse"), outputs=TWO)
    block = summarise(score_table(rows), context)
    assert (block.pairs, block.ranks, block.ratings, block.tied) == (0, None, None, None)
    assert block.bias.length.labels_within_spearman is None
    assert not block.has_pairs
    assert block.outputs[0].own.pairs == 9
    graded = score_table([*rows, [response(2.0, 0.0), response(1.0, 0.0) | {"characters": 4}]])
    assert summarise(graded, context).pairs == 1


def test_a_missing_number_of_an_attribute_named_preference_stays_missing() -> None:
    both = {"preference": 1.0, "short": 1.0}
    table = score_table(
        [
            [
                {"outputs": both, "attributes": {"preference": 4.0}, "grade": 1.0},
                {"outputs": both, "grade": 0.0},
            ]
        ]
    )
    label_N, rating_N = labels_of(table, "preference")
    np.testing.assert_array_equal(label_N, [4.0, np.nan])
    assert rating_N.tolist() == [True, False]
