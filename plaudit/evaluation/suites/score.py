"""A suite's answers to its numbers, each with an interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plaudit.evaluation.facts import json_safe
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.suites.cases import Answer, Item
from plaudit.evaluation.suites.table import Suite, by_cases
from plaudit.evaluation.table import codes
from plaudit.types import FloatArray

RESAMPLES = 1000


def score_suite(
    suite: Suite,
    items: Sequence[Item],
    answers: Sequence[Answer],
    refused: Mapping[str, int],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """The block of one suite in ``pairwise.json``, JSON-safe.

    ``items`` are all rows read, ``answers`` those that were scored, ``refused`` counts the others
    by reason. ``comparable`` says whether the numbers can stand beside the leaderboard's.
    """
    tables = _Values.of(suite, answers)
    numbers = suite.combine(tables.means(None))
    drawn = _bootstrap(suite, tables, seed)
    subsets = _subset_facts(suite, tables, items)
    # A subset's accuracy may be one of the numbers, and has one interval then.
    own = {subset["name"]: subset for subset in subsets if subset["accuracy"] is not None}
    remarks = [*_count_remarks(suite, items), *_refusal_remarks(len(items), refused)]
    block: dict[str, Any] = {
        "suite": suite.name,
        "title": suite.title,
        "source": suite.source,
        "rows": len(items),
        "expected_rows": sum(suite.counts.values()) or None,
        "used": len(answers),
        "refused": dict(refused),
        "comparable": not remarks,
        "remarks": remarks,
        "fixed_in_intervals": tables.fixed(),
        "scores": [
            {
                "name": name,
                "value": value,
                "ci95": own[name]["accuracy_ci95"]
                if name in own and own[name]["accuracy"] == value
                else _ends(drawn.get(name, ())),
                "shown": leaderboard_form(value),
            }
            for name, value in numbers.items()
        ],
        "subsets": subsets,
    }
    safe: dict[str, Any] = json_safe(block)
    return safe


def leaderboard_form(share: float) -> str:
    """Percent with one decimal, as the leaderboards print."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


class _Values:
    """Values per case and subset, with their prompt groups; means under a resampling."""

    def __init__(self, by_subset: Mapping[str, tuple[list[str], FloatArray, np.ndarray]]) -> None:
        self.by_subset = by_subset

    @classmethod
    def of(cls, suite: Suite, answers: Sequence[Answer]) -> _Values:
        rows: dict[str, list[tuple[Mapping[str, float], str]]] = {}
        for case in by_cases(answers).values():
            rows.setdefault(case[0].item.subset, []).append(
                (suite.credit(case), case[0].item.group)
            )
        by_subset = {}
        for subset, found in rows.items():
            names = list(dict.fromkeys(name for values, _ in found for name in values))
            # A case may lack a value (a tie without its reference): nan, and out of the mean.
            values_CV = np.array(
                [[values.get(name, math.nan) for name in names] for values, _ in found]
            )
            by_subset[subset] = (names, values_CV, codes([group for _, group in found]))
        return cls(by_subset)

    def cases(self, subset: str) -> int:
        """Cases of a subset that were scored."""
        return len(self.by_subset[subset][1]) if subset in self.by_subset else 0

    def accuracy_interval(self, subset: str) -> pairwise.ShareInterval | None:
        """Of the subset's mean accuracy; None for a subset that is scored by other values."""
        names, values_CV, group_C = self.by_subset.get(subset, ([], np.zeros((0, 0)), np.zeros(0)))
        if "accuracy" not in names:
            return None
        return pairwise.share_interval(values_CV[:, names.index("accuracy")], group_C)

    def fixed(self) -> list[str]:
        """Subsets of one prompt, which drawing prompts again does not change."""
        return [s for s, (_, _, group_C) in self.by_subset.items() if not group_C.any()]

    def means(self, generator: np.random.Generator | None) -> dict[str, dict[str, float]]:
        """Means per subset: of the cases, or of prompt groups drawn again inside each subset."""
        means = {}
        for subset, (names, values_CV, group_C) in self.by_subset.items():
            times_C = np.ones(len(group_C))
            if generator is not None:
                groups = int(group_C.max()) + 1
                drawn = generator.integers(groups, size=groups)
                times_C = np.bincount(drawn, minlength=groups)[group_C].astype(np.float64)
            known_CV = ~np.isnan(values_CV)
            total_V = times_C @ known_CV
            sum_V = times_C @ np.where(known_CV, values_CV, 0.0)
            with np.errstate(invalid="ignore"):
                mean_V = sum_V / total_V
            means[subset] = dict(zip(names, mean_V.tolist(), strict=True))
        return means


def _bootstrap(suite: Suite, tables: _Values, seed: int) -> dict[str, list[float]]:
    """Every number of the suite under prompt groups drawn again, subset by subset.

    Numbers are missing where no subset has two prompts.
    """
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    if not any(group_C.any() for _, _, group_C in tables.by_subset.values()):
        # One prompt a subset: nothing can vary.
        return drawn
    for _ in range(RESAMPLES):
        for name, value in suite.combine(tables.means(generator)).items():
            drawn.setdefault(name, []).append(value)
    return drawn


def _ends(values: Sequence[float]) -> tuple[float, float] | None:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _subset_facts(suite: Suite, tables: _Values, items: Sequence[Item]) -> list[dict[str, Any]]:
    rows = Counter(item.subset for item in items)
    all_means = tables.means(None)
    facts = []
    for subset, count in rows.items():
        cases = tables.cases(subset)
        means = all_means.get(subset, {})
        interval = tables.accuracy_interval(subset)
        facts.append(
            {
                "name": subset,
                "rows": count,
                "expected_rows": suite.counts.get(subset),
                "cases": cases,
                "accuracy": means.get("accuracy"),
                "accuracy_ci95": interval and interval.shown,
                "accuracy_ci95_method": interval and interval.method,
                "values": {name: value for name, value in means.items() if name != "accuracy"},
            }
        )
    return facts


def _count_remarks(suite: Suite, items: Sequence[Item]) -> list[str]:
    """What is there against what the suite is known to have."""
    if not suite.counts:
        return ["There is no leaderboard for these files."]
    found = Counter(item.subset for item in items)
    wrong = [
        f"{subset}: {found[subset]} of {expected}"
        for subset, expected in suite.counts.items()
        if found[subset] != expected
    ]
    wrong += [f"{s}: {n}, not of this suite" for s, n in found.items() if s not in suite.counts]
    if not wrong:
        return []
    remark = (
        f"{suite.title} has {sum(suite.counts.values()):,} rows and {len(items):,} were found "
        f"({'; '.join(wrong)}), so these are not the leaderboard's numbers."
    )
    return [remark]


def _refusal_remarks(rows: int, refused: Mapping[str, int]) -> list[str]:
    if not refused:
        return []
    counts = ", ".join(f"{reason} {count:,}" for reason, count in refused.items())
    remark = (
        f"{sum(refused.values()):,} of {rows:,} rows could not be scored ({counts}); no number "
    )
    return [remark + "has them in it."]
