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
    """The language of an answer; of one too short to tell, that of the prompt and the answer."""
    return identify_language(text) or identify_language(f"{prompt}\n{text}")


@cache
def _identifier() -> Any:
    # Imported where it is used: the model takes a third of a second to load.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=SURE)
