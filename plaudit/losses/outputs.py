"""What each output of a head learns: an attribute of its name, or a bootstrap sample of all rows.

An output learns from the trees of a batch with grades and weights of its own; from there on it is
like a head with one output. Shapes: R responses of a batch, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from plaudit.losses.labels import Labels, is_usable, labels_of
from plaudit.losses.loss import Loss, Start, Summed, start_of
from plaudit.losses.pairwise import bradley_terry, pair_loss
from plaudit.recipe.objectives import OBJECTIVES, PREFERENCE, Objective
from plaudit.recipe.schema import LossSection
from plaudit.types import Outputs, TokenTree


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLabels:
    """The labels of each output in a batch, and those of the reward: the comparisons' own order.

    A head with one output learns the labels of the reward. ``count`` is what their loss adds to
    :meth:`HeadLoss.count`.
    """

    reward: Labels
    by_output: tuple[Labels, ...]
    count: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLoss:
    """The loss of a head with any number of outputs: ``of_output`` for each, summed.

    ``seed`` is that of the bootstrap samples of an ensemble.
    """

    of_output: Loss
    seed: int = 0

    @property
    def options(self) -> LossSection:
        """The recipe's ``loss`` section."""
        return self.of_output.options

    @property
    def objective(self) -> Objective:
        """The row of the table."""
        return self.of_output.objective

    def count(self, trees: Sequence[TokenTree]) -> float:
        """What the loss of all ``trees`` is divided by: comparisons, each with its weight.

        A bootstrap sample holds a comparison once on average, so those of an ensemble count once.
        """
        if not self.options.outputs:
            return self.of_output.count(trees)
        return sum(map(self.of_output.count, self._by_output(trees)))

    def labels(self, trees: Sequence[TokenTree], device: torch.device) -> OutputLabels:
        """The labels of a batch on ``device``."""
        by_output = tuple(self.of_output.labels(own, device) for own in self._by_output(trees))
        if not self.options.outputs:
            plain = by_output[0] if len(by_output) == 1 else self.of_output.labels(trees, device)
            return OutputLabels(reward=plain, by_output=by_output, count=plain.count)
        # What outputs learn from attributes, the gate learns from the order of the comparisons.
        reward = labels_of(trees, OBJECTIVES["bradley_terry"], device)
        count = sum(labels.count for labels in by_output)
        return OutputLabels(reward=reward, by_output=by_output, count=count)

    def __call__(self, outputs_RO: Tensor, labels: OutputLabels, learned_C: Tensor) -> Summed:
        """The loss of a batch, summed over outputs; an output that has no label costs 0."""
        parts = [
            self.of_output(outputs_RO[:, o], own, learned_C)
            for o, own in enumerate(labels.by_output)
        ]
        total = torch.stack([part.total for part in parts]).sum()
        return Summed(total, labels.count)

    def of_learned(self, outputs_RO: Tensor, labels: OutputLabels, learned_C: Tensor) -> Tensor:
        """The sum that the learned parameters minimise: this loss, or that of a learned gate.

        The gate's weights are those under which the outputs, as they are, explain the order of the
        comparisons best (Bradley-Terry), as in ArmoRM's second stage (Wang et al. 2024).
        """
        if self.options.gate != "learned":
            return self(outputs_RO, labels, learned_C).total
        reward_R = outputs_RO @ learned_C
        return pair_loss(bradley_terry, reward_R, labels.reward, LossSection(), learned_C)

    def _by_output(self, trees: Sequence[TokenTree]) -> list[Sequence[TokenTree]]:
        return trees_by_output(trees, self.options, seed=self.seed)


def trees_by_output(
    trees: Sequence[TokenTree], options: LossSection, *, seed: int = 0
) -> list[Sequence[TokenTree]]:
    """The trees that each output learns from, all of a batch, with its grades and weights.

    A comparison's weight is shared among the outputs that have a label of it. ``seed`` is that of
    the bootstrap samples: a comparison is in the sample of each head a Poisson(1) number of times
    (Oza and Russell 2001), which depends on the seed and its index alone.
    """
    if options.heads:
        heads = options.heads
        times_NK = [_bootstrap(tree.index, heads, seed) for tree in trees]
        return [
            [
                replace(tree, weight=tree.weight * times_K[k] / heads)
                for tree, times_K in zip(trees, times_NK, strict=True)
            ]
            for k in range(heads)
        ]
    if not options.outputs:
        return [trees]
    objective = OBJECTIVES[options.kind]
    views_NO = [[view_of(tree, name) for name in options.outputs] for tree in trees]
    for views_O in views_NO:
        labelled = sum(is_usable(view, objective) for view in views_O)
        views_O[:] = [replace(view, weight=view.weight / max(labelled, 1)) for view in views_O]
    return [[views_O[o] for views_O in views_NO] for o in range(len(options.outputs))]


def view_of(tree: TokenTree, name: str) -> TokenTree:
    """The tree as the output ``name`` learns from it: graded by that attribute, NaN where missing.

    The output ``preference`` learns the tree's own grades.
    """
    numbers = tree.attributes.get(name)
    if numbers is None and name == PREFERENCE:
        return tree
    missing = (None,) * len(tree.branches[: len(tree.branches) - len(tree.copies)])
    grades = tuple(math.nan if one is None else one for one in numbers or missing)
    return replace(tree, grades=grades, rated=True, margin=0.0, soft_label=1.0)


def output_names(options: LossSection) -> tuple[str, ...]:
    """The names of the outputs that a recipe asks for; none for a head with one output."""
    return options.outputs or tuple(f"head_{k}" for k in range(options.heads or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadStart:
    """Where a head begins to train: its outputs, and where their objective does.

    ``outputs`` is None for a head with one output.
    """

    outputs: Outputs | None
    objective: Start


def head_start_of(options: LossSection, trees: Sequence[TokenTree]) -> HeadStart:
    """The outputs that a recipe asks for and their start on the training data.

    A named output begins at the offset of its own labels; a learned gate begins at the mean.
    """
    names = output_names(options)
    if not names:
        return HeadStart(outputs=None, objective=start_of(options, trees))
    weights = (1.0 / len(names),) * len(names)
    if isinstance(options.gate, dict):
        weights = tuple(options.gate[name] for name in names)
    start, offsets = Start(), (0.0,) * len(names)
    if options.heads:
        start = start_of(options, trees)
    elif OBJECTIVES[options.kind].family == "pointwise":
        offsets = tuple(
            start_of(options, [view_of(tree, name) for tree in trees]).offset for name in names
        )
    if options.gate == "learned":
        start = replace(start, learned=weights)
    outputs = Outputs(
        names=names, weights=weights, offsets=offsets, ensemble=options.heads is not None
    )
    return HeadStart(outputs=outputs, objective=start)


def _bootstrap(index: int, heads: int, seed: int) -> list[int]:
    # A dummy tree has index -1, and no labels.
    draws: list[int] = np.random.default_rng((seed, max(index, 0))).poisson(1.0, heads).tolist()
    return draws
