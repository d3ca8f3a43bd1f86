"""Measured facts of one evaluation, as they stand in ``pairwise.json``.

Everything that a card, a report or a plot shows is computed here, so that those only have to read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plaudit.evaluation.analysis.baselines import baseline_facts
from plaudit.evaluation.analysis.bias import bias_facts
from plaudit.evaluation.analysis.mistakes import mistake_facts
from plaudit.evaluation.analysis.perturbations import Probed, behaviour_facts, behaviour_notes
from plaudit.evaluation.analysis.slices import quality, slice_facts
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.calibration import Calibration, cross_fit, cross_fit_isotonic
from plaudit.evaluation.metrics.ranks import graded_facts, rank_facts
from plaudit.evaluation.sentences import answers
from plaudit.evaluation.table import CodeArray, Pairs, ScoreTable, pairs
from plaudit.types import FloatArray

_HISTOGRAM_BINS = 40
_LENGTH_BINS_PER_SIDE = 4


def json_safe(value: Any) -> Any:
    """Plain JSON values: numpy scalars unpacked, tuples to lists, nan and infinities to null.

    Lone surrogates, which JSON input may hold and UTF-8 files cannot, become question marks.
    """
    if isinstance(value, Mapping):
        return {json_safe(str(key)): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [json_safe(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
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
    baselines: Mapping[str, FloatArray | None],
    baselines_fitted_on: int = 0,
    behaviour: Probed | str | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    calibrate: bool = True,
    stored_temperature: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The block of one evaluation (``eval`` or ``test``) of ``pairwise.json``; JSON-safe.

    ``dataset`` names the kind of data and ``chose_checkpoint`` says whether it chose the
    checkpoint. ``baselines`` holds each baseline's ``delta_P`` on the pairs of the table,
    fitted on ``baselines_fitted_on`` training comparisons.
    ``behaviour`` are the scored perturbations, or a sentence that says why there are none.
    ``history`` is written where given. ``stored_temperature`` is the model's, fitted on other data
    (1 where it has none); None where the model gets it from these. Numbers that do not exist (no
    pairs, nothing to calibrate) are null. Raises ModelError when a reward is not finite.
    """
    paired = pairs(table)
    calibration = (
        cross_fit(paired.delta_P, paired.group_P, seed=seed)
        if calibrate
        else Calibration(temperature=None, delta_P=None, gain=None, folds=0, note=_SWITCHED_OFF)
    )
    spread = pairwise.spread(table.reward_N)
    judged = {
        name: baseline_facts(paired, delta_P, seed=seed) for name, delta_P in baselines.items()
    }
    block: dict[str, Any] = {
        "dataset": dataset,
        "chose_checkpoint": chose_checkpoint,
        **quality(paired, seed=seed),
        **_accuracy_intervals(paired, seed),
        **_bootstrapped(paired, seed),
        **_calibration_facts(
            paired,
            calibration,
            calibrate=calibrate,
            stored_temperature=stored_temperature,
            seed=seed,
        ),
        **_risk_facts(paired),
        "ranks": rank_facts(table, seed=seed),
        "graded": graded_facts(table, paired, seed=seed),
        "margin": pairwise.spread(paired.delta_P),
        "reward": _reward_facts(table, paired),
        "baselines": judged,
        "baselines_fitted_on": baselines_fitted_on,
        "baselines_sentence": _baselines_sentence(judged),
        "bias": bias_facts(table, paired, seed=seed),
        "behaviour": behaviour_facts(behaviour, reward_std=spread["std"])
        if isinstance(behaviour, Probed)
        else None,
        "perturbation_notes": _perturbation_notes(behaviour),
        "slices": slice_facts(table, paired),
        "datasets": _per_dataset(table, paired),
        "mistakes": mistake_facts(
            table, paired, temperature=stored_temperature or calibration.accepted
        ),
        "curves": _curves(table, paired, calibration),
    }
    if history is not None:
        block["history"] = [dict(entry) for entry in history]
    safe: dict[str, Any] = json_safe(block)
    safe["answers"] = answers(safe)
    safe["summary"] = [said for answer in safe["answers"] for said in answer["sentences"]]
    return safe


_SWITCHED_OFF = "switched off by evaluate.calibrate"


def _accuracy_intervals(paired: Pairs, seed: int) -> dict[str, Any]:
    """Both candidates for ``accuracy_ci95``, which is the one that people are shown."""
    right_P = (paired.delta_P > 0).astype(np.float64)
    interval = pairwise.share_interval(right_P, paired.group_P, seed=seed)
    return {
        "accuracy_wilson_ci95": interval.wilson,
        "accuracy_bootstrap_ci95": interval.bootstrap,
    }


def _perturbation_notes(behaviour: Probed | str | None) -> list[str]:
    if isinstance(behaviour, Probed):
        return list(behaviour_notes(behaviour))
    return [] if behaviour is None else [behaviour]


def _bootstrapped(paired: Pairs, seed: int) -> dict[str, Any]:
    """Intervals of means when whole prompts are drawn again, the same draws for all."""
    delta_P = paired.delta_P
    series = {
        "accuracy_half_ties": pairwise.pair_credits(delta_P),
        "loss": pairwise.bradley_terry_losses(delta_P, paired.margin_P),
        "nll": pairwise.bradley_terry_losses(delta_P),
        "brier": pairwise.brier_losses(delta_P),
    }
    intervals = pairwise.bootstrap_means(np.stack(list(series.values())), paired.group_P, seed=seed)
    return {
        f"{name}_bootstrap_ci95": interval for name, interval in zip(series, intervals, strict=True)
    }


def _calibration_facts(
    paired: Pairs,
    calibration: Calibration,
    *,
    calibrate: bool,
    stored_temperature: float | None,
    seed: int,
) -> dict[str, Any]:
    """Uncalibrated, at the stored temperature and calibrated on these pairs.

    ``calibrations`` holds the ways that differ side by side. The ``*_stored`` numbers are of the
    probabilities that the model gives out; where these pairs fitted the temperature, the honest
    ones are cross-fitted.
    """
    delta_P, calibrated_P = paired.delta_P, calibration.delta_P
    credit_P = pairwise.pair_credits(delta_P)
    confidence_P = pairwise.confidences(delta_P)
    stored, given_P = stored_temperature, delta_P
    if stored_temperature is not None:
        given_P = delta_P / stored_temperature
    elif calibration.accepted is not None and calibrated_P is not None:
        stored, given_P = calibration.accepted, calibrated_P
    raw = _difference_facts(delta_P)
    scaled = None if calibrated_P is None else _difference_facts(calibrated_P)
    given = _difference_facts(given_P)
    isotonic_P = (
        cross_fit_isotonic(confidence_P, credit_P, paired.group_P, seed=seed) if calibrate else None
    )
    honest_P = confidence_P if calibrated_P is None else pairwise.confidences(calibrated_P)
    gain = calibration.gain
    return {
        "ece": raw["ece"],
        "ece_equal_count": raw["ece_equal_count"],
        "brier": raw["brier"],
        "nll": raw["nll"],
        "stored_temperature": None if stored == 1.0 else stored,
        "stored_temperature_from": "these_data" if stored_temperature is None else "other_data",
        "ece_stored": given["ece"],
        "nll_stored": given["nll"],
        "temperature": calibration.temperature,
        "temperature_improves": calibration.accepted is not None,
        "calibration_gain": gain and gain.mean,
        "calibration_gain_ci95": gain and gain.interval,
        "ece_calibrated": scaled and scaled["ece"],
        "ece_equal_count_calibrated": scaled and scaled["ece_equal_count"],
        "ece_by_chance": pairwise.calibration_error_by_chance(honest_P, seed=seed),
        "nll_calibrated": scaled and scaled["nll"],
        "brier_calibrated": scaled and scaled["brier"],
        "calibration_folds": calibration.folds,
        "calibration_note": calibration.note,
        "calibrations": {
            "as_trained": raw,
            "stored": None if stored_temperature in (None, 1.0) else given,
            "temperature": scaled,
            "isotonic": None if isotonic_P is None else _probability_facts(isotonic_P, credit_P),
        },
    }


def _difference_facts(delta_P: FloatArray) -> dict[str, Any]:
    """Those of :func:`_probability_facts`, exact also where a confidence rounds to 1."""
    facts = _probability_facts(pairwise.confidences(delta_P), pairwise.pair_credits(delta_P))
    return {**facts, "nll": pairwise.nll(delta_P), "brier": pairwise.brier(delta_P)}


def _probability_facts(confidence_P: FloatArray, credit_P: FloatArray) -> dict[str, Any]:
    """Log loss and Brier score of the preferred answer (a tie is half right), and both ECEs."""
    from scipy.special import xlogy

    wrong_P = 1.0 - confidence_P
    with np.errstate(divide="ignore", invalid="ignore"):
        losses_P = -xlogy(credit_P, confidence_P) - xlogy(1.0 - credit_P, wrong_P)
    by_width = pairwise.reliability_equal_width(confidence_P, credit_P)
    by_count = pairwise.reliability_equal_count(confidence_P, credit_P)
    return {
        "nll": pairwise.mean(losses_P),
        "brier": pairwise.mean(credit_P * wrong_P**2 + (1.0 - credit_P) * confidence_P**2),
        "ece": pairwise.expected_calibration_error(by_width),
        "ece_equal_count": pairwise.expected_calibration_error(by_count),
    }


_COVERAGES = tuple(round(step / 20, 2) for step in range(1, 21))


def _risk(paired: Pairs) -> pairwise.RiskCoverage:
    credit_P = pairwise.pair_credits(paired.delta_P)
    # The size of the difference, not the confidence, which rounds to 1 far out.
    return pairwise.risk_coverage(np.abs(paired.delta_P), credit_P)


def _risk_facts(paired: Pairs) -> dict[str, Any]:
    """The area under risk by coverage, and its value for a perfect order of confidence."""
    errors_P = np.sort(1.0 - pairwise.pair_credits(paired.delta_P))
    best = np.cumsum(errors_P) / np.arange(1, len(errors_P) + 1)
    return {"aurc": _risk(paired).area, "aurc_best_possible": pairwise.mean(best)}


def _reward_facts(table: ScoreTable, paired: Pairs) -> dict[str, Any]:
    return {
        **pairwise.spread(table.reward_N),
        "chosen_mean": pairwise.mean(table.reward_N[paired.winner_P]),
        "rejected_mean": pairwise.mean(table.reward_N[paired.loser_P]),
    }


def _baselines_sentence(judged: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """The model against the best baseline on the same pairs, in words."""
    known = {name: facts for name, facts in judged.items() if facts is not None and facts["pairs"]}
    if not known:
        return None
    best = max(known, key=lambda name: known[name]["accuracy"])
    facts = known[best]
    unfitted = [name.replace("_", " ") for name, facts in judged.items() if facts is None]
    among = f" of those fitted ({', '.join(unfitted)} is not)" if unfitted else ""
    named = f"that of the best baseline{among}, {best.replace('_', ' ')} ({facts['accuracy']:.4f})"
    by = f"Δ accuracy {facts['difference']:+.4f} on the same pairs"
    if facts["difference_ci95"] is None:
        return (
            f"The model's accuracy beside {named}: {by}, without an interval for lack of prompts."
        )
    low, high = facts["difference_ci95"]
    by += f" (95% CI {low:+.4f} to {high:+.4f})"
    if low > 0:
        return f"The model's accuracy is above {named}: {by}."
    if high < 0:
        return f"The model's accuracy is below {named}: {by}."
    return f"The model's accuracy cannot be told from {named}: {by}."


def _per_dataset(table: ScoreTable, paired: Pairs) -> dict[str, Any]:
    """One block per named set where there are several."""
    dataset_P = table.dataset_N[paired.winner_P]
    names = list(dict.fromkeys(table.dataset_N))
    if len(names) < 2:
        return {}
    return {str(name): quality(paired.where(dataset_P == name)) for name in names}


def _curves(table: ScoreTable, paired: Pairs, calibration: Calibration) -> dict[str, Any]:
    """What the plots draw: histograms, accuracy by length difference, reliability."""
    chosen_P, rejected_P = table.reward_N[paired.winner_P], table.reward_N[paired.loser_P]
    length_P = table.characters_N[paired.winner_P] - table.characters_N[paired.loser_P]
    calibrated_P = calibration.delta_P
    return {
        "reward": _histogram({"chosen": chosen_P, "rejected": rejected_P}),
        "margin": _histogram({"pairs": paired.delta_P}),
        "length": _length_curve(length_P, paired),
        "reliability": _reliability_curve(paired.delta_P, paired.group_P),
        "reliability_calibrated": None
        if calibrated_P is None
        else _reliability_curve(calibrated_P, paired.group_P),
        "risk_coverage": _risk_curve(paired),
    }


def _risk_curve(paired: Pairs) -> list[dict[str, Any]]:
    """Accuracy among the most confident pairs, by the share of pairs that are answered."""
    if not len(paired):
        return []
    risk = _risk(paired)
    points = []
    for coverage in _COVERAGES:
        kept, wrong = risk.at(coverage)
        points.append(
            {
                "coverage": coverage,
                "pairs": kept,
                "risk": wrong,
                "risk_ci95": pairwise.share_interval(
                    risk.error_P[:kept], paired.group_P[risk.order_P[:kept]]
                ).shown,
            }
        )
    return points


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


def _length_curve(length_P: npt.NDArray[np.int64], paired: Pairs) -> list[dict[str, Any]]:
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
            **pairwise.accuracy_facts(paired.delta_P[part], paired.group_P[part]),
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


def _reliability_curve(delta_P: FloatArray, group_P: CodeArray) -> list[dict[str, Any]]:
    credit_P = pairwise.pair_credits(delta_P)
    curve = pairwise.reliability_equal_width(pairwise.confidences(delta_P), credit_P)
    columns = (curve.confidence_B, curve.accuracy_B, curve.pairs_B)
    return [
        {
            "confidence": confidence,
            "accuracy": accuracy,
            "accuracy_ci95": pairwise.share_interval(
                credit_P[curve.bin_P == number], group_P[curve.bin_P == number]
            ).shown,
            "pairs": count,
        }
        for number, (confidence, accuracy, count) in enumerate(zip(*columns, strict=True))
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
    best_losses_P = pairwise.bradley_terry_losses(best.delta_P, margin_P)
    last_losses_P = pairwise.bradley_terry_losses(last.delta_P, margin_P)
    rise = pairwise.paired_difference(best_losses_P, last_losses_P, group_P)
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
    best: Evaluated, last: Evaluated, rise: pairwise.PairedDifference, evaluations: int
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
    rise: pairwise.PairedDifference,
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
    change = pairwise.paired_difference(right_best_P, right_last_P, group_P)
    before, after = pairwise.accuracy(best.delta_P), pairwise.accuracy(last.delta_P)
    if change.interval is None or change.interval.low <= 0 <= change.interval.high:
        moved = "did not change beyond noise"
    else:
        moved = "rose" if change.mean > 0 else "fell"
    return f"{moved} ({before:.4f} to {after:.4f})"
