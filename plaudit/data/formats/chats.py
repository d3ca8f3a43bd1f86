"""Readers of other trainers' conversations: LLaMA-Factory, ms-swift, questions with answers."""

from __future__ import annotations

from typing import Any, Final

from plaudit.data.formats import values
from plaudit.data.formats.parsed import Parsed, Reader, pair, pair_of_whole
from plaudit.data.formats.turns import (
    ANSWERING,
    HUMAN,
    Messages,
    alternate,
    answered,
    asked,
    is_sharegpt,
    sharegpt_turn,
    under_system,
)
from plaudit.data.formats.values import Row
from plaudit.data.reasons import BROKEN_TURNS
from plaudit.errors import DataError


def alpaca(row: Row) -> Parsed:
    """LLaMA-Factory's alpaca ranking: an instruction, perhaps with an input, and two texts."""
    return pair(
        _alpaca_prompt(row),
        answered(values.text(row, "chosen")),
        answered(values.text(row, "rejected")),
    )


def alpaca_output(row: Row) -> Parsed:
    """The same as LLaMA-Factory had it until 0.7.1: ``output`` holds the better, then the worse."""
    outputs = values.texts(row, "output")
    if len(outputs) != 2:
        raise DataError(f"output holds {len(outputs)} texts; expected the better and the worse.")
    return pair(_alpaca_prompt(row), answered(outputs[0]), answered(outputs[1]))


def sharegpt(row: Row) -> Parsed:
    """LLaMA-Factory's sharegpt ranking: a conversation, and two turns that go on with it.

    LLaMA-Factory's rules: after one system turn, ``human`` or ``observation`` alternates with
    ``gpt`` or ``function_call``, and the last turn asks. It skips other rows with a warning; here
    they are counted as ``broken_turns``.
    """
    given = [
        sharegpt_turn(value, f"conversations[{index}]")
        for index, value in enumerate(values.items(row, "conversations"))
    ]
    replies = [
        sharegpt_turn(values.value_of(row, column), column) for column in ("chosen", "rejected")
    ]
    leading = given[0][1] if given and given[0][0] == "system" else None
    turns = given if leading is None else given[1:]
    system = values.optional_text(row, "system") if leading is None else str(leading.content)
    whole = alternate([name for name, _ in turns]) and all(n in ANSWERING for n, _ in replies)
    return Parsed(
        prompt=under_system(system, tuple(message for _, message in turns)),
        responses=tuple((message,) for _, message in replies),
        grades=(1.0, 0.0),
        unusable=None if whole else BROKEN_TURNS,
    )


def ms_swift(row: Row) -> Parsed:
    """ms-swift: a conversation with its good answer, and the answer that was rejected.

    A rejected text stands against the last turn. A list of messages stands against all turns after
    the last question, or is a whole conversation if it opens with one.
    """
    whole = _answered_conversation(row)
    rejected = values.value_of(row, "rejected_response")
    if isinstance(rejected, str):
        return pair(whole[:-1], whole[-1:], answered(rejected))
    other = values.messages(row, "rejected_response")
    if other and other[0].role in ("system", "user"):
        return pair_of_whole(whole, other)
    cut = max((n for n, turn in enumerate(whole, 1) if turn.role == "user"), default=0)
    return pair(whole[:cut], whole[cut:], other)


def ms_swift_messages(row: Row) -> Parsed:
    """ms-swift: two whole conversations, the good one under ``messages``."""
    return pair_of_whole(
        values.messages(row, "messages"), values.messages(row, "rejected_messages")
    )


def question(row: Row) -> Parsed:
    """A question (or input), perhaps under a system text, and two texts, as in the Orca pairs."""
    column = "question" if "question" in row else "input"
    return pair(
        under_system(values.optional_text(row, "system"), asked(values.text(row, column))),
        answered(values.text(row, "chosen")),
        answered(values.text(row, "rejected")),
    )


def _alpaca_prompt(row: Row) -> Messages:
    """History, then instruction and input joined by a line break, under the system text."""
    instruction, query = (values.optional_text(row, column) for column in ("instruction", "input"))
    earlier: list[Any] = []
    if row.get("history") is not None:
        for index, turn in enumerate(values.items(row, "history")):
            if not values.is_texts(turn) or len(turn) != 2:
                raise DataError(f"history[{index}] is no question and its answer, as two texts.")
            earlier += [*asked(turn[0]), *answered(turn[1])]
    last = "\n".join(text for text in (instruction, query) if text is not None)
    return under_system(values.optional_text(row, "system"), (*earlier, *asked(last)))


def _answered_conversation(row: Row) -> Messages:
    whole = values.messages(row, "messages")
    if not whole or whole[-1].role != "assistant":
        raise DataError("messages does not end with an assistant turn; expected the good answer.")
    return whole


def _looks_sharegpt(row: Row) -> bool:
    turns = row["conversations"]
    return (
        isinstance(turns, list)
        and all(is_sharegpt(turn) for turn in turns)
        and all(is_sharegpt(row[column]) for column in ("chosen", "rejected"))
    )


def _looks_question(row: Row) -> bool:
    asks = [row[column] for column in ("question", "input") if column in row]
    return (
        bool(asks)
        and isinstance(asks[0], str)
        and "prompt" not in row
        and "instruction" not in row
        and values.all_text(row, "chosen", "rejected")
        and not row["chosen"].startswith(HUMAN)
    )


_ALPACA_OPTIONAL: Final = ("input", "history", "system")

READERS: Final = (
    Reader(
        name="alpaca",
        description="LLaMA-Factory's alpaca ranking: instruction, input, chosen, rejected",
        columns=("instruction", "chosen", "rejected"),
        optional=_ALPACA_OPTIONAL,
        recognises=lambda row: (
            "prompt" not in row and values.all_text(row, "instruction", "chosen", "rejected")
        ),
        parse=alpaca,
    ),
    Reader(
        name="alpaca_output",
        description="LLaMA-Factory's old alpaca ranking: output holds the better and the worse",
        columns=("instruction", "output"),
        optional=_ALPACA_OPTIONAL,
        recognises=lambda row: (
            "chosen" not in row
            and isinstance(row["instruction"], str)
            and values.is_texts(row["output"])
        ),
        parse=alpaca_output,
    ),
    Reader(
        name="sharegpt",
        description="LLaMA-Factory's sharegpt ranking: conversations, chosen and rejected turns",
        columns=("conversations", "chosen", "rejected"),
        optional=("system",),
        recognises=_looks_sharegpt,
        parse=sharegpt,
    ),
    Reader(
        name="ms_swift",
        description="ms-swift: messages with the good answer, and a rejected one",
        columns=("messages", "rejected_response"),
        recognises=lambda row: (
            values.is_messages(row["messages"])
            and isinstance(row["rejected_response"], (str, list))
        ),
        parse=ms_swift,
    ),
    Reader(
        name="ms_swift_messages",
        description="ms-swift: a good and a rejected conversation",
        columns=("messages", "rejected_messages"),
        recognises=lambda row: values.all_messages(row, "messages", "rejected_messages"),
        parse=ms_swift_messages,
    ),
    Reader(
        name="question",
        description="a question or input, perhaps a system text, and two texts",
        columns=("chosen", "rejected"),
        optional=("question", "input", "system"),
        recognises=_looks_question,
        parse=question,
    ),
)
"""Rows of :data:`plaudit.data.formats.readers.READERS`."""
