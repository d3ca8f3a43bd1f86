from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit
from scipy.stats import norm, sem

from plaudit.evaluation.metrics.calibration import (
    FOLDS,
    PRIOR_SD,
    best_temperature,
    beyond_noise,
    cross_fit,
    cross_fit_isotonic,
    improvement,
    shrunk_temperature,
)
from plaudit.evaluation.metrics.pairwise import (
    bradley_terry_losses,
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
def test_no_other_temperature_within_the_bounds_is_better(delta_P):
    assume(np.any(delta_P))
    best = nll(delta_P / best_temperature(delta_P))
    scale = np.abs(delta_P).mean()
    for temperature in scale * np.geomspace(0.1, 1000, 60):
        assert nll(delta_P / temperature) >= best - 1e-9


@settings(deadline=None)
@given(DELTAS, st.floats(1e-6, 1e6))
def test_temperature_scales_with_the_rewards(delta_P, factor):
    assume(np.any(delta_P))
    assert best_temperature(delta_P * factor) == pytest.approx(
        best_temperature(delta_P) * factor, rel=1e-6
    )


def test_known_overconfidence_is_recovered():
    generator = np.random.default_rng(0)
    probability_P = generator.uniform(0.02, 0.98, size=20_000)
    side_P = np.where(generator.uniform(size=20_000) < probability_P, 1.0, -1.0)
    delta_P = 3.0 * side_P * logit(probability_P)
    assert best_temperature(delta_P) == pytest.approx(3.0, rel=0.05)
    calibrated = cross_fit(delta_P, np.arange(20_000))
    assert calibrated.temperature == pytest.approx(3.0, rel=0.05)
    assert nll(calibrated.delta_P) < nll(delta_P) - 0.1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_best_temperature_of_separable_pairs_stops_at_a_bound(sign):
    delta_P = sign * np.linspace(0.5, 2, 40)
    bound = 0.1 if sign > 0 else 1000
    assert best_temperature(delta_P) == pytest.approx(bound * 1.25)
    calibrated = cross_fit(
        delta_P, np.arange(40), estimator=lambda others_P, _: best_temperature(others_P)
    )
    assert np.isfinite(calibrated.delta_P).all()
    mean_probability = expit(calibrated.delta_P).mean()
    assert mean_probability > 0.98 if sign > 0 else mean_probability == pytest.approx(0.5, abs=1e-3)


@settings(deadline=None, max_examples=50)
@given(DELTAS, st.integers(2, 500), st.floats(-4, 4))
# The best T is below a tenth of the mean difference.
@example(np.array([20.0, 1.2]), 73, 0.0)
def test_the_shrunk_temperature_is_the_mode_of_its_posterior(delta_P, prompts, log_scale):
    """Written out: Platt's targets, each prompt once, a normal prior on log T, on a fine grid."""
    delta_P = delta_P * np.exp(log_scale)
    assume(np.any(delta_P))
    right = (prompts + 1) / (prompts + 2)

    def posterior(log_t):
        chosen = expit(delta_P[:, None] / np.exp(log_t))
        other = expit(-delta_P[:, None] / np.exp(log_t))
        likelihood = right * np.log(chosen) + (1 - right) * np.log(other)
        return prompts * likelihood.mean(axis=0) + norm.logpdf(log_t, 0, PRIOR_SD)

    with np.errstate(divide="ignore"):
        found = posterior(np.log([shrunk_temperature(delta_P, prompts)]))[0]
        assert found >= posterior(np.linspace(-12, 12, 4001)).max() - 1e-6


def test_few_pairs_are_shrunk_more_than_many():
    """Rewards three times too large: of 10 pairs T is little above 1, of 1,000 nearly 3."""
    temperatures = [
        np.mean([shrunk_temperature(overconfident(n, 3.0, seed), n) for seed in range(20)])
        for n in (10, 100, 1000)
    ]
    assert temperatures == sorted(temperatures)
    assert 1.2 < temperatures[0] < 2.4
    assert temperatures[2] == pytest.approx(3.0, rel=0.05)
    # Pairs of one prompt say no more than the prompt does.
    delta_P = overconfident(100, 3.0)
    assert shrunk_temperature(delta_P, 10) < shrunk_temperature(delta_P, 100)


def test_pairs_without_a_mistake_call_for_no_certainty():
    """Seven small differences, all right, once gave T = 0.0026 and a probability of 0.965."""
    delta_P = np.array([0.002, 0.009, 0.013, 0.02, 0.03, 0.05, 0.06])
    temperature = shrunk_temperature(delta_P, 7)
    assert expit(0.009 / temperature) < 0.55
    assert cross_fit(delta_P, np.arange(7)).accepted is None


def synthetic_run(seed):
    """The pairs of a run, 10 to 500 of them, and 5,000 held-out ones; most are calibrated."""
    generator = np.random.default_rng(seed)
    count = int(np.geomspace(10, 500, 20)[seed % 20])
    true_temperature = float(generator.choice([0.4, 1.0, 1.0, 1.0, 2.0]))
    size = generator.choice([0.5, 1.0, 3.0])

    def draw(pairs):
        honest_P = np.abs(generator.normal(0, size, pairs))
        side_P = np.where(generator.uniform(size=pairs) < expit(honest_P), 1.0, -1.0)
        return true_temperature * honest_P * side_P

    return draw(count), draw(5000), np.arange(count) // generator.integers(1, 3)


@pytest.mark.parametrize("repetition", range(5))
def test_an_accepted_temperature_is_never_worse_than_1_beyond_noise(repetition):
    """20 runs of 10 to 500 pairs: held-out log loss in every run, and on average.

    Noise is the standard error of the difference on as many pairs as the run has.
    """
    excesses = []
    for number in range(20):
        delta_P, held_out_P, group_P = synthetic_run(20 * repetition + number)
        temperature = cross_fit(delta_P, group_P).accepted or 1.0
        excess_P = bradley_terry_losses(held_out_P / temperature) - bradley_terry_losses(held_out_P)
        assert excess_P.mean() <= excess_P.std() / np.sqrt(len(delta_P)), (number, temperature)
        excesses.append(excess_P.mean())
    assert np.mean(excesses) < 0


def test_a_gain_is_certain_only_with_the_evidence_for_it():
    """Few pairs without a mistake have hardly any spread; that is no certainty."""
    delta_P = np.full(20, 2.2)
    gain = improvement(delta_P, 1.2 * delta_P, np.arange(20))
    assert gain.mean > 0
    assert gain.interval.low < 0
    many = improvement(np.full(400, 2.2), np.full(400, 2.64), np.arange(400))
    assert beyond_noise(many)
    assert not beyond_noise(improvement(delta_P, 1.2 * delta_P, np.zeros(20, dtype=int)))


@settings(deadline=None)
@given(DELTAS, st.floats(0.3, 3), st.integers(1, 4))
def test_a_gain_is_the_paired_difference_of_expected_losses(delta_P, factor, pairs_each):
    group_P = np.arange(len(delta_P)) // pairs_each
    gain = improvement(delta_P, factor * delta_P, group_P)
    groups = group_P[-1] + 1
    right = (groups + 1) / (groups + 2)
    expected = [
        right * (nll(delta_P[[p]]) - nll(factor * delta_P[[p]]))
        + (1 - right) * (nll(-delta_P[[p]]) - nll(-factor * delta_P[[p]]))
        for p in range(len(delta_P))
    ]
    assert gain.mean == pytest.approx(np.mean(expected), abs=1e-12)
    if pairs_each == 1:
        assert gain.standard_error >= sem(expected) - 1e-12


def test_every_pair_is_calibrated_without_its_own_group():
    generator = np.random.default_rng(6)
    delta_P = generator.normal(0.3, 1.0, size=60)
    group_P = np.repeat(np.arange(FOLDS), 12)
    before = cross_fit(delta_P, group_P)
    changed_P = delta_P.copy()
    changed_P[group_P == 3] *= -1
    after = cross_fit(changed_P, group_P)
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
        ([], [], "the data have 0"),
        ([1.0, -1.0], [4, 4], "the data have 1"),
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
