"""Named outputs of a head against the labels of their names.

Shapes: N rows of a score table, P pairs of responses of one comparison.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.ranks import correlate
from plaudit.evaluation.metrics.ratings import compare_ratings
from plaudit.evaluation.schema import AttributeAccuracy, OutputMetrics, parts
from plaudit.evaluation.table import Pairs, ScoreTable, codes, pairs_by
from plaudit.recipe.objectives import PREFERENCE, learns_from
from plaudit.types import FloatArray, Outputs, TrainedObjective


def labels_of(table: ScoreTable, name: str) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """``label_N`` that the output ``name`` learns, ``nan`` where missing, and which are ratings.

    They are the attribute of its name. For ``preference`` they are the grades of a comparison that
    has no such attribute; those of a preference are an order alone.
    """
    label_N = table.attributes.get(name, np.full(len(table), np.nan))
    known_N = np.isfinite(label_N)
    if name != PREFERENCE:
        return label_N, known_N
    comparison_N = codes(list(zip(table.dataset_N, table.number_N, strict=True)))
    graded_N = np.bincount(comparison_N, known_N)[comparison_N] == 0
    filled_N = np.where(graded_N, table.grade_N, label_N)
    return filled_N, known_N | (graded_N & table.rated_N & np.isfinite(filled_N))


def measure_outputs(
    table: ScoreTable,
    outputs: Outputs | None,
    objective: TrainedObjective | None,
    *,
    seed: int = 0,
) -> tuple[OutputMetrics, ...]:
    """A record for each named output, with intervals by prompt group; none for an ensemble."""
    if outputs is None or outputs.ensemble:
        return ()
    labels = {name: labels_of(table, name) for name in outputs.names}
    paired = {name: pairs_by(table, label_N) for name, (label_N, _) in labels.items()}
    group_N = codes(table.group_N)
    of_ratings = objective is not None and learns_from(objective.kind) == "ratings"
    measured = []
    for name, weight in zip(outputs.names, outputs.weights, strict=True):
        output_N = table.outputs[name]
        label_N, rating_N = labels[name]
        rows_N = np.flatnonzero(rating_N)
        rated = (output_N[rows_N], label_N[rows_N], group_N[rows_N])
        attributes = [
            _accuracy(other, output_N, paired[other], seed=seed) for other in outputs.names
        ]
        known_N = np.isfinite(label_N)
        ratings = None
        if of_ratings and objective is not None and len(rows_N):
            ratings = compare_ratings(*rated, objective, seed=seed)
        best_other = _best_other(name, table, paired[name])
        difference = None
        if best_other is not None:
            own_P, other_P = (
                (_deltas(table.outputs[one], paired[name]) > 0).astype(np.float64)
                for one in (name, best_other)
            )
            difference = pairwise.paired_difference(other_P, own_P, paired[name].group_P)
        measured.append(
            OutputMetrics(
                name=name,
                weight=weight,
                responses=int(known_N.sum()),
                prompts=len(np.unique(group_N[known_N])),
                own=attributes[outputs.names.index(name)],
                best_other=best_other,
                delta_accuracy=None if difference is None else difference.mean,
                delta_accuracy_ci95=None if difference is None else difference.interval,
                attributes=tuple(attributes),
                correlation=correlate(*rated, seed=seed) if len(rows_N) else None,
                ratings=ratings,
            )
        )
    return tuple(measured)


def _deltas(output_N: FloatArray, paired: Pairs) -> FloatArray:
    return output_N[paired.winner_P] - output_N[paired.loser_P]


def _accuracy(
    attribute: str, output_N: FloatArray, paired: Pairs, *, seed: int
) -> AttributeAccuracy:
    delta_P = _deltas(output_N, paired)
    return AttributeAccuracy(
        attribute=attribute,
        ties=pairwise.ties(delta_P),
        **parts(pairwise.measured_accuracy(delta_P, paired.group_P, seed=seed)),
    )


def _best_other(name: str, table: ScoreTable, paired: Pairs) -> str | None:
    """The other output that ranks these pairs best, the first of equals; None without pairs."""
    others = [other for other in table.outputs if other != name] if len(paired) else []
    by_accuracy = {
        other: pairwise.accuracy(_deltas(table.outputs[other], paired)) for other in others
    }
    return max(others, key=by_accuracy.__getitem__, default=None)
