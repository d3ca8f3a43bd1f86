"""Scoring rows of any data format: every row kept in its order, a stopped call resumed."""

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

from plaudit.data.load import LocatedComparison, iterate_comparisons, open_source
from plaudit.data.sources.files import ROW_FILES, as_line, row_file_ending
from plaudit.data.sources.read import source_fingerprint
from plaudit.data.unread import UnreadColumns
from plaudit.errors import DataError, OutputError
from plaudit.recipe.schema import Source
from plaudit.reward_model import RewardModel, ScoreCache
from plaudit.storage.atomic import check_new_file, write_atomically, write_json, writing
from plaudit.types import Refused, TokenTree

CHUNK_ROWS = 512
REMEMBERED = 1 << 20
"""Conversations whose reward is kept while a file is scored: equal ones then have one reward in
whichever chunks they are, unless this many others lie between them. About 200 MB when full."""
NOT_FINITE = "reward_not_finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFile:
    """What became of the rows: ``rows == scored + sum(refused.values())``.

    ``resumed`` rows were already scored by an earlier, stopped call. ``unread`` counts the columns
    that are not read.
    """

    rows: int
    scored: int
    refused: Mapping[str, int]
    resumed: int
    unread: UnreadColumns


def score_file(
    model: RewardModel,
    model_path: Path,
    source: Source,
    out: Path,
    *,
    column: str = "rewards",
    picks: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScoredFile:
    """Write every input row to ``out`` with ``column`` added: one number per response.

    For a pair these are chosen, rejected. ``picks`` names a column for the number of the response
    with the highest reward, counted from 0, the first of equals. A row that cannot be scored gets
    null and its reason in ``<column>_reason``. All rows are read and checked before the first is
    scored. ``on_progress`` hears rows done and rows in all.

    Raises:
        DataError: a row cannot be read, or already has a column of that name.
        OutputError: ``out`` exists, cannot be written, or is of an unknown kind.
    """
    write = ROW_FILES[row_file_ending(out)]
    check_new_file(out)
    columns = Columns(rewards=column, picks=picks)
    opened = open_source(source)
    total = sum(1 for _ in _checked(opened.rows, columns))
    partial = Partial.beside(out)
    with writing(out):
        done = partial.open(_identity(model, model_path, source, columns))
        resumed = done.rows
        rows = _checked(iterate_comparisons(source), columns)
        if resumed:
            _recall(model, islice(rows, resumed), partial.rows_path, column, done.earlier)
        with partial.rows_path.open("a", encoding="utf-8") as file:
            _write_scores(model, rows, columns, file, done, lambda rows: on_progress(rows, total))
        write_atomically(out, lambda temporary: write(partial.rows_path, temporary))
    partial.remove()
    return done.counts(opened.counter.total, resumed=resumed)


def score_to_stream(
    model: RewardModel,
    source: Source,
    stream: TextIO,
    *,
    column: str = "rewards",
    picks: str | None = None,
) -> ScoredFile:
    """Write the rows of :func:`score_file` as JSON Lines to an open text stream.

    Raises:
        DataError: a row cannot be read, or already has a column of that name.
    """
    columns = Columns(rewards=column, picks=picks)
    opened = open_source(source)
    for _ in _checked(opened.rows, columns):
        pass
    done = Done()
    rows = _checked(iterate_comparisons(source), columns)
    _write_scores(model, rows, columns, stream, done, lambda done: None)
    return done.counts(opened.counter.total, resumed=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns that are added."""

    rewards: str
    picks: str | None

    def names(self) -> list[str]:
        """All of them, the reason included."""
        added = (self.rewards, reason_of(self.rewards), self.picks)
        return [name for name in added if name is not None]


def _checked(rows: Iterator[LocatedComparison], columns: Columns) -> Iterator[LocatedComparison]:
    for item in rows:
        _, where, row, _ = item
        taken = next((name for name in columns.names() if name in row), None)
        if taken is not None:
            raise DataError(f"{where} already has a column {taken!r}; name another with --column.")
        yield item


def reason_of(column: str) -> str:
    """The column that says why a row has no rewards; only such rows have it."""
    return f"{column}_reason"


def _recall(
    model: RewardModel,
    rows: Iterator[LocatedComparison],
    written: Path,
    column: str,
    earlier: ScoreCache,
) -> None:
    """Take what a stopped call has ``written`` for these rows into ``earlier``."""
    with written.open(encoding="utf-8") as lines:
        while chunk := list(islice(rows, CHUNK_ROWS)):
            outcomes = model.encode([comparison for *_, comparison in chunk])
            for outcome, line in zip(outcomes, lines, strict=False):
                rewards = json.loads(line)[column]
                if rewards is not None and isinstance(outcome, TokenTree):
                    earlier.settle(outcome, np.asarray(rewards, np.float64))


def _write_scores(
    model: RewardModel,
    rows: Iterator[LocatedComparison],
    columns: Columns,
    stream: TextIO,
    done: Done,
    on_chunk: Callable[[int], None],
) -> None:
    """Score and write what is left of the rows; ``on_chunk`` is called with the rows done."""
    while chunk := list(islice(rows, CHUNK_ROWS)):
        for line, reason in _score_chunk(model, chunk, columns, done.earlier):
            stream.write(line)
            done.count(reason)
        # A kill loses at most this chunk.
        stream.flush()
        on_chunk(done.rows)


def _score_chunk(
    model: RewardModel, chunk: list[LocatedComparison], columns: Columns, earlier: ScoreCache
) -> Iterator[tuple[str, str | None]]:
    """Output lines, and the reason where a row has no rewards."""
    comparisons = [comparison for _, _, _, comparison in chunk]
    outcomes = model.score_comparisons(comparisons, earlier=earlier)
    reason: str | None
    for (_, _, row, _), outcome in zip(chunk, outcomes, strict=True):
        if isinstance(outcome, Refused):
            reason = outcome.reason
        else:
            reason = None if np.isfinite(outcome).all() else NOT_FINITE
        added: dict[str, Any] = (
            {columns.rewards: outcome.tolist()}
            if reason is None and not isinstance(outcome, Refused)
            else {columns.rewards: None, reason_of(columns.rewards): reason}
        )
        if columns.picks is not None:
            rewards = added[columns.rewards]
            added[columns.picks] = None if rewards is None else rewards.index(max(rewards))
        yield as_line({**row, **added}), reason


def _identity(
    model: RewardModel, model_path: Path, source: Source, columns: Columns
) -> dict[str, Any]:
    """What a partial result belongs to: this model, this input, these columns."""
    weights = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for pattern in ("*.safetensors", "*.bin")
        for path in model_path.glob(pattern)
    )
    read = json.dumps(asdict(model.facts), sort_keys=True, default=str)
    facts = hashlib.sha256(read.encode()).hexdigest()
    dtype = str(next(model.module.parameters()).dtype)
    # Where the base of an adapter was loaded from.
    base = str(model.module.config._name_or_path)
    return json.loads(  # type: ignore[no-any-return]
        json.dumps(
            {
                "model": [facts, weights, base, dtype],
                "input": [source.model_dump(mode="json"), source_fingerprint(source)],
                "column": columns.rewards,
                "picks": columns.picks,
            }
        )
    )


class Done:
    """Rows written so far, how many of them have no rewards, by reason, and the rewards of others.

    ``earlier`` gives an equal conversation of a later chunk the same reward.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.refused: Counter[str] = Counter()
        self.earlier = ScoreCache(REMEMBERED)

    def count(self, reason: str | None) -> None:
        self.rows += 1
        if reason is not None:
            self.refused[reason] += 1

    def counts(self, unread: UnreadColumns, *, resumed: int) -> ScoredFile:
        return ScoredFile(
            rows=self.rows,
            scored=self.rows - sum(self.refused.values()),
            refused=dict(self.refused),
            resumed=resumed,
            unread=unread,
        )


@dataclass(frozen=True, slots=True)
class Partial:
    """Rows written before ``out`` is complete, and what they belong to."""

    rows_path: Path
    identity_path: Path

    @classmethod
    def beside(cls, out: Path) -> Partial:
        return cls(
            rows_path=out.with_name(f".{out.name}.partial.jsonl"),
            identity_path=out.with_name(f".{out.name}.partial.json"),
        )

    def open(self, identity: Mapping[str, Any]) -> Done:
        """Start, or go on with what a stopped call of the same identity left.

        Raises:
            OutputError: what is there belongs to another model or input.
        """
        if not self.identity_path.is_file():
            self.rows_path.unlink(missing_ok=True)
            write_json(self.identity_path, dict(identity))
            return Done()
        if json.loads(self.identity_path.read_text(encoding="utf-8")) != identity:
            raise OutputError(
                f"{self.identity_path} belongs to a stopped call with another model or input; "
                f"delete it and {self.rows_path.name}, or choose another --out."
            )
        return self._keep_whole_chunks(identity["column"])

    def _keep_whole_chunks(self, column: str) -> Done:
        """Count the rows of complete chunks, and cut off what a kill left after them.

        Chunks then begin where an uninterrupted call has them, and so do its micro-batches: the
        rewards come out the same to the last bit.
        """
        done = Done()
        if not self.rows_path.is_file():
            return done
        end = 0
        with self.rows_path.open("rb+") as file:
            while len(chunk := list(islice(file, CHUNK_ROWS))) == CHUNK_ROWS:
                if not chunk[-1].endswith(b"\n"):
                    break
                for line in chunk:
                    done.count(json.loads(line).get(reason_of(column)))
                end += sum(len(line) for line in chunk)
            file.truncate(end)
        return done

    def remove(self) -> None:
        self.rows_path.unlink(missing_ok=True)
        self.identity_path.unlink(missing_ok=True)
