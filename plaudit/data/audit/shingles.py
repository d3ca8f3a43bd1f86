"""Texts as sets of hashed pairs of words, and MinHash sketches of them.

Two texts are near duplicates when their sets are alike (Jaccard, :data:`NEAR` and above). Sketches
are those of ``datasketch`` (Broder, 1997: the share of equal sketch values estimates the Jaccard
index); they only propose, the sets decide.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from datasketch import MinHash

Hashes: TypeAlias = npt.NDArray[np.uint32]
Grams: TypeAlias = npt.NDArray[np.uint64]

NEAR: Final = 0.8
"""Jaccard index of the pairs of words from which on two texts are near duplicates.

A text of 100 words with one word replaced has 0.96, with five words replaced 0.82.
"""

GRAM_WORDS: Final = 13
"""Words of a run that two texts share by copying rather than by chance (GPT-3, appendix C)."""

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
        found = self[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return found


_word_hashes = _WordHashes()


def words(text: str) -> Hashes:
    """Hashes of the text's words in order; case, punctuation and white space do not count.

    Of a text without words (signs, pictures), the characters.
    """
    found = _WORD.findall(text.lower()) or [sign for sign in text if not sign.isspace()]
    return np.fromiter(map(_word_hashes.__getitem__, found), np.uint32, len(found))


def shingles(words_T: Hashes) -> Hashes:
    """The set of pairs of neighbouring words, sorted; of one word, the word itself."""
    if len(words_T) < 2:
        return words_T
    return np.unique((words_T[:-1] * _MIX) ^ words_T[1:])


def union(sets: Iterable[Hashes]) -> Hashes:
    """All shingles of several texts, sorted."""
    parts = list(sets)
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint32)


def jaccard(one: Hashes, other: Hashes) -> float:
    """Shared over all; two empty sets are alike."""
    if not len(one) and not len(other):
        return 1.0
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def grams(words_T: Hashes) -> Grams:
    """Hashes of all runs of :data:`GRAM_WORDS` words, in order; none where the text is shorter."""
    count = len(words_T) - GRAM_WORDS + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    found: Grams = sliding_window_view(words_T.astype(np.uint64), GRAM_WORDS) @ _POWERS
    return found


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
        found: Hashes = sketch.hashvalues
        return found


def evenly_spaced(count: int, most: int) -> npt.NDArray[np.int64]:
    """All numbers below ``count``, or ``most`` evenly spaced ones of them."""
    taken = min(count, most)
    return np.arange(taken) * count // max(taken, 1)
