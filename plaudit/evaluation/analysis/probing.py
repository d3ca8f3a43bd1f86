"""Build perturbation tests and score them: which reward belongs to which perturbed response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

from plaudit.data.perturb.run import (
    KINDS_AND_NAMES,
    UNPERTURBED,
    PerturbationTest,
    build_perturbation_tests,
)
from plaudit.data.perturb.text import UNKNOWN
from plaudit.evaluation.analysis.perturbations import Budget, Perturbed, Probed
from plaudit.tokens.encode import OVER_LENGTH
from plaudit.types import Comparison, FloatArray, Skipped, TokenTree

Encode: TypeAlias = Callable[[Sequence[Comparison]], Sequence[TokenTree | Skipped]]
Score: TypeAlias = Callable[[Sequence[TokenTree]], Sequence[FloatArray]]


def probe(
    comparisons: Iterable[Comparison],
    encode: Encode,
    score: Score,
    *,
    most: int,
    seed: int,
    packed: bool,
    budget: Budget | None = None,
) -> Probed:
    """Rewards of at most ``most`` good responses and of their perturbations.

    All perturbations of a response branch off its prompt in one tree: the prompt is computed once
    where batches are ``packed``. One that cannot be encoded (it is over the model's maximum length)
    is left out and counted. Responses are taken in the order drawn, until one would go over the
    ``budget``. On several ranks every rank builds the same tests.
    """
    built = build_perturbation_tests(comparisons, most=most, seed=seed)
    skipped, not_for_language = Counter(built.skipped), Counter[str]()
    kept: list[PerturbationTest] = []
    trees: list[TokenTree] = []
    tokens = over_budget = 0
    for number, drawn in enumerate(built.tests):
        one, outcome, too_long = _encoded(drawn, encode)
        if isinstance(outcome, TokenTree):
            cost = outcome.tokens if packed else sum(outcome.lengths)
            if budget is not None and tokens + cost > budget.share * budget.run_tokens:
                over_budget = len(built.tests) - number
                break
            kept.append(one)
            trees.append(replace(outcome, index=len(trees)))
            tokens += cost
        skipped.update(f"{name} {OVER_LENGTH}" for name in too_long)
        skipped.update(f"{name} does not apply" for name in one.not_applied)
        not_for_language.update(one.not_for_language)
    perturbed = [
        Perturbed(
            kind=kind,
            name=name,
            original=float(rewards_K[0]),
            other=float(rewards_K[1]),
            perturbed=float(reward),
        )
        for one, rewards_K in zip(kept, score(trees), strict=True)
        for (kind, name), reward in zip(one.perturbations, rewards_K[UNPERTURBED:], strict=True)
    ]
    place: dict[tuple[str, str], int] = {key: at for at, key in enumerate(KINDS_AND_NAMES)}
    perturbed.sort(key=lambda one: place[one.kind, one.name])
    return Probed(
        perturbed=perturbed,
        responses=len(kept),
        skipped=dict(skipped),
        seed=seed,
        languages=Counter(one.language or UNKNOWN for one in kept),
        not_for_language=not_for_language,
        conversations=sum(len(tree.branches) for tree in trees),
        tokens=tokens,
        over_budget=over_budget,
        budget=budget,
    )


def _encoded(
    one: PerturbationTest, encode: Encode
) -> tuple[PerturbationTest, TokenTree | Skipped, list[str]]:
    """The test with the perturbations that encode, its tree, and the names of the others."""
    (outcome,) = encode([one.comparison])
    if isinstance(outcome, TokenTree):
        return one, outcome, []
    left = one.without(lambda comparison: isinstance(encode([comparison])[0], Skipped))
    gone = [name for kind, name in one.perturbations if (kind, name) not in left.perturbations]
    return left, encode([left.comparison])[0], gone
