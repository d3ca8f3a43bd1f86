"""Rewards of the evaluation sets to numbers: at every scheduled evaluation, and at the end.

Shapes: N responses of all evaluation sets end to end, P ordered pairs among them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plaudit.errors import DataError, TrainingError
from plaudit.evaluation.analysis.perturbations import Budget, Probed, Scores, probe
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.calibration import best_temperature, cross_fit
from plaudit.evaluation.metrics.ratings import predictions
from plaudit.evaluation.schema import Accuracy, HistoryEntry
from plaudit.evaluation.summary import Evaluated
from plaudit.evaluation.table import (
    HeldOut,
    Pairs,
    ScoredSet,
    Scorer,
    codes,
    ordered_pairs,
    read_held_out,
    read_rewards,
    rewards_file,
)
from plaudit.losses.outputs import HeadLoss, OutputLabels
from plaudit.storage.manifest import TRAINING_FILE
from plaudit.tokens.encode import encode
from plaudit.tokens.store import Part
from plaudit.training.prepare import PreparedRun
from plaudit.training.trainer import EvalOutputs, RewardTrainer
from plaudit.types import FloatArray, TokenTree, TrainedObjective

logger = logging.getLogger("plaudit")


def read_parts(
    parts: Mapping[str, Part],
    outputs: EvalOutputs,
    scorers: Mapping[str, Scorer | None],
    trainer: RewardTrainer,
) -> HeldOut:
    """The responses of the named parts in columns, read once, with the scores of baselines."""
    return read_held_out(
        (
            ScoredSet(
                dataset=name,
                comparisons=part.comparisons,
                trees=part.trees,
                rewards=[trainer.rewards(outputs_KO) for outputs_KO in outputs[name]],
                outputs=None if trainer.outputs is None else outputs[name],
            )
            for name, part in parts.items()
        ),
        scorers,
        trainer.outputs,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairIndex:
    """Which rows of the end-to-end rewards make pairs; fixed for a run.

    ``temperature`` is that of the training loss.
    """

    pairs: Pairs
    dataset_P: np.ndarray
    temperature: float = 1.0

    def deltas(self, reward_N: FloatArray) -> FloatArray:
        """Reward of the winner less the loser's, per pair."""
        return reward_N[self.pairs.winner_P] - reward_N[self.pairs.loser_P]


def index_pairs(parts: Mapping[str, Part], temperature: float = 1.0) -> PairIndex:
    """The pairs of the evaluation sets, from their trees and prompt groups; no text is read."""
    # A comparison with attributes alone has rows and no pairs.
    grades = [
        tree.grades or (np.nan,) * len(tree.branches)
        for part in parts.values()
        for tree in part.trees
    ]
    comparison_N = np.repeat(np.arange(len(grades)), list(map(len, grades)))
    winner_P, loser_P = ordered_pairs(comparison_N, np.fromiter(chain(*grades), np.float64))
    comparison_P = comparison_N[winner_P]
    datasets = np.array(list(parts), np.object_)
    dataset_C = datasets.repeat([len(part.trees) for part in parts.values()])
    group_C = codes(np.concatenate([part.comparisons.groups for part in parts.values()]))
    margin_C = np.concatenate([part.trees.label("margin") for part in parts.values()])
    found = Pairs(
        winner_P=winner_P,
        loser_P=loser_P,
        delta_P=np.zeros(len(winner_P)),
        margin_P=margin_C[comparison_P],
        comparison_P=comparison_P,
        group_P=group_C[comparison_P],
    )
    return PairIndex(pairs=found, dataset_P=dataset_C[comparison_P], temperature=temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossIndex:
    """The labels of the evaluation sets under an objective of more than pairs; fixed for a run.

    ``labels`` are of all sets end to end, ``by_set`` of each with the rows of its outputs.
    """

    loss: HeadLoss
    labels: OutputLabels
    by_set: Mapping[str, tuple[slice, OutputLabels]]


def index_losses(loss: HeadLoss, parts: Mapping[str, Part]) -> LossIndex | None:
    """The labels of the evaluation sets; None where the loss is of the pairs of :func:`measure`.

    That is so unless ratings or named outputs are learned. Penalties, label smoothing and bootstrap
    samples are of training alone: the loss of an ensemble is that of its mean.
    """
    if loss.objective.family != "pointwise" and not loss.options.outputs:
        return None
    plain = {"centering": 0.0, "reward_norm": 0.0, "label_smoothing": 0.0, "heads": None}
    options = loss.options.model_copy(update=plain)
    measuring = HeadLoss(of_output=replace(loss.of_output, options=options))
    cpu = torch.device("cpu")
    by_set: dict[str, tuple[slice, OutputLabels]] = {}
    start = 0
    for name, part in parts.items():
        labels = measuring.labels(part.trees, cpu)
        stop = start + len(labels.reward.weight_R)
        by_set[name] = (slice(start, stop), labels)
        start = stop
    every = [tree for part in parts.values() for tree in part.trees]
    return LossIndex(loss=measuring, labels=measuring.labels(every, cpu), by_set=by_set)


def end_to_end(outputs: EvalOutputs) -> FloatArray:
    """``outputs_NO`` of all sets, in their order."""
    arrays = [outputs_KO for rows in outputs.values() for outputs_KO in rows]
    return np.concatenate(arrays) if arrays else np.zeros((0, 1))


def measure(index: PairIndex, reward_N: FloatArray) -> dict[str, float]:
    """Exact loss and accuracy over all pairs, and per named set where there are several.

    ``eval_calibrated_loss`` is the loss at the best temperatures, cross-fitted by prompt group:
    what the rewards are worth once their over-confidence is taken away. They are not shrunk towards
    1, so that checkpoints compare by their ranking and not by the scale of their rewards. Chosen by
    the plain loss, a run keeps an early checkpoint whose ranking is worse (docs/reproduction.md).
    """
    delta_P = index.deltas(reward_N)
    if not len(delta_P):
        return {}
    measured = _numbers("eval", delta_P, index.pairs.margin_P, index.temperature)
    calibrated_P = cross_fit(
        delta_P, index.pairs.group_P, estimator=lambda others_P, _: best_temperature(others_P)
    ).delta_P
    measured["eval_calibrated_loss"] = pairwise.nll(
        delta_P if calibrated_P is None else calibrated_P
    )
    names = dict.fromkeys(index.dataset_P)
    if len(names) > 1:
        for name in names:
            own_P = index.dataset_P == name
            margin_P = index.pairs.margin_P[own_P]
            measured |= _numbers(f"eval_{name}", delta_P[own_P], margin_P, index.temperature)
    return measured


def measure_losses(
    index: LossIndex, outputs_NO: FloatArray, learned: Sequence[float]
) -> dict[str, float]:
    """The training loss on the evaluation sets, under the names of :func:`measure`.

    Pairs that it learns from count as in training. Of ratings of one kind, also the mean absolute
    error.
    """
    outputs_RO = torch.from_numpy(outputs_NO).float()
    learned_C = torch.tensor(learned, dtype=torch.float32)
    objective = TrainedObjective(
        kind=index.loss.options.kind, learned=tuple(learned), levels=index.loss.of_output.levels
    )

    def numbers(prefix: str, rows: slice, labels: OutputLabels) -> dict[str, float]:
        summed = index.loss(outputs_RO[rows], labels, learned_C)
        measured = {f"{prefix}_loss": float(summed.total) / max(summed.count, 1e-12)}
        ratings = labels.by_output[0].ratings
        if len(labels.by_output) > 1 or ratings is None or not len(ratings.row_N):
            return measured
        rating_N = ratings.rating_N.double().numpy()
        if objective.levels:
            rating_N = np.asarray(objective.levels)[rating_N.astype(np.int64)]
        expected_N = predictions(outputs_NO[rows, 0][ratings.row_N.numpy()], objective)
        return measured | {f"{prefix}_mae": float(np.abs(expected_N - rating_N).mean())}

    measured = numbers("eval", slice(None), index.labels)
    for name, (rows, labels) in index.by_set.items() if len(index.by_set) > 1 else ():
        measured |= numbers(f"eval_{name}", rows, labels)
    return measured


def _numbers(
    prefix: str, delta_P: FloatArray, margin_P: FloatArray, temperature: float
) -> dict[str, float]:
    return {
        f"{prefix}_loss": pairwise.bradley_terry_loss(
            delta_P / temperature, margin_P / temperature
        ),
        f"{prefix}_accuracy": pairwise.accuracy(delta_P),
        f"{prefix}_ties": float(pairwise.ties(delta_P)),
        f"{prefix}_margin": float(delta_P.mean()),
    }


def read_evaluated(folder: Path, step: int, index: PairIndex) -> Evaluated:
    """The pair differences of an evaluation of this run, over the temperature of its loss.

    Raises:
        TrainingError: its file is missing or damaged.
    """
    try:
        return Evaluated(step=step, delta_P=_read_deltas(folder, step, index) / index.temperature)
    except DataError as error:
        raise TrainingError(
            f"{error}, and the evaluation of the run needs it; restore it from a backup, or"
            f" delete {TRAINING_FILE} and the checkpoints from step {step} on and resume the run,"
            " which writes it again."
        ) from None


def _read_deltas(folder: Path, step: int, index: PairIndex) -> FloatArray:
    reward_N = read_rewards(folder, step)
    try:
        return index.deltas(reward_N)
    except IndexError:
        raise DataError(
            f"{rewards_file(folder, step)} is damaged (it has {len(reward_N)} rewards)"
        ) from None


def history(log: Sequence[Mapping[str, Any]], folder: Path, index: PairIndex) -> list[HistoryEntry]:
    """One entry per evaluation, from the trainer's log.

    ``folder`` holds the rewards of each (:func:`write_rewards`), which the intervals are made from.
    Where a file cannot be read, the interval is None, with a warning.

    The training loss beside an evaluation is the last one logged before it, as in the
    training-results table that transformers writes.
    """
    entries: dict[int, HistoryEntry] = {}
    training_loss: float | None = None
    for event in log:
        if "loss" in event:
            training_loss = event["loss"]
        if "eval_loss" in event:
            # The evaluation at a step may stand twice where a resumed run began with it.
            measured = (
                _accuracy_at(event, folder, index)
                if len(index.pairs)
                else Accuracy(accuracy=None, accuracy_ci95=None, accuracy_ci95_method=None)
            )
            entries[event["step"]] = HistoryEntry(
                step=event["step"],
                epoch=event["epoch"],
                training_loss=training_loss,
                validation_loss=event["eval_loss"],
                accuracy=measured.accuracy,
                accuracy_ci95=measured.accuracy_ci95,
                accuracy_ci95_method=measured.accuracy_ci95_method,
                mae=event.get("eval_mae"),
            )
    return list(entries.values())


def _accuracy_at(event: Mapping[str, Any], folder: Path, index: PairIndex) -> Accuracy:
    step = event["step"]
    try:
        return pairwise.measured_accuracy(_read_deltas(folder, step, index), index.pairs.group_P)
    except DataError as error:
        logger.warning("%s: the accuracy at step %s has no confidence interval.", error, step)
        return Accuracy(
            accuracy=event["eval_accuracy"], accuracy_ci95=None, accuracy_ci95_method=None
        )


def probed_role(run: PreparedRun) -> str:
    """Which data good responses are perturbed of: the test set where there is one."""
    return "test" if run.corpus.test else "eval"


def probe_run(run: PreparedRun, trainer: RewardTrainer, run_tokens: int) -> Probed | None:
    """Perturbation tests on held-out data; None where they are off, or nothing is held out.

    They cost at most the recipe's share of ``run_tokens``, the tokens that training computed. Every
    rank must call it: scoring communicates.
    """
    sets = run.corpus.test or run.corpus.evaluation
    most = run.recipe.evaluate.perturbation_tests
    if not most or not sets:
        return None
    held_out = chain.from_iterable(part.comparisons for part in sets.values())
    encoding = partial(encode, run.encoder)

    def score(trees: Sequence[TokenTree]) -> list[Scores]:
        return [
            Scores.of(outputs_KO, trainer.rewards(outputs_KO), trainer.outputs)
            for outputs_KO in trainer.score_outputs(trees)
        ]

    return probe(
        held_out,
        encoding,
        score,
        most=most,
        seed=run.recipe.data.seed,
        packed=run.built.model.layout == "packed",
        budget=Budget(share=run.recipe.evaluate.perturbation_share, run_tokens=run_tokens),
    )
