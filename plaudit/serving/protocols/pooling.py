"""``/pooling`` of vLLM and ``/v1/embeddings`` of OpenAI: a reward as a vector of one number.

verl asks ``/v1/embeddings`` where its engine is SGLang.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Tag

from plaudit.serving.protocols.messages import (
    ChatRequest,
    InputRequest,
    as_base64,
    ask_of,
    chat_or_input,
)
from plaudit.serving.protocols.records import (
    Protocol,
    Scored,
    Usage,
    activated,
    asks_activation,
    usage,
)

Encoding = Literal["float", "base64"]


class VectorInput(InputRequest):
    encoding_format: Encoding = "float"


class VectorChat(ChatRequest):
    encoding_format: Encoding = "float"


class PoolingDatum(BaseModel):
    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float] | str


class PoolingResponse(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[PoolingDatum]
    usage: Usage


class EmbeddingDatum(BaseModel):
    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class EmbeddingsResponse(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[EmbeddingDatum]
    usage: Usage


Request = Annotated[
    Annotated[VectorInput, Tag("input")] | Annotated[VectorChat, Tag("chat")],
    Discriminator(chat_or_input),
]


def vectors(request: VectorInput | VectorChat, scored: Scored) -> list[list[float] | str]:
    """One vector per conversation, its one number the reward."""
    activation = asks_activation(request.activation, request.use_activation)
    rewards = [activated(reward, activation) for reward in scored.flat]
    if request.encoding_format == "base64":
        return [as_base64(reward) for reward in rewards]
    return [[reward] for reward in rewards]


def answer_pooling(request: VectorInput | VectorChat, scored: Scored) -> PoolingResponse:
    return PoolingResponse(
        id=f"pool-{scored.id}",
        created=scored.created,
        model=scored.model,
        data=[PoolingDatum(index=i, data=v) for i, v in enumerate(vectors(request, scored))],
        usage=usage(scored),
    )


def answer_embeddings(request: VectorInput | VectorChat, scored: Scored) -> EmbeddingsResponse:
    return EmbeddingsResponse(
        id=f"embd-{scored.id}",
        created=scored.created,
        model=scored.model,
        data=[EmbeddingDatum(index=i, embedding=v) for i, v in enumerate(vectors(request, scored))],
        usage=usage(scored),
    )


POOLING = Protocol(
    name="pooling",
    summary="Rewards as pooled vectors of one number",
    spoken_by="vLLM's clients",
    paths=("/pooling",),
    request=Request,
    response=PoolingResponse,
    read=ask_of,
    answer=answer_pooling,
    example={
        "messages": [
            {"role": "user", "content": "What is ice?"},
            {"role": "assistant", "content": "Frozen water."},
        ]
    },
)

EMBEDDINGS = Protocol(
    name="embeddings",
    summary="Rewards as embeddings of one number",
    spoken_by="verl with SGLang, OpenAI's clients",
    paths=("/v1/embeddings",),
    request=Request,
    response=EmbeddingsResponse,
    read=ask_of,
    answer=answer_embeddings,
    example={"model": "rm", "input": ["What is ice? Frozen water.", "What is ice? Fire."]},
)
