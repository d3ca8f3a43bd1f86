"""Chat templates: chosen once, frozen in time, stored with the model."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from plaudit.errors import ModelError, RecipeError

# A call whose format stands there as a literal without escapes; the quotes around it are kept.
_LITERAL_CALL = re.compile(r"strftime_now\s*\(\s*(?P<literal>'[^'\\]*'|\"[^\"\\]*\")\s*\)")
_ANY_USE = re.compile(r"\bstrftime_now\b(?!\s+is\s)")
_FROZEN = "{%- macro strftime_now("


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
    uses = len(_ANY_USE.findall(template))
    literals = [match["literal"] for match in _LITERAL_CALL.finditer(template)]
    if uses == 0 or template.startswith(_FROZEN):
        return template
    if uses != len(literals):
        raise ModelError(
            "The chat template computes the format of today's date while rendering, so scores "
            "would drift from day to day; give a template of your own with tokens.chat_template."
        )
    answers = "".join(
        f"{{%- if format == {literal} -%}}{{{{- {_quoted(day.strftime(literal[1:-1]))} -}}}}"
        "{%- endif -%}"
        # The same format in either kind of quotes is one format.
        for literal in {literal[1:-1]: literal for literal in literals}.values()
    )
    return f"{_FROZEN}format) -%}}{answers}{{%- endmacro -%}}{template}"


def _quoted(text: str) -> str:
    """A Jinja string literal. Printed as an expression, white space at its ends stays."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
