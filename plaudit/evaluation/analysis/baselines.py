"""Baselines beside every accuracy: does the reward model beat length, or a bag of words?

A baseline is one function from training comparisons to a :data:`Scorer`, and one row in
:data:`BASELINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from plaudit.evaluation.analysis.features import response_text
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.significance import clustered_p, mcnemar
from plaudit.evaluation.schema import BaselineMetrics, parts
from plaudit.evaluation.table import CodeArray, Pairs, Scorer, ordered_pairs
from plaudit.types import Comparison, FloatArray

Baseline: TypeAlias = Callable[[Sequence[Comparison]], Scorer]
"""Training comparisons -> what scores held-out responses."""

_VOCABULARY = 50_000

FITTED_COMPARISONS = 25_000
"""Comparisons that a baseline is fitted on at most, evenly spaced.

The words and pairs of words of a million would not fit into memory.
"""


def fitted_sample(train: Sequence[Comparison]) -> list[Comparison]:
    """What a baseline is fitted on: all, or :data:`FITTED_COMPARISONS` evenly spaced ones."""
    count = fitted_comparisons(train)
    return [train[len(train) * number // count] for number in range(count)]


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

    Fitted on the training comparisons alone (:func:`fitted_sample`), each pair in both orders and
    no intercept, so that it is antisymmetric. Deterministic. Without a word or a pair to learn from
    it knows nothing, and every pair is a tie.
    """
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    train = fitted_sample(train)
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

    Sorted by comparison, winner, loser; responses of equal grade make no pair.
    """
    sizes: list[int] = []
    grades: list[float] = []
    for row in comparisons:
        if not row.grades:
            raise ValueError("baselines need comparisons with grades")
        sizes.append(len(row.responses))
        grades += row.grades
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
        raise ValueError(f"the baseline judged {len(delta_P)} pairs, the model {len(paired)}")
    model_P, baseline_P = ((found > 0).astype(np.float64) for found in (paired.delta_P, delta_P))
    only_model = int(np.sum(model_P > baseline_P))
    only_baseline = int(np.sum(baseline_P > model_P))
    difference = pairwise.paired_difference(baseline_P, model_P, paired.group_P)
    own_pairs = difference.groups == difference.pairs
    difference_interval, edge_interval = pairwise.group_bootstrap_sums(
        _edges, _edge_columns(model_P, baseline_P, paired, delta_P), paired.group_P, seed=seed
    )
    edge = pairwise.accuracy_half_ties(paired.delta_P) - 0.5
    baseline_edge = pairwise.accuracy_half_ties(delta_P) - 0.5
    wrong = paired.where(baseline_P == 0)
    where_wrong = pairwise.measured_accuracy(wrong.delta_P, wrong.group_P, seed=seed)
    return BaselineMetrics(
        **parts(pairwise.measured_accuracy(delta_P, paired.group_P, seed=seed)),
        ties=pairwise.ties(delta_P),
        delta_accuracy=difference.mean,
        delta_accuracy_ci95=difference_interval,
        only_model_right=only_model,
        only_baseline_right=only_baseline,
        p=mcnemar(only_model, only_baseline) if own_pairs else clustered_p(difference),
        test="McNemar, exact" if own_pairs else "paired t by prompt group",
        share_explained=baseline_edge / edge if edge > 0 else None,
        share_explained_ci95=edge_interval if edge > 0 else None,
        accuracy_where_wrong=where_wrong.accuracy,
        accuracy_where_wrong_ci95=where_wrong.accuracy_ci95,
        pairs_where_wrong=len(wrong),
    )


def _edge_columns(
    model_P: FloatArray, baseline_P: FloatArray, paired: Pairs, delta_P: FloatArray
) -> FloatArray:
    edges = [pairwise.pair_credits(found) - 0.5 for found in (paired.delta_P, delta_P)]
    return np.stack([np.ones(len(paired)), model_P - baseline_P, *edges])


def _edges(sums_CR: FloatArray) -> FloatArray:
    """Difference of accuracies, and edge of the baseline over edge of the model, per resample."""
    pairs, difference, edge, baseline_edge = sums_CR
    return np.stack([difference / pairs, np.where(edge > 0, baseline_edge / edge, np.inf)])
