"""A part of the comparisons held out: by prompt, so that none leaks, or by row."""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from plaudit.arrow import RowArray
from plaudit.data.store import GroupArray, StoredComparisons, group_name
from plaudit.errors import DataError


def split(
    comparisons: StoredComparisons,
    size: float,
    *,
    by: Literal["prompt", "row"],
    seed: int,
) -> tuple[StoredComparisons, StoredComparisons]:
    """``(train, held_out)``, each in input order, with about ``size`` of the rows held out.

    ``size`` is a share below 1, which means ``ceil(size * rows)`` rows, or a number of rows. By
    prompt, all rows of a group go to one side and the held-out rows differ from that number by at
    most the largest group; groups of one row give it exactly (or one less, where all rows would be
    held out). Which groups are held out depends on the seed, the group names and sizes, not on the
    order of the input. By row, the rows are the first of a seeded permutation, which are those that
    ``datasets.Dataset.train_test_split`` holds out for the same seed; prompts may then stand on
    both sides (:func:`count_leaks`).

    Rows that a source's weight repeats count once and stay on one side: training keeps all copies
    and the held-out part one of each, since copies would narrow its intervals without cause.

    Raises:
        DataError: there are not two groups (or rows) to part.
    """
    rows_N, groups_N = comparisons.rows_N, comparisons.groups
    train_N, held_out_N = split_rows(rows_N, groups_N, size, by=by, seed=seed)
    return comparisons.take(train_N), comparisons.take(held_out_N)


def split_rows(
    row_N: RowArray,
    group_N: GroupArray,
    size: float,
    *,
    by: Literal["prompt", "row"],
    seed: int,
) -> tuple[RowArray, RowArray]:
    """Positions of the training and the held-out part; ``row_N`` is equal for copies of a row."""
    if not 0 < size < 1 and not (isinstance(size, int) and size >= 1):
        raise DataError(
            f"{size:g} is to be held out; expected a share between 0 and 1, or a number of rows."
        )
    _, first_U, unique_N = np.unique(row_N, return_index=True, return_inverse=True)
    # Different rows, numbered in the order of their first copies.
    order_U = np.argsort(first_U)
    first_R, row_of_N = first_U[order_U], np.argsort(order_U)[unique_N]
    target = math.ceil(size * len(first_R)) if size < 1 else int(size)
    if by == "prompt":
        held_R = _held_out_groups(group_N[first_R], target, seed)
    else:
        held_R = np.zeros(len(first_R), dtype=np.bool_)
        held_R[_held_out_rows(len(first_R), target, seed)] = True
    return np.flatnonzero(~held_R[row_of_N]), first_R[held_R]


def count_leaks(train: StoredComparisons, held_out: StoredComparisons) -> int:
    """How many held-out comparisons have a prompt that is in ``train`` too."""
    return int(np.isin(held_out.groups, train.groups).sum())


def _held_out_groups(group_N: GroupArray, target: int, seed: int) -> npt.NDArray[np.bool_]:
    """Walk the groups in a seeded order; hold out each that brings the count nearer to its target.

    True for the rows held out.
    """
    rows = len(group_N)
    code_G, group_of_N, size_G = np.unique(group_N, return_inverse=True, return_counts=True)
    if len(code_G) < 2:
        raise DataError(
            f"all {rows} rows have the same prompt, so none can be held out by prompt; set"
            " `split_by: row`, or give evaluation data of its own."
        )
    # A hash orders the groups alike whatever the order of the input and the other groups are.
    digest_G = np.array(
        [hashlib.sha256(f"{seed}/{group_name(code)}".encode()).digest() for code in code_G.tolist()]
    )
    order_G = np.argsort(digest_G, kind="stable")
    held_G = np.zeros(len(code_G), dtype=np.bool_)
    count = 0
    for group, size in zip(order_G.tolist(), size_G[order_G].tolist(), strict=True):
        after = count + size
        if after < rows and abs(after - target) < abs(count - target):
            held_G[group] = True
            count = after
    if not held_G.any():
        held_G[order_G[np.argmin(size_G[order_G])]] = True
    return held_G[group_of_N]


def _held_out_rows(rows: int, target: int, seed: int) -> RowArray:
    if rows < 2:
        raise DataError(
            f"there are {rows} rows, too few to hold any out; add rows, or give evaluation data of"
            " its own."
        )
    if seed < 0:
        raise DataError(f"the seed of the split is {seed}; expected 0 or more.")
    return np.random.default_rng(seed).permutation(rows)[: min(target, rows - 1)]
