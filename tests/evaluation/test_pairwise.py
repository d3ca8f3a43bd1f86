from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import accuracy_score
from statsmodels.stats.proportion import proportions_ztest

from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.pairwise import (
    against_the_rest,
    benjamini_hochberg,
    holm,
)
from plaudit.evaluation.schema import parts

# Beyond about 35 the references' probabilities round to 1, and their logarithm with it.
DELTAS = arrays(
    np.float64,
    st.integers(1, 60),
    elements=st.floats(-20, 20).map(lambda value: round(value, 3)),
)


def group_bootstrap(statistic, group_P, *, resamples=1000, seed=0):
    """The reference: percentile interval of a statistic when whole prompt groups are drawn again.

    ``statistic`` gets the indices of the drawn pairs (a pair as often as its group was drawn).
    ``None`` with fewer than two groups, where nothing can vary. Seeded: equal input, equal output.
    """
    _, code_P, size_G = np.unique(group_P, return_inverse=True, return_counts=True)
    if len(size_G) < 2:
        return None
    by_group_P = np.argsort(code_P, kind="stable")
    start_G = np.cumsum(size_G) - size_G
    generator = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for number in range(resamples):
        draw_G = generator.integers(len(size_G), size=len(size_G))
        length_G = size_G[draw_G]
        ends_G = np.cumsum(length_G)
        inside = np.arange(ends_G[-1]) - np.repeat(ends_G - length_G, length_G)
        drawn[number] = statistic(by_group_P[np.repeat(start_G[draw_G], length_G) + inside])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return low, high


def equal_width(delta_P, bins=10):
    confidence_P, credit_P = pairwise.confidences(delta_P), pairwise.pair_credits(delta_P)
    return pairwise.reliability_equal_width(confidence_P, credit_P, bins)


def equal_count(delta_P, bins=10):
    confidence_P, credit_P = pairwise.confidences(delta_P), pairwise.pair_credits(delta_P)
    return pairwise.reliability_equal_count(confidence_P, credit_P, bins)


@settings(deadline=None)
@given(DELTAS)
def test_accuracy_and_ties(delta_P):
    ones = np.ones(len(delta_P), dtype=int)
    assert pairwise.accuracy(delta_P) == accuracy_score(ones, delta_P > 0)
    coin = (accuracy_score(ones, delta_P > 0) + accuracy_score(ones, delta_P >= 0)) / 2
    assert pairwise.accuracy_half_ties(delta_P) == pytest.approx(coin)
    assert pairwise.ties(delta_P) == sum(value == 0 for value in delta_P)


def test_wilson_of_the_reference_run():
    low, high = pairwise.wilson(round(0.696 * 2401), 2401)
    assert (high - low) / 2 == pytest.approx(0.018, abs=0.0005)
    assert pairwise.wilson(0, 0) is None


@settings(deadline=None)
@given(DELTAS, st.integers(1, 15))
def test_equal_count_bins_are_even_and_sorted(delta_P, bins):
    curve = equal_count(delta_P, bins)
    assert curve.pairs_B.sum() == len(delta_P)
    assert curve.pairs_B.max() - curve.pairs_B.min() <= 1
    assert (np.diff(curve.confidence_B) >= -1e-12).all()
    assert curve.pairs_B @ curve.accuracy_B == pytest.approx(
        len(delta_P) * pairwise.accuracy_half_ties(delta_P)
    )


def test_calibration_error_by_hand():
    # Two pairs given 0.9 and right, two given 0.6 of which one right.
    delta_P = np.log(np.array([9.0, 9.0, 1.5, 1 / 1.5]))
    expected = 0.5 * abs(1 - 0.9) + 0.5 * abs(0.5 - 0.6)
    for curve in (
        equal_width(delta_P),
        equal_count(delta_P, 2),
    ):
        assert pairwise.expected_calibration_error(curve) == pytest.approx(expected)


@pytest.mark.parametrize("delta", [1e308, 1e4, 1e-300, 0.0])
def test_extreme_differences_stay_finite(delta):
    delta_P = np.array([delta, -delta])
    with np.errstate(all="raise", under="ignore"):
        values = [pairwise.nll(delta_P), pairwise.brier(delta_P), pairwise.accuracy(delta_P)]
        values.append(pairwise.expected_calibration_error(equal_width(delta_P)))
    assert all(math.isfinite(value) for value in values)


def test_no_pairs_give_nan_not_a_number_of_our_making():
    empty = np.empty(0)
    for function in (pairwise.accuracy, pairwise.accuracy_half_ties, pairwise.nll, pairwise.brier):
        assert math.isnan(function(empty))
    for curve in (equal_width(empty), equal_count(empty)):
        assert math.isnan(pairwise.expected_calibration_error(curve))
    assert pairwise.ties(empty) == 0
    assert pairwise.share_interval(empty, np.empty(0, np.int64)) == (None, None, None, None)
    assert all(math.isnan(value) for value in parts(pairwise.spread(empty)).values())


def test_paired_difference_of_lone_pairs_is_the_paired_t_test():
    generator = np.random.default_rng(1)
    loss_a_P, loss_b_P = generator.normal(size=(2, 50))
    found = pairwise.paired_difference(loss_a_P, loss_b_P, np.arange(50))
    expected = stats.ttest_rel(loss_b_P, loss_a_P).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))


def test_bootstrap_draws_whole_groups():
    group_P = np.array([5, 9, 5, 5, 9, 7])
    seen = set()

    def statistic(drawn):
        counts = np.bincount(drawn, minlength=6)
        for group in (5, 9, 7):
            assert len(set(counts[group_P == group])) == 1
        seen.add(tuple(counts))
        return float(len(drawn))

    first = group_bootstrap(statistic, group_P, resamples=200, seed=4)
    assert len(seen) > 5
    assert group_bootstrap(statistic, group_P, resamples=200, seed=4) == first
    assert group_bootstrap(statistic, np.zeros(6, dtype=np.int64)) is None


def test_bootstrap_is_wider_where_pairs_repeat_their_group():
    values = np.repeat(np.random.default_rng(5).normal(size=40), 10)

    def width(group_P):
        low, high = group_bootstrap(lambda drawn: float(values[drawn].mean()), group_P)
        return high - low

    assert width(np.repeat(np.arange(40), 10)) > 2 * width(np.arange(400))


@settings(deadline=None)
@given(DELTAS, st.integers(1, 9))
def test_sums_and_the_plain_bootstrap_draw_alike(delta_P, groups):
    group_P = np.arange(len(delta_P)) % groups
    (found,) = pairwise.bootstrap_means(delta_P[None], group_P, resamples=50, seed=4)
    expected = group_bootstrap(
        lambda drawn: float(delta_P[drawn].mean()), group_P, resamples=50, seed=4
    )
    assert (found is None) == (expected is None)
    if found is not None:
        assert found == pytest.approx(expected, abs=1e-9)


def test_several_series_are_drawn_as_each_alone():
    generator = np.random.default_rng(1)
    series_SP, group_P = generator.normal(size=(3, 50)), generator.integers(0, 12, size=50)
    together = pairwise.bootstrap_means(series_SP, group_P, resamples=200, seed=5)
    for series_P, found in zip(series_SP, together, strict=True):
        (alone,) = pairwise.bootstrap_means(series_P[None], group_P, resamples=200, seed=5)
        assert found == pytest.approx(alone, rel=1e-9)
    assert pairwise.bootstrap_means(series_SP, np.zeros(50, dtype=np.int64)) == [None] * 3


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 0.6, 0.7, 0.9, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=1,
        max_size=7,
    )
)
def test_risk_coverage_is_the_mean_over_all_orders_of_equal_confidence(rows):
    confidence_P, credit_P = map(np.array, zip(*rows, strict=True))
    orders = [
        order
        for order in itertools.permutations(range(len(rows)))
        if (np.diff(confidence_P[list(order)]) <= 0).all()
    ]
    kept = np.arange(1, len(rows) + 1)
    expected = np.mean([np.cumsum(1 - credit_P[list(order)]) / kept for order in orders], axis=0)
    found = pairwise.risk_coverage(confidence_P, credit_P)
    assert found.risk_P == pytest.approx(expected, abs=1e-9)
    assert found.area == pytest.approx(expected.mean(), abs=1e-9)
    kept_pairs, risk = found.at(1.0)
    assert kept_pairs == len(rows)
    assert risk == pytest.approx(1 - credit_P.mean())


def test_error_by_chance_is_what_exact_probabilities_show():
    generator = np.random.default_rng(6)
    confidence_P = generator.uniform(0.5, 1, 2000)
    chance = pairwise.calibration_error_by_chance(confidence_P)
    right_P = (generator.random(2000) < confidence_P).astype(float)
    exact = pairwise.expected_calibration_error(
        pairwise.reliability_equal_width(confidence_P, right_P)
    )
    assert 0.005 < chance < 0.04
    assert exact < 3 * chance
    assert math.isnan(pairwise.calibration_error_by_chance(np.empty(0)))


@pytest.mark.parametrize(("pairs_each", "shared"), [(1, 0.0), (4, 1.0)])
def test_intervals_cover_at_the_stated_rate(pairs_each, shared):
    """150 prompts of one or four pairs, whose answers go together where ``shared`` is not zero."""
    generator = np.random.default_rng(7)
    truth = stats.norm.sf(-0.6 / math.sqrt(1 + shared**2))
    group_P = np.repeat(np.arange(150), pairs_each)
    runs, covered = 400, {"wilson": 0, "bootstrap": 0, "shown": 0}
    for number in range(runs):
        of_prompt = np.repeat(generator.normal(0, 1, 150), pairs_each)
        delta_P = 0.6 + shared * of_prompt + generator.normal(0, 1, len(group_P))
        intervals = {
            "wilson": pairwise.wilson(int((delta_P > 0).sum()), len(delta_P)),
            "bootstrap": pairwise.bootstrap_means(
                (delta_P > 0).astype(float)[None], group_P, resamples=300, seed=number
            )[0],
            "shown": pairwise.share_interval(
                (delta_P > 0).astype(float), group_P, seed=number
            ).shown,
        }
        for name, (low, high) in intervals.items():
            covered[name] += low <= truth <= high
    # 400 runs at 0.95: a standard error of 0.011.
    assert 0.915 <= covered["bootstrap"] / runs <= 0.985
    assert 0.915 <= covered["shown"] / runs <= 0.985
    if pairs_each == 1:
        assert 0.92 <= covered["wilson"] / runs <= 0.98
    else:
        assert covered["wilson"] < covered["bootstrap"] - 0.05 * runs


CREDITS = arrays(np.float64, st.integers(1, 80), elements=st.sampled_from([0.0, 0.5, 1.0]))


@settings(deadline=None)
@given(CREDITS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_one_interval_is_shown_and_holds_the_share(credit_P, pairs_each, shuffle):
    group_P = np.arange(len(credit_P)) // pairs_each
    found = pairwise.share_interval(credit_P, group_P)
    share, groups = credit_P.mean(), len(np.unique(group_P))
    assert found.shown.low - 1e-12 <= share <= found.shown.high + 1e-12
    assert found.wilson == pairwise.wilson(credit_P.sum(), len(credit_P))
    if groups == len(credit_P):
        assert (found.shown, found.method) == (found.wilson, "wilson")
    elif found.method == "bootstrap_by_prompt":
        assert found.shown == found.bootstrap
    else:
        # All prompts alike: as wide as one pair of each would allow.
        assert found.method == "wilson_over_prompts"
        assert found.shown == pytest.approx(pairwise.wilson(share * groups, groups))
    # Names of prompts and the order of pairs do not matter.
    order = list(range(len(credit_P)))
    shuffle.shuffle(order)
    assert pairwise.share_interval(credit_P[order], 7 - group_P[order]) == found


@pytest.mark.parametrize("pairs_each", [1, 3])
def test_the_bootstrap_of_a_share_equals_the_one_over_drawn_pairs(pairs_each):
    """Kinds of prompts drawn by their number, against prompts drawn one by one; and scipy's."""
    generator = np.random.default_rng(4)
    credit_P = generator.choice([0.0, 0.5, 1.0], p=[0.3, 0.1, 0.6], size=240)
    group_P = np.arange(240) // pairs_each
    found = pairwise.share_interval(credit_P, group_P).bootstrap
    drawn = group_bootstrap(lambda rows: credit_P[rows].mean(), group_P, resamples=1000)
    mean_G = credit_P.reshape(-1, pairs_each).mean(axis=1)
    scipys = stats.bootstrap((mean_G,), np.mean, method="percentile", rng=5).confidence_interval
    # A thousand draws: the ends of an interval of width 0.12 shake by some 0.005.
    assert found == pytest.approx(drawn, abs=0.012)
    assert found == pytest.approx(tuple(scipys), abs=0.012)


def test_what_was_not_tested_is_not_corrected():
    assert holm([None, 0.01, None, 0.04]) == [None, 0.02, None, 0.04]
    assert benjamini_hochberg([0.04, None, 0.02]) == [0.04, None, 0.04]
    assert benjamini_hochberg([]) == holm([]) == []


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 12)), min_size=4, max_size=60)
)
def test_a_slice_is_tested_by_the_larger_of_two_variances(rows):
    right_P, inside_P = (np.array([row[at] for row in rows]) for at in (0, 1))
    group_P = np.array([row[2] for row in rows])
    p = against_the_rest(right_P, inside_P, group_P)
    if inside_P.all() or not inside_P.any():
        assert p is None
        return
    if right_P.all() or not right_P.any():
        assert p == 1.0
        return
    counts = [right_P[inside_P].sum(), right_P[~inside_P].sum()]
    _, independent = proportions_ztest(counts, [inside_P.sum(), (~inside_P).sum()])
    # The variance by group, pair by pair, as its definition has it.
    share = right_P.mean()
    weights = [1 / inside_P.sum() if inside else -1 / (~inside_P).sum() for inside in inside_P]
    terms = [w * (right - share) for w, right in zip(weights, right_P, strict=True)]
    clustered = sum(
        first * second
        for first, one in zip(terms, group_P, strict=True)
        for second, other in zip(terms, group_P, strict=True)
        if one == other
    )
    difference = right_P[inside_P].mean() - right_P[~inside_P].mean()
    by_group = (
        2 * stats.norm.sf(abs(difference) / math.sqrt(clustered)) if clustered > 1e-12 else 0.0
    )
    assert p == pytest.approx(max(independent, by_group), abs=1e-9)


@pytest.mark.parametrize("shared", [0.0, 2.0])
def test_no_more_findings_than_stated_where_there_are_none(shared):
    """Slices of 40 of 400 pairs, four pairs a prompt, whose answers may go together."""
    generator = np.random.default_rng(5)
    group_P = np.arange(400) // 4
    false = 0
    for _ in range(400):
        of_prompt = np.repeat(generator.normal(0, shared, 100), 4)
        right_P = of_prompt + generator.normal(0.7, 1, 400) > 0
        inside_P = np.isin(group_P, generator.choice(100, 10, replace=False))
        false += against_the_rest(right_P, inside_P, group_P) < 0.05
    # 400 draws at 0.05: 20 expected, 37 or more in one of ten thousand.
    assert false <= 36
