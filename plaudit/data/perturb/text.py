"""What perturbations share: the text of an answer and its language, words, names and numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

from plaudit.types import Comparison, Message, Turns

# --- the text of an answer ------------------------------------------------------------------------


def best_response(comparison: Comparison) -> Turns:
    """The response of the highest grade: the first of equals, or where nothing is known."""
    grades = comparison.grades or (0.0,) * len(comparison.responses)
    return comparison.responses[grades.index(max(grades))]


def last_text(turns: Turns) -> str | None:
    """The text of a response, or of its last message; None where that holds something else."""
    if isinstance(turns, str):
        return turns
    content = turns[-1].content if turns else None
    return content if isinstance(content, str) else None


def prompt_text(prompt: Turns) -> str:
    """What was asked: the text, or the last message of the user."""
    if isinstance(prompt, str):
        return prompt.strip()
    asked = [m.content for m in prompt if m.role == "user" and isinstance(m.content, str)]
    return asked[-1] if asked else ""


def with_text(turns: Turns, text: str) -> Turns:
    """The response with another text, in its last message if it has messages."""
    if isinstance(turns, str):
        # Plain responses often begin with the space that parts them from the prompt.
        space = turns[: len(turns) - len(turns.lstrip())]
        return text if not text or text[0].isspace() else space + text
    last: Message = replace(turns[-1], content=text)
    return (*turns[:-1], last)


# --- its language ---------------------------------------------------------------------------------


SURE: Final = 0.5
"""A language must be more likely than all others together: short texts and code often are not."""
CHARACTERS: Final = 2000
"""Of longer texts the beginning tells the language."""
UNKNOWN: Final = "unknown"
"""What counts of languages call the texts whose language is not sure."""
NOT_LATIN: Final = "unknown, not in Latin letters"
"""A language that is not sure and is not English or one of its neighbours."""
_LAST_LATIN: Final = "\u024f"
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def identify_language(text: str) -> str | None:
    """The code (ISO 639) of the language of a text; None where that is not sure.

    Fenced code is left out: its words tell nothing of the text around it.
    """
    words = _CODE.sub(" ", text).strip()
    if not words:
        return None
    name, _ = _identifier().classify(words[:CHARACTERS])
    return None if name in ("und", "zxx") else str(name)


def language_of_answer(text: str, prompt: str) -> str | None:
    """The language of an answer; of one too short to tell, that of the prompt and the answer.

    Where both are too short, None says that it may be a language like English, and ``NOT_LATIN`` by
    their letters that it is not.
    """
    both = f"{prompt}\n{text}"
    known = identify_language(text) or identify_language(both)
    return known or (None if _mostly_latin(both) else NOT_LATIN)


def _mostly_latin(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return 2 * sum(letter <= _LAST_LATIN for letter in letters) >= len(letters)


@cache
def _identifier() -> Any:
    # Imported where it is used: the model takes a third of a second to load.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=SURE)


# --- what it is made of ---------------------------------------------------------------------------


@cache
def word_tables() -> dict[str, Any]:
    """The tables of words and sentences in ``words.json``. Draws depend on their order."""
    tables: dict[str, Any] = json.loads(Path(__file__).with_name("words.json").read_bytes())
    return tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What perturbations borrow from: other answers, and the names that stand in them, by shape.

    ``others`` is sorted by length. ``own`` are texts that answer the same question rightly, and
    ``prompt`` is that question. ``language`` is that of the text to alter, where it is known.
    """

    others: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    own: frozenset[str] = frozenset()
    prompt: str = ""
    language: str | None = None


def contexts_by_language(
    answers: Sequence[tuple[str, str | None]],
) -> dict[str | None, Context]:
    """For each language of these answers (text, language) a context out of those in it, and None:
    out of all. A text may occur in several languages.

    Answers of unknown language (None) are in every context.
    """
    return {
        language: replace(
            make_context([text for text, own in answers if language in (None, own) or own is None]),
            language=language,
        )
        for language in {None, *(own for _, own in answers)}
    }


def make_context(texts: Sequence[str]) -> Context:
    """A context out of a set of answers; the same for any order of them."""
    return Context(
        others=tuple(sorted(set(texts), key=lambda text: (len(text), text))),
        names={
            shape: tuple(sorted({name for text in texts for name in pattern.findall(text)}))
            for shape, pattern in SHAPES.items()
        },
    )


def alike(first: str, second: str) -> bool:
    """Whether most words are the same: such a text may answer the other's question as well."""
    words, others = set(first.lower().split()), set(second.lower().split())
    return len(words & others) > 0.5 * min(len(words), len(others))


def pieces_of(text: str) -> list[tuple[str, str]]:
    """Words, each with the white space behind it."""
    return re.findall(r"(\S+)(\s*)", text)


def joined(pieces: Sequence[tuple[str, str]]) -> str:
    return "".join(word + space for word, space in pieces).strip()


def spaced_sentences(text: str) -> list[tuple[str, str]]:
    """Sentences, each with the white space behind it."""
    pieces = re.split(f"({SENTENCE_END.pattern})", text)
    return list(zip(pieces[::2], [*pieces[1::2], ""], strict=True))


def like(old: str, new: str) -> str:
    """``new`` with a capital where ``old`` has one, all in capitals where it is."""
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


def other_number(old: str, generator: Random) -> str:
    if "." in old:
        whole, _, rest = old.partition(".")
        return f"{whole}.{other_number(rest, generator)}"
    if len(old) > _MOST_DIGITS:
        last = generator.choice([digit for digit in "0123456789" if digit != old[-1]])
        return old[:-1] + last
    value = int(old)
    near = {value + 1, value + 2, value + 10, value * 2, value * 10, max(value - 1, 0), value // 2}
    return generator.choice([str(number) for number in sorted(near) if number != value])


# Longer ones are names rather than amounts, and Python does not parse very long ones.
_MOST_DIGITS: Final = 18

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"*])")


NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")


SHAPES: Final[dict[str, re.Pattern[str]]] = {
    "exception": re.compile(r"\b[A-Z]\w*(?:Error|Exception|Warning|Interrupt)\b"),
    "constant": re.compile(r"\b[A-Z][A-Z0-9_]{2,}\b"),
    "camel": re.compile(r"\b[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]*)+\b"),
    "compound": re.compile(r"(?<![\w.])[a-z]\w*(?:[_.]\w+)+\b"),
    "quoted": re.compile(r"(?<=['\"`*])[A-Za-z_]\w*(?=['\"`*])"),
    "type": re.compile(
        r"\b(?:string|integer|float|list|tuple|dictionary|boolean|bytes|iterator|sequence|"
        r"function|class|module|method|file|directory|thread|process)\b"
    ),
}
