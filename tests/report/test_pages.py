"""Texts of the data as a page shows them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plaudit.evaluation.schema import TokenChange
from plaudit.report.pages import brief, conversation, excerpt, shade, showable, spark


@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_every_text_can_be_written_and_holds_no_control(text: str) -> None:
    shown = showable(text)
    shown.encode("utf-8")
    assert not [c for c in shown if ord(c) < 32 and c not in "\n\t"]
    assert showable(shown) == shown


@given(st.text(max_size=60), st.integers(1, 40))
def test_an_excerpt_accounts_for_every_character(text: str, most: int) -> None:
    head, left_out, tail = excerpt(text, most)
    assert len(head) + left_out + len(tail) == len(text)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + len(tail) <= most
    # A text is divided only where something is missing: a line break may stand at the place.
    assert left_out or head == text


def test_brief_is_one_line_and_counts() -> None:
    assert brief("a\n b\tc") == "a b c"
    assert brief("x" * 161) == f"{'x' * 160}… (161 characters)"
    assert brief(None) == "None"


def test_a_long_conversation_keeps_both_ends() -> None:
    turns = [{"role": "user", "content": str(number)} for number in range(50)]
    shown = conversation(turns)
    assert (len(shown.head), shown.left_out, len(shown.tail)) == (2, 38, 10)
    assert shown.tail[-1].text.head == "49"
    assert conversation(turns[:1]) == ((shown.head[0],), 0, ())


def test_parts_and_calls_of_a_turn_are_shown() -> None:
    turn = {"role": "assistant", "content": [{"type": "text", "text": "hi"}], "tool_calls": [7]}
    text = conversation([turn]).head[0].text.head
    assert '"text": "hi"' in text
    assert '"tool_calls"' in text


def test_shades_go_by_share_of_the_largest_change() -> None:
    assert [shade(c, 2.0) for c in (None, 0.0, 0.5, -1.0, 2.0)] == ["", "", "u1", "d2", "u4"]
    assert shade(0.0, 0.0) == ""


def test_a_line_stays_in_its_box() -> None:
    tokens = [TokenChange(text="a", reward=reward, change=None) for reward in (1.0, 3.0, 2.0)]
    assert spark(tokens, 1.0, 3.0) == "0.0,19.0 50.0,1.0 100.0,10.0"
    assert spark(tokens[:1], 1.0, 1.0) == "0.0,19.0"
