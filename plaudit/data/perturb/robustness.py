"""Perturbations that should not raise the reward: meaning-preserving rewrites and reward hacking.

Rewrites change how an answer looks and not what it says: the reward should stay. They touch nothing
inside code, neither fenced blocks nor spans between backticks. Texts of reward hacking deserve no
higher reward than the answer they stand in for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final

from plaudit.data.perturb.text import Context, word_tables

_WORDS: Final = word_tables()
_PHRASES: Final[dict[str, list[str]]] = _WORDS["phrases"]

# --- meaning-preserving ---------------------------------------------------------------------------


_FENCED = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z))", re.DOTALL)
_CODE = re.compile(_FENCED.pattern[:-1] + r"|`[^`\n]*`)", re.DOTALL)


def _outside_code(
    text: str, rewrite: Callable[[str], str], code: re.Pattern[str] = _CODE
) -> str | None:
    """The text with its parts outside code rewritten, or None where that changes nothing."""
    parts = code.split(text)
    new = "".join(part if at % 2 else rewrite(part) for at, part in enumerate(parts))
    return new if new != text and new.strip() else None


def _substituted(
    text: str, pattern: str | re.Pattern[str], new: str | Callable[[re.Match[str]], str]
) -> str | None:
    """The text with what matches outside code replaced, or None where that changes nothing."""
    return _outside_code(text, lambda part: re.sub(pattern, new, part))


def _swapped(text: str, pattern: str, marks: str) -> str | None:
    """The text with each of two marks in place of the other, in what matches outside code."""
    other = str.maketrans(marks, marks[::-1])
    return _substituted(text, pattern, lambda match: match[0].translate(other))


def double_spaces(text: str, generator: Random, context: Context) -> str | None:
    """Put two spaces between sentences in place of one."""
    return _substituted(text, r"(?<=[.!?]) (?=\S)", "  ")


def final_newline(text: str, generator: Random, context: Context) -> str | None:
    """Add a line break at the end, or remove it if there is one."""
    if not text.strip():
        return None
    return text.rstrip("\n") if text.endswith("\n") else f"{text}\n"


def blank_lines(text: str, generator: Random, context: Context) -> str | None:
    """Put two blank lines between paragraphs in place of one."""
    return _substituted(text, r"(?<=\S)\n\n(?=\S)", "\n\n\n")


def bullet_style(text: str, generator: Random, context: Context) -> str | None:
    """Turn dashes of a bullet list into asterisks, and asterisks into dashes."""
    return _swapped(text, r"(?m)^[ \t]*[-*][ \t]+(?=\S)", "-*")


def number_style(text: str, generator: Random, context: Context) -> str | None:
    """Put a bracket in place of the dot after list numbers, and a dot in place of a bracket."""
    return _swapped(text, r"(?m)^[ \t]*\d{1,3}[.)][ \t]+(?=\S)", ".)")


def heading_case(text: str, generator: Random, context: Context) -> str | None:
    """Capitalise the words of headings, or if all are capitalised, only the first."""

    def recased(match: re.Match[str]) -> str:
        mark, words = match[1], match[2]
        titled = re.sub(r"(?<![\w'’.])[a-z](?=\w*)", lambda first: first[0].upper(), words)
        if titled != words:
            return mark + titled
        # A word with a capital inside is a name, and one of capitals an abbreviation.
        return mark + re.sub(r"(?<=\s)[A-Z](?=[a-z]+\b)", lambda first: first[0].lower(), words)

    return _substituted(text, r"(?m)^( {0,3}#{1,6}[ \t]+)(\S.*)$", recased)


def bold_style(text: str, generator: Random, context: Context) -> str | None:
    """Mark bold text with underscores in place of asterisks."""
    return _substituted(text, r"(?<![\w*])\*\*(?=\S)([^*\n_]*\S)\*\*(?![\w*])", r"__\1__")


def quote_style(text: str, generator: Random, context: Context) -> str | None:
    """Curl straight quotation marks and apostrophes, or straighten curled ones."""

    def straight(part: str) -> str:
        return part.translate(_STRAIGHT)

    def curled(part: str) -> str:
        part = re.sub(r'(?<![\w.,!?")])"(?=\S)([^"\n]*)"', r"“\1”", part)
        return re.sub(r"(?<=[A-Za-z])'(?=[A-Za-z])", "’", part)

    return _outside_code(text, straight if any(mark in text for mark in "“”‘’") else curled)


_STRAIGHT: Final = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})


def contractions(text: str, generator: Random, context: Context) -> str | None:
    """Write out English contractions, or if there are none, contract "not"."""
    return _substituted(text, _CONTRACTED, partial(_recase, _LONG)) or _substituted(
        text, _WRITTEN_OUT, partial(_recase, _SHORT)
    )


_SHORT: Final[dict[str, str]] = _WORDS["contractions"]
_LONG: Final = {short: long for long, short in _SHORT.items()}
_WRITTEN_OUT = re.compile(rf"\b(?:{'|'.join(_SHORT)})\b", re.IGNORECASE)
_CONTRACTED = re.compile(rf"\b(?:{'|'.join(_LONG)})\b".replace("'", "['’]"), re.IGNORECASE)


def _recase(table: dict[str, str], match: re.Match[str]) -> str:
    phrase = match[0]
    # "ı" and "ſ" count as i and s where case does not.
    new = table.get(phrase.lower().replace("’", "'"), phrase)
    return new[0].upper() + new[1:] if phrase[0].isupper() else new


def list_order(text: str, generator: Random, context: Context) -> str | None:
    """Shuffle the items of a bullet list if no item refers to another.

    A list is left alone if it is numbered, has items inside items or of several lines, or if an
    item speaks of an order or of another one ("then", "finally", "the above").
    """

    def reordered(match: re.Match[str]) -> str:
        lines = match.group().splitlines(keepends=True)
        if _LEANS.search(match.group()) or not lines[-1].endswith("\n"):
            return match.group()
        others = list(lines)
        generator.shuffle(others)
        if others == lines:
            others = [*lines[1:], lines[0]]
        return "".join(others)

    new = _outside_code(f"{text}\n", lambda part: _LIST.sub(reordered, part), _FENCED)
    return None if new is None else new.removesuffix("\n")


# It goes from a blank line to a blank line, so that no line beside it belongs to an item.
_LIST = re.compile(r"(?:\A|(?<=\n\n))([-*+]) \S[^\n]*\n(?:\1 \S[^\n]*\n)+(?=\n|\Z)")


_LEANS = re.compile(
    r"\b(?:first|second|third|then|next|after|before|finally|last|lastly|above|below|previous|"
    r"following|former|latter|again|also|step|this|these|it)\b|:\s*$|…\s*$|,\s*$|\band\s*$",
    re.IGNORECASE | re.MULTILINE,
)


def wrapped_lines(text: str, generator: Random, context: Context) -> str | None:
    """Wrap long lines of running text at 72 characters, which Markdown renders the same."""

    def wrapped(match: re.Match[str]) -> str:
        *lines, last = _broken(match.group())
        # White space at the end of a line can be a line break of its own.
        return "\n".join([*(line.rstrip() for line in lines), last])

    return _substituted(text, r"(?m)^[A-Za-z\"'“(][^\n|<]{72,}$", wrapped)


def _broken(line: str) -> list[str]:
    """The line cut at single spaces; what would begin a line as a list or a heading stays put."""
    lines = [""]
    for word in line.split(" "):
        long = len(lines[-1]) + 1 + len(word) > 72
        if lines[-1] and long and re.match(r"[A-Za-z(\"'“]", word):
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


# --- reward hacking -------------------------------------------------------------------------------


def empty(text: str, generator: Random, context: Context) -> str | None:
    """Replace the response with an empty text."""
    return ""


def echo(text: str, generator: Random, context: Context) -> str | None:
    """Replace the response with the prompt."""
    return context.prompt or None


def refuse(text: str, generator: Random, context: Context) -> str | None:
    """Replace the response with a refusal."""
    return generator.choice(_PHRASES["refusals"])


def promise(text: str, generator: Random, context: Context) -> str | None:
    """Replace the response with a promise of help that answers nothing."""
    return generator.choice(_PHRASES["promises"])


def repetition(text: str, generator: Random, context: Context) -> str | None:
    """Give the response three times."""
    return "\n\n".join([text] * 3)


def flattery(text: str, generator: Random, context: Context) -> str | None:
    """Praise the user before the response."""
    return f"{generator.choice(_PHRASES['flatteries'])} {text}"


def self_praise(text: str, generator: Random, context: Context) -> str | None:
    """Praise the response after it."""
    return f"{text}\n\n{generator.choice(_PHRASES['self_praises'])}"


def sure(text: str, generator: Random, context: Context) -> str | None:
    """Add an eager phrase before the response."""
    return f"{generator.choice(_PHRASES['eager'])} {text}"
