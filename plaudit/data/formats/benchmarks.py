"""Readers of benchmarks' rows as pairs, to train or evaluate on them like on any other data.

Their scores by their own rules are suites of ``plaudit eval`` (``evaluate/suites``). Here their
texts are read as turns, because they are questions and answers of chats.
"""

from __future__ import annotations

from typing import Final

from plaudit.data.formats import values
from plaudit.data.formats.parsed import Parsed, Reader, by_lead, pair
from plaudit.data.formats.turns import answered, asked
from plaudit.data.formats.values import Row
from plaudit.errors import DataError

_REWARDBENCH: Final = frozenset({"subset", "chosen_model", "rejected_model"})


def is_rewardbench(row: Row) -> bool:
    """Whether a row of prompt, chosen and rejected says what RewardBench's rows say."""
    return row.keys() >= _REWARDBENCH


def rewardbench(row: Row) -> Parsed:
    """RewardBench: a question, the better and the worse answer."""
    return pair(
        asked(values.text(row, "prompt")),
        answered(values.text(row, "chosen")),
        answered(values.text(row, "rejected")),
    )


def answer_lists(row: Row) -> Parsed:
    """RewardBench 2 and RM-Bench: a question, right answers (grade 1) and wrong ones (grade 0)."""
    chosen, rejected = values.texts(row, "chosen"), values.texts(row, "rejected")
    return Parsed(
        prompt=asked(values.text(row, "prompt")),
        responses=tuple(answered(text) for text in chosen + rejected),
        grades=(1.0,) * len(chosen) + (0.0,) * len(rejected),
    )


def llmbar(row: Row) -> Parsed:
    """LLMBar: two outputs for an input, and the number (1 or 2) of the better one."""
    label = values.number(row, "label")
    if label not in (1.0, 2.0):
        raise DataError("label is neither 1 nor 2; expected the number of the better output.")
    return by_lead(
        asked(values.text(row, "input")),
        answered(values.text(row, "output_1")),
        answered(values.text(row, "output_2")),
        3 - 2 * label,
    )


READERS: Final = (
    Reader(
        name="rewardbench",
        description="RewardBench: prompt, chosen, rejected and where they are from",
        columns=("prompt", "chosen", "rejected"),
        recognises=lambda row: (
            is_rewardbench(row) and values.all_text(row, "prompt", "chosen", "rejected")
        ),
        parse=rewardbench,
    ),
    Reader(
        name="answer_lists",
        description="RewardBench 2 and RM-Bench: prompt, lists of right and wrong answers",
        columns=("prompt", "chosen", "rejected"),
        recognises=lambda row: (
            isinstance(row["prompt"], str)
            and all(values.is_texts(row[column]) for column in ("chosen", "rejected"))
        ),
        parse=answer_lists,
    ),
    Reader(
        name="llmbar",
        description="LLMBar: an input, two outputs and the number of the better",
        columns=("input", "output_1", "output_2", "label"),
        recognises=lambda row: values.all_text(row, "input", "output_1", "output_2"),
        parse=llmbar,
    ),
)
"""Rows of :data:`plaudit.data.formats.readers.READERS`."""
