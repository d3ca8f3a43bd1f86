"""A source parted into files: by prompt group or by row, in equal shares of what is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from plaudit.data.load import iterate
from plaudit.data.sources.files import local_files, resolve, source_name
from plaudit.data.sources.row_files import ROW_FILES, row_file_ending, write_rows
from plaudit.data.split import By, assign_parts
from plaudit.data.store import group_code
from plaudit.errors import DataError, OutputError
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import check_new_file, existing_path
from plaudit.types import Comparison

SOURCE: Final = "source"
_MISSING: Final = "(none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file: its rows and prompts, and the rows of each stratum.

    ``leaks`` counts its rows whose prompt is in the first part too.
    """

    name: str
    path: Path
    rows: int
    prompts: int
    strata: Mapping[str, int]
    leaks: int


def split_files(
    source: Source,
    out: Path,
    fractions: Mapping[str, float],
    *,
    by: By = "prompt",
    stratify: str | None = SOURCE,
    seed: int = 42,
) -> tuple[Part, ...]:
    """Write each part of a source to ``out/<part>.<ending>``, rows as read and in their order.

    ``fractions`` name the parts and add up to 1. Each part's size is right to within one prompt
    group (or row); the first takes what the others leave. ``stratify`` names a column whose values
    the parts hold in equal shares: ``source``, or any column of plain values. By prompt, the parts
    are the same whatever the order of the rows. The files have the ending of the source's own, or
    ``.jsonl`` where it has none to write.

    Raises:
        DataError: fractions or a column that cannot be, or a source that cannot be read or parted.
        OutputError: a file is there already or cannot be written.
    """
    check_fractions(fractions)
    source = resolve(source)
    names = list(fractions)
    ending = _ending(source)
    paths = [out / f"{name}{ending}" for name in names]
    for path in paths:
        check_new_file(path)
    group_N, stratum_N, strata = _read(source, stratify)
    part_N = assign_parts(
        group_N, [fractions[name] for name in names[1:]], by=by, seed=seed, stratum_N=stratum_N
    )
    _write_all({path: _rows_of(source, part_N == at) for at, path in enumerate(paths)})
    train_groups = group_N[part_N == 0]
    return tuple(
        Part(
            name=name,
            path=path,
            rows=int((part_N == number).sum()),
            prompts=len(np.unique(group_N[part_N == number])),
            strata={
                stratum: int(((part_N == number) & (stratum_N == code)).sum())
                for code, stratum in enumerate(strata)
            },
            leaks=int(np.isin(group_N[part_N == number], train_groups).sum()) if number else 0,
        )
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    )


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raises DataError unless two or more parts of plain names add up to 1."""
    if len(fractions) < 2:
        raise DataError("a split needs two parts at least, such as train=0.9,eval=0.1.")
    for name, fraction in fractions.items():
        if not name.replace("-", "").replace("_", "").isalnum():
            raise DataError(f"the part {name!r} cannot name a file; use letters, digits, - and _.")
        if not 0 < fraction < 1:
            raise DataError(f"the part {name} is {fraction:g}; expected a share between 0 and 1.")
    total = sum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise DataError(f"the parts add up to {total:g}; expected 1.")


def _write_all(files: Mapping[Path, Iterator[Mapping[str, Any]]]) -> None:
    """All files or none."""
    written: list[Path] = []
    try:
        for path, rows in files.items():
            write_rows(path, rows)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _ending(source: Source) -> str:
    files = local_files(source) if existing_path(source.path) is not None else None
    endings = {_known_ending(path) for path, _ in files or ()}
    (ending,) = endings if len(endings) == 1 else (".jsonl",)
    return ending


def _known_ending(path: Path) -> str:
    try:
        return row_file_ending(path)
    except OutputError:
        # Compressed kinds that are not written are written plain.
        plain = path.name.lower().removesuffix(".gz")
        return next((ending for ending in ROW_FILES if plain.endswith(ending)), ".jsonl")


def _read(
    source: Source, stratify: str | None
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], list[str]]:
    """Group and stratum of each row, and the strata in the order of their names."""
    groups: list[int] = []
    values: list[str] = []
    for _, _, row, comparison in iterate(source):
        groups.append(group_code(comparison.group))
        values.append(_stratum(row, comparison, stratify))
    found = Counter(values)
    if stratify not in (None, SOURCE) and set(found) == {_MISSING}:
        raise DataError(
            f"no row of {source_name(source)} has a value in the column {stratify}; expected a"
            " column of plain values to stratify by."
        )
    strata = sorted(found)
    code = {stratum: at for at, stratum in enumerate(strata)}
    stratum_N = np.array([code[value] for value in values], dtype=np.int64)
    return np.array(groups, dtype=np.uint64), stratum_N, strata


def _stratum(row: Mapping[str, Any], comparison: Comparison, stratify: str | None) -> str:
    if stratify is None:
        return "all"
    if stratify == SOURCE:
        return comparison.source
    value = row.get(stratify)
    return str(value) if isinstance(value, (str, int, float, bool)) else _MISSING


def _rows_of(source: Source, chosen_N: npt.NDArray[np.bool_]) -> Iterator[Mapping[str, Any]]:
    for number, _, row, _ in iterate(source):
        if chosen_N[number - 1]:
            yield row
