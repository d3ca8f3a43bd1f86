"""The text of an answer that operators alter, and the answer with another text in its place."""

from __future__ import annotations

from dataclasses import replace

from plaudit.types import Comparison, Message, Turns


def best_response(comparison: Comparison) -> Turns:
    """The response of the highest grade: the first of equals, or where nothing is known."""
    grades = comparison.grades or (0.0,) * len(comparison.responses)
    return comparison.responses[grades.index(max(grades))]


def last_text(turns: Turns) -> str | None:
    """The text of a response, or of its last message; None where that holds something else."""
    if isinstance(turns, str):
        return turns
    content = turns[-1].content if turns else None
    return content if isinstance(content, str) else None


def prompt_text(prompt: Turns) -> str:
    """What was asked: the text, or the last message of the user."""
    if isinstance(prompt, str):
        return prompt.strip()
    asked = [m.content for m in prompt if m.role == "user" and isinstance(m.content, str)]
    return asked[-1] if asked else ""


def with_text(turns: Turns, text: str) -> Turns:
    """The response with another text, in its last message if it has messages."""
    if isinstance(turns, str):
        # Plain responses often begin with the space that parts them from the prompt.
        space = turns[: len(turns) - len(turns.lstrip())]
        return text if not text or text[0].isspace() else space + text
    last: Message = replace(turns[-1], content=text)
    return (*turns[:-1], last)
