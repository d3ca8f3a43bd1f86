"""A folder that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plaudit.storage.atomic import check_new_folder, writing


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
