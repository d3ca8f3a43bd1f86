"""Rows of a source, each with the place it stands: files, folders, the Hub, documentation."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final

from plaudit import registry
from plaudit.data.sources import documentation
from plaudit.data.sources.files import (
    FILE_KINDS,
    TABLE_KINDS,
    LocatedRow,
    file_kind,
    known_kinds,
    typed_cells,
    unreadable,
    without_filling,
)
from plaudit.errors import DataError, did_you_mean, one_line, printable
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import existing_path, names_in

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

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
        yield from _read_hub_rows(source)
        return
    for path, shown in files:
        where, kind = "", file_kind(path)
        for where, row in FILE_KINDS[kind](path, shown):
            yield where, typed_cells(source.columns, row) if kind.startswith(TABLE_KINDS) else row
        if not where:
            raise DataError(f"{shown} has no rows; expected at least one comparison.")


def local_files(source: Source) -> tuple[tuple[Path, str], ...] | None:
    """The files a source names, each with the name to show; ``None`` when it is a Hub id.

    Raises:
        DataError: it is neither, or none of the files has a known extension.
    """
    path = existing_path(source.path)
    parts = {"split": source.split, "subset": source.subset, "data_dir": source.data_dir}
    files: tuple[tuple[Path, str], ...]
    if source.path == STDIN:
        files = ((Path(_standard_input().name), "stdin"),)
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
        if file_kind(path) not in FILE_KINDS:
            raise DataError(
                f"{source.path} has an unknown file extension; expected {known_kinds()}."
            )
    if any(part is not None for part in parts.values()) or source.streaming:
        raise DataError(
            f"{source.path} is a local path, but `split`, `subset`, `data_dir` and `streaming` "
            "apply to Hub datasets only; remove them."
        )
    return files


def source_fingerprint(source: Source) -> str:
    """What the rows came from: ``sha256:…`` of the file bytes, or the revision on the Hub.

    A folder's is the SHA-256 over the names and SHA-256 values of its data files.
    """
    if documentation.is_documentation(source):
        return documentation.fingerprint(source)
    files = local_files(source)
    if files is None:
        return _hub_fingerprint(source)
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
    return path.resolve().name if path.is_dir() else path.name.removesuffix(file_kind(path))


def _sha256(path: Path, shown: str) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(shown, error) from error


def _files_of_folder(folder: Path, shown: str) -> tuple[tuple[Path, str], ...]:
    if all((folder / name).is_file() for name in (_SAVED_TABLE, _SAVED_INFO)):
        files = _saved_files(folder, shown)
    else:
        files = sorted(
            path
            for path in folder.iterdir()
            if path.is_file() and not path.name.startswith(".") and file_kind(path) in FILE_KINDS
        )
    if not files:
        raise DataError(f"the folder {shown} has no data files; expected {known_kinds()}.")
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
            f"{shown}/{_SAVED_TABLE} does not list the files of the dataset ({error}); save the "
            "dataset again."
        ) from error
    missing = [file.name for file in files if not file.is_file() or file_kind(file) != ".arrow"]
    if missing:
        raise DataError(f"{shown} lacks {', '.join(missing)}; save the dataset again.")
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
            f"{source.path} has no split {split!r} (found: {', '.join(splits) or 'none'}); set "
            "`split` to one of these, or use its folder as the path: "
            f"{source.path.rstrip('/')}/SPLIT."
        )
    return folder / split, f"{source.path.rstrip('/')}/{split}"


@cache
def _standard_input() -> IO[bytes]:
    """Standard input as a file, since rows are read twice: to check them, then to use them.

    The file is deleted when the process ends.
    """
    file = NamedTemporaryFile(prefix="plaudit-stdin-", suffix=".json")  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, file)
    file.flush()
    return file


def _means_a_file(path: Path) -> bool:
    """Whether a missing path of a Hub id's shape is a file's: it, or a file here, has an extension.

    ``data/pairs`` beside an existing ``data/pairs.jsonl`` is a forgotten extension.
    """
    beside = {path.name + kind for kind in FILE_KINDS}.intersection(names_in(path.parent))
    return file_kind(path) in FILE_KINDS or bool(beside)


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


# --- the Hub ------------------------------------------------------------------------------------


def _read_hub_rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(where, row)``; ``where`` is like ``owner/name[subset/train]:row 17``."""
    parts = (source.subset, source.data_dir, source.split or "train")
    part = "/".join(name for name in parts if name)
    number = 0
    for number, row in enumerate(_hub_dataset(source), start=1):
        yield f"{source.path}[{part}]:row {number}", without_filling(row)
    if not number:
        raise DataError(f"{source.path}[{part}] has no rows; expected at least one comparison.")


def _hub_fingerprint(source: Source) -> str:
    """``revision:<commit>`` when the Hub answers, else the fingerprint of the cached table.

    Raises:
        DataError: the source is streamed and the Hub does not answer, so that nothing says whether
            it changed.
    """
    info = _hub_info(source)
    if info is not None and info.sha:
        return f"revision:{info.sha}"
    if source.streaming:
        raise DataError(
            f"{source.path} cannot be streamed because the Hub is unreachable; set `streaming` "
            "to false to use a local copy, or go online."
        )
    return f"datasets:{_hub_dataset(source)._fingerprint}"


def licence(source: Source) -> str | None:
    """The licence of the embedded documentation, or that which the card of a Hub dataset states.

    ``None`` for files, and when the card states none or cannot be reached.
    """
    if documentation.is_documentation(source):
        return "PSF-2.0"
    info = _hub_info(source) if local_files(source) is None else None
    card = info.card_data if info is not None else None
    stated = card.get("license") if card is not None else None
    return ", ".join(stated) if isinstance(stated, list) else stated


def _hub_dataset(source: Source) -> Dataset | IterableDataset:
    # Importing datasets takes seconds and is needed for Hub ids alone.
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        return load_dataset(
            source.path,
            name=source.subset,
            data_dir=source.data_dir,
            split=source.split or "train",
            streaming=source.streaming,
        )
    except DatasetNotFoundError as error:
        raise DataError(
            f"{source.path} is neither a local file nor a Hub dataset that you can access; check "
            "the spelling, or log in with `hf auth login`."
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"{source.path} is not a local file, and the Hub is unreachable; use a local path, "
            "or go online."
        ) from error
    except ValueError as error:  # an unknown split or subset; the message lists the known ones
        raise DataError(
            f"{source.path}: {one_line(error)}; set `split` or `subset` of this source."
        ) from error
    except (DatasetsError, RuntimeError, OSError) as error:
        raise DataError(f"{source.path} cannot be loaded: {one_line(error)}.") from error


def _hub_info(source: Source) -> Any:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(source.path, timeout=10)
    except Exception:  # facts for the card must never stop a run
        return None
