"""The most confident mistakes: the pairs to read first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from plaudit.evaluation.schema import Mistake, MistakeText, TokenChange, TokenRewards, parts
from plaudit.evaluation.table import Pairs, ScoreTable
from plaudit.types import Comparison, Message, TokenReward, Turns

MOST = 30

MOST_TOKENS = 400
"""Tokens of a response whose rewards are kept: three quarters from its start, the rest its end."""

RewardsOf: TypeAlias = Callable[[Comparison, int], Sequence[TokenReward] | None]
"""(comparison, number of a response) -> its per-token rewards, None where the model has none."""


def find_mistakes(
    table: ScoreTable, paired: Pairs, *, temperature: float | None, most: int = MOST
) -> tuple[Mistake, ...]:
    """Wrong pairs by falling confidence, one per prompt group, without their texts.

    ``better`` and ``worse`` are numbers of responses by the labels; ``probability`` is what the
    model gave to the wrong answer, at the stored temperature where there is one.
    """
    from scipy.special import expit

    wrong_P = np.flatnonzero(paired.delta_P < 0)
    order_P = wrong_P[np.argsort(paired.delta_P[wrong_P], kind="stable")]
    entries: list[Mistake] = []
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
            Mistake(
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
        )
    return tuple(entries)


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
            prompt=_plain(comparison.prompt),
            text_better=_plain(comparison.responses[mistake.better]),
            text_worse=_plain(comparison.responses[mistake.worse]),
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
    rise = max(moves, key=lambda move: move[0], default=None)
    fall = min(moves, key=lambda move: move[0], default=None)
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


def _plain(turns: Turns) -> str | list[dict[str, Any]]:
    return turns if isinstance(turns, str) else [Message.as_dict(turn) for turn in turns]
