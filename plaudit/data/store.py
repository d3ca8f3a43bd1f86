"""Comparisons in Arrow files: written once, then looked up in flat memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from plaudit.storage.arrow import (
    MappedTable,
    StoredRows,
    write_rows,
)
from plaudit.types import Comparison, Message, Turns

GroupArray = npt.NDArray[np.uint64]


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


def write_comparisons(path: Path, comparisons: Iterable[Comparison]) -> None:
    """An Arrow file for :class:`StoredComparisons`."""
    import pyarrow as pa

    schema = pa.schema([("comparison", pa.large_binary()), ("group", pa.uint64())])
    write_rows(path, schema, ((encode(one), group_code(one.group)) for one in comparisons))


# --- one comparison as JSON ---------------------------------------------------------------------

_FIELDS: Final = tuple(field.name for field in fields(Comparison))
_values = attrgetter(*_FIELDS)


def _plain(value: Any) -> Any:
    return (value.role, value.content, value.extra) if isinstance(value, Message) else str(value)


_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain)


def encode(comparison: Comparison) -> bytes:
    """A comparison as JSON: the values of its fields, in their order.

    What JSON has no form for (dates and bytes, out of Parquet) becomes its text, which is what a
    template would print.
    """
    # A cell of a table may hold half a character, which is not valid UTF-8.
    return _JSON.encode(_values(comparison)).encode("utf-8", "surrogatepass")


def decode(text: bytes | npt.NDArray[np.uint8]) -> Comparison:
    """The comparison that :func:`encode` wrote."""
    plain = json.loads(bytes(text).decode("utf-8", "surrogatepass"))
    values = dict(zip(_FIELDS, plain, strict=True))
    values["prompt"] = _turns(values["prompt"])
    values["responses"] = tuple(map(_turns, values["responses"]))
    values["grades"] = tuple(values["grades"])
    values["attributes"] = {name: tuple(some) for name, some in values["attributes"].items()}
    if values["tools"] is not None:
        values["tools"] = tuple(values["tools"])
    return Comparison(**values)


def _turns(plain: str | list[list[Any]]) -> Turns:
    if isinstance(plain, str):
        return plain
    return tuple(Message(role=role, content=text, extra=extra) for role, text, extra in plain)
