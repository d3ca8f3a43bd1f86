"""Pairwise objectives: what each outcome of a pair costs at a reward difference.

A function takes ``z_P``, the differences less their margins and over the temperature, and the
learned parameters. :func:`pair_loss` sums over the pairs of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.losses.labels import Labels, Pairs
from plaudit.recipe.schema import LossSection


class Outcomes(NamedTuple):
    """The loss of a pair where the winner is preferred, the loser is, or neither."""

    winner_P: Tensor
    loser_P: Tensor
    tie_P: Tensor | None = None


OutcomeLoss: TypeAlias = Callable[[Tensor, Tensor], Outcomes]


def pair_loss(
    outcomes: OutcomeLoss, scores_R: Tensor, labels: Labels, options: LossSection, learned_C: Tensor
) -> Tensor:
    """Sum over pairs and ties, weighted; fp32.

    A pair costs its expected loss under its target, which ``options.label_smoothing`` moves towards
    the other outcome.
    """
    pairs, ties, smoothing = labels.pairs, labels.ties, options.label_smoothing
    lost = outcomes(_differences(scores_R, pairs) / options.temperature, learned_C)
    target_P = pairs.target_P * (1.0 - 2.0 * smoothing) + smoothing
    loss_P = target_P * lost.winner_P + (1.0 - target_P) * lost.loser_P
    total = (pairs.weight_P * loss_P).sum()
    tied_P = outcomes(_differences(scores_R, ties) / options.temperature, learned_C).tie_P
    if tied_P is not None:
        total = total + (ties.weight_P * tied_P).sum()
    return total


def _differences(scores_R: Tensor, pairs: Pairs) -> Tensor:
    return scores_R[pairs.winner_P] - scores_R[pairs.loser_P] - pairs.margin_P


def bradley_terry(z_P: Tensor, learned_C: Tensor) -> Outcomes:
    """``-log sigmoid(z)`` (Bradley and Terry 1952); the margin is Llama 2's (Touvron et al. 2023,
    equation 2).
    """
    return Outcomes(F.softplus(-z_P), F.softplus(z_P))


all_pairs = bradley_terry
"""With the weight of a comparison over all C(K, 2) pairs, ties too (Ouyang et al. 2022)."""


def hinge(z_P: Tensor, learned_C: Tensor) -> Outcomes:
    """``max(0, 1 - z)``: no gradient once the difference is above 1 (Joachims 2002)."""
    return Outcomes(F.relu(1.0 - z_P), F.relu(1.0 + z_P))


def rao_kupper(z_P: Tensor, learned_C: Tensor) -> Outcomes:
    """Bradley-Terry with a threshold below which a difference is a tie (Rao and Kupper 1967).

    ``learned_C`` is ``log(eta)``, where ``eta = log(theta) > 0``.
    """
    eta = learned_C[0].exp()
    winner_P, loser_P = F.softplus(eta - z_P), F.softplus(eta + z_P)
    # log(exp(2 eta) - 1), which overflows for no eta.
    log_room = 2.0 * eta + torch.log(-torch.expm1(-2.0 * eta))
    return Outcomes(winner_P, loser_P, winner_P + loser_P - log_room)


def davidson(z_P: Tensor, learned_C: Tensor) -> Outcomes:
    """Bradley-Terry where a tie has ``nu`` times the geometric mean of both wins (Davidson 1970).

    ``learned_C`` is ``log(nu)``.
    """
    log_nu_P = learned_C[0].expand_as(z_P)
    log_total_P = torch.logsumexp(torch.stack([z_P / 2.0, -z_P / 2.0, log_nu_P]), dim=0)
    return Outcomes(log_total_P - z_P / 2.0, log_total_P + z_P / 2.0, log_total_P - log_nu_P)
