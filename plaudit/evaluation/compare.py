"""Paired comparison of two or more models on the same pairs: which is really better?

Pure functions on score tables. Shapes: M models, P ordered pairs that all of them scored, G prompt
groups, S series of values over the pairs.

Every two models are compared by accuracy (which ranks more pairs correctly?) and by log loss (which
gives the preferred responses more probability?). The tests are paired, so that what all models find
easy or hard drops out; with more than two models the p-values of one metric are corrected for all
of its tests (Holm, 1979).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from plaudit.errors import DataError
from plaudit.evaluation.analysis.error_analysis import MAX_SLICE_VALUES, SMALL_SLICE
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.pairwise import ALPHA, holm, paired_test
from plaudit.evaluation.numbers import counted, signed, signed_interval
from plaudit.evaluation.schema import Interval, Metric, TestedDifference, json_safe, parts
from plaudit.evaluation.table import Pairs, ScoreTable, codes, pairs
from plaudit.types import FloatArray

METRICS: dict[Metric, str] = {"accuracy": "accuracy", "nll": "log loss"}
"""What models are compared by, with the name that people read."""
DECIMALS: Final[Mapping[Metric, int]] = {"accuracy": 3, "nll": 4}
"""Of each metric in a sentence, as everywhere: models that differ differ less in their losses."""

_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A model's name and its score table."""

    name: str
    table: ScoreTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """M models on the P pairs that all of them scored.

    ``table`` and ``paired`` are the first model's on those rows; only rewards differ between
    models. ``unmatched`` counts comparisons of each model that another one lacks.
    """

    names: tuple[str, ...]
    table: ScoreTable
    paired: Pairs
    delta_MP: FloatArray
    unmatched: Mapping[str, int]

    def values(self, metric: Metric) -> FloatArray:
        """``(M, P)``: the values whose mean over pairs is the metric; margins are left out."""
        if metric == "accuracy":
            return (self.delta_MP > 0).astype(np.float64)
        return pairwise.bradley_terry_losses(self.delta_MP)


def align(scored: Sequence[Scored]) -> Aligned:
    """The comparisons that every table has, row by row in the first table's order.

    A comparison is known by its source, id, prompt group and grades (numbers change when a model
    skips a row); equal ones are matched in their order.

    Raises:
        DataError: nothing in common, or nothing with a known order.
        ModelError: a reward is not finite.
    """
    rows_of = [_rows_by_comparison(each.table) for each in scored]
    common = [key for key in rows_of[0] if all(key in rows for rows in rows_of[1:])]
    if not common:
        raise DataError(
            f"{scored[0].name} and {scored[1].name} were not evaluated on the same comparisons;"
            " name data to score both on: plaudit compare A B pairs.jsonl."
        )
    tables = [
        _take(each.table, [row for key in common for row in rows[key]])
        for each, rows in zip(scored, rows_of, strict=True)
    ]
    paired = [pairs(table) for table in tables]
    if not len(paired[0]):
        raise DataError(
            "The comparisons have no two responses with different grades, so models cannot be"
            " compared; use labelled data."
        )
    return Aligned(
        # Names of files may hold lone surrogates, which nothing can print or write.
        names=tuple(json_safe(each.name) for each in scored),
        table=tables[0],
        paired=paired[0],
        delta_MP=np.stack([each.delta_P for each in paired]),
        unmatched={
            json_safe(each.name): len(rows) - len(common)
            for each, rows in zip(scored, rows_of, strict=True)
        },
    )


def _take(table: ScoreTable, rows: Sequence[int]) -> ScoreTable:
    """These rows in this order, comparisons numbered anew."""
    ordered = table.take(np.array(rows, dtype=np.int64))
    several = len(set(ordered.dataset_N)) > 1
    return replace(
        ordered,
        # Rows of one comparison stand together and begin with response 0.
        number_N=np.cumsum(ordered.response_N == 0) - 1,
        dataset_N=np.full(len(ordered), "compared", dtype=np.object_),
        metadata={**ordered.metadata, **({"dataset": ordered.dataset_N} if several else {})},
    )


def _rows_by_comparison(table: ScoreTable) -> dict[tuple[Any, ...], list[int]]:
    """Rows of each comparison by what it is known by, in order of first appearance."""
    rows: dict[tuple[Any, int], list[int]] = {}
    for row, name in enumerate(zip(table.dataset_N, table.number_N, strict=True)):
        rows.setdefault(name, []).append(row)
    seen: Counter[tuple[Any, ...]] = Counter()
    named: dict[tuple[Any, ...], list[int]] = {}
    for together in rows.values():
        first = together[0]
        key = (
            table.source_N[first],
            table.comparison_N[first],
            table.group_N[first],
            tuple(table.grade_N[together].tolist()),
        )
        named[(*key, seen[key])] = together
        seen[key] += 1
    return named


# ---- statistics ----------------------------------------------------------------------------------


def kappa(right_a_P: npt.NDArray[Any], right_b_P: npt.NDArray[Any]) -> float:
    """Agreement of two models on which pairs they rank right, beyond chance (Cohen, 1960).

    ``nan`` where chance alone would agree on everything.
    """
    share_a, share_b = float(np.mean(right_a_P)), float(np.mean(right_b_P))
    observed = float(np.mean(right_a_P == right_b_P))
    expected = share_a * share_b + (1 - share_a) * (1 - share_b)
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)


# ---- results -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScores:
    """Accuracy and log loss (``nll``, nats) of one model on the compared pairs."""

    name: str
    accuracy: float
    accuracy_ci95: Interval | None
    accuracy_ci95_method: pairwise.Method | None
    ties: int
    nll: float
    nll_ci95: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricTest(TestedDifference):
    """One metric of models ``a`` and ``b``, with ``difference = a - b``.

    ``better`` is ``None`` where ``p_holm`` is not below alpha.
    """

    a: float
    b: float
    standard_error: float | None
    better: Literal["a", "b"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How many pairs two models rank correctly, together and alone.

    ``pearson`` and ``spearman`` are of reward differences; each number is ``None`` where it is not
    defined.
    """

    both_right: int
    only_a_right: int
    only_b_right: int
    both_wrong: int
    kappa: float | None
    pearson: float | None
    spearman: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPair:
    """Models ``a`` and ``b`` on the same pairs."""

    a: str
    b: str
    agreement: Agreement
    accuracy: MetricTest
    nll: MetricTest

    def test(self, metric: Metric) -> MetricTest:
        """The test of one metric."""
        return self.accuracy if metric == "accuracy" else self.nll


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """The model with the best mean of a metric, and how the others stand to it.

    ``significant`` of all ``tests`` of the metric, those between other models included, have a
    corrected p-value below alpha.
    """

    name: str
    value: float
    better_than: tuple[str, ...]
    not_significantly_better_than: tuple[str, ...]
    significant: int
    tests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaders:
    """The best model by each metric."""

    accuracy: Leader
    nll: Leader

    def by(self, metric: Metric) -> Leader:
        """The best model by one metric."""
        return self.accuracy if metric == "accuracy" else self.nll


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceTest(TestedDifference):
    """Accuracy of models ``a`` and ``b`` where ``column`` has ``value``.

    ``small`` marks fewer than 30 pairs; ``p_holm`` is corrected for all slices and models.
    """

    a: str
    b: str
    column: str
    value: str | None
    pairs: int
    small: bool
    accuracy_a: float
    accuracy_b: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A pair that the model ``right`` (``a`` or ``b``) ranks correctly and the other does not.

    ``better`` and ``worse`` are numbers of responses, ``delta_a`` and ``delta_b`` reward
    differences. Texts are there where the data was read.
    """

    a: str
    b: str
    right: Literal["a", "b"]
    id: str
    source: str
    group: str
    better: int
    worse: int
    delta_a: float
    delta_b: float
    where: str | None = None
    prompt: str | None = None
    better_text: str | None = None
    worse_text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelComparison:
    """M models on the same pairs. ``model_pairs`` has one entry for every two of them.

    ``slices`` and ``examples`` compare the model with the lowest log loss to each other one.
    ``unmatched`` counts comparisons of each model that another one lacks; ``sentences`` are the
    answer in words, one per metric.
    """

    alpha: float
    pairs: int
    groups: int
    comparisons: int
    unmatched: Mapping[str, int]
    models: tuple[ModelScores, ...]
    model_pairs: tuple[ModelPair, ...]
    best: Leaders
    slices: tuple[SliceTest, ...]
    examples: tuple[Example, ...]
    sentences: tuple[str, ...] = ()


def compare_aligned(aligned: Aligned, *, alpha: float = ALPHA, seed: int = 0) -> ModelComparison:
    """All statistics of ``plaudit compare``."""
    numbers = list(itertools.combinations(range(len(aligned.names)), 2))
    tests = [
        metric_tests(aligned, [(metric, a, b) for a, b in numbers], alpha=alpha, seed=seed)
        for metric in METRICS
    ]
    model_pairs = tuple(
        ModelPair(
            a=aligned.names[a],
            b=aligned.names[b],
            agreement=_agreement(aligned.delta_MP[a], aligned.delta_MP[b]),
            accuracy=accuracy,
            nll=nll,
        )
        for (a, b), accuracy, nll in zip(numbers, *tests, strict=True)
    )
    models = _model_scores(aligned, seed)
    best = Leaders(**{metric: _leader(metric, models, model_pairs) for metric in METRICS})
    # The leader and each other model, as numbers in the order of the models.
    leader = aligned.names.index(best.nll.name)
    with_leader = [each for each in numbers if leader in each]
    comparison = ModelComparison(
        alpha=alpha,
        pairs=len(aligned.paired),
        groups=len(np.unique(aligned.paired.group_P)),
        comparisons=len(np.unique(aligned.paired.comparison_P)),
        unmatched=dict(aligned.unmatched),
        models=models,
        model_pairs=model_pairs,
        best=best,
        slices=_slice_tests(aligned, with_leader),
        examples=tuple(_examples(aligned, with_leader)),
    )
    return replace(comparison, sentences=tuple(_sentence(comparison, m) for m in METRICS))


def _model_scores(aligned: Aligned, seed: int) -> tuple[ModelScores, ...]:
    group_P = aligned.paired.group_P
    nll_M = pairwise.bootstrap_means(aligned.values("nll"), group_P, seed=seed)

    def scores(name: str, delta_P: FloatArray, nll_interval: Interval | None) -> ModelScores:
        return ModelScores(
            name=name,
            **parts(pairwise.measured_accuracy(delta_P, group_P, seed=seed), of=ModelScores),
            ties=pairwise.ties(delta_P),
            nll=pairwise.nll(delta_P),
            nll_ci95=nll_interval,
        )

    return tuple(map(scores, aligned.names, aligned.delta_MP, nll_M))


def metric_tests(
    aligned: Aligned, cells: Sequence[tuple[Metric, int, int]], *, alpha: float, seed: int
) -> list[MetricTest]:
    """Tests that are corrected together, each of a metric and the numbers of models a and b."""
    group_P = aligned.paired.group_P
    values_MP = {metric: aligned.values(metric) for metric, _, _ in cells}
    sides = [(values_MP[metric][a], values_MP[metric][b]) for metric, a, b in cells]
    intervals = pairwise.bootstrap_means(np.stack([a - b for a, b in sides]), group_P, seed=seed)
    tests = [
        paired_test(metric, a_P, b_P, group_P)
        for (metric, _, _), (a_P, b_P) in zip(cells, sides, strict=True)
    ]
    measured: list[MetricTest] = []
    for (metric, _, _), (a_P, b_P), test, interval, p_holm in zip(
        cells, sides, tests, intervals, holm([test.p for test in tests]), strict=True
    ):
        difference = test.difference.mean
        better: Literal["a", "b"] | None = None
        if p_holm is not None and p_holm < alpha and difference:
            better = "a" if (difference > 0) == (metric == "accuracy") else "b"
        measured.append(
            MetricTest(
                a=float(a_P.mean()),
                b=float(b_P.mean()),
                difference=difference,
                standard_error=test.difference.standard_error,
                difference_ci95=interval,
                p=test.p,
                test=test.name,
                p_holm=p_holm,
                better=better,
            )
        )
    return measured


def _agreement(a_P: FloatArray, b_P: FloatArray) -> Agreement:
    from scipy.stats import pearsonr, spearmanr

    right_a_P, right_b_P = a_P > 0, b_P > 0
    vary = len(a_P) > 1 and np.ptp(a_P) > 0 and np.ptp(b_P) > 0
    return Agreement(
        both_right=int(np.sum(right_a_P & right_b_P)),
        only_a_right=int(np.sum(right_a_P & ~right_b_P)),
        only_b_right=int(np.sum(right_b_P & ~right_a_P)),
        both_wrong=int(np.sum(~right_a_P & ~right_b_P)),
        kappa=json_safe(kappa(right_a_P, right_b_P)),
        pearson=float(pearsonr(a_P, b_P).statistic) if vary else None,
        spearman=float(spearmanr(a_P, b_P).statistic) if vary else None,
    )


def _leader(
    metric: Metric, models: Sequence[ModelScores], model_pairs: Sequence[ModelPair]
) -> Leader:
    values = {model.name: getattr(model, metric) for model in models}
    name = (max if metric == "accuracy" else min)(values, key=values.__getitem__)
    differs = {
        pair.b if pair.a == name else pair.a: pair.test(metric).better is not None
        for pair in model_pairs
        if name in (pair.a, pair.b)
    }
    return Leader(
        name=name,
        value=values[name],
        better_than=tuple(other for other, found in differs.items() if found),
        not_significantly_better_than=tuple(other for other, found in differs.items() if not found),
        significant=sum(pair.test(metric).better is not None for pair in model_pairs),
        tests=len(model_pairs),
    )


def slice_masks(
    table: ScoreTable, paired: Pairs
) -> Iterator[tuple[str, str | None, npt.NDArray[np.bool_]]]:
    """``(column, value, pairs inside)`` by source and by metadata columns of 2 to 30 values."""
    columns = {"source": table.source_N} | {
        f"metadata.{name}" if name == "source" else name: column_N
        for name, column_N in sorted(table.metadata.items())
    }
    for name, column_N in columns.items():
        values = [None if v is None else str(v) for v in column_N[paired.winner_P]]
        found = dict.fromkeys(values)
        if 2 <= len(found) <= min(MAX_SLICE_VALUES, max(2, len(paired) // 2)):
            code_P = codes(values)
            yield from ((name, value, code_P == code) for code, value in enumerate(found))


def _slice_tests(aligned: Aligned, numbers: Sequence[tuple[int, int]]) -> tuple[SliceTest, ...]:
    """Accuracy of the leader and each other model by slice; corrected for all these tests."""
    group_P, right_MP = aligned.paired.group_P, aligned.values("accuracy")
    masks = list(slice_masks(aligned.table, aligned.paired))
    cells = [(a, b, *mask) for a, b in numbers for mask in masks]
    tests = [
        paired_test("accuracy", right_MP[a][inside_P], right_MP[b][inside_P], group_P[inside_P])
        for a, b, _, _, inside_P in cells
    ]
    corrected = holm([test.p for test in tests])
    return tuple(
        SliceTest(
            a=aligned.names[a],
            b=aligned.names[b],
            column=json_safe(column),
            value=json_safe(value),
            pairs=int(inside_P.sum()),
            small=bool(inside_P.sum() < SMALL_SLICE),
            accuracy_a=float(right_MP[a][inside_P].mean()),
            accuracy_b=float(right_MP[b][inside_P].mean()),
            difference=test.difference.mean,
            difference_ci95=test.difference.interval,
            p=test.p,
            test=test.name,
            p_holm=p_holm,
        )
        for (a, b, column, value, inside_P), test, p_holm in zip(
            cells, tests, corrected, strict=True
        )
    )


def _examples(aligned: Aligned, numbers: Sequence[tuple[int, int]]) -> Iterator[Example]:
    """Pairs that the leader ranks correctly and another model does not, and the reverse."""
    table, paired = aligned.table, aligned.paired
    for a, b in numbers:
        delta_a_P, delta_b_P = aligned.delta_MP[a], aligned.delta_MP[b]
        gap_P = np.abs(delta_a_P - delta_b_P)
        sides: tuple[tuple[Literal["a", "b"], FloatArray, FloatArray], ...] = (
            ("a", delta_a_P, delta_b_P),
            ("b", delta_b_P, delta_a_P),
        )
        for right, right_P, wrong_P in sides:
            differing_P = np.flatnonzero((right_P > 0) & (wrong_P <= 0))
            widest = differing_P[np.argsort(-gap_P[differing_P], kind="stable")][:_EXAMPLES]
            for pair in widest:
                winner, loser = paired.winner_P[pair], paired.loser_P[pair]
                yield Example(
                    a=aligned.names[a],
                    b=aligned.names[b],
                    right=right,
                    id=table.comparison_N[winner],
                    source=table.source_N[winner],
                    group=table.group_N[winner],
                    better=int(table.response_N[winner]),
                    worse=int(table.response_N[loser]),
                    delta_a=float(delta_a_P[pair]),
                    delta_b=float(delta_b_P[pair]),
                )


# ---- sentences -----------------------------------------------------------------------------------


def p_value(value: float | None) -> str:
    """``p = 0.0123``, as people write it."""
    if value is None:
        return "p unknown"
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"


def _sentence(comparison: ModelComparison, metric: Metric) -> str:
    if len(comparison.models) > 2:
        return _ranking(comparison, metric)
    (pair,) = comparison.model_pairs
    test, name, decimals = pair.test(metric), METRICS[metric], DECIMALS[metric]
    sides, sign = [(pair.a, test.a), (pair.b, test.b)], 1
    if test.better == "b":
        sides, sign = sides[::-1], -1
    (first, ours), (second, theirs) = sides
    interval = ""
    if test.difference_ci95 is not None:
        ends = sorted(sign * end for end in test.difference_ci95)
        interval = f", 95% CI {signed_interval(ends, decimals)}"
    verdict = (
        f"{first} and {second} do not differ significantly in {name}"
        if test.better is None
        else f"{first} is significantly better than {second} in {name}"
    )
    return (
        f"{verdict}: {ours:.{decimals}f} and {theirs:.{decimals}f} on"
        f" {counted(comparison.pairs, 'pair')}, Δ {signed(sign * test.difference, decimals)}"
        f" ({p_value(test.p)}, {test.test}{interval})."
    )


def _ranking(comparison: ModelComparison, metric: Metric) -> str:
    best, name, decimals = comparison.best.by(metric), METRICS[metric], DECIMALS[metric]
    correction = f"after Holm correction for {best.tests} tests"
    if not best.significant:
        lead = max(
            abs(pair.test(metric).difference)
            for pair in comparison.model_pairs
            if best.name in (pair.a, pair.b)
        )
        return (
            f"No two of the {len(comparison.models)} models differ significantly in {name}"
            f" {correction}. The best, {best.name} ({best.value:.{decimals}f}), is"
            f" {lead:.{decimals}f} better than the last on {counted(comparison.pairs, 'pair')}."
        )
    verdicts = [
        f"{verdict} {_listed(names)}"
        for verdict, names in (
            ("significantly better than", best.better_than),
            ("not significantly better than", best.not_significantly_better_than),
        )
        if names
    ]
    return (
        f"{best.name} has the best {name} ({best.value:.{decimals}f}): {', and '.join(verdicts)} "
        f"(alpha {comparison.alpha:g}, {correction})."
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
