"""Chat templates: read from a file, and frozen in time."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from plaudit.errors import ModelError, RecipeError
from plaudit.tokens.rendering import freeze_dates
from plaudit.training.needs import read_template

DAY = date(2024, 7, 26)
MESSAGES = "{% for m in messages %}{{ m.content }}{% endfor %}"
# As Llama 3.2's own template asks for the date.
LLAMA = (
    "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "01 Jan 2001" %}\n    {%- endif %}\n{%- endif %}\n'
    '{{- "Today Date: " + date_string + "|" }}' + MESSAGES
)
DIRECT = "{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now( \"%d %B\" ) }}|" + MESSAGES


def rendered(tokenizer: Any, **options: Any) -> str:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, **options
    )
    assert isinstance(text, str)
    return text


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAMA, "Today Date: 26 Jul 2024|hello"),
        (DIRECT, "2024-07-26|26 July|hello"),
        ("{{ strftime_now('%d') }}{{ strftime_now(\"%d\") }}|" + MESSAGES, "2626|hello"),
        ("{{ strftime_now(' %Y ') }}|" + MESSAGES, " 2024 |hello"),
        ('{{ strftime_now ("it\'s %Y") }}|' + MESSAGES, "it's 2024|hello"),
        (
            "{% macro head() %}{{ strftime_now('%Y') }}{% endmacro %}{{ head() }}|" + MESSAGES,
            "2024|hello",
        ),
    ],
)
def test_the_date_stands_still(
    template: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the tokenizer, and through what plain transformers loads from the saved folder."""
    from transformers import AutoTokenizer

    from tests.models import tiny_tokenizer

    tokenizer = tiny_tokenizer(chat_template=freeze_dates(template, DAY))
    assert rendered(tokenizer) == expected
    tokenizer.save_pretrained(str(tmp_path))
    assert rendered(AutoTokenizer.from_pretrained(tmp_path)) == expected


@pytest.mark.heavy
def test_a_date_that_the_data_gives_still_wins() -> None:
    from tests.models import tiny_tokenizer

    tokenizer = tiny_tokenizer(chat_template=freeze_dates(LLAMA, DAY))
    assert rendered(tokenizer, date_string="1 May") == "Today Date: 1 May|hello"


@pytest.mark.parametrize(
    "call",
    [
        "strftime_now(form)",
        "strftime_now('%d' ~ mark ~ '%Y')",
        "strftime_now('%d' if short else '%Y')",
        "strftime_now('%d\\n')",
        "strftime_now(format='%d')",
    ],
)
def test_a_format_that_is_computed_is_refused(call: str) -> None:
    with pytest.raises(ModelError, match="computes the format"):
        freeze_dates(f"{{{{ {call} }}}}{MESSAGES}", DAY)


def test_another_name_for_the_clock_is_refused() -> None:
    with pytest.raises(ModelError, match="computes the format"):
        freeze_dates("{% set now = strftime_now %}{{ now('%d') }}", DAY)


def test_a_template_without_dates_is_left_alone() -> None:
    assert freeze_dates(MESSAGES, DAY) == MESSAGES


def test_freezing_twice_is_freezing_once() -> None:
    once = freeze_dates(LLAMA, DAY)
    assert freeze_dates(once, date(1999, 1, 1)) == once


def test_read_template(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ 'é' }}", encoding="utf-8")
    assert read_template(path) == "{{ 'é' }}"
    with pytest.raises(RecipeError, match=r"no file at .*gone\.jinja"):
        read_template(tmp_path / "gone.jinja")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_template(tmp_path)
