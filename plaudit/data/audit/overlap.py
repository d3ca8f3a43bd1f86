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
"""A run that stands in more prompts than this is a template's, not a prompt's own."""


class EvalGrams:
    """The runs of words of held-out prompts, each with the rows it stands in."""

    def __init__(self, prompts: Iterable[tuple[int, str]] = ()) -> None:
        """``prompts`` are row numbers and texts; equal texts count once, with their first row."""
        first_rows: dict[bytes, int] = {}
        found: list[Grams] = []
        for row, text in prompts:
            words_W = words(text)
            key = words_W.tobytes()
            if key not in first_rows and len(words_W):
                first_rows[key] = row
                found.append(np.unique(grams(words_W)))
        owners = np.repeat(np.array([*first_rows.values()], np.int64), [len(g) for g in found])
        runs = np.concatenate([np.zeros(0, np.uint64), *found])
        _, inverse, counts = np.unique(runs, return_inverse=True, return_counts=True)
        own = counts[inverse] <= COMMON_PROMPTS
        runs, owners = runs[own], owners[own]
        order = np.argsort(runs, kind="stable")
        self.runs: Grams = runs[order]
        self.owners: npt.NDArray[np.int64] = owners[order]
        rows, totals = np.unique(owners, return_counts=True)
        self._totals = dict(zip(rows.tolist(), totals.tolist(), strict=True))

    def copied(self, parts: Sequence[Grams]) -> int:
        """The held-out row whose prompt's own runs stand in ``parts`` for the most part, else -1.

        Of several, the one with the greatest share, then the first.
        """
        if not len(self.runs):
            return -1
        mine = np.unique(np.concatenate(list(parts)))
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
