"""Letters that matplotlib's own font lacks: from another installed font, else as code points.

None is bundled: one for Chinese, Japanese and Korean alone weighs more than all of plaudit. Pages
need none, as their texts stay texts that the browser draws with its own fonts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_NO_LETTERS = re.compile(
    r"Last ?Resort|Emoji|Symbols?\b|STIX(Non|Size)|^cm[a-z]{1,2}\d", re.IGNORECASE
)
"""Families that draw boxes, bitmaps or formulas."""


def drawable(text: str) -> str:
    """``text`` with the code point of every letter that no installed font has: ``U+0E44``."""
    lacking = _fallbacks(_absent(text))[1]
    return "".join(f" U+{ord(letter):04X} " if letter in lacking else letter for letter in text)


def families_for(texts: Iterable[str]) -> list[str]:
    """Font families that have the letters of these texts between them, matplotlib's own first."""
    return [*_default(), *_fallbacks(_absent("".join(texts)))[0]]


def _default() -> list[str]:
    import matplotlib

    return list(matplotlib.rcParams["font.family"])


def _absent(text: str) -> frozenset[str]:
    """The letters of ``text`` that matplotlib's own font lacks."""
    from matplotlib.font_manager import FontProperties, findfont

    has = _letters(findfont(FontProperties()))
    return frozenset(letter for letter in text if letter.isprintable() and ord(letter) not in has)


@lru_cache(maxsize=64)
def _fallbacks(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Installed families that have ``letters``, the fewest that do, and the letters none has."""
    if not letters:
        return (), letters
    from matplotlib.font_manager import fontManager

    regular = {
        entry.name: entry.fname
        for entry in fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
    }
    # Of fonts that have the same letters a sans serif one, as the rest of the figure.
    names = sorted(
        (name for name in regular if not _NO_LETTERS.search(name)),
        key=lambda name: ("Sans" not in name, "Mono" in name, name),
    )
    wanted = {ord(letter) for letter in letters}
    had = {name: wanted & _letters(regular[name]) for name in names}
    chosen: list[str] = []
    while had and (best := max(had, key=lambda name: len(had[name] & wanted))):
        if not had[best] & wanted:
            break
        wanted -= had.pop(best)
        chosen.append(best)
    return tuple(chosen), frozenset(map(chr, wanted))


@lru_cache(maxsize=512)
def _letters(path: str) -> frozenset[int]:
    """Code points that a font file has outlines for."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        # A damaged or unusual font of the machine is none of the figure's business.
        return frozenset()
