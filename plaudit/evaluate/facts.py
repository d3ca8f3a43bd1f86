"""Measured facts of one evaluation, as they stand in ``metrics.json``.

Everything that a card, a report or a plot shows is computed here, so that those only have to read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plaudit.evaluate import metrics
from plaudit.evaluate.calibrate import Calibration, cross_fit
from plaudit.evaluate.table import CodeArray, ObjectArray, Pairs, ScoreTable, codes, pairs
from plaudit.types import FloatArray

MAX_SLICE_VALUES = 30
"""A metadata column with more values than this is no slice."""

_HISTOGRAM_BINS = 40
_LENGTH_BINS_PER_SIDE = 4


def json_safe(value: Any) -> Any:
    """Plain JSON values: numpy scalars unpacked, tuples to lists, nan and infinities to null."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [json_safe(item) for item in value]
    if isinstance(value, np.generic):
        return json_safe(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def summarise(
    table: ScoreTable,
    *,
    dataset: str,
    chose_checkpoint: bool,
    baselines: Mapping[str, Mapping[str, Any] | None],
    history: Sequence[Mapping[str, Any]] | None = None,
    calibrate: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """The block of one evaluation (``eval`` or ``test``) of ``metrics.json``; JSON-safe.

    ``dataset`` names the kind of data and ``chose_checkpoint`` says whether it chose the
    checkpoint. ``history`` is written where given. Numbers that do not exist (no pairs, nothing
    to calibrate) are null. Raises ModelError when a reward is not finite.
    """
    paired = pairs(table)
    calibration = (
        cross_fit(paired.delta_P, paired.group_P, seed=seed)
        if calibrate
        else Calibration(temperature=None, delta_P=None, folds=0, note="not asked for")
    )
    block: dict[str, Any] = {
        "dataset": dataset,
        "chose_checkpoint": chose_checkpoint,
        **_quality(paired),
        "accuracy_bootstrap_ci95": _bootstrapped_accuracy(paired, seed),
        **_calibration_facts(paired, calibration),
        "margin": metrics.spread(paired.delta_P),
        "reward": _reward_facts(table, paired),
        "baselines": dict(baselines),
        "baselines_sentence": _baselines_sentence(paired, baselines),
        "slices": list(_slices(table, paired)),
        "datasets": _per_dataset(table, paired),
        "curves": _curves(table, paired, calibration),
    }
    if history is not None:
        block["history"] = [dict(entry) for entry in history]
    safe: dict[str, Any] = json_safe(block)
    return safe


def _quality(paired: Pairs) -> dict[str, Any]:
    return {
        "loss": metrics.bradley_terry_loss(paired.delta_P, paired.margin_P),
        "accuracy": metrics.accuracy(paired.delta_P),
        "accuracy_ci95": metrics.accuracy_interval(paired.delta_P),
        "accuracy_half_ties": metrics.accuracy_half_ties(paired.delta_P),
        "ties": metrics.ties(paired.delta_P),
        "pairs": len(paired),
        "groups": len(np.unique(paired.group_P)),
    }


def _bootstrapped_accuracy(paired: Pairs, seed: int) -> metrics.Interval | None:
    right_P = paired.delta_P > 0
    return metrics.group_bootstrap(
        lambda drawn: float(right_P[drawn].mean()), paired.group_P, seed=seed
    )


def _ece(delta_P: FloatArray) -> float:
    return metrics.expected_calibration_error(metrics.reliability_equal_width(delta_P))


def _calibration_facts(paired: Pairs, calibration: Calibration) -> dict[str, Any]:
    calibrated_P = calibration.delta_P
    by_count = metrics.reliability_equal_count(paired.delta_P)
    return {
        "ece": _ece(paired.delta_P),
        "ece_equal_count": metrics.expected_calibration_error(by_count),
        "brier": metrics.brier(paired.delta_P),
        "nll": metrics.nll(paired.delta_P),
        "temperature": calibration.temperature,
        "ece_calibrated": None if calibrated_P is None else _ece(calibrated_P),
        "nll_calibrated": None if calibrated_P is None else metrics.nll(calibrated_P),
        "calibration_folds": calibration.folds,
        "calibration_note": calibration.note,
    }


def _reward_facts(table: ScoreTable, paired: Pairs) -> dict[str, Any]:
    return {
        **metrics.spread(table.reward_N),
        "chosen_mean": metrics.spread(table.reward_N[paired.winner_P])["mean"],
        "rejected_mean": metrics.spread(table.reward_N[paired.loser_P])["mean"],
    }


def _baselines_sentence(
    paired: Pairs, baselines: Mapping[str, Mapping[str, Any] | None]
) -> str | None:
    """The model's accuracy and interval against the best baseline, in words."""
    known = {
        name: facts["accuracy"]
        for name, facts in baselines.items()
        if facts is not None and facts["pairs"]
    }
    interval = metrics.accuracy_interval(paired.delta_P)
    if not known or interval is None:
        return None
    best = max(known, key=lambda name: known[name])
    named = f"the best baseline, {best.replace('_', ' ')} ({known[best]:.4f})"
    if interval.low > known[best]:
        return f"The model's accuracy is above {named}, by more than its own interval."
    if interval.high < known[best]:
        return f"The model's accuracy is below {named}: it is of no use on these data."
    return f"The model's accuracy cannot be told from {named}: it lies inside the interval."


def _slices(table: ScoreTable, paired: Pairs) -> Iterator[dict[str, Any]]:
    """By source always; by each metadata column of 2 to 30 values, two pairs a value or more."""
    yield from _column_slices("source", table.source_N, paired)
    for name in sorted(table.metadata):
        column_N = table.metadata[name]
        values = len(np.unique(codes([_label(v) for v in column_N[paired.winner_P]])))
        if 2 <= values <= min(MAX_SLICE_VALUES, len(paired) // 2):
            yield from _column_slices(
                f"metadata.{name}" if name == "source" else name, column_N, paired
            )


def _label(value: Any) -> str | None:
    return None if value is None else str(value)


def _column_slices(column: str, column_N: ObjectArray, paired: Pairs) -> Iterator[dict[str, Any]]:
    """Largest slice first, equal ones by name; the value is null where rows have none."""
    labels = [_label(value) for value in column_N[paired.winner_P]]
    code_P = codes(labels)
    label_of = dict(zip(code_P.tolist(), labels, strict=True))
    sizes = np.bincount(code_P)
    for code in sorted(label_of, key=lambda code: (-sizes[code], label_of[code] or "")):
        inside = paired.where(code_P == code)
        yield {"column": column, "value": label_of[code], **_quality(inside)}


def _per_dataset(table: ScoreTable, paired: Pairs) -> dict[str, Any]:
    """One block per named set where there are several."""
    dataset_P = table.dataset_N[paired.winner_P]
    names = list(dict.fromkeys(table.dataset_N))
    if len(names) < 2:
        return {}
    return {str(name): _quality(paired.where(dataset_P == name)) for name in names}


def _curves(table: ScoreTable, paired: Pairs, calibration: Calibration) -> dict[str, Any]:
    """What the plots draw: histograms, accuracy by length difference, reliability."""
    chosen_P, rejected_P = table.reward_N[paired.winner_P], table.reward_N[paired.loser_P]
    length_P = table.characters_N[paired.winner_P] - table.characters_N[paired.loser_P]
    calibrated_P = calibration.delta_P
    return {
        "reward": _histogram({"chosen": chosen_P, "rejected": rejected_P}),
        "margin": _histogram({"pairs": paired.delta_P}),
        "length": _length_curve(length_P, paired.delta_P),
        "reliability": _reliability_curve(paired.delta_P),
        "reliability_calibrated": None
        if calibrated_P is None
        else _reliability_curve(calibrated_P),
    }


def _histogram(series: Mapping[str, FloatArray]) -> dict[str, Any] | None:
    """Counts of each series over common edges; ``None`` without values."""
    together = np.concatenate(list(series.values()))
    if not len(together):
        return None
    low, high = float(together.min()), float(together.max())
    # Around a constant, numpy needs room that floating point can express.
    room = max(abs(low), abs(high), 1.0) * 1e-6
    width = max(high - low, room) / _HISTOGRAM_BINS
    # Zero is an edge, so that no bin of margins mixes right answers with wrong ones.
    edges = width * np.arange(math.floor(low / width), math.floor(high / width) + 2)
    counts = {name: np.histogram(values, edges)[0] for name, values in series.items()}
    return {"edges": edges, **counts}


def _length_curve(length_P: npt.NDArray[np.int64], delta_P: FloatArray) -> list[dict[str, Any]]:
    """Accuracy by characters of the chosen response less those of the rejected one.

    Bins of about equal counts on either side of zero; equal lengths are a bin of their own.
    """
    order_P = np.argsort(length_P, kind="stable")
    shorter, equal, longer = (
        order_P[mask[order_P]] for mask in (length_P < 0, length_P == 0, length_P > 0)
    )
    parts = [*_split(shorter, length_P), equal, *_split(longer, length_P)]
    return [
        {
            "low": length_P[part].min(),
            "high": length_P[part].max(),
            "pairs": len(part),
            "accuracy": metrics.accuracy(delta_P[part]),
            "accuracy_ci95": metrics.accuracy_interval(delta_P[part]),
        }
        for part in parts
        if len(part)
    ]


def _split(sorted_P: CodeArray, length_P: npt.NDArray[np.int64]) -> list[CodeArray]:
    """Cut pairs sorted by length into bins; equal lengths stay together."""
    if not len(sorted_P):
        return []
    length = length_P[sorted_P]
    cuts = [
        len(sorted_P) * number // _LENGTH_BINS_PER_SIDE
        for number in range(1, _LENGTH_BINS_PER_SIDE)
    ]
    starts = np.unique([np.searchsorted(length, length[cut]) for cut in cuts])
    return np.split(sorted_P, starts)


def _reliability_curve(delta_P: FloatArray) -> list[dict[str, Any]]:
    curve = metrics.reliability_equal_width(delta_P)
    columns = (curve.confidence_B, curve.accuracy_B, curve.pairs_B)
    return [
        {
            "confidence": confidence,
            "accuracy": accuracy,
            "accuracy_ci95": metrics.wilson(accuracy * count, int(count)),
            "pairs": count,
        }
        for confidence, accuracy, count in zip(*columns, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One evaluation during training: reward differences of the same pairs, in the same order."""

    step: int
    delta_P: FloatArray


def judge_overfit(
    best: Evaluated,
    last: Evaluated,
    *,
    kept_step: int,
    margin_P: FloatArray,
    group_P: CodeArray,
    evaluations: int,
) -> dict[str, Any]:
    """The ``overfit`` block: did validation loss rise after its lowest point, beyond noise?

    ``best`` is the evaluation with the lowest validation loss, whichever step was kept. Pair by
    pair, the loss at the last evaluation less that at the best one, with an interval by prompt
    group. The best was chosen because its loss on these pairs was low, which favours a rise
    slightly; the interval does not correct for that. JSON-safe.
    """
    best_losses_P = metrics.bradley_terry_losses(best.delta_P, margin_P)
    last_losses_P = metrics.bradley_terry_losses(last.delta_P, margin_P)
    rise = metrics.paired_difference(best_losses_P, last_losses_P, group_P)
    verdict = _verdict(best, last, rise, evaluations)
    if verdict == "single_evaluation":
        sentence = "There was only one evaluation, so overfitting cannot be judged."
    elif best.step == last.step:
        sentence = "No overfitting seen: the last evaluation was the best."
    else:
        loss = _loss_movement(best.step, last.step, kept_step, float(best_losses_P.mean()), rise)
        accuracy = _accuracy_movement(best, last, group_P)
        sentence = f"{_OPENINGS[verdict]}: {loss}; accuracy {accuracy}."
    block: dict[str, Any] = json_safe(
        {
            "verdict": verdict,
            "best_step": best.step,
            "last_step": last.step,
            "loss_rise": rise.mean,
            "loss_rise_ci95": rise.interval,
            "sentence": sentence,
        }
    )
    return block


_OPENINGS = {
    "overfit": "Overfit",
    "no_overfit": "No overfitting seen",
    "within_noise": "No overfitting beyond noise",
}


def _verdict(
    best: Evaluated, last: Evaluated, rise: metrics.PairedDifference, evaluations: int
) -> str:
    if evaluations < 2:
        return "single_evaluation"
    if best.step == last.step:
        return "no_overfit"
    if rise.interval is None or rise.interval.low <= 0 <= rise.interval.high:
        return "within_noise"
    return "overfit" if rise.mean > 0 else "no_overfit"


def _loss_movement(
    best_step: int,
    last_step: int,
    kept_step: int,
    best_loss: float,
    rise: metrics.PairedDifference,
) -> str:
    moved = "rose" if rise.mean > 0 else "fell" if rise.mean < 0 else "stayed"
    interval = ""
    if rise.interval is not None:
        interval = f" [{rise.interval.low:.4f}, {rise.interval.high:.4f}]"
    best_is, last_is = (" (kept)" if step == kept_step else "" for step in (best_step, last_step))
    return (
        f"validation loss {moved} from {best_loss:.4f} at step {best_step}{best_is} to "
        f"{best_loss + rise.mean:.4f} at step {last_step}{last_is}, {rise.mean:+.4f}{interval}"
    )


def _accuracy_movement(best: Evaluated, last: Evaluated, group_P: CodeArray) -> str:
    right_best_P, right_last_P = (
        (evaluated.delta_P > 0).astype(np.float64) for evaluated in (best, last)
    )
    change = metrics.paired_difference(right_best_P, right_last_P, group_P)
    before, after = metrics.accuracy(best.delta_P), metrics.accuracy(last.delta_P)
    if change.interval is None or change.interval.low <= 0 <= change.interval.high:
        moved = "stood still"
    else:
        moved = "rose" if change.mean > 0 else "fell"
    return f"{moved} ({before:.4f} to {after:.4f})"
