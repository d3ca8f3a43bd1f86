"""``/rerank`` of vLLM, Cohere and Jina: the documents of a query, best first.

Their answers differ in what else they hold; this one holds all of it. ``relevance_score`` is the
raw reward, or its sigmoid where ``use_activation`` asks for it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from plaudit.serving.protocols.records import (
    Ask,
    Body,
    Dialogue,
    Many,
    Protocol,
    Scored,
    Usage,
    activated,
    asks_activation,
    usage,
)
from plaudit.serving.rejection import RefusalError


class RerankRequest(Body):
    """``top_n`` 0 or nothing is all. A document is a text, or a mapping of which ``rank_fields``
    (else ``text``) are read.
    """

    model: str | None = None
    query: str
    documents: Many[str | dict[str, Any]]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = True
    rank_fields: Many[str] | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Refuse longer conversations; their end is what is scored."
    )
    activation: bool | None = None
    use_activation: bool | None = None


class Document(BaseModel):
    text: str
    multi_modal: None = None


class Result(BaseModel):
    index: int
    relevance_score: float
    document: Document | None = None


class ApiVersion(BaseModel):
    version: str = "2"


class BilledUnits(BaseModel):
    search_units: float = 1


class Meta(BaseModel):
    api_version: ApiVersion = ApiVersion()
    billed_units: BilledUnits = BilledUnits()


class RerankResponse(BaseModel):
    id: str
    model: str
    results: list[Result]
    usage: Usage
    meta: Meta = Meta()


def read(request: RerankRequest) -> Ask:
    texts = tuple(text_of(document, request.rank_fields) for document in request.documents)
    return Ask(
        model=request.model,
        parts=(Dialogue(prompt=request.query, responses=texts),),
        limit=request.max_tokens_per_doc,
    )


def text_of(document: str | dict[str, Any], rank_fields: list[str] | None) -> str:
    """What of a document is read; several fields one a line, as Cohere does.

    Raises:
        RefusalError: a field is missing or holds no text.
    """
    if isinstance(document, str):
        return document
    values = [document.get(name) for name in rank_fields or ["text"]]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        raise RefusalError(
            "bad_request",
            "A document has no text under the fields that are read (rank_fields, else text).",
            param="documents",
        )
    return "\n".join(texts)


def answer(request: RerankRequest, scored: Scored) -> RerankResponse:
    rewards = scored.flat
    order = sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))
    activation = asks_activation(request.activation, request.use_activation)
    results = [
        Result(
            index=index,
            relevance_score=activated(rewards[index], activation),
            document=Document(text=text_of(request.documents[index], request.rank_fields))
            if request.return_documents
            else None,
        )
        for index in order[: request.top_n or None]
    ]
    return RerankResponse(
        id=f"rerank-{scored.id}", model=scored.model, results=results, usage=usage(scored)
    )


RERANK = Protocol(
    name="rerank",
    summary="Documents of a query, best first",
    spoken_by="vLLM's, Cohere's and Jina's clients",
    paths=("/rerank", "/v1/rerank", "/v2/rerank"),
    request=RerankRequest,
    response=RerankResponse,
    read=read,
    answer=answer,
    example={"model": "rm", "query": "What is ice?", "documents": ["Frozen water.", "Fire."]},
)
