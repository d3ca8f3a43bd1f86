"""Pure metrics of pairwise preferences, from reward differences.

``delta_P`` is always the reward of the preferred response less that of the other, so a positive
value is a right answer and ``sigmoid(delta)`` is the probability given to the right answer (the
model of Bradley and Terry, 1952). All functions take float64 and are exact for any finite input:
no exponential can overflow. Means over no pairs are ``nan``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.evaluation.schema import CountedAccuracy, Interval, Metric, RiskPoint, Spread
from plaudit.types import FloatArray

_RESAMPLES = 1000


def mean(values: npt.NDArray[Any]) -> float:
    """The mean, ``nan`` of nothing."""
    return float(values.mean()) if len(values) else math.nan


def pair_credits(delta_P: FloatArray) -> FloatArray:
    """1 for a right pair, one half for a tie, 0 for a wrong one."""
    return 0.5 * (np.sign(delta_P) + 1.0)


def accuracy(delta_P: FloatArray) -> float:
    """Share of pairs with the preferred response strictly ahead; a tie counts as wrong."""
    return mean(delta_P > 0)


def accuracy_half_ties(delta_P: FloatArray) -> float:
    """Accuracy with half a point for a tie, the expectation of a random choice."""
    return mean(pair_credits(delta_P))


def ties(delta_P: FloatArray) -> int:
    """Pairs with exactly equal rewards."""
    return int(np.count_nonzero(delta_P == 0))


def wilson(successes: float, trials: int) -> Interval | None:
    """Two-sided 95% score interval of a proportion (Wilson, 1927); ``None`` without trials.

    ``successes`` may be fractional (half ties). Assumes independent trials: where several pairs
    share a prompt, the bootstrap by prompt is the wider, honest one.
    """
    from scipy.stats import norm

    if trials == 0:
        return None
    z = float(norm.ppf(0.975))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    half *= z / (1 + z * z / trials)
    # At 0 and 1 the exact ends are 0 and 1; rounding must not push them inside or out.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(low, high)


Method: TypeAlias = Literal["wilson", "bootstrap_by_prompt", "wilson_over_prompts"]


class ShareInterval(NamedTuple):
    """The 95% interval of a share that people are shown, how it was made, and both candidates."""

    shown: Interval | None
    method: Method | None
    wilson: Interval | None
    bootstrap: Interval | None


def share_interval(
    credit_P: FloatArray, group_P: npt.NDArray[np.int64], *, seed: int = 0
) -> ShareInterval:
    """The one interval of a mean of credits (1 right, one half, 0 wrong) that every output shows.

    Wilson where every pair has a prompt of its own, the bootstrap by prompt where prompts repeat.
    That one has no width where all prompts have equal means, however few they are: Wilson's with
    one trial per prompt then stands for it (pairs of a prompt taken as wholly dependent).
    """
    pairs = len(credit_P)
    _, code_P, size_G = np.unique(group_P, return_inverse=True, return_counts=True)
    groups = len(size_G)
    right = float(credit_P.sum())
    own = wilson(right, pairs)
    right_G = np.bincount(code_P, credit_P, groups).astype(np.float64)
    drawn = _bootstrap_share(right_G, size_G, seed)
    if groups == pairs:
        return ShareInterval(own, None if own is None else "wilson", own, drawn)
    if drawn is not None and drawn.low < drawn.high:
        return ShareInterval(drawn, "bootstrap_by_prompt", own, drawn)
    over_prompts = wilson(right / pairs * groups, groups)
    return ShareInterval(over_prompts, "wilson_over_prompts", own, drawn)


def _bootstrap_share(
    right_G: FloatArray, size_G: npt.NDArray[np.int64], seed: int
) -> Interval | None:
    """The interval of a share under prompt groups drawn again, in a time that G does not change.

    Prompts of equal size and equal credit are alike, so how often each kind is drawn is
    multinomial. ``None`` with fewer than two prompts.
    """
    groups = len(size_G)
    if groups < 2:
        return None
    kinds_2K, times_K = np.unique(np.stack([right_G, size_G]), axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn_RK = generator.multinomial(groups, times_K / groups, size=_RESAMPLES)
    right_R, size_R = kinds_2K @ drawn_RK.T
    return percentile_interval(right_R / size_R)


def measured_accuracy(
    delta_P: FloatArray, group_P: npt.NDArray[np.int64], *, seed: int = 0
) -> CountedAccuracy:
    """The accuracy with its interval (:func:`share_interval`) and that interval's method."""
    interval = share_interval((delta_P > 0).astype(np.float64), group_P, seed=seed)
    return CountedAccuracy(
        accuracy=accuracy(delta_P),
        accuracy_ci95=interval.shown,
        accuracy_ci95_method=interval.method,
        pairs=len(delta_P),
    )


def bradley_terry_losses(delta_P: FloatArray, margin_P: FloatArray | float = 0.0) -> FloatArray:
    """Loss per pair, ``-log sigmoid(delta - margin)`` (margin: Llama 2, arXiv 2307.09288)."""
    return np.logaddexp(0.0, margin_P - delta_P)


def bradley_terry_loss(delta_P: FloatArray, margin_P: FloatArray | float = 0.0) -> float:
    """Mean loss per pair: the training objective, margins included."""
    return mean(bradley_terry_losses(delta_P, margin_P))


def nll(delta_P: FloatArray) -> float:
    """Mean negative log probability of the right answer, margins left out."""
    return mean(bradley_terry_losses(delta_P))


def brier_losses(delta_P: FloatArray) -> FloatArray:
    """Squared error per pair of the probability given to the right answer (Brier, 1950)."""
    from scipy.special import expit

    return np.asarray(expit(-delta_P) ** 2, dtype=np.float64)


def brier(delta_P: FloatArray) -> float:
    """Mean of :func:`brier_losses`."""
    return mean(brier_losses(delta_P))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Per filled bin: mean confidence, accuracy (ties half) and number of pairs.

    ``bin_P`` is the number of each pair's bin.
    """

    confidence_B: FloatArray
    accuracy_B: FloatArray
    pairs_B: npt.NDArray[np.int64]
    bin_P: npt.NDArray[np.int64]


def confidences(delta_P: FloatArray) -> FloatArray:
    """Probability given to whichever answer the model prefers, in [0.5, 1]."""
    from scipy.special import expit

    return np.asarray(expit(np.abs(delta_P)), dtype=np.float64)


def reliability_equal_width(
    confidence_P: FloatArray, credit_P: FloatArray, bins: int = 10
) -> Reliability:
    """Bins of equal width over confidence 0.5 to 1; empty bins are left out."""
    bin_P = np.minimum(((confidence_P - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    return _reliability(confidence_P, credit_P, bin_P)


def reliability_equal_count(
    confidence_P: FloatArray, credit_P: FloatArray, bins: int = 10
) -> Reliability:
    """Bins of (within one) equal numbers of pairs, by rising confidence."""
    rank_P = np.empty(len(confidence_P), dtype=np.int64)
    rank_P[np.argsort(confidence_P, kind="stable")] = np.arange(len(confidence_P))
    return _reliability(confidence_P, credit_P, rank_P * bins // max(len(confidence_P), 1))


def _reliability(
    confidence_P: FloatArray, credit_P: FloatArray, bin_P: npt.NDArray[np.int64]
) -> Reliability:
    filled_B, code_P = np.unique(bin_P, return_inverse=True)
    pairs_B = np.bincount(code_P, minlength=len(filled_B))
    return Reliability(
        confidence_B=np.bincount(code_P, confidence_P, len(filled_B)) / pairs_B,
        accuracy_B=np.bincount(code_P, credit_P, len(filled_B)) / pairs_B,
        pairs_B=pairs_B,
        bin_P=code_P,
    )


def expected_calibration_error(curve: Reliability) -> float:
    """Mean gap between confidence and accuracy, by pairs (Guo et al. 2017, arXiv 1706.04599)."""
    if not len(curve.pairs_B):
        return math.nan
    gap_B = np.abs(curve.accuracy_B - curve.confidence_B)
    return float(np.average(gap_B, weights=curve.pairs_B))


def calibration_error_by_chance(confidence_P: FloatArray, *, seed: int = 0) -> float:
    """The expected calibration error that exact probabilities would show on as many pairs.

    Every bin has some gap by chance, so the error of a perfect model is not zero. Mean over
    200 draws of right and wrong answers at just these confidences; equal-width bins.
    """
    generator = np.random.default_rng(seed)
    found = [
        expected_calibration_error(
            reliability_equal_width(
                confidence_P, (generator.random(len(confidence_P)) < confidence_P).astype(float)
            )
        )
        for _ in range(200 if len(confidence_P) else 0)
    ]
    return float(np.mean(found)) if found else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskCoverage:
    """Share of wrong answers among the ``j`` most confident pairs, for every ``j`` from 1 to P.

    ``error_P`` are the errors whose means these are, ``order_P`` the numbers of their pairs.
    """

    risk_P: FloatArray
    error_P: FloatArray
    order_P: npt.NDArray[np.int64]

    @property
    def area(self) -> float:
        """AURC: the mean risk over all coverages (Geifman et al. 2019, arXiv 1805.08206)."""
        return mean(self.risk_P)

    def at(self, coverage: float) -> tuple[int, float]:
        """Pairs kept, and their risk, when this share (at least one pair) is answered."""
        kept = max(1, round(coverage * len(self.risk_P)))
        return kept, float(self.risk_P[kept - 1])


def risk_coverage(confidence_P: FloatArray, credit_P: FloatArray) -> RiskCoverage:
    """What leaving the least confident pairs unanswered would do to the share of errors.

    A tie is half an error. Pairs of equal confidence count as taken in random order: each stands
    for the mean error of its like.
    """
    order_P = np.argsort(-confidence_P, kind="stable")
    _, level_P, size_L = np.unique(-confidence_P[order_P], return_inverse=True, return_counts=True)
    error_P = 1.0 - credit_P[order_P]
    mean_L = np.bincount(level_P, error_P, len(size_L)) / size_L
    shared_P = mean_L[level_P]
    risk_P = np.cumsum(shared_P) / np.arange(1, len(shared_P) + 1)
    return RiskCoverage(risk_P=risk_P, error_P=shared_P, order_P=order_P)


_COVERAGES = tuple(round(step / 20, 2) for step in range(1, 21))


def risk_curve(risk: RiskCoverage, group_P: npt.NDArray[np.int64]) -> tuple[RiskPoint, ...]:
    """Error rate among the most confident pairs, by the share of pairs that are answered."""
    points = []
    for coverage in _COVERAGES if len(group_P) else ():
        kept, wrong = risk.at(coverage)
        interval = share_interval(risk.error_P[:kept], group_P[risk.order_P[:kept]])
        points.append(
            RiskPoint(coverage=coverage, pairs=kept, risk=wrong, risk_ci95=interval.shown)
        )
    return tuple(points)


_QUANTILES = (5, 25, 50, 75, 95)


def spread(values: FloatArray) -> Spread:
    """Mean, standard deviation (of these values, not an estimate), ends and percentiles."""
    names = ("mean", "std", "min", "max", *(f"p{percent}" for percent in _QUANTILES))
    if not len(values):
        return Spread(**dict.fromkeys(names, math.nan))
    numbers = (values.mean(), values.std(), values.min(), values.max())
    percentiles = np.percentile(values, _QUANTILES)
    return Spread(**dict(zip(names, map(float, (*numbers, *percentiles)), strict=True)))


def group_bootstrap_sums(
    statistics: Callable[[FloatArray], FloatArray],
    columns_CP: FloatArray,
    group_P: npt.NDArray[np.int64],
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> list[Interval | None]:
    """Percentile intervals of statistics of sums over pairs, when prompt groups are drawn again.

    ``statistics`` gets the sum of each column in each resample, ``(C, resamples)``, and gives one
    row per statistic. ``None`` with fewer than two groups, and where a statistic is not finite in
    any resample. Seeded: equal input, equal output.
    """
    _, code_P, size_G = np.unique(group_P, return_inverse=True, return_counts=True)
    groups = len(size_G)
    sums_CG = np.stack([np.bincount(code_P, column_P, groups) for column_P in columns_CP])
    drawn_CR = np.zeros((len(columns_CP), resamples))
    generator = np.random.default_rng(seed)
    for number in range(resamples if groups >= 2 else 0):
        times_G = np.bincount(generator.integers(groups, size=groups), minlength=groups)
        drawn_CR[:, number] = sums_CG @ times_G
    with np.errstate(divide="ignore", invalid="ignore"):
        values_SR = statistics(drawn_CR)
    if groups < 2:
        return [None] * len(values_SR)
    return [percentile_interval(values_R) for values_R in values_SR]


def percentile_interval(values_R: FloatArray) -> Interval | None:
    """The middle 95% of the finite values; ``None`` where none is finite."""
    finite_R = values_R[np.isfinite(values_R)]
    if not len(finite_R):
        return None
    low, high = np.quantile(finite_R, [0.025, 0.975])
    return Interval(float(low), float(high))


def bootstrap_means(
    series_SP: FloatArray,
    group_P: npt.NDArray[np.int64],
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> list[Interval | None]:
    """Percentile intervals of the means of several series, the same prompt groups for all."""
    columns_CP = np.vstack([np.ones(len(group_P)), series_SP])
    return group_bootstrap_sums(
        lambda sums_CR: sums_CR[1:] / sums_CR[0],
        columns_CP,
        group_P,
        resamples=resamples,
        seed=seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Mean of ``b - a`` over pairs, its standard error by group and its 95% interval.

    Error and interval are ``None`` with fewer than two groups.
    """

    mean: float
    standard_error: float | None
    interval: Interval | None
    pairs: int
    groups: int

    @property
    def direction(self) -> Literal[-1, 0, 1]:
        """The sign of the difference where its interval excludes 0, else 0."""
        if self.interval is None or self.interval.low <= 0 <= self.interval.high:
            return 0
        return 1 if self.mean > 0 else -1


def paired_difference(
    loss_a_P: FloatArray, loss_b_P: FloatArray, group_P: npt.NDArray[np.int64]
) -> PairedDifference:
    """How much larger ``b`` is than ``a`` on the same pairs, judged by prompt group.

    Pairs of one group are not independent, so the error is the cluster-robust one of a mean
    (Liang and Zeger, 1986) with the usual G/(G-1), and the interval is Student's with G-1 degrees
    of freedom. With one pair per group this is the paired t-test.
    """
    from scipy.stats import t

    difference_P = loss_b_P - loss_a_P
    _, code_P = np.unique(group_P, return_inverse=True)
    groups = int(code_P.max()) + 1 if len(code_P) else 0
    centre = mean(difference_P)
    error = interval = None
    if groups >= 2:
        residual_G = np.bincount(code_P, difference_P - centre)
        error = math.sqrt(groups / (groups - 1) * float(residual_G @ residual_G))
        error /= len(difference_P)
        reach = error * float(t.ppf(0.975, groups - 1))
        interval = Interval(centre - reach, centre + reach)
    return PairedDifference(
        mean=centre,
        standard_error=error,
        interval=interval,
        pairs=len(difference_P),
        groups=groups,
    )


# ---- p-values: of paired answers, of a slice against the rest, and of many tests at once ---------

ALPHA = 0.05
"""An adjusted p-value below this is significant."""


def mcnemar(only_a_right: int, only_b_right: int) -> float:
    """Two-sided exact p-value that two models are right equally often (McNemar, 1947).

    Only pairs where one is right and the other is not say anything; under equality each falls to
    either side like a fair coin. Assumes independent pairs.
    """
    from scipy.stats import binomtest

    discordant = only_a_right + only_b_right
    return float(binomtest(only_a_right, discordant).pvalue) if discordant else 1.0


def clustered_p(difference: PairedDifference) -> float | None:
    """Two-sided p-value that a paired mean difference is zero: Student's t over prompt groups.

    With one pair per group this is the paired t-test. ``None`` with fewer than two groups.
    """
    from scipy.stats import t

    if difference.standard_error is None:
        return None
    if difference.standard_error == 0:
        return 1.0 if difference.mean == 0 else 0.0
    statistic = abs(difference.mean) / difference.standard_error
    return float(2 * t.sf(statistic, difference.groups - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """A paired test of one metric: the mean difference ``a - b``, its p-value and its name."""

    difference: PairedDifference
    p: float | None
    name: str


def paired_test(
    metric: Metric, a_P: FloatArray, b_P: FloatArray, group_P: npt.NDArray[np.int64]
) -> PairedTest:
    """Is the mean of ``a`` that of ``b``? Values per pair, 1 or 0 for accuracy and losses for nll.

    Accuracy with one pair per prompt: McNemar's exact test. Where pairs share prompts they are not
    independent, and for log loss: Student's t on prompt groups.
    """
    difference = paired_difference(b_P, a_P, group_P)
    one_each = difference.groups == difference.pairs
    if metric == "accuracy" and one_each:
        p = mcnemar(int(np.sum(a_P > b_P)), int(np.sum(b_P > a_P)))
        return PairedTest(difference=difference, p=p, name="McNemar, exact")
    name = "paired t" if one_each else "paired t by prompt group"
    return PairedTest(difference=difference, p=clustered_p(difference), name=name)


def against_the_rest(
    right_P: npt.NDArray[np.bool_],
    inside_P: npt.NDArray[np.bool_],
    group_P: npt.NDArray[np.int64],
) -> float | None:
    """Two-sided p-value that pairs inside a slice are right as often as those outside it.

    The z-test of two proportions with the pooled variance; where pairs of a prompt go together, so
    that the variance by prompt group (of the same null hypothesis) is larger, that one is used.
    ``None`` where one side is empty.
    """
    from scipy.stats import norm

    inside, total = int(inside_P.sum()), len(right_P)
    if inside in (0, total):
        return None
    share = float(right_P.mean())
    weight_P = np.where(inside_P, 1 / inside, -1 / (total - inside))
    difference = float(weight_P @ right_P)
    independent = share * (1 - share) * float(weight_P @ weight_P)
    _, code_P = np.unique(group_P, return_inverse=True)
    sums_G = np.bincount(code_P, weight_P * (right_P - share))
    variance = max(independent, float(sums_G @ sums_G))
    if variance == 0:
        return 1.0
    return float(2 * norm.sf(abs(difference) / math.sqrt(variance)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that hold the chance of any false finding (Holm, 1979); None stays None."""

    def adjust(known: FloatArray) -> FloatArray:
        order = np.argsort(known)
        steps = known[order] * np.arange(len(known), 0, -1)
        return np.minimum(np.maximum.accumulate(steps), 1.0)[np.argsort(order)]

    return _adjust_known(p_values, adjust)


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that hold the share of false findings among all findings (1995).

    None stays None.
    """
    from scipy.stats import false_discovery_control

    return _adjust_known(p_values, false_discovery_control)


def _adjust_known(
    p_values: Sequence[float | None], adjust: Callable[[FloatArray], FloatArray]
) -> list[float | None]:
    known = np.array([p for p in p_values if p is not None], dtype=np.float64)
    adjusted = iter(adjust(known).tolist() if len(known) else ())
    return [None if p is None else next(adjusted) for p in p_values]
