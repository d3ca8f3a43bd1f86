"""Conversations to pieces of text: by the tokenizer's template, or as another tool does it.

The pieces of a conversation are encoded one by one and their ids joined; a number among them is an
id itself. To add a rendering, write a function and add a row to :data:`RENDERERS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from plaudit.errors import ModelError
from plaudit.interop.llama_factory.slots import BOS, EOS, fill
from plaudit.types import Comparison, Message, Rendering, Turns

Piece: TypeAlias = str | int

RENDER_ERRORS = (TemplateError, TypeError, LookupError, ValueError, AttributeError)
"""What :func:`render` raises for a conversation that has no rendering, whatever raised it: the
template, the rendering, or an expression of the template on a value of another type.
"""

_RENDERING_ARGUMENTS = frozenset(
    inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
) - {"self", "kwargs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A conversation before encoding, and what encoding still does to it.

    ``chat``: the start token once. ``plain``: the tokenizer's own special tokens, start and end
    token once. ``exact``: nothing at all.
    """

    pieces: tuple[Piece, ...]
    ending: Literal["chat", "plain", "exact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """What turns a conversation into text: tokenizer, rendering and its template's variables."""

    tokenizer: PreTrainedTokenizerBase
    chat_template_kwargs: Mapping[str, Any]
    rendering: Rendering


def render(voice: Voice, comparison: Comparison, response: Turns) -> Rendered:
    """The whole conversation with ``response``.

    Raises:
        ModelError: messages, and a tokenizer without a chat template.
        RENDER_ERRORS: the template or the rendering has no form for these messages.
    """
    return RENDERERS[voice.rendering.kind](voice, comparison, response)


def is_chat(comparison: Comparison) -> bool:
    """Whether a template renders this comparison (else its text stands as it is)."""
    return not isinstance(comparison.responses[0], str)


def by_chat_template(voice: Voice, comparison: Comparison, response: Turns) -> Rendered:
    """The tokenizer's chat template, or prompt and response as they stand."""
    text = conversation_text(voice, comparison, response)
    return Rendered(pieces=(text,), ending="chat" if is_chat(comparison) else "plain")


def by_openrlhf(voice: Voice, comparison: Comparison, response: Turns) -> Rendered:
    """No newline at the end, then the end token unless it is there, a space before it.

    The rule of OpenRLHF's reward data (``openrlhf/datasets/reward_dataset.py``); it adds no other
    special token.
    """
    text = conversation_text(voice, comparison, response).rstrip("\n")
    end = voice.tokenizer.eos_token
    closed = end is None or text.endswith(str(end))
    return Rendered(pieces=(text if closed else f"{text} {end}",), ending="exact")


def by_llamafactory(voice: Voice, comparison: Comparison, response: Turns) -> Rendered:
    """LLaMA-Factory's own template, each piece of each turn encoded on its own.

    Byte-pair merges never reach across its pieces, so the ids differ from those of the same text
    encoded at once. Plain text stands as it is.
    """
    if isinstance(comparison.prompt, str) or isinstance(response, str):
        return by_chat_template(voice, comparison, response)
    if comparison.tools:
        raise ValueError("LLaMA-Factory's templates are read without tools")
    system, turns = _alternating((*comparison.prompt, *response))
    tokens = {BOS: voice.tokenizer.bos_token_id, EOS: voice.tokenizer.eos_token_id}
    pieces = [tokens.get(piece, piece) for piece in fill(voice.rendering.strings, system, turns)]
    # A tokenizer without a start token has none to write.
    return Rendered(pieces=tuple(p for p in pieces if p is not None), ending="exact")


Renderer: TypeAlias = Callable[[Voice, Comparison, Turns], Rendered]

RENDERERS: dict[str, Renderer] = {
    "chat_template": by_chat_template,
    "llamafactory": by_llamafactory,
    "openrlhf": by_openrlhf,
}


def conversation_text(voice: Voice, comparison: Comparison, response: Turns) -> str:
    """Messages through the tokenizer's chat template, texts one after the other."""
    if isinstance(comparison.prompt, str) and isinstance(response, str):
        return comparison.prompt + response
    if isinstance(comparison.prompt, str) or isinstance(response, str):
        raise TypeError("prompt and response must both be text or both be messages")
    if not voice.tokenizer.chat_template:
        raise ModelError(
            f"{comparison.where} holds messages, but the base's tokenizer has no chat template; "
            "set tokens.chat_template to a jinja file, or give the data as plain text."
        )
    messages = [message.as_dict() for message in (*comparison.prompt, *response)]
    if not all(isinstance(message["content"], (str, NoneType)) for message in messages):
        # Templates print what they get: of a list or an object, Python's notation.
        raise TypeError("a message's content is not text")
    text = voice.tokenizer.apply_chat_template(
        messages,
        tools=None if comparison.tools is None else [dict(tool) for tool in comparison.tools],
        tokenize=False,
        add_generation_prompt=False,
        **template_variables({**voice.chat_template_kwargs, **comparison.chat_template_kwargs}),
    )
    assert isinstance(text, str)
    return text


def template_variables(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Variables for the template; what steers the rendering itself is not data's to set.

    Raises:
        ValueError: one of them is an argument of ``apply_chat_template``.
    """
    refused = sorted(given.keys() & _RENDERING_ARGUMENTS)
    if refused:
        raise ValueError(f"chat_template_kwargs may not set {', '.join(refused)}")
    return given


def _alternating(messages: Sequence[Message]) -> tuple[str, list[str]]:
    """The system text, and the contents of the turns, user first.

    Raises:
        ValueError: turns that do not alternate, or of another role; LLaMA-Factory drops such rows.
        TypeError: a content that is not text.
    """
    system = ""
    if messages and messages[0].role == "system":
        system, messages = messages[0].content, messages[1:]
    for number, message in enumerate(messages):
        expected = ("user", "assistant")[number % 2]
        if message.role != expected or message.extra:
            raise ValueError(
                f"turn {number + 1} is {message.role}; LLaMA-Factory's templates alternate user "
                "and assistant, after one system text, without tool calls"
            )
    contents = [system, *(message.content for message in messages)]
    if not all(isinstance(content, str) for content in contents):
        raise TypeError("a message's content is not text")
    return contents[0], contents[1:]
