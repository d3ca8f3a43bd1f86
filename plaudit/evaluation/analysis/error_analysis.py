"""Where the model is wrong: accuracy by slice, and the most confident mistakes, to read first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.data.formats.records import plain
from plaudit.errors import DataError, ModelError
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.schema import (
    Mistake,
    MistakeText,
    PairMetrics,
    Slice,
    TokenChange,
    TokenRewards,
    parts,
)
from plaudit.evaluation.table import Pairs, ScoreTable, codes
from plaudit.types import Comparison, FloatArray, TokenReward

if TYPE_CHECKING:
    from plaudit.reward_model import RewardModel

MAX_SLICE_VALUES = 30
"""A metadata column with more values than this is no slice."""

SMALL_SLICE = 30
"""A slice of fewer pairs is marked small; against the rest it gets no p-value, only intervals."""

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
                    p=None
                    if small
                    else pairwise.against_the_rest(right_P, inside_P, paired.group_P),
                    p_adjusted=None,
                    significant=False,
                )
            )
    adjusted = pairwise.benjamini_hochberg([entry.p for entry in entries])
    return tuple(
        replace(entry, p_adjusted=p, significant=p is not None and p < pairwise.ALPHA)
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


# ---- mistakes ---------------------------------------------------------------------------------

MOST = 30

MOST_TOKENS = 400
"""Tokens of a response whose rewards are kept: three quarters from its start, the rest its end."""

RewardsOf: TypeAlias = Callable[[Comparison, int], Sequence[TokenReward] | None]
"""(comparison, number of a response) -> its per-token rewards, None where the model has none."""


def find_mistakes(
    table: ScoreTable, paired: Pairs, *, temperature: float | None
) -> Iterator[Mistake]:
    """:data:`MOST` wrong pairs by falling confidence, one per prompt group, without their texts.

    ``better`` and ``worse`` are numbers of responses by the labels; ``probability`` is what the
    model gave to the wrong answer, at the stored temperature where there is one.
    """
    from scipy.special import expit

    wrong_P = np.flatnonzero(paired.delta_P < 0)
    order_P = wrong_P[np.argsort(paired.delta_P[wrong_P], kind="stable")]
    _, first_of_group = np.unique(paired.group_P[order_P], return_index=True)
    for pair in order_P[np.sort(first_of_group)[:MOST]]:
        winner, loser = int(paired.winner_P[pair]), int(paired.loser_P[pair])
        delta = float(paired.delta_P[pair])
        yield Mistake(
            id=table.comparison_N[winner],
            dataset=table.dataset_N[winner],
            number=int(table.number_N[winner]),
            source=table.source_N[winner],
            better=int(table.response_N[winner]),
            worse=int(table.response_N[loser]),
            reward_better=float(table.reward_N[winner]),
            reward_worse=float(table.reward_N[loser]),
            difference=delta,
            probability=float(expit(-delta / (temperature or 1.0))),
        )


def with_texts(
    mistakes: Sequence[Mistake],
    comparisons: Iterable[tuple[str, int, Comparison]],
    *,
    rewards_of: RewardsOf = lambda comparison, response: None,
) -> Iterator[MistakeText]:
    """Each mistake with its prompt and both responses, in order; comparisons are walked once.

    ``comparisons`` gives the name of the set, the comparison's number in it, and the comparison.
    """
    wanted = {(mistake.dataset, mistake.number) for mistake in mistakes}
    found = {
        (dataset, number): comparison
        for dataset, number, comparison in comparisons
        if (dataset, number) in wanted
    }
    for mistake in mistakes:
        comparison = found[mistake.dataset, mistake.number]
        yield MistakeText(
            **parts(mistake),
            where=comparison.where,
            prompt=plain(comparison.prompt),
            text_better=plain(comparison.responses[mistake.better]),
            text_worse=plain(comparison.responses[mistake.worse]),
            token_rewards_better=bounded(rewards_of(comparison, mistake.better)),
            token_rewards_worse=bounded(rewards_of(comparison, mistake.worse)),
        )


def bounded(
    tokens: Sequence[TokenReward] | None, *, most: int = MOST_TOKENS
) -> TokenRewards | None:
    """The per-token rewards of a response, of a long one its start and its end.

    A token that adds no character of its own (a character of several tokens) is one with the token
    that completes it. There is nothing to record where a reward on the way is not finite.
    """
    if not tokens or not all(math.isfinite(token.reward) for token in tokens):
        return None
    entries: list[TokenChange] = []
    text, before = "", None
    for number, token in enumerate(tokens, start=1):
        text += token.text
        if not text and number < len(tokens):
            continue
        change = None if before is None else token.reward - before
        entries.append(TokenChange(text=text, reward=token.reward, change=change))
        text, before = "", token.reward
    moves = [(entry.change, entry) for entry in entries if entry.change is not None]
    rise = max(moves, key=itemgetter(0), default=None)
    fall = min(moves, key=itemgetter(0), default=None)
    head = most * 3 // 4
    left_out = max(0, len(entries) - most)
    kept = [*entries[:head], *entries[head + left_out :]] if left_out else entries
    return TokenRewards(
        tokens=tuple(kept),
        head=head if left_out else len(entries),
        left_out=left_out,
        largest_rise=rise[1] if rise and rise[0] > 0 else None,
        largest_fall=fall[1] if fall and fall[0] < 0 else None,
    )


def token_rewards_of(model: RewardModel) -> RewardsOf:
    """What ``mistakes.with_texts`` asks for the per-token rewards of a response.

    It answers ``None`` where there are none: by an encoder, whose every token sees the whole text,
    and for a comparison that is rendered with tools or template arguments of its own.
    """

    def rewards(comparison: Comparison, response: int) -> Sequence[TokenReward] | None:
        if comparison.tools is not None or comparison.chat_template_kwargs:
            return None
        try:
            return model.token_rewards(
                plain(comparison.prompt), plain(comparison.responses[response])
            )
        except (DataError, ModelError):
            return None

    return rewards
