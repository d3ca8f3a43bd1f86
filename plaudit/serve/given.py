"""What callers of a reward model give it, wherever that runs. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.errors import DataError
from plaudit.types import Text


def refuse_no_list(responses: Sequence[Text]) -> None:
    """A text in place of a list would be scored letter by letter.

    Raises:
        DataError: one text, or an empty list.
    """
    if isinstance(responses, str) or not responses:
        raise DataError(
            f"score() got {'one text' if isinstance(responses, str) else 'no responses'}; give "
            "a list with at least one response."
        )
