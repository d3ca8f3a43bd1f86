"""Facts of the set as a whole: lengths, scripts, and what trivial judges make of the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any, Final

import numpy as np

from plaudit.data.audit.columns import Array
from plaudit.data.audit.evidence import Evidence
from plaudit.data.audit.judgements import mixed
from plaudit.data.audit.rows import Progress
from plaudit.data.audit.shingles import evenly_spaced
from plaudit.data.perturb.text import identify_language
from plaudit.storage.arrow import RowArray
from plaudit.types import Comparison, FloatArray

LENGTHS: Final = (512, 1024, 2048, 4096)
"""Lengths at which the rows that are over are counted."""

LANGUAGE_ROWS: Final = 2_000
FOLDS: Final = 5
BAG_OF_WORDS_ROWS: Final = 4_000
"""Rows that the bag of words is fitted and tried on; of more, evenly spaced ones."""

_PARTS_OF_HUNDRED: Final = (0, 5, 25, 50, 75, 95, 99, 100)
_BINS: Final = 40


def lengths(evidence: Evidence) -> dict[str, Any]:
    """Characters of prompts, better and worse responses; tokens of the longest conversations."""
    starts_N = evidence.columns.starts[: evidence.data + 1]
    characters_R = evidence.columns.of_responses["characters"][: starts_N[-1]]
    grade_R = evidence.columns.of_responses["grade"][: starts_N[-1]]
    row_R = np.repeat(np.arange(evidence.data), np.diff(starts_N))
    best_N, worst_N = np.full(evidence.data, -np.inf), np.full(evidence.data, np.inf)
    known = ~np.isnan(grade_R)
    np.maximum.at(best_N, row_R[known], grade_R[known])
    np.minimum.at(worst_N, row_R[known], grade_R[known])
    differ = known & (best_N > worst_N)[row_R]
    found = {
        "prompt_characters": evidence.column("prompt_characters"),
        "better_characters": characters_R[differ & (grade_R == best_N[row_R])],
        "worse_characters": characters_R[differ & (grade_R == worst_N[row_R])],
        "conversation_tokens": evidence.column("longest")[evidence.column("refused") == 0],
    }
    return {name: spread(values) for name, values in found.items()}


def spread(values: Array) -> dict[str, Any] | None:
    """Mean, percentiles and a histogram over equal steps of the logarithm; None of nothing."""
    if not len(values):
        return None
    edges = np.unique(
        np.rint(np.geomspace(1, max(2, int(values.max()) + 1), _BINS + 1)).astype(np.int64)
    )
    edges[0] = 0
    counts, _ = np.histogram(values, edges)
    percentiles = np.percentile(values, _PARTS_OF_HUNDRED)
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "percentiles": {
            str(part): float(value)
            for part, value in zip(_PARTS_OF_HUNDRED, percentiles, strict=True)
        },
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def over_lengths(evidence: Evidence) -> list[dict[str, Any]]:
    """Rows with a conversation above each length."""
    longest = evidence.column("longest")
    limits = sorted({*LENGTHS, evidence.max_length})
    return [
        {
            "tokens": limit,
            "rows": int((longest > limit).sum()),
            "given": limit == evidence.max_length,
        }
        for limit in limits
    ]


def scripts(evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    """How many prompts and responses are in each script, the most frequent first."""
    responses = evidence.columns.starts[evidence.data]
    return {
        "prompts": _counted(evidence, evidence.column("prompt_script")),
        "responses": _counted(evidence, evidence.columns.of_responses["script"][:responses]),
    }


def _counted(evidence: Evidence, codes: Array) -> list[dict[str, Any]]:
    found, counts = np.unique(codes, return_counts=True)
    names = evidence.columns.names
    rows = [
        {"script": names[code] if code else None, "count": count}
        for code, count in zip(found.tolist(), counts.tolist(), strict=True)
    ]
    return sorted(rows, key=lambda row: (-row["count"], row["script"] or ""))


def languages(evidence: Evidence) -> dict[str, Any]:
    """Languages of prompts and responses of evenly spaced rows.

    ``responses_in_another`` are those in another language than their prompt, of
    ``responses_compared`` where both are known.
    """
    text = evidence.tools.text
    rows = evenly_spaced(evidence.data, LANGUAGE_ROWS)
    prompts: Counter[str | None] = Counter()
    responses: Counter[str | None] = Counter()
    compared = another = 0
    for row in rows.tolist():
        comparison = evidence.rows[row]
        asked = identify_language(text(comparison.prompt))
        answered = [identify_language(text(response)) for response in comparison.responses]
        prompts[asked] += 1
        responses.update(answered)
        known = [name for name in answered if name is not None and asked is not None]
        compared += len(known)
        another += sum(name != asked for name in known)
    return {
        "rows": len(rows),
        "prompts": _by_language(prompts),
        "responses": _by_language(responses),
        "responses_compared": compared,
        "responses_in_another": another,
    }


def _by_language(counts: Counter[str | None]) -> list[dict[str, Any]]:
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0] or ""))
    return [{"language": name, "count": count} for name, count in order]


def shape(evidence: Evidence) -> dict[str, Any]:
    """Prompts, responses per row and turns per prompt."""
    _, sizes = np.unique(evidence.column("group"), return_counts=True)
    return {
        "prompts": len(sizes),
        "rows_of_the_most_frequent_prompt": int(sizes.max()) if len(sizes) else 0,
        "responses": _tally(evidence.column("responses")),
        "turns_of_prompt": _tally(evidence.column("turns")),
    }


def _tally(values: Array) -> dict[str, int]:
    found, counts = np.unique(values, return_counts=True)
    return {str(v): c for v, c in zip(found.tolist(), counts.tolist(), strict=True)}


def surface(evidence: Evidence, on_progress: Progress) -> dict[str, Any]:
    """What the labels say that length and single words say too.

    ``longer`` looks at every judged pair. ``bag_of_words`` is fitted on four fifths of the prompts
    and judges the fifth, five times; ``rows`` is how many rows took part.
    """
    judged = evidence.judgements.sign_J != 0
    longer_P = evidence.judgements.longer_J[judged].astype(np.float64)
    group_P = evidence.column("group")[evidence.judgements.row_J[judged]]
    sample = _sample(evidence)
    bag = _cross_fitted(evidence, sample, on_progress)
    return {
        "longer": dict(evidence.tools.judge(longer_P, group_P)),
        "shorter": dict(evidence.tools.judge(-longer_P, group_P)),
        "length_gap": _gaps(longer_P),
        "bag_of_words": None
        if bag is None
        else {**evidence.tools.judge(*bag), "rows": len(sample), "folds": FOLDS},
    }


def _gaps(longer_P: FloatArray) -> dict[str, Any] | None:
    """Histogram of the winner's characters less the loser's, ends folded into the last bins."""
    if not len(longer_P):
        return None
    reach = max(1.0, float(np.percentile(np.abs(longer_P), 98)))
    edges = np.linspace(-reach, reach, _BINS + 1)
    counts, _ = np.histogram(np.clip(longer_P, -reach, reach), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _sample(evidence: Evidence) -> RowArray:
    usable = np.flatnonzero(evidence.column("reason") == 0)
    return usable[evenly_spaced(len(usable), BAG_OF_WORDS_ROWS)]


def _cross_fitted(
    evidence: Evidence, sample: RowArray, on_progress: Progress
) -> tuple[FloatArray, Array] | None:
    """Differences by a bag of words that has not seen the prompts it judges, and those prompts.

    None if it cannot.
    """
    group_S = evidence.column("group")[sample]
    fold_S = mixed(group_S) % np.uint64(FOLDS)
    if len(np.unique(group_S)) < 2 * FOLDS or len(np.unique(fold_S)) < FOLDS:
        return None
    comparisons: list[Comparison] = [evidence.rows[row] for row in sample.tolist()]
    found, groups = [], []
    for fold in range(FOLDS):
        on_progress("fitting a bag of words", fold, FOLDS)
        sides: Mapping[bool, list[Comparison]] = {True: [], False: []}
        for comparison, own in zip(comparisons, fold_S.tolist(), strict=True):
            sides[own == fold].append(comparison)
        found.append(evidence.tools.bag_of_words(sides[False], sides[True]))
        pairs = [sum(a != b for a, b in combinations(c.grades, 2)) for c in sides[True]]
        groups.append(np.repeat(group_S[fold_S == fold], pairs))
    on_progress("fitting a bag of words", FOLDS, FOLDS)
    return np.concatenate(found), np.concatenate(groups)
