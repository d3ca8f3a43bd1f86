"""LLaMA-Factory's API of ``stage: rm``: texts that its template rendered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from plaudit.serving.errors import RejectionError
from plaudit.serving.protocols.records import (
    Body,
    Many,
    Protocol,
    ScoreRequest,
    ScoreResult,
)


class EvaluationRequest(Body):
    """Whole conversations as text, not as messages."""

    messages: Many[str] = Field(description="Prompt and response as one text each.")
    max_length: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Reject texts with more tokens. Texts are never truncated.",
    )

    def parts(self) -> list[str]:
        if not self.messages:
            raise RejectionError(
                "bad_request", "messages is empty; expected at least one text.", param="messages"
            )
        return self.messages

    def read(self) -> ScoreRequest:
        return ScoreRequest(parts=self.parts(), limit=self.max_length)


class EvaluationResponse(BaseModel):
    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


def answer(request: EvaluationRequest, scored: ScoreResult) -> EvaluationResponse:
    return EvaluationResponse(id=f"scoreval-{scored.id}", model=scored.model, scores=scored.rewards)


SCORE_EVALUATION = Protocol(
    name="llama_factory",
    summary="Rewards of whole texts",
    spoken_by="LLaMA-Factory (reward_model_type: api)",
    paths=("/v1/score/evaluation",),
    request=EvaluationRequest,
    response=EvaluationResponse,
    answer=answer,
    example={"model": "rm", "messages": ["What is ice? Frozen water.", "What is ice? Fire."]},
)
