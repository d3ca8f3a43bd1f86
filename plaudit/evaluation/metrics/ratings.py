"""Rewards against the ratings of single responses: error, correlation, ranking, calibration.

Shapes: N rated responses, L levels.
"""

from __future__ import annotations

import numpy as np

from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.ranks import correlate
from plaudit.evaluation.schema import RatingBin, RatingCurve, RatingMetrics, parts
from plaudit.evaluation.table import CodeArray, ScoreTable, codes
from plaudit.recipe.objectives import learns_from, parameters_of
from plaudit.types import FloatArray, TrainedObjective

_BINS = 10


def predictions(reward_N: FloatArray, objective: TrainedObjective) -> FloatArray:
    """The rating that a model expects: its reward, a probability, or the mean of its levels."""
    from scipy.special import expit

    if objective.kind == "bce":
        probability_N: FloatArray = expit(reward_N)
        return probability_N
    if objective.kind != "ordinal":
        return reward_N
    thresholds = np.asarray(parameters_of(objective.kind, objective.learned)["thresholds"])
    steps = np.diff(np.asarray(objective.levels))
    # The lowest level, and each step up with the probability of being above its threshold.
    above_NL = expit(reward_N[:, None] - thresholds[None, : len(steps)])
    expected_N: FloatArray = objective.levels[0] + above_NL @ steps
    return expected_N


def measure_ratings(
    table: ScoreTable, objective: TrainedObjective | None, *, seed: int = 0
) -> RatingMetrics | None:
    """The rated responses of a table, with intervals by prompt group.

    ``None`` without any, and for a model that was not trained on ratings.
    """
    rated_N = rated_rows(table, objective)
    if objective is None or not len(rated_N):
        return None
    return compare_ratings(
        table.reward_N[rated_N],
        table.grade_N[rated_N],
        codes(table.group_N[rated_N]),
        objective,
        seed=seed,
    )


def compare_ratings(
    reward_N: FloatArray,
    rating_N: FloatArray,
    group_N: CodeArray,
    objective: TrainedObjective,
    *,
    seed: int = 0,
) -> RatingMetrics:
    """The metrics of rewards, or of one output, that learned the ratings of N > 0 responses."""
    predicted_N = predictions(reward_N, objective)
    error_N = predicted_N - rating_N
    constant_N = rating_N - np.median(rating_N)
    delta_N = np.abs(error_N) - np.abs(constant_N)
    mae, mae_constant, delta, bias = pairwise.bootstrap_means(
        np.stack([np.abs(error_N), np.abs(constant_N), delta_N, error_N]), group_N, seed=seed
    )
    binary = is_binary(rating_N)
    probability_N = predicted_N if objective.kind == "bce" else None
    return RatingMetrics(
        responses=len(rating_N),
        prompts=len(np.unique(group_N)),
        mae=float(np.abs(error_N).mean()),
        mae_ci95=mae,
        mae_of_median=float(np.abs(constant_N).mean()),
        mae_of_median_ci95=mae_constant,
        delta_mae=float(delta_N.mean()),
        delta_mae_ci95=delta,
        rmse=float(np.sqrt((error_N**2).mean())),
        bias=float(error_N.mean()),
        bias_ci95=bias,
        **parts(correlate(reward_N, rating_N, group_N, seed=seed)),
        calibration_slope=_slope(predicted_N, rating_N),
        auc=auc(reward_N, rating_N) if binary else None,
        auc_ci95=pairwise.percentile_interval(auc_draws(reward_N, rating_N, group_N, seed=seed))
        if binary
        else None,
        log_loss=None if probability_N is None else _log_loss(reward_N, rating_N),
        ece_equal_mass=None if probability_N is None else _ece(probability_N, rating_N),
    )


def rating_curve(
    table: ScoreTable, objective: TrainedObjective | None, *, seed: int = 0
) -> RatingCurve | None:
    """Expected against given ratings, as a plot shows them; ``None`` as :func:`measure_ratings`.

    A bin for each given rating, or of equal numbers where there are more than ten. Labels 0 and 1
    make a reliability diagram: bins of similar probabilities.
    """
    rated_N = rated_rows(table, objective)
    if objective is None or not len(rated_N):
        return None
    rating_N, group_N = table.grade_N[rated_N], codes(table.group_N[rated_N])
    expected_N = predictions(table.reward_N[rated_N], objective)
    labels = is_binary(rating_N)
    values = np.unique(rating_N)
    if labels or len(values) > _BINS:
        by_N = expected_N if labels else rating_N
        order_N = np.argsort(by_N, kind="stable")
        bins = np.array_split(order_N, min(_BINS, len(order_N)))
    else:
        bins = [np.flatnonzero(rating_N == value) for value in values]
    return RatingCurve(
        by="expected" if labels else "given",
        bins=tuple(
            RatingBin(
                given=float(rating_N[bin_N].mean()),
                given_ci95=pairwise.share_interval(rating_N[bin_N], group_N[bin_N], seed=seed).shown
                if labels
                else None,
                expected=float(expected_N[bin_N].mean()),
                expected_p5=float(np.percentile(expected_N[bin_N], 5)),
                expected_p95=float(np.percentile(expected_N[bin_N], 95)),
                responses=len(bin_N),
            )
            for bin_N in bins
        ),
    )


def rated_rows(table: ScoreTable, objective: TrainedObjective | None) -> CodeArray:
    """Rows with a rating that a model was trained to expect; none for another model."""
    if objective is None or learns_from(objective.kind) != "ratings":
        return np.zeros(0, np.int64)
    return np.flatnonzero(table.rated_N & np.isfinite(table.grade_N))


def is_binary(rating_N: FloatArray) -> bool:
    """Whether ratings are labels: 1 is good and 0 is bad."""
    return bool(np.isin(rating_N, (0.0, 1.0)).all())


def _slope(predicted_N: FloatArray, rating_N: FloatArray) -> float:
    """Of the least-squares line of ratings over predictions: 1 is calibrated, below it the
    predictions spread too far.
    """
    if not np.ptp(predicted_N):
        # Less their mean, equal predictions can leave a rounding error to divide by.
        return float("nan")
    centred_N = predicted_N - predicted_N.mean()
    return float(centred_N @ (rating_N - rating_N.mean()) / (centred_N @ centred_N))


def auc(reward_N: FloatArray, label_N: FloatArray) -> float:
    """The share of (good, bad) pairs in which the good response has the higher reward; ties half.

    Hanley and McNeil (1982). ``nan`` where all labels are the same.
    """
    from scipy.stats import rankdata

    good = float(label_N.sum())
    bad = len(label_N) - good
    if not good or not bad:
        return float("nan")
    ranks = float(rankdata(reward_N)[label_N == 1].sum())
    return (ranks - good * (good + 1.0) / 2.0) / (good * bad)


def auc_draws(
    reward_N: FloatArray,
    label_N: FloatArray,
    group_N: CodeArray,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> FloatArray:
    """:func:`auc` in each of R resamples of whole prompt groups; ``nan`` where it does not exist.

    A resample weights each response by how often its prompt was drawn. Equal groups and seeds draw
    the same prompts, so that differences of two scores are paired.
    """
    _, group_N = np.unique(group_N, return_inverse=True)
    groups = int(group_N.max(initial=-1)) + 1
    drawn_R = np.full(resamples, np.nan)
    if groups < 2:
        return drawn_R
    order_N = np.argsort(reward_N, kind="stable")
    good_N, group_N = label_N[order_N] == 1, group_N[order_N]
    _, level_N = np.unique(reward_N[order_N], return_inverse=True)
    generator = np.random.default_rng(seed)
    for number in range(resamples):
        times_G = np.bincount(generator.integers(groups, size=groups), minlength=groups)
        times_N = times_G[group_N].astype(np.float64)
        good_L = np.bincount(level_N, times_N * good_N)
        bad_L = np.bincount(level_N, times_N * ~good_N)
        below_L = np.cumsum(bad_L) - bad_L
        every = good_L.sum() * bad_L.sum()
        if every:
            drawn_R[number] = (good_L * (below_L + bad_L / 2.0)).sum() / every
    return drawn_R


def _log_loss(reward_N: FloatArray, label_N: FloatArray) -> float:
    return float((np.logaddexp(0.0, reward_N) - label_N * reward_N).mean())


def _ece(probability_N: FloatArray, label_N: FloatArray) -> float:
    """Expected calibration error over ten bins with equal numbers of responses."""
    order_N = np.argsort(probability_N, kind="stable")
    gaps = [
        len(bin_N) * abs(float(probability_N[bin_N].mean() - label_N[bin_N].mean()))
        for bin_N in np.array_split(order_N, min(_BINS, len(order_N)))
    ]
    return sum(gaps) / len(order_N)
