"""Held-out good responses altered in known ways, to see how a model's reward answers.

Damage should make the reward fall, rewrites of equal meaning should leave it, and cheap tricks
should not raise it (``plaudit/data/perturb/table.py``).
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from plaudit.data.language import language_of_answer
from plaudit.data.perturb.answers import best_response, last_text, prompt_text, with_text
from plaudit.data.perturb.table import OPERATORS, Kind
from plaudit.data.perturb.text import Context, contexts_by_language
from plaudit.types import Comparison, Turns

MOST: Final = 200
"""Responses that are probed unless another number is asked for."""

# Responses 0 and 1 of a probe are the best and the worst of the comparison; alterations follow.
UNALTERED: Final = 2


ALTERATIONS: Final[tuple[tuple[Kind, str], ...]] = tuple(
    (operator.kind, operator.name) for operator in OPERATORS.values()
)
"""Kind and name of every alteration, in the order in which they are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A comparison of the best response, the worst, and alterations of the best.

    ``alterations`` names the kind and the operator of the responses from :data:`UNALTERED` on.
    ``language`` is that of the best response, None where it is not known. ``not_applied`` names the
    operators that found nothing to alter, ``not_for_language`` those for other languages.
    """

    comparison: Comparison
    alterations: tuple[tuple[Kind, str], ...]
    language: str | None = None
    not_applied: tuple[str, ...] = ()
    not_for_language: tuple[str, ...] = ()

    def without(self, refused: Callable[[Comparison], bool]) -> Probe:
        """Only those alterations that, alone beside the best and the worst, are not refused."""
        kept = [at for at in range(len(self.alterations)) if not refused(self._only([at]))]
        return replace(
            self,
            comparison=self._only(kept),
            alterations=tuple(self.alterations[at] for at in kept),
        )

    def _only(self, kept: Iterable[int]) -> Comparison:
        responses = self.comparison.responses
        chosen = (*responses[:UNALTERED], *(responses[UNALTERED + at] for at in kept))
        return replace(self.comparison, responses=chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """A probe per sampled comparison, and how many comparisons had none, by reason."""

    probes: tuple[Probe, ...]
    refused: Counter[str] = field(default_factory=Counter)


def build_probes(comparisons: Iterable[Comparison], *, most: int = MOST, seed: int = 0) -> Probes:
    """Probes of at most ``most`` comparisons, one per prompt group, drawn by ``seed``.

    The comparisons are walked once. Which ones are drawn depends on the seed and their groups, not
    on their order. A comparison whose best response has no text is counted under ``refused``. What
    operators borrow from other answers is in the language of the answer.
    """
    drawn: list[tuple[Comparison, str, str | None]] = []
    refused: Counter[str] = Counter()
    for comparison in _sample(comparisons, most, seed):
        text = last_text(best_response(comparison))
        if text and text.strip():
            language = language_of_answer(text, prompt_text(comparison.prompt))
            drawn.append((comparison, text, language))
        else:
            refused["no text"] += 1
    contexts = contexts_by_language([(text, language) for _, text, language in drawn])
    probes = tuple(
        _probe(comparison, text, contexts[language], seed) for comparison, text, language in drawn
    )
    return Probes(probes=probes, refused=refused)


def _probe(comparison: Comparison, text: str, context: Context, seed: int) -> Probe:
    """All operators that suit the language of ``context``, applied to the best response."""
    best = best_response(comparison)
    around = replace(context, own=frozenset({text}), prompt=prompt_text(comparison.prompt))
    suited = [operator for operator in OPERATORS.values() if operator.suits(context.language)]
    altered = {
        operator: operator.apply(
            text, Random(f"{seed}/{operator.name}/{comparison.source}/{comparison.id}"), around
        )
        for operator in suited
    }
    kept = {operator: new for operator, new in altered.items() if new is not None}
    return Probe(
        comparison=replace(
            comparison,
            responses=(
                best,
                _worst(comparison),
                *(with_text(best, new) for new in kept.values()),
            ),
            grades=(),
            margin=None,
        ),
        alterations=tuple((operator.kind, operator.name) for operator in kept),
        language=context.language,
        not_applied=tuple(operator.name for operator in altered if operator not in kept),
        not_for_language=tuple(n for n, op in OPERATORS.items() if op not in altered),
    )


def _sample(comparisons: Iterable[Comparison], most: int, seed: int) -> list[Comparison]:
    """The first comparison of each of ``most`` groups, in order of the groups' digests."""

    def digest(group: str) -> bytes:
        return hashlib.blake2b(f"{seed}/{group}".encode("utf-8", "replace")).digest()[:16]

    # A heap of the lowest digests so far, so that a large set need not be held.
    kept: dict[bytes, Comparison] = {}
    heap: list[tuple[int, bytes]] = []
    for comparison in comparisons:
        key = digest(comparison.group)
        if key in kept:
            continue
        rank = -int.from_bytes(key, "big")
        if len(heap) < most:
            heapq.heappush(heap, (rank, key))
        elif most and rank > heap[0][0]:
            _, gone = heapq.heapreplace(heap, (rank, key))
            del kept[gone]
        else:
            continue
        kept[key] = comparison
    return [kept[key] for key in sorted(kept)]


def _worst(comparison: Comparison) -> Turns:
    return comparison.responses[comparison.grades.index(min(comparison.grades))]
