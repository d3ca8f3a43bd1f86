"""Write whole files and folders or nothing: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from plaudit.errors import OutputError, nearest

# How libraries written in Rust and C++ say that a write failed, where Python would raise OSError.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_ERROR = re.compile(
    r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+|file write failed|iostream error"
)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    Raises:
        OutputError: the disk is full or the folder cannot be written; ``path`` is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            temporary.replace(path)
    finally:
        # Where the folder itself cannot be there, neither can the temporary file.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when nothing fails inside, else is removed.

    Raises:
        OutputError: ``folder`` exists with something in it, or cannot be made.
    """
    check_new_folder(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
        yield temporary
        with writing(folder):
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_folder(folder: Path, files: Mapping[str, Callable[[Path], object]]) -> None:
    """Write every named file into a new folder, or nothing.

    Raises:
        OutputError: the folder exists with something in it, or cannot be written.
    """
    with new_folder(folder) as temporary, writing(folder):
        for name, write in files.items():
            write(temporary / name)


def existing_path(text: str) -> Path | None:
    """The path that ``text`` names, ``~`` replaced; None where nothing is there.

    Any text is allowed: a prompt may be longer than a file name or begin with ``~word``.
    """
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def missing_path(name: str) -> str | None:
    """What to say where ``name`` can only be a path and nothing is there, as half a sentence.

    None for what is there, and for what may be an id on the Hub: ``model`` or ``owner/model``.
    """
    path = Path(name)
    # Models are opened by the name as it is, so one that exists only once ~ is replaced is missing.
    is_there = existing_path(name) == path
    if is_there or not (name.startswith((".", "~", os.sep)) or name.count("/") > 1):
        return None
    folder = existing_path(str(path.parent)) or path.parent
    near = nearest(path.name, names_in(folder))
    hint = f" (did you mean {folder / near}?)" if near else ""
    return f"{name} does not exist{hint}"


def names_in(folder: Path) -> list[str]:
    """The names in a folder; none where there is no such folder, or it cannot be read."""
    try:
        return os.listdir(folder.expanduser())  # noqa: PTH208
    except (OSError, RuntimeError, ValueError):
        return []


def check_new_file(
    path: Path, *, option: str = "--out", advice: str = "choose another name"
) -> None:
    """Say early that a file cannot be written at ``path``, which ``option`` named. Makes nothing.

    Raises:
        OutputError: something is there already, or the folder above it is a file or may not be
            written.
    """
    if path.exists():
        raise OutputError(f"{option} {path} already exists; {advice}.")
    above = path.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    number = errno.ENOTDIR if not above.is_dir() else errno.EACCES
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise as_output_error(OSError(number, os.strerror(number)), path)


def check_new_folder(path: Path, *, advice: str = "choose another name") -> None:
    """Say early that a folder cannot be filled at ``path``; an empty one may be there.

    Raises:
        OutputError: a file or a folder that is not empty is there, or nothing can be made there.
    """
    if not path.is_dir() or any(path.iterdir()):
        check_new_file(path, advice=advice)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write inside into one OutputError that names ``path``.

    safetensors, tokenizers and torch report a full disk as errors of their own types, with the
    cause in the text alone. Any other error passes through.
    """
    try:
        yield
    except OSError as error:
        raise as_output_error(error, path) from error
    except Exception as error:
        rust = _RUST_ERROR.search(str(error))
        if rust is None and not _TORCH_ERROR.search(str(error)):
            raise
        # torch's file writer does not say why.
        number = errno.EIO if rust is None else int(rust[1])
        raise as_output_error(OSError(number, os.strerror(number)), path) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically (:func:`json_text`)."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON; ValueError for NaN and infinities, which are not JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """One JSON value a line, atomically; what UTF-8 cannot hold is escaped."""
    write_text(path, "".join(json.dumps(row, allow_nan=False, default=str) + "\n" for row in rows))


def as_output_error(error: OSError, path: Path) -> OutputError:
    """The sentence for a write that failed, with what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"The disk is full: {path} could not be written; free some space, or choose a folder "
            "on another disk with --out."
        )
    if error.errno == errno.EIO:
        return OutputError(
            f"{path} could not be written completely; check that the disk works and has free"
            " space, or choose another place with --out."
        )
    return OutputError(
        f"{path} could not be written ({error.strerror or error}); choose another place with --out."
    )
