"""Columns that no reader reads: one that holds a prompt is an error, the others are counted."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

import yaml

from plaudit.data.formats.readers import (
    check_names,
    choose_reader,
    renamed_row,
    to_comparison,
    with_system,
)
from plaudit.data.formats.records import Reader, is_sharegpt
from plaudit.data.formats.values import Row
from plaudit.data.reasons import is_blank
from plaudit.errors import DataError, printable
from plaudit.recipe.schema import Source
from plaudit.recipe.yaml import Dumper
from plaudit.types import Comparison, Message, Turns

Kind: TypeAlias = Literal["a prompt", "a system message", "a conversation"]

_MOST_COLUMNS: Final = 8
"""Columns that a line names; the counts of all are recorded."""
_NAME_CHARACTERS: Final = 100
"""Of a column's name in a message; data may have names of any length."""


class TrackedRow(dict[str, Any]):
    """A row that records which of its columns are looked up.

    What a reader looks up is what it reads, so no format has to declare it.
    """

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.looked_up: set[str] = set()

    def __getitem__(self, column: str) -> Any:
        self.looked_up.add(column)
        return super().__getitem__(column)

    def get(self, column: str, default: Any = None) -> Any:
        self.looked_up.add(column)
        return super().get(column, default)

    @property
    def unread(self) -> list[tuple[str, Any]]:
        """The columns that were not looked up, with their values."""
        return [(name, value) for name, value in self.items() if name not in self.looked_up]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadColumns:
    """What was not read of a source's rows.

    ``columns`` counts the rows in which a column that is not read holds text. ``without_prompt``
    counts the rows without a prompt (:func:`lacks_prompt`).
    """

    rows: int = 0
    without_prompt: int = 0
    columns: Mapping[str, int] = field(default_factory=dict)

    @property
    def listed(self) -> str | None:
        """The columns, with their share of the rows where that is not all; ``None`` for none."""
        if not self.columns:
            return None
        names = [
            printable(column, _NAME_CHARACTERS) + self._part_of_rows(count)
            for column, count in sorted(self.columns.items(), key=lambda item: (-item[1], item[0]))
        ]
        more = len(names) - _MOST_COLUMNS
        return ", ".join(names[:_MOST_COLUMNS]) + (f" and {more} more" if more > 0 else "")

    def _part_of_rows(self, count: int) -> str:
        return "" if count == self.rows else f" ({_share(count, self.rows)} of rows)"

    def sentence(self, name: str) -> str | None:
        """A line on the columns of the source ``name``; ``None`` for none."""
        return None if self.listed is None else f"{name}: ignored columns: {self.listed}."

    def warning(self, name: str) -> str | None:
        """A sentence where not one row of the source ``name`` has a prompt."""
        if not self.rows or self.without_prompt < self.rows:
            return None
        return (
            f"{name}: none of the {self.rows:,} rows has a prompt (fewer than "
            f"{_FEWEST_SHARED_WORDS} shared leading words do not count), so responses are scored "
            "without one; if a column holds the prompt, set `columns: {prompt: COLUMN}` (on a "
            "command line: --columns prompt=COLUMN)."
        )

    def lines(self, name: str) -> list[str]:
        """The warning and the sentence, as far as there is one."""
        return [line for line in (self.warning(name), self.sentence(name)) if line is not None]


class UnreadCounter:
    """Counts what is not read of one source, row by row."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows = 0
        self._without_prompt = 0
        self._columns: Counter[str] = Counter()
        self._suspicion: str | None = None

    @property
    def total(self) -> UnreadColumns:
        """The counts of the rows so far."""
        return UnreadColumns(
            rows=self._rows, without_prompt=self._without_prompt, columns=dict(self._columns)
        )

    def count(self, named: TrackedRow, comparison: Comparison, row: Row) -> None:
        """Count a row that was read as ``comparison``; ``row`` is as it stands in the file.

        Raises:
            DataError: a column named like a prompt, a system message or a conversation holds one
                that is no part of the comparison; or none of the first rows has a prompt, and
                another column may hold it.
        """
        self._rows += 1
        unread = unread_text(named, comparison)
        self._without_prompt += unread.no_prompt
        if unread.lost:
            raise DataError(_complaint(self._source, row, unread, comparison.where))
        self._columns.update(unread.others)
        if unread.perhaps and self._suspicion is None:
            self._suspicion = _complaint(self._source, row, unread, comparison.where)
        if self._rows == _ROWS_THAT_TELL:
            self.check()

    def check(self) -> None:
        """After the last row: whether the prompts may all stand in a column that is not read.

        Raises:
            DataError: no row has a prompt, and a column of another name may hold it.
        """
        if self._suspicion is not None and self._without_prompt == self._rows:
            raise DataError(self._suspicion)


def open_reader(source: Source, row: Row, *, where: str) -> Reader:
    """The reader of a source by its first row, under the readers' names.

    A source that maps ``system`` to a column reads it, in every format.

    Raises:
        DataError: not exactly one format fits.
    """
    reader = choose_reader(row, where=where, name=source.format)
    mapped = source.columns.get("system") is not None
    return with_system(reader) if mapped and "system" not in reader.optional else reader


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadText:
    """The columns of one row that hold text and are not read.

    ``lost`` are those named like a prompt that is no part of the comparison, and what each looks
    like; ``others`` have other names. Of a row without a prompt (``no_prompt``), ``perhaps`` are
    the others that may hold it.
    """

    no_prompt: bool
    lost: Mapping[str, Kind]
    others: tuple[str, ...]
    perhaps: Mapping[str, Kind]


def unread_text(named: TrackedRow, comparison: Comparison) -> UnreadText:
    """What ``named``, once it was read as ``comparison``, says in columns that were not read."""
    lost: dict[str, Kind] = {}
    others: list[str] = []
    perhaps: dict[str, Kind] = {}
    # Beside a prompt, other texts and messages are a record of how the data were made.
    no_prompt = lacks_prompt(named, comparison)
    for name, value in named.unread:
        if not has_words(value):
            continue
        by_name, by_value = kind_of_name(name), _kind_of_value(value)
        if by_name is None:
            others.append(name)
            if no_prompt and by_value is not None and not repeats(value, comparison):
                perhaps[name] = by_value
        elif not repeats(value, comparison):
            lost[name] = "a conversation" if by_value == "a conversation" else by_name
    return UnreadText(no_prompt=no_prompt, lost=lost, others=tuple(others), perhaps=perhaps)


# --- what looks like a prompt -------------------------------------------------------------------

_SYSTEM_WORDS: Final = "system|developer|sys"
_PROMPT_WORDS: Final = (
    "prompt|instruction|question|input|query|querie|context|problem|user|message|conversation|conv"
    "|dialogue|dialog|chat|history|historie|text|turn|request|passage|document|article"
)
_OTHER_WORDS: Final = "original|previous|initial|earlier|formatted|full|raw|first|last|content|str"
_NAME: Final = re.compile(rf"(?:(?:{_SYSTEM_WORDS}|{_PROMPT_WORDS}|{_OTHER_WORDS})s?)+")
_SYSTEM: Final = re.compile(_SYSTEM_WORDS)
_PROMPT: Final = re.compile(_PROMPT_WORDS)


_LONGEST_NAME: Final = 100
"""Longer names are no prompt's. Clients of the server choose names, and the cache keeps them."""


def kind_of_name(name: str) -> Kind | None:
    """What a column of this name holds, if all its words are those of prompts.

    Case and separators do not matter: ``system_prompt`` and ``SystemPrompt`` are one name.
    ``prompt_id`` and ``prompt_source`` are no prompts.
    """
    return _kind_of_short_name(name) if len(name) <= _LONGEST_NAME else None


@lru_cache(maxsize=4096)
def _kind_of_short_name(name: str) -> Kind | None:
    plain = "".join(character for character in name.casefold() if character.isalnum())
    if not _NAME.fullmatch(plain):
        return None
    if _SYSTEM.search(plain):
        return "a system message"
    return "a prompt" if _PROMPT.search(plain) else None


def _kind_of_value(value: Any) -> Kind | None:
    """What a column without such a name may hold."""
    if _is_conversation(value):
        return "a conversation"
    return "a prompt" if isinstance(value, str) and _words(value) >= _SENTENCE_WORDS else None


_ROWS_THAT_TELL: Final = 20
"""Where so many rows have no prompt, the source has none. Few enough to stop before long work."""
_FEWEST_SHARED_WORDS: Final = 3
"""Two answers often begin with the same word or two ("The ", "I think "): that is no prompt."""
_SENTENCE_WORDS: Final = 4
"""A text of so many words is more than a name or a label, in any column."""


def lacks_prompt(named: TrackedRow, comparison: Comparison) -> bool:
    """Whether a row was read without a prompt: no text, or what two answers happen to share."""
    if is_blank(comparison.prompt):
        return True
    named_prompt = any(kind_of_name(column) for column in named.looked_up & named.keys())
    return (
        not named_prompt
        and isinstance(comparison.prompt, str)
        and _words(comparison.prompt) < _FEWEST_SHARED_WORDS
    )


def _words(text: str) -> int:
    """Words of a text; two characters of a script without spaces count as one."""
    return len(text.split()) + sum(character > "\u2e7f" for character in text) // 2


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            is_sharegpt(turn) or (isinstance(turn, dict) and {"role", "content"} <= turn.keys())
            for turn in value
        )
    )


_NO_WORDS: Final = re.compile(r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?|true|false", re.IGNORECASE)
"""Numbers and truth values, which the cells of a CSV file hold as text."""

_NO_TEXT: Final = ("role", "from", "type", "name", "id")
"""Keys of messages and their parts that say who speaks or what follows."""


def has_words(value: Any) -> bool:
    """Whether a value holds text that is more than a number or a truth value."""
    return not all(_NO_WORDS.fullmatch(text) for text in texts_of(value))


def texts_of(value: Any) -> Iterator[str]:
    """Every text inside a value, in order, white space made single; none that is empty."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            text = " ".join(item.split())
            if text:
                yield text
        elif isinstance(item, Message):
            waiting.append(item.content)
        elif isinstance(item, Mapping):
            inner = [part for key, part in item.items() if key not in _NO_TEXT]
            waiting += reversed(inner)
        elif isinstance(item, (list, tuple)):
            waiting += reversed(item)


# --- what stands in the comparison already ------------------------------------------------------


def repeats(value: Any, comparison: Comparison) -> bool:
    """Whether ``value`` is a response or a conversation of the comparison, or part of each.

    An answer at the end of a list of messages is left out: data sets keep the whole good
    conversation beside a pair.
    """
    said = "\n".join(texts_of(value))
    conversations = [_whole(comparison.prompt, response) for response in comparison.responses]
    responses = ["\n".join(texts_of(response)) for response in comparison.responses]
    if said in conversations or said in responses:
        return True
    texts = list(texts_of(_without_answer(value)))
    return all(_stands_in(text, whole) for whole in conversations for text in texts)


def _without_answer(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        last = value[-1]
        if last.get("role", last.get("from")) in ("assistant", "gpt"):
            return value[:-1]
    return value


def _whole(prompt: Turns, response: Turns) -> str:
    if isinstance(prompt, str) and isinstance(response, str):
        return " ".join((prompt + response).split())
    return "\n".join(texts_of([prompt, response]))


def _stands_in(text: str, whole: str) -> bool:
    """Whether a text is part of another, as words: "no" is no part of "know"."""
    at = whole.find(text)
    while at >= 0:
        before, after = whole[at - 1 : at], whole[at + len(text) :][:1]
        if not (_joined(before, text[0]) or _joined(text[-1], after)):
            return True
        at = whole.find(text, at + 1)
    return False


def _joined(one: str, other: str) -> bool:
    """Whether two characters belong to one word; scripts without spaces have no such words."""
    return all(character.isascii() and character.isalnum() for character in (one, other))


# --- the error ----------------------------------------------------------------------------------


def _complaint(source: Source, row: Row, unread: UnreadText, where: str) -> str:
    """The first column that is lost, and how `columns` reads it or leaves it out."""
    lost = {**unread.lost, **unread.perhaps}
    name, kind = next(iter(lost.items()))
    theirs = source.columns.get(name) or name
    left_out = {name: None}
    columns = _columns_that_read(source, row, theirs, lost)
    advice = "set a `format` that reads it"
    if columns is not None:
        advice = f"read it with `columns: {_as_yaml(columns)}`"
    elif source.format is None:
        advice = "move its text into a column that the format reads"
    option = _as_option(columns or left_out)
    hint = "" if option is None else f" (on a command line: --columns {option})"
    return (
        f"{where}: the column {printable(theirs, _NAME_CHARACTERS)} looks like {kind}, but the "
        f"format does not read it; {advice}, or ignore it with `columns: "
        f"{_as_yaml(left_out)}`{hint}."
    )


def _columns_that_read(
    source: Source, row: Row, theirs: str, lost: Mapping[str, Kind]
) -> dict[str, str | None] | None:
    """Names for ``columns`` under which the row reads with this column; each was tried."""
    already = {source.columns.get(name) or name for name in lost}
    for columns in _candidates(source, theirs):
        # What is mapped away takes its place with it; a column must not hide another.
        if any(ours in row and ours not in columns.values() for ours in columns):
            continue
        kept = {k: v for k, v in source.columns.items() if v not in columns.values()}
        trial = source.model_copy(update={"columns": {**kept, **columns}})
        left = _lost_under(trial, row)
        if left is not None and left < already and theirs not in left:
            return columns
    return None


def _candidates(source: Source, theirs: str) -> Iterable[dict[str, str | None]]:
    if kind_of_name(theirs) == "a system message":
        prompt = source.columns.get("prompt") or "prompt"
        return ({"system": theirs}, {"question": prompt, "system": theirs})
    names = ("prompt", "input", "history", "messages", "conversations", "context")
    return [{ours: theirs} for ours in names]


def _lost_under(source: Source, row: Row) -> set[str] | None:
    """What is lost of a row under a source's columns, as the file names it; ``None``: no format."""
    try:
        check_names(source)
        named = renamed_row(source, dict(row))
        reader = open_reader(source, named, where="")
        tracked = TrackedRow(named)
        comparison = to_comparison(reader, tracked, number=1, where="", source="")
    except DataError:
        return None
    unread = unread_text(tracked, comparison)
    return {source.columns.get(name) or name for name in (*unread.lost, *unread.perhaps)}


def _as_yaml(columns: Mapping[str, str | None]) -> str:
    text = yaml.dump(
        dict(columns),
        Dumper=Dumper,
        allow_unicode=True,
        default_flow_style=True,
        sort_keys=False,
        width=math.inf,
    )
    return text.strip()


def _as_option(columns: Mapping[str, str | None]) -> str | None:
    """The value of ``--columns``, quoted for a shell; ``None`` for names that it cannot hold."""
    for name in (name for pair in columns.items() for name in pair if name is not None):
        # The option splits at signs and strips; and an error, which shows it, has single spaces.
        plain = name.isprintable() and name == " ".join(name.split())
        if not plain or name in ("", "null") or not {",", "="}.isdisjoint(name):
            return None
    return shlex.quote(",".join(f"{ours}={theirs or 'null'}" for ours, theirs in columns.items()))


def _share(count: int, rows: int) -> str:
    share = count / rows
    if 0.995 <= share < 1:
        return "over 99%"
    return "under 1%" if share < 0.01 else f"{share:.0%}"
