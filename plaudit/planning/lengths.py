"""Lengths of comparisons in tokens, and what follows from them for packed and padded batches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from plaudit.errors import DataError

CHARACTERS_PER_TOKEN = 4
PADDED_SEED = 0

Truncation: TypeAlias = Literal["drop", "left", "proportional", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Tokens of one comparison: its shared prompt and each response's own."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def packed(self) -> int:
        """Tokens computed when the prompt is computed once."""
        return self.prompt + sum(self.responses)

    @property
    def longest(self) -> int:
        """Tokens of the longest whole conversation."""
        return self.prompt + max(self.responses)

    @property
    def attended(self) -> int:
        """Pairs of a token and one it attends to: itself, its branch before it, the prompt."""
        branches = sum(self.prompt * r + r * (r + 1) // 2 for r in self.responses)
        return self.prompt * (self.prompt + 1) // 2 + branches

    @property
    def attended_padded(self) -> int:
        """The same for separate rows, padding left out."""
        return sum((self.prompt + r) * (self.prompt + r + 1) // 2 for r in self.responses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths of a set of comparisons, or one that stands for all; ``how`` says how they came."""

    rows: tuple[Length, ...]
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthFacts:
    """Means per comparison, and the largest comparison. ``kept`` is the share not over length."""

    kept: float
    packed: float
    padded: float
    attended: float
    attended_padded: float
    largest_packed: int
    largest_padded: int


def given(prompt: int, response: int) -> Lengths:
    """Every pair alike, as stated on the command line."""
    return Lengths(
        rows=(Length(prompt=prompt, responses=(response, response)),), how="given lengths"
    )


def from_characters(texts: Sequence[tuple[int, tuple[int, ...]]]) -> Lengths:
    """Lengths estimated from characters of prompts and responses, four to a token."""
    rows = tuple(
        Length(prompt=_tokens(prompt), responses=tuple(_tokens(r) for r in responses))
        for prompt, responses in texts
    )
    return Lengths(rows=rows, how=f"estimated, {CHARACTERS_PER_TOKEN} characters a token")


def _tokens(characters: int) -> int:
    return max(1, math.ceil(characters / CHARACTERS_PER_TOKEN))


def within(lengths: Lengths, *, max_length: int, truncation: Truncation) -> list[Length]:
    """The comparisons that the over-length policy keeps, shortened where it shortens."""
    shorten = _SHORTEN.get(truncation)
    rows = lengths.rows if shorten is None else [shorten(row, max_length) for row in lengths.rows]
    return [row for row in rows if row.longest <= max_length]


def summarize(
    lengths: Lengths,
    *,
    max_length: int,
    truncation: Truncation,
    batch: int,
) -> LengthFacts:
    """Facts of the comparisons that the over-length policy keeps.

    ``padded`` is what batches of ``batch`` comparisons, in a shuffled order and padded to the
    longest conversation of the batch, would hold.

    Raises:
        DataError: no comparison is within ``max_length``.
    """
    rows = within(lengths, max_length=max_length, truncation=truncation)
    if not rows:
        raise DataError(
            f"every comparison has a conversation over tokens.max_length {max_length}; raise it."
        )
    return LengthFacts(
        kept=len(rows) / len(lengths.rows),
        packed=_mean([row.packed for row in rows]),
        padded=_padded(rows, batch),
        attended=_mean([row.attended for row in rows]),
        attended_padded=_mean([row.attended_padded for row in rows]),
        largest_packed=max(row.packed for row in rows),
        largest_padded=max(row.longest * len(row.responses) for row in rows),
    )


def _shorten(row: Length, max_length: int) -> Length:
    excess = max(0, row.longest - max_length)
    return Length(prompt=max(0, row.prompt - excess), responses=row.responses)


def _cut_in_proportion(row: Length, max_length: int) -> Length:
    """In proportion, without the rule of which part is cut first."""
    share = min(1.0, max_length / row.longest)
    return Length(
        prompt=int(share * row.prompt), responses=tuple(int(share * r) for r in row.responses)
    )


_SHORTEN: dict[str, Callable[[Length, int], Length]] = {
    "left": _shorten,
    "error": _shorten,
    "proportional": _cut_in_proportion,
}
"""What a policy makes of lengths over the limit; without a row they are left out."""


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def _padded(rows: Sequence[Length], batch: int) -> float:
    order = list(rows)
    random.Random(PADDED_SEED).shuffle(order)
    total = 0
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        total += sum(len(row.responses) for row in part) * max(row.longest for row in part)
    return total / len(order)
