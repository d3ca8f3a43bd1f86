"""What a chat template leaves out: fields and turns without a trace in the text it makes.

A template renders what it knows and passes over the rest, which then never reaches the model. So a
conversation is rendered again without the field, or with another text in the turn: where that
changes nothing, the template left it out. Conversations of nothing but texts of users, assistants
and systems are not rendered again as long as these texts stand in the rendering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from plaudit.tokens.rendering import RENDER_ERRORS, Rendered, Voice, render
from plaudit.types import Comparison, Message, Turns

REASONING_FIELDS: Final = frozenset({"reasoning", "reasoning_content", "thinking"})
"""Three names of one field: transformers gives a template whichever of them it reads."""

_COMMON_ROLES: Final = frozenset({"assistant", "system", "user"})
_OTHER_TEXT: Final = "plaudit looks for this text"

Messages: TypeAlias = tuple[Message, ...]
Rerender: TypeAlias = Callable[[Messages], Rendered | None]
"""The rendering of changed messages; None where there is none, so that the change was noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrendered:
    """What is left out: its name, to be counted by, and a sentence for people."""

    field: str
    sentence: str


def find_unrendered(
    voice: Voice, comparison: Comparison, response: Turns, rendered: Rendered
) -> Unrendered | None:
    """The first part of the conversation that ``rendered``, its rendering, leaves out.

    None where there is nothing. Fields without text may be left out (``Message.text_fields``), and
    the reasoning of earlier turns if the template renders that of a last turn. In a list of several
    items, such as tool calls, each is looked for.
    """
    if isinstance(comparison.prompt, str) or isinstance(response, str):
        return _left_out("tools", "plain text has no place for tools") if comparison.tools else None
    messages = (*comparison.prompt, *response)

    def rerender(changed: Messages, tools: Any = comparison.tools) -> Rendered | None:
        try:
            return render(voice, replace(comparison, prompt=(), tools=tools), changed)
        except RENDER_ERRORS:
            return None

    if comparison.tools and rerender(messages, None) == rendered:
        return _left_out("tools", "the chat template does not render tools")
    for place in _contents_to_check(messages, rendered):
        if rerender(_changed(messages, place, content=_OTHER_TEXT)) == rendered:
            role = messages[place].role
            return _left_out(
                f"content of {role}", f"the chat template does not render turn {place + 1} ({role})"
            )
    for place, message in enumerate(messages):
        for field, rest in _without_each_field(message):
            if rerender(_changed(messages, place, extra=rest)) != rendered:
                continue
            if field in REASONING_FIELDS and _renders_last_reasoning(messages, rerender):
                continue
            return _left_out(
                field,
                f"the chat template does not render {field} of turn {place + 1} ({message.role})",
            )
    return None


def _left_out(field: str, sentence: str) -> Unrendered:
    return Unrendered(field=field, sentence=sentence)


def _changed(messages: Messages, place: int, **changes: Any) -> Messages:
    return (*messages[:place], replace(messages[place], **changes), *messages[place + 1 :])


def _contents_to_check(messages: Messages, rendered: Rendered) -> Iterator[int]:
    """Turns whose text does not stand in the rendering, in order, or whose role is not common.

    A template may change a text (trim it, take thoughts out), and the short text of a tool may
    stand there by chance: only another rendering tells.
    """
    whole = "".join(piece for piece in rendered.pieces if isinstance(piece, str))
    end = 0
    for place, message in enumerate(messages):
        text = message.content.strip() if isinstance(message.content, str) else ""
        if not text:
            continue
        start = whole.find(text, end)
        end = end if start < 0 else start + len(text)
        if start < 0 or message.role not in _COMMON_ROLES:
            yield place


def _without_each_field(message: Message) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name of each field with text, and the others; of a list, all but one item and the others."""
    extra = message.extra
    for field, value in message.text_fields().items():
        if isinstance(value, list) and len(value) > 1:
            for at in range(len(value)):
                yield field, {**extra, field: value[:at] + value[at + 1 :]}
        elif field in REASONING_FIELDS:
            yield field, _without(extra, REASONING_FIELDS)
        else:
            yield field, _without(extra, {field})


def _without(extra: Mapping[str, Any], fields: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if name not in fields}


def _renders_last_reasoning(messages: Messages, rerender: Rerender) -> bool:
    """Whether the reasoning of a last turn is rendered: Qwen3 and others render no other."""
    last = len(messages) - 1
    rest = _without(messages[last].extra, REASONING_FIELDS)
    reasoned = _changed(messages, last, extra={**rest, "reasoning_content": _OTHER_TEXT})
    return rerender(reasoned) != rerender(_changed(messages, last, extra=rest))
