"""Which of two responses was said to be better, once per row that says it.

Shape legend: J judgements, one per pair of responses of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from plaudit.data.audit.columns import REASONS, Array, Columns
from plaudit.data.reasons import TIE
from plaudit.storage.arrow import RowArray

MOST_RESPONSES: Final = 8
"""Of rows with more responses, only neighbours in the row are compared."""


_JUDGED: Final = (0, REASONS.index(TIE) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgements:
    """``pair_J`` names prompt and both responses, in any order. ``sign_J`` is which one won.

    1 or -1, which way round being the same for equal pairs; 0 is a tie. ``longer_J`` is how many
    characters longer the winner is than the loser.
    """

    row_J: RowArray
    pair_J: npt.NDArray[np.uint64]
    sign_J: npt.NDArray[np.int8]
    longer_J: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_J)


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """Judgements of one pair each, sorted by pair: where each begins, its size and its balance.

    ``order_J`` sorts the judgements, ``start_V`` is where each pair begins in that order.
    """

    order_J: RowArray
    start_V: RowArray
    for_V: RowArray
    against_V: RowArray
    ties_V: RowArray

    @property
    def counts(self) -> RowArray:
        return self.for_V + self.against_V + self.ties_V


def judge_pairs(columns: Columns, rows: int) -> Judgements:
    """The judgements of those of the first ``rows`` rows that can train, and of ties."""
    starts_N = columns.starts[: rows + 1]
    judged_N = np.isin(columns.of_rows["reason"][:rows], _JUDGED)
    counts_N = np.where(judged_N, np.diff(starts_N), 0)
    parts = []
    for count in np.unique(counts_N[counts_N > 1]).tolist():
        one_P, other_P = (
            np.triu_indices(count, 1)
            if count <= MOST_RESPONSES
            else (np.arange(count - 1), np.arange(1, count))
        )
        row_M = np.flatnonzero(counts_N == count)
        one_J = (starts_N[row_M, None] + one_P).ravel()
        other_J = (starts_N[row_M, None] + other_P).ravel()
        parts.append((np.repeat(row_M, len(one_P)), one_J, other_J))
    if not parts:
        nothing = np.zeros(0, np.int64)
        parts = [(nothing, nothing, nothing)]
    row_J, one_J, other_J = (np.concatenate([part[i] for part in parts]) for i in range(3))
    order = np.argsort(row_J, kind="stable")
    return _judged(columns, row_J[order], one_J[order], other_J[order])


def _judged(columns: Columns, row_J: RowArray, one_J: RowArray, other_J: RowArray) -> Judgements:
    digest_R, grade_R = (columns.of_responses[name] for name in ("digest", "grade"))
    characters_R = columns.of_responses["characters"].astype(np.int64)
    gap_J = grade_R[one_J] - grade_R[other_J]
    known = ~np.isnan(gap_J) & (digest_R[one_J] != digest_R[other_J])
    row_J, one_J, other_J, gap_J = row_J[known], one_J[known], other_J[known], gap_J[known]
    low_J = np.minimum(digest_R[one_J], digest_R[other_J])
    high_J = np.maximum(digest_R[one_J], digest_R[other_J])
    won_J = np.sign(gap_J).astype(np.int8)
    turned_J = np.where(digest_R[one_J] == low_J, won_J, -won_J).astype(np.int8)
    return Judgements(
        row_J=row_J,
        pair_J=mixed(columns.of_rows["group"][row_J], low_J, high_J),
        sign_J=turned_J,
        longer_J=won_J * (characters_R[one_J] - characters_R[other_J]),
    )


def count_votes(judgements: Judgements) -> Votes:
    """The judgements of each pair together."""
    order_J = np.argsort(judgements.pair_J, kind="stable")
    pair_J, sign_J = judgements.pair_J[order_J], judgements.sign_J[order_J]
    start_V = np.flatnonzero(np.concatenate([[True], pair_J[1:] != pair_J[:-1]])[: len(pair_J)])
    if not len(start_V):
        nothing = np.zeros(0, np.int64)
        return Votes(
            order_J=order_J, start_V=nothing, for_V=nothing, against_V=nothing, ties_V=nothing
        )
    sums = [np.add.reduceat((sign_J == sign).astype(np.int64), start_V) for sign in (1, -1, 0)]
    return Votes(order_J=order_J, start_V=start_V, for_V=sums[0], against_V=sums[1], ties_V=sums[2])


def mixed(*columns: Array) -> npt.NDArray[np.uint64]:
    """One number for several, by multiplication and rotation (as FNV and MurmurHash mix)."""
    found = np.full(len(columns[0]), 0xCBF29CE484222325, np.uint64)
    for column in columns:
        found = (found ^ column.astype(np.uint64)) * np.uint64(0x9FB21C651E98DF25)
        found ^= found >> np.uint64(32)
    return found
