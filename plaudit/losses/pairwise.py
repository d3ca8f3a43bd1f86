"""Pairwise losses, and the ordered pairs of a batch that they sum over.

A loss returns a sum; whoever steps divides. One row of :data:`LOSSES` each.

Shapes: R responses of a batch, P ordered pairs among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.types import TokenTree, arrays_to_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """P ordered pairs of a batch: row of the winner, of the loser, margin and weight."""

    winner_P: Tensor
    loser_P: Tensor
    margin_P: Tensor
    weight_P: Tensor


def ordered_pairs(grades: Sequence[float]) -> list[tuple[int, int]]:
    """(better, worse) for every pair of responses with different grades."""
    pairs = []
    for i, j in combinations(range(len(grades)), 2):
        if grades[i] > grades[j]:
            pairs.append((i, j))
        elif grades[j] > grades[i]:
            pairs.append((j, i))
    return pairs


def pairs_of(trees: Sequence[TokenTree], device: torch.device) -> Pairs:
    """The pairs of a batch. A comparison's weight is shared equally among its pairs."""
    winner: list[int] = []
    loser: list[int] = []
    margin: list[float] = []
    weight: list[float] = []
    row = 0
    for tree in trees:
        order = ordered_pairs(tree.grades)
        for better, worse in order:
            winner.append(row + better)
            loser.append(row + worse)
            margin.append(tree.margin)
            weight.append(tree.weight / len(order))
        row += len(tree.branches)
    columns = (
        np.asarray(winner, np.int64),
        np.asarray(loser, np.int64),
        np.asarray(margin, np.float32),
        np.asarray(weight, np.float32),
    )
    winner_P, loser_P, margin_P, weight_P = arrays_to_device(columns, device)
    return Pairs(winner_P=winner_P, loser_P=loser_P, margin_P=margin_P, weight_P=weight_P)


def total_weight(trees: Sequence[TokenTree]) -> float:
    """The count a summed loss is divided by: comparisons, each with its weight."""
    return float(sum(tree.weight for tree in trees if ordered_pairs(tree.grades)))


Loss = Callable[[Tensor, Pairs], Tensor]


def bradley_terry(scores_R: Tensor, pairs: Pairs) -> Tensor:
    """Sum over pairs of ``-log sigmoid(winner - loser - margin)``, weighted; fp32.

    Bradley and Terry (1952); the margin as in Llama 2 (Touvron et al. 2023, equation 2). Divide
    by the total weight of the whole optimizer step, not of this batch, so that a step does not
    depend on how it was split.
    """
    delta_P = scores_R[pairs.winner_P] - scores_R[pairs.loser_P]
    return -(pairs.weight_P * F.logsigmoid(delta_P - pairs.margin_P)).sum()


LOSSES: dict[str, Loss] = {"bradley_terry": bradley_terry}
