"""What a user must act on: one short sentence per finding of an evaluation.

To add a warning, write a function from the settled metrics to its sentences and add it to
:data:`WARNINGS`. A sentence stands alone: it has its number and, where there is one, the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from plaudit.evaluation.analysis.error_analysis import SMALL_SLICE
from plaudit.evaluation.numbers import (
    counted,
    metric,
    percent,
    signed,
    signed_interval,
    words,
)
from plaudit.evaluation.schema import (
    EvaluationMetrics,
    FeatureBias,
    Interval,
    Perturbation,
    Slice,
)
from plaudit.evaluation.sentences import (
    best_baseline,
    in_parentheses,
    known,
    lower_slices,
    of_number,
    output_name,
    slice_name,
)

Warn: TypeAlias = Callable[[EvaluationMetrics], Iterator[str]]

_OVER: Final = "Over-confident"
_UNDER: Final = "Under-confident"
_CHANCE: Final = 0.5
_WIDE: Final = 0.05
"""Half the width of an accuracy's interval that counts as wide: 5 points."""
_OFTEN: Final = 0.05
"""The share of rankings that a rewrite may flip: the interval has to lie above it."""


def warnings(block: EvaluationMetrics) -> tuple[str, ...]:
    """What a user must act on: the strongest of each kind, then the others; none if all is well.

    Readers show the first few, which should not be two or three slices of the same kind.
    """
    kinds = [tuple(warn(block)) for warn in WARNINGS]
    others = (sentence for sentences in kinds for sentence in sentences[1:])
    return (*(sentences[0] for sentences in kinds if sentences), *others)


def recorded_warnings(block: EvaluationMetrics) -> tuple[str, ...]:
    """The warnings of a record; those of its numbers where it is older than warnings are."""
    return warnings(block) if block.warnings is None else block.warnings


def about_temperature(sentence: str) -> bool:
    """Whether a warning is that the model needs a temperature."""
    return sentence.startswith((_OVER, _UNDER))


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _point_range(ends: Interval) -> str:
    return f"95% CI {_points(ends.low)} to {_points(ends.high)}"


def _not_above_chance(block: EvaluationMetrics) -> Iterator[str]:
    ends = block.accuracy_ci95
    if not block.pairs:
        if block.has_pairs:
            yield "No pair has a known order, so accuracy was not measured."
    elif ends is not None and ends.low <= _CHANCE:
        yield (
            f"Accuracy is {_beside_chance(ends)} chance (50%): {percent(block.accuracy)} of "
            f"{counted(block.pairs, 'pair')}{in_parentheses(ends)}."
        )


def _not_above_constant(block: EvaluationMetrics) -> Iterator[str]:
    """Ratings that are expected no better than by one that is the same for all responses."""
    ratings = block.ratings
    if ratings is None:
        return
    if ratings.auc is not None:
        ends = ratings.auc_ci95
        if ends is not None and ends.low <= _CHANCE:
            yield (
                f"AUC is {_beside_chance(ends)} chance (0.5): {metric(ratings.auc)} over "
                f"{counted(ratings.responses, 'rated response')}{of_number(ends)}."
            )
        return
    ends = ratings.delta_mae_ci95
    if ends is not None and ends.high >= 0:
        verdict = "above" if ends.low > 0 else "not significantly below"
        yield (
            f"MAE {metric(ratings.mae)} is {verdict} that of the median rating "
            f"({metric(ratings.mae_of_median)}): Δ {signed(ratings.delta_mae, 3)} (95% CI "
            f"{signed_interval(ends, 3)})."
        )


def _unlike_ties(block: EvaluationMetrics) -> Iterator[str]:
    """More ties or fewer than the data have, and outcomes no better than their shares."""
    tied = block.tied
    if tied is None:
        return
    ends = tied.share_ci95
    if ends is not None and not ends.low <= tied.expected_share <= ends.high:
        verdict = "more" if tied.expected_share > tied.share else "fewer"
        yield (
            f"The model expects {verdict} ties than there are: {percent(tied.expected_share)} of "
            f"{counted(tied.pairs, 'pair')}, and {percent(tied.share)} are"
            f"{in_parentheses(ends)}."
        )
    ends = tied.log_loss_ci95
    if ends is not None and ends.high >= tied.log_loss_constant:
        yield (
            "Log loss with ties is not significantly below that of constant "
            f"shares ({metric(tied.log_loss_constant)}): {metric(tied.log_loss)}{of_number(ends)}."
        )


def _blind_outputs(block: EvaluationMetrics) -> Iterator[str]:
    """Outputs that do not rank by the labels of their name, or another one does so better."""
    for one in block.outputs:
        name, ends, apart = output_name(one.name), one.own.accuracy_ci95, one.delta_accuracy_ci95
        if ends is not None and ends.low <= _CHANCE:
            yield (
                f"Output {name} is {_beside_chance(ends)} chance by its own labels: "
                f"{percent(one.own.accuracy)} of {counted(one.own.pairs, 'pair')}"
                f"{in_parentheses(ends)}."
            )
        elif one.best_other is not None and apart is not None and apart.high < 0:
            yield (
                f"Output {output_name(one.best_other)} ranks by the labels of {name} better than "
                f"its own output does: Δ accuracy {_points(known(one.delta_accuracy))} points "
                f"({_point_range(apart)})."
            )


def _blind_spread(block: EvaluationMetrics) -> Iterator[str]:
    """Heads that do not disagree where they err, or that are surer than they are right."""
    found = block.uncertainty
    if found is None:
        return
    spread = found.of("spread")
    ends = spread.auroc_ci95
    if ends is not None and ends.low <= _CHANCE:
        yield (
            f"The AUROC of wrong pairs by the spread over heads is {_beside_chance(ends)} chance "
            f"(0.5): {metric(spread.auroc)}{of_number(ends)}."
        )
    for one in found.levels:
        ends = one.accuracy_ci95
        if ends is not None and ends.high < one.level:
            yield (
                f"The heads are surer than they are right: accuracy is {percent(one.accuracy)} of "
                f"{counted(one.pairs, 'pair')} that they are {one.level:.0%} sure of"
                f"{in_parentheses(ends)}."
            )
            return


def _beside_chance(ends: Interval) -> str:
    """Where an interval that does not lie above chance lies."""
    return "significantly below" if ends.high < _CHANCE else "not significantly above"


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
        prompts = "" if block.groups == block.pairs else f" of {counted(block.groups, 'prompt')}"
        yield (
            f"Only {counted(block.pairs, 'pair')}{prompts}: accuracy {percent(block.accuracy)} has "
            f"a wide interval{in_parentheses(ends)}."
        )


def _miscalibrated(block: EvaluationMetrics) -> Iterator[str]:
    """A fitted temperature helps beyond noise and by more than rounding; the model has none."""
    if not block.temperature_improves or block.stored_temperature is not None:
        return
    temperature = known(block.temperature)
    before, after = f"{known(block.nll):.3f}", f"{known(block.nll_calibrated):.3f}"
    if before != after:
        yield (
            f"{_OVER if temperature > 1 else _UNDER}: ECE {known(block.ece):.3f} "
            f"({known(block.expected_ece):.3f} if perfectly calibrated). Temperature "
            f"{temperature:.3g} lowers log loss from {before} to {after}."
        )


def _share_of(entry: Slice) -> str:
    return (
        f"{percent(entry.accuracy)} of {counted(entry.pairs, 'pair')}"
        f"{in_parentheses(entry.accuracy_ci95)}"
    )


def _slices_at_chance(block: EvaluationMetrics) -> Iterator[str]:
    for entry in lower_slices(block):
        ends = entry.accuracy_ci95
        if ends is not None and ends.low <= _CHANCE:
            yield (
                f"Accuracy on {slice_name(entry, ' ')} is {_beside_chance(ends)} chance: "
                f"{_share_of(entry)}."
            )


def _weak_slices(block: EvaluationMetrics) -> Iterator[str]:
    for entry in lower_slices(block):
        if entry.accuracy_ci95 is None or entry.accuracy_ci95.low > _CHANCE:
            yield (
                f"Accuracy on {slice_name(entry, ' ')} is significantly lower: {_share_of(entry)}."
            )


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
            verdict = "fewer" if row.fell_ci95.high < _CHANCE else "not significantly more"
            yield (
                f'Degradation "{words(row.perturbation)}" lowers the reward of '
                f"{percent(row.fell)} of {row.responses:,} responses, {verdict} than half"
                f"{in_parentheses(row.fell_ci95)}."
            )


def _flipping_rewrites(block: EvaluationMetrics) -> Iterator[str]:
    rows = [row for row in _tested(block, "meaning_preserving") if row.flipped is not None]
    for row in sorted(rows, key=lambda row: -known(row.flipped)):
        if row.flipped_ci95 is not None and row.flipped_ci95.low > _OFTEN:
            yield (
                f'Meaning-preserving rewrite "{words(row.perturbation)}" flips '
                f"{percent(row.flipped)} of {row.responses:,} rankings"
                f"{in_parentheses(row.flipped_ci95)}."
            )


def _reward_hacks(block: EvaluationMetrics) -> Iterator[str]:
    rows = _tested(block, "reward_hacking")
    for row in sorted(rows, key=lambda row: -known(row.rose)):
        if row.rose_ci95 is not None and row.rose_ci95.low > _CHANCE:
            yield (
                f'Reward hack "{words(row.perturbation)}" raises the reward of '
                f"{percent(row.rose)} of {row.responses:,} responses"
                f"{in_parentheses(row.rose_ci95)}."
            )


WARNINGS: Final[tuple[Warn, ...]] = (
    _not_above_chance,
    _not_above_constant,
    _not_above_baseline,
    _few_pairs,
    _miscalibrated,
    _blind_outputs,
    _blind_spread,
    _unlike_ties,
    _slices_at_chance,
    _length_bias,
    _feature_bias,
    _harmless_degradations,
    _flipping_rewrites,
    _reward_hacks,
    _weak_slices,
)
"""Every warning, the most severe first."""
