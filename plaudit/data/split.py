"""Comparisons, or the files of a source, in parts: by prompt, so that none leaks, or by row."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.data.load import open_source
from plaudit.data.sources.files import ROW_FILES, file_kind, write_rows
from plaudit.data.sources.read import local_files, read_rows, resolve, source_name
from plaudit.data.store import GroupArray, StoredComparisons, group_code, group_name
from plaudit.errors import DataError
from plaudit.recipe.schema import Source
from plaudit.storage.arrow import RowArray
from plaudit.storage.atomic import check_new_file, existing_path
from plaudit.types import Comparison

By: TypeAlias = Literal["prompt", "row"]


def split(
    comparisons: StoredComparisons,
    size: float,
    *,
    by: By,
    seed: int,
) -> tuple[StoredComparisons, StoredComparisons]:
    """``(train, held_out)``, each in input order, with about ``size`` of the rows held out.

    ``size`` is a share below 1, which means ``ceil(size * rows)`` rows, or a number of rows. By
    prompt, all rows of a group go to one side and the held-out rows differ from that number by at
    most the largest group; groups of one row give it exactly (or one less, where all rows would be
    held out). Which groups are held out depends on the seed, the group names and sizes, not on the
    order of the input. By row, the rows are the first of a seeded permutation, which are those that
    ``datasets.Dataset.train_test_split`` holds out for the same seed; prompts may then stand on
    both sides (:func:`count_leaks`).

    Rows that a source's weight repeats count once and stay on one side: training keeps all copies
    and the held-out part one of each, since copies would narrow its intervals without cause.

    Raises:
        DataError: there are not two groups (or rows) to part.
    """
    rows_N, groups_N = comparisons.rows_N, comparisons.groups
    train_N, held_out_N = split_rows(rows_N, groups_N, size, by=by, seed=seed)
    return comparisons.take(train_N), comparisons.take(held_out_N)


def split_rows(
    row_N: RowArray,
    group_N: GroupArray,
    size: float,
    *,
    by: By,
    seed: int,
) -> tuple[RowArray, RowArray]:
    """Positions of the training and the held-out part; ``row_N`` is equal for copies of a row."""
    if not 0 < size < 1 and not (isinstance(size, int) and size >= 1):
        raise DataError(
            f"cannot hold out {size:g}; expected a fraction between 0 and 1, or a number of rows."
        )
    _, first_U, unique_N = np.unique(row_N, return_index=True, return_inverse=True)
    # Different rows, numbered in the order of their first copies.
    order_U = np.argsort(first_U)
    first_R, row_of_N = first_U[order_U], np.argsort(order_U)[unique_N]
    part_R = assign_parts(group_N[first_R], [size], by=by, seed=seed)
    return np.flatnonzero(part_R[row_of_N] == 0), first_R[part_R == 1]


def assign_parts(
    group_N: GroupArray,
    sizes: Sequence[float],
    *,
    by: By,
    seed: int,
    stratum_N: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """The part of each row: 1, 2, … for ``sizes``, in their order, and 0 for what is left.

    A size is a share of all rows below 1, which means ``ceil(size * rows)`` rows, or a number of
    rows. The units that are parted are prompt groups, or rows. They are walked in a seeded order,
    and each that brings a part nearer to its size joins it, so that a part's size is right to
    within one unit. ``stratum_N`` numbers what the parts should hold in equal shares: strata are
    walked one after the other, each towards its share of the size and towards what those before it
    left over or short. A group that stands in several strata counts as a stratum of its own kind.

    Raises:
        DataError: there are too few groups (or rows) to give every part one.
    """
    unit_N, order_U = _units(group_N, by, seed)
    size_U = np.bincount(unit_N, minlength=len(order_U))
    if len(size_U) < len(sizes) + 1:
        raise DataError(_too_few(len(group_N), len(size_U), len(sizes) + 1, by))
    runs = _runs(order_U, unit_N, stratum_N)
    part_U = np.zeros(len(size_U), dtype=np.int64)
    for part, size in enumerate(sizes, start=1):
        # Every later part, and what is left, keeps one unit at least.
        spare = len(sizes) - part + 1
        _fill(part_U, part, target_rows(size, len(group_N)), runs, size_U, spare=spare)
    return part_U[unit_N]


def target_rows(size: float, rows: int) -> int:
    """What a part of ``size`` aims at: of a share ``ceil(size * rows)``, as ``datasets`` and
    scikit-learn round.
    """
    return math.ceil(size * rows) if size < 1 else int(size)


def count_leaks(train: StoredComparisons, held_out: StoredComparisons) -> int:
    """How many held-out comparisons have a prompt that is in ``train`` too."""
    return int(np.isin(held_out.groups, train.groups).sum())


def _units(group_N: GroupArray, by: By, seed: int) -> tuple[RowArray, RowArray]:
    """The unit of each row, and the units in the seeded order in which they are walked."""
    if by == "row":
        if seed < 0:
            raise DataError(f"the split seed is {seed}; expected 0 or more.")
        return np.arange(len(group_N)), np.random.default_rng(seed).permutation(len(group_N))
    code_U, unit_N = np.unique(group_N, return_inverse=True)
    # A hash gives the groups an order that depends on neither the input nor the other groups.
    digest_U = np.array(
        [hashlib.sha256(f"{seed}/{group_name(code)}".encode()).digest() for code in code_U.tolist()]
    )
    return unit_N, np.argsort(digest_U, kind="stable")


def _runs(
    order_U: RowArray, unit_N: RowArray, stratum_N: npt.NDArray[np.int64] | None
) -> list[RowArray]:
    """The units of each stratum, in the order of the walk."""
    if stratum_N is None:
        return [order_U]
    strata: dict[int, set[int]] = {}
    for unit, stratum in zip(unit_N.tolist(), stratum_N.tolist(), strict=True):
        strata.setdefault(unit, set()).add(stratum)
    runs: dict[tuple[int, ...], list[int]] = {}
    for unit in order_U.tolist():
        runs.setdefault(tuple(sorted(strata[unit])), []).append(unit)
    return [np.array(runs[key]) for key in sorted(runs)]


def _fill(
    part_U: npt.NDArray[np.int64],
    part: int,
    target: int,
    runs: Sequence[RowArray],
    size_U: RowArray,
    *,
    spare: int,
) -> None:
    """Give units without a part to ``part`` until it has about ``target`` rows.

    ``spare`` is how many units stay without a part at least.
    """
    rows, walked, count = int(size_U.sum()), 0, 0
    free = int((part_U == 0).sum())
    for run in runs:
        walked += int(size_U[run].sum())
        aim = round(target * walked / rows)
        for unit in run[part_U[run] == 0].tolist():
            after = count + int(size_U[unit])
            if free > spare and abs(after - aim) < abs(count - aim):
                part_U[unit] = part
                count, free = after, free - 1
    if count == 0:
        left = np.concatenate([run[part_U[run] == 0] for run in runs])
        part_U[left[np.argmin(size_U[left])]] = part


def _too_few(rows: int, units: int, parts: int, by: By) -> str:
    if by == "row" and parts > 2:
        return f"{rows} rows are too few for {parts} parts; add rows, or use fewer parts."
    if by == "row":
        return (
            f"{rows} rows are too few to hold any out; add rows, or set separate evaluation data."
        )
    if units == 1:
        return (
            f"all {rows} rows have the same prompt, so the data cannot be split by prompt; set "
            "`split_by: row`, or set separate evaluation data."
        )
    return f"the {rows} rows have {units} prompts, too few for {parts} parts; use fewer parts."


# --- files --------------------------------------------------------------------------------------

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOptions:
    """``fractions`` name the parts and add up to 1.

    ``stratify`` names a column whose values the parts hold in equal shares: ``source``, or any
    column of plain values; None for no such column.
    """

    fractions: Mapping[str, float] = field(
        default_factory=lambda: {"train": 0.8, "eval": 0.1, "test": 0.1}
    )
    by: By = "prompt"
    stratify: str | None = SOURCE
    seed: int = 42


def split_files(
    source: Source, out: Path, options: SplitOptions = SplitOptions()
) -> tuple[Part, ...]:
    """Write each part of a source to ``out/<part>.<ending>``, rows as read and in their order.

    Each part's size is right to within one prompt group (or row); the first takes what the others
    leave. By prompt, the parts do not depend on the order of the rows. The files have the
    ending of the source's own, or ``.jsonl`` where it has none to write.

    Raises:
        DataError: fractions or a column that cannot be, or a source that cannot be read or parted.
        OutputError: a file is there already or cannot be written.
    """
    fractions = options.fractions
    check_fractions(fractions)
    source = resolve(source)
    names = list(fractions)
    ending = _ending(source)
    paths = [out / f"{name}{ending}" for name in names]
    for path in paths:
        check_new_file(path)
    group_N, stratum_N, strata = _read(source, options.stratify)
    part_N = assign_parts(
        group_N,
        [fractions[name] for name in names[1:]],
        by=options.by,
        seed=options.seed,
        stratum_N=stratum_N,
    )
    # All files or none.
    with ExitStack() as undo:
        for at, path in enumerate(paths):
            rows = enumerate(islice(read_rows(source), len(part_N)))
            write_rows(path, (row for number, (_, row) in rows if part_N[number] == at))
            undo.callback(path.unlink, missing_ok=True)
        undo.pop_all()
    train_groups = group_N[part_N == 0]
    counts_PS = np.zeros((len(names), len(strata)), np.int64)
    np.add.at(counts_PS, (part_N, stratum_N), 1)
    return tuple(
        Part(
            name=name,
            path=path,
            rows=int(counts_PS[number].sum()),
            prompts=len(np.unique(group_N[part_N == number])),
            strata=dict(zip(strata, counts_PS[number].tolist(), strict=True)),
            leaks=int(np.isin(group_N[part_N == number], train_groups).sum()) if number else 0,
        )
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    )


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raises DataError unless two or more parts of plain names add up to 1."""
    if len(fractions) < 2:
        raise DataError("a split needs at least two parts, such as train=0.9,eval=0.1.")
    for name, fraction in fractions.items():
        if not name.replace("-", "").replace("_", "").isalnum():
            raise DataError(f"invalid part name {name!r}; use letters, digits, - and _.")
        if not 0 < fraction < 1:
            raise DataError(
                f"the part {name} is {fraction:g}; expected a fraction between 0 and 1."
            )
    total = sum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise DataError(f"the fractions of the parts add up to {total:g}; expected 1.")


def _ending(source: Source) -> str:
    files = local_files(source) if existing_path(source.path) is not None else None
    # Compressed kinds that are not written are written plain.
    endings = {
        next((ending for ending in (kind, Path(kind).stem) if ending in ROW_FILES), ".jsonl")
        for kind in (file_kind(path) for path, _ in files or ())
    }
    return endings.pop() if len(endings) == 1 else ".jsonl"


def _read(
    source: Source, stratify: str | None
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], list[str]]:
    """Group and stratum of each row, and the strata in the order of their names."""
    groups: list[int] = []
    values: list[str] = []
    for _, _, row, comparison in open_source(source).rows:
        groups.append(group_code(comparison.group))
        values.append(_stratum(row, comparison, stratify))
    strata, stratum_N = np.unique(np.array(values, object), return_inverse=True)
    if stratify not in (None, SOURCE) and strata.tolist() == [_MISSING]:
        raise DataError(
            f"no row of {source_name(source)} has a value to stratify by in the column "
            f"{stratify}; choose a column of texts or numbers."
        )
    return np.array(groups, dtype=np.uint64), stratum_N, strata.tolist()


def _stratum(row: Mapping[str, Any], comparison: Comparison, stratify: str | None) -> str:
    if stratify is None:
        return "all"
    if stratify == SOURCE:
        return comparison.source
    value = row.get(stratify)
    return str(value) if isinstance(value, (str, int, float, bool)) else _MISSING
