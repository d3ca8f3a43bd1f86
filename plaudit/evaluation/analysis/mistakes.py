"""The most confident mistakes: the pairs to read first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from plaudit.evaluation.table import Pairs, ScoreTable
from plaudit.types import Comparison, Message, Turns

MOST = 30

MOST_TOKENS = 400
"""Tokens of a response whose rewards are kept: three quarters from its start, the rest its end."""

Along: TypeAlias = Callable[[Comparison, int], Sequence[tuple[str, float]] | None]
"""(comparison, number of a response) -> its tokens, each with the reward of the conversation cut
behind it; ``None`` where the model has no such rewards."""


def mistake_facts(
    table: ScoreTable, paired: Pairs, *, temperature: float | None, most: int = MOST
) -> list[dict[str, Any]]:
    """Wrong pairs by falling confidence, one per prompt group, without their texts.

    ``better`` and ``worse`` are numbers of responses by the labels; ``probability`` is what the
    model gave to the wrong answer, at the stored temperature where there is one.
    """
    from scipy.special import expit

    wrong_P = np.flatnonzero(paired.delta_P < 0)
    order_P = wrong_P[np.argsort(paired.delta_P[wrong_P], kind="stable")]
    entries: list[dict[str, Any]] = []
    seen: set[int] = set()
    for pair in order_P:
        if len(entries) == most:
            break
        group = int(paired.group_P[pair])
        if group in seen:
            continue
        seen.add(group)
        winner, loser = int(paired.winner_P[pair]), int(paired.loser_P[pair])
        delta = float(paired.delta_P[pair])
        entries.append(
            {
                "id": table.comparison_N[winner],
                "dataset": table.dataset_N[winner],
                "number": int(table.number_N[winner]),
                "source": table.source_N[winner],
                "better": int(table.response_N[winner]),
                "worse": int(table.response_N[loser]),
                "reward_better": float(table.reward_N[winner]),
                "reward_worse": float(table.reward_N[loser]),
                "difference": delta,
                "probability": float(expit(-delta / (temperature or 1.0))),
            }
        )
    return entries


def with_texts(
    mistakes: Sequence[Mapping[str, Any]],
    comparisons: Iterable[tuple[str, int, Comparison]],
    *,
    along: Along = lambda comparison, response: None,
) -> Iterator[dict[str, Any]]:
    """Each mistake with its prompt and both responses, in order; comparisons are walked once.

    ``comparisons`` gives the name of the set, the comparison's number in it, and the comparison.
    ``along_better`` and ``along_worse`` are what :func:`along_facts` says of both responses.
    """
    wanted = {(mistake["dataset"], mistake["number"]) for mistake in mistakes}
    found = {
        (dataset, number): comparison
        for dataset, number, comparison in comparisons
        if (dataset, number) in wanted
    }
    for mistake in mistakes:
        comparison = found[mistake["dataset"], mistake["number"]]
        yield {
            **mistake,
            "where": comparison.where,
            "prompt": _plain(comparison.prompt),
            "text_better": _plain(comparison.responses[mistake["better"]]),
            "text_worse": _plain(comparison.responses[mistake["worse"]]),
            "along_better": along_facts(along(comparison, mistake["better"])),
            "along_worse": along_facts(along(comparison, mistake["worse"])),
        }


def along_facts(
    tokens: Sequence[tuple[str, float]] | None, *, most: int = MOST_TOKENS
) -> dict[str, Any] | None:
    """The reward along a response, bounded: ``tokens`` of ``{text, reward, change}``.

    ``change`` is the reward behind the token less the one behind the token before it, None for the
    first. A token that adds no character of its own (a character of several tokens) is one with the
    token that completes it. Of a long response the start and the end are kept: ``left_out`` tokens
    are missing behind the first ``head``. ``largest_rise`` and ``largest_fall`` are tokens of the
    whole response, None where the reward never rose or fell. There is nothing to record where a
    reward on the way is not finite.
    """
    if not tokens or not all(math.isfinite(reward) for _, reward in tokens):
        return None
    entries: list[dict[str, Any]] = []
    text, before = "", None
    for number, (piece, reward) in enumerate(tokens, start=1):
        text += piece
        if not text and number < len(tokens):
            continue
        change = None if before is None else reward - before
        entries.append({"text": text, "reward": reward, "change": change})
        text, before = "", reward
    moves = [entry for entry in entries if entry["change"] is not None]
    rise = max(moves, key=lambda entry: entry["change"], default=None)
    fall = min(moves, key=lambda entry: entry["change"], default=None)
    head = most * 3 // 4
    left_out = max(0, len(entries) - most)
    return {
        "tokens": [*entries[:head], *entries[head + left_out :]] if left_out else entries,
        "head": head if left_out else len(entries),
        "left_out": left_out,
        "largest_rise": rise if rise and rise["change"] > 0 else None,
        "largest_fall": fall if fall and fall["change"] < 0 else None,
    }


def _plain(turns: Turns) -> str | list[dict[str, Any]]:
    return turns if isinstance(turns, str) else [Message.as_dict(turn) for turn in turns]
