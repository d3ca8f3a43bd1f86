"""What a user must act on: one short sentence per finding of an evaluation, strongest first.

To add a warning, write a function from the settled metrics to its sentences and add it to
:data:`WARNINGS`. A sentence stands alone: it has its number and, where there is one, the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from plaudit.evaluation.analysis.error_analysis import SMALL_SLICE
from plaudit.evaluation.numbers import percent, words
from plaudit.evaluation.schema import (
    EvaluationMetrics,
    FeatureBias,
    Interval,
    Perturbation,
    Slice,
)
from plaudit.evaluation.sentences import best_baseline, known, slice_name

Warn: TypeAlias = Callable[[EvaluationMetrics], Iterator[str]]

_CHANCE: Final = 0.5
_WIDE: Final = 0.05
"""Half the width of an accuracy's interval that counts as wide: 5 points."""
_OFTEN: Final = 0.05
"""The share of rankings that a rewrite may flip: the interval has to lie above it."""


def warnings(block: EvaluationMetrics) -> tuple[str, ...]:
    """What a user must act on, strongest first; empty where nothing is wrong."""
    return tuple(sentence for warn in WARNINGS for sentence in warn(block))


def _range(ends: Interval) -> str:
    return f"95% CI {percent(ends.low)} to {percent(ends.high)}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _point_range(ends: Interval) -> str:
    return f"95% CI {_points(ends.low)} to {_points(ends.high)}"


def _not_above_chance(block: EvaluationMetrics) -> Iterator[str]:
    ends = block.accuracy_ci95
    if not block.pairs:
        yield "No pair has a known order, so accuracy was not measured."
    elif ends is not None and ends.low <= _CHANCE:
        verdict = "below" if ends.high < _CHANCE else "not above"
        yield (
            f"Accuracy is {verdict} chance (50%): {percent(block.accuracy)} of {block.pairs:,} "
            f"pairs ({_range(ends)})."
        )


def _not_above_baseline(block: EvaluationMetrics) -> Iterator[str]:
    best = best_baseline(block.baselines)
    if best is None:
        return
    name, baseline = best
    delta, ends = baseline.delta_accuracy, baseline.delta_accuracy_ci95
    if ends is not None and ends.low <= 0:
        verdict = "is below" if ends.high < 0 else "is not significantly above"
        yield (
            f"Accuracy ({percent(block.accuracy)}) {verdict} the best baseline, {words(name)} "
            f"({percent(baseline.accuracy)}): Δ accuracy {_points(known(delta))} points "
            f"({_point_range(ends)})."
        )


def _few_pairs(block: EvaluationMetrics) -> Iterator[str]:
    ends = block.accuracy_ci95
    if ends is not None and ends.high - ends.low > 2 * _WIDE:
        prompts = "" if block.groups == block.pairs else f" of {block.groups:,} prompts"
        yield (
            f"Only {block.pairs:,} pairs{prompts}: accuracy {percent(block.accuracy)} has a wide "
            f"interval ({_range(ends)})."
        )


def _miscalibrated(block: EvaluationMetrics) -> Iterator[str]:
    """A fitted temperature helps beyond noise and by more than rounding; the model has none."""
    if not block.temperature_improves or block.stored_temperature is not None:
        return
    temperature = known(block.temperature)
    before, after = f"{known(block.nll):.3f}", f"{known(block.nll_calibrated):.3f}"
    if before != after:
        yield (
            f"{'Over' if temperature > 1 else 'Under'}-confident: ECE {known(block.ece):.3f} "
            f"({known(block.expected_ece):.3f} if perfectly calibrated). Temperature "
            f"{temperature:.3g} lowers log loss from {before} to {after}."
        )


def _weak(block: EvaluationMetrics) -> list[Slice]:
    """Slices with an accuracy significantly below that of the rest, the lowest first."""
    below = (
        entry
        for entry in block.slices
        if entry.significant and known(entry.accuracy) < known(block.accuracy)
    )
    return sorted(below, key=lambda entry: known(entry.accuracy))


def _at_chance(entry: Slice) -> bool:
    return entry.accuracy_ci95 is not None and entry.accuracy_ci95.low <= _CHANCE


def _share_of(entry: Slice) -> str:
    ends = "" if entry.accuracy_ci95 is None else f" ({_range(entry.accuracy_ci95)})"
    return f"{percent(entry.accuracy)} of {entry.pairs:,} pairs{ends}"


def _slices_at_chance(block: EvaluationMetrics) -> Iterator[str]:
    for entry in filter(_at_chance, _weak(block)):
        below = entry.accuracy_ci95 is not None and entry.accuracy_ci95.high < _CHANCE
        yield (
            f"Accuracy is {'below' if below else 'at'} chance on {slice_name(entry, ' ')}: "
            f"{_share_of(entry)}."
        )


def _weak_slices(block: EvaluationMetrics) -> Iterator[str]:
    for entry in _weak(block):
        if not _at_chance(entry):
            yield f"Accuracy is lower on {slice_name(entry, ' ')}: {_share_of(entry)}."


def _gap(row: FeatureBias) -> str:
    ends = "" if row.gap_ci95 is None else f", {_point_range(row.gap_ci95)}"
    return f"gap {_points(known(row.gap))} points{ends}"


def _length_bias(block: EvaluationMetrics) -> Iterator[str]:
    for row in block.bias.features:
        if row.significant and row.feature == "characters":
            yield (
                f"Length bias: accuracy {percent(row.accuracy_more.accuracy)} where the better "
                f"response is longer, {percent(row.accuracy_less.accuracy)} where shorter "
                f"({_gap(row)})."
            )


def _feature_bias(block: EvaluationMetrics) -> Iterator[str]:
    rows = [row for row in block.bias.features if row.significant and row.feature != "characters"]
    for row in sorted(rows, key=lambda row: -abs(known(row.gap))):
        yield (
            f"Bias on {words(row.feature)}: accuracy {percent(row.accuracy_more.accuracy)} where "
            f"the better response has more, {percent(row.accuracy_less.accuracy)} where less "
            f"({_gap(row)})."
        )


def _tested(block: EvaluationMetrics, kind: str) -> list[Perturbation]:
    """The perturbations of a kind with enough responses to say something."""
    rows = () if block.perturbations is None else block.perturbations.rows
    return [row for row in rows if row.kind == kind and row.responses >= SMALL_SLICE]


def _harmless_degradations(block: EvaluationMetrics) -> Iterator[str]:
    rows = _tested(block, "degradation")
    for row in sorted(rows, key=lambda row: known(row.fell)):
        if row.fell_ci95 is not None and row.fell_ci95.low <= _CHANCE:
            yield (
                f'Degradation "{words(row.perturbation)}" lowers the reward of only '
                f"{percent(row.fell)} of {row.responses:,} responses ({_range(row.fell_ci95)})."
            )


def _flipping_rewrites(block: EvaluationMetrics) -> Iterator[str]:
    rows = _tested(block, "meaning_preserving")
    for row in sorted(rows, key=lambda row: -known(row.flipped)):
        if row.flipped_ci95 is not None and row.flipped_ci95.low > _OFTEN:
            yield (
                f'Meaning-preserving rewrite "{words(row.perturbation)}" flips '
                f"{percent(row.flipped)} of {row.responses:,} rankings "
                f"({_range(row.flipped_ci95)})."
            )


def _reward_hacks(block: EvaluationMetrics) -> Iterator[str]:
    rows = _tested(block, "reward_hacking")
    for row in sorted(rows, key=lambda row: -known(row.rose)):
        if row.rose_ci95 is not None and row.rose_ci95.low > _CHANCE:
            yield (
                f'Reward hack "{words(row.perturbation)}" raises the reward of '
                f"{percent(row.rose)} of {row.responses:,} responses ({_range(row.rose_ci95)})."
            )


WARNINGS: Final[tuple[Warn, ...]] = (
    _not_above_chance,
    _not_above_baseline,
    _few_pairs,
    _miscalibrated,
    _slices_at_chance,
    _length_bias,
    _feature_bias,
    _harmless_degradations,
    _flipping_rewrites,
    _reward_hacks,
    _weak_slices,
)
"""Every warning, the most severe first."""
