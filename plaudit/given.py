"""What callers of a reward model give it, wherever that runs. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from plaudit.errors import DataError
from plaudit.types import Text

Row: TypeAlias = tuple[Text, Sequence[Text]]
"""A prompt and its responses."""


def check_responses(responses: Any, where: str = "") -> None:
    """Whether ``responses`` is a list with at least one response.

    ``where`` names the row before ``responses`` in the message. What a prompt or a response must be
    is said by :func:`plaudit.data.formats.values.as_messages`.

    Raises:
        DataError: something else, named by its type.
    """
    is_list = hasattr(responses, "__getitem__") and hasattr(responses, "__len__")
    if not is_list or isinstance(responses, (str, bytes, Mapping)):
        raise DataError(
            f"{where}responses is {_shown(responses)}; give a list with at least one response."
        )
    if not len(responses):
        raise DataError(f"{where}responses is empty; give a list with at least one response.")


def check_rows(rows: Any) -> list[Row]:
    """The rows, each a pair of a prompt and its responses (:func:`check_responses`).

    Raises:
        DataError: something else, named by its position and its type.
    """
    if not isinstance(rows, Iterable) or isinstance(rows, (str, bytes, Mapping)):
        raise DataError(f"rows is {_shown(rows)}; give a list of pairs (prompt, responses).")
    checked: list[Row] = []
    for number, row in enumerate(rows):
        if not isinstance(row, (tuple, list)) or len(row) != 2:
            raise DataError(f"rows[{number}] is {_shown(row)}; give a pair (prompt, responses).")
        prompt, responses = row
        check_responses(responses, f"rows[{number}]: ")
        checked.append((prompt, responses))
    return checked


def _shown(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, str):
        return "one text"
    return f"of type {type(value).__name__}"
