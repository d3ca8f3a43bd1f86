"""Rows into files: one function per extension, from a file of one JSON object per line.

A row passes through that file first, so that no format needs all rows in memory.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from plaudit.errors import DataError, OutputError

Writer: TypeAlias = Callable[[Path, Path], None]
"""(file of one JSON object per line, file to write)"""

BATCH_ROWS = 512


def _write_jsonl(rows: Path, temporary: Path) -> None:
    try:
        os.link(rows, temporary)
    except OSError:
        # Not every file system has hard links.
        shutil.copyfile(rows, temporary)


def _write_jsonl_gz(rows: Path, temporary: Path) -> None:
    # Neither the time nor the temporary name: equal rows give equal bytes.
    with (
        rows.open("rb") as plain,
        temporary.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
    ):
        shutil.copyfileobj(plain, packed)


def _write_parquet(rows: Path, temporary: Path) -> None:
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
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"the rows cannot be written as Parquet ({str(error).splitlines()[0]}); choose a name "
            "that ends in .jsonl."
        ) from error


def _batches(rows: Path) -> Iterator[list[dict[str, Any]]]:
    with rows.open(encoding="utf-8") as lines:
        while batch := [json.loads(line) for line in islice(lines, BATCH_ROWS)]:
            yield batch


def _batch_schema(batch: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    names = dict.fromkeys(name for row in batch for name in row)
    return pa.schema([(name, pa.array([row.get(name) for row in batch]).type) for name in names])


def _write_json(rows: Path, temporary: Path) -> None:
    """An array of objects, one a line."""
    with rows.open(encoding="utf-8") as lines, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, line in enumerate(lines):
            file.write((",\n" if number else "\n") + line.rstrip("\n"))
        file.write("\n]\n")


def _write_csv(rows: Path, temporary: Path) -> None:
    """Columns in the order in which they first appear; what is no text is written as JSON."""
    names: dict[str, None] = {}
    for batch in _batches(rows):
        names |= dict.fromkeys(name for row in batch for name in row)
    with temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(names)
        for batch in _batches(rows):
            table.writerows([[_cell(row.get(name)) for name in names] for row in batch])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


WRITERS: dict[str, Writer] = {
    ".jsonl": _write_jsonl,
    ".jsonl.gz": _write_jsonl_gz,
    ".ndjson": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
"""Extension to its writer."""


def writer_of(out: Path, option: str = "--out") -> Writer:
    """The writer for a file's extension; ``option`` is what the user gave the name with.

    Raises:
        OutputError: there is none.
    """
    for suffix, writer in WRITERS.items():
        if out.name.endswith(suffix):
            return writer
    raise OutputError(
        f"{option} {out} has an unknown ending; expected one of {', '.join(WRITERS)}."
    )
