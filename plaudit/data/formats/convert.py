"""A source in another format: every row written or refused by name, what is lost counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from plaudit.data.formats import columns
from plaudit.data.formats.readers import SHARED_COLUMNS
from plaudit.data.formats.writers import (
    REFUSALS,
    Ledger,
    Pairs,
    Row,
    Writer,
    Written,
    write_comparison,
)
from plaudit.data.load import open_source
from plaudit.data.sources.row_files import row_file_ending, write_rows
from plaudit.errors import DataError, OutputError
from plaudit.interop.llama_factory.dataset_info import resolve
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import check_new_file, write_json

DATASET_INFO: Final = "dataset_info.json"
# What LLaMA-Factory knows by its ending (``extras/constants.py`` there, FILEEXT2TYPE).
_LLAMA_FACTORY_READS: Final = (".json", ".jsonl", ".csv", ".parquet")


def convert(source: Source, out: Path, writer: Writer, *, pairs: Pairs = "all") -> Ledger:
    """Write every row of ``source`` to ``out`` as ``writer`` lays it out; columns are kept.

    For LLaMA-Factory's formats, an entry named like the file goes into ``dataset_info.json``
    beside it.

    Raises:
        DataError: a row cannot be read, or no row can be written.
        OutputError: ``out`` is there already, is of a kind that cannot hold the format, or cannot
            be written.
    """
    check_out(out, writer)
    ledger = Ledger()
    write_rows(out, _rows(source, writer, pairs, ledger))
    add_dataset_info(out, writer)
    return ledger


def check_out(out: Path, writer: Writer) -> None:
    """Raises OutputError where ``out`` cannot take rows of this format."""
    check_new_file(out)
    ending = row_file_ending(out)
    if ending == ".csv" and not writer.flat:
        raise OutputError(
            f"--out {out}: a CSV file cannot hold the lists of {writer.name}; choose a name that"
            " ends in .jsonl."
        )
    if writer.dataset_info is not None and ending not in _LLAMA_FACTORY_READS:
        raise OutputError(
            f"--out {out}: LLaMA-Factory reads no {ending} files; choose a name that ends in .json."
        )
    if writer.dataset_info is not None:
        _read_dataset_info(out.with_name(DATASET_INFO))


def only_written(ledger: Ledger, outcomes: Iterator[Written]) -> Iterator[Row]:
    """The rows of all outcomes, counted.

    Raises:
        DataError: there is not one.
    """
    for outcome in outcomes:
        ledger.count(outcome)
        yield from outcome.rows
    if not ledger.written:
        counts = "; ".join(
            f"{count} {reason} ({REFUSALS.get(reason, reason)})"
            for reason, count in ledger.refused.items()
        )
        raise DataError(f"none of the {ledger.read} rows can be written: {counts or 'no rows'}.")


def add_dataset_info(out: Path, writer: Writer) -> None:
    """Enter the file in ``dataset_info.json`` beside it, where the format has such an entry."""
    if writer.dataset_info is None:
        return
    path = out.with_name(DATASET_INFO)
    entries = _read_dataset_info(path)
    entries[out.name.removesuffix(row_file_ending(out))] = {
        "file_name": out.name,
        **writer.dataset_info,
    }
    write_json(path, entries)


def _rows(source: Source, writer: Writer, pairs: Pairs, ledger: Ledger) -> Iterator[Row]:
    source = resolve(source)
    opened = open_source(source)
    own = {*opened.reader.columns, *opened.reader.optional, *SHARED_COLUMNS}

    def outcomes() -> Iterator[Written]:
        for _, _, row, comparison in opened.rows:
            others = {
                name: value
                for name, value in columns.renamed_row(source, row).items()
                if name not in own and value is not None
            }
            # An id that the file does not have would be one more column to explain.
            named = row.get("id") is not None or row.get("source") is not None
            yield write_comparison(
                writer,
                comparison,
                pairs=pairs,
                named=named,
                others=others,
            )

    yield from only_written(ledger, outcomes())


def _read_dataset_info(path: Path) -> dict[str, Any]:
    """The entries there are. Raises OutputError where the file is something else."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path} cannot be read as JSON ({error}), so no entry can be added; mend it, or choose"
            " another folder with --out."
        ) from error
    if not isinstance(found, dict):
        raise OutputError(
            f"{path} is not an object of entries, so none can be added; choose another folder with"
            " --out."
        )
    return found
