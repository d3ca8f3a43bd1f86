"""Every row as numbers: what the checks read. Measured in batches, by worker processes.

Shape legend: N rows, R responses of all rows end to end, W words of a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.data.audit import chat
from plaudit.data.audit.overlap import EvalGrams
from plaudit.data.audit.rows import AuditRows, Progress
from plaudit.data.audit.shingles import Hashes, Sketcher, grams, shingles, union, words
from plaudit.data.audit.tools import Tools
from plaudit.data.reasons import EXPLANATIONS, why_untrainable
from plaudit.storage.arrow import BATCH_ROWS
from plaudit.storage.atomic import writing
from plaudit.storage.fork_pool import forked_pool, in_order, worker_count
from plaudit.types import Comparison, Refused, Turns

Array: TypeAlias = npt.NDArray[Any]

REASONS: Final = tuple(EXPLANATIONS)
"""Reasons of ``data/reasons.py`` by number, from 1; 0 is a row that can train."""

PROMPT_SKETCH: Final = 40
RESPONSES_SKETCH: Final = 120
SAME_SCRIPT: Final = 0.05
"""Share of a text's letters from which on a script has a part in it."""

SPLIT_COLUMN: Final = "split"
"""A column of this name says on which side of a split a row stands."""

ROW_COLUMNS: Final[dict[str, type[np.generic]]] = {
    "group": np.uint64,  # the prompt, roles and contents
    "prompt_key": np.uint64,  # the prompt's text, whatever its form, case and white space; 0: none
    "row_key": np.uint64,  # prompt, responses and grades
    "pair_key": np.uint64,  # prompt and responses, in any order
    "split": np.uint64,  # the value of the split column; 0 without
    "reason": np.uint8,
    "problems": np.uint32,
    "plain": np.bool_,  # text, which no chat template renders
    "responses": np.uint16,
    "prompt_characters": np.uint32,
    "prompt_script": np.uint64,  # the code of a name of `names`; 0 without letters
    "mixed_scripts": np.bool_,  # two responses are in different scripts
    "turns": np.uint16,
    "longest": np.uint32,  # tokens of the longest conversation
    "shared": np.uint32,  # tokens that two differently graded conversations share in front
    "refused": np.uint64,  # the code of the reason why it has no tokens; 0: it has
    "unrendered": np.uint64,  # the code of what the chat template does not render; 0: nothing
    "copied_from": np.int64,  # the held-out row whose prompt it holds; -1: none
}
RESPONSE_COLUMNS: Final[dict[str, type[np.generic]]] = {
    "digest": np.uint64,
    "characters": np.uint32,
    "grade": np.float64,  # nan where nothing is known
    "script": np.uint64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Numbers of all rows (``of_rows``) and of all responses (``of_responses``).

    ``names`` are the words behind codes (scripts, split values, reasons). ``sketches`` is the file
    of the rows' sketches, ``RESPONSES_SKETCH + PROMPT_SKETCH`` values a row.
    """

    of_rows: Mapping[str, Array]
    of_responses: Mapping[str, Array]
    names: Mapping[int, str]
    sketches: Path

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where the responses of each row begin, and where the last end."""
        return np.concatenate([[0], np.cumsum(self.of_rows["responses"], dtype=np.int64)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    of_rows: dict[str, Array]
    of_responses: dict[str, Array]
    names: dict[int, str]
    sketches: Hashes


def measure_columns(
    rows: AuditRows, folder: Path, tools: Tools, held_out: EvalGrams, on_progress: Progress
) -> Columns:
    """Measure every row; the numbers do not depend on how many processes there are.

    Raises:
        DataError: a worker process was killed.
        OutputError: the disk.
    """
    path = folder / "sketches"
    of_rows: dict[str, list[Array]] = {name: [] for name in ROW_COLUMNS}
    of_responses: dict[str, list[Array]] = {name: [] for name in RESPONSE_COLUMNS}
    names: dict[int, str] = {}
    done = 0
    with writing(path), path.open("wb") as file:
        for batch in _measured(rows, tools, held_out):
            file.write(batch.sketches.tobytes())
            names |= batch.names
            # The batch itself holds its sketches, which are too many to keep.
            for kept, new in ((of_rows, batch.of_rows), (of_responses, batch.of_responses)):
                for name, values in new.items():
                    kept[name].append(values)
            done += len(batch.sketches)
            on_progress("measuring", done, len(rows))
    return Columns(
        of_rows={name: np.concatenate(of_rows.pop(name)) for name in ROW_COLUMNS},
        of_responses={name: np.concatenate(of_responses.pop(name)) for name in RESPONSE_COLUMNS},
        names=names,
        sketches=path,
    )


def _measured(rows: AuditRows, tools: Tools, held_out: EvalGrams) -> Iterator[_Batch]:
    starts = range(0, len(rows), BATCH_ROWS)
    workers = worker_count(len(rows))
    global _shared
    _shared = _Measurer(rows, tools, held_out)
    try:
        if workers == 1:
            for start in starts:
                yield _shared(start)
            return
        with forked_pool(workers) as pool:
            yield from in_order(
                pool, _measure, starts, workers=workers, doing="a process that measures rows"
            )
    finally:
        _shared = None


def _measure(start: int) -> _Batch:
    assert _shared is not None
    return _shared(start)


class _Measurer:
    """One batch of rows as numbers."""

    def __init__(self, rows: AuditRows, tools: Tools, held_out: EvalGrams) -> None:
        self.rows = rows
        self.tools = tools
        self.held_out = held_out
        self.sketch_prompt = Sketcher(PROMPT_SKETCH)
        self.sketch_responses = Sketcher(RESPONSES_SKETCH)

    def __call__(self, start: int) -> _Batch:
        numbers = range(start, min(start + BATCH_ROWS, len(self.rows)))
        comparisons = [self.rows[number] for number in numbers]
        of_rows: dict[str, list[Any]] = {name: [] for name in ROW_COLUMNS}
        of_responses: dict[str, list[Any]] = {name: [] for name in RESPONSE_COLUMNS}
        names: dict[int, str] = {}
        sketches = np.empty((len(comparisons), RESPONSES_SKETCH + PROMPT_SKETCH), np.uint32)
        sizes = self.tools.counting.measure(comparisons)
        for place, (comparison, size) in enumerate(zip(comparisons, sizes, strict=True)):
            row, responses, sketch = self._row(comparison, names, data=numbers[place])
            if isinstance(size, Refused):
                field = _named(size.field, names) if size.field else 0
                refused = _named(size.reason, names)
                row |= {"refused": refused, "unrendered": field, "longest": 0, "shared": 0}
            else:
                row |= {"refused": 0, "unrendered": 0}
                row |= {"longest": size.longest, "shared": size.shared}
            sketches[place] = sketch
            for name, value in row.items():
                of_rows[name].append(value)
            for name, values in responses.items():
                of_responses[name] += values
        return _Batch(
            of_rows={name: np.array(of_rows[name], kind) for name, kind in ROW_COLUMNS.items()},
            of_responses={
                name: np.array(of_responses[name], kind) for name, kind in RESPONSE_COLUMNS.items()
            },
            names=names,
            sketches=sketches,
        )

    def _row(
        self, comparison: Comparison, names: dict[int, str], *, data: int
    ) -> tuple[dict[str, Any], dict[str, list[Any]], Hashes]:
        """Numbers of a row, of its responses, and its sketches: responses, then prompt."""
        prompt = self.tools.text(comparison.prompt)
        texts = [self.tools.text(response) for response in comparison.responses]
        prompt_W = words(prompt)
        texts_W = [words(text) for text in texts]
        scripts = [self.tools.scripts(text) for text in texts]
        digests = [digest_of(response) for response in comparison.responses]
        grades = comparison.grades or (float("nan"),) * len(texts)
        split = comparison.metadata.get(SPLIT_COLUMN)
        reason = why_untrainable(comparison)
        group = int(comparison.group, 16)
        is_data = data < self.rows.data
        row = {
            "group": group,
            "prompt_key": _text_key(prompt),
            "row_key": _code(repr((group, sorted(zip(digests, grades, strict=True)))).encode()),
            "pair_key": _code(repr((group, sorted(digests))).encode()),
            "split": _named(str(split), names) if isinstance(split, str) and split else 0,
            "reason": 0 if reason is None else REASONS.index(reason) + 1,
            "problems": chat.problems(comparison),
            "plain": isinstance(comparison.responses[0], str),
            "responses": len(texts),
            "prompt_characters": len(prompt),
            "prompt_script": _main_script(self.tools.scripts(prompt), names),
            "mixed_scripts": any(
                not _share_a_script(one, other) for one, other in combinations(scripts, 2)
            ),
            "turns": 1 if isinstance(comparison.prompt, str) else len(comparison.prompt),
            "copied_from": (
                self.held_out.copied([grams(part) for part in (prompt_W, *texts_W)])
                if is_data
                else -1
            ),
        }
        of_responses: dict[str, list[Any]] = {
            "digest": digests,
            "characters": [len(text) for text in texts],
            "grade": list(grades),
            "script": [_main_script(counts, names) for counts in scripts],
        }
        responses_S = union(shingles(text_W) for text_W in texts_W)
        sketch = [self.sketch_responses(responses_S), self.sketch_prompt(shingles(prompt_W))]
        return row, of_responses, np.concatenate(sketch)


_shared: _Measurer | None = None
"""What worker processes inherit."""


def digest_of(turns: Turns) -> int:
    """A number for what is said, roles and tool calls included; white space at the ends is not."""
    if isinstance(turns, str):
        return _code(turns.strip().encode("utf-8", "surrogatepass"))
    said = [
        (turn.role, turn.content.strip() if isinstance(turn.content, str) else turn.content)
        + ((dict(turn.extra),) if turn.extra else ())
        for turn in turns
    ]
    return _code(json.dumps(said, sort_keys=True, default=str).encode())


def _main_script(counts: Mapping[str, int], names: dict[int, str]) -> int:
    """The code of the script most letters belong to; 0 without letters."""
    if not counts:
        return 0
    return _named(min(counts, key=lambda name: (-counts[name], name)), names)


def _share_a_script(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether the main script of either has a part in the other: quoted code makes no language.

    A text without letters goes with any.
    """
    if not one or not other:
        return True
    return any(
        theirs.get(max(ours, key=ours.__getitem__), 0) >= SAME_SCRIPT * sum(theirs.values())
        for ours, theirs in ((one, other), (other, one))
    )


def _text_key(text: str) -> int:
    plain = " ".join(text.casefold().split())
    return _code(plain.encode("utf-8", "surrogatepass")) if plain else 0


def _code(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _named(name: str, names: dict[int, str]) -> int:
    code = _code(name.encode("utf-8", "surrogatepass"))
    names[code] = name
    return code
