"""What a suite's rows become, and small helpers to read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from plaudit.errors import DataError
from plaudit.types import FloatArray, Turns

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row of a suite: a prompt, K responses with known grades, and the subset it counts in.

    ``case`` joins rows that are scored together; rows of one ``prompt`` are one group of the
    bootstrap. ``tools``, ``chat_template_kwargs`` and ``unusable`` are those of the
    :class:`~plaudit.types.Comparison`; ``unread`` names the columns of the row that hold text and
    are not read.
    """

    id: str
    prompt: Turns
    responses: tuple[Turns, ...]
    grades: tuple[float, ...]
    subset: str
    case: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    unusable: str | None = None
    unread: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """Names the prompt; without one, the set of responses."""
        known = key(self.prompt) if self.prompt else "".join(sorted(map(key, self.responses)))
        return hashlib.sha256(known.strip().encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A row and the model's rewards, ``rewards_K`` in the row's order."""

    item: Item
    rewards_K: FloatArray

    @property
    def correct(self) -> FloatArray:
        """Rewards of the responses with grade 1."""
        return self.rewards_K[[grade == 1 for grade in self.item.grades]]

    @property
    def wrong(self) -> FloatArray:
        """Rewards of the other responses."""
        return self.rewards_K[[grade != 1 for grade in self.item.grades]]


Case: TypeAlias = Sequence[Answer]
"""Rows that are scored together; all suites but the ties of RewardBench 2 have one a case."""


def key(said: Turns) -> str:
    """Equal for equal texts and for equal messages."""
    if isinstance(said, str):
        return said
    return json.dumps([message.as_dict() for message in said], sort_keys=True, default=str)


def text(row: Row, column: str) -> str:
    """A text of the row. Raises DataError where it is missing or something else."""
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"{column} is {_kind(value)}, expected text.")
    return value


def turns(row: Row, column: str) -> Turns:
    """A text of the row, or turns that its reader has parsed."""
    value = row.get(column)
    return value if isinstance(value, tuple) else text(row, column)


def texts(row: Row, column: str) -> tuple[str, ...]:
    """A list of texts. Raises DataError where it is missing, empty or something else."""
    value = row.get(column)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise DataError(f"{column} is {_kind(value)}, expected a list of texts.")
    return tuple(value)


def identity(row: Row, number: int) -> str:
    """The row's id, or its number where it has none."""
    value = row.get("id")
    return str(number) if value is None else str(value)


def _kind(value: Any) -> str:
    return "missing" if value is None else type(value).__name__
