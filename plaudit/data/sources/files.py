"""Rows, each with the place it stands, out of files and folders (and, through hub.py, the Hub)."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias

from plaudit import registry
from plaudit.data.sources import documentation, hub
from plaudit.errors import DataError, did_you_mean, printable
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import existing_path, names_in

Row: TypeAlias = dict[str, Any]
LocatedRow: TypeAlias = tuple[str, Row]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")

STDIN: Final = "-"
"""The path that means standard input: JSON Lines, or one array of objects."""


def resolve(source: Source) -> Source:
    """The source that an entry of a tool's description of data sets stands for; others as they are.

    Raises:
        DataError: the description or its entry cannot be used here.
    """
    description = Path(source.path).name.partition(":")[0]
    if description not in registry.names("data_source"):
        return source
    described: Source = registry.find("data_source", description)(source)
    return described


def read_rows(source: Source) -> Iterator[LocatedRow]:
    """Yield ``(where, row)`` for every row of a file, a folder of files, a dataset that
    ``datasets`` saved to disk, standard input, a Hub dataset or the embedded documentation set.

    ``where`` is the path as the user wrote it and a line (``pairs.jsonl:17``), or a row number
    where lines mean nothing (``pairs.parquet:row 17``); both count from 1. JSON Lines, CSV,
    Parquet and Arrow are streamed. Files of a folder come in the order of their names.

    Raises:
        DataError: nothing is there, a file cannot be read as what its name says, or it is empty.
    """
    if documentation.is_documentation(source):
        yield from documentation.read_rows(source)
        return
    files = local_files(source)
    if files is None:
        yield from hub.read_rows(source)
        return
    for path, shown in files:
        empty = True
        for where, row in FILE_KINDS[_kind(path)](path, shown):
            empty = False
            yield where, _cells(source, row) if _kind(path).startswith(_TABLES) else row
        if empty:
            raise DataError(f"{shown} holds no rows; expected at least one comparison.")


def local_files(source: Source) -> tuple[tuple[Path, str], ...] | None:
    """The files a source names, each with the name to show; ``None`` when it is a Hub id.

    Raises:
        DataError: it is neither, or none of the files has a known extension.
    """
    path = existing_path(source.path)
    parts = {"split": source.split, "subset": source.subset, "folder": source.folder}
    files: tuple[tuple[Path, str], ...]
    if source.path == STDIN:
        files = ((_standard_input(), "stdin"),)
    elif path is None:
        if _HUB_ID.fullmatch(source.path) and not _means_a_file(Path(source.path)):
            return None
        raise DataError(_missing(source.path))
    elif (path / _SAVED_SPLITS).is_file():
        files = _files_of_folder(*_saved_split(path, source))
        del parts["split"]
    elif path.is_dir():
        files = _files_of_folder(path, source.path)
    else:
        files = ((path, source.path),)
        if _kind(path) not in FILE_KINDS:
            raise DataError(f"{source.path} has no known extension; expected {_known()}.")
    if any(part is not None for part in parts.values()) or source.stream:
        raise DataError(
            f"{source.path} is on this machine, and `split`, `subset`, `folder` and `stream` are"
            " for Hub datasets only; remove them."
        )
    return files


def fingerprint(source: Source) -> str:
    """What the rows came from: ``sha256:…`` of the file bytes, or the revision on the Hub.

    A folder's is the SHA-256 over the names and SHA-256 values of its data files.
    """
    if documentation.is_documentation(source):
        return documentation.fingerprint(source)
    files = local_files(source)
    if files is None:
        return hub.fingerprint(source)
    digests = [(path.name, _sha256(path, shown)) for path, shown in files]
    if Path(source.path).expanduser().is_dir():
        listing = "".join(f"{digest}  {name}\n" for name, digest in digests)
        return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
    return f"sha256:{digests[0][1]}"


def source_name(source: Source) -> str:
    """The name given, else the file name without extensions, else the Hub id."""
    if source.name is not None:
        return source.name
    if documentation.is_documentation(source):
        return documentation.SCHEME.rstrip(":")
    if source.path == STDIN:
        return "stdin"
    path = existing_path(source.path)
    if path is None:
        return source.path
    return path.resolve().name if path.is_dir() else path.name.removesuffix(_kind(path))


def _sha256(path: Path, shown: str) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(shown, error) from error


def _kind(path: Path) -> str:
    """The extension in lower case, compression included: ``.jsonl.gz``, ``.parquet``."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes if set(suffixes[-1:]) & COMPRESSIONS.keys() else suffixes[-1:])


def _known() -> str:
    packed = " or ".join(COMPRESSIONS)
    return f"{', '.join(_TEXT_KINDS)} (each also with {packed}), {' or '.join(_BATCH_KINDS)}"


def _files_of_folder(folder: Path, shown: str) -> tuple[tuple[Path, str], ...]:
    if all((folder / name).is_file() for name in (_SAVED_TABLE, _SAVED_INFO)):
        files = _saved_files(folder, shown)
    else:
        files = sorted(
            path
            for path in folder.iterdir()
            if path.is_file() and not path.name.startswith(".") and _kind(path) in FILE_KINDS
        )
    if not files:
        raise DataError(f"the folder {shown} holds no data file; expected {_known()}.")
    return tuple((path, f"{shown.rstrip('/')}/{path.name}") for path in files)


_SAVED_TABLE: Final = "state.json"
_SAVED_INFO: Final = "dataset_info.json"
_SAVED_SPLITS: Final = "dataset_dict.json"
"""What ``Dataset.save_to_disk`` (the first two) and ``DatasetDict.save_to_disk`` write beside the
Arrow files. Other programs name files ``state.json`` too."""


def _saved_files(folder: Path, shown: str) -> list[Path]:
    """The files of a saved ``Dataset`` in its order; what ``map`` cached beside them is not its.

    Raises:
        DataError: its description is broken or names a file that is not there.
    """
    try:
        state = json.loads((folder / _SAVED_TABLE).read_text(encoding="utf-8"))
        files = [folder / str(file["filename"]) for file in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{shown}/{_SAVED_TABLE} does not list the files of a dataset ({error}); save the"
            " dataset to disk again."
        ) from error
    missing = [file.name for file in files if not file.is_file() or _kind(file) != ".arrow"]
    if missing:
        raise DataError(f"{shown} lacks {', '.join(missing)}; save the dataset to disk again.")
    return files


def _saved_split(folder: Path, source: Source) -> tuple[Path, str]:
    """The folder of one split of a saved ``DatasetDict``, and how to show it.

    Raises:
        DataError: there is no such split.
    """
    split = source.split or "train"
    splits = sorted(path.parent.name for path in folder.glob(f"*/{_SAVED_TABLE}"))
    if split not in splits:
        raise DataError(
            f"{source.path} has no split {split!r} (found: {', '.join(splits) or 'none'}); name one"
            f" with `split`, or give its folder: {source.path.rstrip('/')}/SPLIT."
        )
    return folder / split, f"{source.path.rstrip('/')}/{split}"


@cache
def _spool() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="plaudit-stdin-")


@cache
def _standard_input() -> Path:
    """Standard input as a file, since rows are read twice: to check them, then to use them.

    The file is deleted when the process ends.
    """
    path = Path(_spool().name) / "stdin.json"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def _means_a_file(path: Path) -> bool:
    """Whether a missing path of a Hub id's shape is a file's: it, or a file here, has an extension.

    ``data/pairs`` beside an existing ``data/pairs.jsonl`` is a forgotten extension.
    """
    beside = map(Path, names_in(path.parent))
    return _kind(path) in FILE_KINDS or any(
        entry.name == path.name + _kind(entry) and _kind(entry) in FILE_KINDS for entry in beside
    )


_PATH_CHARACTERS: Final = 200
"""Of a path that does not exist in a message: it may be a whole prompt."""


def _missing(named: str) -> str:
    path = Path(named)
    shown = printable(named, _PATH_CHARACTERS)
    if existing_path(str(path.parent)) is None:
        folder = printable(str(path.parent), _PATH_CHARACTERS)
        return f"{shown} does not exist: there is no folder {folder}."
    expected = "expected a file, a folder or a Hub dataset id (owner/name)."
    return f"{shown} does not exist; {did_you_mean(path.name, names_in(path.parent), expected)}"


# --- text ---------------------------------------------------------------------------------------


def _open_gzip(path: Path) -> BinaryIO:
    return gzip.open(path, "rb")  # type: ignore[return-value]


def _open_zstd(path: Path) -> BinaryIO:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))


class Compression(NamedTuple):
    """What people call it, the first bytes of its files, and the function that opens one."""

    name: str
    magic: bytes
    open: Callable[[Path], BinaryIO]


COMPRESSIONS: Final[dict[str, Compression]] = {
    ".gz": Compression("gzip", b"\x1f\x8b", _open_gzip),
    ".zst": Compression("Zstandard", b"\x28\xb5\x2f\xfd", _open_zstd),
}
"""Last extension of compressed text files."""


def _byte_lines(path: Path, shown: str) -> Iterator[bytes]:
    ending = path.suffix.lower()
    compression = COMPRESSIONS.get(ending)
    try:
        with path.open("rb") if compression is None else compression.open(path) as stream:
            yield from stream
    except (EOFError, zlib.error, OSError) as error:
        # The system's own errors have a number; what decompressors raise has none.
        if compression is None or getattr(error, "errno", None) is not None:
            raise _unreadable(shown, error) from error
        raise DataError(
            f"{shown} is not a complete {compression.name} file ({error}); compress it again, or"
            f" remove {ending} from its name if it is not compressed."
        ) from error


def _unreadable(shown: str, error: Exception) -> DataError:
    return DataError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}.")


def _lines(path: Path, shown: str) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers; a byte order mark at the start is taken off."""
    for number, line in enumerate(_byte_lines(path, shown), start=1):
        if number == 1:
            _check_uncompressed(line, shown)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(_not_text(shown, number)) from error
        if "\0" in text:
            raise DataError(_not_text(shown, number))
        yield number, text


def _check_uncompressed(line: bytes, shown: str) -> None:
    for ending, compression in COMPRESSIONS.items():
        if line.startswith(compression.magic):
            raise DataError(
                f"{shown} is compressed with {compression.name}; add {ending} to its name."
            )


def _not_text(shown: str, line: int) -> str:
    return f"{shown}:{line}: these bytes are not UTF-8 text; save the file as UTF-8."


# --- JSON ---------------------------------------------------------------------------------------


def _read_jsonl(path: Path, shown: str) -> Iterator[LocatedRow]:
    for number, line in _lines(path, shown):
        if line.strip():
            yield _json_line(line, f"{shown}:{number}")


def _read_json(path: Path, shown: str) -> Iterator[LocatedRow]:
    """An array of objects; a file of one object per line is read as such, whatever its name."""
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
        except json.JSONDecodeError as error:
            raise _broken_json(error, f"{shown}:{error.lineno}") from error
        except (ValueError, RecursionError) as error:
            raise _broken_json(error, where) from error
        yield where, _as_row(value, text[place:end], where)
        place = _skip(text, end)
        more = text.startswith(",", place)
        if more:
            place = _skip(text, place + 1)
        elif not text.startswith("]", place):
            line += text.count("\n", counted, place)
            raise DataError(f"{shown}:{line}: broken JSON; expected a comma or ] after an object.")
    if text[place + 1 :].strip():
        raise DataError(f"{shown}: there is more text after the array; expected one array only.")


def _skip(text: str, place: int) -> int:
    match = _WHITE_SPACE.match(text, place)
    return match.end() if match else place


def _broken_json(error: Exception, where: str) -> DataError:
    detail = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    detail = detail or ("nested too deeply" if isinstance(error, RecursionError) else str(error))
    return DataError(
        f"{where}: broken JSON ({detail}); expected one object per line, or one array of objects"
        " in a .json file."
    )


def _as_row(value: Any, text: str, where: str) -> Row:
    if not isinstance(value, dict):
        kinds = {list: "an array", str: "text", bool: "true or false", type(None): "null"}
        found = kinds.get(type(value), "a number")
        raise DataError(f'{where}: found {found}, expected an object such as {{"chosen": …}}.')
    if "\\ud" in text or "\\uD" in text:
        _refuse_half_characters(value, where)
    return value


def _refuse_half_characters(value: Row, where: str) -> None:
    """JSON can escape half of a surrogate pair, which no tokenizer can encode."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: a text holds half of an escaped surrogate pair (\\ud…), which is no"
            " character; remove it."
        ) from error


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
        "label",
        "labels",
        "score_chosen",
        "score_rejected",
        "score_0",
        "score_1",
    ),
    *("preference_strength", "overall_preference", "helpfulness", "better_response_id"),
)
_NULLABLE: Final = (*_NUMBERS, "grades", "tools", "chat_template_kwargs", "id", "source")


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
                header = _checked_header(cells, shown)
                continue
            number += 1
            where = f"{shown}:row {number}"
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells, but the header names {len(header)} columns;"
                    f" put texts with {_SEPARATORS[delimiter]} or line breaks in double quotes."
                )
            yield where, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise DataError(f"{shown}:{table.line_num}: broken CSV ({error}).") from error


_SEPARATORS: Final = {",": "commas", "\t": "tabs"}


def _checked_header(cells: list[str], shown: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) != len(names):
        raise DataError(f"{shown}: the header names a column twice; expected different names.")
    return names


def _cells(source: Source, row: Row) -> Row:
    """A row whose cells under other names are read as the columns that they stand for."""
    ours_of = {theirs: ours for ours, theirs in source.columns.items() if theirs is not None}
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
        return value if all(isinstance(turn, dict) for turn in value) else cell
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
    kind: str, batches: Callable[[Path], Iterable[Any]], path: Path, shown: str
) -> Iterator[LocatedRow]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches(path):
            for row in batch.to_pylist():
                number += 1
                yield f"{shown}:row {number}", hub.without_filling(row)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{shown} cannot be read as {kind}: {reason}.") from error


ReadFile: TypeAlias = Callable[[Path, str], Iterator[LocatedRow]]

_TEXT_KINDS: Final[dict[str, ReadFile]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": partial(_read_table, ","),
    ".tsv": partial(_read_table, "\t"),
}
_TABLES: Final = (".csv", ".tsv")

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
