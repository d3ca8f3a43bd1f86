"""All rows of all sources in one Arrow file, so that any of them is at hand and none in memory."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from plaudit.data.store import decode, encode
from plaudit.data.unread import UnreadColumns, UnreadCounter
from plaudit.storage.arrow import BATCH_ROWS, MappedTable, cache_folder, write_rows
from plaudit.storage.atomic import writing
from plaudit.types import Comparison

if TYPE_CHECKING:
    import pyarrow as pa

ABANDONED_SECONDS = 2 * 86400

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Hears what is being done, how many rows of it are done, and of how many (None: not known)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Comparisons to audit or to compare with: ``kind`` says which.

    ``data`` is looked over. ``eval`` is held-out data of the same task, whose prompts must not be
    in ``data``; ``suite`` a published benchmark. ``rows`` is read once; ``counter`` then knows
    what was not read of them.
    """

    name: str
    path: str
    kind: str
    format: str | None
    fingerprint: str
    rows: Iterable[Comparison]
    counter: UnreadCounter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPart:
    """A part whose rows are those from ``start`` up to ``end`` of the file."""

    name: str
    path: str
    kind: str
    format: str | None
    fingerprint: str
    start: int
    end: int
    unread: UnreadColumns

    @property
    def count(self) -> int:
        return self.end - self.start


class AuditRows:
    """The rows of all parts, end to end, those of kind ``data`` first."""

    def __init__(self, table: MappedTable, parts: tuple[StoredPart, ...]) -> None:
        self.table = table
        self.parts = parts

    def __len__(self) -> int:
        return int(self.table.rows)

    def __getitem__(self, row: int) -> Comparison:
        return decode(self.table.items("comparison", row))

    def where(self, row: int) -> str:
        """Where a row stands in its input."""
        return self.table.text("where", row)

    @property
    def data(self) -> int:
        """How many of the rows, from the first, are looked over."""
        return max((part.end for part in self.parts if part.kind == "data"), default=0)


def work_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for the files of one audit: in the cache where there is one, gone afterwards.

    The folder for temporary files may lie in memory.
    """
    folder = cache_folder()
    if folder is not None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_abandoned(folder)
            return tempfile.TemporaryDirectory(
                prefix="audit-", dir=folder, ignore_cleanup_errors=True
            )
        except OSError:
            pass
    return tempfile.TemporaryDirectory(prefix="plaudit-audit-", ignore_cleanup_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """What killed audits left."""
    for path in folder.glob("audit-*"):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def store_rows(folder: Path, parts: Sequence[Part], on_progress: Progress) -> AuditRows:
    """Write every row of every part, in order.

    Raises:
        DataError: a source cannot be read, or a row has a value of the wrong type.
        OutputError: the disk.
    """
    parts = sorted(parts, key=lambda part: part.kind != "data")
    stored: list[StoredPart] = []
    count = 0

    def all_rows() -> Iterator[Comparison]:
        nonlocal count
        for part in parts:
            start = count
            for comparison in part.rows:
                count += 1
                if count % BATCH_ROWS == 0:
                    on_progress("reading", count, None)
                yield comparison
            stored.append(
                StoredPart(
                    name=part.name,
                    path=part.path,
                    kind=part.kind,
                    format=part.format,
                    fingerprint=part.fingerprint,
                    start=start,
                    end=count,
                    unread=UnreadColumns() if part.counter is None else part.counter.total,
                )
            )

    path = folder / "rows.arrow"
    with writing(path):
        write_rows(path, _schema(), ((encode(one), one.where) for one in all_rows()))
    return AuditRows(MappedTable(path, key="audit", record={}), tuple(stored))


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("comparison", pa.large_binary()), ("where", pa.string())])
