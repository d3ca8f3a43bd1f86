"""Law 9: metrics equal scikit-learn, SciPy and statsmodels on random inputs."""

from __future__ import annotations

import math
import statistics
import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    brier_score_loss,
    cohen_kappa_score,
    log_loss,
    mean_absolute_error,
    ndcg_score,
    roc_auc_score,
    root_mean_squared_error,
)
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from plaudit.evaluation.analysis.surface import (
    measure_length_bias,
)
from plaudit.evaluation.compare import (
    Scored,
    align,
    compare_aligned,
    kappa,
)
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.calibration import (
    best_temperature,
)
from plaudit.evaluation.metrics.pairwise import (
    benjamini_hochberg,
    clustered_p,
    holm,
    mcnemar,
    paired_difference,
    paired_test,
)
from plaudit.evaluation.metrics.ranks import correlate, rank
from plaudit.evaluation.metrics.ratings import measure_ratings
from plaudit.evaluation.metrics.ties import measure_ties
from plaudit.evaluation.table import pairs
from plaudit.types import TrainedObjective
from tests.evaluation.test_compare import noisy
from tests.evaluation.test_pairwise import DELTAS, equal_width, group_bootstrap
from tests.evaluation.test_regression import checked
from tests.evaluation.test_summary import summary
from tests.tables import score_table, table_of_deltas, table_of_grades, table_of_lengths


def both_orders(delta_P):
    """Labels and probabilities of every pair, shown in both orders."""
    labels = np.repeat([1, 0], len(delta_P))
    return labels, expit(np.concatenate([delta_P, -delta_P]))


@settings(deadline=None)
@given(DELTAS)
def test_nll_and_brier_equal_sklearn(delta_P):
    labels, probabilities = both_orders(delta_P)
    assert pairwise.nll(delta_P) == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert pairwise.brier(delta_P) == pytest.approx(brier_score_loss(labels, probabilities))


@settings(deadline=None)
@given(DELTAS, st.floats(0, 3))
def test_loss_with_margin_equals_scipy(delta_P, margin):
    expected = -stats.logistic.logcdf(delta_P - margin)
    assert pairwise.bradley_terry_losses(delta_P, margin) == pytest.approx(expected)
    assert pairwise.bradley_terry_loss(delta_P, margin) == pytest.approx(expected.mean())


@settings(deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_statsmodels(counts):
    successes, trials = counts
    expected = proportion_confint(successes, trials, alpha=0.05, method="wilson")
    assert pairwise.wilson(successes, trials) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(DELTAS, st.integers(1, 15))
def test_equal_width_reliability_equals_sklearn(delta_P, bins):
    delta_P = delta_P[delta_P != 0]  # sklearn has no half-right answer
    curve = equal_width(delta_P, bins)
    # Confidence 0.5 to 1 spread over 0 to 1, where sklearn makes its bins.
    edges = np.linspace(0, 1, bins + 1)
    spread = (pairwise.confidences(delta_P) - 0.5) * 2
    if np.isclose(spread[:, None], edges[None, 1:-1], atol=1e-9).any() or not len(delta_P):
        return
    accuracy_B, spread_B = calibration_curve(delta_P > 0, spread, n_bins=bins)
    assert curve.accuracy_B == pytest.approx(accuracy_B)
    assert curve.confidence_B == pytest.approx(spread_B / 2 + 0.5)
    assert curve.pairs_B.sum() == len(delta_P)


@settings(deadline=None)
@given(DELTAS)
def test_spread_equals_numpy(delta_P):
    spread = pairwise.spread(delta_P)
    assert (spread.min, spread.max) == (stats.tmin(delta_P), stats.tmax(delta_P))
    assert spread.mean == pytest.approx(stats.tmean(delta_P), abs=1e-12)
    assert spread.std == pytest.approx(statistics.pstdev(delta_P.tolist()), abs=1e-9)


GROUPED = st.integers(3, 40).flatmap(
    lambda size: st.tuples(
        arrays(np.float64, size, elements=st.floats(0, 5).map(lambda value: round(value, 3))),
        arrays(np.float64, size, elements=st.floats(0, 5).map(lambda value: round(value, 3))),
        arrays(np.int64, size, elements=st.integers(0, 8)),
    )
)


@settings(deadline=None)
@given(GROUPED)
def test_paired_difference_equals_clustered_regression(inputs):
    loss_a_P, loss_b_P, group_P = inputs
    found = pairwise.paired_difference(loss_a_P, loss_b_P, group_P)
    assert found.groups == len(set(group_P.tolist()))
    assert found.pairs == len(group_P)
    if found.groups < 2:
        assert found.standard_error is None
        assert found.interval is None
        return
    expected = sm.OLS(loss_b_P - loss_a_P, np.ones(len(group_P))).fit(
        cov_type="cluster", cov_kwds={"groups": group_P}, use_t=True
    )
    assert found.mean == pytest.approx(expected.params[0], abs=1e-9)
    assert found.standard_error == pytest.approx(expected.bse[0], abs=1e-9)
    assert found.interval == pytest.approx(expected.conf_int()[0], abs=1e-7)


def test_bootstrap_of_lone_pairs_equals_scipy():
    values = np.random.default_rng(2).normal(size=200)
    found = group_bootstrap(
        lambda drawn: float(values[drawn].mean()), np.arange(200), resamples=4000
    )
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)


P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
@example(300, 351)
def test_mcnemar_equals_statsmodels(only_a, only_b):
    expected = reference_mcnemar([[3, only_a], [only_b, 5]], exact=True).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(min(expected, 1.0), rel=1e-9)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(P_VALUES)
def test_corrections_equal_statsmodels(p_values):
    for adjust, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        expected = multipletests(p_values, method=method)[1]
        assert adjust(p_values) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-3, 3).map(lambda value: round(value, 3)), st.integers(0, 9)),
        min_size=2,
        max_size=40,
    )
)
def test_clustered_p_equals_statsmodels(inputs):
    difference_P = np.array([value for value, _ in inputs])
    group_P = np.array([group for _, group in inputs])
    found = paired_difference(np.zeros(len(inputs)), difference_P, group_P)
    p = clustered_p(found)
    if found.groups < 2:
        assert p is None
        return
    fitted = sm.OLS(difference_P, np.ones(len(inputs))).fit(
        cov_type="cluster", cov_kwds={"groups": group_P}, use_t=True
    )
    if found.standard_error > 1e-9:
        assert p == pytest.approx(fitted.pvalues[0], abs=1e-7)


ANSWER = st.tuples(st.integers(-3, 3), st.integers(-2, 3))


COMPARISONS = st.lists(st.lists(ANSWER, min_size=2, max_size=7), min_size=1, max_size=8)


@settings(deadline=None)
@given(COMPARISONS)
def test_rank_metrics_equal_scipy_and_sklearn(comparisons):
    ranks = rank(table_of_grades(comparisons), fewest=2)
    asked = [c for c in comparisons if len({grade for _, grade in c}) > 1]
    assert len(ranks) == len(asked)
    for number, comparison in enumerate(asked):
        rewards, grades = map(np.array, zip(*comparison, strict=True))
        tau = stats.kendalltau(rewards, grades).statistic
        assert ranks.tau_b_C[number] == pytest.approx(0.0 if math.isnan(tau) else tau, abs=1e-12)
        gains = (grades - grades.min()).astype(float)
        expected = ndcg_score([gains], [rewards])
        assert ranks.ndcg_C[number] == pytest.approx(expected, abs=1e-9)
        first = rewards == rewards.max()
        assert ranks.top1_C[number] == pytest.approx((grades == grades.max())[first].mean())
        assert ranks.chance_C[number] == pytest.approx((grades == grades.max()).mean())
        assert ranks.responses_C[number] == len(comparison)


NUMBERS = st.integers(-20, 20).map(lambda value: value / 4)


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 9)), min_size=3, max_size=40))
def test_correlations_equal_scipy(rows):
    x_P, y_P, group = map(np.array, zip(*rows, strict=True))
    facts = correlate(x_P, y_P, group.astype(np.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "pearson": stats.pearsonr(x_P, y_P).statistic,
            "spearman": stats.spearmanr(x_P, y_P).statistic,
        }
    for name, value in expected.items():
        if math.isnan(value):
            assert math.isnan(getattr(facts, name))
        else:
            assert getattr(facts, name) == pytest.approx(value, abs=1e-9)


@settings(deadline=None)
@given(arrays(np.float64, st.integers(2, 60), elements=st.floats(-5, 5).map(lambda d: round(d, 2))))
def test_temperature_equals_unpenalised_logistic_regression(delta_P):
    assume(np.any(delta_P))
    fitted = best_temperature(delta_P)
    # Separable pairs, or none better than chance: a bound, not an optimum.
    scale = np.abs(delta_P).mean()
    assume(0.11 * scale < fitted < 900 * scale)
    labels = np.repeat([1, 0], len(delta_P))
    slope = (
        LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
        .fit(np.concatenate([delta_P, -delta_P])[:, None], labels)
        .coef_[0, 0]
    )
    assert 1 / fitted == pytest.approx(slope, rel=1e-3, abs=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-12, 12).map(lambda d: round(d, 3)), min_size=2, max_size=40))
def test_both_forms_of_the_scores_equal_sklearn(deltas):
    """Log loss and Brier as trained, from the answer's side and from the confidence's side."""
    block = summary(score_table([{"reward": delta}, {}] for delta in deltas))
    labels = np.repeat([1, 0], len(deltas))
    probabilities = expit(np.concatenate([deltas, np.negative(deltas)]))
    expected = {
        "nll": log_loss(labels, probabilities),
        "brier": brier_score_loss(labels, probabilities),
    }
    for name, value in expected.items():
        assert getattr(block, name) == pytest.approx(value, abs=1e-9)
        assert getattr(block.calibrations.uncalibrated, name) == pytest.approx(value, abs=1e-9)


ANSWERS = st.lists(
    st.tuples(st.integers(-9, 9).map(lambda r: r / 2), st.integers(0, 2), st.integers(0, 50)),
    min_size=2,
    max_size=4,
)


@settings(deadline=None, max_examples=50)
@given(st.lists(ANSWERS, min_size=3, max_size=12))
def test_slope_and_spearman_equal_statsmodels_and_scipy(comparisons):
    table = table_of_lengths(comparisons)
    facts = measure_length_bias(table, pairs(table))
    length, reward = table.characters_N.astype(float), table.reward_N
    number = table.number_N
    dummies = (number[:, None] == np.unique(number)).astype(float)
    within = length - dummies @ (dummies.T @ length / dummies.sum(0))
    if (within != 0).sum() > 1 and reward.std() > 0 and abs(within).max() > 1e-9:
        slope = sm.OLS(reward, np.column_stack([length, dummies])).fit().params[0]
        expected = slope * 100 / reward.std()
        assert facts.slope_per_100_characters == pytest.approx(expected, rel=1e-7, abs=1e-7)
    if length.std() > 0 and reward.std() > 0:
        expected = stats.spearmanr(reward, length).statistic
        assert facts.spearman == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_scikit_learns(seed: int) -> None:
    a, b = np.random.default_rng(seed).integers(0, 2, size=(2, 60))
    assert kappa(a, b) == pytest.approx(cohen_kappa_score(a, b), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_log_loss_is_tested_as_scipy_does(seed: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, 40))
    test = paired_test("nll", a, b, np.arange(40))
    assert test.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_agreement_is_scipys() -> None:
    a, b = np.random.default_rng(2).normal(size=(2, 30))
    result = compare_aligned(
        align(
            [Scored(name="a", table=table_of_deltas(a)), Scored(name="b", table=table_of_deltas(b))]
        )
    )
    found = result.model_pairs[0].agreement
    assert found.pearson == pytest.approx(stats.pearsonr(a, b).statistic, rel=1e-9)
    assert found.spearman == pytest.approx(stats.spearmanr(a, b).statistic, rel=1e-9)
    assert found.both_right == int(((a > 0) & (b > 0)).sum())
    assert found.only_a_right == int(((a > 0) & (b <= 0)).sum())


def test_the_p_value_is_scipys_and_alpha_decides() -> None:
    model, baseline = noisy(5, 0.5, 60), noisy(6, 0.6, 60)
    expected = stats.ttest_rel(np.logaddexp(0, -model), np.logaddexp(0, -baseline)).pvalue
    result = checked(model, baseline, metrics=("nll",))
    assert result.metrics["nll"].p_holm == pytest.approx(expected, rel=1e-9)
    worse = result.metrics["nll"].difference > 0
    for alpha in (expected * 1.01, expected * 0.99):
        assert checked(model, baseline, metrics=("nll",), alpha=alpha).passed == (
            not (worse and expected < alpha)
        )


# ---- ratings and ties

RATED = st.lists(st.tuples(NUMBERS, st.integers(1, 5), st.integers(0, 6)), min_size=3, max_size=40)
LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
STEPS = (-1.5, 0.1, -0.4, 0.3)


def table_of_ratings(rows):
    """Rated responses as (reward, rating, prompt), and a pair without ratings beside them."""
    return score_table(
        [
            [{"reward": 9.0, "grade": 1.0}, {"reward": -9.0, "grade": 0.0}],
            *(
                [{"reward": float(x), "grade": float(y), "group": f"g{group}", "rated": True}]
                for x, y, group in rows
            ),
        ]
    )


def expected_rating(kind, reward_N):
    """What a model expects, a probability of each level written out."""
    if kind != "ordinal":
        return reward_N
    thresholds = np.cumsum([STEPS[0], *np.exp(STEPS[1:])])
    below = stats.logistic.cdf(thresholds[None, :] - reward_N[:, None])
    edges = np.column_stack([np.zeros(len(reward_N)), below, np.ones(len(reward_N))])
    return np.diff(edges, axis=1) @ np.array(LEVELS)


@pytest.mark.parametrize("kind", ["mse", "huber", "ordinal"])
@settings(deadline=None, max_examples=20)
@given(RATED)
@example([(0.1, rating, 0) for rating in LEVELS[:3]])
def test_rating_metrics_equal_scipy_and_sklearn(kind, rows):
    """Equal rewards and equal ratings among them."""
    objective = TrainedObjective(kind=kind, learned=STEPS, levels=LEVELS)
    found = measure_ratings(table_of_ratings(rows), objective)
    reward_N, rating_N, group_N = map(np.array, zip(*rows, strict=True))
    predicted_N = expected_rating(kind, reward_N)
    assert (found.responses, found.prompts) == (len(rows), len(set(group_N.tolist())))
    assert found.mae == pytest.approx(mean_absolute_error(rating_N, predicted_N))
    assert found.rmse == pytest.approx(root_mean_squared_error(rating_N, predicted_N))
    assert found.bias == pytest.approx(predicted_N.mean() - rating_N.mean(), abs=1e-12)
    constant = np.full(len(rows), statistics.median(rating_N.tolist()))
    assert found.mae_of_median == pytest.approx(mean_absolute_error(rating_N, constant))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "pearson": stats.pearsonr(reward_N, rating_N).statistic,
            "spearman": stats.spearmanr(reward_N, rating_N).statistic,
        }
    varies = len(set(reward_N.tolist())) > 1
    expected["calibration_slope"] = (
        stats.linregress(predicted_N, rating_N).slope if varies else math.nan
    )
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-7, abs=1e-9, nan_ok=True), name
    assert found.log_loss is None
    if not set(rating_N.tolist()) <= {0, 1}:
        assert found.auc is None


BINARY = st.lists(st.tuples(NUMBERS, st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=40)


@pytest.mark.parametrize("kind", ["bce", "mse"])
@settings(deadline=None, max_examples=20)
@given(BINARY)
def test_binary_metrics_equal_sklearn(kind, rows):
    found = measure_ratings(table_of_ratings(rows), TrainedObjective(kind=kind))
    reward_N, label_N, _ = map(np.array, zip(*rows, strict=True))
    both = len(set(label_N.tolist())) == 2
    expected = roc_auc_score(label_N, reward_N) if both else math.nan
    assert found.auc == pytest.approx(expected, nan_ok=True)
    if kind == "bce":
        assert found.log_loss == pytest.approx(log_loss(label_N, expit(reward_N), labels=[0, 1]))
        assert found.mae == pytest.approx(mean_absolute_error(label_N, expit(reward_N)))


def test_the_interval_of_an_auc_is_that_of_written_out_resamples():
    """A prompt drawn twice gives its responses twice; a resample of one label has no AUC."""
    seed = 5
    rng = np.random.default_rng(seed)
    group_N = np.repeat(np.arange(12), rng.integers(1, 5, size=12))
    label_N = rng.integers(0, 2, size=len(group_N))
    reward_N = np.round(label_N + rng.normal(size=len(group_N)))
    found = measure_ratings(
        table_of_ratings(zip(reward_N, label_N, group_N, strict=True)),
        TrainedObjective(kind="mse"),
        seed=seed,
    )
    draws = np.random.default_rng(seed)
    members = [np.flatnonzero(group_N == group) for group in range(12)]
    aucs = []
    for _ in range(1000):
        drawn = np.concatenate([members[group] for group in draws.integers(12, size=12)])
        if len(set(label_N[drawn].tolist())) == 2:
            aucs.append(roc_auc_score(label_N[drawn], reward_N[drawn]))
    assert found.auc_ci95 == pytest.approx(np.quantile(aucs, [0.025, 0.975]), abs=1e-12)


def test_calibration_error_of_labels_equals_sklearn():
    rng = np.random.default_rng(1)
    reward_N = rng.normal(size=200)
    label_N = (rng.random(200) < expit(0.5 * reward_N)).astype(int)
    found = measure_ratings(
        table_of_ratings(zip(reward_N, label_N, range(200), strict=True)),
        TrainedObjective(kind="bce"),
    )
    share_B, mean_B = calibration_curve(label_N, expit(reward_N), n_bins=10, strategy="quantile")
    assert found.ece_equal_mass == pytest.approx(np.abs(share_B - mean_B).mean())


def outcome_probabilities(kind, z_P, parameter):
    """Better, worse, tied: by the ratios of Davidson (1970) and of Rao and Kupper (1967)."""
    strength_P = np.exp(z_P)
    if kind == "davidson":
        tied_P = parameter * np.sqrt(strength_P)
        return np.stack([strength_P, np.ones_like(z_P), tied_P]) / (strength_P + 1 + tied_P)
    better_P, worse_P = strength_P / (strength_P + parameter), 1 / (1 + parameter * strength_P)
    return np.stack([better_P, worse_P, 1 - better_P - worse_P])


@pytest.mark.parametrize(
    ("kind", "parameter", "learned"),
    [("davidson", 0.8, math.log(0.8)), ("rao_kupper", 1.7, math.log(math.log(1.7)))],
)
@settings(deadline=None, max_examples=20)
@given(COMPARISONS)
def test_tie_metrics_equal_sklearn(kind, parameter, learned, comparisons):
    objective = TrainedObjective(kind=kind, temperature=0.8, learned=(learned,))
    found = measure_ties(table_of_grades(comparisons), objective)
    every = [(a, b) for one in comparisons for i, a in enumerate(one) for b in one[i + 1 :]]
    z_P = np.array([(a[0] - b[0]) / 0.8 for a, b in every])
    outcome_P = np.array([0 if a[1] > b[1] else 1 if a[1] < b[1] else 2 for a, b in every])
    probability_3P = outcome_probabilities(kind, z_P, parameter)
    tied_P = outcome_P == 2
    assert (found.pairs, found.ties) == (len(every), tied_P.sum())
    assert found.share == pytest.approx(tied_P.mean())
    assert found.expected_share == pytest.approx(probability_3P[2].mean())
    assert found.log_loss == pytest.approx(log_loss(outcome_P, probability_3P.T, labels=[0, 1, 2]))
    # Either of two responses may stand first: both orders of every pair.
    shares = np.bincount(np.concatenate([outcome_P, np.array([1, 0, 2])[outcome_P]]), minlength=3)
    constant = np.tile(shares / shares.sum(), (len(every), 1))
    assert found.log_loss_constant == pytest.approx(
        log_loss(outcome_P, constant, labels=[0, 1, 2]), abs=1e-9
    )
    expected = roc_auc_score(tied_P, -np.abs(z_P)) if 0 < tied_P.sum() < len(every) else math.nan
    assert found.auc == pytest.approx(expected, nan_ok=True)
