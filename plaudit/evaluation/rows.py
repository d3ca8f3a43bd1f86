"""Scored comparisons as rows of the score table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from plaudit.evaluation.analysis.baselines import response_text
from plaudit.evaluation.analysis.features import measure_responses
from plaudit.types import Comparison, FloatArray, ScoreRow, TokenTree


def score_rows(
    dataset: str,
    comparisons: Iterable[Comparison],
    trees: Iterable[TokenTree],
    rewards: Iterable[FloatArray],
) -> Iterator[ScoreRow]:
    """One row per response, comparisons in order; ``rewards`` holds ``rewards_K`` of each."""
    together = zip(comparisons, trees, rewards, strict=True)
    for number, (comparison, tree, rewards_K) in enumerate(together):
        texts = [response_text(turns) for turns in comparison.responses]
        features = measure_responses(
            texts,
            response_text(comparison.prompt),
            turns=1 if isinstance(comparison.prompt, str) else len(comparison.prompt),
            truncated=tree.truncated,
        )
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
                characters=len(texts[response]),
                metadata=comparison.metadata,
                features=features[response],
            )
