"""The most confident mistakes: the pairs to read first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from plaudit.evaluate.table import Pairs, ScoreTable
from plaudit.types import Comparison, Message, Turns

MOST = 30

MISTAKES_FILE = "mistakes.jsonl"
"""Name of the file with the texts of the mistakes, beside ``metrics.json``."""


def mistake_facts(
    table: ScoreTable, paired: Pairs, *, temperature: float | None, most: int = MOST
) -> list[dict[str, Any]]:
    """Wrong pairs by falling confidence, one per prompt group, without their texts.

    ``better`` and ``worse`` are numbers of responses by the labels; ``probability`` is what the
    model gave to the wrong answer, at the temperature where there is one.
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
    mistakes: Sequence[Mapping[str, Any]], comparisons: Iterable[tuple[str, int, Comparison]]
) -> Iterator[dict[str, Any]]:
    """Each mistake with its prompt and both responses, in order; comparisons are walked once.

    ``comparisons`` gives the name of the set, the comparison's number in it, and the comparison.
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
        }


def _plain(turns: Turns) -> str | list[dict[str, Any]]:
    return turns if isinstance(turns, str) else [Message.as_dict(turn) for turn in turns]
