"""Rewritten copies of responses, for training that keeps their rewards equal.

Each training comparison gets one, of one of its responses, under one meaning-preserving
perturbation of the table; the draw depends on the comparison and the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Final

from plaudit.data.perturb.table import PERTURBATIONS, Perturbation
from plaudit.data.perturb.text import Context, language_of_answer, last_text, prompt_text, with_text
from plaudit.types import Comparison

REWRITES: Final = tuple(one for one in PERTURBATIONS.values() if one.kind == "meaning_preserving")
_NO_CONTEXT: Final = Context(others=(), names={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A comparison with the copy as its last response. ``origin`` is the number of its original."""

    comparison: Comparison
    origin: int
    perturbation: str


def with_copy(comparison: Comparison, seed: int) -> Copied | None:
    """The comparison with a copy of one response; None where no perturbation changes any."""
    generator = Random(f"{seed}/copy/{comparison.source}/{comparison.id}")
    numbers = list(range(len(comparison.responses)))
    generator.shuffle(numbers)
    for origin in numbers:
        text = last_text(comparison.responses[origin])
        made = None if text is None else _rewritten(text, comparison, generator)
        if made is not None:
            new, perturbation = made
            copy = with_text(comparison.responses[origin], new)
            longer = replace(comparison, responses=(*comparison.responses, copy))
            return Copied(comparison=longer, origin=origin, perturbation=perturbation.name)
    return None


def _rewritten(
    text: str, comparison: Comparison, generator: Random
) -> tuple[str, Perturbation] | None:
    """A rewritten copy of a text, by the first of the rewrites in random order that changes it."""
    language = language_of_answer(text, prompt_text(comparison.prompt))
    rewrites = [one for one in REWRITES if one.suits(language)]
    for perturbation in generator.sample(rewrites, len(rewrites)):
        new = perturbation.apply(text, generator, _NO_CONTEXT)
        if new is not None and new.strip() != text.strip():
            return new, perturbation
    return None
