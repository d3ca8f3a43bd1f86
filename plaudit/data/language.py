"""The natural language of a text, by py3langid, whose model comes with the package."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

SURE: Final = 0.5
"""A language must be more likely than all others together: short texts and code often are not."""
CHARACTERS: Final = 2000
"""Of longer texts the beginning tells the language."""
UNKNOWN: Final = "unknown"
"""What counts of languages call the texts whose language is not sure."""
NOT_LATIN: Final = "unknown, not in Latin letters"
"""A language that is not sure and is not English or one of its neighbours."""
_LAST_LATIN: Final = "\u024f"
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def identify_language(text: str) -> str | None:
    """The code (ISO 639) of the language of a text; None where that is not sure.

    Fenced code is left out: its words tell nothing of the text around it.
    """
    words = _CODE.sub(" ", text).strip()
    if not words:
        return None
    name, _ = _identifier().classify(words[:CHARACTERS])
    return None if name in ("und", "zxx") else str(name)


def language_of_answer(text: str, prompt: str) -> str | None:
    """The language of an answer; of one too short to tell, that of the prompt and the answer.

    Where both are too short, None says that it may be a language like English, and ``NOT_LATIN`` by
    their letters that it is not.
    """
    both = f"{prompt}\n{text}"
    known = identify_language(text) or identify_language(both)
    return known or (None if _mostly_latin(both) else NOT_LATIN)


def _mostly_latin(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return 2 * sum(letter <= _LAST_LATIN for letter in letters) >= len(letters)


@cache
def _identifier() -> Any:
    # Imported where it is used: the model takes a third of a second to load.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=SURE)
