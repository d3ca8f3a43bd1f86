"""Files of rows, by the ending of their names: how each kind is read and how it is written.

To add a kind that is read, write a function ``(path, shown name) -> rows`` and add a row to
:data:`FILE_KINDS`; for one that is written, a function that makes it of a file of JSON lines and a
row in :data:`ROW_FILES`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, reduce
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

from plaudit.data.formats.values import is_messages, kind
from plaudit.errors import DataError, OutputError
from plaudit.storage.arrow import BATCH_ROWS
from plaudit.storage.atomic import write_atomically

Row: TypeAlias = dict[str, Any]
LocatedRow: TypeAlias = tuple[str, Row]

_WHITE_SPACE = re.compile(r"[ \t\r\n]*")


def file_kind(path: Path) -> str:
    """The extension in lower case, compression included: ``.jsonl.gz``, ``.parquet``."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes if set(suffixes[-1:]) & COMPRESSIONS.keys() else suffixes[-1:])


def known_kinds() -> str:
    packed = " or ".join(COMPRESSIONS)
    return f"{', '.join(_TEXT_KINDS)} (each also with {packed}), {' or '.join(_BATCH_KINDS)}"


# --- text ---------------------------------------------------------------------------------------


COMPRESSIONS: Final = {".gz": ("gzip", b"\x1f\x8b"), ".zst": ("zstd", b"\x28\xb5\x2f\xfd")}
"""Last extension of compressed text files: how they are compressed, and their first bytes."""


def _decompressed(path: Path, codec: str) -> BinaryIO:
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression=codec), 1 << 16)


def _byte_lines(path: Path, shown: str) -> Iterator[bytes]:
    ending = path.suffix.lower()
    codec, _ = COMPRESSIONS.get(ending, (None, b""))
    try:
        with path.open("rb") if codec is None else _decompressed(path, codec) as stream:
            yield from stream
    except OSError as error:
        # The system's own errors have a number; what decompressors raise has none.
        if codec is None or error.errno is not None:
            raise unreadable(shown, error) from error
        raise DataError(
            f"{shown} is not a complete {codec} file ({error}); compress it again, or remove "
            f"{ending} from its name if it is not compressed."
        ) from error


def unreadable(shown: str, error: Exception) -> DataError:
    return DataError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}.")


def _lines(path: Path, shown: str) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers; a byte order mark at the start is taken off."""
    for number, line in enumerate(_byte_lines(path, shown), start=1):
        for ending, (codec, magic) in COMPRESSIONS.items() if number == 1 else ():
            if line.startswith(magic):
                raise DataError(
                    f"{shown} is compressed with {codec} but its name does not say so; add "
                    f"{ending} to the name."
                )
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if "\0" in text:
                raise ValueError("zero bytes")
        except ValueError as error:
            raise DataError(f"{shown}:{number}: invalid UTF-8; save the file as UTF-8.") from error
        yield number, text


# --- JSON ---------------------------------------------------------------------------------------


def _read_jsonl(path: Path, shown: str) -> Iterator[LocatedRow]:
    for number, line in _lines(path, shown):
        if line.strip():
            yield _json_line(line, f"{shown}:{number}")


def _read_json(path: Path, shown: str) -> Iterator[LocatedRow]:
    """An array of objects; a file of one object per line is read as such, under any name."""
    lines = _lines(path, shown)
    first = True
    for number, line in lines:
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            # Blank lines in front keep the line numbers of everything after them.
            text = "\n" * (number - 1) + line + "".join(rest for _, rest in lines)
            yield from _json_array(text, shown)
            return
        first = False
        yield _json_line(line, f"{shown}:{number}")


def _json_line(line: str, where: str) -> LocatedRow:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _broken_json(error, where) from error
    return where, _as_row(value, line, where)


def _json_array(text: str, shown: str) -> Iterator[LocatedRow]:
    """The objects of one array, each with the line it starts on."""
    decode = json.JSONDecoder().raw_decode
    place = _skip(text, text.index("[") + 1)
    counted, line = 0, 1
    more = not text.startswith("]", place)
    while more:
        line, counted = line + text.count("\n", counted, place), place
        where = f"{shown}:{line}"
        try:
            value, end = decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _broken_json(error, f"{shown}:{getattr(error, 'lineno', line)}") from error
        yield where, _as_row(value, text[place:end], where)
        place = _skip(text, end)
        more = text.startswith(",", place)
        if more:
            place = _skip(text, place + 1)
        elif not text.startswith("]", place):
            line += text.count("\n", counted, place)
            raise DataError(f"{shown}:{line}: invalid JSON; expected a comma or ] after an object.")
    if text[place + 1 :].strip():
        raise DataError(
            f"{shown}: there is more text after the array; expected a single JSON array."
        )


def _skip(text: str, place: int) -> int:
    match = _WHITE_SPACE.match(text, place)
    return match.end() if match else place


def _broken_json(error: Exception, where: str) -> DataError:
    detail = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    detail = detail or ("nested too deeply" if isinstance(error, RecursionError) else str(error))
    return DataError(
        f"{where}: invalid JSON ({detail}); expected one object per line, or one array of "
        "objects in a .json file."
    )


def _as_row(value: Any, text: str, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f'{where}: found {kind(value)}; expected an object such as {{"chosen": …}}.'
        )
    try:
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can escape half of a surrogate pair, which no tokenizer can encode.
        raise DataError(
            f"{where}: a text has an unpaired surrogate (\\ud…), which is not a valid character; "
            "remove it."
        ) from error
    return value


# --- CSV and TSV --------------------------------------------------------------------------------

_TURNS: Final = (
    *("prompt", "chosen", "rejected", "completion", "messages", "rejected_response"),
    *("rejected_messages", "conversations", "context", "conversation_a", "conversation_b"),
    *("answers", "completions"),
)
_LISTS: Final = ("responses", "grades", "history", "output")
_NUMBERS: Final = (
    *(
        "margin",
        "weight",
        "soft_label",
        "label",
        "kto_tag",
        "labels",
        "score_chosen",
        "score_rejected",
        "score_0",
        "score_1",
    ),
    *("preference_strength", "overall_preference", "better_response_id"),
    *("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
)
_NULLABLE: Final = (
    *(*_NUMBERS, "grades", "attributes"),
    *("tools", "chat_template_kwargs", "id", "source"),
)


def _read_table(delimiter: str, path: Path, shown: str) -> Iterator[LocatedRow]:
    # The module's limit (131,072 characters a cell, for the whole process) is below long prompts.
    csv.field_size_limit(2**31 - 1)
    lines = (line for _, line in _lines(path, shown))
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 0
    try:
        for cells in table:
            if not cells:
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) != len(header):
                    raise DataError(
                        f"{shown}: the header has a duplicate column name; expected unique names."
                    )
                continue
            number += 1
            where = f"{shown}:row {number}"
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells, but the header has {len(header)} columns; "
                    f"quote texts that contain {_SEPARATORS[delimiter]} or line breaks."
                )
            yield where, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise DataError(f"{shown}:{table.line_num}: invalid CSV ({error}).") from error


_SEPARATORS: Final = {",": "commas", "\t": "tabs"}


def typed_cells(columns: Mapping[str, str | None], row: Row) -> Row:
    """A row whose cells under other names are read as the columns that they stand for."""
    ours_of = {theirs: ours for ours, theirs in columns.items() if theirs is not None}
    return {
        name: _cell(ours_of[name], value) if name in ours_of and isinstance(value, str) else value
        for name, value in row.items()
    }


def _cell(column: str, cell: str) -> Any:
    """What a cell stands for: nothing, a number, messages or a list; else the text it is."""
    if column in _NULLABLE and not cell.strip():
        return None
    if column in _NUMBERS:
        return _parsed(cell.strip().lower(), (int, float, bool), cell)
    if column in _LISTS:
        return _parsed(cell, (list,), cell)
    if column in _TURNS and cell.lstrip().startswith("["):
        value = _parsed(cell, (list,), cell)
        return value if is_messages(value) else cell
    return cell


def _parsed(cell: str, kinds: tuple[type, ...], otherwise: str) -> Any:
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return otherwise
    return value if isinstance(value, kinds) else otherwise


# --- Parquet and Arrow --------------------------------------------------------------------------


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        yield from table.iter_batches(batch_size=1024)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Batches of a stream (what ``datasets`` writes) or of Arrow's file format."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        if not is_file:
            yield from pa.ipc.open_stream(mapped)
            return
        table = pa.ipc.open_file(mapped)
        yield from map(table.get_batch, range(table.num_record_batches))


def _read_batches(
    format_: str, batches: Callable[[Path], Iterable[Any]], path: Path, shown: str
) -> Iterator[LocatedRow]:
    import pyarrow as pa

    rows = chain.from_iterable(batch.to_pylist() for batch in batches(path))
    try:
        for number, row in enumerate(rows, start=1):
            yield f"{shown}:row {number}", without_filling(row)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{shown} cannot be read as {format_}: {reason}.") from error


ReadFile: TypeAlias = Callable[[Path, str], Iterator[LocatedRow]]

_TEXT_KINDS: Final[dict[str, ReadFile]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": partial(_read_table, ","),
    ".tsv": partial(_read_table, "\t"),
}
TABLE_KINDS: Final = (".csv", ".tsv")

_BATCH_KINDS: Final[dict[str, ReadFile]] = {
    ".parquet": partial(_read_batches, "Parquet", _parquet_batches),
    ".arrow": partial(_read_batches, "Arrow", _arrow_batches),
}

FILE_KINDS: Final[dict[str, ReadFile]] = {
    **{
        kind + compression: read
        for kind, read in _TEXT_KINDS.items()
        for compression in ("", *COMPRESSIONS)
    },
    **_BATCH_KINDS,
}
"""Extension to the function ``(path, shown name) -> rows``."""


def without_filling(row: dict[str, Any]) -> dict[str, Any]:
    """Drop the nulls inside nested values: Arrow gives every object of a column every key."""
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


# --- files that are written ---------------------------------------------------------------------


def row_file_ending(out: Path, option: str = "--out") -> str:
    """The ending of a name by which the kind of file is known; ``option`` gave the name.

    Raises:
        OutputError: it is none of :data:`ROW_FILES`.
    """
    for ending in ROW_FILES:
        if out.name.lower().endswith(ending):
            return ending
    raise OutputError(
        f"{option} {out} has an unknown file extension; expected one of {', '.join(ROW_FILES)}."
    )


def write_rows(out: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows, the whole file or nothing.

    Raises:
        OutputError: an unknown ending, or it cannot be written.
        DataError: rows that the kind of file cannot hold, or what ``rows`` raises.
    """
    make_file = ROW_FILES[row_file_ending(out)]

    def write(temporary: Path) -> None:
        lines = temporary.with_name(f"{temporary.name}.rows")
        try:
            with lines.open("w", encoding="utf-8") as file:
                file.writelines(map(as_line, rows))
            make_file(lines, temporary)
        finally:
            lines.unlink(missing_ok=True)

    write_atomically(out, write)


def as_line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON. Parquet holds dates and bytes, which become text."""
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


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


def _write_json(rows: Path, temporary: Path) -> None:
    """One array, a row a line."""
    with rows.open(encoding="utf-8") as lines, temporary.open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            file.write(("[\n" if number == 0 else ",\n") + line.rstrip("\n"))
        file.write("\n]\n" if file.tell() else "[]\n")


def _write_csv(rows: Path, temporary: Path) -> None:
    """Lists and objects are JSON in their cell; null is an empty cell."""
    names = dict.fromkeys(name for batch in _batches(rows) for row in batch for name in row)
    with temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(names)
        for batch in _batches(rows):
            table.writerows([_csv_cell(row.get(name)) for name in names] for row in batch)


def _csv_cell(value: Any) -> Any:
    if isinstance(value, (bool, list, dict)):
        return json.dumps(value, ensure_ascii=False)
    return value


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
    except (pa.ArrowException, OverflowError) as error:
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
    ".jsonl": _write_jsonl,
    ".jsonl.gz": _write_jsonl_gz,
    ".ndjson": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
"""Ending to the function ``(file of JSON lines, file to write)``."""
