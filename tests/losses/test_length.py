"""``loss.length: residual``: what length explains of the labels stays out of the reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plaudit.losses.loss import LearnedParameters, Loss, start_of
from plaudit.recipe.objectives import OBJECTIVES, parameters_of
from plaudit.recipe.schema import LossSection
from plaudit.types import TokenTree

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
TRUE_WEIGHT = 1.5


def length_biased(count: int) -> tuple[list[TokenTree], torch.Tensor]:
    """Pairs whose labels follow a quality and the length in hundreds of tokens; the qualities."""
    rng = np.random.default_rng(0)
    trees, qualities = [], []
    for index in range(count):
        sizes, quality = rng.integers(4, 300, 2), rng.normal(size=2)
        difference = quality[0] - quality[1] + TRUE_WEIGHT * (sizes[0] - sizes[1]) / 100.0
        first = rng.random() < 1.0 / (1.0 + np.exp(-difference))
        trees.append(
            TokenTree(
                index=index,
                prefix=np.zeros(3, np.int32),
                branches=tuple(np.zeros(size, np.int32) for size in sizes),
                grades=(1.0, 0.0) if first else (0.0, 1.0),
            )
        )
        qualities += quality.tolist()
    return trees, torch.tensor(qualities, dtype=torch.float32)


@pytest.mark.parametrize("kind", [k for k, row in OBJECTIVES.items() if "length" in row.options])
def test_the_reward_keeps_the_quality_and_little_of_the_length(kind: str) -> None:
    trees, quality_R = length_biased(1500)

    def fitted(length: str) -> tuple[torch.Tensor, tuple[float, ...]]:
        """Weights of quality and length in a linear reward, and what the loss learned itself."""
        options = LossSection(kind=kind, length=length)
        start = start_of(options, trees)
        loss = Loss(options=options, length_unit=start.length_unit)
        labels = loss.labels(trees, CPU)
        learned = LearnedParameters(loss, start.learned, CPU)
        weights_2 = torch.zeros(2, requires_grad=True)
        adam = torch.optim.Adam([weights_2], lr=0.03)
        for _ in range(400):
            reward_R = weights_2[0] * quality_R + weights_2[1] * labels.length_R / 100.0
            summed = loss(reward_R, labels, learned.value_C)
            learned.accumulate(reward_R, labels, 1.0 / summed.count)
            (summed.total / summed.count).backward()
            learned.step(lambda gradient_C: gradient_C, 1.0)
            adam.step()
            adam.zero_grad()
        return weights_2.detach(), learned.numbers()

    biased, _ = fitted("ignore")
    fair, learned = fitted("residual")
    assert fair[0] > 0.8 * biased[0] > 0.2
    assert biased[1] / biased[0] == pytest.approx(TRUE_WEIGHT, rel=0.15)
    assert fair[1] < 0.35 * biased[1]
    (weight,) = parameters_of(kind, learned)["length_weight"]
    assert weight > 0.2


def test_length_alone_starts_at_its_likelihood() -> None:
    trees, _ = length_biased(800)
    options = LossSection(length="residual")
    start = start_of(options, trees)
    (weight,) = start.learned
    loss = Loss(options=options, length_unit=start.length_unit)
    labels = loss.labels(trees, CPU)
    zero_R = torch.zeros(len(labels.length_R))

    def cost(weight: float) -> float:
        return float(loss(zero_R, labels, torch.tensor([weight], dtype=torch.float64)).total)

    assert cost(weight) < min(cost(weight - 0.02), cost(weight + 0.02))


def test_where_length_decides_everything_the_start_is_finite() -> None:
    trees, _ = length_biased(20)
    by_length = [
        TokenTree(
            index=0,
            prefix=one.prefix,
            branches=one.branches,
            grades=tuple(float(len(branch)) for branch in one.branches),
        )
        for one in trees
    ]
    assert start_of(LossSection(length="residual"), by_length).learned == (20.0,)
    equal = [
        TokenTree(index=0, prefix=one.prefix, branches=(one.branches[0],) * 2, grades=(1.0, 0.0))
        for one in trees
    ]
    assert start_of(LossSection(length="residual"), equal).learned == (0.0,)


def test_what_the_responses_share_does_not_change_the_loss() -> None:
    """A longer common start moves tokens into the prefix; differences of length stay."""
    rewards_R, learned_C = torch.tensor([0.2, -0.1]), torch.tensor([0.4])
    loss = Loss(options=LossSection(length="residual"), length_unit=100.0)

    def cost(shared: int) -> float:
        tree = TokenTree(
            index=0,
            prefix=np.zeros(10 + shared, np.int32),
            branches=(np.zeros(60 - shared, np.int32), np.zeros(20 - shared, np.int32)),
            grades=(1.0, 0.0),
        )
        return float(loss(rewards_R, loss.labels([tree], CPU), learned_C).total)

    assert cost(0) == pytest.approx(np.logaddexp(0.0, -(0.3 + 0.4 * 0.4)), rel=1e-6)
    assert cost(15) == pytest.approx(cost(0), rel=1e-6)


def test_centering_and_reward_norm_are_of_the_reward_without_its_length() -> None:
    tree = TokenTree(
        index=0,
        prefix=np.zeros(0, np.int32),
        branches=(np.zeros(50, np.int32), np.zeros(50, np.int32)),
        grades=(1.0, 0.0),
    )
    loss = Loss(options=LossSection(length="residual", centering=1.0, reward_norm=1.0))
    learned_C = torch.tensor([0.7], requires_grad=True)
    total = loss(torch.zeros(2), loss.labels([tree], CPU), learned_C).total
    total.backward()
    assert total.item() == pytest.approx(np.log(2.0))
    assert learned_C.grad is not None
    assert learned_C.grad.tolist() == [0.0]
