"""Sources to comparisons, with every row accounted for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from plaudit.arrow import RowArray
from plaudit.data import embedded, files, hub
from plaudit.data.readers import Reader, choose_reader, to_comparison
from plaudit.data.reasons import EXPLANATIONS, NOT_SAMPLED
from plaudit.data.store import OnRead, StoredComparisons, store_source
from plaudit.errors import DataError
from plaudit.recipe import Source
from plaudit.types import Comparison

LocatedComparison: TypeAlias = tuple[int, str, dict[str, Any], Comparison]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Where the rows went: ``rows == used + sum(dropped.values())``, always.

    All three count rows as they stand in the input, once each. ``sampled`` counts comparisons
    after the weights of the sources: a row that a weight of 3 repeats is one row used and three
    comparisons sampled, and a row that a weight below 1 leaves out is dropped as ``not_sampled``.
    """

    rows: int
    used: int
    sampled: int
    dropped: Mapping[str, int]

    def __post_init__(self) -> None:
        assert self.rows == self.used + sum(self.dropped.values()), "a row is unaccounted for"
        assert self.sampled >= self.used, "a row counts as used without a comparison"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What is known of one source. ``format`` is the name of its reader."""

    name: str
    path: str
    format: str
    tally: Tally
    fingerprint: str
    licence: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Comparisons in input order (a repeated one stands beside its copies), and their account.

    They lie in the cache folder and are decoded one at a time.
    """

    comparisons: StoredComparisons
    tally: Tally
    sources: tuple[SourceFacts, ...]


def load(
    sources: Sequence[Source], *, seed: int, on_read: OnRead = lambda name, rows: None
) -> Loaded:
    """Read all sources and keep what can train, each source as often as its weight says.

    A weight of w gives every usable row floor(w) copies, and one more to a fraction w - floor(w)
    of them, drawn with ``seed`` and the source's name, so that no source changes another's draw.
    A source that was read before comes out of the cache. ``on_read`` hears of rows read.

    Raises:
        DataError: a source cannot be read, a row has a value of the wrong type, two sources have
            the same name, or nothing usable is left.
    """
    _check_names(sources)
    parts: list[StoredComparisons] = []
    facts: list[SourceFacts] = []
    for source in sources:
        kept, source_facts = _load_one(source, seed, on_read)
        parts.append(kept)
        facts.append(source_facts)
    tally = _sum([fact.tally for fact in facts])
    comparisons = StoredComparisons.joined(parts)
    if not comparisons:
        raise DataError(_nothing_left(sources, tally))
    return Loaded(comparisons=comparisons, tally=tally, sources=tuple(facts))


def iterate(source: Source) -> Iterator[LocatedComparison]:
    """Yield ``(row number from 1, where, row as read, comparison)`` for every row, dropping none.

    Streams: the memory does not grow with the number of rows of a JSON Lines file.

    Raises:
        DataError: the source cannot be read, or a row has a value of the wrong type.
    """
    return _open(source)[1]


def _open(source: Source) -> tuple[Reader, Iterator[LocatedComparison]]:
    rows = files.read_rows(source)
    first = next(rows)  # read_rows raises rather than yield nothing
    reader = choose_reader(first[1], where=first[0], name=source.format)
    return reader, _parse_all(source, reader, chain([first], rows))


def _parse_all(
    source: Source, reader: Reader, located: Iterable[files.LocatedRow]
) -> Iterator[LocatedComparison]:
    name = files.source_name(source)
    for number, (where, row) in enumerate(located, start=1):
        comparison = to_comparison(reader, row, number=number, where=where, source=name)
        yield number, where, row, comparison


def _load_one(source: Source, seed: int, on_read: OnRead) -> tuple[StoredComparisons, SourceFacts]:
    def read() -> tuple[str, Iterator[Comparison]]:
        reader, located = _open(source)
        return reader.name, (comparison for _, _, _, comparison in located)

    name = files.source_name(source)
    fingerprint = files.fingerprint(source)
    table = store_source(source, read, fingerprint=fingerprint, on_read=on_read)
    dropped = Counter(table.record["dropped"])
    copies_N = _copies(table.rows, source.weight, random.Random(f"{seed}/{name}"))
    kept = StoredComparisons([table], np.repeat(np.arange(table.rows), copies_N))
    used = int(np.count_nonzero(copies_N))
    if used < table.rows:
        dropped[NOT_SAMPLED] = table.rows - used
    return kept, SourceFacts(
        name=name,
        path=source.path,
        format=table.record["format"],
        tally=Tally(rows=table.record["rows"], used=used, sampled=len(kept), dropped=dict(dropped)),
        fingerprint=fingerprint,
        licence=_licence(source),
    )


def _licence(source: Source) -> str | None:
    if embedded.is_documentation(source):
        return "PSF-2.0"
    return hub.licence(source) if files.local_files(source) is None else None


def _copies(rows: int, weight: float, rng: random.Random) -> RowArray:
    """How often each usable row is taken."""
    whole = int(weight)
    copies_N = np.full(rows, whole, dtype=np.int64)
    copies_N[rng.sample(range(rows), round((weight - whole) * rows))] += 1
    return copies_N


def _sum(tallies: list[Tally]) -> Tally:
    dropped: Counter[str] = Counter()
    for tally in tallies:
        dropped.update(tally.dropped)
    return Tally(
        rows=sum(tally.rows for tally in tallies),
        used=sum(tally.used for tally in tallies),
        sampled=sum(tally.sampled for tally in tallies),
        dropped=dict(dropped),
    )


def _check_names(sources: Sequence[Source]) -> None:
    names = Counter(files.source_name(source) for source in sources)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise DataError(
            f"two sources are called {twice[0]!r}, so their rows could not be told apart; give"
            " each its own `name`."
        )


def _nothing_left(sources: Sequence[Source], tally: Tally) -> str:
    if not sources:
        return "no data source is given; expected at least one path or Hub dataset id."
    counts = "; ".join(
        f"{count} {reason} ({EXPLANATIONS[reason]})" for reason, count in tally.dropped.items()
    )
    paths = ", ".join(source.path for source in sources)
    return f"none of the {tally.rows} rows of {paths} can be used: {counts}."
