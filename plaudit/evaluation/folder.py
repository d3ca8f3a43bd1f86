"""The output folder of a command: all its files, or no folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from plaudit.storage.atomic import writing


def write_folder(folder: Path, files: Mapping[str, Callable[[Path], object]]) -> None:
    """Write every named file under another folder name first, then rename it into place.

    Raises:
        OutputError: the folder cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            for name, write in files.items():
                write(temporary / name)
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
