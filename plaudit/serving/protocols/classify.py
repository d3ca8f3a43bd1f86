"""``/classify`` as vLLM and as SGLang have it, told apart by their keys. verl speaks vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Tag

from plaudit.serving.protocols.messages import (
    ChatRequest,
    InputRequest,
    TokenIds,
    ask_of,
    chat_or_input,
    parts_of,
)
from plaudit.serving.protocols.records import (
    Ask,
    Body,
    Many,
    Part,
    Protocol,
    Scored,
    Usage,
    activated,
    asks_activation,
    keys_of,
    usage,
)
from plaudit.serving.rejection import RefusalError


class SglangRequest(Body):
    """``text`` as it stands, or ``input_ids``."""

    text: str | Many[str] | None = None
    input_ids: TokenIds | Many[TokenIds] | None = None
    model: str | None = None
    rid: str | Many[str] | None = None


class ClassifyDatum(BaseModel):
    index: int
    label: str = "LABEL_0"
    probs: list[float]
    num_classes: int = 1


class ClassifyResponse(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ClassifyDatum]
    usage: Usage


class Meta(BaseModel):
    id: str
    prompt_tokens: int
    e2e_latency: float


class Embedded(BaseModel):
    embedding: list[float]
    meta_info: Meta


def _tell(body: Any) -> str | None:
    keys = keys_of(body)
    return "sglang" if keys and keys & {"text", "input_ids"} else chat_or_input(body)


Request = Annotated[
    Annotated[SglangRequest, Tag("sglang")]
    | Annotated[InputRequest, Tag("input")]
    | Annotated[ChatRequest, Tag("chat")],
    Discriminator(_tell),
]
Response = ClassifyResponse | Embedded | list[Embedded]


def read_sglang(request: SglangRequest) -> Ask:
    return Ask(model=request.model, parts=_sglang_parts(request))


def _sglang_parts(request: SglangRequest) -> tuple[Part, ...]:
    if request.input_ids is not None:
        return parts_of(request.input_ids)
    if request.text is None:
        raise RefusalError("invalid_request", "Neither text nor input_ids is given.", param="text")
    return parts_of(request.text)


def answer_sglang(request: SglangRequest, scored: Scored) -> Embedded | list[Embedded]:
    """One object for one input, a list for a list."""
    ids = request.input_ids
    single = (
        isinstance(request.text, str) if ids is None else len(ids) > 0 and isinstance(ids[0], int)
    )
    rids = [request.rid] if isinstance(request.rid, str) else request.rid or []
    found = [
        Embedded(
            embedding=[reward],
            meta_info=Meta(
                id=rids[number] if number < len(rids) else f"{scored.id}-{number}",
                prompt_tokens=count,
                e2e_latency=scored.seconds,
            ),
        )
        for number, (reward, count) in enumerate(zip(scored.flat, scored.flat_tokens, strict=True))
    ]
    return found[0] if single else found


def read(request: SglangRequest | InputRequest | ChatRequest) -> Ask:
    return read_sglang(request) if isinstance(request, SglangRequest) else ask_of(request)


def answer(request: SglangRequest | InputRequest | ChatRequest, scored: Scored) -> Response:
    if isinstance(request, SglangRequest):
        return answer_sglang(request, scored)
    activation = asks_activation(request.activation, request.use_activation)
    return ClassifyResponse(
        id=f"classify-{scored.id}",
        created=scored.created,
        model=scored.model,
        data=[
            ClassifyDatum(index=index, probs=[activated(reward, activation)])
            for index, reward in enumerate(scored.flat)
        ],
        usage=usage(scored),
    )


CLASSIFY = Protocol(
    name="classify",
    summary="Rewards of texts, ids or one chat, as vLLM or SGLang answer",
    spoken_by="verl, vLLM's and SGLang's clients",
    paths=("/classify",),
    methods=("POST", "PUT"),
    request=Request,
    response=Response,
    read=read,
    answer=answer,
    example={"model": "rm", "input": "What is ice? Frozen water.", "activation": False},
)

ENCODE = Protocol(
    name="encode",
    summary="Rewards of texts or ids as SGLang answers",
    spoken_by="SGLang's clients",
    paths=("/encode",),
    methods=("POST", "PUT"),
    request=SglangRequest,
    response=Embedded | list[Embedded],
    read=read_sglang,
    answer=answer_sglang,
    example={"text": ["What is ice? Frozen water.", "What is ice? Fire."]},
)
