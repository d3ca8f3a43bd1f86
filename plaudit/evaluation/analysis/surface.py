"""What the surface of a text explains: does the model beat trivial baselines, and is it biased?

A baseline (length, a bag of words) is one function from training comparisons to a :data:`Scorer`,
and one row in :data:`BASELINES`. The bias to a countable feature is a gap: a model whose errors
have nothing to do with a feature is right as often where the better response has more of it as
where it has less. The labels' own preference stands beside the model's, since people may prefer
the feature, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.evaluation.analysis.features import RESPONSE_FEATURES, response_text
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.calibration import folds_of
from plaudit.evaluation.metrics.ranks import correlate
from plaudit.evaluation.schema import (
    BaselineMetrics,
    Bias,
    Correlation,
    CountedAccuracy,
    FeatureBias,
    Interval,
    LengthBias,
    parts,
)
from plaudit.evaluation.table import CodeArray, Pairs, Scorer, ScoreTable, codes, ordered_pairs
from plaudit.types import Comparison, FloatArray

Baseline: TypeAlias = Callable[[Sequence[Comparison]], Scorer]
"""Training comparisons -> what scores held-out responses."""

_VOCABULARY = 50_000

FITTED_COMPARISONS = 25_000
"""Comparisons that a baseline is fitted on at most, evenly spaced.

The words and pairs of words of a million would not fit into memory.
"""


def fitted_comparisons(train: Sequence[Comparison]) -> int:
    """How many training comparisons a fitted baseline is fitted on."""
    return min(len(train), FITTED_COMPARISONS)


def longer(train: Sequence[Comparison]) -> Scorer:
    """The response with more characters wins; nothing is fitted."""
    return lambda texts: np.fromiter(map(len, texts), np.float64, len(texts))


def shorter(train: Sequence[Comparison]) -> Scorer:
    """The response with fewer characters wins: where people like short answers, the one to beat."""
    characters = longer(train)
    return lambda texts: -characters(texts)


def bag_of_words(train: Sequence[Comparison]) -> Scorer:
    """TF-IDF of one and two words of the response, logistic regression on the difference.

    Fitted on :func:`fitted_comparisons` of the training comparisons, each pair in both orders and
    no intercept, so that it is antisymmetric. Deterministic. Without a word or a pair to learn from
    it knows nothing, and every pair is a tie.
    """
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    count = fitted_comparisons(train)
    train = [train[len(train) * number // count] for number in range(count)]
    winner_P, loser_P = graded_pairs(train)
    # One-letter words and single digits count too: they are what some edits change.
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"(?u)\w+", max_features=_VOCABULARY, dtype=np.float32
    )
    texts = [response_text(turns) for row in train for turns in row.responses]
    if not len(winner_P) or not any(map(vectorizer.build_analyzer(), texts)):
        return lambda texts: np.zeros(len(texts))
    features_R = vectorizer.fit_transform(texts)
    difference_P = features_R[winner_P] - features_R[loser_P]
    order = np.repeat([1, 0], len(winner_P))
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    model.fit(vstack([difference_P, -difference_P]), order)
    weights = model.coef_[0].astype(np.float64)

    def score(texts: Sequence[str]) -> FloatArray:
        return np.asarray(vectorizer.transform(texts) @ weights) if texts else np.zeros(0)

    return score


BASELINES: dict[str, Baseline] = {
    "longer": longer,
    "shorter": shorter,
    "bag_of_words": bag_of_words,
}

FITTED = frozenset({"bag_of_words"})
"""Baselines that need training comparisons."""


def fit_baselines(names: Iterable[str], train: Sequence[Comparison]) -> dict[str, Scorer | None]:
    """Each named baseline, fitted; ``None`` for one that has nothing to be fitted on."""
    return {
        name: None if name in FITTED and not train else BASELINES[name](train) for name in names
    }


def score_differences(score: Scorer, comparisons: Sequence[Comparison]) -> FloatArray:
    """``delta_P`` of a baseline: a difference of scores for each of :func:`graded_pairs`."""
    winner_P, loser_P = graded_pairs(comparisons)
    score_R = score([response_text(turns) for row in comparisons for turns in row.responses])
    return score_R[winner_P] - score_R[loser_P]


def graded_pairs(comparisons: Sequence[Comparison]) -> tuple[CodeArray, CodeArray]:
    """Numbers of winners and losers among all responses, laid end to end.

    Sorted by comparison, winner, loser; responses of equal grade, or without any, make no pair.
    """
    sizes: list[int] = []
    grades: list[float] = []
    for row in comparisons:
        sizes.append(len(row.responses))
        grades += row.grades or (np.nan,) * len(row.responses)
    comparison_R = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    return ordered_pairs(comparison_R, np.array(grades, dtype=np.float64))


def compare_baseline(
    paired: Pairs, delta_P: FloatArray | None, *, seed: int = 0
) -> BaselineMetrics | None:
    """A baseline by itself, and the model against it on the same pairs; ``None`` for ``None``.

    ``delta_accuracy`` has a bootstrap interval and a p-value: McNemar's exact test, or Student's t
    by prompt group where prompts have several pairs. Raises ValueError when the pairs are not those
    of the baseline.
    """
    if delta_P is None:
        return None
    if len(delta_P) != len(paired):
        raise ValueError(f"the baseline scored {len(delta_P)} pairs, the model {len(paired)}")
    model_P, baseline_P = ((found > 0).astype(np.float64) for found in (paired.delta_P, delta_P))
    test = pairwise.paired_test("accuracy", model_P, baseline_P, paired.group_P)
    edge_P, baseline_edge_P = (
        pairwise.pair_credits(found) - 0.5 for found in (paired.delta_P, delta_P)
    )
    difference_interval, edge_interval = pairwise.group_bootstrap_sums(
        _edges,
        np.stack([np.ones(len(paired)), model_P - baseline_P, edge_P, baseline_edge_P]),
        paired.group_P,
        seed=seed,
    )
    edge = pairwise.accuracy_half_ties(paired.delta_P) - 0.5
    baseline_edge = pairwise.accuracy_half_ties(delta_P) - 0.5
    wrong = paired.where(baseline_P == 0)
    where_wrong = pairwise.measured_accuracy(wrong.delta_P, wrong.group_P, seed=seed)
    return BaselineMetrics(
        **parts(pairwise.measured_accuracy(delta_P, paired.group_P, seed=seed)),
        ties=pairwise.ties(delta_P),
        delta_accuracy=test.difference.mean,
        delta_accuracy_ci95=difference_interval,
        only_model_right=int(np.sum(model_P > baseline_P)),
        only_baseline_right=int(np.sum(baseline_P > model_P)),
        p=test.p,
        test=test.name,
        share_explained=baseline_edge / edge if edge > 0 else None,
        share_explained_ci95=edge_interval if edge > 0 else None,
        accuracy_where_wrong=where_wrong.accuracy,
        accuracy_where_wrong_ci95=where_wrong.accuracy_ci95,
        pairs_where_wrong=len(wrong),
    )


def _edges(sums_CR: FloatArray) -> FloatArray:
    """Difference of accuracies, and edge of the baseline over edge of the model, per resample."""
    pairs, difference, edge, baseline_edge = sums_CR
    return np.stack([difference / pairs, np.where(edge > 0, baseline_edge / edge, np.inf)])


# ---- feature bias ---------------------------------------------------------------------------

FEWEST_PER_SIDE = 15
"""A feature needs as many pairs whose better response has more of it, and as many with less."""


def measure_bias(table: ScoreTable, paired: Pairs, *, seed: int = 0) -> Bias:
    """Length in detail, and one row per feature."""
    rows = [
        feature_row(
            name,
            table.features_N[name] if name != "characters" else table.characters_N.astype(float),
            paired,
            seed=seed,
        )
        for name in RESPONSE_FEATURES
    ]
    adjusted = pairwise.benjamini_hochberg([row.p for row in rows])
    features = tuple(
        replace(row, p_adjusted=p, significant=p is not None and p < pairwise.ALPHA)
        for row, p in zip(rows, adjusted, strict=True)
    )
    return Bias(length=measure_length_bias(table, paired, seed=seed), features=features)


def feature_row(name: str, feature_N: FloatArray, paired: Pairs, *, seed: int = 0) -> FeatureBias:
    """Is the model biased towards a feature? Over the pairs whose responses differ in it.

    ``accuracy_more`` is the accuracy where the better response has more of it, ``accuracy_less``
    where it has less, and ``gap`` the first less the second, with an interval by prompt group and
    the p-value of :func:`against_the_rest`. ``labels_prefer_more`` and ``model_prefers_more`` are
    shares of these pairs (a tie of rewards is half a preference) and ``excess`` the second less the
    first: a model that is merely unsure has an excess towards one half, but no gap.
    """
    rise_P = feature_N[paired.winner_P] - feature_N[paired.loser_P]
    differ_P = np.isfinite(rise_P) & (rise_P != 0)
    inside, rise = paired.where(differ_P), rise_P[differ_P]
    labels = (rise > 0).astype(np.float64)
    model = 0.5 + 0.5 * np.sign(inside.delta_P) * np.sign(rise)
    excess = pairwise.paired_difference(labels, model, inside.group_P)
    sides_CP = _sides(inside, rise)
    tested = min(sides_CP[0].sum(), sides_CP[2].sum()) >= FEWEST_PER_SIDE
    gap, gap_interval = _of_sides(np.subtract, sides_CP, inside, seed)
    return FeatureBias(
        feature=name,
        pairs=len(inside),
        share_of_pairs=len(inside) / len(paired) if len(paired) else None,
        labels_prefer_more=pairwise.mean(labels),
        model_prefers_more=pairwise.mean(model),
        excess=excess.mean,
        excess_ci95=excess.interval,
        gap=gap,
        gap_ci95=gap_interval,
        p=pairwise.against_the_rest(inside.delta_P > 0, rise > 0, inside.group_P)
        if tested
        else None,
        accuracy_more=_accuracy(inside.where(rise > 0)),
        accuracy_less=_accuracy(inside.where(rise < 0)),
        p_adjusted=None,
        significant=False,
    )


def _accuracy(paired: Pairs) -> CountedAccuracy:
    return pairwise.measured_accuracy(paired.delta_P, paired.group_P)


def measure_length_bias(table: ScoreTable, paired: Pairs, *, seed: int = 0) -> LengthBias:
    """Reward against the characters of a response, and accuracy with length held out of it.

    ``spearman`` is over all responses; ``within_*`` compare responses of one prompt alone (both
    values less their mean in the comparison), which is what a reward model is for. The slope is
    the least-squares one with a constant per comparison, in reward standard deviations per 100
    characters. ``accuracy_balanced`` gives pairs whose better response is longer and those where
    it is shorter equal weight. ``accuracy_without_length`` ranks by the reward less the slope times
    the length, the slope fitted without the pair's own prompt group.
    """
    length_N = table.characters_N.astype(np.float64)
    # Order of first appearance in both: the groups of the responses are those of the pairs.
    group_N = codes(table.group_N)
    comparison_N = codes(list(zip(table.dataset_N, table.number_N, strict=True)))
    reward_N = _centred(table.reward_N, comparison_N)
    centred_N = _centred(length_N, comparison_N)
    spread = float(table.reward_N.std()) if len(table) else 0.0
    slope, slope_interval = _slope(centred_N, reward_N, group_N, seed)
    unit = 100.0 / spread if spread > 0 else np.nan
    labels = _centred(table.grade_N, comparison_N)
    known_N = np.isfinite(labels)
    overall, within, label = (
        correlate(*columns, seed=seed) if len(columns[0]) else _NO_CORRELATION
        for columns in (
            (table.reward_N, length_N, group_N),
            (reward_N, centred_N, group_N),
            (labels[known_N], centred_N[known_N], group_N[known_N]),
        )
    )
    rise_P = length_N[paired.winner_P] - length_N[paired.loser_P]
    balanced, balanced_interval = _of_sides(
        lambda longer, shorter: 0.5 * (longer + shorter), _sides(paired, rise_P), paired, seed
    )
    without_P = (
        paired.delta_P
        - _slopes_of_others(centred_N, reward_N, group_N, paired.group_P, seed) * rise_P
    )
    (without_interval,) = pairwise.bootstrap_means(
        (without_P > 0).astype(np.float64)[None], paired.group_P, seed=seed
    )
    return LengthBias(
        spearman=overall.spearman,
        spearman_ci95=overall.spearman_ci95,
        within_spearman=within.spearman,
        within_spearman_ci95=within.spearman_ci95,
        labels_within_spearman=label.spearman,
        slope_per_100_characters=slope * unit,
        slope_ci95=None
        if slope_interval is None
        else Interval(slope_interval.low * unit, slope_interval.high * unit),
        chosen_longer=_accuracy(paired.where(rise_P > 0)),
        chosen_shorter=_accuracy(paired.where(rise_P < 0)),
        equal_length=_accuracy(paired.where(rise_P == 0)),
        accuracy_balanced=balanced,
        accuracy_balanced_ci95=balanced_interval,
        accuracy_without_length=pairwise.accuracy(without_P),
        accuracy_without_length_ci95=without_interval,
    )


_NO_CORRELATION = Correlation(pearson=None, pearson_ci95=None, spearman=None, spearman_ci95=None)


def _centred(values_N: FloatArray, code_N: CodeArray) -> FloatArray:
    if not len(values_N):
        return values_N
    means_C = np.bincount(code_N, values_N) / np.bincount(code_N)
    centred_N: FloatArray = values_N - means_C[code_N]
    return centred_N


def _slope(
    x_N: FloatArray, y_N: FloatArray, group_N: CodeArray, seed: int
) -> tuple[float, Interval | None]:
    """Least squares through the origin of centred values, with an interval by prompt group."""
    square = float(x_N @ x_N)
    if not square:
        return np.nan, None
    columns_CP = np.stack([x_N * y_N, x_N * x_N])
    (interval,) = pairwise.group_bootstrap_sums(
        lambda sums_CR: (sums_CR[0] / sums_CR[1])[None], columns_CP, group_N, seed=seed
    )
    return float(x_N @ y_N) / square, interval


def _slopes_of_others(
    x_N: FloatArray, y_N: FloatArray, group_N: CodeArray, group_P: CodeArray, seed: int
) -> npt.NDArray[np.float64]:
    """For each pair the slope fitted on the folds of prompt groups that are not its own."""
    if not len(group_N):
        return np.zeros(len(group_P))
    fold_G = folds_of(int(group_N.max()) + 1, seed=seed)
    fold_N = fold_G[group_N]
    slope_F = np.zeros(int(fold_G.max()) + 1)
    for fold in range(len(slope_F)):
        others = fold_N != fold
        square = float(x_N[others] @ x_N[others])
        slope_F[fold] = float(x_N[others] @ y_N[others]) / square if square else 0.0
    return slope_F[fold_G[group_P]]


def _sides(paired: Pairs, rise_P: FloatArray) -> FloatArray:
    """Columns to sum: pairs whose better response has more, those right, and the same for less."""
    right_P, more_P, less_P = paired.delta_P > 0, rise_P > 0, rise_P < 0
    return np.array([more_P, more_P & right_P, less_P, less_P & right_P], dtype=np.float64)


def _of_sides(
    combine: Callable[[FloatArray, FloatArray], FloatArray],
    sides_CP: FloatArray,
    paired: Pairs,
    seed: int,
) -> tuple[float | None, Interval | None]:
    """Both sides' accuracies in one number, with its interval by prompt group; None without one."""
    if not (sides_CP[0].any() and sides_CP[2].any()):
        return None, None

    def statistic(sums_CR: FloatArray) -> FloatArray:
        more, more_right, less, less_right = sums_CR
        return combine(more_right / more, less_right / less)[None]

    (interval,) = pairwise.group_bootstrap_sums(statistic, sides_CP, paired.group_P, seed=seed)
    return float(statistic(sides_CP.sum(axis=1)[:, None])[0, 0]), interval
