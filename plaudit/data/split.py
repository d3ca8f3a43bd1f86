"""A part of the comparisons held out: by prompt, so that none leaks, or by row."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from plaudit.errors import DataError
from plaudit.types import Comparison

Part: TypeAlias = tuple[Comparison, ...]


def split(
    comparisons: Sequence[Comparison],
    fraction: float,
    *,
    by: Literal["prompt", "row"],
    seed: int,
) -> tuple[Part, Part]:
    """``(train, held_out)``, each in input order, with about ``fraction`` of the rows held out.

    By prompt, all rows of a group go to one side and the held-out rows differ from
    ``ceil(fraction * rows)`` by at most the largest group; groups of one row give it exactly
    (or one less, where all rows would be held out). Which groups are held out depends on the seed,
    the group names and sizes, not on the order of the input. By row,
    ``ceil(fraction * rows)`` rows are the first of a seeded permutation, which are the rows that
    ``datasets.Dataset.train_test_split`` holds out for the same seed; prompts may then stand on
    both sides (:func:`count_leaks`).

    Rows that a source's weight repeats count once and stay on one side: training keeps all copies
    and the held-out part one of each, since copies would narrow its intervals without cause.

    Raises:
        DataError: there are not two groups (or rows) to part.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction is {fraction}; expected one between 0 and 1.")
    rows = list({_row_key(comparison): comparison for comparison in comparisons}.values())
    if by == "prompt":
        groups = _held_out_groups(rows, fraction, seed)
        held_rows = {_row_key(row) for row in rows if row.group in groups}
    else:
        held_rows = {_row_key(rows[index]) for index in _held_out_rows(len(rows), fraction, seed)}
    train = tuple(item for item in comparisons if _row_key(item) not in held_rows)
    return train, tuple(row for row in rows if _row_key(row) in held_rows)


def count_leaks(train: Sequence[Comparison], held_out: Sequence[Comparison]) -> int:
    """How many held-out comparisons have a prompt that is in ``train`` too."""
    groups = {comparison.group for comparison in train}
    return sum(comparison.group in groups for comparison in held_out)


def _row_key(comparison: Comparison) -> tuple[str, str, str]:
    return comparison.source, comparison.where, comparison.id


def _held_out_groups(rows: list[Comparison], fraction: float, seed: int) -> set[str]:
    """Walk the groups in a seeded order; take each that brings the count nearer to its target."""
    sizes = Counter(row.group for row in rows)
    if len(sizes) < 2:
        raise DataError(
            f"all {len(rows)} rows have the same prompt, so none can be held out by prompt; set"
            " `split_by: row`, or give evaluation data of its own."
        )
    target = math.ceil(fraction * len(rows))
    # A hash orders the groups alike whatever the order of the input and the other groups are.
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    held: set[str] = set()
    count = 0
    for group in order:
        after = count + sizes[group]
        if after < len(rows) and abs(after - target) < abs(count - target):
            held.add(group)
            count = after
    return held or {min(order, key=lambda group: sizes[group])}


def _held_out_rows(rows: int, fraction: float, seed: int) -> list[int]:
    if rows < 2:
        raise DataError(
            f"there are {rows} rows, too few to hold any out; add rows, or give evaluation data of"
            " its own."
        )
    if seed < 0:
        raise DataError(f"the seed of the split is {seed}; expected 0 or more.")
    held = min(math.ceil(fraction * rows), rows - 1)
    return [int(index) for index in np.random.default_rng(seed).permutation(rows)[:held]]
