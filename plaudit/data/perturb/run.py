"""Pairs out of any comparisons: a good response against the same one altered in a known way.

Damage and tricks make hard negatives; rewrites of equal meaning make ties, for tests of invariance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from plaudit.data.language import UNKNOWN, language_of_answer
from plaudit.data.perturb.answers import best_response, last_text, prompt_text, with_text
from plaudit.data.perturb.table import Operator
from plaudit.data.perturb.text import Context, contexts_by_language
from plaudit.types import Comparison, Turns

NO_TEXT = "no text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutated:
    """Pairs made, how often an operator made none, by reason, and the languages of the texts.

    Each comparison has the operator's name as ``subset``, its kind and its severity in its
    metadata. The altered response stands second and has grade 0, or 1 like the first where the
    operator preserves the meaning.
    """

    comparisons: tuple[Comparison, ...]
    refused: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)


def mutate(
    comparisons: Sequence[Comparison],
    operators: Sequence[Operator],
    seed: int,
    *,
    per_row: int | None = None,
) -> Mutated:
    """For each comparison and operator a pair: its best response and that one altered.

    The best response is the one of the highest grade (the first of equals, or where nothing is
    known). Of messages, the last one's text is altered. With ``per_row``, operators are tried in an
    order drawn for each comparison until that many have made a pair. A pair depends on the seed,
    the comparison and the operator alone, except where it borrows from the other comparisons of its
    language. An operator is skipped where the text is in a language that it does not know.
    """
    best = [best_response(comparison) for comparison in comparisons]
    own: dict[str, set[str]] = {}
    answers: list[tuple[str, str | None]] = []
    for comparison, turns in zip(comparisons, best, strict=True):
        text = last_text(turns) or ""
        own.setdefault(comparison.group, set()).add(text)
        # The same short answer is in the language of its own prompt each time.
        language = language_of_answer(text, prompt_text(comparison.prompt)) if text else None
        answers.append((text, language))
    contexts = contexts_by_language([answer for answer in answers if answer[0]])
    refused: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    made: list[Comparison] = []
    for comparison, turns, (_, language) in zip(comparisons, best, answers, strict=True):
        counted[language or UNKNOWN] += 1
        around = replace(
            contexts[language],
            own=frozenset(own[comparison.group]),
            prompt=prompt_text(comparison.prompt),
        )
        order = list(operators)
        if per_row is not None:
            Random(f"{seed}/{comparison.source}/{comparison.id}").shuffle(order)
        pairs = list(_pairs(comparison, turns, order, around, seed, refused, per_row))
        made += sorted(pairs, key=lambda pair: _place(pair, operators))
    return Mutated(comparisons=tuple(made), refused=refused, languages=counted)


def _pairs(
    comparison: Comparison,
    best: Turns,
    operators: Sequence[Operator],
    context: Context,
    seed: int,
    refused: Counter[str],
    most: int | None,
) -> Iterator[Comparison]:
    text = last_text(best)
    made = 0
    for operator in operators:
        if made == most:
            return
        if not text or not text.strip():
            refused[NO_TEXT] += 1
            continue
        if not operator.suits(context.language):
            refused[f"{operator.name} skipped: language"] += 1
            continue
        generator = Random(f"{seed}/{operator.name}/{comparison.source}/{comparison.id}")
        altered = operator.apply(text, generator, context)
        if altered is None:
            refused[f"{operator.name} does not apply"] += 1
            continue
        made += 1
        yield _pair(comparison, best, with_text(best, altered), operator)


def _pair(comparison: Comparison, best: Turns, altered: Turns, operator: Operator) -> Comparison:
    return replace(
        comparison,
        id=f"{comparison.id}-{operator.name}",
        responses=(best, altered),
        grades=(1.0, 1.0 if operator.kind == "preserving" else 0.0),
        margin=None,
        metadata={
            **{name: v for name, v in comparison.metadata.items() if name not in _OF_THE_REJECTED},
            "subset": operator.name,
            "kind": operator.kind,
            "severity": operator.severity,
        },
    )


_OF_THE_REJECTED: Final = frozenset(
    {"strength", "score_chosen", "score_rejected", "rejected_model"}
)
"""Metadata of the response that the altered one stands in for: untrue of the new pair."""


def _place(pair: Comparison, operators: Sequence[Operator]) -> int:
    return [operator.name for operator in operators].index(str(pair.metadata["subset"]))
