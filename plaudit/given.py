"""What callers of a reward model give it, wherever that runs. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from plaudit.errors import DataError
from plaudit.types import Text

Row: TypeAlias = tuple[Text, Sequence[Text]]
"""A prompt and its responses."""


def check_request(prompt: Any, responses: Any, where: str = "") -> None:
    """Whether there is a prompt and at least one response, each a text or messages.

    ``where`` names the row before ``prompt`` and ``responses`` in the message.

    Raises:
        DataError: something else, named by its position and its type.
    """
    _check_text(f"{where}prompt", prompt)
    is_list = hasattr(responses, "__getitem__") and hasattr(responses, "__len__")
    if not is_list or isinstance(responses, (str, bytes, Mapping)):
        raise DataError(
            f"{where}responses is {_shown(responses)}; give a list with at least one response."
        )
    if not len(responses):
        raise DataError(f"{where}responses is empty; give a list with at least one response.")
    for number, response in enumerate(responses):
        _check_text(f"{where}responses[{number}]", response)


def check_rows(rows: Any) -> list[Row]:
    """The rows, each a pair of what :func:`check_request` takes.

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
        check_request(prompt, responses, f"rows[{number}]: ")
        checked.append((prompt, responses))
    return checked


def _check_text(where: str, text: Any) -> None:
    if isinstance(text, str):
        return
    if not isinstance(text, Sequence) or isinstance(text, bytes):
        raise DataError(f"{where} is {_shown(text)}; give text or a list of messages.")
    for number, message in enumerate(text):
        if not isinstance(message, Mapping):
            raise DataError(
                f"{where}[{number}] is {_shown(message)}, but a message is a mapping such as "
                "{'role': 'user', 'content': '…'}; give text or a list of messages."
            )


def _shown(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, str):
        return "one text"
    return f"of type {type(value).__name__}"
