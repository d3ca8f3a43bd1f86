"""Which texts are alike: sets of hashed pairs of words, MinHash sketches, shared runs of words.

Two texts are near duplicates when their sets are alike (Jaccard, :data:`NEAR` and above). Among
millions of rows candidates come from ``datasketch``'s sketches (Broder, 1997: the share of equal
values estimates the Jaccard index). Rows whose sketches agree in all values of a band are
candidates (locality-sensitive hashing; Leskovec et al., *Mining of Massive Datasets*, 3.4). Each
band is a file of numbers that is sorted by itself, so that the memory is that of one band. Sketches
only propose candidates; the sets decide.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from plaudit.storage.arrow import RowArray
from plaudit.storage.atomic import writing

if TYPE_CHECKING:
    from datasketch import MinHash

Hashes: TypeAlias = npt.NDArray[np.uint32]
Codes: TypeAlias = npt.NDArray[np.uint64]

NEAR: Final = 0.8
"""Jaccard index of the pairs of words from which on two texts are near duplicates.

A text of 100 words with one word replaced has 0.96, with five words replaced 0.82.
"""

GRAM_WORDS: Final = 13
"""Words of a run that two texts share by copying rather than by chance (GPT-3, appendix C)."""

PROMPT_SKETCH: Final = 40
RESPONSES_SKETCH: Final = 120
SKETCH: Final = RESPONSES_SKETCH + PROMPT_SKETCH
"""Values of the MinHash sketches of a row's prompt, of its responses together, and of both."""

SEED: Final = 1

# Scripts written without spaces between words count a character as a word.
_WORD = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]|[^\\W_]+"
)
_MIX: Final = np.uint32(0x9E3779B1)
_POWERS: Final = np.array(
    [pow(0x100000001B3, place, 1 << 64) for place in range(GRAM_WORDS)], np.uint64
)


class _WordHashes(dict[str, int]):
    """Hashes of words, made when first asked for; far faster than ``functools.lru_cache``."""

    _most = 1 << 18

    def __missing__(self, word: str) -> int:
        if len(self) >= self._most:
            self.clear()
        # Half characters come out of tables; every hash must be the same in every process.
        code = self[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return code


_word_hashes = _WordHashes()


def words(text: str) -> Hashes:
    """Hashes of the text's words in order; case, punctuation and white space do not count.

    Of a text without words (signs, pictures), the characters.
    """
    every = _WORD.findall(text.lower()) or [sign for sign in text if not sign.isspace()]
    return np.fromiter(map(_word_hashes.__getitem__, every), np.uint32, len(every))


def shingles(words_T: Hashes) -> Hashes:
    """The set of pairs of neighbouring words, sorted; of one word, the word itself."""
    if len(words_T) < 2:
        return words_T
    return np.unique((words_T[:-1] * _MIX) ^ words_T[1:])


def jaccard(one: Hashes, other: Hashes) -> float:
    """Shared over all; two empty sets are alike."""
    if not len(one) and not len(other):
        return 1.0
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def grams(words_T: Hashes) -> Codes:
    """Hashes of all runs of :data:`GRAM_WORDS` words, in order; none where the text is shorter."""
    count = len(words_T) - GRAM_WORDS + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    runs: Codes = sliding_window_view(words_T.astype(np.uint64), GRAM_WORDS) @ _POWERS
    return runs


class Sketcher:
    """MinHash sketches of ``size`` values each."""

    def __init__(self, size: int) -> None:
        from datasketch import MinHash

        self.size = size
        self._empty: MinHash = MinHash(num_perm=size, seed=SEED, hashfunc=int)

    def __call__(self, set_S: Hashes) -> Hashes:
        """The sketch of one set; of the empty set, the greatest values."""
        sketch = self._empty.copy()
        sketch.update_batch(set_S.tolist())
        values: Hashes = sketch.hashvalues
        return values


def evenly_spaced(count: int, most: int) -> npt.NDArray[np.int64]:
    """All numbers below ``count``, or ``most`` evenly spaced ones of them."""
    taken = min(count, most)
    return np.arange(taken) * count // max(taken, 1)


def combine_hashes(*columns: npt.NDArray[Any]) -> Codes:
    """One number for several, by multiplication and rotation (as FNV and MurmurHash mix)."""
    codes = np.full(len(columns[0]), 0xCBF29CE484222325, np.uint64)
    for column in columns:
        codes = (codes ^ column.astype(np.uint64)) * np.uint64(0x9FB21C651E98DF25)
        codes ^= codes >> np.uint64(32)
    return codes


# --- held-out prompts inside other texts ----------------------------------------------------------

COPIED: Final = 0.5
"""Share of a held-out prompt's runs that one row must contain."""

COMMON_PROMPTS: Final = 3
_GRAM_SHARE: Final = 0.01
"""A run in more prompts than this number, and than this share of the prompts compared, belongs to a
template and not to a prompt."""

_TABLE_BITS: Final = 24
_TABLE: Final = 1 << _TABLE_BITS


class HeldOutGrams:
    """The runs of words of held-out prompts, each with the rows that contain it."""

    def __init__(self, prompts: Iterable[tuple[int, str]] = (), others: Iterable[str] = ()) -> None:
        """``prompts`` are row numbers and texts; equal texts count once, with their first row.

        ``others`` are prompts of the data, for the runs that many prompts share.
        """
        runs_of = _runs_of_prompts(prompts)
        owners = np.repeat(np.array(list(runs_of), np.int64), list(map(len, runs_of.values())))
        runs = np.concatenate([np.zeros(0, np.uint64), *runs_of.values()])
        different = np.unique(runs)
        times = np.bincount(np.searchsorted(different, runs), minlength=len(different))
        most = COMMON_PROMPTS
        if len(different):
            other_runs = _runs_of_prompts(enumerate(others))
            for one in other_runs.values():
                known = one[np.isin(one, different, assume_unique=True)]
                times[np.searchsorted(different, known)] += 1
            most = max(most, int(_GRAM_SHARE * len(other_runs)))
        own = times[np.searchsorted(different, runs)] <= most
        runs, owners = runs[own], owners[own]
        order = np.argsort(runs, kind="stable")
        self.runs: Codes = runs[order]
        self.owners: npt.NDArray[np.int64] = owners[order]
        self._maybe = np.zeros(_TABLE, np.bool_)
        self._maybe[_slot(self.runs)] = True
        owning, totals = np.unique(owners, return_counts=True)
        self._totals = dict(zip(owning.tolist(), totals.tolist(), strict=True))

    def copied(self, parts: Sequence[Codes]) -> int:
        """The held-out row of whose prompt's own runs ``parts`` contain most; -1 below the share.

        Of several, the one with the greatest share, then the first.
        """
        if not parts or not len(self.runs):
            return -1
        every = np.concatenate(list(parts))
        # Nearly all runs of nearly all rows end here.
        every = every[self._maybe[_slot(every)]]
        if not len(every):
            return -1
        mine = np.unique(every)
        low = np.searchsorted(self.runs, mine, "left").tolist()
        high = np.searchsorted(self.runs, mine, "right").tolist()
        owners = [self.owners[a:b] for a, b in zip(low, high, strict=True) if a < b]
        if not owners:
            return -1
        rows, counts = np.unique(np.concatenate(owners), return_counts=True)
        shares = counts / np.array([self._totals[row] for row in rows.tolist()])
        best = int(np.argmax(shares))
        return int(rows[best]) if shares[best] >= COPIED else -1


def _slot(runs: Codes) -> npt.NDArray[np.int64]:
    return (runs >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)


def _runs_of_prompts(prompts: Iterable[tuple[int, str]]) -> dict[int, Codes]:
    """The distinct runs of words of each distinct prompt, by the first row that has it."""
    runs_of: dict[int, Codes] = {}
    seen: set[bytes] = set()
    for row, text in prompts:
        words_W = words(text)
        key = words_W.tobytes()
        if key not in seen:
            seen.add(key)
            runs_of[row] = np.unique(grams(words_W))
    return runs_of


# --- near duplicates ------------------------------------------------------------------------------

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
"""Earlier rows of the same bucket with which a row is compared, in each band."""

MOST_CHECKED: Final = 400_000
"""Candidates whose texts are compared; of more, evenly spaced ones, and the finding says so."""

NEAR_OWN: Final = 0.5
"""Jaccard index of what two prompts have besides the words of a template."""

SAMPLED_PROMPTS: Final = 4_000
COMMON_SHARE: Final = 0.01
LEAST_PROMPTS: Final = 5
"""A pair of words belongs to a template from this share and this number of prompts on."""

_CHUNK = 1 << 16
_SLACK: Final = 0.2  # three standard deviations of a sketch of 40 values


@dataclass(frozen=True, slots=True, kw_only=True)
class NearPairs:
    """Rows ``row_M``, each with an earlier (or held-out) row ``other_M`` that is nearly equal.

    ``candidates`` were proposed by equal bands and estimates, ``checked`` had their texts compared.
    """

    row_M: RowArray
    other_M: RowArray
    candidates: int
    checked: int


@dataclass(frozen=True, slots=True)
class ShingleSets:
    """The shingles of a row's prompt and of each of its responses."""

    prompt: Hashes
    responses: tuple[Hashes, ...]


SetsOf: TypeAlias = Callable[[int], ShingleSets]
"""Reads the sets of a row by its number."""

OnChecked: TypeAlias = Callable[[int, int], None]
"""Is called with the number of candidates compared, and of all."""


def near_rows(
    sketches: Path, eligible: RowArray, sets_of: SetsOf, on_checked: OnChecked
) -> NearPairs:
    """Rows whose prompt and responses are all nearly those of an earlier row of ``eligible``.

    ``sketches`` is a file of :data:`SKETCH` values per row: responses, then prompt.
    """

    def alike(one: int, other: int) -> bool:
        ours, theirs = sets_of(one), sets_of(other)
        return jaccard(ours.prompt, theirs.prompt) >= NEAR and same_responses(ours, theirs)

    parts = (slice(0, RESPONSES_SKETCH), slice(RESPONSES_SKETCH, None))
    candidates = _candidates(sketches, ROW_BANDS, parts, eligible)
    return _verified(candidates, alike, on_checked)


def near_prompts(
    sketches: Path, eligible: RowArray, held_out: int, sets_of: SetsOf, on_checked: OnChecked
) -> NearPairs:
    """Rows whose prompt is nearly that of a row from number ``held_out`` on.

    Prompts of one template share most of their words and ask different things. So what is left
    without the words that many prompts share must be alike too.
    """
    common = common_shingles(eligible, sets_of)

    def alike(one: int, other: int) -> bool:
        ours, theirs = sets_of(one).prompt, sets_of(other).prompt
        if jaccard(ours, theirs) < NEAR:
            return False
        own = (np.setdiff1d(part, common, assume_unique=True) for part in (ours, theirs))
        return jaccard(*own) >= NEAR_OWN

    parts = (slice(RESPONSES_SKETCH, None),)
    candidates = _candidates(sketches, PROMPT_BANDS, parts, eligible, held_out)
    return _verified(candidates, alike, on_checked)


def common_shingles(rows: RowArray, sets_of: SetsOf) -> Hashes:
    """Pairs of words in many prompts of ``rows``, by evenly spaced ones of them."""
    chosen = rows[evenly_spaced(len(rows), SAMPLED_PROMPTS)]
    every = [np.zeros(0, np.uint32), *(sets_of(row).prompt for row in chosen.tolist())]
    pairs, times = np.unique(np.concatenate(every), return_counts=True)
    common: Hashes = pairs[times >= max(LEAST_PROMPTS, COMMON_SHARE * len(chosen))]
    return common


def same_responses(ours: ShingleSets, theirs: ShingleSets) -> bool:
    """Whether the rows have as many responses, each nearly one of the other's."""
    return len(ours.responses) == len(theirs.responses) and all(
        any(jaccard(response, other) >= NEAR for other in theirs.responses)
        for response in ours.responses
    )


def _open_sketches(path: Path) -> npt.NDArray[np.uint32]:
    return np.memmap(path, np.uint32, "r").reshape(-1, SKETCH)


def _candidates(
    sketches: Path,
    bands: Sequence[Sequence[int]],
    parts: Sequence[slice],
    eligible: RowArray,
    held_out: int | None = None,
) -> npt.NDArray[np.int64]:
    """Different pairs ``[M, 2]`` of eligible rows with an equal band and ``parts`` that agree."""
    found = [
        _plausible(sketches, _neighbours(path, eligible, held_out), parts)
        for path in _write_bands(sketches, bands)
    ]
    return np.unique(np.concatenate(found), axis=0)


def _write_bands(sketches: Path, bands: Sequence[Sequence[int]]) -> list[Path]:
    """A file of one number per row for each band; equal numbers are equal bands."""
    paths = [sketches.with_name(f"band-{band}") for band in range(len(bands))]
    count = len(_open_sketches(sketches))
    with writing(sketches), ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for start in range(0, count, _CHUNK):
            # Mapped anew for every chunk: pages that were read stay resident while they are mapped.
            chunk = np.array(_open_sketches(sketches)[start : start + _CHUNK])
            for file, values in zip(files, bands, strict=True):
                file.write(combine_hashes(*(chunk[:, value] for value in values)).tobytes())
    return paths


def _neighbours(band: Path, eligible: RowArray, held_out: int | None) -> npt.NDArray[np.int64]:
    """Pairs ``[M, 2]`` of rows in one bucket of a band.

    Each row with the few before it; where ``held_out`` is given, with held-out rows alone.
    """
    # Held-out rows have the greatest numbers; reversed they come first in their buckets.
    rows_E = eligible if held_out is None else eligible[::-1]
    key_E = np.fromfile(band, np.uint64)[rows_E]
    order = np.argsort(key_E, kind="stable")
    key_E, rows_E = key_E[order], rows_E[order]
    start_E = np.searchsorted(key_E, key_E)
    place_E = np.arange(len(key_E))
    pairs = []
    for step in range(NEIGHBOURS):
        partner_E = place_E - 1 - step if held_out is None else start_E + step
        at = np.flatnonzero((start_E <= partner_E) & (partner_E < place_E))
        pairs.append(np.stack([rows_E[at], rows_E[partner_E[at]]], axis=1))
    every = np.concatenate(pairs)
    if held_out is not None:
        every = every[(every[:, 0] < held_out) & (every[:, 1] >= held_out)]
    return every


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
    pairs: npt.NDArray[np.int64], alike: Callable[[int, int], bool], on_checked: OnChecked
) -> NearPairs:
    """The candidates whose texts are alike; each row once, with the first row it is like."""
    chosen = pairs[evenly_spaced(len(pairs), MOST_CHECKED)]
    checked = len(chosen)
    near: dict[int, int] = {}
    for number, (row, other) in enumerate(chosen.tolist(), start=1):
        if row not in near and alike(row, other):
            near[row] = other
        if number % 1000 == 0 or number == checked:
            on_checked(number, checked)
    return NearPairs(
        row_M=np.array(list(near), np.int64),
        other_M=np.array(list(near.values()), np.int64),
        candidates=len(pairs),
        checked=checked,
    )
