from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from plaudit.evaluate.calibrate import cross_fit, fit_temperature
from plaudit.evaluate.metrics import nll

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
