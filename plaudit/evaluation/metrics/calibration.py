"""FittedTemperature of preference probabilities, cross-fitted by prompt group.

A temperature divides reward differences, so it changes no ranking and no accuracy (Guo et al.
2017, arXiv 1706.04599). Platt's scaling of pairs is the same thing: a pair can be shown in both
orders, so its intercept is zero and its slope is 1/T. Isotonic regression instead gives the
confidence any rising shape (Zadrozny and Elkan, 2002); it is measured for comparison, not stored.

There are two estimators. :func:`best_temperature` has the lowest loss on its pairs; it scales with
the rewards, so the loss at it does not depend on their scale, and training compares checkpoints by
it. :func:`shrunk_temperature` is what a model may be given: few pairs move it little from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.evaluation.metrics.pairwise import (
    PairedDifference,
    bradley_terry_losses,
    paired_difference,
)
from plaudit.evaluation.schema import Interval
from plaudit.types import FloatArray

Estimator: TypeAlias = Callable[[FloatArray, int], float]
"""(differences of pairs, how many prompts they come from) -> a temperature."""

PRIOR_SD = math.log(2)
"""Standard deviation of log T before data are seen: 95 of 100 temperatures lie within 0.26 and 3.9.

Those fitted to a thousand pairs and more in benchmarks/ lie between 1.3 and 3.6. A pair whose
probability is near 0.73 has a Fisher information of 0.2 on log T, so the prior weighs as much as
ten such pairs of different prompts.
"""

# In units of the mean |delta|. At the lower end an average pair has probability 0.99995, more than
# any set of a realistic size can show; at the upper end 0.50025, chance.
_COLDEST, _HOTTEST = 0.1, 1000.0
_GRID = 65

FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedTemperature:
    """``temperature`` is fitted on all pairs.

    ``delta_P`` are the differences divided by a temperature that was fitted without the pair's
    own prompt group; honest calibrated metrics are computed from these. ``gain`` is what that
    takes off the loss at T = 1 (:func:`improvement`). All three are ``None`` when nothing could be
    fitted; ``note`` then says why.
    """

    temperature: float | None = None
    delta_P: FloatArray | None = None
    gain: PairedDifference | None = None
    folds: int = 0
    note: str | None = None

    @property
    def accepted(self) -> float | None:
        """The temperature where it is better than T = 1 beyond noise, else None."""
        return self.temperature if self.gain is not None and beyond_noise(self.gain) else None


def best_temperature(delta_P: FloatArray) -> float:
    """The T that minimises the mean of ``-log sigmoid(delta / T)``; needs one delta other than 0.

    There is none where every pair is right (the best T is 0) or where the model does no better than
    chance (the best T is infinite): T is kept between 0.1 and 1,000 times the mean of ``|delta|``.
    Scaling all differences scales the temperature.
    """
    return math.exp(_log_best(delta_P, target=1.0, coldest=_COLDEST))


def shrunk_temperature(delta_P: FloatArray, prompts: int) -> float:
    """The most probable T given the pairs, with two priors; needs one delta other than 0.

    log T has a normal prior with mean 0 and deviation :data:`PRIOR_SD`: T = 1 is what the
    Bradley-Terry loss trains for. The likelihood counts each of the ``prompts`` once, since pairs
    of one prompt are not independent, so the prior fades as 1 / ``prompts``. And since a pair may
    turn out the other way on new data, each counts as right with probability (N + 1) / (N + 2)
    (Platt 1999, *Probabilistic Outputs for Support Vector Machines*, section 2.2): without it a set
    without mistakes would call for certainty.

    Rewards on a scale of their own (a regression head's 0 to 1, say) have no natural T = 1. Too
    large ones cost so much at T = 1 that few pairs overrule the prior; too small ones stay nearer
    to chance than is best until there are some hundred pairs. Either errs towards doubt.
    """
    from scipy.optimize import minimize_scalar

    target = _target(prompts)

    def cost(log_temperature: float) -> float:
        losses_P = _losses(delta_P * math.exp(-log_temperature), target)
        return prompts * float(losses_P.mean()) + 0.5 * (log_temperature / PRIOR_SD) ** 2

    # Between T = 1 and the best T: beyond either end both terms rise. They may have two valleys
    # there, and the prior's term is at most what the other gains. Platt's target, below 1, has a
    # best T above 0, which the bound of best_temperature must not replace.
    far = _log_best(delta_P, target=target, coldest=1e-9)
    gained = cost(0.0) - cost(far) + 0.5 * (far / PRIOR_SD) ** 2
    reach = min(abs(far), PRIOR_SD * math.sqrt(max(0.0, 2 * gained)))
    grid = math.copysign(1.0, far) * np.linspace(0.0, reach, _GRID)
    lowest = int(np.argmin([cost(value) for value in grid]))
    ends = sorted((grid[max(0, lowest - 1)], grid[min(_GRID - 1, lowest + 1)]))
    if ends[0] == ends[1]:
        return 1.0
    return math.exp(float(minimize_scalar(cost, bounds=ends, method="bounded").x))


def _log_best(delta_P: FloatArray, *, target: float, coldest: float) -> float:
    """The log T of the lowest mean loss, within the bounds; the loss is convex in 1/T.

    ``coldest`` is the lower bound of T as a multiple of the mean of ``|delta|``.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    scale = float(np.abs(delta_P).mean())
    if scale == 0:
        raise ValueError("a temperature needs at least one pair with unequal rewards")
    # Twice, since the mean of subnormal numbers may round away from them.
    unit_P = delta_P / scale
    unit_P = unit_P / np.abs(unit_P).mean()

    def slope(log_temperature: float) -> float:
        return float((unit_P * (expit(math.exp(-log_temperature) * unit_P) - target)).mean())

    low, high = math.log(coldest), math.log(_HOTTEST)
    if slope(low) <= 0:
        return low + math.log(scale)
    if slope(high) >= 0:
        return high + math.log(scale)
    return float(brentq(slope, low, high, xtol=1e-10)) + math.log(scale)


def _target(prompts: int) -> float:
    return (prompts + 1) / (prompts + 2)


def _losses(delta_P: FloatArray, target: float) -> FloatArray:
    """Expected log loss per pair that is right with probability ``target``."""
    return target * bradley_terry_losses(delta_P) + (1 - target) * bradley_terry_losses(-delta_P)


def improvement(
    before_P: FloatArray, after_P: FloatArray, group_P: npt.NDArray[np.int64]
) -> PairedDifference:
    """How much log loss falls from differences ``before`` to ``after`` of the same pairs.

    Student's interval over prompt groups, as :func:`paired_difference` makes it. Few pairs hardly
    ever hold the rare mistake that costs most, so two things are not left to them: each pair is
    right with Platt's probability, as in :func:`shrunk_temperature`, and the error is at least that
    of independent answers with the less confident of both probabilities (between a right and a
    wrong answer a pair's gain differs by ``after - before``).
    """
    from scipy.special import expit
    from scipy.stats import t

    target = _target(len(np.unique(group_P)))
    gain = paired_difference(_losses(after_P, target), _losses(before_P, target), group_P)
    if gain.standard_error is None:
        return gain
    right_P = expit(np.minimum(np.abs(before_P), np.abs(after_P)))
    variance = float((right_P * (1 - right_P) * (after_P - before_P) ** 2).sum())
    error = max(gain.standard_error, math.sqrt(variance) / gain.pairs)
    reach = error * float(t.ppf(0.975, gain.groups - 1))
    interval = Interval(gain.mean - reach, gain.mean + reach)
    return replace(gain, standard_error=error, interval=interval)


def beyond_noise(gain: PairedDifference) -> bool:
    """Whether the whole 95% interval of a gain is above zero: by chance in one case of 40.

    Pairs of one fold share a temperature, so the error of a cross-fitted gain is a little too
    small (Bengio and Grandvalet 2004, *No Unbiased Estimator of the Variance of K-Fold
    Cross-Validation*).
    """
    return gain.direction > 0


def cross_fit(
    delta_P: FloatArray,
    group_P: npt.NDArray[np.int64],
    *,
    estimator: Estimator = shrunk_temperature,
    seed: int = 0,
) -> FittedTemperature:
    """Fit on all pairs; and for every fold of prompt groups, fit on the others and apply to it.

    Never raises for few or constant data.
    """
    groups = len(np.unique(group_P))
    if groups < 2:
        return FittedTemperature(
            note=f"calibration needs at least 2 prompts; the data have {groups}"
        )
    calibrated_P = np.empty_like(delta_P)
    folds = _folds(group_P, seed)
    for inside_P in folds:
        others = delta_P[~inside_P]
        if not np.any(others):
            return FittedTemperature(
                note="calibration needs pairs with unequal rewards in every fold"
            )
        prompts = len(np.unique(group_P[~inside_P]))
        calibrated_P[inside_P] = delta_P[inside_P] / estimator(others, prompts)
    return FittedTemperature(
        temperature=estimator(delta_P, groups),
        delta_P=calibrated_P,
        gain=improvement(delta_P, calibrated_P, group_P),
        folds=len(folds),
    )


def folds_of(groups: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """A fold for each prompt group, at random (seeded), sizes to within one group.

    With fewer groups than :data:`FOLDS` each group is a fold.
    """
    return np.random.default_rng(seed).permutation(groups) % max(1, min(FOLDS, groups))


def _folds(group_P: npt.NDArray[np.int64], seed: int) -> list[npt.NDArray[np.bool_]]:
    """Which pairs are in each fold."""
    _, code_P, size_G = np.unique(group_P, return_inverse=True, return_counts=True)
    fold_P = folds_of(len(size_G), seed=seed)[code_P]
    return [fold_P == fold for fold in range(int(fold_P.max()) + 1)]


def cross_fit_isotonic(
    confidence_P: FloatArray,
    credit_P: FloatArray,
    group_P: npt.NDArray[np.int64],
    *,
    seed: int = 0,
) -> FloatArray | None:
    """Confidences by isotonic regression on the other folds of prompt groups.

    Rises with the model's confidence and stays within 0.5 and 1. ``None`` with fewer than two
    groups.
    """
    from sklearn.isotonic import IsotonicRegression

    if len(np.unique(group_P)) < 2:
        return None
    calibrated_P = np.empty_like(confidence_P)
    for inside_P in _folds(group_P, seed):
        model = IsotonicRegression(y_min=0.5, y_max=1.0, out_of_bounds="clip")
        model.fit(confidence_P[~inside_P], credit_P[~inside_P])
        calibrated_P[inside_P] = model.predict(confidence_P[inside_P])
    return calibrated_P
