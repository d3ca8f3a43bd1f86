"""Problems of turns and their texts: one function and one row in :data:`PROBLEMS` each.

A problem is a question to one comparison, answered by yes or no; the answers of a row are the bits
of one number, in the table's order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from plaudit.data.reasons import is_blank
from plaudit.types import Comparison, Message, Turns

Problem: TypeAlias = Callable[[Comparison], bool]

SPECIAL_TOKENS: Final[tuple[str, ...]] = (
    r"<\|[A-Za-z][\w.-]{1,40}\|>",  # ChatML, Llama 3, Phi, Cohere
    r"<｜[^｜\n]{1,40}｜>",  # DeepSeek
    r"\[/?INST\]",  # Llama 2, Mistral
    r"<</?SYS>>",  # Llama 2
    r"\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",  # Mistral
    r"<(?:start|end)_of_turn>",  # Gemma
    r"<(?:bos|eos)>",  # Gemma
    r"</?s>(?![\w>])",  # Llama 2, Mistral; in HTML, struck-through text
)
"""Control tokens of known chat templates. In a text they are read as control, not as text."""

_SPECIAL = re.compile("|".join(SPECIAL_TOKENS))
_STRIKE = re.compile(r"<s>[^<\n]{1,400}</s>")

_MARKER = re.compile(
    r"(?:\A|\n)[ \t]*(?:#{2,3} )?(?:Human|Assistant|USER|ASSISTANT|### (?:Instruction|Response)"
    r"|<(?:human|bot|user|assistant)>)[ \t]*:"
)

# UTF-8 read as Latin-1 or Windows-1252: two or three characters where one was meant.
_MOJIBAKE = re.compile("â€[\x80-\xbf™œ\x9d“”˜¢¦]|Ã[\x80-\xbf©¨¤¶¼±³¡­‰]|Â[\xa0-\xbf]|ï»¿|ï¿½")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_OVERRIDE = re.compile("[\u202a-\u202e\u2066-\u2069]")
_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_TOOLS: Final = frozenset({"tool", "function"})
_CHAT_ROLES: Final = frozenset({"system", "user", "assistant"})


def texts_of(turns: Turns) -> Iterator[str]:
    """The texts of a prompt or a response, of content parts those that have one."""
    if isinstance(turns, str):
        yield turns
        return
    for message in turns:
        content = message.content
        if isinstance(content, str):
            yield content
        elif isinstance(content, (list, tuple)):
            yield from (
                part["text"]
                for part in content
                if isinstance(part, dict) and isinstance(part.get("text"), str)
            )


def _texts(comparison: Comparison) -> Iterator[str]:
    for turns in (comparison.prompt, *comparison.responses):
        yield from texts_of(turns)


def role_order(comparison: Comparison) -> bool:
    """A system turn that is not the first, two turns of one side in a row, or an unknown role.

    Also a response that does not begin with the assistant, and a prompt that ends with it.
    """
    if isinstance(comparison.prompt, str):
        return False
    return any(
        not _in_order((*comparison.prompt, *response), len(comparison.prompt))
        for response in comparison.responses
        if not isinstance(response, str)
    )


def _in_order(turns: tuple[Message, ...], prompt: int) -> bool:
    if prompt and prompt < len(turns) and turns[prompt].role != "assistant":
        return False
    before = ""
    for place, turn in enumerate(turns):
        role = turn.role
        if role not in _ROLES or (role in ("system", "developer") and place):
            return False
        # A call and its result may be several turns each.
        if role in ("user", "assistant") and role == before and not turn.extra:
            return False
        if role in _TOOLS and before not in ("assistant", *_TOOLS):
            return False
        before = role
    return True


def empty_turn(comparison: Comparison) -> bool:
    """A turn that says nothing: no text and no tool call, or a prompt that is empty.

    Responses that are empty as a whole have a reason of their own.
    """
    prompt = comparison.prompt
    if isinstance(prompt, str):
        return not prompt.strip()
    parts = (prompt, *(r for r in comparison.responses if not is_blank(r)))
    return not prompt or any(
        is_blank((turn,)) for part in parts if not isinstance(part, str) for turn in part
    )


def special_tokens(comparison: Comparison) -> bool:
    """A control token of a chat template inside a text."""
    return any(has_special_tokens(text) for text in _texts(comparison))


def has_special_tokens(text: str) -> bool:
    """Whether a text holds a control token; struck-through HTML does not."""
    if "<" not in text and "[" not in text:
        return False
    found = _SPECIAL.search(text)
    if found is None:
        return False
    return _SPECIAL.search(_STRIKE.sub("", text)) is not None


def without_special_tokens(text: str) -> str:
    """The text with its control tokens taken out; white space stays, which may mark turns."""
    if not has_special_tokens(text):
        return text
    kept = [part if _STRIKE.fullmatch(part) else _SPECIAL.sub("", part) for part in _pieces(text)]
    return "".join(kept)


def _pieces(text: str) -> list[str]:
    """Struck-through spans and what stands between them."""
    pieces, end = [], 0
    for found in _STRIKE.finditer(text):
        pieces += [text[end : found.start()], found[0]]
        end = found.end()
    return [*pieces, text[end:]]


def dialogue_markers(comparison: Comparison) -> bool:
    """A line that begins with ``Human:``, ``Assistant:`` or the like where turns have roles.

    In plain texts such lines are how turns are marked, so there only responses are looked at.
    """
    parts = comparison.responses
    if not isinstance(comparison.prompt, str):
        parts = (comparison.prompt, *parts)
    return any(":" in text and _MARKER.search(text) for part in parts for text in texts_of(part))


def bad_characters(comparison: Comparison) -> bool:
    """A control character, a replacement character, or UTF-8 that was read as Latin-1."""
    return any(_is_bad(text) for text in _texts(comparison))


def _is_bad(text: str) -> bool:
    if _CONTROL.search(text):
        return True
    if text.isascii():
        return False
    return "\ufffd" in text or bool(_MOJIBAKE.search(text) or _OVERRIDE.search(text))


def without_control_characters(text: str) -> str:
    """The text without control characters and overrides of the writing direction."""
    text = _CONTROL.sub("", text)
    return text if text.isascii() else _OVERRIDE.sub("", text)


def more_than_text(comparison: Comparison) -> bool:
    """Tools, or a turn with fields beside its text or of a role that not every template knows."""
    return bool(comparison.tools) or any(
        message.role not in _CHAT_ROLES or message.text_fields()
        for turns in (comparison.prompt, *comparison.responses)
        if not isinstance(turns, str)
        for message in turns
    )


PROBLEMS: Final[dict[str, Problem]] = {
    problem.__name__: problem
    for problem in (
        role_order,
        empty_turn,
        special_tokens,
        dialogue_markers,
        bad_characters,
        more_than_text,
    )
}
"""Name of a problem to its question; at most 32 of them."""


def problems(comparison: Comparison) -> int:
    """The bits of the problems that a comparison has."""
    return sum(1 << bit for bit, asks in enumerate(PROBLEMS.values()) if asks(comparison))
