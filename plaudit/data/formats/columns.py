"""Rows under the names that readers know: a source says where its columns and tags are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from plaudit.data.formats.parsed import Reader
from plaudit.data.formats.readers import READERS, SHARED_COLUMNS
from plaudit.data.formats.turns import SHAREGPT_ROLES
from plaudit.errors import DataError, did_you_mean
from plaudit.recipe.schema import Source

Row: TypeAlias = dict[str, Any]

KEY_TAGS: Final = {"role_tag": "from", "content_tag": "value"}
"""LLaMA-Factory's tags for the keys of a turn, and what the reader calls them."""

ROLE_TAGS: Final = {
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""LLaMA-Factory's tags for who speaks, and what the reader calls them."""

_TURNS: Final = ("conversations", "chosen", "rejected")


def check_names(source: Source) -> None:
    """Whether the source's columns and tags are names that some reader knows.

    Any column may be set to null, which leaves it out.

    Raises:
        DataError: one is not.
    """
    named = READERS.get(source.format or "")
    known = _known_columns(READERS.values() if named is None else [named])
    where = f"`columns` of {source.path}"
    what = "a column that a format reads" if named is None else f"a column of {named.name}"
    read = {ours: theirs for ours, theirs in source.columns.items() if theirs is not None}
    _check_known(read, known, where, what)
    _check_known(source.tags, {*KEY_TAGS, *ROLE_TAGS}, f"`tags` of {source.path}", "a tag")
    for tag in KEY_TAGS:
        if tag in source.tags and not source.tags[tag]:
            raise DataError(f"`tags` of {source.path}: {tag} is null; expected the name of a key.")


def _known_columns(readers: Iterable[Reader]) -> set[str]:
    known = {*SHARED_COLUMNS, "score_chosen", "score_rejected", "system"}
    for reader in readers:
        known |= {*reader.columns, *reader.optional}
    return known


class Unseen:
    """Columns that ``columns`` names and no row has had yet.

    A column that some format reads may be set to null whether it is there or not.
    """

    def __init__(self, source: Source) -> None:
        self._path = source.path
        known = _known_columns(READERS.values())
        self.columns = {
            ours if theirs is None else theirs
            for ours, theirs in source.columns.items()
            if theirs is not None or ours not in known
        }
        self._found = ""

    def look(self, row: Row) -> None:
        """Note the columns of a row."""
        if self.columns:
            self.columns -= row.keys()
            self._found = self._found or ", ".join(row)

    def refuse(self) -> None:
        """At the end of the rows. Raises DataError where a column was in none of them."""
        if self.columns:
            raise DataError(
                f"`columns` of {self._path} names {' and '.join(sorted(self.columns))}, which is"
                f" in none of its rows (found in the first: {self._found})."
            )


def renamed_row(source: Source, row: Row) -> Row:
    """One row under the readers' names; what ``columns`` sets to null is left out."""
    if not source.columns and not source.tags:
        return row
    moved = {*source.columns.values(), *source.columns}
    named = {name: value for name, value in row.items() if name not in moved}
    for ours, theirs in source.columns.items():
        if theirs is not None and theirs in row:
            named[ours] = row[theirs]
    if source.tags:
        named |= {name: _retagged(source, named[name]) for name in _TURNS if name in named}
    return named


def _retagged(source: Source, value: Any) -> Any:
    """A turn or a list of them with the readers' keys and roles; anything else as it is.

    A role that no tag names is kept apart from the reader's own names, so that it is not taken for
    one of them.
    """
    if isinstance(value, list):
        return [_retagged(source, turn) for turn in value]
    keys = {ours: source.tags.get(tag) or ours for tag, ours in KEY_TAGS.items()}
    if not isinstance(value, dict) or not all(key in value for key in keys.values()):
        return value
    said = {
        name: ours for tag, ours in ROLE_TAGS.items() if (name := source.tags.get(tag)) is not None
    }
    turn = {ours: value[key] for ours, key in keys.items()}
    if said and isinstance(turn["from"], str):
        name = turn["from"]
        turn["from"] = said.get(name, f"unknown: {name}" if name in SHAREGPT_ROLES else name)
    return turn


def _check_known(given: Mapping[str, Any], known: set[str], where: str, what: str) -> None:
    for name in given:
        if name not in known:
            hint = did_you_mean(name, sorted(known), f"expected one of {_listed(known)}.")
            raise DataError(f"{where}: {name} is not {what}; {hint}")


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
