"""The cache folder: Arrow files that are costly to make, kept under a key of all that decides them.

An entry is ``<name>.arrow`` and ``<name>.json``, which comes last and holds the facts it was made
from and checksums. Deleting any of it, at any time, costs nothing but making it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plaudit.errors import OutputError
from plaudit.storage.arrow import MappedTable
from plaudit.storage.atomic import write_json
from plaudit.storage.manifest import checksum, checksum_of

logger = logging.getLogger("plaudit")

VARIABLE = "PLAUDIT_CACHE"
"""Environment variable: the folder, or ``off`` to keep nothing."""

UNUSED_DAYS = 30
"""Entries that nothing has read for so long go when a new one is made."""

Build = Callable[[Path], Mapping[str, Any]]
"""Writes the Arrow file at the path it gets, and returns what is to be noted beside it (JSON)."""


def cache_folder() -> Path | None:
    """``$PLAUDIT_CACHE``, else ``plaudit`` in the user's cache folder; None where it is off."""
    given = os.environ.get(VARIABLE)
    if given is not None and given.lower() == "off":
        return None
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "plaudit"


def cached(kind: str, facts: Mapping[str, Any], build: Build) -> MappedTable:
    """The table made from ``facts``, out of the cache or built now; damaged entries are rebuilt.

    Of processes that want the same entry, one builds and the others wait. A build that fails or
    is killed leaves no entry. Where the folder cannot be written, or the cache is off, the table
    lives in a temporary file that is gone with this process.

    Raises:
        OutputError: the disk is full.
    """
    facts = json.loads(json.dumps(facts))
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    name = f"{kind}-{key}"
    folder = cache_folder()
    if folder is None or not _writable(folder):
        return _temporary(name, key, facts, build)
    from filelock import FileLock

    with FileLock(folder / f".{name}.lock"):
        found = _open(folder / name, key, facts)
        if found is None:
            _remove_unused(folder)
            _make(folder / name, facts, build)
            found = _open(folder / name, key, facts)
        if found is None:
            raise OutputError(
                f"{folder / name}.arrow does not hold what was just written to it; look after that "
                f"disk, or set {VARIABLE} to a folder on another."
            )
        return found


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
            "The cache folder %s cannot be written (%s), so nothing is kept; set %s to another.",
            folder,
            error.strerror or error,
            VARIABLE,
        )
        return False


def _temporary(name: str, key: str, facts: Mapping[str, Any], build: Build) -> MappedTable:
    # The mapping outlives the file's name.
    with tempfile.TemporaryDirectory(prefix="plaudit-", ignore_cleanup_errors=True) as folder:
        _make(Path(folder) / name, facts, build)
        table = _open(Path(folder) / name, key, facts)
        assert table is not None, "a table just written cannot be read"
        return table


def _make(path: Path, facts: Mapping[str, Any], build: Build) -> None:
    partial, arrow = path.with_name(f".{path.name}.partial"), path.with_name(f"{path.name}.arrow")
    try:
        note = {"facts": facts, "record": build(partial), "xxh3_128": checksum(partial)}
        partial.replace(arrow)
        write_json(path.with_name(f"{path.name}.json"), {**note, "note": checksum_of(note)})
    except OSError as error:
        raise OutputError(
            f"{arrow} could not be written ({error.strerror or error}); free some space, or set "
            f"{VARIABLE} to a folder on another disk."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _open(path: Path, key: str, facts: Mapping[str, Any]) -> MappedTable | None:
    """The entry, or None where there is none or where it is damaged, which is logged."""
    arrow, path = path.with_name(f"{path.name}.arrow"), path.with_name(f"{path.name}.json")
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if note.pop("note") != checksum_of(note) or note["xxh3_128"] != checksum(arrow):
            raise ValueError("other bytes than were written")
        if note["facts"] != facts:
            return None
        table = MappedTable(arrow, key=key, record=note["record"])
        for file in (arrow, path):
            os.utime(file)
        return table
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # pyarrow's errors are ValueErrors.
        logger.warning("The cache entry %s is damaged (%s) and is made again.", arrow, error)
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
