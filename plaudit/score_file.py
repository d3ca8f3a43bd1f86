"""Score rows of any data format: every row keeps its place, and a stopped call is resumed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from plaudit.data.load import LocatedComparison, open_source
from plaudit.data.sources.files import ROW_FILES, as_line, row_file_ending
from plaudit.data.sources.read import source_fingerprint
from plaudit.data.unread import UnreadColumns
from plaudit.errors import DataError, OutputError
from plaudit.recipe.schema import Source
from plaudit.reward_model import RewardModel, ScoreCache
from plaudit.storage.atomic import check_new_file, write_atomically, write_json, writing
from plaudit.types import Skipped, TokenTree

CHUNK_ROWS = 512
REMEMBERED = 1 << 20
"""Conversations whose reward is kept while a file is scored: equal ones then have one reward in
whichever chunks they are, unless this many others lie between them. About 200 MB when full."""
NOT_FINITE = "reward_not_finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFile:
    """What became of the rows: ``rows == scored + sum(skipped.values())``.

    ``skipped`` counts rows without rewards by reason. ``resumed`` rows were already scored by an
    earlier, stopped call. ``unread`` counts the columns that are not read.
    """

    rows: int
    scored: int
    skipped: Mapping[str, int]
    resumed: int
    unread: UnreadColumns


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreColumns:
    """Names of the columns that are added.

    ``rewards`` gets one number per response; for a pair these are chosen, rejected. A row that
    cannot be scored has null there, and its reason in ``<rewards>_reason``. ``best`` gets the
    number of the response with the highest reward, counted from 0, the first of equals.
    """

    rewards: str = "rewards"
    best: str | None = None

    @property
    def reason(self) -> str:
        return f"{self.rewards}_reason"

    def names(self) -> list[str]:
        return [name for name in (self.rewards, self.reason, self.best) if name is not None]


def score_file(
    model: RewardModel,
    source: Source,
    out: Path,
    columns: ScoreColumns = ScoreColumns(),
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScoredFile:
    """Write every input row to ``out`` with the columns added.

    All rows are read and checked before the first is scored. ``on_progress`` is called with the
    rows done and the rows in all.

    Raises:
        DataError: a row cannot be read, or already has a column of that name.
        OutputError: ``out`` exists, cannot be written, or is of an unknown kind.
    """
    write = ROW_FILES[row_file_ending(out)]
    check_new_file(out)
    opened = open_source(source)
    total = sum(1 for _ in _checked(opened.rows, columns))
    partial = Partial(out)
    with writing(out):
        progress = partial.open(_identity(model, source, columns))
        resumed = progress.rows
        rows = _checked(open_source(source).rows, columns)
        if resumed:
            _recall(model, islice(rows, resumed), partial.rows_path, columns, progress.earlier)
        with partial.rows_path.open("a", encoding="utf-8") as file:
            _write_scores(model, rows, columns, file, progress, lambda n: on_progress(n, total))
        write_atomically(out, lambda temporary: write(partial.rows_path, temporary))
    partial.remove()
    return progress.counts(opened.counter.total, resumed=resumed)


def score_to_stream(
    model: RewardModel,
    source: Source,
    stream: TextIO,
    columns: ScoreColumns = ScoreColumns(),
) -> ScoredFile:
    """Write the rows of :func:`score_file` as JSON Lines to an open text stream.

    Raises:
        DataError: a row cannot be read, or already has a column of that name.
    """
    opened = open_source(source)
    for _ in _checked(opened.rows, columns):
        pass
    progress = Progress()
    rows = _checked(open_source(source).rows, columns)
    _write_scores(model, rows, columns, stream, progress, lambda n: None)
    return progress.counts(opened.counter.total, resumed=0)


def _checked(
    rows: Iterator[LocatedComparison], columns: ScoreColumns
) -> Iterator[LocatedComparison]:
    for item in rows:
        _, where, row, _ = item
        taken = next((name for name in columns.names() if name in row), None)
        if taken is not None:
            raise DataError(
                f"{where} already has a column {taken!r}; choose another name with --column."
            )
        yield item


def _recall(
    model: RewardModel,
    rows: Iterator[LocatedComparison],
    written: Path,
    columns: ScoreColumns,
    earlier: ScoreCache,
) -> None:
    """Take what a stopped call has ``written`` for these rows into ``earlier``."""
    with written.open(encoding="utf-8") as lines:
        while chunk := list(islice(rows, CHUNK_ROWS)):
            outcomes = model.encode([comparison for *_, comparison in chunk])
            for outcome, line in zip(outcomes, lines, strict=False):
                rewards = json.loads(line)[columns.rewards]
                if rewards is not None and isinstance(outcome, TokenTree):
                    earlier.settle(outcome, np.asarray(rewards, np.float64))


def _write_scores(
    model: RewardModel,
    rows: Iterator[LocatedComparison],
    columns: ScoreColumns,
    stream: TextIO,
    progress: Progress,
    on_chunk: Callable[[int], None],
) -> None:
    """Score and write what is left of the rows; ``on_chunk`` is called with the rows done."""
    while chunk := list(islice(rows, CHUNK_ROWS)):
        for line, reason in _score_chunk(model, chunk, columns, progress.earlier):
            stream.write(line)
            progress.count(reason)
        # A kill loses at most this chunk.
        stream.flush()
        on_chunk(progress.rows)


def _score_chunk(
    model: RewardModel, chunk: list[LocatedComparison], columns: ScoreColumns, earlier: ScoreCache
) -> Iterator[tuple[str, str | None]]:
    """Output lines, and the reason where a row has no rewards."""
    comparisons = [comparison for *_, comparison in chunk]
    outcomes = model.score_comparisons(comparisons, earlier=earlier)
    for (_, _, row, _), outcome in zip(chunk, outcomes, strict=True):
        rewards, reason = None, None
        if isinstance(outcome, Skipped):
            reason = outcome.reason
        elif np.isfinite(outcome).all():
            rewards = outcome.tolist()
        else:
            reason = NOT_FINITE
        added: dict[str, Any] = {columns.rewards: rewards}
        if reason is not None:
            added[columns.reason] = reason
        if columns.best is not None:
            added[columns.best] = None if rewards is None else rewards.index(max(rewards))
        yield as_line({**row, **added}), reason


def _identity(model: RewardModel, source: Source, columns: ScoreColumns) -> dict[str, Any]:
    """What a partial result belongs to: this model, this input, these columns."""
    weights = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for pattern in ("*.safetensors", "*.bin")
        for path in Path(model.source).glob(pattern)
    )
    metadata = json.dumps(asdict(model.metadata), sort_keys=True, default=str)
    digest = hashlib.sha256(metadata.encode()).hexdigest()
    # Where the base of an adapter was loaded from.
    base = str(model.module.config._name_or_path)
    identity = {
        "model": [digest, weights, base, model.dtype],
        "input": [source.model_dump(mode="json"), source_fingerprint(source)],
        "columns": asdict(columns),
    }
    # As it is read back: tuples become lists.
    return json.loads(json.dumps(identity))  # type: ignore[no-any-return]


class Progress:
    """Rows written so far, how many of them have no rewards, by reason, and the rewards of others.

    ``earlier`` gives an equal conversation of a later chunk the same reward.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.skipped: Counter[str] = Counter()
        self.earlier = ScoreCache(REMEMBERED)

    def count(self, reason: str | None) -> None:
        self.rows += 1
        if reason is not None:
            self.skipped[reason] += 1

    def counts(self, unread: UnreadColumns, *, resumed: int) -> ScoredFile:
        return ScoredFile(
            rows=self.rows,
            scored=self.rows - sum(self.skipped.values()),
            skipped=dict(self.skipped),
            resumed=resumed,
            unread=unread,
        )


@dataclass(frozen=True, slots=True)
class Partial:
    """Rows written before ``out`` is complete, and what they belong to."""

    out: Path

    @property
    def rows_path(self) -> Path:
        return self.out.with_name(f".{self.out.name}.partial.jsonl")

    @property
    def identity_path(self) -> Path:
        return self.out.with_name(f".{self.out.name}.partial.json")

    def open(self, identity: Mapping[str, Any]) -> Progress:
        """Start, or resume what a stopped call of the same identity left.

        Raises:
            OutputError: what is there belongs to another model or input.
        """
        if not self.identity_path.is_file():
            self.rows_path.unlink(missing_ok=True)
            write_json(self.identity_path, dict(identity))
            return Progress()
        if json.loads(self.identity_path.read_text(encoding="utf-8")) != identity:
            raise OutputError(
                f"{self.identity_path} belongs to an interrupted run with another model or input;"
                f" delete it and {self.rows_path.name}, or choose another --out."
            )
        return self._keep_whole_chunks(ScoreColumns(**identity["columns"]))

    def _keep_whole_chunks(self, columns: ScoreColumns) -> Progress:
        """Count the rows of complete chunks, and cut off what a kill left after them.

        Chunks then begin where an uninterrupted call has them, and so do its micro-batches: the
        rewards come out the same to the last bit.
        """
        progress = Progress()
        end = 0
        with self.rows_path.open("ab+") as file:
            file.seek(0)
            while len(chunk := list(islice(file, CHUNK_ROWS))) == CHUNK_ROWS:
                if not chunk[-1].endswith(b"\n"):
                    break
                for line in chunk:
                    progress.count(json.loads(line).get(columns.reason))
                end += sum(len(line) for line in chunk)
            file.truncate(end)
        return progress

    def remove(self) -> None:
        self.rows_path.unlink(missing_ok=True)
        self.identity_path.unlink(missing_ok=True)
