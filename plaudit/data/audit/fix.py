"""The cleaned copy: the rows of a file without those that the audit drops, texts repaired.

Beside it lies a change log with one line for every row dropped or changed. Nothing else changes:
columns, their order and their values stay.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.data.audit.checks import CHECKS
from plaudit.data.audit.measure import (
    PROBLEMS,
    row_key,
    without_control_characters,
    without_special_tokens,
)
from plaudit.data.formats.readers import renamed_row, to_comparison
from plaudit.data.formats.records import Reader
from plaudit.data.load import open_source
from plaudit.data.reasons import EXPLANATIONS, learned_labels, why_untrainable
from plaudit.data.sources.files import as_line, row_file_ending, write_rows
from plaudit.recipe.objectives import LearnsFrom
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import check_new_file, write_atomically
from plaudit.types import Comparison

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
    return out.with_name(f"{out.name}.changes.jsonl")


def write_cleaned(
    source: Source,
    out: Path,
    drop_N: npt.NDArray[np.uint8],
    on_rows: Callable[[int], None] = lambda done: None,
    *,
    loss: str = "bradley_terry",
) -> CleanedCopy:
    """Write the rows of ``source`` that stay, with repaired texts, and the change log.

    ``drop_N`` is that of an audit of this source alone, and ``loss`` its objective. A row that the
    repair makes untrainable, or equal to another, is dropped too.

    Raises:
        DataError: the source cannot be read, or cannot be written in the format of ``out``.
        OutputError: the disk.
    """
    check_cleaned(out)
    learns_from = learned_labels(loss)
    actions: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {"changed": Counter(), "dropped": Counter()}

    def rows_and_log(log_path: Path) -> Iterator[dict[str, Any]]:
        """The rows that stay. After the last one the log is complete."""
        with log_path.open("w", encoding="utf-8") as log:
            for row, change in _outcomes(source, drop_N, learns_from):
                actions["kept" if change is None else change["action"]] += 1
                if change is not None:
                    reasons[change["action"]].update(change["reason"].split(", "))
                    log.write(json.dumps(change, ensure_ascii=False) + "\n")
                    on_rows(actions.total())
                if row is not None:
                    yield row

    write_atomically(change_log_of(out), lambda log_path: write_rows(out, rows_and_log(log_path)))
    return CleanedCopy(
        path=str(out),
        change_log=str(change_log_of(out)),
        rows=actions.total(),
        kept=actions["kept"],
        changed_rows=actions["changed"],
        changed=dict(reasons["changed"]),
        dropped_rows=actions["dropped"],
        dropped=dict(reasons["dropped"]),
    )


def _outcomes(
    source: Source, drop_N: npt.NDArray[np.uint8], learns_from: LearnsFrom
) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """For each row what stays of it, and its entry in the change log if it changes or goes."""
    opened = open_source(source)
    seen: set[int] = set()
    for number, where, row, comparison in opened.rows:
        if drop_N[number - 1]:
            check = CHECKS[drop_N[number - 1] - 1]
            yield None, _dropped(where, check.name, check.why)
            continue
        repaired, done = _repaired(source, row, opened.reader, comparison)
        if not done:
            seen.add(row_key(comparison))
            yield row, None
            continue
        again = to_comparison(
            opened.reader,
            renamed_row(source, repaired),
            number=number,
            where=where,
            source=comparison.source,
        )
        reason = why_untrainable(again, learns_from)
        if why_untrainable(comparison, learns_from) is not None:
            reason = None
        if reason is not None:
            yield None, _dropped(where, reason, f"After the repair: {EXPLANATIONS[reason]}.")
        elif row_key(again) in seen:
            why = "After the repair: a duplicate of an earlier row."
            yield None, _dropped(where, "exact_duplicates", why)
        else:
            seen.add(row_key(again))
            change = {"where": where, "action": "changed", "reason": ", ".join(done)}
            yield repaired, {**change, "before": _sha256(row), "after": _sha256(repaired)}


def _dropped(where: str, reason: str, why: str) -> dict[str, Any]:
    return {"where": where, "action": "dropped", "reason": reason, "why": why}


def _repaired(
    source: Source, row: Mapping[str, Any], reader: Reader, comparison: Comparison
) -> tuple[dict[str, Any], list[str]]:
    """The row with its texts repaired, and the checks that needed it."""
    read = {source.columns.get(name, name) for name in (*reader.columns, *reader.optional)}
    keys = _TEXT_KEYS | {source.tags.get("content_tag")}
    done: list[str] = []
    repaired = dict(row)
    for name, repair in REPAIRS.items():
        if not PROBLEMS[name](comparison):
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
