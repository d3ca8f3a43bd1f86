"""Chat templates: chosen once, frozen in time, stored with the model."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from plaudit.errors import ModelError, RecipeError

_STRFTIME_CALL = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")
_ANY_STRFTIME_CALL = re.compile(r"strftime_now\(")


def read_template(path: Path) -> str:
    """The text of a jinja chat template file.

    Raises:
        RecipeError: the file is missing or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            f"tokens.chat_template: no file at {path}; give the path of a jinja chat template."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"tokens.chat_template: {path} cannot be read as text ({error}); "
            "give the path of a jinja chat template."
        ) from None


def freeze_dates(template: str, day: date) -> str:
    """A template whose rendering no longer depends on the clock.

    Llama 3.x and others call ``strftime_now`` while rendering, so the same conversation would get
    another score tomorrow. A macro of that name, put in front, answers every format the template
    asks for with ``day``; it travels with the saved tokenizer, so plain transformers renders the
    same text. A template without ``strftime_now`` is returned as it is.

    Raises:
        ModelError: a format that is not a literal string, so that it cannot be answered ahead.
    """
    calls = len(_ANY_STRFTIME_CALL.findall(template))
    formats = sorted({match["format"] for match in _STRFTIME_CALL.finditer(template)})
    if calls == 0 or template.startswith("{%- macro strftime_now"):
        return template
    if calls != len(_STRFTIME_CALL.findall(template)):
        raise ModelError(
            "The chat template computes the format of today's date while rendering, so scores "
            "would drift from day to day; give a template of your own with tokens.chat_template."
        )
    answers = "".join(
        f"{{%- if format == {_jinja_string(spec)} -%}}{day.strftime(spec)}{{%- endif -%}}"
        for spec in formats
    )
    return f"{{%- macro strftime_now(format) -%}}{answers}{{%- endmacro -%}}{template}"


def _jinja_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
