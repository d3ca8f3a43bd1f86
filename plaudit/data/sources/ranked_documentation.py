"""Documentation with answers of known quality: many responses a prompt, each with its damages.

For best-of-N: the grade of a response is minus the number of mutations that were applied to the
right answer one after the other, so its true standing is known without any judge.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

from plaudit.data.perturb.table import OPERATORS
from plaudit.data.perturb.text import Context
from plaudit.data.sources.documentation_pairs import MIX, SOURCE, material, question_of
from plaudit.errors import DataError

RESPONSES: Final = 16
MOST_DAMAGES: Final = 5
_TRIES: Final = 40

# Another thing's text is wholly wrong however much of it is damaged after that.
_LADDER: Final = tuple(name for name in MIX if name != "other_text")


def build_ranked(count: int, seed: int) -> list[dict[str, Any]]:
    """Ranked rows of held-out passages: the right answer once, and 15 with one to five damages.

    Columns: ``id``, ``prompt`` (messages), ``responses``, ``grades``, ``source``, ``name``. A
    smaller set is the beginning of a larger one of the same seed.

    Raises:
        DataError: ``count`` is below 1, or more than the held-out passages give.
    """
    passages, context, _ = material("heldout")
    order = list(range(len(passages)))
    Random(f"{seed}/ranked").shuffle(order)
    rows: list[dict[str, Any]] = []
    for at in order:
        if len(rows) == count:
            break
        generator = Random(f"{seed}/ranked/{at}")
        answers = damaged(passages[at].text, generator, context)
        if answers is None:
            continue
        generator.shuffle(answers)
        rows.append(
            {
                "id": f"ranked-{seed}-{len(rows):05d}",
                "prompt": [{"role": "user", "content": question_of(passages[at], seed)}],
                "responses": [text for text, _ in answers],
                "grades": [-damages for _, damages in answers],
                "source": SOURCE,
                "name": passages[at].name,
            }
        )
    if not 1 <= count <= len(rows):
        raise DataError(
            f"{count} ranked prompts were asked for; the held-out documentation gives 1 to "
            f"{len(rows)}."
        )
    return rows


def damaged(text: str, generator: Random, context: Context) -> list[tuple[str, int]] | None:
    """:data:`RESPONSES` different texts with their numbers of damages; None if it has no hold."""
    found: dict[str, int] = {text: 0}
    for number in range(RESPONSES - 1):
        wanted = 1 + number % MOST_DAMAGES
        for _ in range(_TRIES):
            worse = _apply(text, wanted, generator, context)
            if worse is not None and worse not in found:
                found[worse] = wanted
                break
        else:
            return None
    return list(found.items())


def _apply(text: str, wanted: int, generator: Random, context: Context) -> str | None:
    """The text after ``wanted`` different mutations, None where that many did not take hold."""
    done = 0
    for name in generator.sample(_LADDER, len(_LADDER)):
        worse = OPERATORS[name].apply(text, generator, context)
        if worse is not None:
            text, done = worse, done + 1
        if done == wanted:
            return text
    return None
