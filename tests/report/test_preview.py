"""Previews: what does not show is shown, what would act does not, and the words are right."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from plaudit.cli.data.preview import print_rows
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.report.preview import (
    attributes,
    labels,
    remarks,
    sizes,
    standing,
    visible,
    write_preview,
)
from plaudit.types import ComparisonPreview, TokenPreview


def token(text: str, *, special: bool = False) -> TokenPreview:
    return TokenPreview(id=7, text=text, special=special)


NASTY = "<script>alert(1)</script>[red]{{ 7 * 7 }}\x1b[31m\u202e"
SHOWN = ComparisonPreview(
    id=NASTY,
    where="pairs.jsonl:1",
    grades=(1.0, 0.0),
    prefix=(token("<|user|>", special=True), token(NASTY), token("\n")),
    branches=((token(" yes"), token("<|end|>", special=True)), (token(""), token("é"))),
    attributes={"Up to date": (4.0, None)},
    truncated=4,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" a", "·a"),
        ("\n\n", "↵\n↵\n"),
        ("\t", "→"),
        ("", "…"),
        ("\x1b[0m", r"\x1b[0m"),
        ("\u202e\u200b\xa0", r"\u202e\u200b\xa0"),
        ("日é́😀", "日é́😀"),
        ("\r", r"\r"),
    ],
)
def test_marks(text: str, expected: str) -> None:
    assert visible(text) == expected


@given(st.text())
def test_no_text_acts_on_a_terminal(text: str) -> None:
    left = visible(text).replace("\n", "")
    assert all(c.isprintable() or not c.isascii() for c in left)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x00-\x1f\x7f-\x9f]", left)


def test_sizes_and_standings_in_words() -> None:
    assert SHOWN.packed == 7
    assert SHOWN.separate == 10
    assert sizes(SHOWN) == (
        "3 tokens shared by both responses, then 2 + 2 of their own. 7 tokens are computed, "
        "instead of 10 in 2 separate sequences (30% fewer)."
    )
    assert [standing(SHOWN, at) for at in (0, 1)] == ["Chosen", "Rejected"]
    one = ComparisonPreview(id="", where="w", grades=(), branches=((token("a"),),))
    assert sizes(one) == "1 token, one response."
    assert standing(one, 0) == "Response 1"
    graded = ComparisonPreview(id="", where="w", grades=(3.0, 1.5))
    assert standing(graded, 1) == "Response 2, grade 1.5"
    rated = replace(graded, attributes={"clear": (None, 0.25), "Up to date": (None, 3.0)})
    assert [attributes(rated, at) for at in (0, 1)] == ["", "clear 0.25, Up to date 3"]
    assert attributes(graded, 1) == ""


@pytest.mark.parametrize(
    ("grades", "change", "said"),
    [
        ((), {}, "No label."),
        (
            (),
            {"attributes": {"clear": (1.0, None), "kind": (2.0, 2.0)}},
            "Labels: attributes clear, kind. Learned by outputs of these names.",
        ),
        (
            (1.0, 0.0),
            {"attributes": {"clear": (1.0, None)}, "objectives": ("hinge",)},
            (
                "Labels: an order; attributes clear. Learned by hinge; attributes by outputs of "
                "their names."
            ),
        ),
        ((1.0, 0.0), {}, "Labels: an order. Learned by no objective."),
        ((0.0, 0.0), {"objectives": ("davidson",)}, "Labels: a tie. Learned by davidson."),
        (
            (1.0, 0.0),
            {"objectives": tuple(OBJECTIVES)},
            (
                "Labels: an order. Learned by every objective; by mse, huber, bce, ordinal only "
                "beside rows with ratings."
            ),
        ),
        (
            (4.0,),
            {"rated": True, "objectives": ("mse", "huber")},
            "Labels: rating 4. Learned by mse, huber.",
        ),
        (
            (2.0, 1.0),
            {"rated": True, "soft_label": 0.8, "objectives": tuple(OBJECTIVES)},
            "Labels: an order; grades or ratings 2, 1; soft label 0.8. Learned by every objective.",
        ),
    ],
)
def test_labels_in_words(grades: tuple[float, ...], change: dict[str, Any], said: str) -> None:
    assert labels(ComparisonPreview(id="", where="w", grades=grades, **change)) == said


def test_remarks_say_what_is_cut_refused_and_dropped() -> None:
    (cut,) = remarks(SHOWN, None)
    assert cut.startswith("4 tokens of the prompt")
    refused = ComparisonPreview(
        id="", where="w", grades=(), reason="over_length", detail="w: 9 tokens, over 4"
    )
    assert remarks(refused, None) == ["Not encoded (over_length): w: 9 tokens, over 4."]
    assert remarks(refused, "a response is empty")[1] == "Training drops it: a response is empty."


def test_a_page_escapes_what_comes_from_data(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_preview(page, [(SHOWN, remarks(SHOWN, None))], data=NASTY, model="<b>model</b>")
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in text
    assert len(re.findall(r'class="token[^"]* scored"', text)) == 2
    assert text.count('<p class="soft">Up to date 4</p>') == 1
    assert "default-src 'none'" in text
    assert "http://" not in text
    assert "https://" not in text


def test_the_terminal_shows_data_as_it_is() -> None:
    console = Console(width=100, force_terminal=False, record=True, quiet=False)
    with console.capture() as captured:
        print_rows(console, [(SHOWN, remarks(SHOWN, None))], ids=True)
    text = captured.get()
    assert "[red]" in text.replace("\n  ", "")
    assert "\x1b" not in text
    assert "[<|end|>(7)]" in text
    assert "chosen: 2 tokens, the scored one is <|end|> (id 7); Up to date 4\n" in text
    assert "rejected: 2 tokens, the scored one is é (id 7)\n" in text
    assert "! 4 tokens of the prompt" in text
