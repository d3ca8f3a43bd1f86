"""LLaMA-Factory's templates: slots of text that are filled turn by turn and encoded one by one.

Belongs to no stage: reading a model compares what templates write, encoding turns it into ids.

The strings of a template, as ``plaudit.json`` keeps them: ``prefix``, ``system``, ``user``,
``assistant`` and ``separator`` are lists of slots; ``default_system`` stands where a conversation
has no system text; ``system_in_user`` joins that text to the first question; ``end`` adds the end
token to the last answer; ``thought`` is what opens and what closes a thought, and the empty one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

CONTENT = "{{content}}"
BOS = "{{bos}}"
EOS = "{{eos}}"


def fill(strings: Mapping[str, Any], system: str, turns: Sequence[str]) -> tuple[str, ...]:
    """The pieces of a conversation of alternating turns, the user's first.

    :data:`BOS` and :data:`EOS` stand for the tokens. Byte-pair merges never reach across pieces.
    """
    system = system or strings["default_system"]
    pieces: list[str] = []
    for number, (content, thought) in enumerate(_with_thoughts(strings["thought"], turns)):
        asks = number % 2 == 0
        if number == 0:
            pieces += strings["prefix"]
            if system and strings["system_in_user"]:
                content = strings["system"][0].replace(CONTENT, system, 1) + content
            elif system:
                pieces += _filled(strings["system"], system)
        elif asks:
            pieces += strings["separator"]
        pieces.append(thought)
        pieces += _filled(strings["user" if asks else "assistant"], content)
    if strings["end"] and len(turns) % 2 == 0:
        pieces.append(EOS)
    return tuple(piece for piece in pieces if piece)


def _filled(slots: Sequence[str], content: str) -> list[str]:
    return [slot.replace(CONTENT, content, 1) for slot in slots]


def _with_thoughts(thought: Sequence[str] | None, turns: Sequence[str]) -> list[tuple[str, str]]:
    """Contents of the turns, each with what is put before it.

    In a template with thoughts, earlier answers lose theirs and a last answer without one gets the
    empty one.
    """
    if thought is None or len(turns) % 2:
        return [(content, "") for content in turns]
    opens, closes, empty = thought
    between = re.compile(f"{re.escape(opens)}(.*?){re.escape(closes)}", re.DOTALL)
    *earlier, answer = turns
    shown = [
        between.sub("", content).lstrip("\n") if number % 2 else content
        for number, content in enumerate(earlier)
    ]
    thinks = opens.strip() in answer or closes.strip() in answer
    return [*((content, "") for content in shown), (answer, "" if thinks else empty)]
