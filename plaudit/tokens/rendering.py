"""Conversations to pieces of text: by the tokenizer's template, or as another tool does it.

The pieces of a conversation are encoded one by one and their ids joined; a number among them is an
id itself. Other tools' renderings are found in :mod:`plaudit.registry` by their name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from types import NoneType
from typing import Any, Literal, TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from plaudit import registry
from plaudit.errors import ModelError
from plaudit.types import Comparison, Rendering, ScoredTokenRule, Turns

Piece: TypeAlias = str | int

CHAT_TEMPLATE = "chat_template"
"""The kind of rendering that is plaudit's own: the tokenizer's chat template."""

RENDER_ERRORS = (TemplateError, TypeError, LookupError, ValueError, AttributeError)
"""What :func:`render` raises for a conversation that has no rendering: an error of the
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
class ChatFormatter:
    """What turns a conversation into text: tokenizer, rendering and its template's variables."""

    tokenizer: PreTrainedTokenizerBase
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    rendering: Rendering = field(default_factory=Rendering)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTemplate:
    """A template that a recipe names: how it renders, and what it sets in a base's tokenizer."""

    rendering: Rendering
    prepare: Callable[[PreTrainedTokenizerBase], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """How conversations are rendered.

    ``needs_chat_template`` says whether messages need the tokenizer's own. ``closes_text`` says
    whether preformatted text is ended as a rendered conversation is. ``template`` looks a template
    up by name and release (None: the newest known). ``as_jinja`` writes a rendering as a chat
    template for other tools, None where it has no such form.
    """

    render: Callable[[ChatFormatter, Comparison, Turns], Rendered]
    needs_chat_template: bool = True
    closes_text: bool = False
    template: Callable[[str, str | None], NamedTemplate] | None = None
    as_jinja: Callable[[Rendering, ScoredTokenRule, PreTrainedTokenizerBase], str | None] | None = (
        None
    )


def render(formatter: ChatFormatter, comparison: Comparison, response: Turns) -> Rendered:
    """The whole conversation with ``response``.

    Raises:
        ModelError: messages, and a tokenizer without a chat template.
        RENDER_ERRORS: the template or the rendering has no form for these messages.
    """
    return renderer_of(formatter.rendering).render(formatter, comparison, response)


def is_chat(comparison: Comparison) -> bool:
    """Whether a template renders this comparison (else its text stands as it is)."""
    return not isinstance(comparison.responses[0], str)


def by_chat_template(formatter: ChatFormatter, comparison: Comparison, response: Turns) -> Rendered:
    """The tokenizer's chat template, or prompt and response as they stand."""
    text = conversation_text(formatter, comparison, response)
    return Rendered(pieces=(text,), ending="chat" if is_chat(comparison) else "plain")


OWN = Renderer(render=by_chat_template)


def renderer_of(rendering: Rendering) -> Renderer:
    """The renderer of that kind: plaudit's own, or another tool's.

    Raises:
        ModelError: there is none of that name.
    """
    if rendering.kind == CHAT_TEMPLATE:
        return OWN
    if rendering.kind not in registry.names("renderer"):
        raise ModelError(
            f"Unknown renderer {rendering.kind}; expected one of {CHAT_TEMPLATE},"
            f" {', '.join(registry.names('renderer'))}."
        )
    renderer: Renderer = registry.find("renderer", rendering.kind)
    return renderer


def conversation_text(formatter: ChatFormatter, comparison: Comparison, response: Turns) -> str:
    """Messages through the tokenizer's chat template, texts one after the other."""
    if isinstance(comparison.prompt, str) and isinstance(response, str):
        return comparison.prompt + response
    if isinstance(comparison.prompt, str) or isinstance(response, str):
        raise TypeError("prompt and response must both be text or both be messages")
    if not formatter.tokenizer.chat_template:
        raise ModelError(
            f"{comparison.where} has messages, but the base's tokenizer has no chat template; set"
            " tokens.chat_template to a Jinja file, or use plain text."
        )
    messages = [message.as_dict() for message in (*comparison.prompt, *response)]
    if not all(isinstance(message["content"], (str, NoneType)) for message in messages):
        # Templates print what they get: of a list or an object, Python's notation.
        raise TypeError("a message's content is not text")
    text = formatter.tokenizer.apply_chat_template(
        messages,
        tools=None if comparison.tools is None else [dict(tool) for tool in comparison.tools],
        tokenize=False,
        add_generation_prompt=False,
        **template_variables({**formatter.chat_template_kwargs, **comparison.chat_template_kwargs}),
    )
    assert isinstance(text, str)
    return text


def template_variables(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Variables for the template; what steers the rendering itself is not data's to set.

    Raises:
        ValueError: one of them is an argument of ``apply_chat_template``.
    """
    managed = sorted(given.keys() & _RENDERING_ARGUMENTS)
    if managed:
        raise ValueError(f"chat_template_kwargs must not set {', '.join(managed)}")
    return given


# ---- chat templates: chosen once, frozen in time, stored with the model ----

# A call whose format stands there as a literal without escapes; the quotes around it are kept.
_LITERAL_CALL = re.compile(r"strftime_now\s*\(\s*(?P<literal>'[^'\\]*'|\"[^\"\\]*\")\s*\)")
_ANY_USE = re.compile(r"\bstrftime_now\b(?!\s+is\s)")
_FROZEN = "{%- macro strftime_now("


def freeze_dates(template: str, day: date) -> str:
    """A template whose rendering no longer depends on the clock.

    Llama 3.x and others call ``strftime_now`` while rendering, so the same conversation would get
    another score tomorrow. A macro of that name, put in front, answers every format the template
    asks for with ``day``; it travels with the saved tokenizer, so plain transformers renders the
    same text. A template without ``strftime_now`` is returned as it is.

    Raises:
        ModelError: a format that is not a literal string, so that it cannot be answered ahead.
    """
    uses = len(_ANY_USE.findall(template))
    literals = [match["literal"] for match in _LITERAL_CALL.finditer(template)]
    if uses == 0 or template.startswith(_FROZEN):
        return template
    if uses != len(literals):
        raise ModelError(
            "The chat template computes the format of the current date, so scores would change"
            " from day to day; set tokens.chat_template to another template."
        )
    answers = "".join(
        f"{{%- if format == {literal} -%}}{{{{- {_quoted(day.strftime(literal[1:-1]))} -}}}}"
        "{%- endif -%}"
        # The same format in either kind of quotes is one format.
        for literal in {literal[1:-1]: literal for literal in literals}.values()
    )
    return f"{_FROZEN}format) -%}}{answers}{{%- endmacro -%}}{template}"


def _quoted(text: str) -> str:
    """A Jinja string literal. Printed as an expression, white space at its ends stays."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
