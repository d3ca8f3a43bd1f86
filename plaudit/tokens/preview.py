"""Comparisons as the model sees them, for people: every token with its text, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.tokens.encode import Encoder, encode, why_untrainable
from plaudit.tokens.pieces import pieces
from plaudit.types import Comparison, IntArray, Refused, ShownComparison, ShownToken, TokenTree


def show(encoder: Encoder, comparisons: Sequence[Comparison]) -> list[ShownComparison]:
    """What encoding makes of each comparison: the same trees that are trained on and scored.

    Raises:
        DataError, ModelError: as :func:`plaudit.tokens.encode.encode`.
    """
    outcomes = encode(encoder, comparisons)
    return [
        _refused(comparison, outcome)
        if isinstance(outcome, Refused)
        else _shown(encoder, comparison, outcome)
        for comparison, outcome in zip(comparisons, outcomes, strict=True)
    ]


def _refused(comparison: Comparison, outcome: Refused) -> ShownComparison:
    return ShownComparison(
        id=comparison.id,
        where=comparison.where,
        grades=comparison.grades,
        reason=outcome.reason,
        detail=outcome.detail,
    )


def _shown(encoder: Encoder, comparison: Comparison, tree: TokenTree) -> ShownComparison:
    return ShownComparison(
        id=comparison.id,
        where=comparison.where,
        grades=comparison.grades,
        prefix=_tokens(encoder, tree.prefix, ()),
        branches=tuple(_tokens(encoder, branch, tree.prefix.tolist()) for branch in tree.branches),
        truncated=tree.truncated,
        reason=why_untrainable(tree),
    )


def _tokens(encoder: Encoder, ids: IntArray, before: Sequence[int]) -> tuple[ShownToken, ...]:
    special = set(encoder.tokenizer.all_special_ids)
    texts = pieces(encoder.tokenizer, ids.tolist(), before)
    return tuple(
        ShownToken(id=number, text=text, special=number in special)
        for number, text in zip(ids.tolist(), texts, strict=True)
    )
