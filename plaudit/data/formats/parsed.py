"""What a reader is, and what it takes out of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plaudit.data.formats.values import Row
from plaudit.types import Message, Turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a reader takes out of a row. ``grades``: higher is better, empty when unknown.

    ``strength`` is how clear a preference between two responses is, in the format's own units, 0
    or more. ``unusable`` is a key of :data:`plaudit.data.reasons.EXPLANATIONS` where the row is
    well formed and no comparison to learn from. ``metadata`` is more to keep beside it.
    """

    prompt: Turns
    responses: tuple[Turns, ...]
    grades: tuple[float, ...]
    strength: float | None = None
    unusable: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One format of rows.

    ``columns`` must be there and ``optional`` may be; neither goes to ``metadata``.
    ``recognises`` looks at the types of the values of a row that has all ``columns``; for any row
    at most one reader should say yes. ``parse`` raises a DataError that names the column; where
    the row stands is added for it.
    """

    name: str
    description: str
    columns: tuple[str, ...]
    recognises: Callable[[Row], bool]
    parse: Callable[[Row], Parsed]
    optional: tuple[str, ...] = ()


def pair(prompt: Turns, chosen: Turns, rejected: Turns) -> Parsed:
    """A prompt with its better and its worse response."""
    return Parsed(prompt=prompt, responses=(chosen, rejected), grades=(1.0, 0.0))


def pair_of_whole(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Parsed:
    """Two whole conversations, better first. The leading messages they share are the prompt.

    At least one message stays in each response, so identical conversations keep their last turn.
    """
    shared = 0
    for ours, theirs in zip(chosen[:-1], rejected[:-1], strict=False):
        if ours != theirs:
            break
        shared += 1
    return pair(chosen[:shared], chosen[shared:], rejected[shared:])


def by_lead(
    prompt: Turns, first: Turns, second: Turns, lead: float, *, strength: float | None = None
) -> Parsed:
    """Two responses in the row's order. A ``lead`` above 0 means the first is better, 0 a tie."""
    return Parsed(
        prompt=prompt,
        responses=(first, second),
        grades=(float(lead > 0), float(lead < 0)),
        strength=strength,
        metadata={} if strength is None else {"strength": strength},
    )
