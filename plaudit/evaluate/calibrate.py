"""Calibration of preference probabilities, cross-fitted by prompt group.

A temperature divides reward differences, so it changes no ranking and no accuracy (Guo et al.
2017, arXiv 1706.04599). Platt's scaling of pairs is the same thing: a pair can be shown in both
orders, so its intercept is zero and its slope is 1/T. Isotonic regression instead gives the
confidence any rising shape (Zadrozny and Elkan, 2002); it is measured for comparison, not stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plaudit.types import FloatArray

# In units of the mean |delta|. At the lower end an average pair has probability 0.99995, more than
# any set of a realistic size can show; at the upper end 0.50025, a coin.
_COLDEST, _HOTTEST = 0.1, 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    """A fitted temperature; ``note`` says why where the best one lies outside the bounds."""

    value: float
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """``temperature`` is fitted on all pairs; it belongs in the saved model.

    ``delta_P`` are the differences divided by a temperature that was fitted without the pair's
    own prompt group; honest calibrated metrics are computed from these. Both are ``None`` when
    nothing could be fitted; ``note`` then says why.
    """

    temperature: float | None
    delta_P: FloatArray | None
    folds: int
    note: str | None = None


def fit_temperature(delta_P: FloatArray) -> Temperature:
    """The T that minimises the mean of ``-log sigmoid(delta / T)``; needs one delta other than 0.

    The loss is convex in 1/T, so the root of its slope is the minimum. There is none where every
    pair is right (the best T is 0) or where the model does no better than chance (the best T is
    infinite): the nearest bound is returned, and the note says so. Scaling all differences scales
    the temperature.
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
        inverse = math.exp(-log_temperature)
        return float(-(unit_P * expit(-inverse * unit_P)).mean())

    coldest, hottest = math.log(_COLDEST), math.log(_HOTTEST)
    if slope(coldest) <= 0:
        return Temperature(
            value=_COLDEST * scale,
            note="nearly every pair is right, so the best temperature is below the lowest allowed",
        )
    if slope(hottest) >= 0:
        return Temperature(
            value=_HOTTEST * scale,
            note="the rewards do no better than chance, so the best temperature is above the "
            "highest allowed",
        )
    return Temperature(value=math.exp(brentq(slope, coldest, hottest, xtol=1e-10)) * scale)


def cross_fit(
    delta_P: FloatArray, group_P: npt.NDArray[np.int64], *, folds: int = 5, seed: int = 0
) -> Calibration:
    """Fit on all pairs; and for every fold of prompt groups, fit on the others and apply to it.

    Groups are dealt to folds at random (seeded), sizes to within one group; with fewer groups
    than ``folds`` each group is a fold. Never raises for few or constant data: see Calibration.
    """
    _, code_P = np.unique(group_P, return_inverse=True)
    groups = int(code_P.max()) + 1 if len(code_P) else 0
    if groups < 2:
        return _not_fitted(f"calibration needs at least 2 prompt groups, found {groups}")
    folds = min(folds, groups)
    fold_P = folds_of(groups, folds=folds, seed=seed)[code_P]
    calibrated_P = np.empty_like(delta_P)
    for fold in range(folds):
        inside_P = fold_P == fold
        others = delta_P[~inside_P]
        if not np.any(others):
            return _not_fitted("calibration needs pairs with unequal rewards in every fold")
        calibrated_P[inside_P] = delta_P[inside_P] / fit_temperature(others).value
    fitted = fit_temperature(delta_P)
    return Calibration(
        temperature=fitted.value, delta_P=calibrated_P, folds=folds, note=fitted.note
    )


def folds_of(groups: int, *, folds: int = 5, seed: int = 0) -> npt.NDArray[np.int64]:
    """A fold for each prompt group, at random (seeded), sizes to within one group."""
    return np.random.default_rng(seed).permutation(groups) % max(1, min(folds, groups))


def cross_fit_isotonic(
    confidence_P: FloatArray,
    credit_P: FloatArray,
    group_P: npt.NDArray[np.int64],
    *,
    folds: int = 5,
    seed: int = 0,
) -> FloatArray | None:
    """Confidences by isotonic regression on the other folds of prompt groups.

    Rises with the model's confidence and stays within 0.5 and 1. ``None`` with fewer than two
    groups.
    """
    from sklearn.isotonic import IsotonicRegression

    _, code_P = np.unique(group_P, return_inverse=True)
    groups = int(code_P.max()) + 1 if len(code_P) else 0
    if groups < 2:
        return None
    fold_P = folds_of(groups, folds=folds, seed=seed)[code_P]
    calibrated_P = np.empty_like(confidence_P)
    for fold in range(int(fold_P.max()) + 1):
        inside_P = fold_P == fold
        model = IsotonicRegression(y_min=0.5, y_max=1.0, out_of_bounds="clip")
        model.fit(confidence_P[~inside_P], credit_P[~inside_P])
        calibrated_P[inside_P] = model.predict(confidence_P[inside_P])
    return calibrated_P


def _not_fitted(note: str) -> Calibration:
    return Calibration(temperature=None, delta_P=None, folds=0, note=note)
