"""OpenRLHF's remote reward model: ``/get_reward``, as its clients since 0.4 post it.

Older clients concatenate what ``extra_logs`` holds and read ``rewards`` alone; since 0.8 they read
``scores`` too. A batch may be cut over several servers so that a part is empty.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from plaudit.serving.protocols.records import (
    Body,
    Many,
    Protocol,
    ScoreResult,
)


class RewardRequest(Body):
    """Whole conversations as text, with special tokens."""

    query: Many[str] | str = Field(
        description="Prompt and response as one text, or a list of them."
    )
    prompts: Many[Any] | str | None = Field(default=None, description="Ignored.")
    labels: Many[Any] | str | None = Field(default=None, description="Ignored.")

    def parts(self) -> list[str]:
        return [self.query] if isinstance(self.query, str) else self.query


class RewardResponse(BaseModel):
    """One entry per query; ``extra_logs.len`` has the numbers of tokens."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[int]]


def answer(request: RewardRequest, scored: ScoreResult) -> RewardResponse:
    rewards = scored.rewards
    return RewardResponse(rewards=rewards, scores=rewards, extra_logs={"len": scored.tokens})


GET_REWARD = Protocol(
    name="openrlhf",
    summary="Rewards of whole texts",
    spoken_by="OpenRLHF (--remote_rm_url)",
    paths=("/get_reward",),
    request=RewardRequest,
    response=RewardResponse,
    answer=answer,
    example={"query": ["What is ice? Frozen water."], "prompts": ["What is ice?"], "labels": [""]},
)
