"""Every objective finds what its data were made from.

Data are drawn from the model of each objective with known parameters. A linear reward, or a free
one per response, is fitted to them with the objective alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from plaudit.losses.loss import LearnedParameters, Loss, start_of
from plaudit.recipe.objectives import OBJECTIVES, parameters_of
from plaudit.recipe.schema import LossSection
from plaudit.types import FloatArray, TokenTree
from tests.losses.test_objectives import rated, tree

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
WEIGHTS = np.array([1.0, -0.6, 0.3])


class Fit:
    """A reward that is linear in features, or free, and the objective's own parameters.

    ``features_RF`` has a row for each response of ``trees``. Newton's method on the mean loss, all
    in double precision.
    """

    def __init__(
        self, kind: str, trees: Sequence[TokenTree], features_RF: FloatArray, **options: Any
    ) -> None:
        self.section = LossSection(kind=kind, **options)
        self.start = start_of(self.section, trees)
        self.loss = Loss(options=self.section, levels=self.start.levels)
        self.trees = trees
        self.features_RF = torch.from_numpy(features_RF)
        self.labels = self.loss.labels(trees, CPU)
        if self.labels.ratings is not None:
            self.labels.ratings.rating_N.data = self.labels.ratings.rating_N.double()
        self.size = features_RF.shape[1]
        self.value = torch.zeros(self.size + len(self.start.learned), dtype=torch.float64)
        self.value[self.size :] = torch.tensor(self.start.learned)
        value = self.value.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [value],
            max_iter=200,
            tolerance_grad=1e-9,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            mean = self.total(value) / self.loss.count(trees)
            mean.backward()
            return mean

        optimizer.step(closure)
        self.value = value.detach()

    def total(self, value: Tensor) -> Tensor:
        scores_R = self.features_RF @ value[: self.size] + self.start.offset
        return self.loss(scores_R, self.labels, value[self.size :]).total

    @property
    def weights(self) -> FloatArray:
        return self.value[: self.size].numpy()

    @property
    def learned(self) -> tuple[float, ...]:
        """The objective's own parameters under the names of their papers."""
        numbers = self.value[self.size :].tolist()
        (values,) = parameters_of(self.section.kind, numbers).values()
        return values

    def errors(self, of: Callable[[Tensor], Tensor] = lambda value: value) -> FloatArray:
        """Standard errors by the inverse of the observed Fisher information (delta method)."""
        hessian = torch.autograd.functional.hessian(self.total, self.value)
        jacobian = torch.autograd.functional.jacobian(of, self.value)
        return (jacobian @ torch.linalg.inv(hessian) @ jacobian.T).diagonal().sqrt().numpy()


def pair_features(generator: np.random.Generator, pairs: int) -> tuple[FloatArray, FloatArray]:
    """Features of both responses of each pair, and the difference of the planted rewards."""
    features_RF = generator.normal(size=(2 * pairs, 3))
    reward_R = features_RF @ WEIGHTS
    return features_RF, reward_R[0::2] - reward_R[1::2]


def drawn(generator: np.random.Generator, probabilities_NO: FloatArray) -> np.ndarray:
    """An outcome of each row."""
    return (generator.random((len(probabilities_NO), 1)) > probabilities_NO.cumsum(axis=1)).sum(1)


def within(found: Any, planted: Any, error: Any) -> bool:
    """In the 95% interval."""
    return bool((np.abs(np.asarray(found) - np.asarray(planted)) < 1.96 * np.asarray(error)).all())


# ---- ties

NU, THETA = 0.7, 1.8


def tied_pairs(kind: str, pairs: int = 3000) -> tuple[list[TokenTree], FloatArray]:
    generator = np.random.default_rng(1)
    features_RF, z_P = pair_features(generator, pairs)
    better_P = np.exp(z_P)
    if kind == "davidson":
        tied_P = NU * np.sqrt(better_P)
        shares = np.stack([better_P, np.ones(pairs), tied_P], axis=1)
        shares /= shares.sum(axis=1, keepdims=True)
    else:
        wins = np.stack([better_P / (better_P + THETA), 1 / (1 + THETA * better_P)], axis=1)
        shares = np.column_stack([wins, 1 - wins.sum(axis=1)])
    grades = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
    return [tree(*grades[outcome]) for outcome in drawn(generator, shares)], features_RF


@pytest.mark.parametrize(("kind", "planted"), [("davidson", NU), ("rao_kupper", THETA)])
def test_the_tie_parameter_is_recovered(kind: str, planted: float) -> None:
    """With the weights of the reward, all in their 95% intervals; where training starts is not."""
    trees, features_RF = tied_pairs(kind)
    fit = Fit(kind, trees, features_RF)
    errors = fit.errors()
    log_planted = math.log(planted) if kind == "davidson" else math.log(math.log(planted))
    assert within(fit.weights, WEIGHTS, errors[:3])
    assert within(fit.value[3:], log_planted, errors[3:])
    assert not within(fit.start.learned, log_planted, errors[3:])
    assert fit.learned == pytest.approx((planted,), rel=0.15)


def test_the_tie_parameter_is_recovered_by_training_as_a_run_trains() -> None:
    """Steps of a few pairs: the network by an optimizer of its own, nu by LearnedParameters."""
    trees, features_RF = tied_pairs("davidson")
    best = Fit("davidson", trees, features_RF)
    loss = Loss(options=LossSection(kind="davidson"))
    learned = LearnedParameters(loss, best.start.learned, CPU)
    weights = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.02)
    features = torch.from_numpy(features_RF).float()
    steps = torch.randperm(len(trees), generator=torch.Generator().manual_seed(0)).split(30) * 3
    for number, chosen_P in enumerate(steps):
        members = [trees[i] for i in chosen_P.tolist()]
        scores_R = features.unflatten(0, (-1, 2))[chosen_P].flatten(0, 1) @ weights
        labels = loss.labels(members, CPU)
        optimizer.zero_grad()
        (loss(scores_R, labels, learned.value_C).total / len(members)).backward()
        optimizer.step()
        learned.accumulate(scores_R, labels, 1 / len(members))
        learned.step(lambda gradient_C: gradient_C, schedule=1 - number / len(steps))
    assert learned.numbers() == pytest.approx(best.value[3:].tolist(), abs=0.02)
    assert within(learned.numbers(), math.log(NU), best.errors()[3:])


# ---- ratings


def test_thresholds_are_recovered_in_the_order_of_the_levels() -> None:
    generator = np.random.default_rng(3)
    features_RF = generator.normal(size=(3000, 3))
    thresholds, levels = np.array([-1.5, -0.2, 0.4, 2.0]), (1.0, 2.0, 3.0, 4.0, 5.0)
    noise = generator.logistic(size=3000)
    level_R = np.searchsorted(thresholds, features_RF @ WEIGHTS + noise)
    fit = Fit("ordinal", [rated(levels[level]) for level in level_R], features_RF)
    assert fit.start.levels == levels

    def named(value: Tensor) -> Tensor:
        first, steps = value[3:4], value[4:].exp()
        return torch.cat([value[:3], first, first + steps.cumsum(0)])

    errors = fit.errors(named)
    assert within(fit.weights, WEIGHTS, errors[:3])
    assert within(fit.learned, thresholds, errors[3:])
    assert list(fit.learned) == sorted(fit.learned)


def test_labels_are_recovered_as_calibrated_probabilities() -> None:
    """Weights in their intervals, and in every tenth of the responses the share of good ones."""
    generator = np.random.default_rng(4)
    features_RF = np.column_stack([generator.normal(size=(4000, 3)), np.ones(4000)])
    planted = np.array([*WEIGHTS, -0.8])
    probability_R = 1 / (1 + np.exp(-features_RF @ planted))
    label_R = generator.random(4000) < probability_R
    fit = Fit("bce", [rated(float(label)) for label in label_R], features_RF)
    constant = planted - np.array([0, 0, 0, fit.start.offset])
    assert within(fit.weights, constant, fit.errors())
    found_R = 1 / (1 + np.exp(-features_RF @ fit.weights - fit.start.offset))
    for tenth in np.array_split(np.argsort(found_R), 10):
        share = stats.binomtest(int(label_R[tenth].sum()), len(tenth)).proportion_ci(0.999)
        assert share.low < found_R[tenth].mean() < share.high


def test_ratings_are_recovered_and_huber_resists_outliers() -> None:
    generator = np.random.default_rng(5)
    features_RF = np.column_stack([generator.normal(size=(500, 3)), np.ones(500)])
    planted = np.array([*WEIGHTS, 3.0])
    rating_R = features_RF @ planted + generator.normal(0, 0.1, 500)
    spoiled_R = np.where(np.arange(500) % 20 == 0, 50.0, rating_R)

    def worst(kind: str, rating_R: FloatArray) -> float:
        fit = Fit(kind, [rated(float(y)) for y in rating_R], features_RF)
        found = fit.weights + np.array([0, 0, 0, fit.start.offset])
        return float(np.abs(found - planted).max())

    assert worst("mse", rating_R) < 0.02
    assert worst("huber", rating_R) < 0.02
    assert worst("mse", spoiled_R) > 1.0
    assert worst("huber", spoiled_R) < 0.1


# ---- rankings


@pytest.mark.parametrize("kind", ["plackett_luce", "all_pairs", "listnet"])
def test_planted_utilities_are_ranked(kind: str) -> None:
    """A free reward for each of eight responses, from rankings of four drawn by Plackett-Luce."""
    generator = np.random.default_rng(6)
    utilities = np.linspace(-2, 2, 8)
    trees, chosen = [], []
    for _ in range(600):
        four = generator.choice(8, 4, replace=False)
        # Utilities with Gumbel noise are ranked as Plackett-Luce says (Yellott 1977).
        noisy = utilities[four] + generator.gumbel(size=4)
        trees.append(tree(*map(float, stats.rankdata(noisy))))
        chosen.append(four)
    fit = Fit(kind, trees, np.eye(8)[np.concatenate(chosen)], reward_norm=1e-4)
    assert np.argsort(fit.weights).tolist() == list(range(8))
    # The pairs of such rankings follow Bradley and Terry with the same utilities.
    if kind != "listnet":
        centred = fit.weights - fit.weights.mean()
        assert centred == pytest.approx(utilities, abs=0.25)


# ---- pairs


def test_hinge_separates_with_a_margin() -> None:
    generator = np.random.default_rng(7)
    features_RF, z_P = pair_features(generator, 300)
    clear = np.flatnonzero(np.abs(z_P) > 0.3)
    features_RF = features_RF.reshape(-1, 2, 3)[clear].reshape(-1, 3)
    trees = [tree(float(z > 0), float(z < 0)) for z in z_P[clear]]
    fit = Fit("hinge", trees, features_RF)
    reward_R = features_RF @ fit.weights
    assert float(fit.total(fit.value)) == pytest.approx(0.0, abs=1e-6)
    assert (np.sign(z_P[clear]) * (reward_R[0::2] - reward_R[1::2])).min() >= 1 - 1e-6


@pytest.mark.parametrize("kind", ["bradley_terry", "plackett_luce", "davidson"])
def test_rewards_scale_by_the_temperature(kind: str) -> None:
    generator = np.random.default_rng(10)
    features_RF, z_P = pair_features(generator, 2000)
    better_P = generator.random(2000) < 1 / (1 + np.exp(-z_P))
    trees = [tree(float(better), float(not better)) for better in better_P]
    cold, hot = (Fit(kind, trees, features_RF, temperature=t) for t in (1.0, 2.5))
    assert within(cold.weights, WEIGHTS, cold.errors()[:3])
    assert hot.weights == pytest.approx(2.5 * cold.weights, rel=1e-4)


@pytest.mark.parametrize("kind", ["bradley_terry", "all_pairs"])
def test_soft_labels_are_the_probabilities_of_rewards(kind: str) -> None:
    """A reward for each response: the sigmoid of a difference is the share of annotators."""
    shares = (0.55, 0.7, 0.9, 0.98)
    trees = [tree(1, 0, soft_label=share) for share in shares]
    fit = Fit(kind, trees, np.eye(8), reward_norm=1e-9)
    difference = fit.weights[0::2] - fit.weights[1::2]
    assert 1 / (1 + np.exp(-difference)) == pytest.approx(shares, abs=1e-4)


def test_label_smoothing_keeps_separable_rewards_finite() -> None:
    """At the logit of the share of labels that count as right."""
    fit = Fit("bradley_terry", [tree(1, 0)], np.eye(2), label_smoothing=0.1)
    assert fit.weights[0] - fit.weights[1] == pytest.approx(math.log(0.9 / 0.1), abs=1e-5)


def test_centering_pulls_the_mean_reward_to_zero() -> None:
    """It alone fixes the level of rewards, and leaves their difference."""
    generator = np.random.default_rng(9)
    features_RF, z_P = pair_features(generator, 2000)
    better_P = generator.random(2000) < 1 / (1 + np.exp(-z_P))
    trees = [tree(float(better), float(not better)) for better in better_P]
    shifted = features_RF + np.array([2.0, 0.0, 0.0])
    with_constant = np.column_stack([shifted, np.ones(4000)])
    for centering, level in ((0.0, 2.0), (0.01, 0.0)):
        fit = Fit("bradley_terry", trees, with_constant, centering=centering)
        assert within(fit.weights[:3], WEIGHTS, 1.5 * fit_errors(trees, shifted))
        assert (with_constant @ fit.weights).mean() == pytest.approx(level, abs=0.25)


def fit_errors(trees: Sequence[TokenTree], features_RF: FloatArray) -> FloatArray:
    return Fit("bradley_terry", trees, features_RF).errors()


def test_every_objective_is_recovered_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in OBJECTIVES if f'"{kind}"' not in source] == []
