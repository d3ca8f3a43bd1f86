"""What can be counted in a text: the columns that bias and slices are measured on.

A feature of a response is one function from (response, prompt) to a number and one row in
:data:`RESPONSE_FEATURES`; higher means more of it, ``nan`` that it is not defined there. The rules
are exact and few, so that a count can be checked by hand; they read no meaning. Fenced code is left
out of what is counted as formatting.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.types import Turns

Feature: TypeAlias = Callable[[str, str], float]
"""(response, prompt) -> a number."""

_FENCED = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*(?=\S)[^*\n]*\S\*\*|(?<!\w)__(?=\S)[^_\n]*\S__(?!\w)")
_WORD = re.compile(r"\w+")
_REFUSAL_REACH: Final = 200
_REFUSAL = re.compile(
    r"\bi(?: am|'m) (?:(?:very |so |really )?sorry,? but|unable to|not able to|not comfortable)"
    r"|\bi (?:can't|cannot|can not|won't|will not) "
    r"(?:help|assist|do that|provide|answer|fulfill|comply|support|create|write|give|discuss)"
    r"|\bi (?:must|have to) (?:decline|refuse)"
    r"|\b(?:sorry|apologi[sz]e),? (?:but )?i (?:can't|cannot|can not|won't)"
    r"|\bas an ai\b"
)


def response_text(turns: Turns) -> str:
    """The text of a response: plain text as it is, messages one after the other on new lines.

    Of a list of content parts, the text parts count; other content than text is written as JSON.
    """
    if isinstance(turns, str):
        return turns
    return "\n".join(_content_text(message.content) for message in turns)


def _content_text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        # A part of another kind (an image) has no text.
        return "\n".join(
            str(part.get("text") or "") if isinstance(part, dict) else _content_text(part)
            for part in content
        )
    return json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)


def _unfenced(text: str) -> str:
    return _FENCED.sub("", text) if "```" in text or "~~~" in text else text


def _counted(pattern: re.Pattern[str]) -> Feature:
    """How often a pattern stands in the response, outside fenced code."""
    return lambda response, prompt: float(len(pattern.findall(_unfenced(response))))


def refusal(response: str, prompt: str) -> float:
    """1 where an English phrase of refusal stands in the first 200 characters, else 0."""
    opening = response[:_REFUSAL_REACH].lower().replace("’", "'")
    return float(_REFUSAL.search(opening) is not None)


def prompt_words(response: str, prompt: str) -> float:
    """Share of the response's words that stand in the prompt."""
    words = _words(response)
    known = _word_set(prompt)
    return sum(word in known for word in words) / len(words) if words else math.nan


def prompt_words_place(response: str, prompt: str) -> float:
    """Mean place of the prompt's words in the response: 0 its first word, 1 its last."""
    words = _words(response)
    known = _word_set(prompt)
    places = [place for place, word in enumerate(words) if word in known]
    if not places or len(words) < 2:
        return math.nan
    return sum(places) / len(places) / (len(words) - 1)


def other_script(response: str, prompt: str) -> float:
    """1 where the response is mostly in another script than the prompt, else 0."""
    own, asked = script(response), script(prompt)
    return math.nan if own is None or asked is None else float(own != asked)


RESPONSE_FEATURES: Final[dict[str, Feature]] = {
    "characters": lambda response, prompt: float(len(response)),
    # Lines that begin with a bullet (- * + •) or a number and a dot or bracket.
    "list_items": _counted(_LIST_ITEM),
    # Lines that begin with one to six number signs and a space.
    "headings": _counted(_HEADING),
    # Spans inside double asterisks or double underscores.
    "bold": _counted(_BOLD),
    # Blocks between lines of three backticks or tildes.
    "code_blocks": lambda response, prompt: float(len(_FENCED.findall(response))),
    "refusal": refusal,
    "prompt_words": prompt_words,
    "prompt_words_place": prompt_words_place,
    "other_script": other_script,
}

_SCRIPT_WIDTH: Final = 24

FEATURES_DTYPE: Final = np.dtype(
    [(name, np.float64) for name in RESPONSE_FEATURES]
    + [
        ("prompt_characters", np.float64),
        ("turns", np.float64),
        ("truncated", np.float64),
        ("prompt_script", f"U{_SCRIPT_WIDTH}"),
    ]
)
"""One record per row of a score table: the features of its response, and of its prompt.

``prompt_script`` is empty and the others are ``nan`` where the texts were not at hand.
"""


def measure_responses(
    responses: Sequence[str], prompt: str, *, turns: int, truncated: int
) -> list[dict[str, float | str]]:
    """The record of each response to one prompt, as :data:`FEATURES_DTYPE` names the values.

    ``truncated`` counts the prompt tokens that were cut.
    """
    of_prompt: dict[str, float | str] = {
        "prompt_characters": float(len(prompt)),
        "turns": float(turns),
        "truncated": float(truncated),
        "prompt_script": script(prompt) or "",
    }
    return [
        {
            **{name: measure(text, prompt) for name, measure in RESPONSE_FEATURES.items()},
            **of_prompt,
        }
        for text in responses
    ]


def features_column(features: Mapping[str, Sequence[Any]], rows: int) -> npt.NDArray[Any]:
    """Features by name as one structured array; what is not there is ``nan`` or empty."""
    column: npt.NDArray[Any] = np.empty(rows, dtype=FEATURES_DTYPE)
    for name in FEATURES_DTYPE.names or ():
        missing = "" if FEATURES_DTYPE[name].kind == "U" else math.nan
        values = features.get(name, [None] * rows)
        column[name] = [missing if value is None else value for value in values]
    return column


def script(text: str) -> str | None:
    """The script most letters belong to, as Unicode names it (``latin``, ``cjk``, ``arabic``).

    The first word of a letter's Unicode name, equal counts by name; ``None`` without letters. A
    script is no language: Dutch and Swahili are both ``latin``.
    """
    counts = letters_by_script(text)
    return min(counts, key=lambda name: (-counts[name], name)) if counts else None


def letters_by_script(text: str) -> Mapping[str, int]:
    """How many letters of each script a text has; a script without letters is not there."""
    if text.isascii():
        latin = len(text.encode("ascii").translate(None, _NO_LETTERS))
        return {"latin": latin} if latin else {}
    counts: Counter[str] = Counter()
    for char, times in Counter(text).items():
        named = _script_of(char)
        if named is not None:
            counts[named] += times
    return counts


_NO_LETTERS: Final = bytes(code for code in range(128) if not chr(code).isalpha())


@cache
def _script_of(char: str) -> str | None:
    if not char.isalpha():
        return None
    name = unicodedata.name(char, "")
    # "FULLWIDTH LATIN …", "MODIFIER LETTER …" and the like name a form first.
    words = [word for word in name.split() if word not in _FORMS]
    return words[0].partition("-")[0].lower()[:_SCRIPT_WIDTH] if words else None


_FORMS: Final = frozenset(
    {"FULLWIDTH", "HALFWIDTH", "MODIFIER", "LETTER", "SMALL", "CAPITAL", "MATHEMATICAL"}
)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


@lru_cache(maxsize=2)
def _word_set(prompt: str) -> frozenset[str]:
    """The prompt's words; kept for the few responses to it that are measured in a row."""
    return frozenset(_words(prompt))
