"""Every objective of the table: its value worked out by hand, and the properties of its family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations
from math import cosh, exp, log, log1p
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plaudit.losses.loss import Loss, start_of
from plaudit.model.scoring import DUMMY_TREE
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.recipe.schema import LossSection
from plaudit.types import TokenTree

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
KINDS = sorted(OBJECTIVES)
ON_DIFFERENCES = [kind for kind in KINDS if OBJECTIVES[kind].family != "pointwise"]


def tree(*grades: float, **labels: Any) -> TokenTree:
    """A comparison of as many responses as grades."""
    return TokenTree(
        index=0,
        prefix=np.zeros(0, np.int32),
        branches=tuple(np.zeros(1, np.int32) for _ in grades),
        grades=grades,
        **labels,
    )


def rated(*ratings: float, **labels: Any) -> TokenTree:
    return tree(*ratings, rated=True, **labels)


def total(
    options: LossSection,
    trees: Sequence[TokenTree],
    scores_R: Tensor,
    learned: Sequence[float] | Tensor = (),
    levels: Sequence[float] = (),
) -> Tensor:
    """The summed loss of trees whose responses have these scores, end to end."""
    loss = Loss(options=options, levels=tuple(levels))
    learned_C = torch.as_tensor(learned, dtype=torch.float32)
    return loss(scores_R, loss.labels(trees, CPU), learned_C).total


# ---- values by hand


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Trees, the scores of their responses, and the loss that a formula gives for them."""

    kind: str
    trees: tuple[TokenTree, ...]
    scores: tuple[float, ...]
    expected: float
    options: Mapping[str, Any] = field(default_factory=dict)
    learned: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()


def minus_log_sigmoid(z: float) -> float:
    return log1p(exp(-z))


def sigmoid(z: float) -> float:
    return 1 / (1 + exp(-z))


CASES: tuple[Case, ...] = (
    Case(
        kind="bradley_terry",
        trees=(tree(1, 0, margin=0.5), tree(0, 2, 1, weight=3.0)),
        scores=(1.0, -0.5, 0.2, 0.7, -0.3),
        # A margin, and three pairs that share the weight of 3.
        expected=minus_log_sigmoid(1.0 + 0.5 - 0.5)
        + minus_log_sigmoid(0.7 - 0.2)
        + minus_log_sigmoid(0.7 + 0.3)
        + minus_log_sigmoid(-0.3 - 0.2),
    ),
    Case(
        kind="bradley_terry",
        trees=(tree(1, 0, soft_label=0.8, weight=2.0),),
        scores=(0.4, -0.2),
        options={"label_smoothing": 0.1, "temperature": 0.5, "centering": 0.01, "reward_norm": 0.1},
        # 0.8 of the annotators, of whom 0.1 count as wrong: 0.8 * 0.9 + 0.2 * 0.1.
        expected=2 * (0.74 * minus_log_sigmoid(0.6 / 0.5) + 0.26 * minus_log_sigmoid(-0.6 / 0.5))
        + 0.01 * 2 * (0.4 - 0.2) ** 2
        + 0.1 * 2 * (0.4**2 + 0.2**2) / 2,
    ),
    Case(
        kind="all_pairs",
        trees=(tree(2, 1, 1),),
        scores=(0.9, 0.1, 0.3),
        # Two ordered pairs, and C(3, 2) = 3.
        expected=(minus_log_sigmoid(0.9 - 0.1) + minus_log_sigmoid(0.9 - 0.3)) / 3,
    ),
    Case(
        kind="hinge",
        trees=(tree(1, 0, weight=2.0), tree(1, 0), tree(0, 1)),
        scores=(0.3, -0.2, 2.0, 0.5, 1.0, 0.0),
        expected=2 * (1 - 0.5) + 0.0 + (1 + 1.0),
    ),
    Case(
        kind="rao_kupper",
        trees=(tree(1, 0), tree(1, 1), tree(2, 1, 1)),
        scores=(0.8, 0.1, 0.5, 0.2, 1.0, 0.0, 0.4),
        # eta = log(theta) = log(1.5); a tie has what both wins leave of 1.
        learned=(log(log(1.5)),),
        expected=-log(exp(0.7) / (exp(0.7) + 1.5))
        - log(1 - exp(0.3) / (exp(0.3) + 1.5) - 1 / (1 + 1.5 * exp(0.3)))
        + (
            -log(exp(1.0) / (exp(1.0) + 1.5))
            - log(exp(0.6) / (exp(0.6) + 1.5))
            - log(1 - exp(-0.4) / (exp(-0.4) + 1.5) - 1 / (1 + 1.5 * exp(-0.4)))
        )
        / 3,
    ),
    Case(
        kind="davidson",
        trees=(tree(1, 0), tree(1, 1), tree(2, 1, 1)),
        scores=(0.8, 0.1, 0.5, 0.2, 1.0, 0.0, 0.4),
        learned=(log(0.6),),
        expected=-log(exp(0.35) / (2 * cosh(0.35) + 0.6))
        - log(0.6 / (2 * cosh(0.15) + 0.6))
        + (
            -log(exp(0.5) / (2 * cosh(0.5) + 0.6))
            - log(exp(0.3) / (2 * cosh(0.3) + 0.6))
            - log(0.6 / (2 * cosh(0.2) + 0.6))
        )
        / 3,
    ),
    Case(
        kind="plackett_luce",
        trees=(tree(0, 3, 2, 1), tree(2, 1, 1, weight=2.0)),
        scores=(0.1, 0.5, -0.4, 0.3, 0.6, -0.1, 0.2),
        options={"temperature": 0.5},
        # In the order of the grades: the second response of all, the third of three, the fourth of
        # two; then the first of three and nothing more, as the others are tied.
        expected=-log(exp(1.0) / (exp(0.2) + exp(1.0) + exp(-0.8) + exp(0.6)))
        - log(exp(-0.8) / (exp(0.2) + exp(-0.8) + exp(0.6)))
        - log(exp(0.6) / (exp(0.2) + exp(0.6)))
        - 2 * log(exp(1.2) / (exp(1.2) + exp(-0.2) + exp(0.4))),
    ),
    Case(
        kind="listnet",
        trees=(tree(2, 0, 1), tree(1, 0, weight=2.0)),
        scores=(0.3, -0.6, 0.2, 0.4, 0.1),
        expected=-(
            exp(2) * log(exp(0.3) / (exp(0.3) + exp(-0.6) + exp(0.2)))
            + exp(0) * log(exp(-0.6) / (exp(0.3) + exp(-0.6) + exp(0.2)))
            + exp(1) * log(exp(0.2) / (exp(0.3) + exp(-0.6) + exp(0.2)))
        )
        / (exp(2) + exp(0) + exp(1))
        + 2 * (sigmoid(1) * minus_log_sigmoid(0.3) + sigmoid(-1) * minus_log_sigmoid(-0.3)),
    ),
    Case(
        kind="mse",
        trees=(rated(3.0), rated(1.0, 5.0, weight=2.0), tree(1, 0)),
        scores=(2.5, 1.5, 3.0, 0.4, 0.2),
        options={"temperature": 2.0},
        # The ratings of a comparison share its weight; an order without ratings is a pair.
        expected=0.5**2 + 2 * (0.5**2 + 2.0**2) / 2 + minus_log_sigmoid(0.2 / 2.0),
    ),
    Case(
        kind="huber",
        trees=(rated(3.0), rated(1.0, 5.0, weight=2.0)),
        scores=(2.5, 1.5, 3.0),
        options={"huber_delta": 0.8},
        expected=0.5**2 / 2 + 2 * (0.5**2 / 2 + 0.8 * (2.0 - 0.4)) / 2,
    ),
    Case(
        kind="bce",
        trees=(rated(1.0), rated(0.0, 0.25, weight=2.0)),
        scores=(0.7, -0.2, 0.4),
        expected=minus_log_sigmoid(0.7)
        + minus_log_sigmoid(0.2)
        + (0.25 * minus_log_sigmoid(0.4) + 0.75 * minus_log_sigmoid(-0.4)),
    ),
    Case(
        kind="ordinal",
        trees=(rated(1.0), rated(2.0), rated(4.0, 5.0, weight=2.0)),
        scores=(0.5, -0.3, 0.2, 1.0),
        levels=(1.0, 2.0, 4.0, 5.0),
        # Thresholds at -1.2, 0.4 and 1.3.
        learned=(-1.2, log(1.6), log(0.9)),
        expected=-log(sigmoid(-1.2 - 0.5))
        - log(sigmoid(0.4 + 0.3) - sigmoid(-1.2 + 0.3))
        - log(sigmoid(1.3 - 0.2) - sigmoid(0.4 - 0.2))
        - log(1 - sigmoid(1.3 - 1.0)),
    ),
)


def test_every_objective_has_a_value_worked_out_by_hand() -> None:
    assert {case.kind for case in CASES} == OBJECTIVES.keys()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_the_loss_is_the_formula(case: Case) -> None:
    options = LossSection(kind=case.kind, **case.options)
    found = total(options, case.trees, torch.tensor(case.scores), case.learned, case.levels)
    assert found.dtype == torch.float32
    assert found.shape == ()
    assert float(found) == pytest.approx(case.expected, rel=2e-6)
    # Each expectation is a sum over comparisons, so the count is that of the weights.
    assert Loss(options=options).count(case.trees) == sum(one.weight for one in case.trees)


# ---- properties of every objective

OPTIONS: Mapping[str, Any] = {
    "label_smoothing": 0.1,
    "temperature": 0.7,
    "centering": 0.02,
    "huber_delta": 0.3,
    "reward_norm": 0.05,
}


def options_of(kind: str, *leave: str) -> LossSection:
    """Every option that an objective reads, away from its default."""
    read = OBJECTIVES[kind].options | {"reward_norm"}
    return LossSection(
        kind=kind, **{k: v for k, v in OPTIONS.items() if k in read and k not in leave}
    )


LEARNED: Mapping[str, tuple[float, ...]] = {
    "rao_kupper": (-0.7,),
    "davidson": (-0.4,),
    "ordinal": (-1.0, 0.3),
}
LEVELS = (0.0, 0.5, 1.0)


def comparisons(scores: float, *, most: int = 5) -> st.SearchStrategy[Any]:
    """Trees with labels of every kind, each with scores of its responses."""
    responses = st.lists(
        st.tuples(
            st.sampled_from(LEVELS),
            # Quarters stay what they are beside a large number.
            st.floats(-scores, scores).map(lambda value: round(4 * value) / 4),
        ),
        min_size=1,
        max_size=4,
    )

    def build(
        responses: list[tuple[float, float]], margin: float, weight: float, rated: bool
    ) -> tuple[TokenTree, list[float]]:
        grades, own = zip(*responses, strict=True)
        share = 0.5 + weight / 8
        return tree(*grades, margin=margin, weight=weight, soft_label=share, rated=rated), [*own]

    one = st.builds(
        build, responses, st.floats(-2, 2, width=16), st.floats(0.25, 4, width=16), st.booleans()
    )
    return st.lists(one, min_size=1, max_size=most)


def scores_of(items: Sequence[tuple[TokenTree, list[float]]]) -> Tensor:
    return torch.tensor([score for _, scores in items for score in scores])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(items=comparisons(10), factor=st.sampled_from([0.5, 3.0]))
def test_losses_add_up_over_comparisons_and_scale_with_their_weight(
    kind: str, items: list[tuple[TokenTree, list[float]]], factor: float
) -> None:
    """Hence any split of a step into micro-batches has the same sum, and counts add up too."""
    options, learned = options_of(kind), LEARNED.get(kind, ())
    loss = Loss(options=options, levels=LEVELS)
    trees = [one for one, _ in items]
    whole = total(options, trees, scores_of(items), learned, LEVELS)
    parts = [total(options, [one], torch.tensor(s), learned, LEVELS) for one, s in items]
    assert float(whole) == pytest.approx(math.fsum(map(float, parts)), rel=1e-5, abs=1e-5)
    assert loss.count(trees) == pytest.approx(sum(loss.count([one]) for one in trees))
    heavier = replace(trees[0], weight=trees[0].weight * factor)
    scaled = total(options, [heavier], torch.tensor(items[0][1]), learned, LEVELS)
    assert float(scaled) == pytest.approx(float(parts[0]) * factor, rel=1e-5, abs=1e-6)
    assert loss.count([heavier]) == pytest.approx(loss.count(trees[:1]) * factor)


@pytest.mark.parametrize("kind", ON_DIFFERENCES)
@settings(deadline=None, max_examples=25)
@given(items=comparisons(5), shift=st.sampled_from([-3e5, 1.0, 1e6]))
def test_only_reward_differences_matter(
    kind: str, items: list[tuple[TokenTree, list[float]]], shift: float
) -> None:
    """Without what penalises rewards themselves."""
    options, learned = options_of(kind, "centering", "reward_norm"), LEARNED.get(kind, ())
    trees = [one for one, _ in items]
    scores = scores_of(items)
    found = total(options, trees, scores + shift, learned, LEVELS)
    expected = total(options, trees, scores, learned, LEVELS)
    assert float(found) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


EXTREMES = [1e4, -1e4, 1e30, -1e30]


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_rewards_have_finite_losses_and_gradients(kind: str, extreme: float) -> None:
    """Of the objective's own parameters, too. A square of 1e30 is above what fp32 holds."""
    if kind == "mse" and abs(extreme) > 1e18:
        extreme = math.copysign(1e18, extreme)
    trees = [
        *(tree(1, 0), tree(0, 1), tree(1, 1), tree(1, 0, 0.5), tree(0, 0.5, 0.5)),
        *(tree(1, 0, soft_label=0.7), rated(0), rated(0.5), rated(1), rated(0.5, 1, 1)),
    ]
    count = sum(len(one.grades) for one in trees)
    scores = torch.tensor([extreme if i % 2 else 0.0 for i in range(count)], requires_grad=True)
    learned = torch.tensor(LEARNED.get(kind, ()), requires_grad=True)
    options = options_of(kind, "centering", "reward_norm")
    loss = total(options, trees, scores, learned, LEVELS)
    loss.backward()
    assert math.isfinite(loss.item())
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert bool(scores.grad.any())
    if OBJECTIVES[kind].learned:
        assert learned.grad is not None
        assert torch.isfinite(learned.grad).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trees", [[DUMMY_TREE], [DUMMY_TREE, tree(1)]], ids=["dummy", "and one"])
def test_an_empty_batch_costs_nothing_and_keeps_its_gradient_path(
    kind: str, trees: list[TokenTree]
) -> None:
    scores = torch.ones(len(trees), requires_grad=True)
    learned = torch.tensor(LEARNED.get(kind, ()), requires_grad=True)
    loss = total(options_of(kind), trees, scores, learned, LEVELS)
    loss.backward()
    assert loss.item() == 0
    assert loss.dtype == torch.float32
    if len(learned):
        # A rank without rows takes part in the step of the objective's own parameters.
        assert learned.grad is not None
        assert not learned.grad.any()
    assert scores.grad is not None
    assert not scores.grad.any()
    assert Loss(options=LossSection(kind=kind)).count(trees) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_points_where_the_loss_falls(kind: str) -> None:
    """Of scores and parameters, against differences of the loss in double precision."""
    trees = [tree(1, 0, 0.5, margin=0.3), tree(0.5, 0.5), rated(0.5), rated(1, 0, 0.5)]
    loss = Loss(options=options_of(kind), levels=LEVELS)
    labels = loss.labels(trees, CPU)
    if labels.ratings is not None:
        double = replace(labels.ratings, rating_N=labels.ratings.rating_N.double())
        labels = replace(labels, ratings=double)
    scores_R = torch.linspace(-0.9, 1.3, 9, dtype=torch.float64, requires_grad=True)
    learned = torch.tensor(LEARNED.get(kind, ()), dtype=torch.float64, requires_grad=True)
    inputs = (scores_R, learned) if len(learned) else (scores_R,)
    torch.autograd.gradcheck(
        lambda scores_R, learned=learned: loss(scores_R, labels, learned).total, inputs
    )


# ---- where objectives agree, and what their probabilities sum to


@pytest.mark.parametrize("kind", ["plackett_luce", "all_pairs"])
@settings(deadline=None, max_examples=25)
@given(
    z=st.floats(-60, 60, width=32),
    weight=st.floats(0.25, 4, width=16),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
)
def test_pairs_are_bradley_terry(kind: str, z: float, weight: float, temperature: float) -> None:
    scores = torch.tensor([z, 0.0], requires_grad=True)
    found, expected = (
        total(
            LossSection(kind=name, temperature=temperature),
            [tree(1, 0, weight=weight)],
            scores,
        )
        for name in (kind, "bradley_terry")
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, scores)[0] for loss in (found, expected))
    )


def test_probabilities_of_all_rankings_sum_to_one() -> None:
    """Plackett-Luce, against the product formula for each of the 24 rankings."""
    scores = (0.7, -1.2, 0.1, 2.0)
    whole = 0.0
    for order in permutations(range(4)):
        grades = [0.0] * 4
        for place, response in enumerate(order):
            grades[response] = 4.0 - place
        loss = total(LossSection(kind="plackett_luce"), [tree(*grades)], torch.tensor(scores))
        product = 1.0
        for place, response in enumerate(order):
            product *= exp(scores[response]) / sum(exp(scores[j]) for j in order[place:])
        assert exp(-float(loss)) == pytest.approx(product, rel=1e-5)
        whole += exp(-float(loss))
    assert whole == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["rao_kupper", "davidson"])
@settings(deadline=None, max_examples=40)
@given(z=st.floats(-12, 12, width=32), learned=st.floats(-5, 2, width=32))
def test_win_loss_and_tie_sum_to_one(kind: str, z: float, learned: float) -> None:
    outcomes = (tree(1, 0), tree(0, 1), tree(1, 1))
    scores = torch.tensor([z, 0.0])
    found = [total(LossSection(kind=kind), [one], scores, (learned,)) for one in outcomes]
    assert sum(exp(-float(loss)) for loss in found) == pytest.approx(1.0, abs=2e-5)


@settings(deadline=None, max_examples=40)
@given(
    score=st.floats(-12, 12, width=32),
    steps=st.lists(st.floats(-4, 2, width=32), min_size=0, max_size=5),
    lowest=st.floats(-3, 3, width=32),
)
def test_levels_sum_to_one(score: float, steps: list[float], lowest: float) -> None:
    levels = [float(level) for level in range(len(steps) + 2)]
    options = LossSection(kind="ordinal")
    found = [
        total(options, [rated(level)], torch.tensor([score]), (lowest, *steps), levels)
        for level in levels
    ]
    assert sum(exp(-float(loss)) for loss in found) == pytest.approx(1.0, abs=2e-5)


def test_two_levels_are_logistic_regression() -> None:
    score = torch.tensor([0.8, -0.3])
    found = total(LossSection(kind="ordinal"), [rated(2), rated(5)], score, (0.0,), (2.0, 5.0))
    assert float(found) == pytest.approx(
        float(total(LossSection(kind="bce"), [rated(0), rated(1)], score))
    )


def test_listnet_is_at_its_minimum_where_scores_are_grades() -> None:
    grades = (3.0, 0.5, 0.5, 2.0)
    for shift in (0.0, 7.0):
        scores = (torch.tensor(grades) + shift).requires_grad_()
        (gradient,) = torch.autograd.grad(
            total(LossSection(kind="listnet"), [tree(*grades)], scores), scores
        )
        assert gradient.tolist() == pytest.approx([0.0] * 4, abs=1e-6)


@pytest.mark.parametrize("kind", ["bradley_terry", "all_pairs", "hinge", "rao_kupper", "davidson"])
def test_annotators_who_are_divided_pull_a_difference_to_zero(kind: str) -> None:
    options = LossSection(kind=kind)
    divided = [tree(1, 0, soft_label=0.5)]
    losses = {
        z: float(total(options, divided, torch.tensor([z, 0.0]), LEARNED.get(kind, ())))
        for z in (-2.0, -1.5, -0.1, 0.0, 0.1, 1.5, 2.0)
    }
    assert min(losses.values()) == losses[0.0] < losses[2.0]
    for z in (0.1, 1.5, 2.0):
        assert losses[z] == pytest.approx(losses[-z])


@pytest.mark.parametrize("kind", ["bradley_terry", "all_pairs", "hinge", "rao_kupper", "davidson"])
def test_label_smoothing_is_a_mixture_of_both_orders(kind: str) -> None:
    scores, learned = torch.tensor([0.9, 0.2]), LEARNED.get(kind, ())

    def found(one: TokenTree, smoothing: float) -> float:
        return float(
            total(LossSection(kind=kind, label_smoothing=smoothing), [one], scores, learned)
        )

    assert found(tree(1, 0), 0.2) == pytest.approx(
        0.8 * found(tree(1, 0), 0.0) + 0.2 * found(tree(0, 1), 0.0)
    )


# ---- other implementations


@pytest.mark.parametrize(
    ("kind", "options", "ratings", "module"),
    [
        ("mse", {}, (1.0, 4.5, -2.0), torch.nn.MSELoss(reduction="sum")),
        (
            *("huber", {"huber_delta": 0.7}, (1.0, 4.5, -2.0)),
            torch.nn.HuberLoss(reduction="sum", delta=0.7),
        ),
        ("bce", {}, (0.0, 1.0, 0.3), torch.nn.BCEWithLogitsLoss(reduction="sum")),
    ],
)
def test_pointwise_losses_are_torchs(
    kind: str, options: dict[str, Any], ratings: tuple[float, ...], module: torch.nn.Module
) -> None:
    scores = torch.tensor([0.8, 3.1, 0.4])
    found = total(LossSection(kind=kind, **options), [rated(y) for y in ratings], scores)
    torch.testing.assert_close(found, module(scores, torch.tensor(ratings)))


def test_bce_is_scikit_learns_log_loss() -> None:
    from sklearn.metrics import log_loss

    generator = np.random.default_rng(0)
    labels_N, scores_N = generator.integers(0, 2, 50), generator.normal(size=50)
    found = total(
        LossSection(kind="bce"), [rated(float(y)) for y in labels_N], torch.tensor(scores_N)
    )
    expected = log_loss(labels_N, 1 / (1 + np.exp(-scores_N)), normalize=False)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_ordinal_is_statsmodels_proportional_odds_model() -> None:
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    generator = np.random.default_rng(1)
    level_N, feature_N = generator.integers(0, 4, 60), generator.normal(size=60)
    model = OrderedModel(level_N, feature_N[:, None], distr="logit")
    slope, learned = 0.7, (-1.1, 0.2, -0.5)
    found = total(
        LossSection(kind="ordinal"),
        [rated(float(level)) for level in level_N],
        torch.tensor(slope * feature_N),
        learned,
        (0.0, 1.0, 2.0, 3.0),
    )
    # statsmodels has the same parameters: the lowest threshold and the logarithms of the steps.
    assert float(found) == pytest.approx(-model.loglike(np.array([slope, *learned])), rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    grades=st.lists(st.integers(0, 3).map(float), min_size=2, max_size=5),
    data=st.data(),
)
def test_plackett_luce_with_ties_is_a_product_over_the_responses_below(
    grades: list[float], data: st.DataObject
) -> None:
    scores = data.draw(
        st.lists(st.floats(-8, 8, width=32), min_size=len(grades), max_size=len(grades))
    )
    found = total(LossSection(kind="plackett_luce"), [tree(*grades)], torch.tensor(scores))
    expected = 0.0
    for better, score in zip(grades, scores, strict=True):
        below = [s for worse, s in zip(grades, scores, strict=True) if worse < better]
        expected -= log(exp(score) / (exp(score) + sum(map(exp, below))))
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-5)


# ---- where training starts


@pytest.mark.parametrize("kind", ["rao_kupper", "davidson", "ordinal", "mse", "bce"])
def test_training_starts_at_the_best_constant_reward(kind: str) -> None:
    """The gradient is 0 there in every direction that leaves all rewards equal."""
    generator = np.random.default_rng(3)

    def one(number: int) -> TokenTree:
        weight = float(generator.uniform(0.2, 3))
        ratings = generator.choice(LEVELS[::2] if kind == "bce" else LEVELS, 1 + number % 3)
        return tree(*map(float, ratings), weight=weight, rated=number % 4 > 0)

    trees = [one(number) for number in range(400)]
    options = LossSection(kind=kind)
    start = start_of(options, trees)
    learned = torch.tensor(start.learned, dtype=torch.float64, requires_grad=True)
    offset = torch.tensor(start.offset, dtype=torch.float64, requires_grad=True)
    loss = Loss(options=options, levels=start.levels)
    scores_R = offset.expand(sum(len(tree.grades) for tree in trees))
    found = loss(scores_R, loss.labels(trees, CPU), learned).total / loss.count(trees)
    if OBJECTIVES[kind].learned:
        (gradient,) = torch.autograd.grad(found, learned)
    else:
        (gradient,) = torch.autograd.grad(found, offset)
    # Half a label of each kind more, so that no start is infinite.
    assert gradient.abs().max() < 2e-3


def test_all_pairs_divides_by_all_pairs_and_others_by_those_that_they_learn_from() -> None:
    grades, scores = (2.0, 1.0, 1.0, 0.0), torch.tensor([0.3, 0.2, 0.9, 0.1])
    ordered = [(i, j) for i, j in combinations(range(4), 2) if grades[i] > grades[j]]
    summed = sum(minus_log_sigmoid(float(scores[i] - scores[j])) for i, j in ordered)
    for kind, pairs in (("bradley_terry", 5), ("all_pairs", 6)):
        found = total(LossSection(kind=kind), [tree(*grades)], scores)
        assert float(found) == pytest.approx(summed / pairs)
