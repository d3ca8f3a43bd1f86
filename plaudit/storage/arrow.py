"""Rows in Arrow files, read in place, and the cache folder that keeps such files.

Sequences are lazy: their memory does not grow with the file. A cache entry is ``<name>.arrow`` and
``<name>.json``, which comes last and holds the inputs it was made from and checksums. Deleting any
of it, at any time, costs nothing but making it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import tempfile
import time
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from plaudit.errors import OutputError
from plaudit.storage.atomic import write_json
from plaudit.storage.manifest import checksum, checksum_of

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("plaudit")

RowArray = npt.NDArray[np.int64]
Record = TypeVar("Record")

BATCH_ROWS = 512
"""Rows of each record batch of a file; the last one may have fewer."""

_KEPT_BYTES = 128 << 20
# Linux maps the cached pages around a page that is read: 64 KiB of them.
_LEAST_BYTES = 64 << 10


class MappedTable:
    """The record batches of one Arrow file, mapped read-only.

    Pages that were read stay resident while a file is mapped, so a walk over a large file would
    grow to its size. They are handed back to the system every 128 MiB; those needed again come
    from its page cache.

    ``key`` says what the rows are; ``record`` holds what was noted beside them.
    """

    def __init__(self, path: Path, *, key: str, record: dict[str, Any]) -> None:
        import pyarrow as pa

        self.key = key
        self.record = record
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
        self.schema: pa.Schema = reader.schema
        self._batches: list[pa.RecordBatch] = [
            reader.get_batch(number) for number in range(reader.num_record_batches)
        ]
        self.rows = sum(batch.num_rows for batch in self._batches)
        self._views: dict[tuple[str, int], Any] = {}
        self._read = 0

    def column(self, name: str) -> npt.NDArray[Any]:
        """A copy of a column of numbers or truth values, of all rows."""
        parts = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches]
        dtype = self.schema.field(name).type.to_pandas_dtype()
        return np.concatenate(parts) if parts else np.zeros(0, dtype)

    def lengths(self, name: str) -> npt.NDArray[np.int64]:
        """The number of items in each row of a list column."""
        offsets = [_offsets_and_values(batch.column(name))[0] for batch in self._batches]
        parts = [np.diff(array).astype(np.int64) for array in offsets]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def number(self, name: str, row: int) -> Any:
        """One value of a column of numbers."""
        view, inside = self._view(name, row, _numbers)
        return view[inside]

    def items(self, name: str, row: int) -> npt.NDArray[Any]:
        """The items of one row of a list column, as a view of the file."""
        (offsets, values), inside = self._view(name, row, _offsets_and_values)
        items: npt.NDArray[Any] = values[offsets[inside] : offsets[inside + 1]]
        self._count(items.nbytes)
        return items

    def text(self, name: str, row: int) -> str:
        """One value of a text column."""
        batch, inside = divmod(row, BATCH_ROWS)
        return str(self._batches[batch].column(name)[inside].as_py())

    def _view(self, name: str, row: int, make: Callable[[Any], Any]) -> tuple[Any, int]:
        """What is made of the column of the batch that holds ``row``, and its place in it."""
        batch, inside = divmod(row, BATCH_ROWS)
        view = self._views.get((name, batch))
        if view is None:
            view = self._views[name, batch] = make(self._batches[batch].column(name))
        return view, inside

    def _count(self, size: int) -> None:
        self._read += max(size, _LEAST_BYTES)
        if self._read > _KEPT_BYTES:
            self._read = 0
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)


def _numbers(column: Any) -> npt.NDArray[Any]:
    numbers: npt.NDArray[Any] = column.to_numpy()
    return numbers


def _offsets_and_values(column: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if hasattr(column, "values"):
        return column.offsets.to_numpy(), column.values.to_numpy()
    _, offsets, data = column.buffers()  # of text, its bytes
    return np.frombuffer(offsets, np.int64), np.frombuffer(data or b"", np.uint8)


class StoredRows(Sequence[Record], Generic[Record]):
    """Records out of mapped tables, made when asked for; equal to the list of its records.

    ``rows_N`` holds, per record, its row number in all tables end to end. A slice or
    :meth:`take` is another view, which copies no record.
    """

    def __init__(self, tables: Sequence[MappedTable], rows_N: RowArray | None = None) -> None:
        self.tables = tuple(tables)
        self.starts = list(accumulate((table.rows for table in self.tables), initial=0))
        self.rows_N = np.arange(self.starts[-1], dtype=np.int64) if rows_N is None else rows_N

    @abstractmethod
    def _record(self, table: MappedTable, row: int, position: int) -> Record:
        """The record in ``row`` of ``table``, which stands at ``position`` of this sequence."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The records of all parts, one part after the other."""
        tables = list({id(table): table for part in parts for table in part.tables}.values())
        starts = accumulate((table.rows for table in tables), initial=0)
        start_of = dict(zip(map(id, tables), starts, strict=False))
        rows = [np.zeros(0, np.int64)]
        for part in parts:
            moved = [
                start_of[id(table)] - start
                for table, start in zip(part.tables, part.starts, strict=False)
            ]
            number_N = np.searchsorted(part.starts[1:], part.rows_N, side="right")
            rows.append(part.rows_N + np.asarray([*moved, 0])[number_N])
        return cls(tables, np.concatenate(rows))

    def take(self, positions: Any) -> Self:
        """The records at these positions (an index array, a mask or a slice)."""
        return type(self)(self.tables, self.rows_N[positions])

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column of numbers, of the records of this sequence in their order."""
        columns = [table.column(name) for table in self.tables]
        return np.concatenate(columns)[self.rows_N] if columns else np.zeros(0)

    def lengths(self, name: str) -> npt.NDArray[np.int64]:
        """The number of items in a list column, of the records of this sequence in their order."""
        columns = [table.lengths(name) for table in self.tables]
        return np.concatenate(columns)[self.rows_N] if columns else np.zeros(0, np.int64)

    def by_table(self) -> Iterator[tuple[MappedTable, RowArray]]:
        """Per table the different rows of it that are in this sequence, in the file's order."""
        different = np.unique(self.rows_N)
        for number, table in enumerate(self.tables):
            start, end = np.searchsorted(different, self.starts[number : number + 2])
            yield table, different[start:end] - self.starts[number]

    def __len__(self) -> int:
        return len(self.rows_N)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Record | Self:
        if isinstance(index, slice):
            return self.take(index)
        row = int(self.rows_N[index])
        number = bisect_right(self.starts, row) - 1
        position = index if index >= 0 else index + len(self)
        return self._record(self.tables[number], row - self.starts[number], position)

    def __iter__(self) -> Iterator[Record]:
        return (self[position] for position in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[Sequence[Any]]) -> None:
    """An Arrow file of rows, each with one value for every column of the schema."""
    import pyarrow as pa

    def batches() -> Iterator[pa.RecordBatch]:
        rest = iter(rows)
        while batch := list(islice(rest, BATCH_ROWS)):
            yield pa.record_batch(list(zip(*batch, strict=True)), schema=schema)

    write_batches(path, schema, batches())


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """An Arrow file of batches of :data:`BATCH_ROWS` rows each, the last with fewer."""
    import pyarrow as pa

    short = False
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            assert not short, "only the last batch may be short: rows are located by division"
            short = batch.num_rows < BATCH_ROWS
            writer.write_batch(batch)


# ---- the cache ----------------------------------------------------------------------------------

CACHE_VARIABLE = "PLAUDIT_CACHE"
"""Environment variable: the folder, or ``off`` to keep nothing."""

UNUSED_DAYS = 30
"""Entries that nothing has read for so long go when a new one is made."""

Build = Callable[[Path], Mapping[str, Any]]
"""Writes the Arrow file at the path it gets, and returns what is to be noted beside it (JSON)."""


def cache_folder() -> Path | None:
    """``$PLAUDIT_CACHE``, else ``plaudit`` in the user's cache folder; None where it is off."""
    setting = os.environ.get(CACHE_VARIABLE)
    if setting is not None and setting.lower() == "off":
        return None
    if setting:
        return Path(setting).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "plaudit"


def cached(kind: str, inputs: Mapping[str, Any], build: Build) -> MappedTable:
    """The table made from ``inputs``, out of the cache or built now; damaged entries are rebuilt.

    Of processes that want the same entry, one builds and the others wait. A build that fails or
    is killed leaves no entry. Where the folder cannot be written, or the cache is off, the table
    lives in a temporary file that is gone with this process.

    Raises:
        OutputError: the disk is full.
    """
    from filelock import FileLock

    inputs = json.loads(json.dumps(inputs))
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
    name = f"{kind}-{key}"
    folder = cache_folder()
    with contextlib.ExitStack() as stack:
        if folder is None or not _writable(folder):
            # The mapping outlives the file's name.
            temporary = tempfile.TemporaryDirectory(prefix="plaudit-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(temporary))
        stack.enter_context(FileLock(folder / f".{name}.lock"))
        table = _open(folder / name, key, inputs)
        if table is None:
            _remove_unused(folder)
            _make(folder / name, inputs, build)
            table = _open(folder / name, key, inputs)
        if table is None:
            raise OutputError(
                f"{folder / name}.arrow does not contain what was written; check that disk, or"
                f" set {CACHE_VARIABLE} to a folder on another disk."
            )
        return table


def code_digest(*paths: Path) -> str:
    """SHA-256 of source files: what made an entry is part of its key."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()


def _writable(folder: Path) -> bool:
    try:
        # Private: the entries hold the texts of the data.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        logger.warning(
            "The cache folder %s cannot be written (%s), so nothing is cached; set %s to another"
            " folder.",
            folder,
            error.strerror or error,
            CACHE_VARIABLE,
        )
        return False


def _make(path: Path, inputs: Mapping[str, Any], build: Build) -> None:
    partial, arrow = path.with_name(f".{path.name}.partial"), path.with_name(f"{path.name}.arrow")
    try:
        note = {"inputs": inputs, "record": build(partial), "xxh3_128": checksum(partial)}
        partial.replace(arrow)
        write_json(path.with_name(f"{path.name}.json"), {**note, "note": checksum_of(note)})
    except OSError as error:
        raise OutputError(
            f"{arrow} could not be written ({error.strerror or error}); free some space, or set "
            f"{CACHE_VARIABLE} to a folder on another disk."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _open(path: Path, key: str, inputs: Mapping[str, Any]) -> MappedTable | None:
    """The entry, or None where there is none or where it is damaged, which is logged."""
    arrow, path = path.with_name(f"{path.name}.arrow"), path.with_name(f"{path.name}.json")
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if note.pop("note") != checksum_of(note) or note["xxh3_128"] != checksum(arrow):
            raise ValueError("its checksum is wrong")
        if note["inputs"] != inputs:
            return None
        table = MappedTable(arrow, key=key, record=note["record"])
        for file in (arrow, path):
            os.utime(file)
        return table
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # pyarrow's errors are ValueErrors.
        logger.warning("The cache entry %s is damaged (%s) and is rebuilt.", arrow, error)
        return None


def _remove_unused(folder: Path) -> None:
    """What nothing has read for a month, and what killed builds left."""
    oldest = time.time() - UNUSED_DAYS * 86400
    for file in folder.iterdir():
        name = file.name.removeprefix(".")
        # A lock file may be held; it is empty.
        if name.startswith(("comparisons-", "trees-")) and file.suffix != ".lock":
            with contextlib.suppress(OSError):
                if file.stat().st_mtime < oldest:
                    file.unlink()
