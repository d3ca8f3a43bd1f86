"""Near duplicates among millions of rows: banded sketches on disk propose, the texts decide.

Rows whose sketches agree in all values of a band are candidates (locality-sensitive hashing;
Leskovec et al., *Mining of Massive Datasets*, 3.4). Each band is a file of numbers that is sorted
by itself, so that the memory is that of one band.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from plaudit.data.audit.columns import PROMPT_SKETCH, RESPONSES_SKETCH, Columns
from plaudit.data.audit.judgements import mixed
from plaudit.data.audit.rows import AuditRows, Progress
from plaudit.data.audit.shingles import NEAR, Hashes, evenly_spaced, jaccard, shingles, words
from plaudit.data.audit.tools import Tools
from plaudit.storage.arrow import RowArray
from plaudit.storage.atomic import writing

# A band of 6 values of the responses and 1 of the prompt is equal with a chance of 0.8^7 where both
# are alike by 0.8; 20 bands then find 99 in 100, and nearly all above that.
ROW_BANDS: Final = tuple(
    (*range(6 * band, 6 * band + 6), RESPONSES_SKETCH + band) for band in range(20)
)
# 10 bands of 4 values find 99.5 in 100 prompts that are alike by 0.8.
PROMPT_BANDS: Final = tuple(
    tuple(range(RESPONSES_SKETCH + 4 * band, RESPONSES_SKETCH + 4 * band + 4)) for band in range(10)
)

NEIGHBOURS: Final = 4
"""Earlier rows of the same bucket that a row is compared with, in each band."""

MOST_CHECKED: Final = 400_000
"""Candidates whose texts are compared; of more, evenly spaced ones, which the facts then say."""

NEAR_OWN: Final = 0.5
"""Jaccard index of what two prompts have beside the words of a template."""

SAMPLED_PROMPTS: Final = 4_000
COMMON_SHARE: Final = 0.01
LEAST_PROMPTS: Final = 5
"""A pair of words is a template's from this share of the prompts on, and this number of them."""

_CHUNK = 1 << 16
_SLACK: Final = 0.2  # three standard deviations of a sketch of 40 values


@dataclass(frozen=True, slots=True, kw_only=True)
class NearPairs:
    """Rows ``row_M``, each with an earlier (or held-out) row that it is nearly equal to.

    ``candidates`` were proposed by equal bands and estimates, ``checked`` had their texts compared.
    """

    row_M: RowArray
    like_M: RowArray
    candidates: int
    checked: int


@dataclass(frozen=True, slots=True)
class Sets:
    """The words of a row as sets: of its prompt, and of each response."""

    prompt: Hashes
    responses: tuple[Hashes, ...]


class Texts:
    """Sets of rows, read again when a candidate is looked at."""

    def __init__(self, rows: AuditRows, tools: Tools) -> None:
        def read(row: int) -> Sets:
            comparison = rows[row]
            return Sets(
                shingles(words(tools.text(comparison.prompt))),
                tuple(shingles(words(tools.text(response))) for response in comparison.responses),
            )

        self.of = lru_cache(maxsize=8192)(read)


def near_rows(
    columns: Columns, eligible: RowArray, texts: Texts, on_progress: Progress
) -> NearPairs:
    """Rows whose prompt and responses are all nearly those of an earlier row of ``eligible``."""

    def alike(one: int, other: int) -> bool:
        ours, theirs = texts.of(one), texts.of(other)
        return jaccard(ours.prompt, theirs.prompt) >= NEAR and same_responses(ours, theirs)

    parts = (slice(0, RESPONSES_SKETCH), slice(RESPONSES_SKETCH, None))
    bands = _write_bands(columns, ROW_BANDS, "rows")
    found = [
        _plausible(columns.sketches, pairs, parts) for pairs in _neighbours(bands, eligible, None)
    ]
    return _verified(found, alike, "near duplicates", on_progress)


def near_prompts(
    columns: Columns, eligible: RowArray, held_out: int, texts: Texts, on_progress: Progress
) -> NearPairs:
    """Rows whose prompt is nearly that of a row from number ``held_out`` on.

    Prompts of one template share most of their words and ask different things. So what is left
    without the words that many prompts share must be alike too.
    """
    common = common_shingles(eligible, texts)

    def alike(one: int, other: int) -> bool:
        ours, theirs = texts.of(one).prompt, texts.of(other).prompt
        if jaccard(ours, theirs) < NEAR:
            return False
        own = (np.setdiff1d(part, common, assume_unique=True) for part in (ours, theirs))
        return jaccard(*own) >= NEAR_OWN

    bands = _write_bands(columns, PROMPT_BANDS, "prompts")
    parts = (slice(RESPONSES_SKETCH, None),)
    found = [
        _plausible(columns.sketches, pairs, parts)
        for pairs in _neighbours(bands, eligible, held_out)
    ]
    return _verified(found, alike, "near prompts", on_progress)


def common_shingles(rows: RowArray, texts: Texts) -> Hashes:
    """Pairs of words that stand in many prompts of ``rows``, by evenly spaced ones of them."""
    chosen = rows[evenly_spaced(len(rows), SAMPLED_PROMPTS)]
    every = [np.zeros(0, np.uint32), *(texts.of(row).prompt for row in chosen.tolist())]
    found, times = np.unique(np.concatenate(every), return_counts=True)
    common: Hashes = found[times >= max(LEAST_PROMPTS, COMMON_SHARE * len(chosen))]
    return common


def same_responses(ours: Sets, theirs: Sets) -> bool:
    """Whether the rows have as many responses, each nearly one of the other's."""
    if len(ours.responses) != len(theirs.responses):
        return False
    return all(
        any(jaccard(response, other) >= NEAR for other in theirs.responses)
        for response in ours.responses
    )


# --- candidates ---------------------------------------------------------------------------------


def _open_sketches(path: Path) -> npt.NDArray[np.uint32]:
    width = RESPONSES_SKETCH + PROMPT_SKETCH
    return np.memmap(path, np.uint32, "r").reshape(-1, width)


def _write_bands(columns: Columns, bands: Sequence[Sequence[int]], name: str) -> list[Path]:
    """A file of one number per row for each band; equal numbers are equal bands."""
    paths = [columns.sketches.with_name(f"{name}-{band}") for band in range(len(bands))]
    count = len(columns.of_rows["group"])
    with writing(columns.sketches):
        for path in paths:
            path.unlink(missing_ok=True)
        for start in range(0, count, _CHUNK):
            # Mapped anew for every chunk: pages that were read stay resident while they are mapped.
            chunk = np.array(_open_sketches(columns.sketches)[start : start + _CHUNK])
            for path, values in zip(paths, bands, strict=True):
                with path.open("ab") as file:
                    file.write(mixed(*(chunk[:, value] for value in values)).tobytes())
    return paths


def _neighbours(
    bands: Sequence[Path], eligible: RowArray, held_out: int | None
) -> Iterator[npt.NDArray[np.int64]]:
    """Per band, pairs ``[M, 2]`` of rows in one bucket.

    Each row with the few before it; where ``held_out`` is given, with held-out rows alone.
    """
    for path in bands:
        key_E = np.fromfile(path, np.uint64)[eligible]
        # Held-out rows have the greatest numbers; reversed they come first in their buckets.
        rows_E = eligible if held_out is None else eligible[::-1]
        key_E = key_E if held_out is None else key_E[::-1]
        order = np.argsort(key_E, kind="stable")
        key_E, rows_E = key_E[order], rows_E[order]
        start_E = _starts(key_E)
        place_E = np.arange(len(key_E))
        pairs = []
        for step in range(1, NEIGHBOURS + 1):
            if held_out is None:
                at = np.flatnonzero(place_E - step >= start_E)
                partner = at - step
            else:
                at = np.flatnonzero(start_E + step - 1 < place_E)
                partner = start_E[at] + step - 1
            pairs.append(np.stack([rows_E[at], rows_E[partner]], axis=1))
        found = np.concatenate(pairs)
        if held_out is not None:
            found = found[(found[:, 0] < held_out) & (found[:, 1] >= held_out)]
        yield found


def _starts(key_E: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """For each place of sorted keys, where its bucket begins."""
    if not len(key_E):
        return np.zeros(0, np.int64)
    first = np.concatenate([[True], key_E[1:] != key_E[:-1]])
    return np.maximum.accumulate(np.where(first, np.arange(len(key_E)), 0))


def _plausible(
    path: Path, pairs: npt.NDArray[np.int64], parts: Sequence[slice]
) -> npt.NDArray[np.int64]:
    """Pairs whose sketches agree, in each part of them, in nearly as many values as they should."""
    kept = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(pairs), _CHUNK):
        some = pairs[start : start + _CHUNK]
        sketches = _open_sketches(path)
        equal = sketches[some[:, 0]] == sketches[some[:, 1]]
        likely = np.ones(len(some), np.bool_)
        for part in parts:
            likely &= equal[:, part].mean(axis=1) >= NEAR - _SLACK
        kept.append(some[likely])
    return np.concatenate(kept)


def _verified(
    found: Sequence[npt.NDArray[np.int64]], alike: Any, doing: str, on_progress: Progress
) -> NearPairs:
    """The candidates whose texts are alike; each row once, with the first row it is like."""
    pairs = np.unique(np.concatenate(found), axis=0)
    chosen = pairs[evenly_spaced(len(pairs), MOST_CHECKED)]
    checked = len(chosen)
    rows: list[int] = []
    like: list[int] = []
    for number, (row, other) in enumerate(chosen.tolist(), start=1):
        # Pairs are sorted by row: of a row that is settled the rest need no look.
        if not (rows and rows[-1] == row) and alike(row, other):
            rows.append(row)
            like.append(other)
        if number % 1000 == 0 or number == checked:
            on_progress(doing, number, checked)
    return NearPairs(
        row_M=np.array(rows, np.int64),
        like_M=np.array(like, np.int64),
        candidates=len(pairs),
        checked=checked,
    )
