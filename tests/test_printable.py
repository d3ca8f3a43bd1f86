"""Names and values of the data in messages: one line, bounded, and no escape sequence."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from plaudit.cli.printing import ScreenHandler
from plaudit.errors import printable
from plaudit.evaluation.schema import read_metrics
from plaudit.evaluation.sentences import _slices as slice_sentences

GOLDEN = Path(__file__).parent / "goldens" / "run"
ESCAPE = "\x1b]0;title\x07\x1b[31m"


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("plain 你好", None, "plain 你好"),
        ("a\x1b[31m\tb\n", None, r"a\x1b[31m\tb\n"),
        ("\ud800\u202e", None, r"\ud800\u202e"),
        ("four", 4, "four"),
        ("fives", 4, "fiv…"),
        ("\n\n\n", 4, r"\n\…"),
        ("x" * 2**20, 3, "xx…"),
    ],
)
def test_text_is_escaped_and_cut(text: str, most: int | None, expected: str) -> None:
    assert printable(text, most) == expected


def test_warnings_keep_their_lines_and_no_escapes() -> None:
    screen = io.StringIO()
    record = logging.makeLogRecord({"msg": f"one [b]{ESCAPE}\ntwo"})
    ScreenHandler(Console(file=screen, width=200)).emit(record)
    assert screen.getvalue() == "one [b]\\x1b]0;title\\x07\\x1b[31m\ntwo\n"


def test_slices_are_named_without_escapes() -> None:
    entry = replace(
        read_metrics(GOLDEN).eval.slices[0],
        column=f"kind{ESCAPE}" + "y" * 999,
        value=ESCAPE,
        accuracy=0.1,
        significant=True,
    )
    block = replace(read_metrics(GOLDEN).eval, slices=(entry,), accuracy=0.5)
    (sentence,) = slice_sentences(block)
    assert sentence.isprintable()
    assert len(sentence) < 200
