"""Better, worse or tied: the probabilities of a model that was trained on ties.

Shapes: P pairs of responses of one comparison, of equal grade or not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.ratings import auc
from plaudit.evaluation.schema import TieMetrics
from plaudit.evaluation.table import ScoreTable, codes, unordered_pairs
from plaudit.recipe.objectives import learns_from, parameters_of
from plaudit.types import FloatArray, TrainedObjective


def outcome_log_probabilities(
    delta_P: FloatArray, objective: TrainedObjective
) -> npt.NDArray[np.float64]:
    """``log P`` of better, worse and tied, ``(3, P)``, at reward differences ``delta_P``."""
    z_P = delta_P / objective.temperature
    parameters = parameters_of(objective.kind, objective.learned)
    if objective.kind == "davidson":
        log_nu_P = np.full(len(z_P), np.log(parameters["nu"][0]))
        logits_3P = np.stack([z_P / 2.0, -z_P / 2.0, log_nu_P])
        log_3P: FloatArray = logits_3P - np.logaddexp.reduce(logits_3P, axis=0)
        return log_3P
    eta = np.log(parameters["theta"][0])
    better_P, worse_P = -np.logaddexp(0.0, eta - z_P), -np.logaddexp(0.0, eta + z_P)
    return np.stack([better_P, worse_P, better_P + worse_P + np.log(np.expm1(2.0 * eta))])


def measure_ties(
    table: ScoreTable, objective: TrainedObjective | None, *, seed: int = 0
) -> TieMetrics | None:
    """All pairs of a table, ties too, with intervals by prompt group.

    ``None`` without pairs, and for a model that was not trained on ties.
    """
    if objective is None or learns_from(objective.kind) != "order_and_ties":
        return None
    comparison_N = codes(list(zip(table.dataset_N, table.number_N, strict=True)))
    first_P, second_P = unordered_pairs(comparison_N)
    rise_P = table.grade_N[first_P] - table.grade_N[second_P]
    known_P = np.isfinite(rise_P)
    first_P, second_P, rise_P = first_P[known_P], second_P[known_P], rise_P[known_P]
    if not len(first_P):
        return None
    delta_P = table.reward_N[first_P] - table.reward_N[second_P]
    outcome_P = np.where(rise_P > 0, 0, np.where(rise_P < 0, 1, 2))
    log_3P = outcome_log_probabilities(delta_P, objective)
    loss_P = -log_3P[outcome_P, np.arange(len(outcome_P))]
    tied_P = (outcome_P == 2).astype(np.float64)
    group_P = codes(table.group_N)[first_P]
    share, log_loss = pairwise.bootstrap_means(np.stack([tied_P, loss_P]), group_P, seed=seed)
    tied = float(tied_P.mean())
    # The better one stands first or second as the data have it, so each has half of the rest.
    outcomes = np.array([(1.0 - tied) / 2.0, (1.0 - tied) / 2.0, tied])
    return TieMetrics(
        pairs=len(outcome_P),
        ties=int(tied_P.sum()),
        share=tied,
        share_ci95=share,
        expected_share=float(np.exp(log_3P[2]).mean()),
        log_loss=float(loss_P.mean()),
        log_loss_ci95=log_loss,
        log_loss_constant=float(-np.log(outcomes[outcome_P]).mean()),
        auc=auc(log_3P[2], tied_P),
    )
