"""Paired comparison of two or more models on the same pairs: which is really better?

Pure functions on score tables. Shapes: M models, P ordered pairs that all of them scored, G prompt
groups, S series of values over the pairs.

Two questions are asked of every two models: which ranks more pairs right (accuracy), and which
gives the right answers more probability (log loss)? The tests are paired, so that what all models
find easy or hard drops out; with more than two models the p-values of one question are corrected
for all of its tests (Holm, 1979).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.errors import DataError
from plaudit.evaluation.analysis.slices import MAX_SLICE_VALUES, SMALL_SLICE
from plaudit.evaluation.facts import json_safe
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.significance import clustered_p, holm, mcnemar
from plaudit.evaluation.table import CodeArray, ObjectArray, Pairs, ScoreTable, codes, pairs
from plaudit.types import FloatArray

Metric: TypeAlias = Literal["accuracy", "nll"]
METRICS: dict[Metric, str] = {"accuracy": "accuracy", "nll": "log loss"}
"""What models are compared by, with the name that people read."""

LEVEL = 0.05
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
    models. ``left_out`` counts comparisons of each model that another one lacks.
    """

    names: tuple[str, ...]
    table: ScoreTable
    paired: Pairs
    delta_MP: FloatArray
    left_out: Mapping[str, int]

    def values(self, metric: Metric) -> FloatArray:
        """``(M, P)``: the values whose mean over pairs is the metric; margins are left out."""
        if metric == "accuracy":
            return (self.delta_MP > 0).astype(np.float64)
        return pairwise.bradley_terry_losses(self.delta_MP)


def align(scored: Sequence[Scored]) -> Aligned:
    """The comparisons that every table has, row by row in the first table's order.

    A comparison is known by its source, id, prompt group and grades (numbers change when a model
    refuses a row); equal ones are matched in their order.

    Raises:
        DataError: nothing in common, or nothing with a known order.
        ModelError: a reward is not finite.
    """
    rows_of = [_rows_by_comparison(each.table) for each in scored]
    common = [key for key in rows_of[0] if all(key in rows for rows in rows_of[1:])]
    if not common:
        raise DataError(
            f"{scored[0].name} and {scored[1].name} were not measured on the same comparisons; "
            "name data to score both on: plaudit compare A B pairs.jsonl."
        )
    tables = [
        _take(each.table, [row for key in common for row in rows[key]])
        for each, rows in zip(scored, rows_of, strict=True)
    ]
    paired = [pairs(table) for table in tables]
    if not len(paired[0]):
        raise DataError(
            "The comparisons have no two responses of different grades, so no model can be right "
            "or wrong about them; compare on labelled data."
        )
    return Aligned(
        names=tuple(each.name for each in scored),
        table=tables[0],
        paired=paired[0],
        delta_MP=np.stack([found.delta_P for found in paired]),
        left_out={
            each.name: len(rows) - len(common) for each, rows in zip(scored, rows_of, strict=True)
        },
    )


def _take(table: ScoreTable, rows: Sequence[int]) -> ScoreTable:
    """These rows in this order, comparisons numbered anew."""
    order = np.array(rows, dtype=np.int64)
    first_R = table.response_N[order] == 0
    # Rows of one comparison stand together and begin with response 0.
    ordered = table.take(order)
    return replace(
        ordered,
        number_N=np.cumsum(first_R) - 1,
        dataset_N=_constant(table.dataset_N[order], "compared"),
        metadata={**ordered.metadata, "dataset": table.dataset_N[order]}
        if len(set(table.dataset_N[order])) > 1
        else ordered.metadata,
    )


def _constant(like_N: ObjectArray, value: str) -> ObjectArray:
    filled = np.empty(len(like_N), dtype=np.object_)
    filled[:] = value
    return filled


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """A paired test of one metric: the mean difference ``a - b``, its p-value and its name."""

    difference: pairwise.PairedDifference
    p: float | None
    name: str


def paired_test(metric: Metric, a_P: FloatArray, b_P: FloatArray, group_P: CodeArray) -> PairedTest:
    """Is the mean of ``a`` that of ``b``? Values per pair, as :meth:`Aligned.values` gives them.

    Accuracy with one pair per prompt: McNemar's exact test. Where pairs share prompts they are not
    independent, and for log loss: Student's t on prompt groups.
    """
    difference = pairwise.paired_difference(b_P, a_P, group_P)
    if metric == "accuracy" and difference.groups == difference.pairs:
        p = mcnemar(int(np.sum(a_P > b_P)), int(np.sum(b_P > a_P)))
        return PairedTest(difference=difference, p=p, name="McNemar, exact")
    one_each = difference.groups == difference.pairs
    name = "paired t" if one_each else "paired t by prompt group"
    return PairedTest(difference=difference, p=clustered_p(difference), name=name)


# ---- facts ---------------------------------------------------------------------------------------


def compare(
    aligned: Aligned,
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that ``plaudit compare`` says, JSON-safe: ``compare.json`` without its data block.

    ``contests`` has one entry for every two models (a, b), differences being a less b; ``best``
    says for each metric which model leads, which others it beats and which it cannot be told from.
    ``slices`` are of the contests of the model with the lowest log loss.
    """
    duels = list(itertools.combinations(range(len(aligned.names)), 2))
    contests = _contests(aligned, duels, seed)
    for metric in METRICS:
        for contest, p in zip(contests, holm([c[metric]["p"] for c in contests]), strict=True):
            contest[metric]["p_holm"] = p
            contest[metric]["verdict"] = _verdict(metric, contest[metric], level)
    models = _models(aligned, seed)
    best = {metric: _best(metric, models, contests) for metric in METRICS}
    facts = {
        "level": level,
        "pairs": len(aligned.paired),
        "groups": len(np.unique(aligned.paired.group_P)),
        "comparisons": len(np.unique(aligned.paired.comparison_P)),
        "left_out": dict(aligned.left_out),
        "models": models,
        "contests": contests,
        "best": best,
        "slices": _slices(aligned, best["nll"]["name"]),
        "examples": _examples(aligned, best["nll"]["name"]),
    }
    safe: dict[str, Any] = json_safe(facts)
    return {**safe, "sentences": sentences(safe)}


def _models(aligned: Aligned, seed: int) -> list[dict[str, Any]]:
    group_P = aligned.paired.group_P
    nll_M = pairwise.bootstrap_means(aligned.values("nll"), group_P, seed=seed)
    return [
        {
            "name": name,
            **pairwise.accuracy_facts(delta_P, group_P, seed=seed),
            "ties": pairwise.ties(delta_P),
            "nll": pairwise.nll(delta_P),
            "nll_ci95": nll_M[number],
        }
        for number, (name, delta_P) in enumerate(zip(aligned.names, aligned.delta_MP, strict=True))
    ]


def _contests(
    aligned: Aligned, duels: Sequence[tuple[int, int]], seed: int
) -> list[dict[str, Any]]:
    group_P = aligned.paired.group_P
    contests: list[dict[str, Any]] = [
        {
            "a": aligned.names[a],
            "b": aligned.names[b],
            "agreement": _agreement(aligned.delta_MP[a], aligned.delta_MP[b]),
        }
        for a, b in duels
    ]
    for metric in METRICS:
        values_MP = aligned.values(metric)
        differences_SP = np.stack([values_MP[a] - values_MP[b] for a, b in duels])
        intervals = pairwise.bootstrap_means(differences_SP, group_P, seed=seed)
        for contest, (a, b), interval in zip(contests, duels, intervals, strict=True):
            test = paired_test(metric, values_MP[a], values_MP[b], group_P)
            contest[metric] = {
                "a": float(values_MP[a].mean()),
                "b": float(values_MP[b].mean()),
                "difference": test.difference.mean,
                "standard_error": test.difference.standard_error,
                "difference_ci95": interval,
                "p": test.p,
                "test": test.name,
            }
    return contests


def _agreement(a_P: FloatArray, b_P: FloatArray) -> dict[str, Any]:
    """How alike two models judge: verdicts, and reward differences."""
    from scipy.stats import pearsonr, spearmanr

    right_a_P, right_b_P = a_P > 0, b_P > 0
    vary = len(a_P) > 1 and np.ptp(a_P) > 0 and np.ptp(b_P) > 0
    return {
        "both_right": int(np.sum(right_a_P & right_b_P)),
        "only_a_right": int(np.sum(right_a_P & ~right_b_P)),
        "only_b_right": int(np.sum(right_b_P & ~right_a_P)),
        "both_wrong": int(np.sum(~right_a_P & ~right_b_P)),
        "kappa": kappa(right_a_P, right_b_P),
        "pearson": float(pearsonr(a_P, b_P).statistic) if vary else math.nan,
        "spearman": float(spearmanr(a_P, b_P).statistic) if vary else math.nan,
    }


def _verdict(metric: Metric, found: Mapping[str, Any], level: float) -> str | None:
    """``a`` or ``b`` where one is better beyond noise, ``None`` where they cannot be told apart."""
    if found["p_holm"] is None or found["p_holm"] >= level or found["difference"] == 0:
        return None
    a_is_higher = found["difference"] > 0
    return "a" if a_is_higher == (metric == "accuracy") else "b"


def _best(
    metric: Metric, models: Sequence[Mapping[str, Any]], contests: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The leader by the mean, with the models it beats and those it cannot be told from."""
    sign = -1 if metric == "accuracy" else 1
    leader = min(models, key=lambda model: sign * model[metric])["name"]
    beaten: list[str] = []
    equal: list[str] = []
    for contest in contests:
        if leader in (contest["a"], contest["b"]):
            other = contest["b"] if contest["a"] == leader else contest["a"]
            (beaten if contest[metric]["verdict"] else equal).append(other)
    told_apart = sum(contest[metric]["verdict"] is not None for contest in contests)
    return {
        "name": leader,
        "value": next(model[metric] for model in models if model["name"] == leader),
        "better_than": beaten,
        "not_told_from": equal,
        "told_apart": told_apart,
        "tests": len(contests),
    }


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
        code_P = codes(values)
        if not 2 <= len(set(values)) <= min(MAX_SLICE_VALUES, max(2, len(paired) // 2)):
            continue
        for code, value in enumerate(dict.fromkeys(values)):
            yield name, value, code_P == code


def _duels_of(aligned: Aligned, leader: str) -> Iterator[tuple[int, int]]:
    """The leader and each other model, as numbers in the order of the models."""
    first = aligned.names.index(leader)
    for other in range(len(aligned.names)):
        if other != first:
            yield min(first, other), max(first, other)


def _slices(aligned: Aligned, leader: str) -> list[dict[str, Any]]:
    """Accuracy of the leader and each other model by slice; corrected for all these tests."""
    group_P = aligned.paired.group_P
    right_MP = aligned.values("accuracy")
    masks = list(slice_masks(aligned.table, aligned.paired))
    found: list[dict[str, Any]] = []
    for a, b in _duels_of(aligned, leader):
        entries: list[dict[str, Any]] = []
        for column, value, inside_P in masks:
            a_P, b_P = right_MP[a][inside_P], right_MP[b][inside_P]
            test = paired_test("accuracy", a_P, b_P, group_P[inside_P])
            entries.append(
                {
                    "a": aligned.names[a],
                    "b": aligned.names[b],
                    "column": column,
                    "value": value,
                    "pairs": int(inside_P.sum()),
                    "small": bool(inside_P.sum() < SMALL_SLICE),
                    "accuracy_a": float(a_P.mean()),
                    "accuracy_b": float(b_P.mean()),
                    "difference": test.difference.mean,
                    "difference_ci95": test.difference.interval,
                    "p": test.p,
                    "test": test.name,
                }
            )
        found += entries
    for entry, p in zip(found, holm([entry["p"] for entry in found]), strict=True):
        entry["p_holm"] = p
    return found


def _examples(aligned: Aligned, leader: str) -> list[dict[str, Any]]:
    """Pairs that the leader ranks right and another model wrong, and the reverse: widest first."""
    table, paired = aligned.table, aligned.paired
    found: list[dict[str, Any]] = []
    for a, b in _duels_of(aligned, leader):
        delta_a_P, delta_b_P = aligned.delta_MP[a], aligned.delta_MP[b]
        gap_P = delta_a_P - delta_b_P
        for right, wrong in ((delta_a_P, delta_b_P), (delta_b_P, delta_a_P)):
            parted_P = np.flatnonzero((right > 0) & (wrong <= 0))
            widest = parted_P[np.argsort(-np.abs(gap_P[parted_P]), kind="stable")][:_EXAMPLES]
            found += [
                {
                    "a": aligned.names[a],
                    "b": aligned.names[b],
                    "right": "a" if right is delta_a_P else "b",
                    "id": table.comparison_N[paired.winner_P[pair]],
                    "source": table.source_N[paired.winner_P[pair]],
                    "group": table.group_N[paired.winner_P[pair]],
                    "better": int(table.response_N[paired.winner_P[pair]]),
                    "worse": int(table.response_N[paired.loser_P[pair]]),
                    "delta_a": float(delta_a_P[pair]),
                    "delta_b": float(delta_b_P[pair]),
                }
                for pair in widest
            ]
    return found


# ---- words ---------------------------------------------------------------------------------------


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """The answer in words, one sentence a metric, from recorded facts."""
    if len(facts["models"]) == 2:
        return [_duel(facts["contests"][0], metric, facts["pairs"]) for metric in METRICS]
    return [_ranking(facts, metric) for metric in METRICS]


def p_value(value: float | None) -> str:
    """``p = 0.0123``, as people write it."""
    if value is None:
        return "p unknown"
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"


def _signed(found: Mapping[str, Any], *, turned: bool = False) -> str:
    sign = -1 if turned else 1
    shown = f"{sign * found['difference']:+.4f}"
    ends = found["difference_ci95"]
    if ends is not None:
        low, high = sorted(sign * end for end in ends)
        shown += f" [{low:+.4f}, {high:+.4f}]"
    return shown


def _duel(contest: Mapping[str, Any], metric: Metric, count: int) -> str:
    found = contest[metric]
    numbers = f"{found['a']:.4f} against {found['b']:.4f} on {count:,} pairs"
    certainty = f"{p_value(found['p'])}, {found['test']}"
    if found["verdict"] is None:
        return (
            f"By {METRICS[metric]} {contest['a']} and {contest['b']} cannot be told apart: "
            f"{numbers}, {_signed(found)} ({certainty})."
        )
    better, worse = ("a", "b") if found["verdict"] == "a" else ("b", "a")
    return (
        f"By {METRICS[metric]} {contest[better]} is better than {contest[worse]}: "
        f"{found[better]:.4f} against {found[worse]:.4f} on {count:,} pairs, "
        f"{_signed(found, turned=better == 'b')} ({certainty})."
    )


def _ranking(facts: Mapping[str, Any], metric: Metric) -> str:
    best, name = facts["best"][metric], METRICS[metric]
    correction = f"after Holm's correction for {best['tests']} tests"
    if not best["told_apart"]:
        worst = max(
            abs(contest[metric]["difference"])
            for contest in facts["contests"]
            if best["name"] in (contest["a"], contest["b"])
        )
        return (
            f"By {name} no two of the {len(facts['models'])} models can be told apart "
            f"{correction}: the best, {best['name']} ({best['value']:.4f}), is {worst:.4f} "
            f"ahead of the last, which is within the noise of {facts['pairs']:,} pairs."
        )
    lead = f"By {name} {best['name']} is ahead ({best['value']:.4f})"
    beats = f"it is better than {_listed(best['better_than'])}" if best["better_than"] else ""
    alike = f"cannot be told from {_listed(best['not_told_from'])}" if best["not_told_from"] else ""
    parts = f"{beats}, and {alike}" if beats and alike else beats or f"it {alike}"
    return f"{lead}: {parts} (level {facts['level']:g} {correction})."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
