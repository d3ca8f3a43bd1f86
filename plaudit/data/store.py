"""Usable comparisons of a source as an Arrow file: read once, then looked up in flat memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from plaudit import __version__, registry
from plaudit.data.reasons import why_untrainable
from plaudit.data.sources.read import source_fingerprint, source_name
from plaudit.data.unread import UnreadCounter
from plaudit.errors import DataError
from plaudit.recipe.schema import Source
from plaudit.storage.arrow import (
    BATCH_ROWS,
    MappedTable,
    StoredRows,
    cached,
    code_digest,
    write_rows,
)
from plaudit.types import Comparison, Message, Turns

GroupArray = npt.NDArray[np.uint64]

OnRead = Callable[[str, int], None]
"""Called with a source's name and how many of its rows have been read."""


class StoredComparisons(StoredRows[Comparison]):
    """Comparisons of one or more sources, decoded one at a time."""

    def _record(self, table: MappedTable, row: int, position: int) -> Comparison:
        return decode(table.items("comparison", row))

    @property
    def groups(self) -> GroupArray:
        """The prompt group of each comparison as the number that its name is in hexadecimal."""
        return self.column("group").astype(np.uint64)


def group_code(name: str) -> int:
    """The number of a prompt group (``Comparison.group``: 16 hexadecimal digits)."""
    return int(name, 16)


def group_name(code: int) -> str:
    """The name of a prompt group's number."""
    return f"{code:016x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReading:
    """A source that is being read: its format, its comparisons, and what is not read of them."""

    format: str
    comparisons: Iterator[Comparison]
    counter: UnreadCounter


def store_source(
    source: Source,
    read: Callable[[], SourceReading],
    *,
    fingerprint: str,
    mixed: bool,
    on_read: OnRead,
) -> MappedTable:
    """The table of a source's usable comparisons, in the order of its rows.

    ``read`` opens the source; its comparisons name the part of the mixture if they are ``mixed``.
    The table's record has ``format``, ``rows`` (all that were read), ``dropped`` (the unusable, by
    reason) and ``unread`` (the fields of :class:`plaudit.data.unread.Unread`).

    Raises:
        DataError: the source cannot be read, or changed meanwhile.
        OutputError: the cache cannot be written.
    """
    name = source_name(source)

    def build(path: Path) -> Mapping[str, Any]:
        reading = read()
        dropped: Counter[str] = Counter()
        counts = {"rows": 0}

        def usable() -> Iterator[Comparison]:
            for comparison in reading.comparisons:
                counts["rows"] += 1
                if counts["rows"] % BATCH_ROWS == 0:
                    on_read(name, counts["rows"])
                reason = why_untrainable(comparison)
                if reason is None:
                    yield comparison
                else:
                    dropped[reason] += 1

        write_comparisons(path, usable())
        if source_fingerprint(source) != fingerprint:
            raise DataError(f"{source.path} changed while it was read; start again.")
        return {
            "format": reading.format,
            "rows": counts["rows"],
            "dropped": dict(dropped),
            "unread": asdict(reading.counter.total),
        }

    facts = {
        "source": source.model_dump(mode="json", exclude={"weight", "num_samples", "probability"}),
        "name": name,
        "fingerprint": fingerprint,
        "mixed": mixed,
        "version": __version__,
        "code": code_digest(*_code()),
    }
    return cached("comparisons", facts, build)


def _code() -> Iterator[Path]:
    """The modules that decide what a row becomes."""
    data = Path(__file__).parent
    yield data.parent / "types.py"
    for folder in (data, data / "sources", data / "formats", data / "perturb"):
        yield from folder.glob("*.py")
    for kind in ("row_format", "data_source"):
        yield from {registry.source_file(kind, name) for name in registry.names(kind)}


def write_comparisons(path: Path, comparisons: Iterable[Comparison]) -> None:
    """An Arrow file for :class:`StoredComparisons`."""
    import pyarrow as pa

    schema = pa.schema([("comparison", pa.large_binary()), ("group", pa.uint64())])
    write_rows(path, schema, ((encode(one), group_code(one.group)) for one in comparisons))


# --- one comparison as JSON ---------------------------------------------------------------------

_FIELDS: Final = tuple(field.name for field in fields(Comparison))


def encode(comparison: Comparison) -> bytes:
    """A comparison as JSON: the values of its fields, in their order.

    What JSON has no form for (dates and bytes, out of Parquet) becomes its text, which is what a
    template would print.
    """
    values = {name: getattr(comparison, name) for name in _FIELDS}
    values["prompt"] = _plain(comparison.prompt)
    values["responses"] = [_plain(response) for response in comparison.responses]
    text = json.dumps(list(values.values()), ensure_ascii=False, separators=(",", ":"), default=str)
    # A cell of a table may hold half a character, which is not valid UTF-8.
    return text.encode("utf-8", "surrogatepass")


def decode(text: bytes | npt.NDArray[np.uint8]) -> Comparison:
    """The comparison that :func:`encode` wrote."""
    plain = json.loads(bytes(text).decode("utf-8", "surrogatepass"))
    values = dict(zip(_FIELDS, plain, strict=True))
    values["prompt"] = _turns(values["prompt"])
    values["responses"] = tuple(map(_turns, values["responses"]))
    values["grades"] = tuple(values["grades"])
    if values["tools"] is not None:
        values["tools"] = tuple(values["tools"])
    return Comparison(**values)


def _plain(turns: Turns) -> str | list[tuple[Any, ...]]:
    if isinstance(turns, str):
        return turns
    return [
        (turn.role, turn.content, turn.extra) if turn.extra else (turn.role, turn.content)
        for turn in turns
    ]


def _turns(plain: str | list[list[Any]]) -> Turns:
    if isinstance(plain, str):
        return plain
    return tuple(
        Message(role=turn[0], content=turn[1], extra=turn[2])
        if len(turn) == 3
        else Message(role=turn[0], content=turn[1])
        for turn in plain
    )
