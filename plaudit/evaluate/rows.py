"""Scored comparisons as rows of the score table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plaudit.evaluate.baselines import response_text
from plaudit.types import Comparison, FloatArray, ScoreRow, TokenTree


def score_rows(
    dataset: str,
    comparisons: Sequence[Comparison],
    trees: Sequence[TokenTree],
    rewards: Sequence[FloatArray],
) -> Iterator[ScoreRow]:
    """One row per response, comparisons in order; ``rewards`` holds ``rewards_K`` of each."""
    together = zip(comparisons, trees, rewards, strict=True)
    for number, (comparison, tree, rewards_K) in enumerate(together):
        for response, reward in enumerate(rewards_K):
            yield ScoreRow(
                comparison=comparison.id,
                number=number,
                group=comparison.group,
                dataset=dataset,
                source=comparison.source,
                response=response,
                reward=float(reward),
                grade=comparison.grades[response],
                margin=tree.margin,
                tokens=tree.lengths[response],
                characters=len(response_text(comparison.responses[response])),
                metadata=comparison.metadata,
            )
