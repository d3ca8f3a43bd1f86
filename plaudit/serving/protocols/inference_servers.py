"""Protocols of inference servers: vLLM, SGLang, OpenAI, Cohere and Jina.

- ``/classify``: vLLM's and SGLang's, told apart by their keys; verl sends vLLM's.
- ``/encode``: SGLang's.
- ``/pooling`` and ``/v1/embeddings``: the reward as a vector of one number. verl calls
  ``/v1/embeddings`` where its engine is SGLang.
- ``/score``: vLLM's pairs are a question and an answer, rendered by the model's template. SGLang
  appends each item to the query as it stands.
- ``/rerank``: documents of a query, best first. The answers of vLLM, Cohere and Jina differ in what
  else they hold; this one holds all of it.

A reward is raw, or its sigmoid where ``activation`` or ``use_activation`` is true. A model of
several outputs answers with its reward alone: verl takes the last of ``probs`` as the reward.
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
    """The two names of the same option."""

    activation: bool | None = Field(
        default=None, description="true returns the sigmoid of the reward; default: the raw reward."
    )
    use_activation: bool | None = Field(default=None, description="Other name of activation.")

    def rewards(self, scored: ScoreResult) -> list[float]:
        """All rewards, activated where the client asks for it."""
        wanted = self.activation is True or self.use_activation is True
        return [activated(reward, wanted) for reward in scored.rewards]


class PoolingOptions(Activation):
    """What vLLM's pooling requests may hold beside their input."""

    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = Field(
        default=None,
        description="Keep only this many tokens, the last ones; -1 is the model's maximum length.",
    )

    def read(self) -> ScoreRequest:
        if self.truncate_prompt_tokens == 0:
            raise RejectionError(
                "bad_request",
                "truncate_prompt_tokens is 0, which leaves no tokens; expected -1 or at least 1.",
                param="truncate_prompt_tokens",
            )
        return ScoreRequest(parts=self.parts(), keep_last=self.truncate_prompt_tokens)


class InputRequest(PoolingOptions):
    """Texts that the client rendered, or token ids."""

    tag = "input"
    input: TextInput = Field(description="One text or its token ids, or a list of them.")
    add_special_tokens: bool = Field(
        default=True,
        description="Ignored: the start token is added if the model uses one, never twice.",
    )

    def parts(self) -> Sequence[Part]:
        return parts_of(self.input)


class ChatRequest(PoolingOptions):
    """A conversation, rendered with the model's chat template."""

    tag = "chat"
    messages: Messages = Field(description="The conversation; the last message is scored.")
    tools: Tools = None
    add_generation_prompt: Literal[False] = Field(default=False, description="Must be false.")
    chat_template: None = Field(default=None, description="Must be null.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Keyword arguments of the chat template."
    )

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
    """Texts that the client rendered, or token ids."""

    tag = "sglang"
    text: str | Many[str] | None = Field(default=None, description="One text or a list of texts.")
    input_ids: TokenIds | Many[TokenIds] | None = Field(
        default=None, description="Token ids of one text, or a list of them."
    )
    rid: str | Many[str] | None = Field(
        default=None, description="Request ids, which the response repeats."
    )

    def given(self) -> TextInput:
        given = self.text if self.input_ids is None else self.input_ids
        if given is None:
            raise RejectionError(
                "invalid_request",
                "Neither text nor input_ids is set; expected one of them.",
                param="text",
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
    summary="Rewards of texts, token ids or a chat, in the response format of vLLM or SGLang",
    spoken_by="verl and clients of vLLM and SGLang",
    paths=("/classify",),
    methods=("POST", "PUT"),
    request=one_of(InputRequest, text=SglangRequest, input_ids=SglangRequest, messages=ChatRequest),
    response=ClassifyResponse | SglangResponse,
    answer=answer_classify,
    example={"model": "rm", "input": "What is ice? Frozen water.", "activation": False},
)

ENCODE = Protocol(
    name="encode",
    summary="Rewards of texts or token ids, in the response format of SGLang",
    spoken_by="clients of SGLang",
    paths=("/encode",),
    methods=("POST", "PUT"),
    request=SglangRequest,
    response=SglangResponse,
    answer=answer_sglang,
    example={"text": ["What is ice? Frozen water.", "What is ice? Fire."]},
)


# ---- /pooling and /v1/embeddings -----------------------------------------------------------------

Encoding: TypeAlias = Annotated[
    Literal["float", "base64"],
    Field(description="Rewards as JSON numbers, or as base64 of little-endian float32."),
]


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
    summary="Rewards as vectors of length 1",
    spoken_by="clients of vLLM",
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
    summary="Rewards as embeddings of length 1",
    spoken_by="verl with SGLang, and clients of OpenAI",
    paths=("/v1/embeddings",),
    request=VectorRequest,
    response=EmbeddingsResponse,
    answer=answer_embeddings,
    example={"model": "rm", "input": ["What is ice? Frozen water.", "What is ice? Fire."]},
)


# ---- /score --------------------------------------------------------------------------------------


class PairsRequest(Activation):
    """One query with any number of documents, or one query per document.

    Other names of the keys: text_1 and text_2, data_1 and data_2, queries and items.
    """

    model_config = ConfigDict(populate_by_name=True)

    tag = "pairs"
    queries: str | Many[str] = Field(
        validation_alias=AliasChoices("queries", "text_1", "data_1"),
        description="One query or a list of queries.",
    )
    documents: str | Many[str] = Field(
        validation_alias=AliasChoices("documents", "text_2", "data_2", "items"),
        description="One document or a list of documents.",
    )

    def parts(self) -> Sequence[Part]:
        queries, documents = _listed(self.queries), _listed(self.documents)
        if len(queries) == 1:
            return [Dialogue(prompt=queries[0], responses=tuple(documents))]
        if len(queries) != len(documents):
            raise RejectionError(
                "bad_request",
                f"{len(queries)} queries and {len(documents)} documents do not match; send one"
                " query, or one query per document.",
                param="documents",
            )
        pairs = zip(queries, documents, strict=True)
        return [Dialogue(prompt=query, responses=(document,)) for query, document in pairs]


class ItemsRequest(Body):
    """The request of SGLang: each item is appended to the query."""

    tag = "items"
    query: str = Field(description="Start of every text.")
    items: str | Many[str] = Field(description="One item or a list of items.")
    item_first: bool = Field(default=False, description="Put the item before the query.")

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
    summary="Rewards of pairs of query and document",
    spoken_by="clients of vLLM and SGLang",
    paths=("/score", "/v1/score"),
    request=one_of(PairsRequest, query=ItemsRequest),
    response=ScoreResponse | ScoringResponse,
    answer=answer_score,
    example={"model": "rm", "queries": "What is ice?", "documents": ["Frozen water.", "Fire."]},
)


# ---- /rerank -------------------------------------------------------------------------------------


class RerankRequest(Activation):
    """A query and the documents to rank."""

    query: str = Field(description="The query, scored as the prompt.")
    documents: Many[str | dict[str, Any]] = Field(
        description="Texts, or objects with the fields of rank_fields."
    )
    top_n: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Number of results to return; null or 0 returns all."
    )
    return_documents: bool = Field(default=True, description="Return the texts of the documents.")
    rank_fields: Many[str] | None = Field(
        default=None, description="Fields of a document to score; default: text."
    )
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Reject longer conversations, in tokens. Conversations are never truncated.",
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
            "A document has no text in the fields that rank_fields names (default: text).",
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
    summary="Documents of a query, ranked best first",
    spoken_by="clients of vLLM, Cohere and Jina",
    paths=("/rerank", "/v1/rerank", "/v2/rerank"),
    request=RerankRequest,
    response=RerankResponse,
    answer=answer_rerank,
    example={"model": "rm", "query": "What is ice?", "documents": ["Frozen water.", "Fire."]},
)

INFERENCE_SERVERS = (CLASSIFY, ENCODE, POOLING, EMBEDDINGS, SCORE, RERANK)
