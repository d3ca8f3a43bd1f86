"""What a chat template leaves out: fields and turns without a trace in the text it makes.

A template renders what it knows and passes over the rest, which then never reaches the model. So a
conversation is rendered once more with a mark in each part that may be left out. A part whose mark
is not in the text is taken out alone: where that changes nothing, the template left it out.
Conversations of nothing but texts of users, assistants and systems cost a search for these texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from plaudit.errors import printable
from plaudit.tokens.rendering import RENDER_ERRORS, ChatFormatter, Rendered, render
from plaudit.types import Comparison, Message, Turns

REASONING_FIELDS: Final = frozenset({"reasoning", "reasoning_content", "thinking"})
"""Names of one field: transformers hands each on under those that chat templates read."""

_COMMON_ROLES: Final = frozenset({"assistant", "system", "user"})
# Values of these keys choose between branches of a template; with a mark they would choose none.
_UNMARKED_KEYS: Final = frozenset({"id", "role", "type"})
_NAME_CHARACTERS: Final = 40

Messages: TypeAlias = tuple[Message, ...]
Rerender: TypeAlias = Callable[[Messages], Rendered | None]
"""The rendering of changed messages; None where there is none, so that the change was noticed."""


@dataclass(frozen=True, slots=True)
class Unrendered:
    """What is left out: its name, to be counted by, and a sentence for people."""

    field: str
    sentence: str


def find_unrendered(
    formatter: ChatFormatter, comparison: Comparison, response: Turns, rendered: Rendered
) -> Unrendered | None:
    """The first part of the conversation that ``rendered``, its rendering, leaves out.

    None where there is nothing. Fields without text may be left out (``Message.text_fields``), and
    the reasoning of earlier turns if the template renders that of a last turn. In a list of several
    items, such as tool calls, each is looked for.
    """
    if isinstance(comparison.prompt, str) or isinstance(response, str):
        no_place = Unrendered("tools", "plain text cannot hold tools")
        return no_place if comparison.tools else None
    messages = (*comparison.prompt, *response)

    def rerender(changed: Messages, tools: Any = comparison.tools) -> Rendered | None:
        try:
            return render(formatter, replace(comparison, prompt=(), tools=tools), changed)
        except RENDER_ERRORS:
            return None

    if comparison.tools and rerender(messages, None) == rendered:
        return Unrendered("tools", "the chat template does not render tools")
    parts = _unmarked(messages, list(_parts(messages, rendered)), rerender)
    left_out = [part for part in parts if rerender(part.taken_out(messages)) == rendered]
    if any(part.is_reasoning for part in left_out) and _renders_last_reasoning(messages, rerender):
        left_out = [part for part in left_out if not part.is_reasoning]
    return left_out[0].unrendered(messages) if left_out else None


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a turn: its content, a field, or an item of a field that is a list."""

    place: int
    field: str | None = None
    item: int | None = None

    @property
    def is_reasoning(self) -> bool:
        return self.field in REASONING_FIELDS

    def marked(self, messages: Messages, mark: str) -> Messages:
        """The messages with a mark in this part."""
        if self.field is None:
            return self._changed(messages, content=mark)
        extra = messages[self.place].extra
        value = extra[self.field]
        if self.item is None:
            value = _with_mark(value, mark)
        else:
            value = [_with_mark(v, mark) if i == self.item else v for i, v in enumerate(value)]
        return self._changed(messages, extra={**extra, self.field: value})

    def taken_out(self, messages: Messages) -> Messages:
        """The messages without this part; a content is exchanged for another text."""
        if self.field is None:
            return self._changed(messages, content=_mark(-1))
        extra = messages[self.place].extra
        if self.item is not None:
            items = extra[self.field]
            rest = {**extra, self.field: [*items[: self.item], *items[self.item + 1 :]]}
        else:
            names = REASONING_FIELDS if self.is_reasoning else {self.field}
            rest = {name: value for name, value in extra.items() if name not in names}
        return self._changed(messages, extra=rest)

    def unrendered(self, messages: Messages) -> Unrendered:
        """This part as the one that is left out."""
        role = printable(messages[self.place].role, _NAME_CHARACTERS)
        turn = f"turn {self.place + 1} ({role})"
        if self.field is None:
            return Unrendered(f"content of {role}", f"the chat template does not render {turn}")
        name = printable(self.field, _NAME_CHARACTERS)
        return Unrendered(name, f"the chat template does not render {name} of {turn}")

    def _changed(self, messages: Messages, **changes: Any) -> Messages:
        changed = replace(messages[self.place], **changes)
        return (*messages[: self.place], changed, *messages[self.place + 1 :])


def _parts(messages: Messages, rendered: Rendered) -> Iterator[_Part]:
    """What may be left out: fields with text, and the contents that :func:`_unsure` names."""
    unsure = set(_unsure(messages, rendered))
    for place, message in enumerate(messages):
        if place in unsure:
            yield _Part(place)
        for field, value in message.text_fields().items():
            several = isinstance(value, (list, tuple)) and len(value) > 1
            for item in range(len(value)) if several else (None,):
                yield _Part(place, field, item)


def _unsure(messages: Messages, rendered: Rendered) -> Iterator[int]:
    """Turns whose text does not stand in the rendering, in order, or whose role is not common.

    A template may change a text (trim it, take thoughts out), and the short text of a tool may
    stand there by chance: only another rendering tells.
    """
    whole = _text(rendered)
    end = 0
    for place, message in enumerate(messages):
        text = message.content.strip() if isinstance(message.content, str) else ""
        if not text:
            continue
        start = whole.find(text, end)
        end = end if start < 0 else start + len(text)
        if start < 0 or message.role not in _COMMON_ROLES:
            yield place


def _unmarked(messages: Messages, parts: list[_Part], rerender: Rerender) -> list[_Part]:
    """The parts whose marks are not in the rendering of the messages with all marks."""
    if not parts:
        return []
    marked = messages
    for number, part in enumerate(parts):
        marked = part.marked(marked, _mark(number))
    rendered = rerender(marked)
    whole = "" if rendered is None else _text(rendered)
    return [part for number, part in enumerate(parts) if _mark(number) not in whole]


def _renders_last_reasoning(messages: Messages, rerender: Rerender) -> bool:
    """Whether the reasoning of a last turn is rendered: Qwen3 and others render no other."""
    *earlier, last = _Part(len(messages) - 1, "reasoning_content").taken_out(messages)
    reasoned = replace(last, extra={**last.extra, "reasoning_content": _mark(0)})
    return rerender((*earlier, reasoned)) != rerender((*earlier, last))


def _text(rendered: Rendered) -> str:
    return "".join(piece for piece in rendered.pieces if isinstance(piece, str))


def _mark(number: int) -> str:
    return f"[plaudit {number}]"


def _with_mark(value: Any, mark: str) -> Any:
    """The value with a mark behind each of its texts."""
    if isinstance(value, str):
        return value + mark
    if isinstance(value, Mapping):
        return {k: v if k in _UNMARKED_KEYS else _with_mark(v, mark) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_mark(item, mark) for item in value]
    return value
