"""What an evaluation found, in plain sentences: what it is good for, how sure, what to watch.

The sentences are recorded as the numbers are: written once into ``metrics.json``, and only read by
the card, the report and the terminal. A sentence about a table uses every row that the table shows,
or names the rows that are too small to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal, TypeAlias

from plaudit.errors import printable
from plaudit.evaluation.analysis.error_analysis import SMALL_SLICE
from plaudit.evaluation.analysis.surface import FEWEST_PER_SIDE
from plaudit.evaluation.numbers import (
    counted,
    interval,
    metric,
    percent,
    signed,
    signed_interval,
    words,
)
from plaudit.evaluation.schema import (
    Answer,
    BaselineMetrics,
    EvaluationMetrics,
    Interval,
    Perturbation,
    Slice,
)

Part: TypeAlias = Callable[[EvaluationMetrics], Iterator[str]]

_WELL_CALIBRATED = 0.03
_ABOVE_CHANCE = 1.5
_MOST_NAMES = 5
_MOST_CHARACTERS = 40


def answers(block: EvaluationMetrics) -> tuple[Answer, ...]:
    """Plain sentences about one evaluation block by the question that they answer.

    Most important first; each sentence names its numbers, and a question without an answer is left
    out.
    """
    answered = (
        Answer(
            question=question,
            sentences=tuple(
                said
                for part in parts
                if block.accuracy is not None or part in _WITHOUT_PAIRS
                for said in part(block)
            ),
        )
        for question, parts in _QUESTIONS.items()
    )
    return tuple(answer for answer in answered if answer.sentences)


def known(number: float | None) -> float:
    """A number that exists wherever this is asked."""
    assert number is not None, "a number that does not exist is in no sentence"
    return number


def best_baseline(
    baselines: Mapping[str, BaselineMetrics | None],
) -> tuple[str, BaselineMetrics] | None:
    """The baseline with the highest accuracy, of those that were fitted and have pairs."""
    measured = ((name, one) for name, one in baselines.items() if one is not None and one.pairs)
    return max(measured, key=lambda item: item[1].accuracy or 0.0, default=None)


def lower_slices(block: EvaluationMetrics) -> list[Slice]:
    """Slices with an accuracy significantly below that of the other pairs, the lowest first."""
    below = (
        entry
        for entry in block.slices
        if entry.significant and known(entry.accuracy) < known(block.accuracy)
    )
    return sorted(below, key=lambda entry: known(entry.accuracy))


def in_parentheses(ends: Interval | None) -> str:
    """The interval of a share, to follow its number; nothing where there is none."""
    return "" if ends is None else f" (95% CI {percent(ends[0])} to {percent(ends[1])})"


def of_number(ends: Interval | None) -> str:
    """The interval of any other number, to follow it; nothing where there is none."""
    return "" if ends is None else f" (95% CI {interval(ends, 3)})"


def _no_pairs(block: EvaluationMetrics) -> Iterator[str]:
    if block.accuracy is None and block.has_pairs:
        yield "There is no pair with a known order, so nothing can be said of accuracy."


def _ratings(block: EvaluationMetrics) -> Iterator[str]:
    """How close expected ratings are, or how well labels 0 and 1 are told apart."""
    ratings = block.ratings
    if ratings is None:
        return
    responses = counted(ratings.responses, "rated response")
    if ratings.auc is not None:
        yield (
            f"A good response has a higher reward than a bad one with AUC {metric(ratings.auc)}"
            f"{of_number(ratings.auc_ci95)} over {responses}; chance is 0.5."
        )
        return
    yield (
        f"On {responses}, the mean absolute error of its expected rating is {metric(ratings.mae)}"
        f"{of_number(ratings.mae_ci95)}; that of the median rating is "
        f"{metric(ratings.mae_of_median)}."
    )
    if ratings.spearman is not None:
        yield (
            f"The Spearman correlation of reward and rating is {metric(ratings.spearman)}"
            f"{of_number(ratings.spearman_ci95)}."
        )


def _rating_calibration(block: EvaluationMetrics) -> Iterator[str]:
    """Whether expected ratings are too high or too low, and whether they spread too far."""
    ratings = block.ratings
    if ratings is None:
        return
    if ratings.log_loss is not None:
        yield (
            f"The probabilities of a good response have log loss {metric(ratings.log_loss)} and "
            f"ECE (equal-mass bins) {metric(ratings.ece_equal_mass)}."
        )
    ends = ratings.bias_ci95
    sure = ends is not None and (ends.low > 0 or ends.high < 0)
    verdict = f"are too {'high' if ratings.bias > 0 else 'low'}" if sure else "show no clear bias"
    line = ""
    if ratings.calibration_slope is not None:
        line = (
            f" The slope of given over expected ratings is {metric(ratings.calibration_slope)}; "
            "1 is calibrated, and below 1 expected ratings spread too far."
        )
    yield (
        f"Expected ratings {verdict}: expected − given is {signed(ratings.bias, 3)} on average"
        f"{'' if ends is None else f' (95% CI {signed_interval(ends, 3)})'}.{line}"
    )


def _ties(block: EvaluationMetrics) -> Iterator[str]:
    tied = block.tied
    if tied is not None:
        yield (
            f"{percent(tied.share)} of {counted(tied.pairs, 'pair')} are ties"
            f"{in_parentheses(tied.share_ci95)}; it expects {percent(tied.expected_share)}. The "
            f"log loss of better, worse and tie is {metric(tied.log_loss)}"
            f"{of_number(tied.log_loss_ci95)}; with the shares of these data as probabilities it "
            f"is {metric(tied.log_loss_constant)}."
        )


def output_name(name: str) -> str:
    """The name of an output, cut to a length that a sentence can hold."""
    return printable(name, _MOST_CHARACTERS)


def _outputs(block: EvaluationMetrics) -> Iterator[str]:
    """How well outputs rank by their own labels, and which of them another one ranks better by."""
    measured = [one for one in block.outputs if one.own.accuracy is not None]
    named = [
        f"{output_name(one.name)} {percent(one.own.accuracy)} of {one.own.pairs:,}"
        for one in measured
    ]
    if named:
        yield f"By the labels of their names, its outputs rank correctly: {_listed(named)} pairs."
    for one in measured:
        ends = one.delta_accuracy_ci95
        if one.best_other is not None and ends is not None and ends.low <= 0:
            verdict = "worse than" if ends.high < 0 else "no better beyond noise than"
            yield (
                f"By the labels of {output_name(one.name)}, its own output ranks {verdict} that of "
                f"{output_name(one.best_other)}: Δ accuracy {signed(one.delta_accuracy, 3)}"
                f" (95% CI {signed_interval(ends, 3)})."
            )
    missing = [output_name(one.name) for one in block.outputs if not one.responses]
    if missing:
        yield f"These data have no labels of {_listed(missing)}."


def _uncertainty(block: EvaluationMetrics) -> Iterator[str]:
    """Whether heads disagree where the ensemble errs, and how sure they are."""
    found = block.uncertainty
    if found is None:
        return
    spread, margin = found.of("spread"), found.of("margin")
    ends = spread.delta_auroc_ci95
    if spread.auroc is not None and ends is not None:
        verdict = "better" if ends.low > 0 else "worse" if ends.high < 0 else "no better"
        beyond = "" if ends.low > 0 or ends.high < 0 else " beyond noise"
        yield (
            f"The spread of the reward difference over {found.heads} heads finds wrong pairs with "
            f"AUROC {metric(spread.auroc)}{of_number(spread.auroc_ci95)}, {verdict}{beyond} than "
            f"the size of the difference alone ({metric(margin.auroc)}): Δ AUROC "
            f"{signed(spread.delta_auroc, 3)} (95% CI {signed_interval(ends, 3)})."
        )
    sure = [one for one in found.levels if one.level == 0.9 and one.pairs]
    for one in sure:
        yield (
            f"The heads are sure of the order with probability {one.level:g} or more in "
            f"{percent(one.share)} of pairs; accuracy on them is {percent(one.accuracy)}"
            f"{in_parentheses(one.accuracy_ci95)}."
        )
    for rated in found.ratings.levels if found.ratings is not None else ():
        if rated.level == 0.9:
            yield (
                f"The {percent(rated.level)} intervals of the heads contain "
                f"{percent(rated.coverage)} of the given ratings"
                f"{in_parentheses(rated.coverage_ci95)}; noise of the ratings is not in them."
            )


def _quality(block: EvaluationMetrics) -> Iterator[str]:
    yield (
        f"It ranks {percent(block.accuracy)} of {counted(block.pairs, 'pair')} correctly"
        f"{in_parentheses(block.accuracy_ci95)}; chance is 50%."
    )
    if block.ties:
        equal = (
            "1 pair has equal rewards and counts"
            if block.ties == 1
            else f"{block.ties:,} pairs have equal rewards and count"
        )
        yield (
            f"{equal} as wrong; with half a point each, accuracy is "
            f"{percent(block.accuracy_half_ties)}."
        )
    ranks = block.ranks
    if ranks is not None:
        yield (
            f"Of {counted(ranks.comparisons, 'comparison')} with more than two responses it puts "
            f"a best one first in {percent(ranks.top1)} (by chance "
            f"{percent(ranks.top1_by_chance)})."
        )
    if block.baselines_sentence is not None:
        yield block.baselines_sentence


def _calibration(block: EvaluationMetrics) -> Iterator[str]:
    """How far confidence is from accuracy, and what the temperatures do about it."""
    before, expected = known(block.ece), known(block.expected_ece)
    off = before > max(_WELL_CALIBRATED, _ABOVE_CHANCE * expected)
    if block.temperature_improves:
        over = known(block.temperature) > 1
        opening = f"Its rewards are {'over' if over else 'under'}-confident"
    elif off:
        opening = "Its confidence does not match its accuracy"
    else:
        opening = "Its confidence shows no clear fault"
    yield (
        f"{opening}: its ECE is {metric(before)} uncalibrated, and that of a perfectly calibrated "
        f"model is expected to be {metric(expected)} on this many pairs."
    )
    yield _stored(block)


def _stored(block: EvaluationMetrics) -> str:
    """Which temperature the model has, what it does on these pairs, and what a new fit would."""
    uncalibrated = f"log loss {block.nll:.4f} and ECE {metric(block.ece)} uncalibrated"
    stored = block.stored_temperature
    fitted_here = block.stored_temperature_from == "these_data"
    if stored is None:
        stored_with = "No temperature is stored with the model"
        has = stored_with if fitted_here else "The model has no temperature"
        beside = "" if block.temperature is None else f" ({uncalibrated})"
        return f"{has} (T = 1): {_refit(block)}{beside}."
    if fitted_here:
        return (
            f"The temperature {stored:.3g} is stored with the model: cross-fitted, it gives log "
            f"loss {block.nll_stored:.4f} and ECE {metric(block.ece_stored)} ({uncalibrated})."
        )
    return (
        f"The temperature {stored:.3g} that is stored with the model gives log loss "
        f"{block.nll_stored:.4f} and ECE {metric(block.ece_stored)} ({uncalibrated}); on these "
        f"pairs, {_refit(block)}."
    )


def _refit(block: EvaluationMetrics) -> str:
    """What a temperature fitted on these pairs does, cross-fitted; or why there is none."""
    if block.temperature is None:
        return f"none was fitted ({block.calibration_note})"
    verdict = "better" if block.temperature_improves else "not better"
    if block.stored_temperature is None and f"{block.temperature:.3g}" == "1":
        return "a fitted one is 1 as well"
    return (
        f"a fitted one ({block.temperature:.3g}) gives cross-fitted log loss "
        f"{block.nll_calibrated:.4f} and ECE {metric(block.ece_calibrated)}, which is {verdict} "
        "than T = 1 beyond noise"
    )


def _length(block: EvaluationMetrics) -> Iterator[str]:
    (row,) = (row for row in block.bias.features if row.feature == "characters")
    more, less = row.accuracy_more, row.accuracy_less
    if row.p is None:
        return
    if row.significant:
        opening = f"It is biased towards {'longer' if known(row.gap) > 0 else 'shorter'} responses"
    else:
        opening = "It shows no significant length bias"
    yield (
        f"{opening}: accuracy is {percent(more.accuracy)} where the better response is longer "
        f"and {percent(less.accuracy)} where it is shorter. It ranks the longer one higher in "
        f"{percent(row.model_prefers_more)} of pairs, the labels in "
        f"{percent(row.labels_prefer_more)}."
    )


def _features(block: EvaluationMetrics) -> Iterator[str]:
    for row in block.bias.features:
        if row.significant and row.feature != "characters":
            direction = "towards" if known(row.gap) > 0 else "against"
            yield (
                f"It is biased {direction} more {words(row.feature)}: accuracy is "
                f"{percent(row.accuracy_more.accuracy)} where the better response has more "
                f"and {percent(row.accuracy_less.accuracy)} where it has less. It ranks the "
                f"one with more higher in {percent(row.model_prefers_more)} of pairs that "
                f"differ, the labels in {percent(row.labels_prefer_more)}."
            )


def _perturbations(block: EvaluationMetrics) -> Iterator[str]:
    """One sentence a kind. Extremes are over all rows of the table, with their numbers of cases."""
    tests = block.perturbations
    if tests is None:
        return
    rows = {
        kind: [row for row in tests.rows if row.kind == kind and row.responses]
        for kind in tests.kinds
    }
    if rows["degradation"]:
        yield _degradation(rows["degradation"], tests.kinds["degradation"].fell)
    ranked = [row for row in rows["meaning_preserving"] if row.flipped is not None]
    if ranked:
        most = _highest(ranked, "flipped")
        yield (
            "A meaning-preserving rewrite flips the ranking of at most "
            f"{percent(most.flipped)} of comparisons ({words(most.perturbation)}, "
            f"n = {most.responses:,})."
        )
    if rows["reward_hacking"]:
        yield _reward_hacking(rows["reward_hacking"])
    spread = tests.kinds["degradation"].spread_rose
    if spread is not None:
        yield (
            "Degrading a good response raises its spread over heads in "
            f"{percent(spread)} of cases; chance is 50%."
        )


Rate: TypeAlias = Literal["fell", "rose", "flipped"]


def _rate(row: Perturbation, name: Rate) -> float:
    return known(getattr(row, name))


def _degradation(rows: Sequence[Perturbation], share: float | None) -> str:
    best = _highest(rows, "fell")
    worst = min(rows, key=lambda row: (_rate(row, "fell"), -row.responses))
    least = "" if best is worst else f", least often {_share(worst, 'fell')}"
    return (
        f"Degrading a good response lowers its reward in {percent(share)} of cases (chance is "
        f"50%): most often {_share(best, 'fell')}{least}."
    )


def _reward_hacking(rows: Sequence[Perturbation]) -> str:
    raising = [row for row in rows if _rate(row, "rose") > 0.5]
    if not raising:
        most = _highest(rows, "rose")
        return (
            "No reward hack that was tried raises the reward of more than half of the responses; "
            f"the most is {_share(most, 'rose')}."
        )
    listed = []
    for row in raising:
        sure = row.rose_ci95 is not None and row.rose_ci95.low > 0.5
        listed.append(_share(row, "rose", "" if sure else ", within noise of half"))
    return (
        f"Reward hacking: {len(raising)} of {len(rows)} hacks that were tried raise the reward of "
        f"more than half of the responses: {', '.join(listed)}."
    )


def _highest(rows: Sequence[Perturbation], name: Rate) -> Perturbation:
    """The row with the largest rate, of equal ones that of most responses."""
    return max(rows, key=lambda row: (_rate(row, name), row.responses))


def _share(row: Perturbation, name: Rate, remark: str = "") -> str:
    """A perturbation: its name, the rate and the number of responses."""
    rate = percent(_rate(row, name))
    return f"{words(row.perturbation)} ({rate} of {row.responses:,}{remark})"


def _slices(block: EvaluationMetrics) -> Iterator[str]:
    named = [
        f"{slice_name(entry)} ({percent(entry.accuracy)} of {entry.pairs:,})"
        for entry in lower_slices(block)
    ]
    if named:
        yield f"Its accuracy is significantly lower, after adjustment, in {_listed(named)}."


def _untested(block: EvaluationMetrics) -> Iterator[str]:
    """What the tables show and nothing can be said of; last, so that findings stand before it."""
    features = block.bias.features
    untested = [row for row in features if row.pairs and row.p is None]
    for row in untested:
        if row.feature == "characters":
            yield (
                "Length bias is not tested: the better response is longer in "
                f"{counted(row.accuracy_more.pairs, 'pair')} and shorter in "
                f"{row.accuracy_less.pairs:,}, and {FEWEST_PER_SIDE} of each are needed."
            )
    others = [words(row.feature) for row in untested if row.feature != "characters"]
    if others:
        yield (
            f"Not tested for bias, with fewer than {FEWEST_PER_SIDE} pairs either way: "
            f"{', '.join(others)}."
        )
    small = [f"{slice_name(entry)} ({entry.pairs:,})" for entry in block.slices if entry.small]
    if small:
        yield f"Not compared with the rest, with fewer than {SMALL_SLICE} pairs: {_listed(small)}."


def slice_name(entry: Slice, between: str = ": ") -> str:
    """The column of a slice and its value, cut to a length that a sentence can hold."""
    value = "(none)" if entry.value is None else str(entry.value)
    column = printable(words(entry.column), _MOST_CHARACTERS)
    return f"{column}{between}{printable(value, _MOST_CHARACTERS)}"


def _listed(names: Sequence[str]) -> str:
    """The first few, and how many more the table marks."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


_QUESTIONS: Final[Mapping[str, tuple[Part, ...]]] = {
    "What it is good for": (_no_pairs, _quality, _ratings, _outputs),
    "How sure it is": (_calibration, _rating_calibration, _ties, _uncertainty),
    "What to watch": (_length, _features, _perturbations, _slices, _untested),
}
"""The questions that a card answers, and what answers each."""

_WITHOUT_PAIRS: Final = (
    *(_no_pairs, _ratings, _outputs),
    *(_rating_calibration, _ties, _uncertainty),
    _perturbations,
)
"""What can be said where no pair has a known order."""
