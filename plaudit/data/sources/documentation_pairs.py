"""Preference pairs out of Python's documentation: each passage against a mutation of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any, Final, Literal, TypeAlias

from plaudit.data.perturb.table import OPERATORS
from plaudit.data.perturb.text import Context, make_context
from plaudit.data.sources.documentation import Answer, answers, questions, read_documentation
from plaudit.errors import DataError

Row: TypeAlias = dict[str, Any]

MOST_PAIRS: Final = 24_004
"""The size of the published reference's preference set, and the most that is built."""

SOURCE: Final = "python-documentation"

MIX: Final = (
    "other_text", "reversed_meaning", "changed_value", "dropped_words", "shuffled_words",
    "repeated_phrase", "truncation", "misspelling", "contradiction", "verbose_filler",
)  # fmt: skip
"""The ten operators of the pairs, in the order in which they take turns. The pairs of a seed are
the same in every version, so this does not follow the table."""


def build_pairs(
    count: int, seed: int, part: Literal["training", "heldout"] = "training"
) -> list[Row]:
    """Explicit conversational rows: a question, its documentation, a mutation of that.

    The ten operators have equal shares, to within one row, in every leading run of the rows, and a
    smaller set is the beginning of a larger one of the same seed. Every operator goes through all
    passages that it can mutate before it takes one again, and then mutates it otherwise. A thing is
    asked about in one phrasing, so that a split by prompt parts what is asked about.

    Columns: ``id``, ``prompt``, ``chosen``, ``rejected`` (lists of messages), ``subset`` (the
    operator), ``source`` and ``name`` (what the question is about).

    Raises:
        DataError: ``count`` is not between 1 and :data:`MOST_PAIRS`, or more than the part can
            give, or the part is not one to build from.
    """
    if not 1 <= count <= MOST_PAIRS:
        raise DataError(f"{count} pairs were asked for; expected 1 to {MOST_PAIRS}.")
    if part not in ("training", "heldout"):
        raise DataError(f"there is no part {part!r} to build pairs from; use training or heldout.")
    seen: set[str] = set()
    streams = [_operator_rows(name, seed, part, seen) for name in MIX]
    rows = (next(streams[at % len(streams)]) for at in range(count))
    return [{"id": f"{part}-{seed}-{at:05d}", **row} for at, row in enumerate(rows)]


def _operator_rows(name: str, seed: int, part: str, seen: set[str]) -> Iterator[Row]:
    """Rows of one operator without end; ``seen`` holds the pairs of all operators so far."""
    passages, context, own = material(part)
    turn = 0
    while True:
        order = list(range(len(passages)))
        Random(f"{seed}/{part}/{name}/{turn}").shuffle(order)
        before = len(seen)
        for at in order:
            answer = passages[at]
            generator = Random(f"{seed}/{part}/{name}/{turn}/{at}")
            around = replace(context, own=own[answer.name])
            rejected = OPERATORS[name].apply(answer.text, generator, around)
            question = question_of(answer, seed)
            pair = f"{question}\n{answer.text}\n{rejected}"
            if rejected is None or pair in seen:
                continue
            seen.add(pair)
            yield {
                "prompt": [{"role": "user", "content": question}],
                "chosen": [{"role": "assistant", "content": answer.text}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "subset": name,
                "source": SOURCE,
                "name": answer.name,
            }
        if len(seen) == before:
            raise DataError(
                f"the {part} documentation gives no more pairs of the operator {name} after "
                f"{turn} turns; ask for fewer."
            )
        turn += 1


def question_of(answer: Answer, seed: int) -> str:
    """The one phrasing in which its thing is asked about (another for further passages)."""
    generator = Random(f"{seed}/{answer.name}/{answer.index > 0}")
    return generator.choice(questions(answer))


@cache
def material(part: str) -> tuple[tuple[Answer, ...], Context, dict[str, frozenset[str]]]:
    """A part's passages, what operators borrow from, and the right answers by name."""
    passages = tuple(
        answer
        for record in read_documentation()
        if record.part == part
        for answer in answers(record)
    )
    own: dict[str, set[str]] = {}
    for answer in passages:
        own.setdefault(answer.name, set()).add(answer.text)
    context = make_context([answer.text for answer in passages])
    return passages, context, {name: frozenset(texts) for name, texts in own.items()}
