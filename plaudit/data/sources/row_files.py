"""Files of rows as they are written: one row at a time, the kind of file by the ending of its name.

To add a kind, write a function that makes it of a file of JSON lines and add a row to
:data:`ROW_FILES`.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any, Final

from plaudit.errors import DataError, OutputError
from plaudit.storage.atomic import write_atomically

BATCH_ROWS: Final = 512


def row_file_ending(out: Path, option: str = "--out") -> str:
    """The ending of a name by which the kind of file is known; ``option`` gave the name.

    Raises:
        OutputError: it is none of :data:`ROW_FILES`.
    """
    for ending in ROW_FILES:
        if out.name.lower().endswith(ending):
            return ending
    raise OutputError(
        f"{option} {out} has an unknown ending; expected one of {', '.join(ROW_FILES)}."
    )


def write_rows(out: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write the rows, the whole file or nothing; how many there were.

    Raises:
        OutputError: an unknown ending, or it cannot be written.
        DataError: rows that the kind of file cannot hold, or whatever ``rows`` raises.
    """
    ending = row_file_ending(out)
    count = 0

    def write(temporary: Path) -> None:
        nonlocal count
        lines = temporary.with_name(f"{temporary.name}.rows")
        try:
            with lines.open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(as_line(row))
                    count += 1
            ROW_FILES[ending](lines, temporary)
        finally:
            lines.unlink(missing_ok=True)

    write_atomically(out, write)
    return count


def as_line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON. Parquet holds dates and bytes, which become text."""
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _jsonl(rows: Path, temporary: Path) -> None:
    try:
        os.link(rows, temporary)
    except OSError:
        # Not every file system has hard links.
        shutil.copyfile(rows, temporary)


def _jsonl_gz(rows: Path, temporary: Path) -> None:
    # Neither the time nor the temporary name: equal rows give equal bytes.
    with (
        rows.open("rb") as plain,
        temporary.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
    ):
        shutil.copyfileobj(plain, packed)


def _json(rows: Path, temporary: Path) -> None:
    """One array, a row a line."""
    with rows.open(encoding="utf-8") as lines, temporary.open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            file.write(("[\n" if number == 0 else ",\n") + line.rstrip("\n"))
        file.write("\n]\n" if file.tell() else "[]\n")


def _csv(rows: Path, temporary: Path) -> None:
    """Lists and objects are JSON in their cell; null is an empty cell."""
    names = dict.fromkeys(name for batch in _batches(rows) for row in batch for name in row)
    with temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(names)
        for batch in _batches(rows):
            table.writerows([_cell(row.get(name)) for name in names] for row in batch)


def _cell(value: Any) -> Any:
    if isinstance(value, (bool, list, dict)):
        return json.dumps(value, ensure_ascii=False)
    return value


def _parquet(rows: Path, temporary: Path) -> None:
    """Row by row in two passes, as one batch need not show every column and type of the file.

    Raises:
        DataError: a column holds values of kinds that Parquet cannot keep together.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schemas = (_batch_schema(batch) for batch in _batches(rows))
        schema = reduce(
            lambda a, b: pa.unify_schemas([a, b], promote_options="permissive"), schemas
        )
        with pq.ParquetWriter(temporary, schema) as writer:
            for batch in _batches(rows):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        OverflowError,
    ) as error:
        raise DataError(
            f"the rows cannot be written as Parquet ({str(error).splitlines()[0]}); choose a "
            "name that ends in .jsonl."
        ) from error


def _batches(rows: Path) -> Iterator[list[dict[str, Any]]]:
    with rows.open(encoding="utf-8") as lines:
        while batch := [json.loads(line) for line in islice(lines, BATCH_ROWS)]:
            yield batch


def _batch_schema(batch: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    names = dict.fromkeys(name for row in batch for name in row)
    return pa.schema([(name, pa.array([row.get(name) for row in batch]).type) for name in names])


ROW_FILES: Final[dict[str, Callable[[Path, Path], None]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl_gz,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""Ending to the function ``(file of JSON lines, file to write)``."""
