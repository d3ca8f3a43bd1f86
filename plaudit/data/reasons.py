"""Why a comparison cannot train: the reasons in one place, and the function that names one.

Parsing never drops a row; only training does, and only under one of these names. Scoring reads
the same comparisons and asks for none of them but ``media``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from plaudit.errors import DataError, did_you_mean
from plaudit.recipe.objectives import OBJECTIVES, PREFERENCE, LearnsFrom
from plaudit.types import MEDIA, Comparison, Turns

EMPTY_RESPONSE: Final = "empty_response"
PROMPT_MISMATCH: Final = "prompt_mismatch"
IDENTICAL_RESPONSES: Final = "identical_responses"
SINGLE_RESPONSE: Final = "single_response"
UNLABELLED: Final = "unlabelled"
TIE: Final = "tie"
BROKEN_TURNS: Final = "broken_turns"
NOT_SAMPLED: Final = "not_sampled"
"""Usable, but left out because its source has a weight below 1, fewer rows or a share."""

EXPLANATIONS: Final[dict[str, str]] = {
    EMPTY_RESPONSE: "a response is empty or only white space",
    PROMPT_MISMATCH: "the responses answer different prompts",
    IDENTICAL_RESPONSES: "all responses are identical",
    SINGLE_RESPONSE: "there is only one response, so there is nothing to compare",
    UNLABELLED: "no label says which response is better, or how good one is",
    TIE: "all responses have the same grade",
    BROKEN_TURNS: "the turns do not alternate, or the last prompt turn is not the user's",
    MEDIA: "it has images, audio or video, and plaudit reads only text",
    NOT_SAMPLED: "left out by the source's weight, max_rows, num_samples or probability",
}


def why_untrainable(
    comparison: Comparison, learns_from: LearnsFrom = "order", outputs: tuple[str, ...] = ()
) -> str | None:
    """The first reason why an objective cannot learn from ``comparison``; ``None`` when it can.

    A model with ``outputs`` learns from the attributes that they name (:data:`PREFERENCE` is the
    grades), and one of them is enough. Without outputs, it learns from the grades.
    """
    responses = comparison.responses
    if comparison.unusable is not None:
        return comparison.unusable
    if any(is_blank(response) for response in responses):
        return EMPTY_RESPONSE
    # A response that starts with a user or system turn brings a prompt of its own.
    turns = [response for response in responses if not isinstance(response, str)]
    if any(response[0].role in ("user", "system") for response in turns):
        return PROMPT_MISMATCH
    if len(responses) > 1 and all(response == responses[0] for response in responses):
        return IDENTICAL_RESPONSES
    reasons = [_why_unlearned(comparison, learns_from, name) for name in outputs or (PREFERENCE,)]
    # A tie says most: other labels are missing, but these are there.
    return None if None in reasons else TIE if TIE in reasons else reasons[0]


def _why_unlearned(comparison: Comparison, learns_from: LearnsFrom, output: str) -> str | None:
    """Why the labels of one output do not suffice."""
    if output in comparison.attributes:
        known = [number for number in comparison.attributes[output] if number is not None]
        rated = True
    else:
        known = list(comparison.grades) if output == PREFERENCE else []
        rated = comparison.rated
    by_itself = rated and learns_from == "ratings"
    if len(comparison.responses) == 1 and not by_itself:
        return SINGLE_RESPONSE
    if not known or (len(known) == 1 and not by_itself):
        return UNLABELLED
    if by_itself or learns_from == "order_and_ties":
        return None
    return TIE if all(number == known[0] for number in known) else None


def usable_by(comparison: Comparison) -> tuple[str, ...]:
    """The objectives that can learn from a comparison, in the order of their table.

    A pointwise one learns from an order alone beside ratings.
    """
    return tuple(
        kind
        for kind, row in OBJECTIVES.items()
        if why_untrainable(comparison, row.learns_from) is None
        and not (kind == "bce" and comparison.rated and not is_label(comparison.grades))
    )


def is_label(grades: Iterable[float]) -> bool:
    """Whether ratings are labels for ``bce``: 0 is bad and 1 is good."""
    return all(0.0 <= grade <= 1.0 for grade in grades)


def learned_labels(kind: str) -> LearnsFrom:
    """The labels that the objective ``kind`` learns from.

    Raises:
        DataError: there is no such objective.
    """
    if kind not in OBJECTIVES:
        hint = did_you_mean(kind, OBJECTIVES, f"expected one of {', '.join(OBJECTIVES)}.")
        raise DataError(f"--loss {kind}: unknown objective; {hint}")
    return OBJECTIVES[kind].learns_from


def is_blank(turns: Turns) -> bool:
    """Whether nothing is said: no text, or no message with content or tool calls."""
    if isinstance(turns, str):
        return not turns.strip()
    return not any(
        (turn.content.strip() if isinstance(turn.content, str) else turn.content)
        or turn.extra.get("tool_calls")
        for turn in turns
    )
