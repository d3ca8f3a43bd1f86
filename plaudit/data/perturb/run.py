"""Perturbed answers: pairs to train on, and perturbation tests of how a model's reward answers.

A pair is a good response against the same one perturbed in a known way. Degradation and reward
hacking make hard negatives; meaning-preserving rewrites make ties, for tests of invariance.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final

from plaudit.data.formats.records import Writer
from plaudit.data.formats.writers import (
    WRITERS,
    WriteCounts,
    check_out,
    choose_writer,
    write_comparison,
    write_file,
)
from plaudit.data.load import open_source
from plaudit.data.perturb.table import (
    PERTURBATIONS,
    SEVERITIES,
    Kind,
    Perturbation,
    choose_perturbations,
)
from plaudit.data.perturb.text import (
    UNKNOWN,
    Context,
    best_response,
    contexts_by_language,
    language_of_answer,
    last_text,
    prompt_text,
    with_text,
)
from plaudit.errors import DataError
from plaudit.recipe.schema import Source
from plaudit.types import Comparison

NO_TEXT: Final = "no text"
LOW_RATING: Final = "low rating"

# --- pairs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbedRows:
    """Pairs of ``rows`` rows, how often a perturbation made none, and the languages of the rows.

    ``not_made`` counts pairs by perturbation and reason, ``languages`` rows by the language of
    their best response. Each comparison has the perturbation's name as ``subset``, its kind and
    its severity in its metadata. The perturbed response stands second and has grade 0, or 1 like
    the first where the perturbation preserves the meaning.
    """

    rows: int
    comparisons: tuple[Comparison, ...]
    not_made: Mapping[str, int]
    languages: Mapping[str, int]


def perturb(
    comparisons: Sequence[Comparison],
    perturbations: Sequence[Perturbation],
    seed: int,
    *,
    per_row: int | None = None,
) -> PerturbedRows:
    """For each comparison and perturbation a pair: its best response and that one perturbed.

    The best response is the one of the highest grade (the first of equals, or where nothing is
    known). Of messages, the last one's text is perturbed. With ``per_row``, perturbations are tried
    in an order drawn for each comparison until that many have made a pair. A pair depends on the
    seed, the comparison and the perturbation alone, except where it borrows from the other
    comparisons of its language. A perturbation is skipped where the text is in a language that it
    does not know.
    """
    answers = [_answer_of(comparison) for comparison in comparisons]
    own: dict[str, set[str]] = {}
    for comparison, (text, _) in zip(comparisons, answers, strict=True):
        own.setdefault(comparison.group, set()).add(text)
    contexts = contexts_by_language([answer for answer in answers if answer[0]])
    not_made: Counter[str] = Counter()
    pairs: list[Comparison] = []
    place = {perturbation.name: at for at, perturbation in enumerate(perturbations)}
    for comparison, (text, language) in zip(comparisons, answers, strict=True):
        around = replace(
            contexts[language],
            own=frozenset(own[comparison.group]),
            prompt=prompt_text(comparison.prompt),
        )
        order = list(perturbations)
        if per_row is not None:
            Random(f"{seed}/{comparison.source}/{comparison.id}").shuffle(order)
        made: list[Comparison] = []
        for perturbation in order:
            if len(made) == per_row:
                break
            if not text.strip():
                not_made[NO_TEXT] += 1
            elif not perturbation.suits(language):
                not_made[f"{perturbation.name} skipped: language"] += 1
            elif (new := _perturbed(comparison, text, perturbation, around, seed)) is None:
                not_made[f"{perturbation.name} does not apply"] += 1
            else:
                made.append(_pair(comparison, new, perturbation))
        pairs += sorted(made, key=lambda pair: place[str(pair.metadata["subset"])])
    return PerturbedRows(
        rows=len(comparisons),
        comparisons=tuple(pairs),
        not_made=not_made,
        languages=Counter(language or UNKNOWN for _, language in answers),
    )


def _answer_of(comparison: Comparison) -> tuple[str, str | None]:
    """The text of the best response ("" if it has none), and its language.

    The same short answer is in the language of its own prompt each time.
    """
    text = last_text(best_response(comparison)) or ""
    return text, language_of_answer(text, prompt_text(comparison.prompt)) if text else None


def _perturbed(
    comparison: Comparison, text: str, perturbation: Perturbation, context: Context, seed: int
) -> str | None:
    # A generator for each comparison and perturbation, so that neither changes another's draw.
    generator = Random(f"{seed}/{perturbation.name}/{comparison.source}/{comparison.id}")
    return perturbation.apply(text, generator, context)


def _pair(comparison: Comparison, text: str, perturbation: Perturbation) -> Comparison:
    best = best_response(comparison)
    return replace(
        comparison,
        id=f"{comparison.id}-{perturbation.name}",
        responses=(best, with_text(best, text)),
        grades=(1.0, 1.0 if perturbation.kind == "meaning_preserving" else 0.0),
        margin=None,
        soft_label=None,
        rated=False,
        attributes={},
        metadata={
            **{name: v for name, v in comparison.metadata.items() if name not in _OF_THE_REJECTED},
            "subset": perturbation.name,
            "kind": perturbation.kind,
            "severity": perturbation.severity,
        },
    )


_OF_THE_REJECTED: Final = frozenset(
    {"strength", "score_chosen", "score_rejected", "rejected_model"}
)
"""Metadata of the response that the perturbed one stands in for: untrue of the new pair."""


# --- pairs of a file ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbOptions:
    """What is made of each row.

    ``perturbations`` are names or kinds (``all`` for all) and ``severities`` leave the others out.
    ``per_row`` pairs are made of a row at most, by perturbations drawn for it. ``to`` names the
    format to write. None is explicit pairs, ranked rows where rewrites make ties.
    """

    perturbations: Sequence[str] = ("degradation",)
    severities: Sequence[str] = SEVERITIES
    per_row: int | None = None
    seed: int = 42
    to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbedFile:
    """The pairs made of a file, with how many perturbations, in which format, and its counts."""

    made: PerturbedRows
    perturbations: int
    format: str
    counts: WriteCounts


def perturb_file(
    source: Source, out: Path, options: PerturbOptions = PerturbOptions()
) -> PerturbedFile:
    """Write pairs of each row's best response and perturbations of it (:func:`perturb`).

    Raises:
        DataError: an unknown name, rows that cannot be read, or not one pair.
        OutputError: ``out`` is there already, cannot hold the format, or cannot be written.
    """
    chosen = choose_perturbations(options.perturbations, options.severities)
    writer = None if options.to is None else choose_writer(options.to)
    comparisons = [row.comparison for row in open_source(source).rows]
    writer = writer or _natural_writer(chosen, comparisons)
    check_out(out, writer)
    made = perturb(comparisons, chosen, options.seed, per_row=options.per_row)
    if not made.comparisons:
        raise DataError(
            f"none of the {len(comparisons):,} rows can be perturbed: {by_count(made.not_made)}."
        )
    counts = write_file(out, writer, (write_comparison(writer, pair) for pair in made.comparisons))
    return PerturbedFile(made=made, perturbations=len(chosen), format=writer.name, counts=counts)


def by_count(counts: Mapping[str, int]) -> str:
    """Names with their counts, the most frequent first."""
    return ", ".join(f"{name} {count:,}" for name, count in Counter(counts).most_common())


def _natural_writer(
    perturbations: Sequence[Perturbation], comparisons: Sequence[Comparison]
) -> Writer:
    """Ranked rows where there are ties, else pairs of plain text or messages, as the rows are."""
    if any(perturbation.kind == "meaning_preserving" for perturbation in perturbations):
        return WRITERS["ranked"]
    plain = all(isinstance(comparison.prompt, str) for comparison in comparisons)
    return WRITERS["explicit_text" if plain else "explicit_conversational"]


# --- perturbation tests -------------------------------------------------------------------------

MOST: Final = 200
"""Responses that are tested unless another number is asked for."""

KINDS_AND_NAMES: Final[tuple[tuple[Kind, str], ...]] = tuple(
    (perturbation.kind, perturbation.name) for perturbation in PERTURBATIONS.values()
)
"""Kind and name of every perturbation, in the order in which they are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationTest:
    """A comparison of the best response, the worst, and perturbations of the best.

    The worst stands in it where the comparison is ``ordered``: it is known to be worse than the
    best. ``perturbations`` are the kind and the name of the responses behind the ``unperturbed``.
    ``language`` is that of the best response, None where it is not known. ``not_applied`` are the
    perturbations with nothing to take hold of, ``not_for_language`` those for other languages.
    """

    comparison: Comparison
    perturbations: tuple[tuple[Kind, str], ...]
    ordered: bool = True
    language: str | None = None
    not_applied: tuple[str, ...] = ()
    not_for_language: tuple[str, ...] = ()

    @property
    def unperturbed(self) -> int:
        """How many responses stand before the perturbed ones: the best, and the worst if any."""
        return 2 if self.ordered else 1

    def without(self, fails: Callable[[Comparison], bool]) -> PerturbationTest:
        """Only the perturbations that, alone beside the unperturbed responses, do not fail."""
        kept = [at for at in range(len(self.perturbations)) if not fails(self._only([at]))]
        return replace(
            self,
            comparison=self._only(kept),
            perturbations=tuple(self.perturbations[at] for at in kept),
        )

    def _only(self, kept: Iterable[int]) -> Comparison:
        responses = self.comparison.responses
        first = self.unperturbed
        chosen = (*responses[:first], *(responses[first + at] for at in kept))
        return replace(self.comparison, responses=chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationTests:
    """A test per sampled comparison, and how many comparisons were skipped, by reason."""

    tests: tuple[PerturbationTest, ...]
    skipped: Counter[str] = field(default_factory=Counter)


def build_perturbation_tests(
    comparisons: Iterable[Comparison], *, most: int = MOST, seed: int = 0
) -> PerturbationTests:
    """Tests of at most ``most`` comparisons, one per prompt group, drawn by ``seed``.

    The comparisons are walked once. Which ones are drawn depends on the seed and their groups, not
    on their order. Those without grades are not drawn. A comparison whose best response has no text
    is skipped, and a single response whose rating is low: below the median of those drawn, or the
    lowest of them if they differ. What perturbations borrow from other answers is in the language
    of the answer.
    """
    # Twice as many, since about half of single responses are good.
    sample = _sample((one for one in comparisons if one.grades), 2 * most, seed)
    least, low = _least_good(sample), 0
    drawn: list[tuple[Comparison, tuple[str, str | None]]] = []
    for comparison in sample:
        if len(drawn) == most:
            break
        if _is_single(comparison) and comparison.grades[0] < least:
            low += 1
        else:
            drawn.append((comparison, _answer_of(comparison)))
    usable = [(comparison, answer) for comparison, answer in drawn if answer[0].strip()]
    missing = len(drawn) - len(usable)
    contexts = contexts_by_language([answer for _, answer in usable])
    return PerturbationTests(
        tests=tuple(
            _test(comparison, text, contexts[language], seed)
            for comparison, (text, language) in usable
        ),
        skipped=+Counter({NO_TEXT: missing, LOW_RATING: low}),
    )


def _test(comparison: Comparison, text: str, context: Context, seed: int) -> PerturbationTest:
    """All perturbations that suit the language of ``context``, applied to the best response."""
    best = best_response(comparison)
    around = replace(context, own=frozenset({text}), prompt=prompt_text(comparison.prompt))
    outcomes = {
        perturbation: _perturbed(comparison, text, perturbation, around, seed)
        for perturbation in PERTURBATIONS.values()
        if perturbation.suits(context.language)
    }
    applied = {perturbation: new for perturbation, new in outcomes.items() if new is not None}
    grades = comparison.grades or (0.0,)
    ordered = max(grades) > min(grades)
    worst = comparison.responses[grades.index(min(grades))]
    unperturbed = (best, worst) if ordered else (best,)
    responses = (*unperturbed, *(with_text(best, new) for new in applied.values()))
    return PerturbationTest(
        comparison=replace(comparison, responses=responses, grades=(), margin=None, attributes={}),
        perturbations=tuple((perturbation.kind, perturbation.name) for perturbation in applied),
        ordered=ordered,
        language=context.language,
        not_applied=tuple(one.name for one in outcomes if one not in applied),
        not_for_language=tuple(name for name, one in PERTURBATIONS.items() if one not in outcomes),
    )


def _is_single(comparison: Comparison) -> bool:
    return comparison.rated and len(comparison.grades) == 1


def _least_good(comparisons: Sequence[Comparison]) -> float:
    """The rating from which on a single response is good."""
    rating_N = sorted(one.grades[0] for one in comparisons if _is_single(one))
    if not rating_N or rating_N[0] == rating_N[-1]:
        return -math.inf
    above_lowest = next(rating for rating in rating_N if rating > rating_N[0])
    return max(rating_N[len(rating_N) // 2], above_lowest)


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
