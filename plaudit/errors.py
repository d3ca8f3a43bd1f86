"""Errors a user can act on. Each message says what was found, where, what was expected, what to do.

Every :class:`PlauditError` reaches the terminal as one sentence with exit code 2, never as a
traceback. Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlauditError(Exception):
    """Base of all errors that a user can act on.

    Attributes:
        exit_code: Exit code of a command that ends with the error.
    """

    exit_code = 2


class RecipeError(PlauditError):
    """The recipe, or a value set on the command line, cannot be used.

    Attributes:
        problems: Every problem of the recipe, one sentence each. The message has one per line.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(PlauditError):
    """A file, a row or a set of rows cannot be used."""


class ModelError(PlauditError):
    """A base model, a tokenizer or a saved reward model cannot be used."""


class OutputError(PlauditError):
    """A file or folder cannot be written, or exists already."""


class TrainingError(PlauditError):
    """Training cannot continue, for example because the loss is not finite."""


class ServerError(PlauditError):
    """A reward server cannot be reached, stays busy, or rejects the client.

    Attributes:
        status: HTTP status of the response. None without a response.
        request_id: Id of the request in the server's log.
    """

    def __init__(
        self, message: str, *, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id


class RequestRejectedError(ServerError, DataError):
    """A reward server cannot score the request."""


class InterruptedRunError(PlauditError):
    """The user stopped the run. The message says how to resume it."""


def printable(text: str, most: int | None = None) -> str:
    """The text with unprintable characters escaped, cut to at most ``most`` characters.

    Messages quote names and values of the data, and a terminal would obey escape sequences in them.
    A cut text ends in an ellipsis. Line breaks and tabs are unprintable too.
    """
    # Escaping never shortens, so what is behind these characters is cut in any case.
    start = text if most is None else text[: most + 1]
    if not start.isprintable():
        start = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in start
        )
    return start if most is None or len(start) <= most else f"{start[: most - 1]}…"


def one_line(error: BaseException, most: int | None = None) -> str:
    """Another library's message for the middle of a sentence: no line breaks, no full stop."""
    return " ".join(str(error).split())[:most].rstrip(".") or type(error).__name__


def nearest(name: str, known: Iterable[str], *, similarity: float = 0.6) -> str | None:
    """The known name that was most likely meant, if one is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=similarity)
    return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a message about an unknown name: the nearest known one, else ``otherwise``."""
    close = nearest(name, known)
    return f"did you mean {close}?" if close else otherwise
