"""Protocols of inference servers: vLLM, SGLang, OpenAI, Cohere and Jina.

- ``/classify``: vLLM's and SGLang's, told apart by their keys; verl sends vLLM's.
- ``/encode``: SGLang's.
- ``/pooling`` and ``/v1/embeddings``: the reward as a vector of one number. verl calls
  ``/v1/embeddings`` where its engine is SGLang.
- ``/score``: vLLM's pairs are a question and an answer, rendered by the model's template. SGLang
  appends each item to the query as it stands.
- ``/rerank``: documents of a query, best first. The answers of vLLM, Cohere and Jina differ in what
  else they hold; this one holds all of it.

A reward is raw, or its sigmoid where ``activation`` or ``use_activation`` is true.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from plaudit.serving.errors import RejectionError
from plaudit.serving.protocols.records import (
    Body,
    Dialogue,
    Many,
    Messages,
    Part,
    Protocol,
    ScoreRequest,
    ScoreResult,
    TextInput,
    TokenIds,
    Tools,
    Usage,
    activated,
    as_text,
    is_single,
    one_of,
    parts_of,
    usage,
)


class Activation(Body):
    """The two names of the same option; neither given is the raw reward."""

    activation: bool | None = None
    use_activation: bool | None = None

    def rewards(self, scored: ScoreResult) -> list[float]:
        """All rewards, activated where the client asks for it."""
        wanted = self.activation is True or self.use_activation is True
        return [activated(reward, wanted) for reward in scored.rewards]


class PoolingOptions(Activation):
    """What vLLM's pooling requests may hold beside their input."""

    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = Field(
        default=None, description="Read the last so many tokens; -1 is the model's maximum length."
    )

    def read(self) -> ScoreRequest:
        if self.truncate_prompt_tokens == 0:
            raise RejectionError(
                "bad_request",
                "truncate_prompt_tokens is 0; nothing would be read.",
                param="truncate_prompt_tokens",
            )
        return ScoreRequest(parts=self.parts(), keep_last=self.truncate_prompt_tokens)


class InputRequest(PoolingOptions):
    """Texts as they stand, or token ids."""

    tag = "input"
    input: TextInput
    add_special_tokens: bool = Field(
        default=True, description="The start token is there once either way."
    )

    def parts(self) -> Sequence[Part]:
        return parts_of(self.input)


class ChatRequest(PoolingOptions):
    """One conversation, rendered by the model's own template."""

    tag = "chat"
    messages: Messages
    tools: Tools = None
    add_generation_prompt: Literal[False] = False
    chat_template: None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def parts(self) -> Sequence[Part]:
        *before, last = self.messages
        return [
            Dialogue(
                prompt=as_text(before),
                responses=(as_text([last]),),
                tools=self.tools or None,
                template_kwargs=self.chat_template_kwargs or {},
            )
        ]


class ListResponse(BaseModel):
    """What the answers of vLLM and OpenAI have in common; ``data`` has one entry per reward."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Any]
    usage: Usage


ListAnswer = TypeVar("ListAnswer", bound=ListResponse)


def _list_response(
    response: type[ListAnswer], kind: str, scored: ScoreResult, data: Iterable[Mapping[str, Any]]
) -> ListAnswer:
    """The answer whose entries hold ``data``, one a reward, and their numbers."""
    return response(
        id=f"{kind}-{scored.id}",
        created=scored.created,
        model=scored.model,
        data=[{"index": index, **datum} for index, datum in enumerate(data)],
        usage=usage(scored),
    )


# ---- /classify and /encode -----------------------------------------------------------------------


class SglangRequest(Body):
    """``text`` as it stands, or ``input_ids``."""

    tag = "sglang"
    text: str | Many[str] | None = None
    input_ids: TokenIds | Many[TokenIds] | None = None
    rid: str | Many[str] | None = None

    def given(self) -> TextInput:
        given = self.text if self.input_ids is None else self.input_ids
        if given is None:
            raise RejectionError(
                "invalid_request", "Neither text nor input_ids is given.", param="text"
            )
        return given

    def parts(self) -> Sequence[Part]:
        return parts_of(self.given())


class ClassifyDatum(BaseModel):
    index: int
    label: str = "LABEL_0"
    probs: list[float]
    num_classes: int = 1


class ClassifyResponse(ListResponse):
    data: list[ClassifyDatum]


class SglangMeta(BaseModel):
    id: str
    prompt_tokens: int
    e2e_latency: float


class SglangEmbedding(BaseModel):
    embedding: list[float]
    meta_info: SglangMeta


ClassifyRequest: TypeAlias = SglangRequest | InputRequest | ChatRequest
SglangResponse: TypeAlias = SglangEmbedding | list[SglangEmbedding]


def answer_sglang(request: SglangRequest, scored: ScoreResult) -> SglangResponse:
    """One object for one input, a list for a list."""
    rids = [request.rid] if isinstance(request.rid, str) else request.rid or []
    embeddings = [
        SglangEmbedding(
            embedding=[reward],
            meta_info=SglangMeta(
                id=rids[number] if number < len(rids) else f"{scored.id}-{number}",
                prompt_tokens=count,
                e2e_latency=scored.seconds,
            ),
        )
        for number, (reward, count) in enumerate(zip(scored.rewards, scored.tokens, strict=True))
    ]
    return embeddings[0] if is_single(request.given()) else embeddings


def answer_classify(
    request: ClassifyRequest, scored: ScoreResult
) -> ClassifyResponse | SglangResponse:
    if isinstance(request, SglangRequest):
        return answer_sglang(request, scored)
    data = [{"probs": [reward]} for reward in request.rewards(scored)]
    return _list_response(ClassifyResponse, "classify", scored, data)


CLASSIFY = Protocol(
    name="classify",
    summary="Rewards of texts, ids or one chat, as vLLM or SGLang answer",
    spoken_by="verl, vLLM's and SGLang's clients",
    paths=("/classify",),
    methods=("POST", "PUT"),
    request=one_of(InputRequest, text=SglangRequest, input_ids=SglangRequest, messages=ChatRequest),
    response=ClassifyResponse | SglangResponse,
    answer=answer_classify,
    example={"model": "rm", "input": "What is ice? Frozen water.", "activation": False},
)

ENCODE = Protocol(
    name="encode",
    summary="Rewards of texts or ids as SGLang answers",
    spoken_by="SGLang's clients",
    paths=("/encode",),
    methods=("POST", "PUT"),
    request=SglangRequest,
    response=SglangResponse,
    answer=answer_sglang,
    example={"text": ["What is ice? Frozen water.", "What is ice? Fire."]},
)


# ---- /pooling and /v1/embeddings -----------------------------------------------------------------

Encoding: TypeAlias = Literal["float", "base64"]


class VectorInput(InputRequest):
    encoding_format: Encoding = "float"


class VectorChat(ChatRequest):
    encoding_format: Encoding = "float"


class PoolingDatum(BaseModel):
    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float] | str


class PoolingResponse(ListResponse):
    data: list[PoolingDatum]


class EmbeddingDatum(BaseModel):
    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class EmbeddingsResponse(ListResponse):
    data: list[EmbeddingDatum]


VectorRequest = one_of(VectorInput, messages=VectorChat)


def vectors(request: VectorInput | VectorChat, scored: ScoreResult) -> list[list[float] | str]:
    """One vector per conversation, its one number the reward."""
    rewards = request.rewards(scored)
    if request.encoding_format == "base64":
        # fp32, as OpenAI's clients ask for vectors.
        return [base64.b64encode(struct.pack("<f", reward)).decode() for reward in rewards]
    return [[reward] for reward in rewards]


def answer_pooling(request: VectorInput | VectorChat, scored: ScoreResult) -> PoolingResponse:
    data = [{"data": vector} for vector in vectors(request, scored)]
    return _list_response(PoolingResponse, "pool", scored, data)


def answer_embeddings(request: VectorInput | VectorChat, scored: ScoreResult) -> EmbeddingsResponse:
    data = [{"embedding": vector} for vector in vectors(request, scored)]
    return _list_response(EmbeddingsResponse, "embd", scored, data)


POOLING = Protocol(
    name="pooling",
    summary="Rewards as pooled vectors of one number",
    spoken_by="vLLM's clients",
    paths=("/pooling",),
    request=VectorRequest,
    response=PoolingResponse,
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
    request=VectorRequest,
    response=EmbeddingsResponse,
    answer=answer_embeddings,
    example={"model": "rm", "input": ["What is ice? Frozen water.", "What is ice? Fire."]},
)


# ---- /score --------------------------------------------------------------------------------------


class PairsRequest(Activation):
    """One query with any number of documents, or as many of one as of the other.

    They may also be called text_1 and text_2, data_1 and data_2, or queries and items.
    """

    model_config = ConfigDict(populate_by_name=True)

    tag = "pairs"
    queries: str | Many[str] = Field(validation_alias=AliasChoices("queries", "text_1", "data_1"))
    documents: str | Many[str] = Field(
        validation_alias=AliasChoices("documents", "text_2", "data_2", "items")
    )

    def parts(self) -> Sequence[Part]:
        queries, documents = _listed(self.queries), _listed(self.documents)
        if len(queries) == 1:
            return [Dialogue(prompt=queries[0], responses=tuple(documents))]
        if len(queries) != len(documents):
            raise RejectionError(
                "bad_request",
                f"{len(queries)} queries and {len(documents)} documents do not pair up; give one "
                "query, or as many of both.",
                param="documents",
            )
        pairs = zip(queries, documents, strict=True)
        return [Dialogue(prompt=query, responses=(document,)) for query, document in pairs]


class ItemsRequest(Body):
    """SGLang's: each item stands behind the query."""

    tag = "items"
    query: str
    items: str | Many[str]
    item_first: bool = False

    def parts(self) -> Sequence[Part]:
        items = _listed(self.items)
        return [item + self.query if self.item_first else self.query + item for item in items]


class ScoreDatum(BaseModel):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(ListResponse):
    data: list[ScoreDatum]


class ScoringResponse(BaseModel):
    object: Literal["scoring"] = "scoring"
    model: str
    scores: list[list[float]]
    usage: Usage


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def answer_score(
    request: PairsRequest | ItemsRequest, scored: ScoreResult
) -> ScoreResponse | ScoringResponse:
    if isinstance(request, ItemsRequest):
        return ScoringResponse(
            model=scored.model, scores=[[reward] for reward in scored.rewards], usage=usage(scored)
        )
    data = [{"score": reward} for reward in request.rewards(scored)]
    return _list_response(ScoreResponse, "score", scored, data)


SCORE = Protocol(
    name="score",
    summary="Rewards of query and document pairs",
    spoken_by="vLLM's and SGLang's clients",
    paths=("/score", "/v1/score"),
    request=one_of(PairsRequest, query=ItemsRequest),
    response=ScoreResponse | ScoringResponse,
    answer=answer_score,
    example={"model": "rm", "queries": "What is ice?", "documents": ["Frozen water.", "Fire."]},
)


# ---- /rerank -------------------------------------------------------------------------------------


class RerankRequest(Activation):
    """``top_n`` 0 or nothing is all. A document is a text, or a mapping of which ``rank_fields``
    (else ``text``) are read.
    """

    query: str
    documents: Many[str | dict[str, Any]]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = True
    rank_fields: Many[str] | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Reject longer conversations; their end is what is scored."
    )

    def parts(self) -> Sequence[Part]:
        texts = tuple(text_of(document, self.rank_fields) for document in self.documents)
        return [Dialogue(prompt=self.query, responses=texts)]

    def read(self) -> ScoreRequest:
        return ScoreRequest(parts=self.parts(), limit=self.max_tokens_per_doc)


class Document(BaseModel):
    text: str
    multi_modal: None = None


class RerankResult(BaseModel):
    index: int
    relevance_score: float
    document: Document | None = None


class ApiVersion(BaseModel):
    version: str = "2"


class BilledUnits(BaseModel):
    search_units: float = 1


class RerankMeta(BaseModel):
    api_version: ApiVersion = ApiVersion()
    billed_units: BilledUnits = BilledUnits()


class RerankResponse(BaseModel):
    id: str
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: RerankMeta = RerankMeta()


def text_of(document: str | dict[str, Any], rank_fields: list[str] | None) -> str:
    """What of a document is read; several fields one a line, as Cohere does.

    Raises:
        RejectionError: a field is missing or holds no text.
    """
    if isinstance(document, str):
        return document
    values = [document.get(name) for name in rank_fields or ["text"]]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        raise RejectionError(
            "bad_request",
            "A document has no text under the fields that are read (rank_fields, else text).",
            param="documents",
        )
    return "\n".join(texts)


def answer_rerank(request: RerankRequest, scored: ScoreResult) -> RerankResponse:
    raw, rewards = scored.rewards, request.rewards(scored)
    # By raw rewards: the sigmoid of large ones is 1 for all.
    order = sorted(range(len(raw)), key=lambda i: (-raw[i], i))
    results = [
        RerankResult(
            index=index,
            relevance_score=rewards[index],
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
    answer=answer_rerank,
    example={"model": "rm", "query": "What is ice?", "documents": ["Frozen water.", "Fire."]},
)

INFERENCE_SERVERS = (CLASSIFY, ENCODE, POOLING, EMBEDDINGS, SCORE, RERANK)
