"""The loss of one output: an objective with the recipe's options, and where training starts.

What an objective learns beside the model (a tie parameter, thresholds) starts at its maximum
likelihood where all rewards are equal, as they are under a new reward head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from plaudit.losses.labels import Labels, count_of, labels_of, ordered_pairs
from plaudit.losses.pairwise import bradley_terry, pair_loss
from plaudit.recipe.objectives import OBJECTIVES, Objective
from plaudit.recipe.schema import LossSection
from plaudit.types import FloatArray, TokenTree


@dataclass(frozen=True, slots=True)
class Summed:
    """A loss summed over the comparisons of a batch, and the sum of their weights."""

    total: Tensor
    count: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where training starts: the learned parameters, and the reward of a head that gives zero.

    ``levels`` are the ratings of an objective that learns levels, in ascending order;
    ``length_unit`` is the root mean square of the length differences of pairs, in tokens.
    """

    learned: tuple[float, ...] = ()
    offset: float = 0.0
    levels: tuple[float, ...] = ()
    length_unit: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """An objective under a recipe's ``loss`` section.

    Sums, and not means: whoever steps divides by the count of the whole optimizer step
    (:meth:`count`), so that a step does not depend on how it was split.
    """

    options: LossSection
    levels: tuple[float, ...] = ()
    length_unit: float = 1.0

    @property
    def objective(self) -> Objective:
        """The row of the table."""
        return OBJECTIVES[self.options.kind]

    def count(self, trees: Sequence[TokenTree]) -> float:
        """Comparisons that the objective learns from, each with its weight."""
        return count_of(trees, self.objective)

    def labels(self, trees: Sequence[TokenTree], device: torch.device) -> Labels:
        """The labels of a batch on ``device``."""
        return labels_of(trees, self.objective, device, levels=self.levels)

    def __call__(self, scores_R: Tensor, labels: Labels, learned_C: Tensor) -> Summed:
        """The loss of a batch in fp32. An empty batch costs 0 and keeps its gradient path.

        Under ``length: residual`` the last learned parameter times a response's length in units of
        ``length_unit`` is added to its reward, so that the reward has no need to say it too.
        ``centering`` adds ``centering * (winner + loser)**2`` of a pair's rewards (TRL's
        ``center_rewards_coefficient``; Eisenstein et al. 2023, equation 2).
        """
        function: Callable[..., Any] = find_function(self.options.kind)
        reward_R = scores_R
        if self.options.length == "residual":
            scores_R = scores_R + learned_C[-1] * (labels.length_R / self.length_unit)
        if labels.rankings is not None:
            rankings = labels.rankings
            scores_CK = scores_R[rankings.rows_CK]
            # Only differences matter; large rewards, divided first, would round away small ones.
            scores_CK = (scores_CK - scores_CK[:, :1].detach()) / self.options.temperature
            total = (rankings.weight_C * function(scores_CK, rankings)).sum()
        elif labels.ratings is not None:
            ratings = labels.ratings
            loss_N = function(scores_R[ratings.row_N], ratings.rating_N, self.options, learned_C)
            total = (ratings.weight_N * loss_N).sum()
            # Comparisons of which only the order is known.
            total = total + pair_loss(bradley_terry, scores_R, labels, self.options, learned_C)
        else:
            total = pair_loss(function, scores_R, labels, self.options, learned_C)
        if self.options.centering:
            for pairs in (labels.pairs, labels.ties):
                sum_P = reward_R[pairs.winner_P] + reward_R[pairs.loser_P]
                total = total + self.options.centering * (pairs.weight_P * sum_P**2).sum()
        if self.options.reward_norm:
            squares_R = labels.weight_R * reward_R**2
            total = total + self.options.reward_norm * squares_R.sum()
        if self.options.consistency:
            copies = labels.copies
            apart_N = reward_R[copies.origin_N] - reward_R[copies.copy_N]
            total = total + self.options.consistency * (copies.weight_N * apart_N**2).sum()
        return Summed(total, labels.count)

    def of_learned(self, scores_R: Tensor, labels: Labels, learned_C: Tensor) -> Tensor:
        """The sum that the learned parameters minimise, which is this loss."""
        return self(scores_R, labels, learned_C).total


def find_function(kind: str) -> Callable[..., Any]:
    """The function of an objective, which has its name in the module of its family."""
    function: Callable[..., Any] = getattr(
        import_module(f"plaudit.losses.{OBJECTIVES[kind].family}"), kind
    )
    return function


BatchLabels = TypeVar("BatchLabels", contravariant=True)


class LossWithParameters(Protocol[BatchLabels]):
    """A loss with parameters of its own, on its own kind of labels."""

    @property
    def options(self) -> LossSection: ...

    def of_learned(self, scores: Tensor, labels: BatchLabels, learned_C: Tensor, /) -> Tensor:
        """The sum that they minimise."""


class LearnedParameters(Generic[BatchLabels]):
    """What an objective learns beside the model: a few numbers, the same on every rank.

    They are no weights of the network: their gradient comes from the scores alone, so nothing of
    DDP, FSDP or DeepSpeed applies to them. Adam steps them at a learning rate of their own, which
    follows the schedule of the run.
    """

    LEARNING_RATE = 0.01
    GATE_LEARNING_RATE = 0.1
    """They start at their maximum likelihood, but the weights of outputs far from it."""

    def __init__(
        self, loss: LossWithParameters[BatchLabels], start: Sequence[float], device: torch.device
    ) -> None:
        self.loss = loss
        self.value_C = torch.tensor(start, dtype=torch.float32, device=device)
        own = [True] * len(start)
        if start and loss.options.tie_parameter != "learned":
            own[0] = False
        self._learns_C = torch.tensor(own, dtype=torch.bool, device=device)
        self.fixed = not any(own)
        self._gradient_C = torch.zeros_like(self.value_C)
        gate = loss.options.gate == "learned"
        self._rate = self.GATE_LEARNING_RATE if gate else self.LEARNING_RATE
        self._adam = torch.optim.Adam([self.value_C], lr=self._rate)

    def clear(self) -> None:
        """Forget the gradient of the step so far."""
        self._gradient_C.zero_()

    def accumulate(self, scores: Tensor, labels: BatchLabels, scale: float) -> None:
        """Add the gradient of a batch's loss, times ``scale``; ``scores`` get none."""
        if self.fixed:
            return
        with torch.enable_grad():
            learned_C = self.value_C.clone().requires_grad_()
            total = self.loss.of_learned(scores.detach(), labels, learned_C)
            (gradient_C,) = torch.autograd.grad(total, learned_C)
        self._gradient_C += torch.where(self._learns_C, gradient_C * scale, 0.0)

    def step(self, mean: Callable[[Tensor], Tensor], schedule: float) -> None:
        """Step on the gradient of all ranks, of which ``mean`` is the mean.

        ``schedule`` is the share of its learning rate that a run has reached.
        """
        if self.fixed:
            return
        self.value_C.grad = mean(self._gradient_C)
        self._adam.param_groups[0]["lr"] = self._rate * schedule
        self._adam.step()
        self.clear()

    def numbers(self) -> tuple[float, ...]:
        """The parameters on the host."""
        return tuple(self.value_C.tolist())

    def put(self, numbers: Sequence[float]) -> None:
        """Be at ``numbers``."""
        self.value_C.copy_(torch.tensor(numbers))

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on from here."""
        return {"value": self.value_C.clone(), "adam": self._adam.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self.value_C.copy_(state["value"])
        self._adam.load_state_dict(dict(state["adam"]))


# ---- where training starts

_MOST_WEIGHT: Final = 20.0


def start_of(options: LossSection, trees: Sequence[TokenTree]) -> Start:
    """Parameters and offset of the highest likelihood on the training data, all rewards equal."""
    objective = OBJECTIVES[options.kind]
    if objective.family != "pointwise":
        tied = objective.learns_from == "order_and_ties"
        own = (_tie_parameter(options, trees),) if tied else ()
        if options.length != "residual":
            return Start(learned=own)
        weight, unit = _length_weight(trees)
        return Start(learned=(*own, weight), length_unit=unit)
    known = [
        (tree.weight, [grade for grade in tree.grades if not math.isnan(grade)])
        for tree in trees
        if tree.rated
    ]
    rating_N = np.asarray([y for _, grades in known for y in grades], np.float64)
    if not len(rating_N):
        # The output of an order alone.
        return Start()
    weight_N = np.asarray([weight / len(grades) for weight, grades in known for _ in grades])
    if options.kind == "ordinal":
        levels, level_N = np.unique(rating_N, return_inverse=True)
        learned = _thresholds(np.bincount(level_N, weight_N).astype(np.float64))
        return Start(learned=learned, levels=tuple(levels.tolist()))
    mean = float(np.average(rating_N, weights=weight_N))
    if options.kind == "bce":
        # Labels that are all the same have no finite logit; half a label of the other kind has.
        mean = (mean * len(rating_N) + 0.5) / (len(rating_N) + 1.0)
        return Start(offset=math.log(mean / (1.0 - mean)))
    return Start(offset=mean)


def _tie_parameter(options: LossSection, trees: Sequence[TokenTree]) -> float:
    """The learned number of :func:`rao_kupper` or :func:`davidson`, at the share of ties."""
    davidson = options.kind == "davidson"
    if options.tie_parameter != "learned":
        fixed = options.tie_parameter
        return math.log(fixed) if davidson else math.log(math.log(fixed))
    weight = tied = 0.0
    for tree in trees:
        _, counts = np.unique(tree.grades, return_counts=True)
        every = math.comb(len(tree.grades), 2)
        if every:
            weight += tree.weight
            tied += tree.weight * sum(math.comb(int(n), 2) for n in counts) / every
    # Half a tie and half a win more keep a share of 0 or 1 inside.
    share = (tied + 0.5) / (weight + 1.0)
    return math.log(2.0 * share / (1.0 - share)) if davidson else math.log(2.0 * math.atanh(share))


def _length_weight(trees: Sequence[TokenTree]) -> tuple[float, float]:
    """The weight of length under which length alone explains the ordered pairs best, and its unit:
    the root mean square of the length differences, in tokens.
    """
    steps: list[float] = []
    weights: list[float] = []
    for tree in trees:
        order = ordered_pairs(tree.grades)
        steps += [len(tree.branches[i]) - len(tree.branches[j]) for i, j in order]
        weights += [tree.weight / max(len(order), 1)] * len(order)
    if not any(steps):
        return 0.0, 1.0
    unit = float(np.sqrt(np.mean(np.square(steps))))
    step_P, weight_P = np.asarray(steps) / unit, np.asarray(weights)

    def slope(weight: float) -> float:
        return float((weight_P * step_P * expit(-weight * step_P)).sum())

    # Where length decides every pair, no weight is large enough.
    low, high = -_MOST_WEIGHT, _MOST_WEIGHT
    if slope(low) <= 0.0 or slope(high) >= 0.0:
        return (low if slope(low) <= 0.0 else high), unit
    return float(brentq(slope, low, high)), unit


def _thresholds(weight_L: FloatArray) -> tuple[float, ...]:
    """The parameters of :func:`ordinal` at the shares of the levels."""
    share_L = np.cumsum(weight_L)[:-1] / np.sum(weight_L)
    at_L = np.log(share_L / (1.0 - share_L))
    return (float(at_L[0]), *np.log(np.diff(at_L)).tolist()) if len(at_L) else (0.0,)
