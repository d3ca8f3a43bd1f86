"""The documentation corpus that ships with plaudit, and the answers that can be cut from it.

The text is CPython's: docstrings and language-reference topics (see ``plaudit/embedded/NOTICE``).
Modules and topics are parted whole into three parts that share no text and no near copy:
``pretraining`` (all that the embedded base has read), ``training`` (comparisons to train on) and
``heldout`` (comparisons to evaluate on).
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from plaudit.embedded import documentation_path
from plaudit.errors import DataError

Kind: TypeAlias = Literal["docstring", "topic", "comment"]
Part: TypeAlias = Literal["pretraining", "training", "heldout"]

PARTS: Final[tuple[Part, ...]] = get_args(Part)

SHORTEST: Final = 40
LONGEST: Final = 400
"""Characters of an answer: shorter ones say nothing to mutate, longer ones only cost time."""

QUESTIONS: Final[tuple[str, ...]] = (
    "What does `{name}` do?",
    "What is `{name}` for?",
    "Describe `{name}`.",
    "Explain `{name}` in a few words.",
)
FURTHER_QUESTIONS: Final[tuple[str, ...]] = (
    "What else should one know about `{name}`?",
    "Tell me more about `{name}`.",
    "What is documented about `{name}`?",
)
TOPIC_QUESTIONS: Final[tuple[str, ...]] = (
    "What does the Python language reference say about `{name}`?",
    "What are the rules of Python for `{name}`?",
)

_WORD = re.compile(r"[A-Za-z]+")
_NOT_PROSE = re.compile(r"::=|>>>|^\s{2,}|^\s*[-*+|=~^#\d]|\.\. ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Documentation:
    """One documented thing: dotted ``name``, ``module`` (for a topic, the topic) and its text.

    Paragraphs of ``text`` are separated by one empty line.
    """

    name: str
    module: str
    kind: Kind
    part: Part
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A passage of prose about ``name`` on one line; ``index`` counts the passages of a record."""

    name: str
    module: str
    kind: Kind
    index: int
    text: str


def read_documentation(path: Path | None = None) -> tuple[Documentation, ...]:
    """Every record of the shipped corpus, in its order (or of another file of the same form).

    Raises:
        DataError: the file is missing or damaged.
    """
    path = documentation_path() if path is None else path
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return tuple(Documentation(**json.loads(line)) for line in file)
    except FileNotFoundError:
        raise DataError(
            f"there is no documentation corpus at {path}; install plaudit again, or build it with "
            "scripts/extract_documentation.py."
        ) from None
    except (OSError, EOFError, ValueError, TypeError, lzma.LZMAError) as error:
        raise DataError(
            f"the documentation corpus at {path} is damaged ({error}); install plaudit again, or "
            "build it with scripts/extract_documentation.py."
        ) from error


def answers(record: Documentation) -> Iterator[Answer]:
    """Passages of :data:`SHORTEST` to :data:`LONGEST` characters: runs of whole prose paragraphs.

    Paragraphs follow each other in a passage as long as they fit; anything that is not prose
    (code, tables, grammar, lists), or that only announces such a thing, ends it.
    """
    passages: list[str] = []
    current = ""
    for paragraph in (*record.text.split("\n\n"), ""):
        prose = unwrap(paragraph) if is_prose(paragraph) else ""
        joined = f"{current} {prose}".strip()
        if prose and len(joined) <= LONGEST:
            current = joined
        else:
            passages.append(current)
            current = prose
    usable = (text for text in passages if SHORTEST <= len(text) <= LONGEST)
    for index, text in enumerate(usable):
        yield Answer(
            name=record.name, module=record.module, kind=record.kind, index=index, text=text
        )


def questions(answer: Answer) -> tuple[str, ...]:
    """Every phrasing of the question that ``answer`` answers."""
    if answer.kind == "topic":
        phrasings = TOPIC_QUESTIONS
    else:
        phrasings = QUESTIONS if answer.index == 0 else FURTHER_QUESTIONS
    return tuple(phrasing.format(name=answer.name) for phrasing in phrasings)


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is running text and complete: no code, list, table, rule or heading."""
    if _NOT_PROSE.search(paragraph) or paragraph.rstrip().endswith(":"):
        return False
    words = _WORD.findall(paragraph)
    letters = sum(map(len, words))
    visible = sum(not character.isspace() for character in paragraph)
    return len(words) >= 5 and letters >= 0.8 * visible


def unwrap(paragraph: str) -> str:
    """The paragraph on one line, words separated by single spaces."""
    return " ".join(paragraph.split())
