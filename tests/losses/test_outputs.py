"""Several outputs: which labels each learns from, the gate, and bootstrap samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from plaudit.losses.loss import LearnedParameters, Loss
from plaudit.losses.outputs import HeadLoss, OutputLabels, head_start_of, trees_by_output
from plaudit.recipe.load import parse_recipe
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.recipe.schema import LossSection
from plaudit.types import TokenTree

CPU = torch.device("cpu")
KINDS = [kind for kind, row in OBJECTIVES.items() if "outputs" in row.reads]


def tree(
    grades: tuple[float, ...] = (), index: int = 0, **attributes: tuple[float | None, ...]
) -> TokenTree:
    size = max(map(len, (grades, *attributes.values())))
    branches = tuple(np.full(k + 1, k, np.int32) for k in range(size))
    prefix = np.zeros(2, np.int32)
    return TokenTree(
        index=index, prefix=prefix, branches=branches, grades=grades, attributes=attributes
    )


def loss_of(**options: Any) -> HeadLoss:
    return HeadLoss(of_output=Loss(options=LossSection(**options)))


def value(loss: HeadLoss, trees: list[TokenTree], outputs: list[list[float]]) -> float:
    return float(loss(torch.tensor(outputs), loss.labels(trees, CPU), torch.zeros(0)).total)


# ---- named outputs


def test_each_output_learns_its_own_attribute_and_missing_ones_cost_nothing() -> None:
    loss = loss_of(kind="mse", outputs=("true", "short"))
    trees = [tree(true=(4.0, 1.0), short=(0.0, None)), tree(short=(3.0,), index=1)]
    outputs = [[3.0, 1.0], [1.0, 50.0], [99.0, 1.0]]
    # A comparison's weight is shared among its outputs, then among their labelled responses:
    # 1/2 * mean(1, 0) for true, 1/2 * 1 for short, and 1 * 4 for the second one's short.
    assert value(loss, trees, outputs) == pytest.approx(0.25 + 0.5 + 4.0)
    assert loss.count(trees) == 2.0


def test_an_attribute_orders_pairs_and_ties_of_it_teach_nothing() -> None:
    loss = loss_of(outputs=("true", "short"))
    trees = [tree(true=(2.0, 5.0), short=(1.0, 1.0))]
    outputs = [[0.5, 7.0], [1.5, -7.0]]
    assert value(loss, trees, outputs) == pytest.approx(math.log1p(math.exp(-1.0)))
    assert loss.count(trees) == 1.0
    assert loss.count([tree(true=(1.0, 1.0), short=(None, 2.0))]) == 0.0


def test_preference_is_the_order_of_the_row_unless_an_attribute_has_the_name() -> None:
    loss = loss_of(outputs=("preference", "true"))
    row = tree((0.0, 1.0), true=(None, None))
    assert value(loss, [row], [[0.0, 9.0], [2.0, 9.0]]) == pytest.approx(math.log1p(math.exp(-2)))
    named = tree((0.0, 1.0), preference=(3.0, 1.0), true=(None, None))
    assert value(loss, [named], [[0.0, 9.0], [2.0, 9.0]]) == pytest.approx(
        2 + math.log1p(math.exp(-2))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_attribute_and_its_copy_cost_what_a_rating_does(kind: str) -> None:
    """Two outputs with the labels of a plain run share its weight, so that the loss is the same."""
    numbers = (0.0, 1.0, 0.5)
    rated = replace(tree(numbers), rated=OBJECTIVES[kind].learns_from == "ratings")
    twice = tree(one=numbers, two=numbers)
    scores = torch.tensor([0.3, -0.2, 0.9])
    plain = Loss(options=LossSection(kind=kind))
    expected = plain(scores, plain.labels([rated], CPU), torch.zeros(0))
    loss = loss_of(kind=kind, outputs=("one", "two"))
    found = loss(scores[:, None].expand(-1, 2), loss.labels([twice], CPU), torch.zeros(0))
    assert float(found.total) == pytest.approx(float(expected.total))
    assert found.count == expected.count == loss.count([twice])


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_number_is_as_if_the_response_were_not_there(kind: str) -> None:
    with_hole = tree(one=(0.0, None, 1.0), two=(0.0, None, 1.0))
    without = tree(one=(0.0, 1.0), two=(0.0, 1.0))
    loss = loss_of(kind=kind, outputs=("one", "two"))
    scores = torch.tensor([0.3, 40.0, 0.9], requires_grad=True)
    found = loss(scores[:, None].expand(-1, 2), loss.labels([with_hole], CPU), torch.zeros(0))
    two = scores.detach()[[0, 2], None].expand(-1, 2)
    expected = loss(two, loss.labels([without], CPU), torch.zeros(0))
    assert found.total.item() == pytest.approx(expected.total.item())
    (gradient,) = torch.autograd.grad(found.total, scores)
    assert gradient[1] == 0.0


def test_named_outputs_start_at_the_mean_of_their_labels() -> None:
    trees = [tree(true=(4.0, 1.0), short=(0.0, None)), tree(short=(3.0,), index=1)]
    start = head_start_of(LossSection(kind="mse", outputs=("true", "short")), trees)
    assert start.outputs is not None
    assert start.outputs.offsets == (2.5, 1.5)
    assert start.outputs.weights == (0.5, 0.5)
    assert not start.outputs.ensemble
    fixed = LossSection(outputs=("true", "short"), gate={"short": -0.1, "true": 0.9})
    outputs = head_start_of(fixed, trees).outputs
    assert outputs is not None
    assert outputs.weights == (0.9, -0.1)
    assert outputs.offsets == (0.0, 0.0)


@pytest.mark.parametrize("kind", ["mse", "huber", "bce"])
def test_an_output_of_an_order_alone_starts_at_zero(kind: str) -> None:
    trees = [tree((1.0, 0.0), true=(1.0, 0.0))]
    start = head_start_of(LossSection(kind=kind, outputs=("preference", "true")), trees)
    assert start.outputs is not None
    assert start.outputs.offsets[0] == 0.0


def test_a_learned_gate_finds_the_weights_that_ordered_the_rows() -> None:
    """Rows are ordered by 2·true - 1·short through Bradley-Terry, which the gate must find."""
    rng = np.random.default_rng(0)
    outputs_RO = rng.normal(size=(4000, 2)).astype(np.float32)
    reward_R = outputs_RO @ np.array([2.0, -1.0], np.float32)
    trees = []
    for n, (a, b) in enumerate(reward_R.reshape(-1, 2)):
        first = rng.random() < 1 / (1 + math.exp(b - a))
        trees.append(tree((1.0, 0.0) if first else (0.0, 1.0), index=n, true=(None, None)))
    loss = loss_of(kind="mse", outputs=("true", "short"), gate="learned")
    learned = LearnedParameters[OutputLabels](loss, (0.5, 0.5), CPU)
    labels = loss.labels(trees, CPU)
    outputs = torch.from_numpy(outputs_RO).requires_grad_()
    for _ in range(600):
        learned.clear()
        learned.accumulate(outputs, labels, 1.0 / len(trees))
        learned.step(lambda gradient: gradient, 1.0)
    # The standard error of a weight is about 0.08 at 2,000 pairs.
    assert learned.numbers() == pytest.approx((2.0, -1.0), abs=0.25)
    # What the gate learns, the outputs do not hear of.
    assert outputs.grad is None


# ---- an ensemble


def test_bootstrap_weights_depend_on_seed_and_index_alone() -> None:
    options = LossSection(heads=4)
    trees = [tree((1.0, 0.0), index=n) for n in range(3000)]
    every = trees_by_output(trees, options, seed=7)
    weights_KN = np.array([[one.weight for one in own] for own in every]) * 4
    backwards = trees_by_output(trees[::-1], options, seed=7)
    np.testing.assert_array_equal(
        weights_KN, np.array([[one.weight for one in own] for own in backwards])[:, ::-1] * 4
    )
    other = trees_by_output(trees, options, seed=8)
    assert [one.weight for one in other[0]] != [one.weight for one in every[0]]
    # Poisson(1): mean and variance 1, and heads draw independently.
    assert weights_KN.mean() == pytest.approx(1.0, abs=0.05)
    assert weights_KN.var() == pytest.approx(1.0, abs=0.1)
    assert abs(np.corrcoef(weights_KN[0], weights_KN[1])[0, 1]) < 0.06


def test_the_loss_of_an_ensemble_is_the_weighted_sum_over_heads() -> None:
    loss = loss_of(heads=3)
    trees = [tree((1.0, 0.0), index=n) for n in range(5)]
    outputs = torch.linspace(-1, 2, 30).reshape(10, 3)
    weights_KN = [
        [one.weight for one in own] for own in trees_by_output(trees, loss.options, seed=0)
    ]
    expected = sum(
        weights_KN[k][n] * math.log1p(math.exp(float(outputs[2 * n + 1, k] - outputs[2 * n, k])))
        for k in range(3)
        for n in range(5)
    )
    found = loss(outputs, loss.labels(trees, CPU), torch.zeros(0))
    assert float(found.total) == pytest.approx(expected)
    # Not the weights that were drawn: a step of few comparisons may draw none.
    assert found.count == loss.count(trees) == 5.0
    alone = next(
        n
        for n in range(100)
        if not any(own[0].weight for own in trees_by_output([trees[0]], loss.options, seed=n))
    )
    seeded = replace(loss, seed=alone)
    none = seeded(outputs[:2], seeded.labels(trees[:1], CPU), torch.zeros(0))
    assert float(none.total) == 0.0
    assert none.count == seeded.count(trees[:1]) == 1.0


def test_an_ensemble_is_named_and_weighs_its_heads_equally() -> None:
    start = head_start_of(LossSection(kind="mse", heads=2), [replace(tree((3.0,)), rated=True)])
    assert start.outputs is not None
    assert start.outputs.names == ("head_0", "head_1")
    assert start.outputs.ensemble
    assert start.objective.offset == 3.0


# ---- recipes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"heads": 3, "outputs": ["a", "b"]}, "both say what the outputs of the head are"),
        ({"outputs": ["a"]}, "at least two different names"),
        ({"outputs": ["a", "a"]}, "at least two different names"),
        ({"gate": "learned"}, "there is no `loss.outputs`"),
        ({"outputs": ["a", "b"], "gate": {"a": 1.0}}, "set one weight for each"),
        ({"outputs": ["a", "b"], "gate": {"a": 0, "b": 0}}, "every reward is 0"),
        ({"outputs": ["a", "b"], "gate": {"a": float("nan"), "b": 0}}, "gate"),
        ({"outputs": ["a", "b"], "length": "residual"}, "fits one weight of the length"),
        ({"outputs": ["a", "b"], "kind": "ordinal"}, "which does not read it"),
        ({"heads": 1}, "at least 2"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(
    options: Mapping[str, Any], expected: str
) -> None:
    recipe = {"model": {"base": "embedded"}, "data": {"train": "pairs.jsonl"}, "loss": options}
    with pytest.raises(Exception, match=expected):
        parse_recipe(recipe, "recipe")


def test_heads_start_different() -> None:
    recipe = {"model": {"base": "embedded"}, "data": {"train": "pairs.jsonl"}}
    assert parse_recipe(recipe, "recipe").head_init == "zero"
    assert parse_recipe({**recipe, "loss": {"heads": 2}}, "recipe").head_init == "normal"
    asked = {**recipe, "model": {"base": "embedded", "head_init": "zero"}, "loss": {"heads": 2}}
    assert parse_recipe(asked, "recipe").head_init == "zero"
