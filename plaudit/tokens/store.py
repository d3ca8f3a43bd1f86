"""Comparisons to token trees in bulk: an Arrow file per source, written by worker processes.

What decides the ids is part of the file's key (:func:`_inputs`), so nothing is encoded twice.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from plaudit import __version__, registry
from plaudit.data import perturb
from plaudit.data.perturb.copies import with_copy
from plaudit.data.store import StoredComparisons
from plaudit.recipe.schema import Truncation
from plaudit.storage.arrow import (
    BATCH_ROWS,
    MappedTable,
    RowArray,
    StoredRows,
    cached,
    code_digest,
    write_batches,
)
from plaudit.storage.atomic import writing
from plaudit.storage.fork_pool import map_forked
from plaudit.tokens.encode import Encoder, encode, why_untrainable
from plaudit.tokens.rendering import CHAT_TEMPLATE, is_chat
from plaudit.types import Comparison, Rendering, Skipped, TokenTree

_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("kept", pa.bool_()),
        ("chat", pa.bool_()),
        ("ids", pa.list_(pa.int32())),
        ("branches", pa.list_(pa.int32())),
        ("grades", pa.list_(pa.float64())),
        ("prefix", pa.int32()),
        ("truncated", pa.int32()),
        ("truncated_responses", pa.int32()),
        ("margin", pa.float64()),
        ("weight", pa.float64()),
        ("soft_label", pa.float64()),
        ("rated", pa.int8()),
        ("attributes", pa.string()),  # JSON; empty where there are none
        ("copies", pa.list_(pa.int32())),
        # For facts about all rows, which must not walk all ids.
        ("packed", pa.int64()),
        ("separate", pa.int64()),
        ("longest", pa.int32()),
        ("largest_id", pa.int32()),
    ]
)

_NOTHING: dict[str, Any] = {
    field.name: [] if pa.types.is_list(field.type) else "" if field.type == pa.string() else 0
    for field in _SCHEMA
}


_WITHOUT: Final = {"margin": 0.0, "soft_label": 1.0}
"""What a label is where the data have none."""


class StoredTrees(StoredRows[TokenTree]):
    """Token trees whose ids are views of the file. A tree's ``index`` is its place here.

    Labels that are named in ``ignored`` are as where the data have none.
    """

    def __init__(
        self,
        tables: tuple[MappedTable, ...],
        rows_N: RowArray,
        *,
        ignored: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(tables, rows_N)
        self.ignored = ignored

    def take(self, positions: Any) -> StoredTrees:
        return StoredTrees(self.tables, self.rows_N[positions], ignored=self.ignored)

    def without(self, labels: frozenset[str]) -> StoredTrees:
        """The same trees, their ``margin`` or ``soft_label`` left out."""
        return StoredTrees(self.tables, self.rows_N, ignored=labels)

    def label(self, name: Literal["margin", "soft_label"]) -> npt.NDArray[np.float64]:
        """The margin or the soft label of each tree."""
        absent = _WITHOUT[name]
        return np.full(len(self), absent) if name in self.ignored else self.column(name)

    def _record(self, table: MappedTable, row: int, position: int) -> TokenTree:
        ids = table.items("ids", row)
        prefix = int(table.number("prefix", row))
        branches: list[npt.NDArray[np.int32]] = []
        start = prefix
        for length in table.items("branches", row).tolist():
            branches.append(ids[start : start + length])
            start += length
        return TokenTree(
            index=position,
            prefix=ids[:prefix],
            branches=tuple(branches),
            grades=tuple(table.items("grades", row).tolist()),
            margin=self._label(table, row, "margin"),
            weight=float(table.number("weight", row)),
            soft_label=self._label(table, row, "soft_label"),
            rated=bool(table.number("rated", row)),
            attributes=_attributes(table.text("attributes", row)),
            copies=tuple(table.items("copies", row).tolist()),
            truncated=int(table.number("truncated", row)),
            truncated_responses=int(table.number("truncated_responses", row)),
        )

    def _label(self, table: MappedTable, row: int, name: str) -> float:
        return _WITHOUT[name] if name in self.ignored else float(table.number(name, row))


def _attributes(text: str) -> Mapping[str, tuple[float | None, ...]]:
    plain = json.loads(text) if text else {}
    return {name: tuple(numbers) for name, numbers in plain.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Comparisons that encode and can be learned from, their trees, and what became of others.

    ``dropped`` counts comparisons by reason, ``lost`` different input rows (a source's weight
    repeats them); ``example`` is a sentence about the first that has no tokens, empty if all have.
    Both sequences lie in the cache folder.
    """

    comparisons: StoredComparisons
    trees: StoredTrees
    dropped: Mapping[str, int]
    lost: Mapping[str, int]
    example: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """The trees of all rows of some comparisons, to be looked up by any part of those."""

    comparisons: StoredComparisons
    tables: tuple[MappedTable, ...]

    def of(self, part: StoredComparisons) -> Part:
        """A part of the comparisons (rows of the same tables) with its trees.

        Raises:
            KeyError: a row is not among those that were encoded.
        """
        different = np.unique(self.comparisons.rows_N)
        row_N = np.searchsorted(different, part.rows_N)
        if part.tables != self.comparisons.tables or not np.array_equal(
            different[np.minimum(row_N, len(different) - 1)], part.rows_N
        ):
            raise KeyError("a part holds rows that were not encoded")
        every = StoredTrees(self.tables, row_N)
        kept_mask = every.column("kept").astype(np.bool_)
        kept_N, refused_N = np.flatnonzero(kept_mask), row_N[~kept_mask]
        reasons = [self._text("reason", row) for row in refused_N.tolist()]
        first_of = dict(zip(refused_N.tolist(), reasons, strict=True))
        examples = (self._text("detail", row) for row in refused_N.tolist())
        return Part(
            comparisons=part.take(kept_N),
            trees=every.take(kept_N),
            dropped=dict(Counter(reasons)),
            lost=dict(Counter(first_of.values())),
            example=next((example for example in examples if example), ""),
        )

    def _text(self, name: str, row: int) -> str:
        for table in self.tables:
            if row < table.rows:
                return table.text(name, row)
            row -= table.rows
        raise IndexError(row)


def encode_rows(
    encoder: Encoder,
    comparisons: StoredComparisons,
    *,
    copy_seed: int | None = None,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Encoded:
    """Encode every different row of ``comparisons`` once, or find it in the cache.

    With ``copy_seed``, each with a copy of one response (:mod:`plaudit.data.perturb.copies`).

    The trees are those of :func:`plaudit.tokens.encode.encode`, to the bit, however many processes
    there are. ``on_rows`` hears rows done and rows in all.

    Raises:
        DataError: ``truncation`` is ``error`` and a conversation is over ``max_length``.
        ModelError: messages, and a tokenizer without a chat template.
        OutputError: the cache cannot be written.
    """
    total = len(np.unique(comparisons.rows_N))
    before = 0
    tables: list[MappedTable] = []
    decides = _inputs(encoder)
    for table, rows in comparisons.by_table():
        selected = "all" if len(rows) == table.rows else hashlib.sha256(rows.tobytes()).hexdigest()
        inputs = {**decides, "comparisons": table.key, "rows": selected}
        if copy_seed is not None:
            inputs["copies"] = [copy_seed, code_digest(*_code_of_copies())]
        one = StoredComparisons([table], rows)

        def build(
            path: Path, one: StoredComparisons = one, before: int = before
        ) -> Mapping[str, Any]:
            done = before

            def heard(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
                nonlocal done
                for batch in batches:
                    yield batch
                    done += batch.num_rows
                    on_rows(done, total)

            write_batches(path, _SCHEMA, heard(_encode_batches(encoder, one, copy_seed)))
            return {}

        tables.append(cached("trees", inputs, build))
        before += len(rows)
    return Encoded(comparisons, tuple(tables))


def _inputs(encoder: Encoder) -> dict[str, Any]:
    """Everything that decides the ids of a comparison."""
    return {
        "tokenizer": tokenizer_digest(encoder.tokenizer),
        "template": encoder.tokenizer.chat_template,
        "template_kwargs": dict(encoder.chat_template_kwargs),
        "max_length": encoder.max_length,
        "truncation": encoder.truncation,
        "text_as_turns": encoder.text_as_turns,
        "rendering": asdict(encoder.rendering),
        "scored_token": asdict(encoder.scored_token),
        "versions": [__version__, transformers.__version__, tokenizers.__version__],
        "code": code_digest(*_code(encoder.rendering)),
    }


def _code_of_copies() -> Iterator[Path]:
    """The modules that decide what a copy says."""
    folder = Path(perturb.__file__).parent
    yield from folder.glob("*.py")
    yield folder / "words.json"


def _code(rendering: Rendering) -> Iterator[Path]:
    """The modules that decide the ids of a comparison."""
    tokens = Path(__file__).parent
    yield tokens.parent / "types.py"
    yield from tokens.glob("*.py")
    if rendering.kind != CHAT_TEMPLATE:
        yield registry.source_file("renderer", rendering.kind)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that the tokenizer is made of, as it would save it, and of its class."""
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__name__}"
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id]
    digest = hashlib.sha256(json.dumps([kind, ends]).encode())
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # What the last call asked for; encoding asks for neither.
        del state["truncation"], state["padding"]
        digest.update(json.dumps(state, sort_keys=True).encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory(prefix="plaudit-") as folder, writing(Path(folder)):
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


# --- batches of rows, here or in workers --------------------------------------------------------


def _encode_batch(
    encoder: Encoder, comparisons: StoredComparisons, copy_seed: int | None
) -> pa.RecordBatch:
    read = list(comparisons)
    outcomes = encode(encoder, read)
    if copy_seed is not None:
        outcomes = _with_copies(encoder, read, outcomes, copy_seed)
    rows = [
        _columns(outcome) | {"chat": encoder.text_as_turns or is_chat(comparison)}
        for comparison, outcome in zip(read, outcomes, strict=True)
    ]
    return pa.record_batch(
        [pa.array([row[field.name] for row in rows], field.type) for field in _SCHEMA],
        schema=_SCHEMA,
    )


def _with_copies(
    encoder: Encoder,
    read: Sequence[Comparison],
    outcomes: Sequence[TokenTree | Skipped],
    seed: int,
) -> list[TokenTree | Skipped]:
    """The trees with a copy of one response, where there is one and it fits like the others."""
    copied = [with_copy(comparison, seed) for comparison in read]
    # A copy that is too long is left out, whatever becomes of a response that is.
    truncation: Truncation = "drop" if encoder.truncation == "error" else encoder.truncation
    longer = [one.comparison for one in copied if one is not None]
    again = iter(encode(replace(encoder, truncation=truncation), longer))
    trees: list[TokenTree | Skipped] = []
    for outcome, one in zip(outcomes, copied, strict=True):
        tree = outcome if one is None else next(again)
        if one is not None and _cut_alike(tree, outcome):
            assert isinstance(tree, TokenTree)
            tree = replace(tree, index=outcome.index, copies=(one.origin,))
        else:
            tree = outcome
        trees.append(tree)
    return trees


def _cut_alike(one: TokenTree | Skipped, other: TokenTree | Skipped) -> bool:
    """Whether both are trees that lost equally many tokens to the maximum length."""
    if isinstance(one, Skipped) or isinstance(other, Skipped):
        return False
    lost = [(tree.truncated, tree.truncated_responses) for tree in (one, other)]
    return lost[0] == lost[1]


def _columns(outcome: TokenTree | Skipped) -> dict[str, Any]:
    reason = outcome.reason if isinstance(outcome, Skipped) else why_untrainable(outcome)
    if isinstance(outcome, Skipped) or reason is not None:
        detail = outcome.detail if isinstance(outcome, Skipped) else ""
        return _NOTHING | {"reason": reason, "detail": detail, "kept": False}
    ids = np.concatenate([outcome.prefix, *outcome.branches])
    return {
        "reason": "",
        "detail": "",
        "kept": True,
        "ids": ids,
        "branches": [len(branch) for branch in outcome.branches],
        "grades": list(outcome.grades),
        "prefix": len(outcome.prefix),
        "truncated": outcome.truncated,
        "truncated_responses": outcome.truncated_responses,
        "margin": outcome.margin,
        "weight": outcome.weight,
        "soft_label": outcome.soft_label,
        "rated": int(outcome.rated),
        "attributes": json.dumps(dict(outcome.attributes)) if outcome.attributes else "",
        "copies": list(outcome.copies),
        "packed": outcome.tokens,
        "separate": sum(outcome.lengths),
        "longest": max(outcome.lengths),
        "largest_id": int(ids.max()),
    }


def _encode_batches(
    encoder: Encoder, comparisons: StoredComparisons, copy_seed: int | None
) -> Iterator[pa.RecordBatch]:
    """A record batch for every :data:`BATCH_ROWS` comparisons, in order."""
    return map_forked(
        lambda start: _encode_batch(encoder, comparisons[start : start + BATCH_ROWS], copy_seed),
        range(0, len(comparisons), BATCH_ROWS),
        rows=len(comparisons),
        doing="a process that encodes",
    )
