"""The records of an evaluation, and ``metrics.json``, which is their serialised form.

Every metric returns one of these records; card, report, plots and terminal take them. A field is
called as its key in ``metrics.json``. A number that does not exist (no pairs, nothing to calibrate)
is None: :func:`settle` makes it so. Shares lie between 0 and 1, intervals are two-sided at 95%, and
those by prompt group draw whole prompts again.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from plaudit.data.load import SourceUse
from plaudit.data.unread import UnreadColumns
from plaudit.errors import DataError
from plaudit.storage.manifest import TRAINING_FILE
from plaudit.types import Outputs, Text

METRICS_FILE: Final = "metrics.json"
FORMAT: Final = 2
"""Version of ``metrics.json``; it changes with the meaning or the name of a key."""

Setting: TypeAlias = str | int | float | bool | None
"""A recorded setting of another library."""


class Interval(NamedTuple):
    """Both ends of a two-sided interval."""

    low: float
    high: float


# ---- sets of pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Share of pairs ranked correctly; a tie counts as wrong.

    ``accuracy_ci95_method`` names how the interval was made.
    """

    accuracy: float | None
    accuracy_ci95: Interval | None
    accuracy_ci95_method: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedAccuracy(Accuracy):
    """An accuracy, and the pairs that it is of."""

    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMetrics(CountedAccuracy):
    """The numbers of any set of pairs. ``loss`` is that of training, margins included."""

    loss: float | None
    accuracy_half_ties: float | None
    ties: int
    groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(PairMetrics):
    """Pairs with one value of a column, against all others.

    ``small`` slices are not tested. ``significant`` is ``p_adjusted`` (Benjamini and Hochberg)
    below 0.05.
    """

    column: str
    value: str | None
    small: bool
    p: float | None
    p_adjusted: float | None
    significant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean, standard deviation of the values, ends and percentiles."""

    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    p5: float | None
    p25: float | None
    p50: float | None
    p75: float | None
    p95: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpread(Spread):
    """Of all rewards, with the means of chosen and rejected responses."""

    chosen_mean: float | None
    rejected_mean: float | None


# ---- probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Probabilities:
    """Log loss, Brier score and ECE of the probability of the preferred response.

    ``ece`` has bins of equal width, ``ece_equal_mass`` bins of equal numbers of pairs.
    """

    nll: float | None
    brier: float | None
    ece: float | None
    ece_equal_mass: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrations:
    """The same pairs uncalibrated, at the stored temperature, and calibrated on themselves.

    ``temperature`` and ``isotonic`` are cross-fitted by prompt group.
    """

    uncalibrated: Probabilities
    stored: Probabilities | None
    temperature: Probabilities | None
    isotonic: Probabilities | None


# Without slots: two bases with slots cannot be joined.
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration in single numbers.

    ``temperature`` is fitted on these pairs; it ``improves`` the log loss by ``calibration_gain``
    beyond noise, or not. ``stored_temperature`` is the model's, None for 1. ``expected_ece`` is
    that of a perfectly calibrated model on this many pairs.
    """

    ece: float | None
    ece_equal_mass: float | None
    brier: float | None
    nll: float | None
    stored_temperature: float | None
    stored_temperature_from: Literal["these_data", "other_data"]
    ece_stored: float | None
    nll_stored: float | None
    temperature: float | None
    temperature_improves: bool
    calibration_gain: float | None
    calibration_gain_ci95: Interval | None
    ece_calibrated: float | None
    ece_equal_mass_calibrated: float | None
    expected_ece: float | None
    nll_calibrated: float | None
    brier_calibrated: float | None
    calibration_folds: int
    calibration_note: str | None
    calibrations: Calibrations


# ---- ranks and strengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """Pearson and Spearman coefficients, with intervals by prompt group."""

    pearson: float | None
    pearson_ci95: Interval | None
    spearman: float | None
    spearman_ci95: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StrengthCorrelation(Correlation):
    """Reward difference against the strength of the preference, by grades or by margins."""

    strength: str
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMetrics:
    """Means over comparisons of more than two responses."""

    comparisons: int
    responses: int
    tau_b: float
    tau_b_ci95: Interval | None
    top1: float
    top1_ci95: Interval | None
    top1_by_chance: float
    ndcg: float
    ndcg_ci95: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingMetrics(Correlation):
    """Rewards against the ratings of single responses, for a model that was trained on ratings.

    Errors are of the rating that the model expects (its reward, the probability of a good response,
    or the mean of its levels), and correlations of the reward. ``mae_of_median`` is the error of a
    model that always expects the median rating, and ``delta_mae`` is ``mae`` minus that. ``bias``
    is the mean of expected minus given ratings. ``calibration_slope`` is 1 for calibrated ratings,
    and below 1 where they spread too far. ``auc`` exists for labels 0 and 1, ``log_loss`` and
    ``ece_equal_mass`` for probabilities.
    """

    responses: int
    prompts: int
    mae: float
    mae_ci95: Interval | None
    mae_of_median: float
    mae_of_median_ci95: Interval | None
    delta_mae: float
    delta_mae_ci95: Interval | None
    rmse: float
    bias: float
    bias_ci95: Interval | None
    calibration_slope: float | None
    auc: float | None
    auc_ci95: Interval | None
    log_loss: float | None
    ece_equal_mass: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TieMetrics:
    """The probabilities of all three outcomes of a pair, for a model that was trained on ties.

    ``share`` of the pairs are ties; ``expected_share`` is the mean probability of a tie under the
    model. ``log_loss`` is of better, worse and tie; ``log_loss_constant`` that of a model which
    gives every pair the shares of the data.
    """

    pairs: int
    ties: int
    share: float
    share_ci95: Interval | None
    expected_share: float
    log_loss: float
    log_loss_ci95: Interval | None
    log_loss_constant: float
    auc: float | None


# ---- several outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeAccuracy(CountedAccuracy):
    """An output on the pairs whose labels of ``attribute`` differ; ``ties`` count as wrong."""

    attribute: str
    ties: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputMetrics:
    """A named output of the head against the labels of its name.

    The reward is the sum of all outputs times their ``weight``. ``responses`` of ``prompts`` have a
    label. ``own`` is the accuracy on pairs by these labels, and ``attributes`` that by the labels
    of every output, its own too. ``best_other`` is the other output with the highest accuracy on
    the pairs of ``own``, and ``delta_accuracy`` the output's accuracy minus that one's; it was
    chosen on these pairs, which biases the difference downward. ``correlation`` is of output and
    label, and ``ratings`` exists for an objective that learns from ratings; neither exists for
    labels that are an order alone.
    """

    name: str
    weight: float
    responses: int
    prompts: int
    own: AttributeAccuracy
    best_other: str | None
    delta_accuracy: float | None
    delta_accuracy_ci95: Interval | None
    attributes: tuple[AttributeAccuracy, ...]
    correlation: Correlation | None
    ratings: RatingMetrics | None


# ---- uncertainty


UncertaintyScore: TypeAlias = Literal["spread", "relative_spread", "margin"]
"""Of the reward difference of a pair: the standard deviation over heads; that over the size of the
mean; and the size of the mean alone, negated, which needs no ensemble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPrediction:
    """Does a score tell which pairs are ranked wrongly?

    ``auroc`` is the share of pairs of a wrong and a right pair in which the wrong one has the
    higher score, and ``delta_auroc`` is it minus that of ``margin``, on the same resamples.
    ``aurc`` is the area under ``risk_coverage``, the error rate without the highest scores.
    """

    score: UncertaintyScore
    auroc: float | None
    auroc_ci95: Interval | None
    delta_auroc: float | None
    delta_auroc_ci95: Interval | None
    aurc: float | None
    risk_coverage: tuple[RiskPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidentPairs(CountedAccuracy):
    """The pairs whose order the heads are sure of with probability ``level`` or more.

    ``share`` is theirs of all pairs. With exact probabilities, accuracy is at least ``level``.
    """

    level: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingCoverage:
    """The share of ratings inside the interval of the heads for ``level``.

    ``half_width`` is the mean half of its width, in units of the rating.
    """

    level: float
    coverage: float
    coverage_ci95: Interval | None
    half_width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingUncertainty:
    """The spread of expected ratings over heads, for an objective that learns from ratings.

    ``spearman`` is of the spread and the size of the error. ``levels`` is empty for labels 0 and 1,
    which no interval of probabilities can cover.
    """

    responses: int
    spread: float
    spearman: float | None
    spearman_ci95: Interval | None
    levels: tuple[RatingCoverage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UncertaintyMetrics:
    """Whether the heads of an ensemble disagree where it errs.

    ``wrong`` of ``pairs`` are ranked wrongly, ties included. ``reward_spread`` is the mean standard
    deviation over heads of a reward, and ``difference_spread`` that of the reward difference of a
    pair. ``aurc_best_possible`` is that of a score that is higher for each wrong pair.
    """

    heads: int
    pairs: int
    wrong: int
    reward_spread: float
    difference_spread: float | None
    scores: tuple[ErrorPrediction, ...]
    aurc_best_possible: float | None
    levels: tuple[ConfidentPairs, ...]
    ratings: RatingUncertainty | None

    def of(self, score: UncertaintyScore) -> ErrorPrediction:
        """The row of a score."""
        return next(one for one in self.scores if one.score == score)


# ---- what scores depend on


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineMetrics(CountedAccuracy):
    """A baseline by itself, and the model against it on the same pairs.

    ``delta_accuracy`` is the model's accuracy minus the baseline's. ``share_explained`` is the
    share of the model's above-chance accuracy that the baseline has too.
    """

    ties: int
    delta_accuracy: float | None
    delta_accuracy_ci95: Interval | None
    only_model_right: int
    only_baseline_right: int
    p: float | None
    test: str
    share_explained: float | None
    share_explained_ci95: Interval | None
    accuracy_where_wrong: float | None
    accuracy_where_wrong_ci95: Interval | None
    pairs_where_wrong: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureBias:
    """How the model treats a countable feature, over the pairs whose responses differ in it.

    ``gap`` is ``accuracy_more`` (the better response has more of it) minus ``accuracy_less``.
    ``excess`` is ``model_prefers_more`` minus ``labels_prefer_more``.
    """

    feature: str
    pairs: int
    share_of_pairs: float | None
    labels_prefer_more: float | None
    model_prefers_more: float | None
    excess: float | None
    excess_ci95: Interval | None
    gap: float | None
    gap_ci95: Interval | None
    p: float | None
    accuracy_more: CountedAccuracy
    accuracy_less: CountedAccuracy
    p_adjusted: float | None
    significant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBias:
    """Reward against the characters of a response (``analysis/bias.py`` defines each)."""

    spearman: float | None
    spearman_ci95: Interval | None
    within_spearman: float | None
    within_spearman_ci95: Interval | None
    labels_within_spearman: float | None
    slope_per_100_characters: float | None
    slope_ci95: Interval | None
    chosen_longer: CountedAccuracy
    chosen_shorter: CountedAccuracy
    equal_length: CountedAccuracy
    accuracy_balanced: float | None
    accuracy_balanced_ci95: Interval | None
    accuracy_without_length: float | None
    accuracy_without_length_ci95: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """Length in detail, and one row a feature."""

    length: LengthBias
    features: tuple[FeatureBias, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbation:
    """One perturbation of good responses: how their rewards moved.

    Shifts are in standard deviations of the evaluated rewards. ``flipped`` is the flip rate: the
    share of comparisons whose best and worst response changed places. ``spread_rose`` is the share
    of responses of which the heads of an ensemble disagree more, None for another head.
    """

    kind: str
    perturbation: str
    responses: int
    fell: float | None
    fell_ci95: Interval | None
    rose: float | None
    rose_ci95: Interval | None
    unchanged: int
    shift: float | None
    shift_ci95: Interval | None
    shift_size: float | None
    flipped: float | None
    flipped_ci95: Interval | None
    spread_rose: float | None = None
    spread_rose_ci95: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationKind:
    """All perturbations of a kind together, each response of each with equal weight."""

    meaning: str
    perturbations: int
    fell: float | None
    rose: float | None
    shift: float | None
    shift_size: float | None
    flipped: float | None
    spread_rose: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationTests:
    """Perturbation tests, what they cost, and what was skipped by reason."""

    responses: int
    skipped: Mapping[str, int]
    languages: Mapping[str, int]
    not_for_language: Mapping[str, int]
    conversations: int
    tokens: int
    over_budget: int
    budget_share: float | None
    run_tokens: int | None
    seed: int
    reward_std: float | None
    rows: tuple[Perturbation, ...]
    kinds: Mapping[str, PerturbationKind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A pair that the model ranks wrongly; ``probability`` is what it gave the wrong answer.

    ``number`` is the comparison's in its data set, ``better`` and ``worse`` are numbers of its
    responses by the labels.
    """

    id: str
    dataset: str
    number: int
    source: str
    better: int
    worse: int
    reward_better: float
    reward_worse: float
    difference: float
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChange:
    """The reward of the conversation cut behind a token, and its change from the token before."""

    text: str
    reward: float
    change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRewards:
    """Per-token rewards of a response, bounded: ``left_out`` tokens are missing behind ``head``.

    ``largest_rise`` and ``largest_fall`` are over the whole response, None where there was none.
    """

    tokens: tuple[TokenChange, ...]
    head: int
    left_out: int
    largest_rise: TokenChange | None
    largest_fall: TokenChange | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MistakeText(Mistake):
    """A mistake with its texts, as the data have them: a line of ``mistakes.jsonl``."""

    where: str
    prompt: Text
    text_better: Text
    text_worse: Text
    token_rewards_better: TokenRewards | None
    token_rewards_worse: TokenRewards | None


# ---- curves


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardHistogram:
    """Counts of rewards between ``edges``."""

    edges: tuple[float, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginHistogram:
    """Counts of reward differences between ``edges``."""

    edges: tuple[float, ...]
    pairs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBin(CountedAccuracy):
    """Pairs whose chosen response is ``low`` to ``high`` characters longer than the other."""

    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Mean confidence and accuracy of the pairs of one bin."""

    confidence: float
    accuracy: float
    accuracy_ci95: Interval | None
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskPoint:
    """Error rate among the ``coverage`` most confident pairs."""

    coverage: float
    pairs: int
    risk: float | None
    risk_ci95: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingBin:
    """Mean ``given`` and ``expected`` ratings of some responses.

    The expected ones lie between ``expected_p5`` and ``expected_p95``, but for 5% on either side.
    """

    given: float
    given_ci95: Interval | None
    expected: float
    expected_p5: float
    expected_p95: float
    responses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingCurve:
    """Expected against given ratings: bins of equal given ratings, or of similar ones.

    Labels 0 and 1 have bins of similar expected ratings, whose mean is their probability.
    """

    by: Literal["given", "expected"]
    bins: tuple[RatingBin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What the plots draw."""

    reward: RewardHistogram | None
    margin: MarginHistogram | None
    length: tuple[LengthBin, ...]
    reliability: tuple[ReliabilityBin, ...]
    reliability_calibrated: tuple[ReliabilityBin, ...] | None
    risk_coverage: tuple[RiskPoint, ...]
    ratings: RatingCurve | None = None


# ---- an evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry(Accuracy):
    """An evaluation during training; ``mae`` is the error of expected ratings."""

    step: int
    epoch: float | None
    training_loss: float | None
    validation_loss: float | None
    mae: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Sentences that answer one question about the model."""

    question: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationMetrics(PairMetrics, Calibration):
    """All metrics of one evaluation. ``history`` is that of training, None elsewhere.

    ``warnings`` are the findings to act on, the strongest of each kind first; empty where nothing
    is wrong, None in a record of a version that had none.
    """

    dataset: str
    chose_checkpoint: bool
    accuracy_wilson_ci95: Interval | None
    accuracy_bootstrap_ci95: Interval | None
    accuracy_half_ties_bootstrap_ci95: Interval | None
    loss_bootstrap_ci95: Interval | None
    nll_bootstrap_ci95: Interval | None
    brier_bootstrap_ci95: Interval | None
    aurc: float | None
    aurc_best_possible: float | None
    ranks: RankMetrics | None
    graded: StrengthCorrelation | None
    margin: Spread
    reward: RewardSpread
    baselines: Mapping[str, BaselineMetrics | None]
    baselines_fitted_on: int
    baselines_sentence: str | None
    bias: Bias
    perturbations: PerturbationTests | None
    perturbation_notes: tuple[str, ...]
    slices: tuple[Slice, ...]
    datasets: Mapping[str, PairMetrics]
    mistakes: tuple[Mistake, ...]
    curves: Curves
    ratings: RatingMetrics | None = None
    tied: TieMetrics | None = None
    outputs: tuple[OutputMetrics, ...] = ()
    uncertainty: UncertaintyMetrics | None = None
    history: tuple[HistoryEntry, ...] | None = None
    answers: tuple[Answer, ...] = ()
    summary: tuple[str, ...] = ()
    warnings: tuple[str, ...] | None = None

    @property
    def has_pairs(self) -> bool:
        """Whether there are pairs to say something of, or nothing else is."""
        labelled = self.ratings is not None or any(one.responses for one in self.outputs)
        return bool(self.pairs) or not labelled


# ---- what is measured beside an evaluation


Metric: TypeAlias = Literal["accuracy", "nll"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestedDifference:
    """The mean difference of two models on the same pairs, and the paired test ``test`` of it.

    ``p_holm`` is corrected for all tests that were made together (Holm, 1979).
    """

    difference: float
    difference_ci95: Interval | None
    p: float | None
    test: str
    p_holm: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionTest(TestedDifference):
    """One metric: ``difference = model - baseline``, corrected for all tested metrics.

    ``worse`` says that the model is worse with ``p_holm`` below alpha.
    """

    model: float
    baseline: float
    worse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionCheck:
    """The verdict against ``baseline``: ``passed`` where no metric is significantly worse.

    ``unmatched`` counts comparisons that only one of the two scored.
    """

    baseline: str
    alpha: float
    pairs: int
    unmatched: int
    metrics: Mapping[Metric, RegressionTest]
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfPoint:
    """Best-of-n at one n, means over prompts.

    ``gold`` is the grade of the response with the highest reward, ``oracle`` that of the response
    with the highest grade, ``proxy`` the highest reward above the prompt's mean, ``kl`` in nats.
    """

    n: int
    kl: float
    gold: float
    gold_ci95: Interval | None
    oracle: float
    oracle_ci95: Interval | None
    proxy: float
    proxy_ci95: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfFit:
    """``gain = d (alpha - beta d)`` with ``d = sqrt(KL)`` (Gao et al.), by least squares.

    ``peak_kl`` is where the fitted curve is highest, ``None`` where it never falls.
    """

    alpha: float
    beta: float
    peak_kl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOf:
    """The curve over n on the same ``prompts``, and what follows from it.

    ``gain`` is gold at the largest n less that of a random response, ``share_of_oracle`` its share
    of what the oracle gains. ``over_optimised``: gold falls after its peak, and the interval of the
    fall excludes 0. ``left_out`` counts prompts with too few responses.
    """

    prompts: int
    left_out: int
    largest_n: int
    curve: tuple[BestOfPoint, ...]
    gain: float
    gain_ci95: Interval | None
    share_of_oracle: float | None
    peak_n: int
    fall_after_peak: float
    fall_after_peak_ci95: Interval | None
    over_optimised: bool
    fit: BestOfFit | None
    kl_note: str
    sentence: str

    @property
    def main_points(self) -> tuple[BestOfPoint, ...]:
        """The points at powers of two and at the largest n."""
        return tuple(p for p in self.curve if p.n & (p.n - 1) == 0 or p.n == self.largest_n)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteScore:
    """One number of a suite, a share, and how its leaderboard prints it; the headline is first."""

    name: str
    value: float | None
    ci95: Interval | None
    shown: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetScore(Accuracy):
    """Means over the scored cases of one subset; ``values`` are those that are not accuracy."""

    name: str
    rows: int
    expected_rows: int | None
    cases: int
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteFile:
    """A file of a suite, named inside its folder."""

    path: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResult:
    """The numbers of one suite.

    ``used`` of ``rows`` were scored, ``skipped`` counts the others by reason. ``comparable``: the
    numbers can stand beside a leaderboard's; otherwise ``remarks`` says why not. Subsets in
    ``fixed_in_intervals`` have one prompt, so that intervals do not count their noise. ``unread``
    counts columns with text that are not read, in suites of the user's own files.
    """

    suite: str
    title: str
    source: str
    rows: int
    expected_rows: int | None
    used: int
    skipped: Mapping[str, int]
    comparable: bool
    remarks: tuple[str, ...]
    fixed_in_intervals: tuple[str, ...]
    scores: tuple[SuiteScore, ...]
    subsets: tuple[SubsetScore, ...]
    files: tuple[SuiteFile, ...] = ()
    unread: UnreadColumns | None = None


# ---- a run


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUse:
    """Rows in are rows ``used`` plus rows ``dropped`` by reason."""

    rows: int
    used: int
    dropped: Mapping[str, int]
    sources: tuple[SourceUse, ...]

    @property
    def unread_lines(self) -> list[str]:
        """A sentence for each source with columns that were not read."""
        lines = (source.unread.sentence(source.name) for source in self.sources)
        return [line for line in lines if line is not None]

    @property
    def skipped(self) -> str:
        """How many rows were skipped, by reason, as a remark behind a count."""
        if not self.dropped:
            return ""
        counts = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.items())
        return f" ({sum(self.dropped.values()):,} of {self.rows:,} rows skipped: {counts})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitUse:
    """Comparisons of a part of the data, after weights."""

    rows: int
    used: int
    dropped: Mapping[str, int]
    groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginUse:
    """Comparisons with a margin that the loss subtracts, and its mean."""

    comparisons: int
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUse:
    """Tokens with each prompt once (``packed``), for every response (``separate``), and cuts."""

    packed: int
    separate: int
    longest: int
    truncated_prompts: int
    truncated_tokens: int
    truncated_responses: int
    comparisons_with_truncated_responses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData(DataUse):
    """The data of a run, by split. ``leaked_prompts`` are held-out ones seen in training."""

    splits: Mapping[str, SplitUse]
    split_by: str
    leaked_prompts: int
    margins: MarginUse | None
    tokens: TokenUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Numbers of weights."""

    trainable: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunObjective:
    """What the loss of a run is: its row of ``plaudit.recipe.objectives.OBJECTIVES``.

    ``options`` are those of the recipe that differ from their defaults, ``learned`` the parameters
    beside the model under their paper's names, and ``offset`` is part of each reward. ``outputs``
    is None for a head with one output.
    """

    family: str
    formula: str
    where: str
    source: str
    options: Mapping[str, Setting] = field(default_factory=dict)
    learned: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    offset: float = 0.0
    outputs: Outputs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What was trained and how. ``lora`` holds PEFT's own settings, None for full training.

    ``loss`` is the name of the objective. ``objective`` is None in a record of a version that had
    one objective only.
    """

    name: str
    base: str
    base_revision: str | None
    base_is_hub_id: bool
    architecture: str
    method: Literal["lora", "qlora", "full"]
    lora: Mapping[str, Any] | None
    parameters: Parameters
    attention: str
    attention_note: str | None
    dtype: str
    max_length: int
    truncation: str
    chat_template_kind: str
    head_init: str
    loss: str
    seed: int
    hyperparameters: tuple[tuple[str, Setting], ...]
    started: str
    objective: RunObjective | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMetrics:
    """What training took. ``resumed`` counts how often the run was resumed."""

    steps: int
    planned_steps: int
    epochs: float | None
    pairs: int
    comparisons: int
    tokens: int
    seconds: float
    pairs_per_second: float | None
    final_loss: float | None
    resumed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BestCheckpoint:
    """The step whose weights were kept, and the metric that chose it."""

    step: int
    metric: str | None
    value: float | None


Verdict: TypeAlias = Literal["single_evaluation", "no_overfit", "within_noise", "overfit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfit:
    """Did validation loss rise from its lowest to the last evaluation, beyond noise?"""

    verdict: Verdict
    best_step: int
    last_step: int
    loss_rise: float | None
    loss_rise_ci95: Interval | None
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPoint:
    """A logging step of training."""

    step: int
    epoch: float | None
    loss: float | None
    learning_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """``metrics.json`` of a training run."""

    format: Literal[2] = FORMAT
    plaudit_version: str
    run: RunInfo
    data: RunData
    train: TrainingMetrics
    eval: EvaluationMetrics | None
    test: EvaluationMetrics | None
    best: BestCheckpoint | None
    overfit: Overfit | None
    training_curve: tuple[TrainingPoint, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvaluation:
    """``metrics.json`` of ``plaudit eval --out``."""

    format: Literal[2] = FORMAT
    plaudit_version: str
    model: str
    data: DataUse | None
    eval: EvaluationMetrics | None
    environment: Mapping[str, str]
    suites: Mapping[str, SuiteResult] | None = None
    best_of: BestOf | None = None
    regression_check: RegressionCheck | None = None


# ---- to JSON and back


def parts(record: Any, of: Any = None) -> dict[str, Any]:
    """The fields of a record by name, to build a record that has them too.

    With ``of`` they are those fields of the kind ``of`` that the record has.
    """
    names = (item.name for item in fields(record if of is None else of))
    return {name: getattr(record, name) for name in names if hasattr(record, name)}


Record = TypeVar("Record")


def json_safe(value: Any) -> Any:
    """Plain JSON values: records to mappings, tuples to lists, nan and infinities to null.

    Lone surrogates, which JSON input may hold and UTF-8 files cannot, become question marks.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: json_safe(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {json_safe(str(key)): json_safe(item) for key, item in value.items()}
    if isinstance(value, Interval) and not all(map(math.isfinite, value)):
        return None
    if isinstance(value, (list, tuple, np.ndarray)):
        return [json_safe(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, np.generic):
        return json_safe(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@functools.cache
def adapter(kind: type) -> TypeAdapter[Any]:
    """What checks a kind of record, and writes its JSON Schema."""
    return TypeAdapter(kind)


def settle(record: Record) -> Record:
    """The record as it comes back from JSON: what is no finite number is None."""
    kind: type = type(record)
    settled: Record = adapter(kind).validate_python(json_safe(record))
    return settled


def read_metrics(folder: Path) -> RunMetrics:
    """The metrics of a finished training run.

    Raises:
        DataError: no ``metrics.json``, one of another format, or not one of a run.
    """
    found = read_recorded(folder)
    if not isinstance(found, RunMetrics):
        raise DataError(
            f"{folder / METRICS_FILE} is of an evaluation; expected the metrics of a training run, "
            "written by plaudit train."
        )
    return found


def read_recorded(folder: Path) -> RunMetrics | RecordedEvaluation:
    """The metrics of a run or of an evaluation.

    Raises:
        DataError: no ``metrics.json``, or one that is damaged or of another format.
    """
    path = folder / METRICS_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if (folder / TRAINING_FILE).is_file():
            raise DataError(
                f"{folder} is trained but not evaluated, so it has no {METRICS_FILE}; finish it"
                f" with plaudit train {folder} --resume."
            ) from None
        raise DataError(
            f"Cannot read {path} ({error.strerror or error}); give the folder of a finished run."
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); it is written at the end of a run, so run again "
            "or restore it."
        ) from error
    stated = found.get("format") if isinstance(found, dict) else None
    if stated != FORMAT:
        raise DataError(
            f"{path} has format {stated!r}, expected {FORMAT}; use the version of plaudit that "
            "wrote it, or measure again."
        )
    kind = RunMetrics if "run" in found else RecordedEvaluation
    try:
        record: RunMetrics | RecordedEvaluation = adapter(kind).validate_python(found)
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged: {first_mistake(error)}. Restore it, or measure again."
        ) from None
    return record


def first_mistake(error: ValidationError) -> str:
    """Where the first mistake is, and what it is."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    return f"{key or 'its content'}: {first['msg'].lower()}"
