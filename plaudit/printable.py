"""Text of the data in messages: no control characters, bounded length.

Every stage quotes names and values of the data, and a terminal would obey escape sequences in them.
"""

from __future__ import annotations


def printable(text: str, most: int | None = None) -> str:
    """The text with unprintable characters escaped, cut to at most ``most`` characters.

    A cut text ends in an ellipsis. Line breaks and tabs are unprintable too.
    """
    # Escaping never shortens, so what is behind these characters is cut in any case.
    start = text if most is None else text[: most + 1]
    if not start.isprintable():
        start = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in start
        )
    return start if most is None or len(start) <= most else f"{start[: most - 1]}…"
