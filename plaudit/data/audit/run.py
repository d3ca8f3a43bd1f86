"""The audit from rows to a report; :func:`audit` reads top to bottom."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from plaudit import __version__
from plaudit.data.audit.checks import (
    CHECKS,
    Check,
    Evidence,
    Fix,
    FlaggedRows,
    Severity,
    count_votes,
    first_of_equals,
    label_pairs,
)
from plaudit.data.audit.fix import CleanedCopy
from plaudit.data.audit.measure import (
    REASONS,
    Array,
    AuditRows,
    BaselineAccuracy,
    Columns,
    Functions,
    OpenPart,
    Part,
    Progress,
    measure_columns,
    store_rows,
)
from plaudit.data.audit.similarity import (
    NEAR,
    SAMPLED_PROMPTS,
    HeldOutGrams,
    ShingleSets,
    combine_hashes,
    evenly_spaced,
    near_prompts,
    near_rows,
    shingles,
    words,
)
from plaudit.data.perturb.text import identify_language
from plaudit.data.reasons import EMPTY_RESPONSE
from plaudit.errors import DataError
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.storage.arrow import RowArray, cache_folder
from plaudit.types import Comparison, FloatArray

FORMAT: Final = 1
EXAMPLES: Final = 5
LENGTHS: Final = (512, 1024, 2048, 4096)
"""Lengths in tokens; the rows above each are counted."""

LEVELS: Final = 20
"""Different ratings that are counted one by one."""

LANGUAGE_ROWS: Final = 2_000
FOLDS: Final = 5
BAG_OF_WORDS_ROWS: Final = 4_000
"""Rows on which the bag of words is fitted and tested; of more, evenly spaced ones."""

ABANDONED_SECONDS: Final = 2 * 86400
_PERCENTILES: Final = (0, 5, 25, 50, 75, 95, 99, 100)
_BINS: Final = 40


# --- the report -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``loss`` is the objective that decides which rows can be trained on.

    ``token_method`` says how tokens are counted, ``near`` is the Jaccard index of duplicates.
    """

    loss: str
    max_length: int
    token_method: str
    tokens_exact: bool
    near: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Where a flagged row is, and where the row is that it repeats or contradicts."""

    where: str
    other: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check. ``rows`` and ``share`` are None where the check did not apply."""

    check: str
    title: str
    severity: Severity
    why: str
    advice: str
    fix: Fix
    rows: int | None
    share: float | None
    examples: tuple[Example, ...]
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """Rows that can be trained on, and the others by reason: all rows, each once."""

    rows: int
    skipped: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A rating, and how many responses have it."""

    rating: float
    responses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """Ratings of single responses; ``levels`` is empty where there are more than 20 of them."""

    responses: int
    mean: float
    percentiles: Mapping[str, float]
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A named rating of responses: how many have it, the least, the most and the mean."""

    name: str
    responses: int
    least: float
    most: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Rows by what their labels say; a row may have several kinds of labels.

    ``ties`` are rows of equal grades alone, and ``tie_share`` is their share of those with a known
    order or a tie. ``objectives`` counts for each the rows that it can learn from. ``attributes``
    are those that the most responses have first.
    """

    ordered: int
    ties: int
    tie_share: float | None
    rated: int
    soft_labels: int
    mean_soft_label: float | None
    ratings: Ratings | None
    attributes: tuple[Attribute, ...]
    objectives: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """``counts[i]`` values from ``edges[i]`` up to ``edges[i + 1]``."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Mean, percentiles and a histogram over equal steps of the logarithm."""

    count: int
    mean: float
    percentiles: Mapping[str, float]
    histogram: Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Characters of prompts and of the responses with the highest and the lowest grade.

    ``conversation_tokens`` are those of the longest conversation of each row.
    """

    prompt_characters: Distribution | None
    better_characters: Distribution | None
    worse_characters: Distribution | None
    conversation_tokens: Distribution | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthLimit:
    """How many rows have a conversation above a length in tokens."""

    tokens: int
    rows: int
    share: float
    is_max_length: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many texts have a script or a language; the name is None where it is unknown."""

    name: str | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripts:
    """Scripts of prompts and responses, the most frequent first."""

    prompts: tuple[Count, ...]
    responses: tuple[Count, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Languages:
    """Languages of prompts and responses in ``rows`` evenly spaced rows.

    ``responses_in_another`` are in another language than their prompt, of ``responses_compared``
    where both are known.
    """

    rows: int
    prompts: tuple[Count, ...]
    responses: tuple[Count, ...]
    responses_compared: int
    responses_in_another: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Prompts; rows by their number of responses and by the number of turns of their prompt."""

    prompts: int
    most_rows_of_a_prompt: int
    responses: Mapping[str, int]
    prompt_turns: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossFitted(BaselineAccuracy):
    """A baseline fitted on all folds of prompts but one and tested on that one, in turn."""

    rows: int
    folds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BestBaseline:
    """``explained`` is the share of the labels beyond chance that the baseline may explain."""

    name: str
    accuracy: float
    explained: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """Accuracy of surface baselines on the labels.

    ``length_gap`` is a histogram of the characters of the winner minus those of the loser, in
    which the outer bins contain everything beyond them. ``best`` is None where the most accurate
    baseline is not significantly above chance.
    """

    longer: BaselineAccuracy
    shorter: BaselineAccuracy
    length_gap: Histogram | None
    bag_of_words: CrossFitted | None
    best: BestBaseline | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """The content of ``audit.json``."""

    format: int = FORMAT
    plaudit_version: str = __version__
    rows: int
    settings: Settings
    parts: tuple[Part, ...]
    findings: tuple[Finding, ...]
    trainable: Trainable
    labels: Labels
    lengths: Lengths
    over_lengths: tuple[LengthLimit, ...]
    scripts: Scripts
    languages: Languages
    shape: Shape
    surface: Surface
    cleaned: CleanedCopy | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings of severity error that flag a row."""
        return tuple(f for f in self.findings if f.severity == "error" and f.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The report, and every row that a check flags.

    ``drop_N`` is what the cleaned copy does: per row of the data the number (from 1) of the check
    in :data:`CHECKS` for which the row is dropped, 0 for a row that stays.
    """

    report: AuditReport
    flagged: Mapping[str, FlaggedRows]
    drop_N: npt.NDArray[np.uint8]


# --- from rows to the report ----------------------------------------------------------------------


def audit(
    parts: Sequence[OpenPart],
    functions: Functions,
    *,
    max_length: int,
    loss: str = "bradley_terry",
    on_progress: Progress = lambda task, done, total: None,
) -> Audit:
    """Audit the parts of kind ``data``, and compare them with the others.

    Raises:
        DataError: a row cannot be read, there are no rows to audit, or ``loss`` is no objective.
        OutputError: the disk.
    """
    with work_folder() as name:
        folder = Path(name)
        rows = store_rows(folder, parts, on_progress)
        if not rows.data:
            raise DataError("no rows to audit; name a file of comparisons.")
        evidence = gather(rows, folder, functions, max_length, loss, on_progress)
        flagged = {check.name: check.find(evidence) for check in CHECKS if check.applies(evidence)}
        report = AuditReport(
            rows=rows.data,
            settings=Settings(
                loss=loss,
                max_length=max_length,
                token_method=functions.tokens.method,
                tokens_exact=functions.tokens.exact,
                near=NEAR,
            ),
            parts=rows.parts,
            findings=tuple(_finding(check, flagged.get(check.name), rows) for check in CHECKS),
            trainable=trainable(evidence),
            labels=labels(evidence),
            lengths=lengths(evidence),
            over_lengths=over_lengths(evidence),
            scripts=scripts(evidence),
            languages=languages(evidence),
            shape=shape(evidence),
            surface=surface(evidence, on_progress),
        )
        return Audit(report=report, flagged=flagged, drop_N=_drops(flagged, rows.data))


def work_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for the files of one audit, which removes itself.

    It lies in the cache where there is one: the system's folder for temporary files may be memory.
    """
    folder = cache_folder()
    if folder is not None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in folder.glob("audit-*"):  # by audits that were killed
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
            return tempfile.TemporaryDirectory(
                prefix="audit-", dir=folder, ignore_cleanup_errors=True
            )
        except OSError:
            pass
    return tempfile.TemporaryDirectory(prefix="plaudit-audit-", ignore_cleanup_errors=True)


def gather(
    rows: AuditRows,
    folder: Path,
    functions: Functions,
    max_length: int,
    loss: str,
    on_progress: Progress,
) -> Evidence:
    """Measure the rows, and find pairs of similar ones."""
    text = functions.text

    @lru_cache(maxsize=8192)
    def sets_of(row: int) -> ShingleSets:
        comparison = rows[row]
        turns = (comparison.prompt, *comparison.responses)
        prompt, *responses = (shingles(words(text(one))) for one in turns)
        return ShingleSets(prompt, tuple(responses))

    others = evenly_spaced(rows.data, SAMPLED_PROMPTS)
    held_out = HeldOutGrams(
        ((row, text(rows[row].prompt)) for row in range(rows.data, len(rows))),
        (text(rows[row].prompt) for row in others.tolist()),
    )
    columns = measure_columns(rows, folder, functions, held_out, loss, on_progress)
    pairs = label_pairs(columns, rows.data)
    return Evidence(
        rows=rows,
        columns=columns,
        pairs=pairs,
        votes=count_votes(pairs),
        near_rows=near_rows(
            columns.sketches,
            _distinct(columns, rows.data),
            sets_of,
            partial(on_progress, "near duplicates"),
        ),
        near_prompts=near_prompts(
            columns.sketches,
            _prompts_once(columns, rows.data),
            rows.data,
            sets_of,
            partial(on_progress, "near prompts"),
        )
        if len(rows) > rows.data
        else None,
        functions=functions,
        max_length=max_length,
        loss=loss,
    )


def _distinct(columns: Columns, data: int) -> RowArray:
    """Rows without blank responses, the first of each set of equal pairs."""
    key_N = columns.of_rows["pair_key"][:data]
    first = first_of_equals(key_N) == np.arange(data)
    return np.flatnonzero(
        first & (columns.of_rows["reason"][:data] != REASONS.index(EMPTY_RESPONSE))
    )


def _prompts_once(columns: Columns, data: int) -> RowArray:
    """All rows with a prompt; of those to compare with, the first of each prompt."""
    key_N = columns.of_rows["prompt_key"]
    keep = key_N != 0
    keep[data:] &= first_of_equals(key_N[data:]) == np.arange(len(key_N) - data)
    return np.flatnonzero(keep)


def _finding(check: Check, flagged: FlaggedRows | None, rows: AuditRows) -> Finding:
    examples: list[Example] = []
    if flagged is not None:
        for place, row in enumerate(flagged.rows_M[:EXAMPLES].tolist()):
            other = -1 if flagged.other_M is None else int(flagged.other_M[place])
            examples.append(
                Example(where=rows[row].where, other=None if other < 0 else rows[other].where)
            )
    return Finding(
        check=check.name,
        title=check.title,
        severity=check.severity,
        why=check.why,
        advice=check.advice,
        fix=check.fix,
        rows=None if flagged is None else len(flagged.rows_M),
        share=None if flagged is None else len(flagged.rows_M) / rows.data,
        examples=tuple(examples),
        details={} if flagged is None else flagged.details,
    )


def _drops(flagged: Mapping[str, FlaggedRows], data: int) -> npt.NDArray[np.uint8]:
    """For each row the first check of the table that drops it, by number.

    Of a set of exact duplicates one stays where the row that they repeat is dropped.
    """
    drop_N = np.zeros(data, np.uint8)
    for number, check in enumerate(CHECKS, start=1):
        if check.fix != "drop" or check.name not in flagged:
            continue
        rows = flagged[check.name]
        rows_M = rows.rows_M if rows.drop_M is None else rows.drop_M
        rows_M = rows_M[drop_N[rows_M] == 0]
        if check.name == "exact_duplicates":
            assert rows.other_M is not None, "an exact duplicate repeats a row"
            first_M = rows.other_M[np.searchsorted(rows.rows_M, rows_M)]
            orphans = np.flatnonzero(drop_N[first_M])
            _, heirs = np.unique(first_M[orphans], return_index=True)
            rows_M = np.delete(rows_M, orphans[heirs])
        drop_N[rows_M] = number
    return drop_N


# --- statistics -----------------------------------------------------------------------------------


def trainable(evidence: Evidence) -> Trainable:
    """Rows that can be trained on, and the others by reason."""
    reason_N, skipped_N = evidence.column("reason"), evidence.column("skipped")
    counts = Counter(reason_N[reason_N != 0].tolist())
    by_reason = {REASONS[code]: count for code, count in sorted(counts.items())}
    skipped = Counter(skipped_N[(reason_N == 0) & (skipped_N != 0)].tolist())
    by_reason |= {evidence.columns.names[code]: count for code, count in skipped.items()}
    return Trainable(rows=evidence.data - sum(by_reason.values()), skipped=by_reason)


def labels(evidence: Evidence) -> Labels:
    """What the labels of the rows say, and how many rows each objective can learn from."""
    ordered_N, tied_N = evidence.column("ordered"), evidence.column("tied")
    rated_N, soft_N = evidence.column("rated"), evidence.column("soft_label")
    soft_N = soft_N[ordered_N & ~np.isnan(soft_N)]
    row_R, rating_R, _ = evidence.ratings()
    inside_N = rated_N.copy()
    inside_N[row_R[(rating_R < 0.0) | (rating_R > 1.0)]] = False
    counts = {
        "order": ordered_N.sum(),
        "order_and_ties": (ordered_N | tied_N).sum(),
        # Beside ratings, rows of which only the order is known.
        "ratings": (rated_N | ordered_N).sum() if rated_N.any() else 0,
        "bce": (inside_N | (ordered_N & ~rated_N)).sum() if rated_N.any() else 0,
    }
    decided = int((ordered_N | tied_N).sum())
    return Labels(
        ordered=int(ordered_N.sum()),
        ties=int(tied_N.sum()),
        tie_share=float(tied_N.sum() / decided) if decided else None,
        rated=int(rated_N.sum()),
        soft_labels=len(soft_N),
        mean_soft_label=float(soft_N.mean()) if len(soft_N) else None,
        ratings=_ratings(rating_R),
        attributes=_attributes(evidence),
        objectives={
            kind: int(counts["bce" if kind == "bce" else row.learns_from])
            for kind, row in OBJECTIVES.items()
        },
    )


def _attributes(evidence: Evidence) -> tuple[Attribute, ...]:
    known = [
        Attribute(
            name=name,
            responses=numbers.count,
            least=numbers.least,
            most=numbers.most,
            mean=numbers.total / numbers.count,
        )
        for name, numbers in evidence.columns.attributes.items()
    ]
    return tuple(sorted(known, key=lambda one: (-one.responses, one.name)))


def _ratings(rating_R: Array) -> Ratings | None:
    """None of no ratings."""
    if not len(rating_R):
        return None
    values, counts = np.unique(rating_R, return_counts=True)
    few = len(values) <= LEVELS
    return Ratings(
        responses=len(rating_R),
        mean=float(rating_R.mean()),
        percentiles=_percentiles(rating_R),
        levels=tuple(
            Level(rating=rating, responses=count)
            for rating, count in zip(values.tolist(), counts.tolist(), strict=True)
            if few
        ),
    )


def lengths(evidence: Evidence) -> Lengths:
    """Characters of prompts and responses, tokens of conversations."""
    starts_N = evidence.columns.starts[: evidence.data + 1]
    characters_R = evidence.columns.of_responses["characters"][: starts_N[-1]]
    grade_R = evidence.columns.of_responses["grade"][: starts_N[-1]]
    row_R = np.repeat(np.arange(evidence.data), np.diff(starts_N))
    best_N, worst_N = np.full(evidence.data, -np.inf), np.full(evidence.data, np.inf)
    known = ~np.isnan(grade_R)
    np.maximum.at(best_N, row_R[known], grade_R[known])
    np.minimum.at(worst_N, row_R[known], grade_R[known])
    differ = known & (best_N > worst_N)[row_R]
    return Lengths(
        prompt_characters=distribution(evidence.column("prompt_characters")),
        better_characters=distribution(characters_R[differ & (grade_R == best_N[row_R])]),
        worse_characters=distribution(characters_R[differ & (grade_R == worst_N[row_R])]),
        conversation_tokens=distribution(
            evidence.column("longest")[evidence.column("skipped") == 0]
        ),
    )


def distribution(values: Array) -> Distribution | None:
    """None of no values."""
    if not len(values):
        return None
    edges = np.unique(
        np.rint(np.geomspace(1, max(2, int(values.max()) + 1), _BINS + 1)).astype(np.int64)
    )
    edges[0] = 0
    return Distribution(
        count=len(values),
        mean=float(values.mean()),
        percentiles=_percentiles(values),
        histogram=_histogram(values, edges),
    )


def _percentiles(values: Array) -> dict[str, float]:
    percentiles = np.percentile(values, _PERCENTILES).tolist()
    return dict(zip(map(str, _PERCENTILES), percentiles, strict=True))


def _histogram(values: Array, edges: Array) -> Histogram:
    counts, _ = np.histogram(values, edges)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def over_lengths(evidence: Evidence) -> tuple[LengthLimit, ...]:
    """Rows with a conversation above each length."""
    longest_N = evidence.column("longest")
    return tuple(
        LengthLimit(
            tokens=limit,
            rows=int((longest_N > limit).sum()),
            share=float((longest_N > limit).mean()),
            is_max_length=limit == evidence.max_length,
        )
        for limit in sorted({*LENGTHS, evidence.max_length})
    )


def scripts(evidence: Evidence) -> Scripts:
    """How many prompts and responses are in each script."""
    names = {0: None, **evidence.columns.names}

    def counted(codes: Array) -> tuple[Count, ...]:
        return _counts({names[code]: count for code, count in _tally(codes).items()})

    responses = evidence.columns.starts[evidence.data]
    return Scripts(
        prompts=counted(evidence.column("prompt_script")),
        responses=counted(evidence.columns.of_responses["script"][:responses]),
    )


def languages(evidence: Evidence) -> Languages:
    """Languages of evenly spaced rows."""
    text = evidence.functions.text
    rows = evenly_spaced(evidence.data, LANGUAGE_ROWS).tolist()
    languages_N = [
        [identify_language(text(turns)) for turns in (comparison.prompt, *comparison.responses)]
        for comparison in map(evidence.rows.__getitem__, rows)
    ]
    pairs = [(prompt, one) for prompt, *responses in languages_N for one in responses]
    known = [(prompt, one) for prompt, one in pairs if prompt is not None and one is not None]
    return Languages(
        rows=len(rows),
        prompts=_counts(Counter(prompt for prompt, *_ in languages_N)),
        responses=_counts(Counter(one for _, one in pairs)),
        responses_compared=len(known),
        responses_in_another=sum(prompt != one for prompt, one in known),
    )


def shape(evidence: Evidence) -> Shape:
    """Prompts, responses per row and turns per prompt."""
    sizes = _tally(evidence.column("group")).values()
    return Shape(
        prompts=len(sizes),
        most_rows_of_a_prompt=max(sizes, default=0),
        responses={str(k): n for k, n in _tally(evidence.column("responses")).items()},
        prompt_turns={str(k): n for k, n in _tally(evidence.column("turns")).items()},
    )


def _tally(values: Array) -> dict[int, int]:
    """Values with their counts, in rising order."""
    different, counts = np.unique(values, return_counts=True)
    return dict(zip(different.tolist(), counts.tolist(), strict=True))


def _counts(counts: Mapping[str | None, int]) -> tuple[Count, ...]:
    """The most frequent first."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0] or ""))
    return tuple(Count(name=name, count=count) for name, count in order)


def surface(evidence: Evidence, on_progress: Progress) -> Surface:
    """Accuracy of surface baselines: length on every labelled pair, a bag of words on a sample."""
    accuracy = evidence.functions.accuracy
    decided = evidence.pairs.sign_J != 0
    longer_P = evidence.pairs.longer_J[decided].astype(np.float64)
    group_P = evidence.column("group")[evidence.pairs.row_J[decided]]
    usable = np.flatnonzero(evidence.column("ordered"))
    sample = usable[evenly_spaced(len(usable), BAG_OF_WORDS_ROWS)]
    bag_of_words = _cross_fitted(evidence, sample, on_progress)
    longer, shorter = accuracy(longer_P, group_P), accuracy(-longer_P, group_P)
    return Surface(
        longer=longer,
        shorter=shorter,
        length_gap=_length_gap(longer_P),
        bag_of_words=bag_of_words,
        best=_best({"longer": longer, "shorter": shorter, "bag_of_words": bag_of_words}),
    )


def _best(baselines: Mapping[str, BaselineAccuracy | None]) -> BestBaseline | None:
    known = [
        (baseline.accuracy, baseline.accuracy_ci95[0], name)
        for name, baseline in baselines.items()
        if baseline and baseline.accuracy is not None and baseline.accuracy_ci95
    ]
    accuracy, low, name = max(known, default=(0.5, 0.5, ""))
    if low <= 0.5:
        return None
    return BestBaseline(name=name, accuracy=accuracy, explained=2 * accuracy - 1)


def _length_gap(longer_P: FloatArray) -> Histogram | None:
    if not len(longer_P):
        return None
    reach = max(1.0, float(np.percentile(np.abs(longer_P), 98)))
    edges = np.linspace(-reach, reach, _BINS + 1)
    return _histogram(np.clip(longer_P, -reach, reach), edges)


def _cross_fitted(
    evidence: Evidence, sample: RowArray, on_progress: Progress
) -> CrossFitted | None:
    """A bag of words on prompts that it was not fitted on; None where there are too few."""
    group_S = evidence.column("group")[sample]
    fold_S = combine_hashes(group_S) % np.uint64(FOLDS)
    if len(np.unique(group_S)) < 2 * FOLDS or len(np.unique(fold_S)) < FOLDS:
        return None
    comparisons: list[Comparison] = [evidence.rows[row] for row in sample.tolist()]
    differences, groups = [], []
    for fold in range(FOLDS):
        on_progress("fitting a bag of words", fold, FOLDS)
        sides: Mapping[bool, list[Comparison]] = {True: [], False: []}
        for comparison, own in zip(comparisons, fold_S.tolist(), strict=True):
            sides[own == fold].append(comparison)
        differences.append(evidence.functions.bag_of_words(sides[False], sides[True]))
        pairs = [sum(a != b for a, b in combinations(c.grades, 2)) for c in sides[True]]
        groups.append(np.repeat(group_S[fold_S == fold], pairs))
    on_progress("fitting a bag of words", FOLDS, FOLDS)
    accuracy = evidence.functions.accuracy(np.concatenate(differences), np.concatenate(groups))
    return CrossFitted(**asdict(accuracy), rows=len(sample), folds=FOLDS)
