"""Conversations as other tools write them, as messages."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from plaudit.data.formats import values
from plaudit.errors import DataError
from plaudit.types import Message

Messages = tuple[Message, ...]

HUMAN: Final = "\n\nHuman:"
ASSISTANT: Final = "\n\nAssistant:"
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


def asked(text: str) -> Messages:
    """One user turn."""
    return (Message(role="user", content=text),)


def answered(text: str) -> Messages:
    """One assistant turn."""
    return (Message(role="assistant", content=text),)


def under_system(system: str | None, turns: Messages) -> Messages:
    """The turns, after a system text if there is one."""
    return (Message(role="system", content=system), *turns) if system else turns


def hh_turns(text: str) -> Messages:
    """The turns of a dialogue. Turns of one role in a row become one: templates refuse them."""
    turns: list[tuple[str, str]] = []
    _, *pieces = _HH_TURN.split(text)
    for speaker, words in zip(pieces[::2], pieces[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{words.strip()}".strip())
        else:
            turns.append((role, words.strip()))
    return tuple(Message(role=role, content=content) for role, content in turns)


def helpsteer_turns(text: str) -> Messages:
    """A HelpSteer2 prompt: its first words are the user's, ``<extra_id_1>`` opens later turns."""
    first, *pieces = _HELPSTEER_TURN.split(text)
    later = zip(pieces[::2], pieces[1::2], strict=True)
    return (
        *asked(first),
        *(
            Message(role="user" if name == "User" else "assistant", content=words)
            for name, words in later
        ),
    )


# --- ShareGPT -----------------------------------------------------------------------------------

SHAREGPT_ROLES: Final = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    "system": "system",
}
"""The ``from`` of a ShareGPT turn to the role of a message."""

ASKING: Final = ("human", "observation")
ANSWERING: Final = ("gpt", "function_call")


def is_sharegpt(value: Any) -> bool:
    """Whether a value looks like one ShareGPT turn."""
    return isinstance(value, dict) and "from" in value and "value" in value


def sharegpt_turn(value: Any, what: str) -> tuple[str, Message]:
    """The ``from`` of a turn and its message.

    A call of a function becomes ``tool_calls`` where it is JSON, as chat templates read it.

    Raises:
        DataError: it is no turn.
    """
    if not is_sharegpt(value):
        found = values.listed(value) if isinstance(value, dict) else values.kind(value)
        raise DataError(f"{what} has no from and value (found: {found}); expected a turn.")
    name, content = value["from"], value["value"]
    if not isinstance(name, str) or not isinstance(content, str):
        raise DataError(f"{what} has a from or value that is no text; expected text in both.")
    calls = _tool_calls(content) if name == "function_call" else None
    if calls is not None:
        return name, Message(role="assistant", content="", extra={"tool_calls": calls})
    return name, Message(role=SHAREGPT_ROLES.get(name, name), content=content)


def alternate(names: list[str]) -> bool:
    """Whether turns ask and answer in turn, the first and the last asking."""
    expected = (ASKING, ANSWERING)
    return len(names) % 2 == 1 and all(
        name in expected[number % 2] for number, name in enumerate(names)
    )


def _tool_calls(content: str) -> list[dict[str, Any]] | None:
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        return None
    calls = given if isinstance(given, list) else [given]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        return None
    return [
        {
            "type": "function",
            "function": {"name": call["name"], "arguments": call.get("arguments", {})},
        }
        for call in calls
    ]
