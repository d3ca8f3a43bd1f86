"""Sources to comparisons, with every row accounted for."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from plaudit import __version__, registry
from plaudit.data.formats.readers import (
    check_names,
    check_same_format,
    mapped_columns,
    renamed_row,
    strength_of,
    to_comparison,
)
from plaudit.data.formats.records import Reader
from plaudit.data.reasons import EXPLANATIONS, NOT_SAMPLED, why_untrainable
from plaudit.data.sources import documentation
from plaudit.data.sources.files import LocatedRow, Row
from plaudit.data.sources.read import (
    licence,
    local_files,
    read_rows,
    resolve,
    source_fingerprint,
    source_name,
)
from plaudit.data.store import StoredComparisons, write_comparisons
from plaudit.data.unread import TrackedRow, UnreadColumns, UnreadCounter, open_reader
from plaudit.errors import DataError
from plaudit.recipe.objectives import OBJECTIVES, LearnsFrom
from plaudit.recipe.schema import Source, StoppingStrategy
from plaudit.storage.arrow import BATCH_ROWS, MappedTable, cached, code_digest
from plaudit.types import Comparison

logger = logging.getLogger("plaudit")

OnRead: TypeAlias = Callable[[str, int], None]
"""Called with a source's name and how many of its rows have been read."""

MIXED_FROM: Final = "mixed_from"
"""Metadata that names the part of a mixture, where rows name another source themselves."""


class LocatedComparison(NamedTuple):
    """A row: its number from 1, the place it stands, its columns as read, and what it says."""

    number: int
    where: str
    row: dict[str, Any]
    comparison: Comparison


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
class SourceUse:
    """A source as it was read. ``sampled``, ``licence`` and ``split`` are those of a run."""

    name: str
    path: str
    format: str
    fingerprint: str
    unread: UnreadColumns
    rows: int | None = None
    used: int | None = None
    sampled: int | None = None
    licence: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedComparisons:
    """Comparisons in input order (a repeated one stands beside its copies), and their account.

    They lie in the cache folder and are decoded one at a time. Each source has a tally. ``rated``
    counts the input rows in use that have ratings, ``usable_by`` the dropped ones that an objective
    which learns from something else could use, ``attributes`` all input rows that have a number of
    an attribute.
    """

    comparisons: StoredComparisons
    tallies: tuple[Tally, ...]
    sources: tuple[SourceUse, ...]
    rated: int
    usable_by: Mapping[LearnsFrom, int]
    attributes: Mapping[str, int]

    @property
    def tally(self) -> Tally:
        """Of all sources."""
        return Tally(
            rows=sum(tally.rows for tally in self.tallies),
            used=sum(tally.used for tally in self.tallies),
            sampled=sum(tally.sampled for tally in self.tallies),
            dropped=dict(sum((Counter(tally.dropped) for tally in self.tallies), Counter())),
        )


def load_comparisons(
    sources: Sequence[Source],
    *,
    seed: int,
    learns_from: LearnsFrom = "order",
    outputs: tuple[str, ...] = (),
    stopping_strategy: StoppingStrategy = "first_exhausted",
    on_read: OnRead = lambda name, rows: None,
) -> LoadedComparisons:
    """Read all sources and keep what an objective learns from, each source as often as it says.

    With ``outputs``, what an output learns from (:func:`plaudit.data.reasons.why_untrainable`).
    A weight of w gives every usable row floor(w) copies, and one more to a fraction w - floor(w)
    of them. ``num_samples`` is a number of comparisons: fewer than there are leave rows out, more
    repeat them as a weight does. Probabilities mix sources: as many of each in proportion, until
    the first of them is exhausted, or (``all_exhausted``) until every one is, smaller ones
    repeated. What is left out or repeated is drawn with ``seed`` and the source's name, so that no
    source changes another's draw. A source that was read before comes out of the cache.
    ``on_read`` is called with the name and the rows read. An entry of a tool's description of data
    sets stands for the source that it describes.

    Raises:
        DataError: a source cannot be read, a row has a value of the wrong type, two sources have
            the same name, or nothing usable is left.
    """
    sources = [resolve(source) for source in sources]
    _check_names(sources)
    tables = [
        _source_table(source, learns_from, outputs, on_read, mixed=len(sources) > 1)
        for source in sources
    ]
    wanted = _wanted(sources, tables, stopping_strategy)
    loaded = [
        _take(source, table, count, seed)
        for source, table, count in zip(sources, tables, wanted, strict=True)
    ]
    uses = tuple(use for one in loaded for use in one.sources)
    for warning in (use.unread.warning(use.name) for use in uses):
        if warning is not None:
            logger.warning("%s", warning)
    together = LoadedComparisons(
        comparisons=StoredComparisons.joined([one.comparisons for one in loaded]),
        tallies=tuple(tally for one in loaded for tally in one.tallies),
        sources=uses,
        rated=sum(one.rated for one in loaded),
        usable_by=dict(sum((Counter(one.usable_by) for one in loaded), Counter())),
        attributes=dict(sum((Counter(one.attributes) for one in loaded), Counter())),
    )
    if not together.comparisons:
        raise DataError(_nothing_left(sources, together, outputs))
    return together


def check_source(source: Source) -> None:
    """Say early that a source which can only be on this machine is not there. Reads no rows.

    Raises:
        DataError: there is no such file or folder, or none of a known kind.
    """
    if documentation.is_documentation(source):
        documentation.parse(source.path)
    else:
        local_files(resolve(source))


def with_known_columns(source: Source) -> Source:
    """The source without the entries of its ``columns`` whose column none of its rows has.

    For data beside those that a command line maps, which may have other names. Reads rows until it
    has seen each column. What a tool's description of the source maps itself stays.

    Raises:
        DataError: the source cannot be read.
    """
    unseen = mapped_columns(source)
    rows = islice(read_rows(resolve(source)), source.max_rows)
    while unseen and (located := next(rows, None)) is not None:
        unseen -= located[1].keys()
    kept = {
        ours: theirs
        for ours, theirs in source.columns.items()
        if (ours if theirs is None else theirs) not in unseen
    }
    return resolve(source.model_copy(update={"columns": kept}))


def first_comparisons(
    sources: Sequence[Source], first: int, last: int
) -> tuple[list[Comparison], list[str]]:
    """Comparisons ``first`` to ``last`` (from 0, ``last`` left out) of all sources end to end.

    With them, sentences on what is not read of the rows up to the last.

    Raises:
        DataError: there are not so many, or a source cannot be read.
    """
    opened: list[tuple[str, OpenSource]] = []

    def comparisons() -> Iterator[Comparison]:
        for source in sources:
            opened.append((source.path, open_source(source)))
            yield from (row.comparison for row in opened[-1][1].rows)

    chosen = list(islice(comparisons(), first, last))
    if not chosen:
        paths = ", ".join(source.path for source in sources)
        raise DataError(f"there is no row {first + 1} in {paths}.")
    return chosen, [line for path, one in opened for line in one.counter.total.lines(path)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSource:
    """A source whose first row chose its reader.

    ``rows`` are read once, and counted meanwhile. They are streamed: the memory does not grow with
    the number of rows of a JSON Lines file.
    """

    reader: Reader
    rows: Iterator[LocatedComparison]
    counter: UnreadCounter


def open_source(source: Source) -> OpenSource:
    """Every row with its comparison, dropping none, and what is not read of the rows so far.

    Raises:
        DataError: the source cannot be read, or its first row fits no format; while ``rows`` are
            read, one has a value of the wrong type.
    """
    source = resolve(source)
    check_names(source)
    rows = islice(read_rows(source), source.max_rows)
    first = next(rows)  # read_rows raises rather than yield nothing
    named = renamed_row(source, first[1])
    reader = open_reader(source, named, where=first[0])
    if source.preference_strength != "ignore":
        _check_strength(source, reader, named, first[0])
    counter = UnreadCounter(source)
    located = _parse_all(source, reader, counter, chain([first], rows))
    return OpenSource(reader=reader, rows=located, counter=counter)


def _check_strength(source: Source, reader: Reader, first: Row, where: str) -> None:
    """Whether the first row says how clear its preference is.

    Raises:
        DataError: it does not, or it is no pair.
    """
    use = source.preference_strength
    comparison = to_comparison(
        reader, first, number=1, where=where, source=source.path, strength_use=use
    )
    if use == "soft_label":
        decided = len(set(comparison.grades)) > 1
        if decided and comparison.soft_label is None:
            raise DataError(
                f"{where}: `preference_strength: soft_label` needs the preferences of several "
                f"annotators, but a row of the format {reader.name} does not have them (columns: "
                f"{', '.join(first)}); map a column with the share of annotators who agree with "
                "`columns: {soft_label: …}`, or set preference_strength to ignore."
            )
    elif strength_of(reader.parse(first), first) is None:
        raise DataError(
            f"{where}: `preference_strength: {use}` needs the strength of each preference, but a "
            f"row of the format {reader.name} does not have it (columns: {', '.join(first)}); "
            "map the columns with `columns: {score_chosen: …, score_rejected: …}`, or set "
            "preference_strength to ignore."
        )


def _parse_all(
    source: Source, reader: Reader, counter: UnreadCounter, located: Iterable[LocatedRow]
) -> Iterator[LocatedComparison]:
    name = source_name(source)
    unseen, first = mapped_columns(source), ""
    for number, (where, row) in enumerate(located, start=1):
        if unseen:
            unseen -= row.keys()
            first = first or ", ".join(row)
        named = renamed_row(source, row)
        if source.format is None:
            check_same_format(reader, named, where=where)
        tracked = TrackedRow(named)
        comparison = to_comparison(
            reader,
            tracked,
            number=number,
            where=where,
            source=name,
            strength_use=source.preference_strength,
        )
        counter.count(tracked, comparison, row)
        yield LocatedComparison(number, where, row, comparison)
    if unseen:
        raise DataError(
            f"`columns` of {source.path} names {' and '.join(sorted(unseen))}, which no row has "
            f"(columns of the first row: {first})."
        )
    counter.check()


def _source_table(
    source: Source,
    learns_from: LearnsFrom,
    outputs: tuple[str, ...],
    on_read: OnRead,
    *,
    mixed: bool,
) -> MappedTable:
    """The table of a source's usable comparisons, in the order of its rows, cached or new.

    Its record has ``name``, ``fingerprint``, ``format``, ``dropped`` (the unusable, by reason),
    ``usable_by``, ``rated`` and ``attributes`` (:class:`LoadedComparisons`), and
    ``unread`` (the fields of :class:`UnreadColumns`, with the number of all rows).
    """
    name, fingerprint = source_name(source), source_fingerprint(source)

    def build(path: Path) -> Mapping[str, Any]:
        opened = open_source(source)
        dropped: Counter[str] = Counter()
        usable_by: Counter[LearnsFrom] = Counter()
        attributes: Counter[str] = Counter()
        rated = 0

        def usable() -> Iterator[Comparison]:
            nonlocal rated
            for number, _, _, comparison in opened.rows:
                if number % BATCH_ROWS == 0:
                    on_read(name, number)
                attributes.update(comparison.attributes.keys())
                reason = why_untrainable(comparison, learns_from, outputs)
                if reason is not None:
                    dropped[reason] += 1
                    usable_by.update(
                        other
                        for other in ("order_and_ties", "ratings")
                        if why_untrainable(comparison, other, outputs) is None
                    )
                    continue
                rated += comparison.rated and bool(comparison.grades)
                # The name of its part, which a source of the row's own would hide.
                if mixed and comparison.source != name:
                    metadata = {**comparison.metadata, MIXED_FROM: name}
                    comparison = replace(comparison, metadata=metadata)
                yield comparison

        write_comparisons(path, usable())
        if source_fingerprint(source) != fingerprint:
            raise DataError(f"{source.path} changed while it was read; run the command again.")
        return {
            "name": name,
            "fingerprint": fingerprint,
            "format": opened.reader.name,
            "dropped": dict(dropped),
            "usable_by": dict(usable_by),
            "rated": rated,
            "attributes": dict(attributes),
            "unread": asdict(opened.counter.total),
        }

    key = {
        "source": source.model_dump(mode="json", exclude={"weight", "num_samples", "probability"}),
        "name": name,
        "fingerprint": fingerprint,
        "mixed": mixed,
        "learns_from": learns_from,
        "outputs": outputs,
        "version": __version__,
        "code": code_digest(*_code()),
    }
    return cached("comparisons", key, build)


def _code() -> Iterator[Path]:
    """The modules that decide what a row becomes."""
    data = Path(__file__).parent
    yield from (data.parent / "types.py", data / "perturb" / "words.json")
    for folder in (data, data / "sources", data / "formats", data / "perturb"):
        yield from folder.glob("*.py")
    for kind in ("row_format", "data_source"):
        yield from {registry.source_file(kind, name) for name in registry.names(kind)}


def _wanted(
    sources: Sequence[Source], tables: Sequence[MappedTable], strategy: StoppingStrategy
) -> Iterator[int]:
    """How many comparisons of each source are wanted."""
    both = list(zip(sources, tables, strict=True))
    lasts = [table.rows / one.probability for one, table in both if one.probability]
    total = (min if strategy == "first_exhausted" else max)(lasts, default=0)
    for source, table in both:
        if source.probability is not None:
            yield round(source.probability * total)
        else:
            more, whole = math.modf(source.weight)
            yield source.num_samples or int(whole) * table.rows + round(more * table.rows)


def _take(source: Source, table: MappedTable, wanted: int, seed: int) -> LoadedComparisons:
    """``wanted`` comparisons of a source, none where it has none, and their account.

    All are taken equally often, and a draw of them once more.
    """
    record = table.record
    whole, more = divmod(wanted, table.rows) if table.rows else (0, 0)
    copies_N = np.full(table.rows, whole, dtype=np.int64)
    rng = random.Random(f"{seed}/{record['name']}")
    copies_N[rng.sample(range(table.rows), more)] += 1
    kept = StoredComparisons([table], np.repeat(np.arange(table.rows), copies_N))
    used = int(np.count_nonzero(copies_N))
    left_out = {NOT_SAMPLED: table.rows - used} if used < table.rows else {}
    unread = UnreadColumns(**record["unread"])
    tally = Tally(
        rows=unread.rows, used=used, sampled=len(kept), dropped=record["dropped"] | left_out
    )
    use = SourceUse(
        name=record["name"],
        path=source.path,
        format=record["format"],
        fingerprint=record["fingerprint"],
        unread=unread,
        rows=tally.rows,
        used=tally.used,
        sampled=tally.sampled,
        licence=licence(source),
    )
    return LoadedComparisons(
        comparisons=kept,
        tallies=(tally,),
        sources=(use,),
        rated=record["rated"],
        usable_by=record["usable_by"],
        attributes=record["attributes"],
    )


def _check_names(sources: Sequence[Source]) -> None:
    names = Counter(source_name(source) for source in sources)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise DataError(f"two sources are named {twice[0]!r}; give each source a different `name`.")


def for_other_objectives(usable_by: Mapping[LearnsFrom, int]) -> Iterator[str]:
    """Which objectives could use rows that were dropped, a clause for each kind of label."""
    for learns_from, count in usable_by.items():
        kinds = [kind for kind, row in OBJECTIVES.items() if row.learns_from == learns_from]
        label = "a rating" if learns_from == "ratings" else "equal grades"
        has = "has" if count == 1 else "have"
        named = ", ".join(kinds[:-1]) + f" or {kinds[-1]}"
        yield f"{count:,} of them {has} {label}, which loss.kind {named} learns from"


def _nothing_left(
    sources: Sequence[Source], together: LoadedComparisons, outputs: tuple[str, ...]
) -> str:
    if not sources:
        return "no data source; expected at least one path or Hub dataset id."
    tally = together.tally
    counts = "; ".join(
        f"{count} {reason} ({EXPLANATIONS[reason]})" for reason, count in tally.dropped.items()
    )
    paths = ", ".join(source.path for source in sources)
    others = "".join(f"; {line}" for line in for_other_objectives(together.usable_by))
    if outputs:
        known = ", ".join(together.attributes) or "none"
        others += f"; the outputs are {', '.join(outputs)}, the attributes of the rows {known}"
    return f"none of the {tally.rows} rows of {paths} can be used: {counts}{others}."
