"""Which suite was asked for, and where its files are. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plaudit.errors import DataError
from plaudit.evaluation.suites.table import SUITES, Suite
from plaudit.storage.atomic import existing_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A suite that was asked for, and the folder or file to read instead of the Hub."""

    suite: Suite
    path: Path | None


def parse_request(asked: str) -> Request:
    """``NAME`` or ``NAME:PATH``.

    Raises:
        DataError: there is no such suite, or it has no copy on the Hub and no path was given.
    """
    name, _, path = asked.partition(":")
    suite = SUITES.get(name)
    if suite is None:
        raise DataError(f"there is no suite {name!r}; expected one of {', '.join(SUITES)}.")
    if not path and suite.hub is None:
        raise DataError(
            f"{suite.title} has no copy on the Hub that can be read; {suite.where_from}."
        )
    found = existing_path(path) if path else None
    if path and found is None:
        raise DataError(f"--suite {asked}: {path} does not exist; expected a folder or a file.")
    return Request(suite=suite, path=found)
