"""The score table: one row per evaluated response, in columns; and its ordered pairs."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain, islice, repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from plaudit.errors import DataError, ModelError
from plaudit.evaluation.analysis.features import (
    FEATURES_DTYPE,
    features_column,
    measure_responses,
    response_text,
)
from plaudit.storage.atomic import write_atomically
from plaudit.types import Comparison, FloatArray, Outputs, ScoreRow, TokenTree

ObjectArray: TypeAlias = npt.NDArray[np.object_]
CodeArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """N evaluated responses in columns; the meaning of each is that of :class:`ScoreRow`.

    ``metadata`` holds one array of N values per column, ``None`` where a row has no value.
    ``features_N`` is a structured array with a field per feature. ``outputs`` and ``attributes``
    hold one array of N numbers per name, ``nan`` where a row has none.
    """

    comparison_N: ObjectArray
    number_N: CodeArray
    group_N: ObjectArray
    dataset_N: ObjectArray
    source_N: ObjectArray
    response_N: CodeArray
    reward_N: FloatArray
    grade_N: FloatArray
    margin_N: FloatArray
    tokens_N: CodeArray
    characters_N: CodeArray
    rated_N: npt.NDArray[np.bool_]
    features_N: npt.NDArray[Any]
    metadata: Mapping[str, ObjectArray] = field(default_factory=dict)
    outputs: Mapping[str, FloatArray] = field(default_factory=dict)
    attributes: Mapping[str, FloatArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.comparison_N)

    def take(self, rows: CodeArray | npt.NDArray[np.bool_]) -> ScoreTable:
        """The rows of these numbers, in this order, or those marked true."""
        columns = {f"{name}_N": getattr(self, f"{name}_N")[rows] for name, _ in _COLUMNS.values()}
        named: dict[str, Any] = {
            kind: {name: values[rows] for name, values in getattr(self, kind).items()}
            for kind in _NAMED
        }
        return ScoreTable(**columns, features_N=self.features_N[rows], **named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """P ordered pairs (winner, loser) of a table.

    ``winner_P`` and ``loser_P`` are row numbers, ``delta_P`` the winner's reward less the loser's,
    ``comparison_P`` and ``group_P`` codes counted from 0 in order of first appearance (comparisons
    are told apart by dataset and number, since ids may repeat; a prompt group is one group wherever
    it stands).
    """

    winner_P: CodeArray
    loser_P: CodeArray
    delta_P: FloatArray
    margin_P: FloatArray
    comparison_P: CodeArray
    group_P: CodeArray

    def __len__(self) -> int:
        return len(self.winner_P)

    def over(self, temperature: float) -> Pairs:
        """The pairs with differences and margins over ``temperature``."""
        return replace(
            self, delta_P=self.delta_P / temperature, margin_P=self.margin_P / temperature
        )

    def where(self, keep_P: npt.NDArray[np.bool_]) -> Pairs:
        """The pairs marked true, in their order; codes stay as they are."""
        return Pairs(**{item.name: getattr(self, item.name)[keep_P] for item in fields(self)})


# Column in predictions.parquet -> field of ScoreRow (and, with _N, of ScoreTable), and its type.
_COLUMNS: dict[str, tuple[str, type]] = {
    "id": ("comparison", np.object_),
    "response": ("response", np.int64),
    "reward": ("reward", np.float64),
    "grade": ("grade", np.float64),
    "tokens": ("tokens", np.int64),
    "characters": ("characters", np.int64),
    "margin": ("margin", np.float64),
    "source": ("source", np.object_),
    "dataset": ("dataset", np.object_),
    "group": ("group", np.object_),
    "number": ("number", np.int64),
    "rated": ("rated", np.bool_),
}
_ADDED = frozenset({"rated"})
"""Columns that tables of plaudit 0.1 do not have; they are zeros there."""
_NAMED: dict[str, tuple[type, object]] = {
    "metadata": (np.object_, None),
    "outputs": (np.float64, np.nan),
    "attributes": (np.float64, np.nan),
}
"""Fields of a table with a column per name: the type, and what stands where a row has no value."""
_METADATA_PREFIX = "metadata."
_FEATURE_PREFIX = "text."
_NUMBER_PREFIXES = {"outputs": "output.", "attributes": "attribute."}
_PREFIXES = (_METADATA_PREFIX, _FEATURE_PREFIX, *_NUMBER_PREFIXES.values())


# ---- from comparisons to columns ----------------------------------------------------------------

_CHUNK = 1000
"""Comparisons whose texts are in memory at one time."""

Scorer: TypeAlias = Callable[[Sequence[str]], FloatArray]
"""Texts of responses -> a score of each, by which a baseline orders them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSet:
    """A named set of labelled comparisons with their trees and the rewards of their responses.

    ``outputs`` has the ``outputs_KO`` of each comparison, for a head with several.
    """

    dataset: str
    comparisons: Sequence[Comparison]
    trees: Sequence[TokenTree]
    rewards: Sequence[FloatArray]
    outputs: Sequence[FloatArray] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Held-out responses in columns: all that metrics, baselines and analyses take of them.

    ``baseline_N`` holds the score of each response by each baseline, ``None`` for one that could
    not be fitted.
    """

    table: ScoreTable
    baseline_N: Mapping[str, FloatArray | None]

    def baseline_differences(self) -> dict[str, FloatArray | None]:
        """``delta_P`` of each baseline on :func:`pairs` of the table."""
        paired = pairs(self.table)
        return {
            name: None if score_N is None else score_N[paired.winner_P] - score_N[paired.loser_P]
            for name, score_N in self.baseline_N.items()
        }


class _Scored(NamedTuple):
    """A comparison of a set, and what was computed of it."""

    number: int
    comparison: Comparison
    tree: TokenTree
    rewards_K: FloatArray
    outputs_KO: FloatArray | None


def read_held_out(
    sets: Iterable[ScoredSet],
    scorers: Mapping[str, Scorer | None] = MappingProxyType({}),
    outputs: Outputs | None = None,
) -> HeldOut:
    """Read every comparison once, a chunk at a time; no text stays in memory.

    ``outputs`` names those of the sets; attributes of these names become columns too.
    """
    tables: list[ScoreTable] = []
    scores: dict[str, list[FloatArray]] = {name: [np.zeros(0)] for name in scorers}
    names = () if outputs is None else outputs.names
    for one in sets:
        values = repeat(None, len(one.rewards)) if one.outputs is None else one.outputs
        columns = zip(one.comparisons, one.trees, one.rewards, values, strict=True)
        rows = (_Scored(number, *row) for number, row in enumerate(columns))
        while chunk := list(islice(rows, _CHUNK)):
            texts = [[response_text(turns) for turns in row.comparison.responses] for row in chunk]
            tables.append(build_table(_score_rows(one.dataset, chunk, texts, names)))
            for name, score in scorers.items():
                if score is not None:
                    scores[name].append(score(list(chain.from_iterable(texts))))
    return HeldOut(
        table=concatenate(tables),
        baseline_N={
            name: None if score is None else np.concatenate(scores[name])
            for name, score in scorers.items()
        },
    )


def _score_rows(
    dataset: str,
    chunk: Iterable[_Scored],
    texts: Iterable[Sequence[str]],
    outputs: Sequence[str],
) -> Iterator[ScoreRow]:
    """A row for each response; ``texts`` holds those of each comparison's responses."""
    for (number, comparison, tree, rewards_K, outputs_KO), texts_K in zip(
        chunk, texts, strict=True
    ):
        features = measure_responses(
            texts_K,
            response_text(comparison.prompt),
            turns=1 if isinstance(comparison.prompt, str) else len(comparison.prompt),
            truncated=tree.truncated,
        )
        given = comparison.attributes
        attributes = {name: given[name] for name in outputs if name in given}
        for response, reward in enumerate(rewards_K):
            yield ScoreRow(
                comparison=comparison.id,
                number=number,
                group=comparison.group,
                dataset=dataset,
                source=comparison.source,
                response=response,
                reward=float(reward),
                grade=comparison.grades[response] if comparison.grades else math.nan,
                rated=comparison.rated,
                margin=tree.margin,
                tokens=tree.lengths[response],
                characters=len(texts_K[response]),
                metadata=comparison.metadata,
                features=features[response],
                outputs={}
                if outputs_KO is None
                else dict(zip(outputs, outputs_KO[response].tolist(), strict=True)),
                attributes={
                    name: label
                    for name, labels_K in attributes.items()
                    if (label := labels_K[response]) is not None
                },
            )


def build_table(rows: Iterable[ScoreRow]) -> ScoreTable:
    """Rows to columns, in the order given."""
    rows = list(rows)
    columns: dict[str, Any] = {
        f"{name}_N": _column([getattr(row, name) for row in rows], dtype)
        for name, dtype in _COLUMNS.values()
    }
    for kind, (dtype, missing) in _NAMED.items():
        values = [getattr(row, kind) for row in rows]
        columns[kind] = {
            name: _column([value.get(name, missing) for value in values], dtype)
            for name in dict.fromkeys(name for value in values for name in value)
        }
    return ScoreTable(
        **columns,
        features_N=features_column(
            {name: [row.features.get(name) for row in rows] for name in FEATURES_DTYPE.names or ()},
            len(rows),
        ),
    )


def _column(values: Sequence[Any], dtype: type) -> npt.NDArray[Any]:
    # Filled, not converted: numpy would make a 2-d array of equally long lists.
    column: npt.NDArray[Any] = np.empty(len(values), dtype=dtype)
    for index, value in enumerate(values):
        column[index] = value
    return column


def concatenate(tables: Sequence[ScoreTable]) -> ScoreTable:
    """One table after the other; a named column that a table lacks has no values there."""
    tables = [table for table in tables if len(table)] or [build_table(())]
    columns: dict[str, Any] = {
        field.name: np.concatenate([getattr(table, field.name) for table in tables])
        for field in fields(ScoreTable)
        if field.name not in _NAMED
    }
    for kind, (dtype, missing) in _NAMED.items():
        columns[kind] = {
            name: np.concatenate(
                [
                    getattr(table, kind).get(name, np.full(len(table), missing, dtype))
                    for table in tables
                ]
            )
            for name in dict.fromkeys(name for table in tables for name in getattr(table, kind))
        }
    return ScoreTable(**columns)


def codes(values: Sequence[Any] | npt.NDArray[Any]) -> CodeArray:
    """Equal values get equal numbers, counted from 0 in order of first appearance."""
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)


def pairs(table: ScoreTable) -> Pairs:
    """All ordered pairs of responses of one comparison with grade of winner > grade of loser.

    Sorted by comparison (first appearance), then by the winner's and the loser's row. Responses of
    equal grade make no pair.

    Raises ModelError when a reward of the table is not finite: no metric would mean anything.
    """
    bad = np.flatnonzero(~np.isfinite(table.reward_N))
    if len(bad):
        first = bad[0]
        raise ModelError(
            f"{len(bad)} of {len(table)} rewards are NaN or infinite, the first one"
            f" {table.reward_N[first]} for response {table.response_N[first]} of comparison"
            f" {table.comparison_N[first]!r}; score in float32, or use an earlier checkpoint,"
            " from before training diverged."
        )
    return pairs_by(table, table.grade_N)


def pairs_by(table: ScoreTable, label_N: FloatArray) -> Pairs:
    """The pairs of :func:`pairs` with ``label_N`` in place of the grades; NaN makes no pair."""
    comparison_N = codes(list(zip(table.dataset_N, table.number_N, strict=True)))
    winner_P, loser_P = ordered_pairs(comparison_N, label_N)
    return Pairs(
        winner_P=winner_P,
        loser_P=loser_P,
        delta_P=table.reward_N[winner_P] - table.reward_N[loser_P],
        margin_P=table.margin_N[winner_P],
        comparison_P=comparison_N[winner_P],
        group_P=codes(table.group_N)[winner_P],
    )


def ordered_pairs(comparison_N: CodeArray, grade_N: FloatArray) -> tuple[CodeArray, CodeArray]:
    """Rows (winner, loser) of one comparison with unequal grades; a grade of NaN makes no pair.

    Sorted by comparison code, then by the winner's and the loser's row.
    """
    first_P, second_P = unordered_pairs(comparison_N)
    rise_P = grade_N[first_P] - grade_N[second_P]
    known_P = np.abs(rise_P) > 0
    winner_P = np.where(rise_P > 0, first_P, second_P)[known_P]
    loser_P = np.where(rise_P > 0, second_P, first_P)[known_P]
    order_P = np.lexsort((loser_P, winner_P, comparison_N[winner_P]))
    return winner_P[order_P], loser_P[order_P]


def unordered_pairs(comparison_N: CodeArray) -> tuple[CodeArray, CodeArray]:
    """Every unordered pair of rows with one comparison code, the earlier row first."""
    by_comparison_N = np.argsort(comparison_N, kind="stable")
    sorted_N = comparison_N[by_comparison_N]
    sizes = np.bincount(comparison_N) if len(comparison_N) else np.zeros(1, dtype=np.int64)
    earlier: list[CodeArray] = []
    later: list[CodeArray] = []
    for lag in range(1, int(sizes.max())):
        together = np.flatnonzero(sorted_N[:-lag] == sorted_N[lag:])
        earlier.append(by_comparison_N[together])
        later.append(by_comparison_N[together + lag])
    if not earlier:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(earlier), np.concatenate(later)


def write_table(table: ScoreTable, path: Path) -> None:
    """Write ``predictions.parquet``: core columns, features, outputs, attributes, then metadata.

    A feature has ``text.`` in front of its name, an output ``output.``, an attribute
    ``attribute.``. A metadata column of texts, whole numbers, numbers or booleans keeps its type;
    any other is written as JSON text, value by value. A metadata name that would hide a core
    column, or that starts as one of the others or with ``metadata.``, gets ``metadata.`` in front.

    Raises OutputError when the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        column: _to_arrow(getattr(table, f"{name}_N")) for column, (name, _) in _COLUMNS.items()
    }
    for name in FEATURES_DTYPE.names or ():
        columns[f"{_FEATURE_PREFIX}{name}"] = pa.array(
            table.features_N[name].tolist(), from_pandas=True
        )
    for kind, prefix in _NUMBER_PREFIXES.items():
        for name, numbers_N in getattr(table, kind).items():
            columns[f"{prefix}{name}"] = pa.array(numbers_N)
    for name, values in table.metadata.items():
        hidden = name in _COLUMNS or name.startswith(_PREFIXES)
        columns[f"{_METADATA_PREFIX}{name}" if hidden else name] = _to_arrow(values)
    stored = pa.table(columns)
    write_atomically(path, lambda part: pq.write_table(stored, part, write_page_checksum=True))


def _to_arrow(values: npt.NDArray[Any]) -> Any:
    import pyarrow as pa

    if values.dtype != np.object_:
        return pa.array(values)
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if kinds <= {str}:
        # JSON input may hold lone surrogates, which no UTF-8 file can.
        valid = (value and value.encode("utf-8", "replace").decode("utf-8") for value in values)
        return pa.array(valid, pa.string())
    if kinds == {bool}:
        return pa.array(list(values), pa.bool_())
    if kinds <= {int, float} and not any(abs(v) >= 2**53 for v in present if isinstance(v, int)):
        return pa.array(list(values), pa.int64() if kinds == {int} else pa.float64())
    texts = [None if value is None else json.dumps(value, default=str) for value in values]
    return pa.array(texts, pa.string())


def read_table(path: Path) -> ScoreTable:
    """Read what :func:`write_table` wrote.

    Raises DataError when the file is missing, is no Parquet file or lacks a core column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Opened as one file: a path would be taken apart for partition names.
        with path.open("rb") as file:
            stored = pq.read_table(file, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"Cannot read predictions from {path}: {error}; expected the predictions.parquet of a"
            " finished evaluation."
        ) from error
    missing = [
        column for column in _COLUMNS if column not in stored.column_names and column not in _ADDED
    ]
    if missing:
        raise DataError(
            f"{path} has the columns {', '.join(stored.column_names)} and lacks"
            f" {', '.join(missing)}; expected the predictions.parquet of an evaluation."
        )
    columns: dict[str, Any] = {
        f"{name}_N": _column(stored.column(column).to_pylist(), dtype)
        if column in stored.column_names
        else np.zeros(stored.num_rows, dtype)
        for column, (name, dtype) in _COLUMNS.items()
    }
    columns |= {kind: {} for kind in _NAMED}
    for column in stored.column_names:
        if column in _COLUMNS or column.startswith(_FEATURE_PREFIX):
            continue
        values = stored.column(column)
        kind, prefix = "metadata", _METADATA_PREFIX
        # Texts of such a name are metadata of an older table.
        if pa.types.is_float64(values.type):
            kinds = (one for one in _NUMBER_PREFIXES.items() if column.startswith(one[1]))
            kind, prefix = next(kinds, (kind, prefix))
        name, dtype = column.removeprefix(prefix), _NAMED[kind][0]
        columns[kind][name] = _column(values.to_pylist(), dtype)
    # Another version may have counted fewer features, or others.
    features = {
        name: stored.column(f"{_FEATURE_PREFIX}{name}").to_pylist()
        for name in FEATURES_DTYPE.names or ()
        if f"{_FEATURE_PREFIX}{name}" in stored.column_names
    }
    return ScoreTable(**columns, features_N=features_column(features, stored.num_rows))


# ---- the rewards of one evaluation of a run -----------------------------------------------------

EVALUATIONS_FOLDER = "evaluations"
"""In a run folder: ``step-N.npz`` holds the rewards of the evaluation at step N."""

_REWARDS_FILE = re.compile(r"step-(\d+)\.npz")
_UNREADABLE = (OSError, ValueError, LookupError, EOFError, RuntimeError, BadZipFile, zlib.error)
"""What NumPy raises for a file of rewards that is missing or damaged."""


def rewards_file(evaluations: Path, step: int) -> Path:
    """Where the rewards of an evaluation are."""
    return evaluations / f"step-{step}.npz"


def evaluated_steps(evaluations: Path) -> list[int]:
    """The steps whose rewards are there, in order."""
    files = evaluations.iterdir() if evaluations.is_dir() else ()
    matches = (_REWARDS_FILE.fullmatch(path.name) for path in files)
    return sorted(int(match[1]) for match in matches if match is not None)


def write_rewards(evaluations: Path, step: int, reward_N: FloatArray) -> None:
    """Keep an evaluation's rewards, so that two steps can be compared pair by pair."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, reward_N=reward_N)

    write_atomically(rewards_file(evaluations, step), write)


def read_rewards(evaluations: Path, step: int) -> FloatArray:
    """The ``reward_N`` that :func:`write_rewards` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = rewards_file(evaluations, step)
    try:
        with np.load(path) as stored:
            reward_N: FloatArray = stored["reward_N"]
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except _UNREADABLE as error:
        raise DataError(f"{path} is damaged ({error})") from None
    return reward_N
