"""``/score`` of vLLM and of SGLang: pairs of a query and a document.

vLLM's pairs are a question and an answer, rendered by the model's template. SGLang puts an item
behind the query as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Discriminator, Field, Tag

from plaudit.serving.protocols.records import (
    Ask,
    Body,
    Dialogue,
    Many,
    Protocol,
    Scored,
    Usage,
    Written,
    activated,
    asks_activation,
    keys_of,
    usage,
)
from plaudit.serving.rejection import RefusalError

QUERIES = ("queries", "text_1", "data_1")
DOCUMENTS = ("documents", "text_2", "data_2", "items")


class PairsRequest(Body):
    """One query with any number of documents, or as many of one as of the other.

    They may also be called text_1 and text_2, data_1 and data_2, or queries and items.
    """

    model_config = ConfigDict(populate_by_name=True)

    model: str | None = None
    queries: str | Many[str] = Field(validation_alias=AliasChoices(*QUERIES))
    documents: str | Many[str] = Field(validation_alias=AliasChoices(*DOCUMENTS))
    activation: bool | None = None
    use_activation: bool | None = None


class ItemsRequest(Body):
    """SGLang's: each item stands behind the query."""

    model: str | None = None
    query: str
    items: str | Many[str]
    item_first: bool = False


class ScoreDatum(BaseModel):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreDatum]
    usage: Usage


class ScoringResponse(BaseModel):
    object: Literal["scoring"] = "scoring"
    model: str
    scores: list[list[float]]
    usage: Usage


def _tell(body: Any) -> str | None:
    keys = keys_of(body)
    return None if keys is None else "items" if "query" in keys else "pairs"


Request = Annotated[
    Annotated[PairsRequest, Tag("pairs")] | Annotated[ItemsRequest, Tag("items")],
    Discriminator(_tell),
]


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def read(request: PairsRequest | ItemsRequest) -> Ask:
    if isinstance(request, ItemsRequest):
        parts = [
            Written(item + request.query if request.item_first else request.query + item)
            for item in _listed(request.items)
        ]
        return Ask(model=request.model, parts=tuple(parts))
    return Ask(model=request.model, parts=tuple(_dialogues(request)))


def _dialogues(request: PairsRequest) -> Sequence[Dialogue]:
    queries, documents = _listed(request.queries), _listed(request.documents)
    if len(queries) == 1:
        return [Dialogue(prompt=queries[0], responses=tuple(documents))]
    if len(queries) != len(documents):
        raise RefusalError(
            "bad_request",
            f"{len(queries)} queries and {len(documents)} documents do not pair up; give one "
            "query, or as many of both.",
            param="documents",
        )
    return [
        Dialogue(prompt=query, responses=(document,))
        for query, document in zip(queries, documents, strict=True)
    ]


def answer(request: PairsRequest | ItemsRequest, scored: Scored) -> ScoreResponse | ScoringResponse:
    if isinstance(request, ItemsRequest):
        return ScoringResponse(
            model=scored.model, scores=[[reward] for reward in scored.flat], usage=usage(scored)
        )
    activation = asks_activation(request.activation, request.use_activation)
    return ScoreResponse(
        id=f"score-{scored.id}",
        created=scored.created,
        model=scored.model,
        data=[
            ScoreDatum(index=index, score=activated(reward, activation))
            for index, reward in enumerate(scored.flat)
        ],
        usage=usage(scored),
    )


SCORE = Protocol(
    name="score",
    summary="Rewards of query and document pairs",
    spoken_by="vLLM's and SGLang's clients",
    paths=("/score", "/v1/score"),
    request=Request,
    response=ScoreResponse | ScoringResponse,
    read=read,
    answer=answer,
    example={"model": "rm", "queries": "What is ice?", "documents": ["Frozen water.", "Fire."]},
)
