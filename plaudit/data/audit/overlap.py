"""Held-out prompts inside other texts: shared runs of 13 words, counted by prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from plaudit.data.audit.shingles import Grams, grams, words

COPIED: Final = 0.5
"""Share of a held-out prompt's runs that must stand in one row."""

COMMON_PROMPTS: Final = 3
COMMON_SHARE: Final = 0.01
"""A run that stands in more prompts than this number, and than this share of those that are looked
at, is a template's and not a prompt's own."""

_TABLE_BITS: Final = 24
_TABLE: Final = 1 << _TABLE_BITS


class EvalGrams:
    """The runs of words of held-out prompts, each with the rows it stands in."""

    def __init__(self, prompts: Iterable[tuple[int, str]] = (), others: Iterable[str] = ()) -> None:
        """``prompts`` are row numbers and texts; equal texts count once, with their first row.

        ``others`` are prompts of the data, for the runs that many prompts share.
        """
        runs_of, rows = _runs_of_prompts(prompts)
        owners = np.repeat(np.array(rows, np.int64), [len(runs) for runs in runs_of])
        runs = np.concatenate([np.zeros(0, np.uint64), *runs_of])
        different = np.unique(runs)
        times = np.bincount(np.searchsorted(different, runs), minlength=len(different))
        most = COMMON_PROMPTS
        if len(different):
            other_runs, _ = _runs_of_prompts(enumerate(others))
            for found in other_runs:
                known = found[np.isin(found, different, assume_unique=True)]
                times[np.searchsorted(different, known)] += 1
            most = max(most, int(COMMON_SHARE * len(other_runs)))
        own = times[np.searchsorted(different, runs)] <= most
        runs, owners = runs[own], owners[own]
        order = np.argsort(runs, kind="stable")
        self.runs: Grams = runs[order]
        self.owners: npt.NDArray[np.int64] = owners[order]
        self._maybe = np.zeros(_TABLE, np.bool_)
        self._maybe[_slot(self.runs)] = True
        owning, totals = np.unique(owners, return_counts=True)
        self._totals = dict(zip(owning.tolist(), totals.tolist(), strict=True))

    def copied(self, parts: Sequence[Grams]) -> int:
        """The held-out row whose prompt's own runs stand in ``parts`` for the most part, else -1.

        Of several, the one with the greatest share, then the first.
        """
        if not len(self.runs):
            return -1
        every = np.concatenate(list(parts))
        # Nearly all runs of nearly all rows end here.
        every = every[self._maybe[_slot(every)]]
        if not len(every):
            return -1
        mine = np.unique(every)
        low = np.searchsorted(self.runs, mine, "left")
        high = np.searchsorted(self.runs, mine, "right")
        hit = high > low
        if not hit.any():
            return -1
        places = np.concatenate(
            [np.arange(a, b) for a, b in zip(low[hit].tolist(), high[hit].tolist(), strict=True)]
        )
        rows, counts = np.unique(self.owners[places], return_counts=True)
        shares = counts / np.array([self._totals[row] for row in rows.tolist()])
        best = int(np.argmax(shares))
        return int(rows[best]) if shares[best] >= COPIED else -1


def _slot(runs: Grams) -> npt.NDArray[np.int64]:
    return (runs >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)


def _runs_of_prompts(prompts: Iterable[tuple[int, str]]) -> tuple[list[Grams], list[int]]:
    """The different runs of words of each different prompt, and the first row it stands in."""
    seen: set[bytes] = set()
    found: list[Grams] = []
    rows: list[int] = []
    for row, text in prompts:
        words_W = words(text)
        key = words_W.tobytes()
        if key not in seen:
            seen.add(key)
            found.append(np.unique(grams(words_W)))
            rows.append(row)
    return found, rows
