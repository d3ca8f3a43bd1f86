"""Build probes, score them, and say which reward belongs to which alteration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

from plaudit.data.probes import ALTERATIONS, UNALTERED, Probe, build_probes
from plaudit.evaluate.behaviour import Altered, Probed
from plaudit.tokens.encode import OVER_LENGTH, Refused
from plaudit.types import Comparison, FloatArray, TokenTree

Encode: TypeAlias = Callable[[Sequence[Comparison]], Sequence[TokenTree | Refused]]
Score: TypeAlias = Callable[[Sequence[TokenTree]], Sequence[FloatArray]]


def probe(
    comparisons: Iterable[Comparison], encode: Encode, score: Score, *, most: int, seed: int
) -> Probed:
    """Rewards of at most ``most`` good responses and of their alterations.

    All alterations of a response branch off its prompt in one tree, so the prompt is computed once.
    One that cannot be encoded (it is over the model's maximum length) is left out and counted. On
    several ranks every rank builds the same probes.
    """
    built = build_probes(comparisons, most=most, seed=seed)
    refused = Counter(built.refused)
    kept: list[Probe] = []
    trees: list[TokenTree] = []
    outcomes = encode([one.comparison for one in built.probes])
    for one, outcome in zip(built.probes, outcomes, strict=True):
        if isinstance(outcome, Refused):
            one, outcome = _without_refused(one, encode, refused)
        if isinstance(outcome, TokenTree):
            kept.append(one)
            trees.append(replace(outcome, index=len(trees)))
    altered = [
        Altered(
            kind=kind,
            name=name,
            original=float(rewards_K[0]),
            other=float(rewards_K[1]),
            altered=float(reward),
        )
        for one, rewards_K in zip(kept, score(trees), strict=True)
        for (kind, name), reward in zip(one.alterations, rewards_K[UNALTERED:], strict=True)
    ]
    place: dict[tuple[str, str], int] = {key: at for at, key in enumerate(ALTERATIONS)}
    altered.sort(key=lambda one: place[one.kind, one.name])
    return Probed(altered=altered, responses=len(kept), refused=dict(refused), seed=seed)


def _without_refused(
    one: Probe, encode: Encode, refused: Counter[str]
) -> tuple[Probe, TokenTree | Refused]:
    """The probe with those alterations alone that encode, the others counted."""
    left = one.without(lambda comparison: isinstance(encode([comparison])[0], Refused))
    gone = set(one.alterations) - set(left.alterations)
    refused.update(f"{name} {OVER_LENGTH}" for _, name in gone)
    return left, encode([left.comparison])[0]
