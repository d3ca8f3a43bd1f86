"""Writing whole files or nothing: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plaudit.errors import OutputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    Raises:
        OutputError: the disk is full or the folder cannot be written; ``path`` is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise as_output_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused, they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def as_output_error(error: OSError, path: Path) -> OutputError:
    """The sentence for a write that failed, with what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"The disk is full: {path} could not be written; free some space, or choose a folder "
            "on another disk with --out."
        )
    return OutputError(
        f"{path} could not be written ({error.strerror or error}); choose another place with --out."
    )
