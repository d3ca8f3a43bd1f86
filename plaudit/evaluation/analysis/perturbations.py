"""Perturbation tests: how rewards move when a good response is perturbed in known ways."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from plaudit.data.perturb.run import (
    KINDS_AND_NAMES,
    PerturbationTest,
    build_perturbation_tests,
)
from plaudit.data.perturb.text import UNKNOWN
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.numbers import counted
from plaudit.evaluation.schema import Perturbation, PerturbationKind, PerturbationTests, parts
from plaudit.types import Comparison, FloatArray, Outputs, Skipped, TokenTree

KINDS = {
    "degradation": "lower quality: the reward should fall",
    "meaning_preserving": "same meaning: the reward should stay",
    "reward_hacking": "no better, but more pleasing: the reward should not rise",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbed:
    """One perturbed response, scored.

    ``original`` is the reward of the comparison's best response, ``other`` that of its worst (None
    where none is known to be worse), and ``perturbed`` that of the best one with the perturbation
    ``name`` of a ``kind``. For an ensemble, ``spread_change`` is how much larger the standard
    deviation over heads is than that of ``original``.
    """

    kind: str
    name: str
    original: float
    other: float | None
    perturbed: float
    spread_change: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """At most this ``share`` of the tokens that training computed, which are ``run_tokens``."""

    share: float
    run_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """All perturbed responses, scored: how many responses they are of, and what was skipped.

    ``languages`` counts responses by language, ``not_for_language`` by perturbation those that it
    was skipped for. ``conversations`` were scored, which are ``tokens`` for the model to compute;
    ``over_budget`` responses were left out because they would have cost more than the ``budget``.
    """

    perturbed: Sequence[Perturbed]
    responses: int
    skipped: Mapping[str, int]
    seed: int
    languages: Mapping[str, int] = field(default_factory=dict)
    not_for_language: Mapping[str, int] = field(default_factory=dict)
    conversations: int = 0
    tokens: int = 0
    over_budget: int = 0
    budget: Budget | None = None


def summarise_tests(probed: Probed, *, reward_std: float) -> PerturbationTests:
    """One row per perturbation, in the order in which they first stand.

    Rewards move in units of ``reward_std``, the standard deviation of the evaluated rewards. Each
    response comes from another prompt, so rows of a perturbation are independent.
    """
    names = dict.fromkeys((one.kind, one.name) for one in probed.perturbed)
    return PerturbationTests(
        **parts(probed, of=PerturbationTests),
        budget_share=None if probed.budget is None else probed.budget.share,
        run_tokens=None if probed.budget is None else probed.budget.run_tokens,
        reward_std=reward_std,
        rows=tuple(
            perturbation_row(
                kind,
                name,
                [one for one in probed.perturbed if (one.kind, one.name) == (kind, name)],
                reward_std=reward_std,
            )
            for kind, name in names
        ),
        kinds={kind: _kind_summary(kind, probed, reward_std) for kind in KINDS},
    )


def perturbation_notes(probed: Probed) -> Iterator[str]:
    """What perturbation tests cost and what they left out, in sentences."""
    budget = probed.budget
    limit = "" if budget is None else f"{100 * budget.share:g}% of the training tokens"
    if not probed.responses and probed.over_budget:
        yield (
            "Perturbation tests were not run: a single response with its perturbations needs"
            f" more than {limit} (evaluate.perturbation_share)."
        )
        return
    cost = f"{probed.conversations:,} conversations of {probed.tokens:,} tokens"
    if budget is not None and budget.run_tokens:
        cost += f", {probed.tokens / budget.run_tokens:.1%} of the training tokens"
    yield (
        f"Perturbation tests scored {counted(probed.responses, 'good response')} and"
        f" {counted(len(probed.perturbed), 'perturbation')} of them: {cost}."
    )
    if probed.perturbed and all(one.other is None for one in probed.perturbed):
        yield "Responses without a worse one beside them have no ranking to flip."
    if probed.over_budget:
        yield (
            f"{counted(probed.over_budget, 'further response')} would have exceeded {limit}"
            " (evaluate.perturbation_share)."
        )
    if probed.not_for_language:
        languages = sorted(probed.languages.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{name} {count:,}" for name, count in languages)
        yield (
            f"{counted(len(probed.not_for_language), 'perturbation')} for English were skipped on"
            f" responses in other languages (responses by language: {listed})."
        )


def perturbation_row(
    kind: str, name: str, perturbed: Sequence[Perturbed], *, reward_std: float
) -> Perturbation:
    """Rates and shifts of one perturbation, each with its 95% interval.

    ``fell`` is the share of responses whose reward fell, ``rose`` of those whose reward rose, by
    Wilson; ``shift`` the mean movement (Student's interval) and ``shift_size`` its mean size;
    ``flipped`` the share of comparisons with a known order whose order of best and worst was
    flipped; ``spread_rose`` the share of responses of which the heads disagree more.
    """
    # None is NaN.
    original, other, new = (
        np.array([getattr(one, field) for one in perturbed], dtype=np.float64)
        for field in ("original", "other", "perturbed")
    )
    changes = [one.spread_change for one in perturbed if one.spread_change is not None]
    wider = sum(change > 0 for change in changes)
    count = len(perturbed)
    fell, rose = int((new < original).sum()), int((new > original).sum())
    ordered = ~np.isnan(other)
    turned = np.sign(original - other) != np.sign(new - other)
    flipped, rankings = int((turned & ordered).sum()), int(ordered.sum())
    shift = (new - original) / reward_std if reward_std > 0 else np.full(count, math.nan)
    moved = pairwise.paired_difference(np.zeros(count), shift, np.arange(count))
    return Perturbation(
        kind=kind,
        perturbation=name,
        responses=count,
        fell=fell / count if count else None,
        fell_ci95=pairwise.wilson(fell, count),
        rose=rose / count if count else None,
        rose_ci95=pairwise.wilson(rose, count),
        unchanged=count - fell - rose,
        shift=moved.mean,
        shift_ci95=moved.interval,
        shift_size=pairwise.mean(np.abs(shift)),
        flipped=flipped / rankings if rankings else None,
        flipped_ci95=pairwise.wilson(flipped, rankings),
        spread_rose=wider / len(changes) if changes else None,
        spread_rose_ci95=pairwise.wilson(wider, len(changes)),
    )


def _kind_summary(kind: str, probed: Probed, reward_std: float) -> PerturbationKind:
    """All perturbations of a kind together, each perturbed response with equal weight.

    No interval: perturbations of one response are not independent.
    """
    chosen = [one for one in probed.perturbed if one.kind == kind]
    row = perturbation_row(kind, "all", chosen, reward_std=reward_std)
    return PerturbationKind(
        meaning=KINDS[kind],
        perturbations=len(chosen),
        **parts(row, of=PerturbationKind),
    )


# ---- build perturbation tests and score them ----------------------------------------------------

Encode: TypeAlias = Callable[[Sequence[Comparison]], Sequence[TokenTree | Skipped]]


class Scores(NamedTuple):
    """Of the K responses of a tree: their rewards, and the spreads over heads of an ensemble."""

    rewards_K: FloatArray
    spreads_K: FloatArray | None = None

    @classmethod
    def of(cls, outputs_KO: FloatArray, rewards_K: FloatArray, outputs: Outputs | None) -> Scores:
        """Those of the outputs of a head that makes these rewards of them."""
        ensemble = outputs is not None and outputs.ensemble
        return cls(rewards_K, outputs.spreads(outputs_KO) if outputs and ensemble else None)


Score: TypeAlias = Callable[[Sequence[TokenTree]], Sequence[Scores]]


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
    # Encoding imports transformers, which nothing but a test needs.
    from plaudit.tokens.encode import OVER_LENGTH

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
            other=float(rewards_K[1]) if one.ordered else None,
            perturbed=float(rewards_K[place]),
            spread_change=None if spreads_K is None else float(spreads_K[place] - spreads_K[0]),
        )
        for one, (rewards_K, spreads_K) in zip(kept, score(trees), strict=True)
        for place, (kind, name) in enumerate(one.perturbations, start=one.unperturbed)
    ]
    order: dict[tuple[str, str], int] = {key: at for at, key in enumerate(KINDS_AND_NAMES)}
    perturbed.sort(key=lambda one: order[one.kind, one.name])
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
