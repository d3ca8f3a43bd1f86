"""Pairwise losses, one row of :data:`LOSSES` each. A loss returns a sum; whoever steps divides.

Shapes: R responses of a batch, P ordered pairs among them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from plaudit.losses.pairwise import Pairs

Loss = Callable[[Tensor, Pairs], Tensor]


def bradley_terry(scores_R: Tensor, pairs: Pairs) -> Tensor:
    """Sum over pairs of ``-log sigmoid(winner - loser - margin)``, weighted; fp32.

    Bradley and Terry (1952); the margin as in Llama 2 (Touvron et al. 2023, equation 2). Divide
    by the total weight of the whole optimizer step, not of this batch, so that a step does not
    depend on how it was cut.
    """
    delta_P = scores_R[pairs.winner_P] - scores_R[pairs.loser_P]
    return -(pairs.weight_P * F.logsigmoid(delta_P - pairs.margin_P)).sum()


LOSSES: dict[str, Loss] = {"bradley_terry": bradley_terry}
