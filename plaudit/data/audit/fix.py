"""The cleaned copy: the rows of a file without those that the audit drops, texts repaired.

Beside it lies a change log with one line for every row dropped or changed. Nothing else changes:
columns, their order and their values stay.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.data.audit.checks import CHECKS
from plaudit.data.audit.measure import (
    PROBLEMS,
    problems,
    row_key,
    without_control_characters,
    without_special_tokens,
)
from plaudit.data.formats.readers import choose_reader, renamed_row, to_comparison
from plaudit.data.formats.records import Reader
from plaudit.data.load import open_source
from plaudit.data.reasons import EXPLANATIONS, why_untrainable
from plaudit.data.sources.files import ROW_FILES, as_line, row_file_ending
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import check_new_file, write_atomically, writing
from plaudit.types import Comparison

CHANGE_LOG_SUFFIX: Final = ".changes.jsonl"

Repair: TypeAlias = Callable[[str], str]

REPAIRS: Final[dict[str, Repair]] = {
    "special_tokens": without_special_tokens,
    "bad_characters": without_control_characters,
}
"""Checks whose rows are repaired, with the function that repairs each of their texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanedCopy:
    """What happened to the rows: ``rows == kept + changed_rows + dropped_rows``.

    ``changed`` counts the changed rows by check, of which a row may have several, and ``dropped``
    the dropped rows by reason.
    """

    path: str
    change_log: str
    rows: int
    kept: int
    changed_rows: int
    changed: Mapping[str, int]
    dropped_rows: int
    dropped: Mapping[str, int]

    def __post_init__(self) -> None:
        assert self.rows == self.kept + self.changed_rows + self.dropped_rows, (
            "a row is unaccounted for"
        )


@dataclass(slots=True)
class _Counts:
    rows: int = 0
    kept: int = 0
    changed_rows: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def check_cleaned(out: Path) -> None:
    """Check early that the cleaned copy can be written there.

    Raises:
        OutputError: the file or its change log exists, or its extension is unknown.
    """
    row_file_ending(out, "--fix")
    for path in (out, change_log_of(out)):
        check_new_file(path, option="--fix")


def change_log_of(out: Path) -> Path:
    """The change log beside a cleaned copy."""
    return out.with_name(out.name + CHANGE_LOG_SUFFIX)


def write_cleaned(
    source: Source,
    out: Path,
    drop_N: npt.NDArray[np.uint8],
    on_rows: Callable[[int], None] = lambda done: None,
) -> CleanedCopy:
    """Write the rows of ``source`` that stay, with repaired texts, and the change log.

    ``drop_N`` is that of an audit of this source alone. A row that the repair makes untrainable,
    or equal to another, is dropped too.

    Raises:
        DataError: the source cannot be read, or cannot be written in the format of ``out``.
        OutputError: the disk.
    """
    check_cleaned(out)
    write = ROW_FILES[row_file_ending(out, "--fix")]
    counts = _Counts()
    with writing(out), _folder_beside(out) as name:
        rows_path, log_path = Path(name) / "rows", Path(name) / "changes"
        with (
            rows_path.open("w", encoding="utf-8", errors="surrogatepass") as rows,
            log_path.open("w", encoding="utf-8") as log,
        ):
            for entry in _changes(source, drop_N, rows.write, counts):
                log.write(json.dumps(entry, ensure_ascii=False) + "\n")
                on_rows(counts.rows)
        # Fails where rows do not add up, before anything is written.
        cleaned = CleanedCopy(
            path=str(out),
            change_log=str(change_log_of(out)),
            rows=counts.rows,
            kept=counts.kept,
            changed_rows=counts.changed_rows,
            changed=dict(counts.changed),
            dropped_rows=counts.dropped.total(),
            dropped=dict(counts.dropped),
        )
        write_atomically(out, lambda temporary: write(rows_path, temporary))
        write_atomically(change_log_of(out), log_path.rename)
    return cleaned


def _folder_beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    out.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent)


def _changes(
    source: Source,
    drop_N: npt.NDArray[np.uint8],
    write: Callable[[str], Any],
    counts: _Counts,
) -> Iterator[dict[str, Any]]:
    """Write what stays, and yield a line of the change log for every row dropped or changed."""
    reader: Reader | None = None
    seen: set[int] = set()
    for number, where, row, comparison in open_source(source).rows:
        counts.rows += 1
        named = renamed_row(source, row)
        reader = reader or choose_reader(named, where=where, name=source.format)
        if drop_N[number - 1]:
            check = CHECKS[drop_N[number - 1] - 1]
            yield _dropped(where, check.name, check.why, counts)
            continue
        repaired, done = _repaired(source, row, reader, comparison)
        if not done:
            counts.kept += 1
            seen.add(row_key(comparison))
            write(as_line(row))
            continue
        again = to_comparison(
            reader,
            renamed_row(source, repaired),
            number=number,
            where=where,
            source=comparison.source,
        )
        reason = why_untrainable(again) if why_untrainable(comparison) is None else None
        if reason is not None:
            yield _dropped(where, reason, f"After the repair: {EXPLANATIONS[reason]}.", counts)
        elif row_key(again) in seen:
            yield _dropped(
                where, "exact_duplicates", "After the repair: equal to an earlier row.", counts
            )
        else:
            seen.add(row_key(again))
            counts.changed_rows += 1
            counts.changed.update(done)
            write(as_line(repaired))
            yield {
                "where": where,
                "action": "changed",
                "reason": ", ".join(done),
                "before": _sha256(row),
                "after": _sha256(repaired),
            }


def _dropped(where: str, reason: str, why: str, counts: _Counts) -> dict[str, Any]:
    counts.dropped[reason] += 1
    return {"where": where, "action": "dropped", "reason": reason, "why": why}


def _repaired(
    source: Source, row: Mapping[str, Any], reader: Reader, comparison: Comparison
) -> tuple[dict[str, Any], list[str]]:
    """The row with its texts repaired, and the checks that needed it."""
    read = {source.columns.get(name, name) for name in (*reader.columns, *reader.optional)}
    keys = _TEXT_KEYS | {source.tags.get("content_tag")}
    done: list[str] = []
    repaired = dict(row)
    bits = problems(comparison)
    for name, repair in REPAIRS.items():
        if not bits & (1 << list(PROBLEMS).index(name)):
            continue
        new = {
            column: _each_text(value, repair, keys) if column in read else value
            for column, value in repaired.items()
        }
        if new != repaired:
            repaired, done = new, [*done, name]
    return repaired, done


_TEXT_KEYS: Final[frozenset[str | None]] = frozenset(
    {"content", "text", "value", "answer", "response", "completion", "full_text"}
)
"""Keys under which formats keep texts, or lists of messages, inside a column."""


def _each_text(value: Any, repair: Repair, keys: frozenset[str | None]) -> Any:
    """The value with its texts repaired; roles, types and other keys are names and stay."""
    if isinstance(value, str):
        return repair(value)
    if isinstance(value, list):
        return [_each_text(item, repair, keys) for item in value]
    if isinstance(value, dict):
        return {
            key: _each_text(item, repair, keys) if key in keys else item
            for key, item in value.items()
        }
    return value


def _sha256(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(as_line(row).encode("utf-8", "surrogatepass")).hexdigest()


assert set(REPAIRS) == {check.name for check in CHECKS if check.fix == "repair"}
