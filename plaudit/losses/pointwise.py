"""Pointwise objectives: the loss of one rated response.

A function returns ``loss_N``, one number per rated response.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.recipe.schema import LossSection


def mse(scores_N: Tensor, rating_N: Tensor, options: LossSection, learned_C: Tensor) -> Tensor:
    """``(score - rating)**2``."""
    return (scores_N - rating_N) ** 2


def huber(scores_N: Tensor, rating_N: Tensor, options: LossSection, learned_C: Tensor) -> Tensor:
    """Quadratic up to an error of ``options.huber_delta``, linear beyond (Huber 1964)."""
    return F.huber_loss(scores_N, rating_N, reduction="none", delta=options.huber_delta)


def bce(scores_N: Tensor, rating_N: Tensor, options: LossSection, learned_C: Tensor) -> Tensor:
    """Binary cross-entropy of ``sigmoid(score)``; a rating is the probability of good."""
    return F.binary_cross_entropy_with_logits(scores_N, rating_N, reduction="none")


def ordinal(scores_N: Tensor, rating_N: Tensor, options: LossSection, learned_C: Tensor) -> Tensor:
    """The proportional-odds model (McCullagh 1980): ``rating_N`` are levels from 0.

    ``learned_C`` are the lowest threshold and the logarithms of the steps between them, so that
    thresholds never cross.
    """
    thresholds_L = thresholds_of(learned_C)
    last = len(thresholds_L) - 1
    level_N = rating_N.long()
    has_below_N, has_above_N = level_N > 0, level_N <= last
    upper_N = thresholds_L[level_N.clamp(max=last)] - scores_N
    lower_N = thresholds_L[(level_N - 1).clamp(min=0)] - scores_N
    # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), where
    # u - l is the parameter itself: as a difference it would be lost beside a large score.
    inside_N = has_below_N & has_above_N
    step_N = torch.where(inside_N, learned_C[level_N.clamp(max=last)], 0.0).exp()
    return (
        torch.where(has_above_N, F.softplus(-upper_N), 0.0)
        + torch.where(has_below_N, F.softplus(lower_N), 0.0)
        - torch.where(inside_N, torch.log(-torch.expm1(-step_N)), 0.0)
    )


def thresholds_of(learned_C: Tensor) -> Tensor:
    """The thresholds between levels, in ascending order."""
    return torch.cat([learned_C[:1], learned_C[:1] + torch.cumsum(learned_C[1:].exp(), dim=0)])
