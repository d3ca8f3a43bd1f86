"""Listwise objectives: the loss of a whole ranking of K responses to one prompt.

A function returns ``loss_C``, one number per ranking; a pair is a ranking of K = 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plaudit.losses.labels import Rankings

_ABSENT = -1e30
"""The score of a response that is not there: its exponential is 0 in fp32, its gradient too."""


def plackett_luce(scores_CK: Tensor, rankings: Rankings) -> Tensor:
    """``-log P(ranking)``: the best is chosen of all, the next of the rest, and so on.

    Luce (1959), Plackett (1975). Responses of equal grade are each chosen over those of lower
    grade, and not over each other. For K = 2 it is the Bradley-Terry loss.
    """
    itself_KK = torch.eye(scores_CK.shape[1], dtype=torch.bool, device=scores_CK.device)
    # Differences first, as of pairs: beside a large score the logarithm of a sum is lost.
    gap_CKK = scores_CK[:, None, :] - scores_CK[:, :, None]
    # A response is chosen over itself, too: one above none is chosen for certain.
    gap_CKK = gap_CKK.masked_fill(~(rankings.below_CKK | itself_KK), -math.inf)
    return torch.where(rankings.present_CK, torch.logsumexp(gap_CKK, dim=2), 0.0).sum(dim=1)


def listnet(scores_CK: Tensor, rankings: Rankings) -> Tensor:
    """Cross-entropy of the top-one probabilities of grades and scores (Cao et al. 2007).

    The grades count by their values, not by their order alone.
    """
    present_CK = rankings.present_CK
    target_CK = torch.softmax(rankings.grades_CK.masked_fill(~present_CK, _ABSENT), dim=1)
    log_CK = torch.log_softmax(scores_CK.masked_fill(~present_CK, _ABSENT), dim=1)
    return -torch.where(present_CK, target_CK * log_CK, 0.0).sum(dim=1)
