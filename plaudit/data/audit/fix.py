"""The cleaned copy: rows as they were read, but for those that the audit drops or mends.

Beside it lies a ledger, one line for every row dropped or changed. Nothing else is done to a row:
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

from plaudit.data.audit import chat
from plaudit.data.audit.checks import CHECKS
from plaudit.data.audit.columns import digest_of
from plaudit.data.formats.readers import choose_reader, renamed_row, to_comparison
from plaudit.data.formats.records import Reader
from plaudit.data.load import iterate
from plaudit.data.reasons import EXPLANATIONS, why_untrainable
from plaudit.data.sources.files import ROW_FILES, as_line, row_file_ending
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import check_new_file, write_atomically, writing
from plaudit.types import Comparison

LEDGER_SUFFIX: Final = ".ledger.jsonl"

Mend: TypeAlias = Callable[[str], str]

MENDS: Final[dict[str, Mend]] = {
    "special_tokens": chat.without_special_tokens,
    "bad_characters": chat.without_control_characters,
}
"""Name of a check whose rows are changed to what is done to each of their texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """What became of the rows: ``rows == kept + changed + sum(dropped.values())``."""

    path: str
    ledger: str
    rows: int
    kept: int
    changed: Mapping[str, int]
    changed_rows: int
    dropped: Mapping[str, int]

    def __post_init__(self) -> None:
        assert self.rows == self.kept + self.changed_rows + sum(self.dropped.values()), (
            "a row is unaccounted for"
        )

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "path": self.path,
            "ledger": self.ledger,
            "rows": self.rows,
            "kept": self.kept,
            "changed_rows": self.changed_rows,
            "changed": dict(self.changed),
            "dropped": dict(self.dropped),
        }


@dataclass(slots=True)
class _Counts:
    rows: int = 0
    kept: int = 0
    changed_rows: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def refuse_fix(out: Path) -> None:
    """Say early that the copy cannot be written there.

    Raises:
        OutputError: the file or its ledger exists, or its extension is unknown.
    """
    row_file_ending(out, "--fix")
    for path in (out, ledger_of(out)):
        check_new_file(path, option="--fix")


def ledger_of(out: Path) -> Path:
    """The ledger beside a cleaned copy."""
    return out.with_name(out.name + LEDGER_SUFFIX)


def write_fixed(
    source: Source,
    out: Path,
    verdict_N: npt.NDArray[np.uint8],
    on_rows: Callable[[int], None] = lambda done: None,
) -> Cleaned:
    """Write the rows of ``source`` that stay, mended where they need it, and the ledger.

    ``verdict_N`` is the audit's, of this source alone. A row that mending makes useless, or equal
    to another, is dropped too.

    Raises:
        DataError: the source cannot be read, or not be written as the kind of file asked for.
        OutputError: the disk.
    """
    refuse_fix(out)
    write = ROW_FILES[row_file_ending(out, "--fix")]
    counts = _Counts()
    with writing(out), _folder_beside(out) as name:
        rows_path, ledger_path = Path(name) / "rows", Path(name) / "ledger"
        with (
            rows_path.open("w", encoding="utf-8", errors="surrogatepass") as rows,
            ledger_path.open("w", encoding="utf-8") as ledger,
        ):
            for entry in _entries(source, verdict_N, rows.write, counts):
                ledger.write(json.dumps(entry, ensure_ascii=False) + "\n")
                on_rows(counts.rows)
        # Refuses rows that do not add up, before anything is written.
        cleaned = Cleaned(
            path=str(out),
            ledger=str(ledger_of(out)),
            rows=counts.rows,
            kept=counts.kept,
            changed=dict(counts.changed),
            changed_rows=counts.changed_rows,
            dropped=dict(counts.dropped),
        )
        write_atomically(out, lambda temporary: write(rows_path, temporary))
        write_atomically(ledger_of(out), ledger_path.rename)
    return cleaned


def _folder_beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    out.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent)


def _entries(
    source: Source,
    verdict_N: npt.NDArray[np.uint8],
    write: Callable[[str], Any],
    counts: _Counts,
) -> Iterator[dict[str, Any]]:
    """Write what stays, and yield a line of the ledger for every row dropped or changed."""
    reader: Reader | None = None
    seen: set[int] = set()
    for number, where, row, comparison in iterate(source):
        counts.rows += 1
        named = renamed_row(source, row)
        reader = reader or choose_reader(named, where=where, name=source.format)
        verdict = int(verdict_N[number - 1])
        if verdict:
            yield _dropped(where, CHECKS[verdict - 1].name, CHECKS[verdict - 1].why, counts)
            continue
        mended, done = _mended(source, row, reader, comparison)
        if not done:
            counts.kept += 1
            seen.add(_key(comparison))
            write(as_line(row))
            continue
        again = to_comparison(
            reader,
            renamed_row(source, mended),
            number=number,
            where=where,
            source=comparison.source,
        )
        reason = why_untrainable(again) if why_untrainable(comparison) is None else None
        if reason is not None:
            yield _dropped(where, reason, f"After mending: {EXPLANATIONS[reason]}.", counts)
        elif _key(again) in seen:
            yield _dropped(
                where, "exact_duplicates", "After mending: equal to a row before.", counts
            )
        else:
            seen.add(_key(again))
            counts.changed_rows += 1
            counts.changed.update(done)
            write(as_line(mended))
            yield {
                "where": where,
                "action": "changed",
                "reason": ", ".join(done),
                "before": _sha256(row),
                "after": _sha256(mended),
            }


def _dropped(where: str, reason: str, why: str, counts: _Counts) -> dict[str, Any]:
    counts.dropped[reason] += 1
    return {"where": where, "action": "dropped", "reason": reason, "why": why}


def _mended(
    source: Source, row: Mapping[str, Any], reader: Reader, comparison: Comparison
) -> tuple[dict[str, Any], list[str]]:
    """The row with its texts mended, and the names of the checks that this was for."""
    read = {source.columns.get(name, name) for name in (*reader.columns, *reader.optional)}
    keys = _TEXT_KEYS | {source.tags.get("content_tag")}
    done: list[str] = []
    mended = dict(row)
    bits = chat.problems(comparison)
    for name, mend in MENDS.items():
        if not bits & (1 << list(chat.PROBLEMS).index(name)):
            continue
        new = {
            column: _each_text(value, mend, keys) if column in read else value
            for column, value in mended.items()
        }
        if new != mended:
            mended, done = new, [*done, name]
    return mended, done


_TEXT_KEYS: Final[frozenset[str | None]] = frozenset(
    {"content", "text", "value", "answer", "response", "completion", "full_text"}
)
"""Keys under which formats keep texts, or lists of messages, inside a column."""


def _each_text(value: Any, mend: Mend, keys: frozenset[str | None]) -> Any:
    """The value with its texts mended; roles, types and other keys are names and stay."""
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, list):
        return [_each_text(item, mend, keys) for item in value]
    if isinstance(value, dict):
        return {
            key: _each_text(item, mend, keys) if key in keys else item
            for key, item in value.items()
        }
    return value


def _key(comparison: Comparison) -> int:
    """Equal for rows that say the same: prompt, responses and grades."""
    digests = [digest_of(response) for response in comparison.responses]
    graded = sorted(zip(digests, comparison.grades or (0.0,) * len(digests), strict=True))
    return hash((comparison.group, tuple(graded)))


def _sha256(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(as_line(row).encode("utf-8", "surrogatepass")).hexdigest()


assert set(MENDS) == {check.name for check in CHECKS if check.fix == "change"}
