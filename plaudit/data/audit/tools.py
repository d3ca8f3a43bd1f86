"""What the audit borrows from other stages, as functions; a composition root fills it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt

from plaudit.types import Comparison, FloatArray, Refused, Turns

Fitted: TypeAlias = Callable[[Sequence[Comparison], Sequence[Comparison]], FloatArray]
"""(train, held out) -> one difference per ordered pair of the held-out comparisons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Tokens of a comparison.

    ``longest`` is its longest whole conversation. ``shared`` is how many tokens two of its
    differently graded conversations have in common in front, at the most; 0 where no two differ.
    """

    longest: int
    shared: int


Measure: TypeAlias = Callable[[Sequence[Comparison]], Sequence[Size | Refused]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How tokens are counted, and whether that is an estimate; ``how`` is said beside each count.

    ``renders`` is whether conversations go through a chat template while they are counted, and
    ``has_template`` whether the tokenizer has one.
    """

    measure: Measure
    how: str
    exact: bool
    renders: bool
    has_template: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Functions of other stages.

    ``text`` is the plain text of a prompt or a response. ``scripts`` counts the letters of a
    text by script. ``judge`` turns differences (winner less loser) and the prompts of their pairs
    into accuracy, interval, ties and pairs. ``bag_of_words`` is fitted on some comparisons and
    judges others.
    """

    text: Callable[[Turns], str]
    scripts: Callable[[str], Mapping[str, int]]
    judge: Callable[[FloatArray, npt.NDArray[Any]], Mapping[str, Any]]
    bag_of_words: Fitted
    counting: Counting
