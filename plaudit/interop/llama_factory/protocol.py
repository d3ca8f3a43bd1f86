"""LLaMA-Factory's API of ``stage: rm``: texts that its template rendered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from plaudit.serving.protocols.records import (
    Body,
    Many,
    PreformattedText,
    Protocol,
    ScoreRequest,
    ScoreResult,
    check_not_empty,
)


class EvaluationRequest(Body):
    """``messages`` are whole conversations as text, not turns."""

    model: str | None = None
    messages: Many[str]
    max_length: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Reject longer texts; their end is what is scored."
    )


class EvaluationResponse(BaseModel):
    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


def read(request: EvaluationRequest) -> ScoreRequest:
    check_not_empty(len(request.messages), "messages")
    return ScoreRequest(
        model=request.model,
        parts=tuple(map(PreformattedText, request.messages)),
        limit=request.max_length,
    )


def answer(request: EvaluationRequest, scored: ScoreResult) -> EvaluationResponse:
    return EvaluationResponse(id=f"scoreval-{scored.id}", model=scored.model, scores=scored.flat)


SCORE_EVALUATION = Protocol(
    name="llama_factory",
    summary="Rewards of whole texts",
    spoken_by="LLaMA-Factory (reward_model_type: api)",
    paths=("/v1/score/evaluation",),
    request=EvaluationRequest,
    response=EvaluationResponse,
    read=read,
    answer=answer,
    example={"model": "rm", "messages": ["What is ice? Frozen water.", "What is ice? Fire."]},
)
