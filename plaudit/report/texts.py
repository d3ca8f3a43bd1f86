"""Texts of the data as a page may show them: no hidden characters, no endless lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MOST_CHARACTERS = 4000
"""Of a text in the page: three quarters from its start, the rest its end."""

MOST_TURNS = 12
"""Of a conversation in the page: the first two, the rest its last."""

_LINE = 160
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Excerpt(NamedTuple):
    """A text cut in its middle: ``left_out`` characters are missing between both parts."""

    head: str
    left_out: int
    tail: str


class Turn(NamedTuple):
    """One turn of a conversation as it is shown; ``role`` is None for plain text."""

    role: str | None
    text: Excerpt


class Conversation(NamedTuple):
    """Turns cut in their middle: ``left_out`` of them are missing between both parts."""

    first: tuple[Turn, ...]
    left_out: int
    last: tuple[Turn, ...]


def showable(text: str) -> str:
    """With signs in place of control characters, and nothing that UTF-8 cannot hold."""
    return _CONTROLS.sub(_sign, text.replace("\r\n", "\n"))


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"


def brief(value: Any, most: int = _LINE) -> str:
    """One line for a table's cell; says how many characters it leaves out."""
    # Long before it is looked through character by character.
    text = str(value)
    line = " ".join(text[: 4 * most].split())
    if len(text) <= 4 * most and len(line) <= most:
        return line
    shown = line[:most]
    return f"{shown}… ({len(text):,} characters)"


def excerpt(text: str, most: int = MOST_CHARACTERS) -> Excerpt:
    """The start and the end of a text of more than ``most`` characters."""
    if len(text) <= most:
        return Excerpt(text, 0, "")
    head = most * 3 // 4
    return Excerpt(text[:head], len(text) - most, text[len(text) - (most - head) :])


def conversation(turns: str | Sequence[Mapping[str, Any]]) -> Conversation:
    """A prompt or a response as ``mistakes.jsonl`` holds it."""
    if isinstance(turns, str):
        return Conversation((Turn(None, excerpt(turns)),), 0, ())
    shown = [Turn(str(turn["role"]), excerpt(_content(turn))) for turn in turns]
    left_out = max(0, len(shown) - MOST_TURNS)
    return Conversation(tuple(shown[:2]), left_out, tuple(shown[2 + left_out :]))


def _content(turn: Mapping[str, Any]) -> str:
    """What a turn says; whatever is no text (parts, calls of tools) as JSON."""
    content = turn.get("content")
    rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
    parts = [content if isinstance(content, str) else _json(content)] if content is not None else []
    return "\n".join([*parts, *([_json(rest)] if rest else [])])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)


def preview(turns: str | Sequence[Mapping[str, Any]], most: int = _LINE) -> str:
    """The last turn of a prompt in one line."""
    return brief(turns if isinstance(turns, str) else _content(turns[-1]) if turns else "", most)


_SHADES = 4


def shade(change: float | None, largest: float) -> str:
    """The class of a token by its share of the largest change: ``u1``…``u4``, ``d1``…``d4``."""
    if change is None or not largest:
        return ""
    step = round(_SHADES * abs(change) / largest)
    return "" if not step else f"{'u' if change > 0 else 'd'}{step}"


def spark(tokens: Sequence[Mapping[str, Any]], low: float, high: float) -> str:
    """Points of a line in a box of 100 by 20: rewards from ``low`` at the bottom to ``high``."""
    width, height = max(len(tokens) - 1, 1), high - low or 1.0
    return " ".join(
        f"{100 * place / width:.1f},{19 - 18 * (token['reward'] - low) / height:.1f}"
        for place, token in enumerate(tokens)
    )
