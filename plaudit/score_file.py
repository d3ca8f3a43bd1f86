"""Score rows of any data format: every row keeps its place, and a stopped call is resumed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from plaudit.data.load import LocatedComparison, open_source
from plaudit.data.sources.files import ROW_FILES, as_line, row_file_ending
from plaudit.data.sources.read import source_fingerprint
from plaudit.data.unread import UnreadColumns
from plaudit.errors import DataError, OutputError
from plaudit.recipe.schema import Source
from plaudit.reward_model import RewardModel, ScoreCache
from plaudit.storage.atomic import check_new_file, write_atomically, write_json, writing
from plaudit.types import FloatArray, Skipped, TokenTree

CHUNK_ROWS = 512
REMEMBERED = 1 << 20
"""Conversations whose outputs are kept while a file is scored: equal ones then have one reward in
whichever chunks they are, unless this many others lie between them. About 200 MB when full, and
300 MB with five outputs."""
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

    ``outputs`` adds ``<rewards>_outputs``: for each response the outputs of the model by name.
    ``uncertainty`` adds ``<rewards>_mean``, ``<rewards>_spread`` and ``<rewards>_lower_bound``: one
    number per response each, as in :class:`plaudit.types.RewardDetails`.
    """

    rewards: str = "rewards"
    best: str | None = None
    outputs: bool = False
    uncertainty: bool = False

    @property
    def reason(self) -> str:
        return f"{self.rewards}_reason"

    @property
    def details(self) -> dict[str, str]:
        """The columns beside the rewards, by the field of the details that they hold."""
        fields = ("outputs",) * self.outputs + ("mean", "spread", "lower_bound") * self.uncertainty
        return {field: f"{self.rewards}_{field}" for field in fields}

    def names(self) -> list[str]:
        names = (self.rewards, self.reason, self.best, *self.details.values())
        return [name for name in names if name is not None]


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
        ModelError: the model has no outputs or no ensemble for ``columns``.
        OutputError: ``out`` exists, cannot be written, or is of an unknown kind.
    """
    model.check_details(outputs=columns.outputs, uncertainty=columns.uncertainty)
    write = ROW_FILES[row_file_ending(out)]
    check_new_file(out)
    opened = open_source(source)
    total = sum(1 for _ in _checked(opened.rows, columns))
    partial = Partial(out)
    with writing(out):
        progress = partial.open(_identity(model, source, columns))
        resumed = progress.rows
        rows = _checked(open_source(source).rows, columns)
        with (
            partial.rows_path.open("a", encoding="utf-8") as file,
            partial.outputs_path.open("rb+") as computed,
        ):
            _recall(model, islice(rows, resumed), computed, progress.earlier)
            for done in _write_scores(model, rows, columns, file, progress, computed):
                on_progress(done, total)
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
        ModelError: the model has no outputs or no ensemble for ``columns``.
    """
    model.check_details(outputs=columns.outputs, uncertainty=columns.uncertainty)
    opened = open_source(source)
    for _ in _checked(opened.rows, columns):
        pass
    progress = Progress()
    rows = _checked(open_source(source).rows, columns)
    for _ in _write_scores(model, rows, columns, stream, progress):
        pass
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
    computed: BinaryIO,
    earlier: ScoreCache,
) -> None:
    """Take what a stopped call has ``computed`` for these rows into ``earlier``.

    What it computed beyond them is cut off.

    Raises:
        OutputError: outputs are missing.
    """
    while chunk := list(islice(rows, CHUNK_ROWS)):
        for tree in model.encode([comparison for *_, comparison in chunk]):
            if isinstance(tree, TokenTree):
                wanted = len(tree.branches) * model.output_count * np.dtype(np.float64).itemsize
                numbers = computed.read(wanted)
                if len(numbers) < wanted:
                    path = Path(computed.name)
                    raise OutputError(
                        f"{path} is incomplete; delete {path.with_suffix('.json')} to score every"
                        " row again."
                    )
                outputs_KO = np.frombuffer(numbers, np.float64).reshape(-1, model.output_count)
                earlier.settle(tree, outputs_KO)
    computed.truncate()


def _write_scores(
    model: RewardModel,
    rows: Iterator[LocatedComparison],
    columns: ScoreColumns,
    stream: TextIO,
    progress: Progress,
    computed: BinaryIO | None = None,
) -> Iterator[int]:
    """Score and write what is left of the rows, and their outputs to ``computed``.

    Yields the rows done after each chunk.
    """
    while chunk := list(islice(rows, CHUNK_ROWS)):
        comparisons = [comparison for *_, comparison in chunk]
        outcomes = model.output_comparisons(comparisons, earlier=progress.earlier)
        if computed is not None:
            computed.writelines(o.tobytes() for o in outcomes if not isinstance(o, Skipped))
            # Before the rows: those that are written have their outputs.
            computed.flush()
        for (_, _, row, _), outcome in zip(chunk, outcomes, strict=True):
            added = _added(model, outcome, columns)
            stream.write(as_line({**row, **added}))
            progress.count(added.get(columns.reason))
        # A kill loses at most this chunk.
        stream.flush()
        yield progress.rows


def _added(
    model: RewardModel, outcome: FloatArray | Skipped, columns: ScoreColumns
) -> dict[str, Any]:
    """The columns that a row gets: null where it has no rewards, and then the reason."""
    reason, rewards, details = None, None, None
    if isinstance(outcome, Skipped):
        reason = outcome.reason
    elif not np.isfinite(outcome).all():
        reason = NOT_FINITE
    else:
        rewards = model.rewards_of(outcome).tolist()
        if columns.details:
            details = model.details(
                outcome, outputs=columns.outputs, uncertainty=columns.uncertainty
            )
    added: dict[str, Any] = {columns.rewards: rewards}
    if reason is not None:
        added[columns.reason] = reason
    if columns.best is not None:
        added[columns.best] = None if rewards is None else rewards.index(max(rewards))
    for field, name in columns.details.items():
        added[name] = None if details is None else [getattr(one, field) for one in details]
    return added


def _identity(model: RewardModel, source: Source, columns: ScoreColumns) -> dict[str, Any]:
    """What a partial result belongs to: this model and its reward, this input, these columns."""
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
        "reward": [model.reward, model.lower_bound_k],
        "input": [source.model_dump(mode="json"), source_fingerprint(source)],
        "columns": asdict(columns),
    }
    # As it is read back: tuples become lists.
    return json.loads(json.dumps(identity))  # type: ignore[no-any-return]


class Progress:
    """Rows written so far, how many of them have no rewards, by reason, and the outputs of others.

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
    """Rows written before ``out`` is complete, their outputs, and what they belong to.

    The outputs of all conversations lie one after the other in fp64: a row holds them only where
    they are asked for, and equal conversations of later chunks need them.
    """

    out: Path

    @property
    def rows_path(self) -> Path:
        return self.out.with_name(f".{self.out.name}.partial.jsonl")

    @property
    def outputs_path(self) -> Path:
        return self.out.with_name(f".{self.out.name}.partial.outputs")

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
            self.outputs_path.write_bytes(b"")
            write_json(self.identity_path, dict(identity))
            return Progress()
        if json.loads(self.identity_path.read_text(encoding="utf-8")) != identity:
            raise OutputError(
                f"{self.identity_path} belongs to an interrupted run with another model or input;"
                f" delete it and {self.rows_path.name}, or choose another --out."
            )
        self.outputs_path.touch()
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
        self.outputs_path.unlink(missing_ok=True)
        self.identity_path.unlink(missing_ok=True)
