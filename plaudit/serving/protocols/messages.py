"""Shapes that several protocols share: chat messages, inputs of texts or ids, chat requests."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from plaudit.serving.protocols.records import Ask, Body, Dialogue, Ids, Many, Part, Written, keys_of
from plaudit.serving.rejection import RefusalError
from plaudit.types import Text


class ChatMessage(BaseModel):
    """One turn; what else it carries (``tool_calls``, ``name``, …) goes to the template."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | Many[str | dict[str, Any]] | None = None


Messages: TypeAlias = Annotated[Many[ChatMessage], Field(min_length=1)]
Tools: TypeAlias = Annotated[
    Annotated[tuple[dict[str, Any], ...], Field(fail_fast=True)] | None,
    Field(description="Schemas of tools for the chat template, which must render them."),
]
TokenIds: TypeAlias = Annotated[Many[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1)]
TextInput: TypeAlias = str | TokenIds | Many[str] | Many[TokenIds]
"""One text or its ids, or several."""


def as_text(text: str | Sequence[ChatMessage]) -> Text:
    """A text, or messages as plain mappings."""
    return text if isinstance(text, str) else [message.model_dump() for message in text]


def parts_of(given: TextInput) -> tuple[Part, ...]:
    """Each text or list of ids as a part of its own."""
    if isinstance(given, str):
        return (Written(given),)
    if given and isinstance(given[0], int):
        return (Ids(tuple(i for i in given if isinstance(i, int))),)
    return tuple(
        Written(item) if isinstance(item, str) else Ids(tuple(item))
        for item in given
        if not isinstance(item, int)
    )


class Tuned(Body):
    """What vLLM's pooling requests may hold beside their input."""

    model: str | None = None
    activation: bool | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = Field(
        default=None, description="Read the last so many tokens; -1 is the model's maximum length."
    )


class InputRequest(Tuned):
    """Texts as they stand, or token ids."""

    input: TextInput
    add_special_tokens: bool = Field(
        default=True, description="The start token is there once either way."
    )


class ChatRequest(Tuned):
    """One conversation, rendered by the model's own template."""

    messages: Messages
    tools: Tools = None
    add_generation_prompt: Literal[False] = False
    chat_template: None = None
    chat_template_kwargs: dict[str, Any] | None = None


def chat_or_input(body: Any) -> str | None:
    """A discriminator: ``chat`` where a body has ``messages``, else ``input``."""
    keys = keys_of(body)
    return None if keys is None else "chat" if "messages" in keys else "input"


def ask_of(request: InputRequest | ChatRequest) -> Ask:
    """The conversations of a vLLM pooling request."""
    cut = request.truncate_prompt_tokens
    if cut == 0:
        raise RefusalError(
            "bad_request",
            "truncate_prompt_tokens is 0; nothing would be read.",
            param="truncate_prompt_tokens",
        )
    if isinstance(request, InputRequest):
        return Ask(model=request.model, parts=parts_of(request.input), keep_last=cut)
    *before, last = request.messages
    dialogue = Dialogue(
        prompt=as_text(before),
        responses=(as_text([last]),),
        tools=request.tools or None,
        template_kwargs=request.chat_template_kwargs or {},
    )
    return Ask(model=request.model, parts=(dialogue,), keep_last=cut)


def as_base64(value: float) -> str:
    """One fp32 number as OpenAI's clients ask for vectors."""
    return base64.b64encode(struct.pack("<f", value)).decode()
