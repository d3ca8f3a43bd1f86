from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from plaudit.evaluate.calibrate import cross_fit, cross_fit_isotonic, fit_temperature
from plaudit.evaluate.metrics import (
    confidences,
    expected_calibration_error,
    nll,
    pair_credits,
    reliability_equal_width,
)

DELTAS = arrays(
    np.float64, st.integers(2, 60), elements=st.floats(-5, 5).map(lambda value: round(value, 2))
)


@settings(deadline=None)
@given(DELTAS)
def test_temperature_equals_unpenalised_logistic_regression(delta_P):
    assume(np.any(delta_P))
    fitted = fit_temperature(delta_P)
    if fitted.note is not None:
        return
    labels = np.repeat([1, 0], len(delta_P))
    slope = (
        LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
        .fit(np.concatenate([delta_P, -delta_P])[:, None], labels)
        .coef_[0, 0]
    )
    assert 1 / fitted.value == pytest.approx(slope, rel=1e-3, abs=1e-4)


@settings(deadline=None)
@given(DELTAS)
def test_no_other_temperature_within_the_bounds_is_better(delta_P):
    assume(np.any(delta_P))
    fitted = fit_temperature(delta_P)
    best = nll(delta_P / fitted.value)
    scale = np.abs(delta_P).mean()
    for temperature in scale * np.geomspace(0.1, 1000, 60):
        assert nll(delta_P / temperature) >= best - 1e-9


@settings(deadline=None)
@given(DELTAS, st.floats(1e-6, 1e6))
def test_temperature_scales_with_the_rewards(delta_P, factor):
    assume(np.any(delta_P))
    assert fit_temperature(delta_P * factor).value == pytest.approx(
        fit_temperature(delta_P).value * factor, rel=1e-6
    )


def test_known_overconfidence_is_recovered():
    generator = np.random.default_rng(0)
    probability_P = generator.uniform(0.02, 0.98, size=20_000)
    side_P = np.where(generator.uniform(size=20_000) < probability_P, 1.0, -1.0)
    delta_P = 3.0 * side_P * logit(probability_P)
    assert fit_temperature(delta_P).value == pytest.approx(3.0, rel=0.05)
    calibrated = cross_fit(delta_P, np.arange(20_000))
    assert calibrated.temperature == pytest.approx(3.0, rel=0.05)
    assert nll(calibrated.delta_P) < nll(delta_P) - 0.1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_separation_stops_at_a_bound_and_says_so(sign):
    delta_P = sign * np.linspace(0.5, 2, 40)
    fitted = fit_temperature(delta_P)
    assert fitted.note is not None
    calibrated = cross_fit(delta_P, np.arange(40))
    assert calibrated.note == fitted.note
    assert np.isfinite(calibrated.delta_P).all()
    mean_probability = expit(calibrated.delta_P).mean()
    assert mean_probability > 0.98 if sign > 0 else mean_probability == pytest.approx(0.5, abs=1e-3)


def test_every_pair_is_calibrated_without_its_own_group():
    generator = np.random.default_rng(6)
    delta_P = generator.normal(0.3, 1.0, size=60)
    group_P = np.repeat(np.arange(12), 5)
    before = cross_fit(delta_P, group_P, folds=12)
    changed_P = delta_P.copy()
    changed_P[group_P == 3] *= -1
    after = cross_fit(changed_P, group_P, folds=12)
    same = group_P == 3
    # Turning a group over changes every temperature but the one fitted without it.
    assert after.delta_P[same] == pytest.approx(-before.delta_P[same], rel=1e-12)
    assert not np.isclose(after.delta_P[~same], before.delta_P[~same], rtol=1e-9).any()


def test_equal_seeds_give_equal_folds():
    delta_P = np.random.default_rng(7).normal(0.3, 1.0, size=100)
    group_P = np.arange(100) // 2
    first, again, other = (cross_fit(delta_P, group_P, seed=seed) for seed in (1, 1, 2))
    assert (first.delta_P == again.delta_P).all()
    assert (first.delta_P != other.delta_P).any()
    assert first.temperature == other.temperature


@pytest.mark.parametrize(
    ("delta_P", "group_P", "reason"),
    [
        ([], [], "found 0"),
        ([1.0, -1.0], [4, 4], "found 1"),
        ([0.0, 0.0], [0, 1], "unequal rewards"),
        ([1.0, 0.0], [0, 1], "unequal rewards"),
    ],
)
def test_nothing_to_fit_gives_none_with_the_reason(delta_P, group_P, reason):
    found = cross_fit(np.array(delta_P), np.array(group_P, dtype=np.int64))
    assert found.temperature is None
    assert found.delta_P is None
    assert reason in found.note


def overconfident(count, factor, seed=0):
    """Differences ``factor`` times as large as the probabilities of being right allow."""
    generator = np.random.default_rng(seed)
    honest_P = generator.normal(0.9, 1.1, count)
    side_P = np.where(generator.uniform(size=count) < expit(np.abs(honest_P)), 1.0, -1.0)
    return factor * np.abs(honest_P) * side_P


def error_of(delta_P):
    curve = reliability_equal_width(confidences(delta_P), pair_credits(delta_P))
    return expected_calibration_error(curve)


@pytest.mark.parametrize("seed", range(3))
def test_overconfidence_is_repaired_on_pairs_it_was_not_fitted_on(seed):
    delta_P = overconfident(3000, 4.0, seed)
    group_P = np.arange(3000) // 2
    found = cross_fit(delta_P, group_P)
    assert error_of(delta_P) > 0.1
    assert error_of(found.delta_P) < 0.03
    fresh = overconfident(3000, 4.0, seed + 100)
    assert error_of(fresh / found.temperature) < 0.03


def test_isotonic_regression_is_fitted_without_the_pairs_own_prompt():
    delta_P = overconfident(2000, 4.0)
    group_P = np.arange(2000) // 2
    confidence_P, credit_P = confidences(delta_P), pair_credits(delta_P)
    found_P = cross_fit_isotonic(confidence_P, credit_P, group_P)
    assert ((found_P >= 0.5) & (found_P <= 1.0)).all()
    error = expected_calibration_error(reliability_equal_width(found_P, credit_P))
    assert error < 0.03 < error_of(delta_P)
    turned_P = credit_P.copy()
    turned_P[:2] = 1 - turned_P[:2]
    again_P = cross_fit_isotonic(confidence_P, turned_P, group_P)
    assert again_P[:2] == pytest.approx(found_P[:2])
    assert cross_fit_isotonic(confidence_P[:2], credit_P[:2], group_P[:2]) is None
