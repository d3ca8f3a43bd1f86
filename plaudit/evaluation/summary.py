"""All metrics of one evaluation, from its score table.

Everything that a card, a report or a plot shows is computed here, so that those only have to read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from plaudit.evaluation.analysis.error_analysis import find_mistakes, measure_pairs, measure_slices
from plaudit.evaluation.analysis.perturbations import Probed, perturbation_notes, summarise_tests
from plaudit.evaluation.analysis.surface import compare_baseline, measure_bias
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.calibration import (
    FittedTemperature,
    cross_fit,
    cross_fit_isotonic,
)
from plaudit.evaluation.metrics.outputs import measure_outputs
from plaudit.evaluation.metrics.ranks import correlate_strength, measure_ranks
from plaudit.evaluation.metrics.ratings import measure_ratings, rating_curve
from plaudit.evaluation.metrics.ties import measure_ties
from plaudit.evaluation.metrics.uncertainty import measure_uncertainty
from plaudit.evaluation.numbers import metric, signed, signed_interval, words
from plaudit.evaluation.schema import (
    BaselineMetrics,
    Calibration,
    Calibrations,
    Curves,
    EvaluationMetrics,
    HistoryEntry,
    LengthBin,
    MarginHistogram,
    Overfit,
    PairMetrics,
    Probabilities,
    ReliabilityBin,
    RewardHistogram,
    RewardSpread,
    Verdict,
    parts,
    settle,
)
from plaudit.evaluation.sentences import answers, best_baseline
from plaudit.evaluation.table import CodeArray, Pairs, ScoreTable, pairs
from plaudit.evaluation.warning_sentences import warnings
from plaudit.types import FloatArray, Outputs, TrainedObjective

_HISTOGRAM_BINS = 40
_LENGTH_BINS_PER_SIDE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationContext:
    """What is known of an evaluation beside its score table.

    ``dataset`` names the kind of data, and ``chose_checkpoint`` says whether it chose the
    checkpoint. ``baselines`` holds each baseline's ``delta_P`` on the pairs of the table, fitted on
    ``baselines_fitted_on`` training comparisons. ``perturbations`` are the scored perturbation
    tests, or a sentence that says why there are none. ``stored_temperature`` is the model's, fitted
    on other data (1 where it has none); None where the model gets it from these. ``objective`` is
    what the model was trained for; None where that is not known. ``outputs`` are those of its head,
    None for a head with one.
    """

    dataset: str
    chose_checkpoint: bool = False
    baselines: Mapping[str, FloatArray | None] = field(default_factory=dict)
    baselines_fitted_on: int = 0
    perturbations: Probed | str | None = None
    history: Sequence[HistoryEntry] | None = None
    calibrate: bool = True
    stored_temperature: float | None = None
    objective: TrainedObjective | None = None
    outputs: Outputs | None = None
    seed: int = 0


def summarise(table: ScoreTable, context: EvaluationContext) -> EvaluationMetrics:
    """The metrics of one evaluation; numbers that do not exist are None.

    Raises:
        ModelError: a reward is not finite.
    """
    seed, paired, objective = context.seed, pairs(table), context.objective
    outputs = context.outputs
    # A sum of named outputs is no expected rating; the mean of an ensemble is one.
    of_reward = objective if outputs is None or outputs.ensemble else None
    # As the training loss has it; a temperature changes no accuracy.
    tempered = paired.over(1.0 if objective is None else objective.temperature)
    calibration = (
        cross_fit(paired.delta_P, paired.group_P, seed=seed)
        if context.calibrate
        else FittedTemperature(note="switched off by evaluate.calibrate")
    )
    spread = pairwise.spread(table.reward_N)
    judged = {
        name: compare_baseline(paired, delta_P, seed=seed)
        for name, delta_P in context.baselines.items()
    }
    probed, tests = context.perturbations, None
    notes: tuple[str, ...] = ()
    temperature = context.stored_temperature or calibration.accepted
    if isinstance(probed, Probed):
        tests = summarise_tests(probed, reward_std=spread.std or 0.0)
        notes = tuple(perturbation_notes(probed))
    elif probed is not None:
        notes = (probed,)
    # Both candidates for accuracy_ci95, which is the one that people are shown.
    right_P = (paired.delta_P > 0).astype(np.float64)
    share = pairwise.share_interval(right_P, paired.group_P, seed=seed)
    credit_P = pairwise.pair_credits(paired.delta_P)
    # The same draws of whole prompts for all four.
    series = [
        credit_P,
        pairwise.bradley_terry_losses(tempered.delta_P, tempered.margin_P),
        pairwise.bradley_terry_losses(paired.delta_P),
        pairwise.brier_losses(paired.delta_P),
    ]
    half_ties, loss, nll, brier = pairwise.bootstrap_means(
        np.stack(series), paired.group_P, seed=seed
    )
    # The size of the difference, not the confidence, which rounds to 1 far out.
    risk = pairwise.risk_coverage(np.abs(paired.delta_P), credit_P)
    metrics = EvaluationMetrics(
        dataset=context.dataset,
        chose_checkpoint=context.chose_checkpoint,
        **parts(measure_pairs(tempered, seed=seed)),
        accuracy_wilson_ci95=share.wilson,
        accuracy_bootstrap_ci95=share.bootstrap,
        accuracy_half_ties_bootstrap_ci95=half_ties,
        loss_bootstrap_ci95=loss,
        nll_bootstrap_ci95=nll,
        brier_bootstrap_ci95=brier,
        **parts(_calibration(paired, calibration, context)),
        aurc=risk.area,
        # A perfect order of confidence: right pairs, ties, wrong ones.
        aurc_best_possible=pairwise.risk_coverage(credit_P, credit_P).area,
        ranks=measure_ranks(table, seed=seed),
        graded=correlate_strength(table, paired, seed=seed),
        margin=pairwise.spread(paired.delta_P),
        reward=RewardSpread(
            **parts(spread),
            chosen_mean=pairwise.mean(table.reward_N[paired.winner_P]),
            rejected_mean=pairwise.mean(table.reward_N[paired.loser_P]),
        ),
        baselines=judged,
        baselines_fitted_on=context.baselines_fitted_on,
        baselines_sentence=_baselines_sentence(judged),
        bias=measure_bias(table, paired, seed=seed),
        perturbations=tests,
        perturbation_notes=notes,
        slices=measure_slices(table, tempered),
        datasets=_per_dataset(table, tempered),
        mistakes=tuple(find_mistakes(table, paired, temperature=temperature)),
        curves=replace(
            _curves(table, paired, calibration, risk),
            ratings=rating_curve(table, of_reward, seed=seed),
        ),
        ratings=measure_ratings(table, of_reward, seed=seed),
        tied=measure_ties(table, of_reward, seed=seed),
        outputs=measure_outputs(table, outputs, objective, seed=seed),
        uncertainty=measure_uncertainty(table, outputs, objective, seed=seed),
        history=None if context.history is None else tuple(context.history),
    )
    # Sentences are made of the numbers as they are recorded.
    settled = settle(metrics)
    said = answers(settled)
    summary = tuple(sentence for answer in said for sentence in answer.sentences)
    return settle(replace(settled, answers=said, summary=summary, warnings=warnings(settled)))


def _calibration(
    paired: Pairs, calibration: FittedTemperature, context: EvaluationContext
) -> Calibration:
    """Uncalibrated, at the stored temperature and calibrated on these pairs.

    ``calibrations`` holds the ways that differ side by side. The ``*_stored`` numbers are of the
    probabilities that the model gives out; where these pairs fitted the temperature, the honest
    ones are cross-fitted.
    """
    delta_P, calibrated_P = paired.delta_P, calibration.delta_P
    seed, stored_temperature = context.seed, context.stored_temperature
    credit_P = pairwise.pair_credits(delta_P)
    confidence_P = pairwise.confidences(delta_P)
    of_loss = 1.0 if context.objective is None else context.objective.temperature
    stored, given_P = of_loss, delta_P / of_loss
    if stored_temperature is not None:
        stored = stored_temperature
        given_P = delta_P / stored_temperature
    elif calibration.accepted is not None and calibrated_P is not None:
        stored, given_P = calibration.accepted, calibrated_P
    raw = _of_differences(delta_P)
    scaled = None if calibrated_P is None else _of_differences(calibrated_P)
    given = _of_differences(given_P)
    isotonic_P = (
        cross_fit_isotonic(confidence_P, credit_P, paired.group_P, seed=seed)
        if context.calibrate
        else None
    )
    honest_P = confidence_P if calibrated_P is None else pairwise.confidences(calibrated_P)
    gain = calibration.gain
    return Calibration(
        **parts(raw),
        **{f"{name}_calibrated": getattr(scaled, name, None) for name in parts(raw)},
        stored_temperature=None if stored == 1.0 else stored,
        stored_temperature_from="these_data" if stored_temperature is None else "other_data",
        ece_stored=given.ece,
        nll_stored=given.nll,
        temperature=calibration.temperature,
        temperature_improves=calibration.accepted is not None,
        calibration_gain=None if gain is None else gain.mean,
        calibration_gain_ci95=None if gain is None else gain.interval,
        expected_ece=pairwise.calibration_error_by_chance(honest_P, seed=seed),
        calibration_folds=calibration.folds,
        calibration_note=calibration.note,
        calibrations=Calibrations(
            uncalibrated=raw,
            stored=None if stored_temperature in (None, 1.0) else given,
            temperature=scaled,
            isotonic=None if isotonic_P is None else _of_probabilities(isotonic_P, credit_P),
        ),
    )


def _of_differences(delta_P: FloatArray) -> Probabilities:
    """Those of :func:`_of_probabilities`, exact also where a confidence rounds to 1."""
    rounded = _of_probabilities(pairwise.confidences(delta_P), pairwise.pair_credits(delta_P))
    return replace(rounded, nll=pairwise.nll(delta_P), brier=pairwise.brier(delta_P))


def _of_probabilities(confidence_P: FloatArray, credit_P: FloatArray) -> Probabilities:
    """Log loss and Brier score of the preferred answer (a tie is half right), and both ECEs."""
    from scipy.special import xlogy

    wrong_P = 1.0 - confidence_P
    with np.errstate(divide="ignore", invalid="ignore"):
        losses_P = -xlogy(credit_P, confidence_P) - xlogy(1.0 - credit_P, wrong_P)
    by_width = pairwise.reliability_equal_width(confidence_P, credit_P)
    by_count = pairwise.reliability_equal_count(confidence_P, credit_P)
    return Probabilities(
        nll=pairwise.mean(losses_P),
        brier=pairwise.mean(credit_P * wrong_P**2 + (1.0 - credit_P) * confidence_P**2),
        ece=pairwise.expected_calibration_error(by_width),
        ece_equal_mass=pairwise.expected_calibration_error(by_count),
    )


def _baselines_sentence(judged: Mapping[str, BaselineMetrics | None]) -> str | None:
    """The model against the best baseline on the same pairs, in words."""
    found = best_baseline(judged)
    if found is None:
        return None
    best, one = found
    unfitted = [words(name) for name, baseline in judged.items() if baseline is None]
    among = f" of those fitted ({', '.join(unfitted)} is not)" if unfitted else ""
    named = f"that of the best baseline{among}, {words(best)} ({metric(one.accuracy)})"
    by = f"Δ accuracy {signed(one.delta_accuracy, 3)} on the same pairs"
    if one.delta_accuracy_ci95 is None:
        return (
            f"The model's accuracy beside {named}: {by}, without an interval for lack of prompts."
        )
    low, high = one.delta_accuracy_ci95
    verdict = "is above" if low > 0 else "is below" if high < 0 else "cannot be told from"
    interval = signed_interval(one.delta_accuracy_ci95, 3)
    return f"The model's accuracy {verdict} {named}: {by} (95% CI {interval})."


def _per_dataset(table: ScoreTable, paired: Pairs) -> dict[str, PairMetrics]:
    """One block per named set where there are several."""
    dataset_P = table.dataset_N[paired.winner_P]
    names = list(dict.fromkeys(table.dataset_N))
    if len(names) < 2:
        return {}
    return {str(name): measure_pairs(paired.where(dataset_P == name)) for name in names}


def _curves(
    table: ScoreTable,
    paired: Pairs,
    calibration: FittedTemperature,
    risk: pairwise.RiskCoverage,
) -> Curves:
    """What the plots draw: histograms, accuracy by length difference, reliability."""
    reward = margin = None
    if len(paired):
        edges, (chosen, rejected) = _histogram(
            table.reward_N[paired.winner_P], table.reward_N[paired.loser_P]
        )
        reward = RewardHistogram(edges=edges, chosen=chosen, rejected=rejected)
        edges, (counts,) = _histogram(paired.delta_P)
        margin = MarginHistogram(edges=edges, pairs=counts)
    length_P = table.characters_N[paired.winner_P] - table.characters_N[paired.loser_P]
    calibrated_P = calibration.delta_P
    return Curves(
        reward=reward,
        margin=margin,
        length=_length_curve(length_P, paired),
        reliability=_reliability_curve(paired.delta_P, paired.group_P),
        reliability_calibrated=None
        if calibrated_P is None
        else _reliability_curve(calibrated_P, paired.group_P),
        risk_coverage=pairwise.risk_curve(risk, paired.group_P),
    )


def _histogram(*series: FloatArray) -> tuple[tuple[float, ...], list[tuple[int, ...]]]:
    """Common edges of some values, and the counts of each series."""
    together = np.concatenate(series)
    low, high = float(together.min()), float(together.max())
    # Around a constant, numpy needs room that floating point can express.
    room = max(abs(low), abs(high), 1.0) * 1e-6
    width = max(high - low, room) / _HISTOGRAM_BINS
    # Zero is an edge, so that no bin of margins mixes right answers with wrong ones.
    edges = width * np.arange(math.floor(low / width), math.floor(high / width) + 2)
    counts = [tuple(np.histogram(values, edges)[0].tolist()) for values in series]
    return tuple(edges.tolist()), counts


def _length_curve(length_P: npt.NDArray[np.int64], paired: Pairs) -> tuple[LengthBin, ...]:
    """Accuracy by characters of the chosen response less those of the rejected one.

    Bins of about equal counts on either side of zero; equal lengths are a bin of their own.
    """
    order_P = np.argsort(length_P, kind="stable")
    shorter, equal, longer = (
        order_P[mask[order_P]] for mask in (length_P < 0, length_P == 0, length_P > 0)
    )
    bins = [*_split(shorter, length_P), equal, *_split(longer, length_P)]
    return tuple(
        LengthBin(
            low=int(length_P[part].min()),
            high=int(length_P[part].max()),
            **parts(pairwise.measured_accuracy(paired.delta_P[part], paired.group_P[part])),
        )
        for part in bins
        if len(part)
    )


def _split(sorted_P: CodeArray, length_P: npt.NDArray[np.int64]) -> list[CodeArray]:
    """Cut pairs sorted by length into bins; equal lengths stay together."""
    if not len(sorted_P):
        return []
    length = length_P[sorted_P]
    cuts = len(sorted_P) * np.arange(1, _LENGTH_BINS_PER_SIDE) // _LENGTH_BINS_PER_SIDE
    return np.split(sorted_P, np.unique(np.searchsorted(length, length[cuts])))


def _reliability_curve(delta_P: FloatArray, group_P: CodeArray) -> tuple[ReliabilityBin, ...]:
    credit_P = pairwise.pair_credits(delta_P)
    curve = pairwise.reliability_equal_width(pairwise.confidences(delta_P), credit_P)
    columns = (curve.confidence_B, curve.accuracy_B, curve.pairs_B)
    return tuple(
        ReliabilityBin(
            confidence=float(confidence),
            accuracy=float(accuracy),
            accuracy_ci95=pairwise.share_interval(
                credit_P[curve.bin_P == number], group_P[curve.bin_P == number]
            ).shown,
            pairs=int(count),
        )
        for number, (confidence, accuracy, count) in enumerate(zip(*columns, strict=True))
    )


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
) -> Overfit:
    """Did validation loss rise after its lowest point, beyond noise?

    ``best`` is the evaluation with the lowest validation loss, whichever step was kept. Pair by
    pair, the loss at the last evaluation less that at the best one, with an interval by prompt
    group. The best was chosen because its loss on these pairs was low, which favours a rise
    slightly; the interval does not correct for that. JSON-safe.
    """
    best_losses_P = pairwise.bradley_terry_losses(best.delta_P, margin_P)
    last_losses_P = pairwise.bradley_terry_losses(last.delta_P, margin_P)
    rise = pairwise.paired_difference(best_losses_P, last_losses_P, group_P)
    verdict: Verdict
    verdict, opening = _VERDICTS[rise.direction]
    if evaluations < 2:
        verdict = "single_evaluation"
        sentence = "There was only one evaluation, so overfitting cannot be judged."
    elif best.step == last.step:
        verdict = "no_overfit"
        sentence = "No overfitting seen: the last evaluation was the best."
    else:
        moved = "rose" if rise.mean > 0 else "fell" if rise.mean < 0 else "stayed"
        before = float(best_losses_P.mean())
        best_at, last_at = (
            f"step {one.step}{' (kept)' if one.step == kept_step else ''}" for one in (best, last)
        )
        ends = rise.interval
        interval = "" if ends is None else f" [{ends.low:.4f}, {ends.high:.4f}]"
        sentence = (
            f"{opening}: validation loss {moved} from {before:.4f} at {best_at} to "
            f"{before + rise.mean:.4f} at {last_at}, {rise.mean:+.4f}{interval}; accuracy "
            f"{_accuracy_movement(best, last, group_P)}."
        )
    return settle(
        Overfit(
            verdict=verdict,
            best_step=best.step,
            last_step=last.step,
            loss_rise=rise.mean,
            loss_rise_ci95=rise.interval,
            sentence=sentence,
        )
    )


_VERDICTS: Final[Mapping[int, tuple[Verdict, str]]] = {
    1: ("overfit", "Overfit"),
    0: ("within_noise", "No overfitting beyond noise"),
    -1: ("no_overfit", "No overfitting seen"),
}
"""What a rise of the loss, none beyond noise and a fall mean, and the words for it."""


def _accuracy_movement(best: Evaluated, last: Evaluated, group_P: CodeArray) -> str:
    right_best_P, right_last_P = (
        (evaluated.delta_P > 0).astype(np.float64) for evaluated in (best, last)
    )
    change = pairwise.paired_difference(right_best_P, right_last_P, group_P)
    before, after = pairwise.accuracy(best.delta_P), pairwise.accuracy(last.delta_P)
    moved = {0: "did not change beyond noise", 1: "rose", -1: "fell"}[change.direction]
    return f"{moved} ({metric(before)} to {metric(after)})"
