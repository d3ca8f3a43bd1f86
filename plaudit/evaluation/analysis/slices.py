"""Accuracy by slice: where is the model better or worse than on the rest of the data?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.significance import against_the_rest, benjamini_hochberg
from plaudit.evaluation.schema import PairMetrics, Slice, parts
from plaudit.evaluation.table import Pairs, ScoreTable, codes
from plaudit.types import FloatArray

MAX_SLICE_VALUES = 30
"""A metadata column with more values than this is no slice."""

SMALL_SLICE = 30
"""A slice of fewer pairs is marked small; against the rest it gets no p-value, only intervals."""

ALPHA = 0.05
"""An adjusted p-value below this is significant."""

_LENGTH_BINS = 4


def measure_pairs(paired: Pairs, *, seed: int = 0) -> PairMetrics:
    """The numbers of any set of pairs: loss, accuracy with its interval, ties and counts."""
    return PairMetrics(
        loss=pairwise.bradley_terry_loss(paired.delta_P, paired.margin_P),
        **parts(pairwise.measured_accuracy(paired.delta_P, paired.group_P, seed=seed)),
        accuracy_half_ties=pairwise.accuracy_half_ties(paired.delta_P),
        ties=pairwise.ties(paired.delta_P),
        groups=len(np.unique(paired.group_P)),
    )


def measure_slices(table: ScoreTable, paired: Pairs) -> tuple[Slice, ...]:
    """One entry per slice, with its counts; the columns are those of :func:`slice_columns`.

    ``p`` compares the slice with all other pairs, and ``p_adjusted`` holds the share of false
    findings among all slices of this table (Benjamini and Hochberg, 1995).
    """
    right_P = paired.delta_P > 0
    entries: list[Slice] = []
    for column, labels_P in slice_columns(table, paired):
        code_P = codes(labels_P)
        label_of = dict(zip(code_P.tolist(), labels_P, strict=True))
        sizes = np.bincount(code_P)
        for code in _ordered(column, label_of, sizes):
            inside_P = code_P == code
            small = int(sizes[code]) < SMALL_SLICE
            entries.append(
                Slice(
                    column=column,
                    value=label_of[code],
                    **parts(measure_pairs(paired.where(inside_P))),
                    small=small,
                    p=None if small else against_the_rest(right_P, inside_P, paired.group_P),
                    p_adjusted=None,
                    significant=False,
                )
            )
    adjusted = benjamini_hochberg([entry.p for entry in entries])
    return tuple(
        replace(entry, p_adjusted=p, significant=p is not None and p < ALPHA)
        for entry, p in zip(entries, adjusted, strict=True)
    )


def _ordered(
    column: str, label_of: dict[int, str | None], sizes: npt.NDArray[np.int64]
) -> list[int]:
    """Counts and lengths by their number; other values largest first, equal sizes by name."""
    if column in _NUMBERED:
        return sorted(label_of, key=lambda code: _first_number(label_of[code]))
    return sorted(label_of, key=lambda code: (-sizes[code], label_of[code] or ""))


def _first_number(label: str | None) -> float:
    digits = (label or "").split(" ")[0].replace(",", "")
    return float(digits) if digits.isdigit() else float("inf")


def slice_columns(table: ScoreTable, paired: Pairs) -> Iterator[tuple[str, list[str | None]]]:
    """``(column, a value per pair)``.

    By source always; by what the comparison is like (turns and characters of the prompt, number of
    responses, truncation, script of the prompt) and by each metadata column of 2 to 30 values, two
    pairs a value or more. A value is ``None`` where rows have none.
    """
    yield "source", [_label(value) for value in table.source_N[paired.winner_P]]
    for column, labels_P in _of_the_comparison(table, paired).items():
        if 2 <= len(set(labels_P)) <= MAX_SLICE_VALUES:
            yield column, labels_P
    for name in sorted(table.metadata):
        labels_P = [_label(value) for value in table.metadata[name][paired.winner_P]]
        if 2 <= len(set(labels_P)) <= min(MAX_SLICE_VALUES, len(paired) // 2):
            taken = name == "source" or name in _NUMBERED or name in _NAMED
            yield f"metadata.{name}" if taken else name, labels_P


_NUMBERED = ("turns", "prompt_characters", "responses")
_NAMED = ("truncated", "prompt_script")


def _label(value: Any) -> str | None:
    return None if value is None else str(value)


def _of_the_comparison(table: ScoreTable, paired: Pairs) -> dict[str, list[str | None]]:
    features_P = table.features_N[paired.winner_P]
    comparison_N = codes(list(zip(table.dataset_N, table.number_N, strict=True)))
    responses_P = np.bincount(comparison_N)[paired.comparison_P] if len(paired) else np.zeros(0)
    return {
        "turns": [_counted(value, most=9) for value in features_P["turns"]],
        "prompt_characters": _binned(features_P["prompt_characters"]),
        "responses": [_counted(value, most=9) for value in responses_P],
        "truncated": [
            None if np.isnan(tokens) else "prompt cut" if tokens else "whole"
            for tokens in features_P["truncated"]
        ],
        "prompt_script": [str(name) or None for name in features_P["prompt_script"]],
    }


def _counted(value: float, *, most: int) -> str | None:
    if np.isnan(value):
        return None
    return f"{int(value)}" if value <= most else f"{most + 1} or more"


def _binned(values_P: FloatArray) -> list[str | None]:
    """Up to four ranges of about equal numbers of pairs; equal values stay together."""
    known_P = np.isfinite(values_P)
    if not known_P.any():
        return [None] * len(values_P)
    shares = np.arange(1, _LENGTH_BINS) / _LENGTH_BINS
    edges = np.unique(np.quantile(values_P[known_P], shares, method="higher"))
    bin_P = np.searchsorted(edges, values_P, side="right")
    labels: dict[int, str] = {}
    for number in np.unique(bin_P[known_P]):
        inside = values_P[known_P & (bin_P == number)]
        low, high = int(inside.min()), int(inside.max())
        labels[int(number)] = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return [labels[int(b)] if known else None for b, known in zip(bin_P, known_P, strict=True)]
