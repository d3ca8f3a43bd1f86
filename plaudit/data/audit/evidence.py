"""What the checks look at, gathered once: columns, judgements, duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plaudit.data.audit.columns import Array, Columns
from plaudit.data.audit.judgements import Judgements, Votes
from plaudit.data.audit.near import NearPairs, Texts
from plaudit.data.audit.rows import AuditRows
from plaudit.data.audit.tools import Tools
from plaudit.storage.arrow import RowArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything known of the rows. The first ``data`` are looked over, the others compared with.

    ``near_prompts`` is None where there is nothing to compare with.
    """

    rows: AuditRows
    columns: Columns
    judgements: Judgements
    votes: Votes
    near_rows: NearPairs
    near_prompts: NearPairs | None
    texts: Texts
    tools: Tools
    max_length: int

    @property
    def data(self) -> int:
        return self.rows.data

    def column(self, name: str) -> Array:
        """A column of the rows that are looked over."""
        return self.columns.of_rows[name][: self.data]

    def other(self, name: str, kind: str) -> tuple[RowArray, Array]:
        """Row numbers and a column of the rows to compare with, of one kind."""
        numbers = [np.arange(part.start, part.end) for part in self.rows.parts if part.kind == kind]
        rows = np.concatenate(numbers) if numbers else np.zeros(0, np.int64)
        return rows, self.columns.of_rows[name][rows]

    def kind_of(self, rows: RowArray) -> Array:
        """The kind of the part that each row belongs to."""
        ends = np.array([part.end for part in self.rows.parts])
        kinds = np.array([part.kind for part in self.rows.parts])
        return kinds[np.searchsorted(ends, rows, side="right")]


def first_of_equals(key_N: Array) -> RowArray:
    """For each row the first row with the same key: itself where there is none before it."""
    _, first_U, inverse_N = np.unique(key_N, return_index=True, return_inverse=True)
    found: RowArray = first_U[inverse_N]
    return found
