"""The table of checks: one function from the evidence to :class:`FlaggedRows`, and one row, each.

A check gets numbers of all rows (:class:`Evidence`) and returns the
numbers of the rows it flags. Its row of the table also says what the cleaned copy does with them.

Shape legend: J labelled pairs of responses, one per pair of a row; V different pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.data import reasons
from plaudit.data.audit.measure import (
    REASONS,
    Array,
    AuditRows,
    Columns,
    Functions,
    Kind,
    Part,
)
from plaudit.data.audit.similarity import GRAM_WORDS, NEAR, NearPairs, combine_hashes
from plaudit.data.reasons import learned_labels
from plaudit.storage.arrow import RowArray
from plaudit.types import MEDIA

Severity: TypeAlias = Literal["error", "warning", "info"]
Fix: TypeAlias = Literal["drop", "repair", "keep"]


# --- labels of pairs ------------------------------------------------------------------------------

MOST_RESPONSES: Final = 8
"""Of rows with more responses, only neighbours in the row are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPairs:
    """``pair_J`` is a code of the prompt and both responses, in any order.

    ``sign_J`` says which response is better: 1 or -1, the same way round for equal pairs, or 0
    for a tie. ``longer_J`` is how many characters longer the winner is than the loser.
    """

    row_J: RowArray
    pair_J: npt.NDArray[np.uint64]
    sign_J: npt.NDArray[np.int8]
    longer_J: RowArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """Labels by pair: the number ``pair_J`` of each label's pair, and each pair's counts."""

    pair_J: RowArray
    for_V: RowArray
    against_V: RowArray
    ties_V: RowArray


def label_pairs(columns: Columns, rows: int) -> LabelledPairs:
    """The pairs of those of the first ``rows`` rows that can be trained on, and of ties."""
    starts_N = columns.starts[: rows + 1]
    labelled_N = np.isin(columns.of_rows["reason"][:rows], (0, REASONS.index(reasons.TIE)))
    counts_N = np.where(labelled_N, np.diff(starts_N), 0)
    parts = [np.zeros((3, 0), np.int64)]
    for count in np.unique(counts_N[counts_N > 1]).tolist():
        one_P, other_P = (
            np.triu_indices(count, 1)
            if count <= MOST_RESPONSES
            else (np.arange(count - 1), np.arange(1, count))
        )
        row_M = np.flatnonzero(counts_N == count)
        start_M = starts_N[row_M, None]
        one_J, other_J = (start_M + one_P).ravel(), (start_M + other_P).ravel()
        parts.append(np.stack([np.repeat(row_M, len(one_P)), one_J, other_J]))
    row_J, one_J, other_J = np.concatenate(parts, axis=1)

    digest_R, grade_R = columns.of_responses["digest"], columns.of_responses["grade"]
    gap_J = grade_R[one_J] - grade_R[other_J]
    known = np.flatnonzero(~np.isnan(gap_J) & (digest_R[one_J] != digest_R[other_J]))
    known = known[np.argsort(row_J[known], kind="stable")]
    row_J, one_J, other_J, gap_J = row_J[known], one_J[known], other_J[known], gap_J[known]
    low_J = np.minimum(digest_R[one_J], digest_R[other_J])
    high_J = np.maximum(digest_R[one_J], digest_R[other_J])
    won_J = np.sign(gap_J).astype(np.int8)
    characters_R = columns.of_responses["characters"].astype(np.int64)
    return LabelledPairs(
        row_J=row_J,
        pair_J=combine_hashes(columns.of_rows["group"][row_J], low_J, high_J),
        sign_J=np.where(digest_R[one_J] == low_J, won_J, -won_J).astype(np.int8),
        longer_J=won_J * (characters_R[one_J] - characters_R[other_J]),
    )


def count_votes(pairs: LabelledPairs) -> Votes:
    """The labels of each pair together."""
    codes, pair_J = np.unique(pairs.pair_J, return_inverse=True)
    counts = [
        np.bincount(pair_J[pairs.sign_J == sign], minlength=len(codes)) for sign in (1, -1, 0)
    ]
    return Votes(pair_J=pair_J, for_V=counts[0], against_V=counts[1], ties_V=counts[2])


# --- what a check reads, and what it returns ------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything known of the rows. The first ``data`` are audited, the others compared with.

    ``near_prompts`` is None where there is nothing to compare with. ``loss`` is the objective that
    decides which rows can be trained on.
    """

    rows: AuditRows
    columns: Columns
    pairs: LabelledPairs
    votes: Votes
    near_rows: NearPairs
    near_prompts: NearPairs | None
    functions: Functions
    max_length: int
    loss: str

    @property
    def data(self) -> int:
        return self.rows.data

    def column(self, name: str) -> Array:
        """A column of the audited rows."""
        return self.columns.of_rows[name][: self.data]

    def ratings(self) -> tuple[RowArray, Array, Array]:
        """Rows, ratings and digests of the rated responses of the audited rows."""
        starts_N = self.columns.starts[: self.data + 1]
        row_R = np.repeat(np.arange(self.data), np.diff(starts_N))
        rated_R = np.flatnonzero(self.column("rated")[row_R])
        of_responses = self.columns.of_responses
        return row_R[rated_R], of_responses["grade"][rated_R], of_responses["digest"][rated_R]

    def prompts_of(self, kind: Kind) -> tuple[RowArray, Array]:
        """The rows of one kind that have a prompt, and its key."""
        rows = rows_of(part for part in self.rows.parts if part.kind == kind)
        keys = self.columns.of_rows["prompt_key"][rows]
        return rows[keys != 0], keys[keys != 0]

    def kind_of(self, rows: RowArray) -> Array:
        """The kind of the part that each row belongs to."""
        ends = np.array([part.end for part in self.rows.parts])
        kinds = np.array([part.kind for part in self.rows.parts])
        return kinds[np.searchsorted(ends, rows, side="right")]


def rows_of(parts: Iterable[Part]) -> RowArray:
    """The numbers of the rows of these parts."""
    numbers = (np.arange(part.start, part.end) for part in parts)
    return np.concatenate([np.zeros(0, np.int64), *numbers])


@dataclass(frozen=True, slots=True, kw_only=True)
class FlaggedRows:
    """The rows that a check flags.

    ``rows_M`` are in rising order. ``other_M`` is for each the row that it repeats or contradicts
    (-1: none). ``drop_M`` are those that the cleaned copy drops, where they are not all of them.
    ``details`` holds further numbers, as JSON.
    """

    rows_M: RowArray
    other_M: RowArray | None = None
    drop_M: RowArray | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check: its texts, and what the cleaned copy does with a row that it flags.

    ``applies`` is False where there is nothing to check (no held-out data), so that a report never
    says "not found" of something that was not checked.
    """

    name: str
    title: str
    severity: Severity
    find: Callable[[Evidence], FlaggedRows]
    why: str
    advice: str
    fix: Fix = "keep"
    applies: Callable[[Evidence], bool] = lambda evidence: True


# --- rows by themselves ---------------------------------------------------------------------------


def _reason(*names: str) -> Callable[[Evidence], FlaggedRows]:
    """Rows that cannot be trained on for one of these reasons."""
    codes = [REASONS.index(name) for name in names]

    return lambda evidence: FlaggedRows(
        rows_M=np.flatnonzero(np.isin(evidence.column("reason"), codes))
    )


def _holds(column: str) -> Callable[[Evidence], FlaggedRows]:
    """Rows for which a column of truth values is true."""
    return lambda evidence: FlaggedRows(rows_M=np.flatnonzero(evidence.column(column)))


def identical_after_truncation(evidence: Evidence) -> FlaggedRows:
    """Conversations that differ only behind the length at which training truncates."""
    shared = evidence.column("shared") >= evidence.max_length
    exact = evidence.functions.tokens.exact
    rows = np.flatnonzero(shared & (evidence.column("reason") == 0))
    return FlaggedRows(rows_M=rows, drop_M=rows if exact else rows[:0], details=_limit(evidence))


def over_length(evidence: Evidence) -> FlaggedRows:
    """Rows with a conversation that is longer than the maximum length."""
    rows = np.flatnonzero(evidence.column("longest") > evidence.max_length)
    return FlaggedRows(rows_M=rows, details=_limit(evidence))


def _limit(evidence: Evidence) -> dict[str, Any]:
    return {"max_length": evidence.max_length, "exact": evidence.functions.tokens.exact}


def template_error(evidence: Evidence) -> FlaggedRows:
    """Rows for which the chat template raises an error."""
    media = evidence.column("reason") == REASONS.index(MEDIA)
    failed = (evidence.column("skipped") != 0) & (evidence.column("unrendered") == 0) & ~media
    return FlaggedRows(rows_M=np.flatnonzero(failed))


def not_rendered(evidence: Evidence) -> FlaggedRows:
    """Rows with a field or a turn that the chat template omits, counted by field."""
    code_N = evidence.column("unrendered")
    rows = np.flatnonzero(code_N)
    counts = Counter(code_N[rows].tolist()).most_common()
    fields = {evidence.columns.names[code]: count for code, count in counts}
    return FlaggedRows(rows_M=rows, details={"fields": fields})


def _renders(evidence: Evidence) -> bool:
    return evidence.functions.tokens.renders


def no_prompt(evidence: Evidence) -> FlaggedRows:
    """All rows of a file in which no row has a prompt."""
    return FlaggedRows(
        rows_M=rows_of(
            part
            for part in evidence.rows.parts
            if part.kind == "data" and part.unread.without_prompt == part.unread.rows
        )
    )


# --- rows against each other ----------------------------------------------------------------------


def first_of_equals(key_N: Array) -> RowArray:
    """For each row the first row with the same key: itself where there is none before it."""
    _, first_U, inverse_N = np.unique(key_N, return_index=True, return_inverse=True)
    first_N: RowArray = first_U[inverse_N]
    return first_N


def exact_duplicates(evidence: Evidence) -> FlaggedRows:
    """Rows with the prompt, the responses and the labels of an earlier row."""
    first_N = first_of_equals(evidence.column("row_key"))
    rows = np.flatnonzero(first_N != np.arange(evidence.data))
    return FlaggedRows(rows_M=rows, other_M=first_N[rows])


def near_duplicates(evidence: Evidence) -> FlaggedRows:
    """Rows whose prompt and responses are nearly those of an earlier row."""
    near = evidence.near_rows
    details = {"jaccard": NEAR, "candidates": near.candidates, "checked": near.checked}
    return FlaggedRows(rows_M=near.row_M, other_M=near.other_M, details=details)


def opposite_labels(evidence: Evidence) -> FlaggedRows:
    """Rows that label two responses to a prompt the other way round than another row does.

    The cleaned copy keeps what the majority says, and none of them where there is no majority.
    """
    pairs, votes = evidence.pairs, evidence.votes
    opposed_V = (votes.for_V > 0) & (votes.against_V > 0)
    chosen = np.flatnonzero(opposed_V[votes.pair_J] & (pairs.sign_J != 0))
    # Sorted by row; of a row with several such pairs the first counts.
    chosen = chosen[np.lexsort((votes.pair_J[chosen], pairs.row_J[chosen]))]
    row_M, pair_M, sign_M = pairs.row_J[chosen], votes.pair_J[chosen], pairs.sign_J[chosen]
    earliest = np.full((3, len(opposed_V)), evidence.data)
    np.minimum.at(earliest, (sign_M, pair_M), row_M)  # -1 is the last of three
    rows, first = np.unique(row_M, return_index=True)
    lost = sign_M != np.sign(votes.for_V - votes.against_V)[pair_M]
    return FlaggedRows(
        rows_M=rows,
        other_M=earliest[-sign_M, pair_M][first],
        drop_M=np.unique(row_M[lost]),
        details={"pairs": int(opposed_V.sum())},
    )


def several_votes(evidence: Evidence) -> FlaggedRows:
    """Pairs that were labelled more than once, and how far the labels agree."""
    votes = evidence.votes
    count_V = votes.for_V + votes.against_V + votes.ties_V
    several = count_V > 1
    decided_V = _couples(votes.for_V) + _couples(votes.against_V)
    agreeing = (decided_V + _couples(votes.ties_V))[several].sum()
    couples = _couples(count_V)[several].sum()
    untied = several & (votes.ties_V == 0)
    untied_couples = _couples(count_V)[untied].sum()
    return FlaggedRows(
        rows_M=np.unique(evidence.pairs.row_J[several[votes.pair_J]]),
        details={
            "pairs": int(several.sum()),
            "labels": int(count_V[several].sum()),
            "unanimous": int((np.maximum(votes.for_V, votes.against_V) == count_V)[several].sum()),
            "agreement": float(agreeing / couples) if couples else None,
            # Which response comes first is arbitrary, so chance agreement is a half.
            "kappa": float(2 * decided_V[untied].sum() / untied_couples - 1)
            if untied_couples
            else None,
        },
    )


def _couples(count_V: RowArray) -> RowArray:
    return count_V * (count_V - 1) // 2


# --- ratings --------------------------------------------------------------------------------------


def constant_ratings(evidence: Evidence) -> FlaggedRows:
    """All rated rows, where all ratings are the same."""
    row_R, rating_R, _ = evidence.ratings()
    constant = len(rating_R) > 1 and bool(np.all(rating_R == rating_R[0]))
    return FlaggedRows(
        rows_M=np.unique(row_R) if constant else row_R[:0],
        details={"rating": float(rating_R[0])} if constant else {},
    )


def conflicting_ratings(evidence: Evidence) -> FlaggedRows:
    """Rows that rate a response to a prompt otherwise than an earlier row does."""
    row_R, rating_R, digest_R = evidence.ratings()
    first_R = first_of_equals(combine_hashes(evidence.column("group")[row_R], digest_R))
    differs = np.flatnonzero(rating_R != rating_R[first_R])
    rows, at = np.unique(row_R[differs], return_index=True)
    gap_R = np.abs(rating_R - rating_R[first_R])[differs]
    return FlaggedRows(
        rows_M=rows,
        other_M=row_R[first_R[differs[at]]],
        details={"largest_difference": float(gap_R.max()) if len(gap_R) else None},
    )


def not_labels(evidence: Evidence) -> FlaggedRows:
    """Rows with a rating below 0 or above 1, which are no labels of bad and good."""
    row_R, rating_R, _ = evidence.ratings()
    return FlaggedRows(rows_M=np.unique(row_R[(rating_R < 0.0) | (rating_R > 1.0)]))


def _learns_ratings(evidence: Evidence) -> bool:
    return learned_labels(evidence.loss) == "ratings" and bool(evidence.column("rated").any())


# --- rows against other sets ----------------------------------------------------------------------


def split_column_leak(evidence: Evidence) -> FlaggedRows:
    """Rows whose prompt appears under two values of the column ``split``.

    The cleaned copy drops those of the largest part, which separates the prompts.
    """
    split_N, group_N = evidence.column("split"), evidence.column("group")
    named = np.flatnonzero(split_N)
    values, counts = np.unique(split_N[named], return_counts=True)
    # One row for each prompt and value; a prompt that is left twice has several values.
    _, first = np.unique(combine_hashes(group_N[named], split_N[named]), return_index=True)
    prompts, times = np.unique(group_N[named[first]], return_counts=True)
    rows = named[np.isin(group_N[named], prompts[times > 1])]
    return FlaggedRows(
        rows_M=rows,
        drop_M=rows[split_N[rows] == values[np.argmax(counts)]],
        details={"prompts": int((times > 1).sum())},
    )


def _has_split(evidence: Evidence) -> bool:
    return len(set(evidence.column("split").tolist()) - {0}) > 1


def shared_prompts(evidence: Evidence, kind: Kind) -> FlaggedRows:
    """Rows whose prompt is in another set; case and white space do not count."""
    keys = evidence.column("prompt_key")
    other_rows, other_keys = evidence.prompts_of(kind)
    different, first = np.unique(other_keys, return_index=True)
    rows = np.flatnonzero(np.isin(keys, different))
    return FlaggedRows(
        rows_M=rows,
        other_M=other_rows[first[np.searchsorted(different, keys[rows])]],
        details={"prompts": len(np.unique(keys[rows]))},
    )


def near_prompts(evidence: Evidence, kind: Kind) -> FlaggedRows:
    """Rows whose prompt is nearly in another set, or that contain most of such a prompt."""
    keys = evidence.column("prompt_key")
    _, other_keys = evidence.prompts_of(kind)
    near = evidence.near_prompts
    assert near is not None, "the check does not apply: there is nothing to compare with"
    ours = evidence.kind_of(near.other_M) == kind
    other_N = np.full(evidence.data, -1, np.int64)
    copied_N = evidence.column("copied_from")
    copied = np.flatnonzero(copied_N >= 0)
    copied = copied[evidence.kind_of(copied_N[copied]) == kind]
    other_N[copied] = copied_N[copied]
    other_N[near.row_M[ours]] = near.other_M[ours]
    rows = np.flatnonzero((other_N >= 0) & ~np.isin(keys, other_keys))
    details = {
        "jaccard": NEAR,
        "run_of_words": GRAM_WORDS,
        "candidates": near.candidates,
        "checked": near.checked,
    }
    return FlaggedRows(rows_M=rows, other_M=other_N[rows], details=details)


def _has(kind: Kind) -> Callable[[Evidence], bool]:
    return lambda evidence: any(part.kind == kind for part in evidence.rows.parts)


CHECKS: Final[tuple[Check, ...]] = (
    Check(
        name="empty_responses",
        title="Empty responses",
        severity="error",
        find=_reason(reasons.EMPTY_RESPONSE),
        why="A response is blank, so its label says nothing about quality.",
        advice="Drop the rows, or find where the text was lost.",
        fix="drop",
    ),
    Check(
        name="identical_responses",
        title="Identical responses",
        severity="error",
        find=_reason(reasons.IDENTICAL_RESPONSES),
        why="The responses are identical, so the label is noise.",
        advice="Drop the rows.",
        fix="drop",
    ),
    Check(
        name="prompt_mismatch",
        title="Responses to different prompts",
        severity="error",
        find=_reason(reasons.PROMPT_MISMATCH),
        why="The responses answer different prompts, so they cannot be compared.",
        advice="Drop the rows, or repair the prompts.",
        fix="drop",
    ),
    Check(
        name="no_prompt",
        title="No prompt in any row",
        severity="error",
        find=no_prompt,
        why="No row has a prompt, so responses are scored without the question.",
        advice="If a column holds the prompt, name it with --columns prompt=COLUMN. Otherwise keep "
        "the rows.",
    ),
    Check(
        name="opposite_labels",
        title="The same pair with opposite labels",
        severity="error",
        find=opposite_labels,
        why="Rows contradict each other: the same two responses with the opposite label.",
        advice="Keep the majority label. Without a majority, drop all rows of the pair.",
        fix="drop",
    ),
    Check(
        name="not_labels",
        title="Ratings below 0 or above 1",
        severity="error",
        find=not_labels,
        why="The objective bce learns from labels from 0 (bad) to 1 (good), and stops at others.",
        advice="Scale the ratings to 0 to 1, or train with loss.kind mse, huber or ordinal.",
        applies=lambda evidence: evidence.loss == "bce" and _learns_ratings(evidence),
    ),
    Check(
        name="constant_ratings",
        title="Constant ratings",
        severity="error",
        find=constant_ratings,
        why="All ratings are the same, so there is nothing to learn from them.",
        advice="Check that the column of the rating is the right one.",
        applies=_learns_ratings,
    ),
    Check(
        name="identical_after_truncation",
        title="Identical after truncation",
        severity="error",
        find=identical_after_truncation,
        why="The responses are identical after truncation to the maximum length, so the label "
        "is noise.",
        advice="Raise the maximum length, drop the rows, or truncate the prompt on the left.",
        fix="drop",
    ),
    Check(
        name="shared_with_eval",
        title="Prompts shared with --eval data",
        severity="error",
        find=partial(shared_prompts, kind="eval"),
        why="Training on held-out prompts biases the held-out accuracy upward.",
        advice="Remove these rows from the training data, or split by prompt.",
        fix="drop",
        applies=_has("eval"),
    ),
    Check(
        name="shared_with_suite",
        title="Prompts shared with a benchmark",
        severity="error",
        find=partial(shared_prompts, kind="suite"),
        why="Training on a benchmark's prompts invalidates the benchmark result.",
        advice="Remove these rows.",
        fix="drop",
        applies=_has("suite"),
    ),
    Check(
        name="split_column_leak",
        title="Prompts under two values of column split",
        severity="error",
        find=split_column_leak,
        why="The file's own split puts the same prompt into two parts.",
        advice="Split by prompt, or remove the rows from the larger part.",
        fix="drop",
        applies=_has_split,
    ),
    Check(
        name="role_order",
        title="Roles out of order",
        severity="error",
        find=_holds("role_order"),
        why="Chat templates reject or garble such conversations: a system turn after the start, "
        "two turns of one role in a row, or a response that is not an assistant turn.",
        advice="Put the turns in order, or drop the rows.",
        fix="drop",
    ),
    Check(
        name="template_error",
        title="Rejected by the chat template",
        severity="error",
        find=template_error,
        why="The tokenizer's chat template raises an error for the row.",
        advice="Put the turns in order, or use another template.",
        fix="drop",
        applies=_renders,
    ),
    Check(
        name="not_rendered",
        title="Not rendered by the chat template",
        severity="error",
        find=not_rendered,
        why="The rendered text lacks a field or a turn (tool calls, tools, reasoning, a tool "
        "result). Training and scoring skip the row.",
        advice="Use a chat template that renders it, or move it into the content of a message.",
        fix="drop",
        applies=_renders,
    ),
    Check(
        name="media",
        title="Images, audio or video",
        severity="error",
        find=_reason(MEDIA),
        why="Only text is read. Training and scoring skip the row.",
        advice="Drop the rows, or describe the media in the text.",
        fix="drop",
    ),
    Check(
        name="special_tokens",
        title="Stray special tokens",
        severity="error",
        find=_holds("special_tokens"),
        why="The tokenizer reads special tokens inside a text as control tokens, so a turn ends "
        "too early.",
        advice="Remove them from the texts.",
        fix="repair",
    ),
    Check(
        name="exact_duplicates",
        title="Exact duplicates",
        severity="warning",
        find=exact_duplicates,
        why="Repeated rows get more weight in training and make confidence intervals too narrow.",
        advice="Keep the first copy of each row.",
        fix="drop",
    ),
    Check(
        name="near_duplicates",
        title="Near duplicates",
        severity="warning",
        find=near_duplicates,
        why="Prompt and responses differ from another row's by a few words at most.",
        advice="Check the examples. Questions that differ in one number are not duplicates.",
    ),
    Check(
        name="conflicting_ratings",
        title="The same response with different ratings",
        severity="warning",
        find=conflicting_ratings,
        why="Rows rate the same response to a prompt differently, so no model can fit them all.",
        advice="Keep them if several people rated it. Otherwise keep one.",
        applies=_learns_ratings,
    ),
    Check(
        name="near_eval",
        title="Near duplicates of --eval prompts",
        severity="warning",
        find=partial(near_prompts, kind="eval"),
        why="A held-out prompt with a few words changed, or most of it inside a row, still leaks.",
        advice="Check the examples, and remove the rows that ask the same question.",
        fix="drop",
        applies=_has("eval"),
    ),
    Check(
        name="near_suite",
        title="Near duplicates of benchmark prompts",
        severity="warning",
        find=partial(near_prompts, kind="suite"),
        why="A benchmark prompt with a few words changed, or most of it inside a row, still leaks.",
        advice="Check the examples, and remove the rows that ask the same question.",
        fix="drop",
        applies=_has("suite"),
    ),
    Check(
        name="empty_turns",
        title="Empty turns",
        severity="warning",
        find=_holds("empty_turn"),
        why="A turn or a whole prompt is blank, often because its text was lost in conversion.",
        advice="Repair or drop the rows.",
        fix="drop",
    ),
    Check(
        name="dialogue_markers",
        title="Speaker names inside turns",
        severity="warning",
        find=_holds("dialogue_markers"),
        why="A line inside a turn starts with Human:, Assistant: or a similar marker, so the "
        "turn may hold a second dialogue.",
        advice="Remove the text that follows the marker, or the marker itself where it starts the "
        "turn.",
    ),
    Check(
        name="bad_characters",
        title="Broken characters",
        severity="warning",
        find=_holds("bad_characters"),
        why="The text has control characters, replacement characters (U+FFFD), or UTF-8 decoded "
        "as Latin-1.",
        advice="Decode the source again as UTF-8, and remove control characters.",
        fix="repair",
    ),
    Check(
        name="over_length",
        title="Over the maximum length",
        severity="warning",
        find=over_length,
        why="Training drops or truncates rows with a conversation over this length.",
        advice="Raise the maximum length, or accept the loss of these rows.",
    ),
    Check(
        name="mixed_scripts",
        title="Responses in different scripts",
        severity="warning",
        find=_holds("mixed_scripts"),
        why="The label may reflect the language and not the quality of the answer.",
        advice="Check the examples.",
    ),
    Check(
        name="plain_text",
        title="Plain text beside a chat template",
        severity="info",
        find=_holds("plain"),
        why="Training uses plain text as it is, without the tokenizer's chat template.",
        advice="Set data.as_chat: true to convert the text into chat turns, or data.as_chat: false "
        "to keep it.",
        applies=lambda evidence: evidence.functions.tokens.has_template,
    ),
    Check(
        name="more_than_text",
        title="Messages with more than text",
        severity="info",
        find=_holds("more_than_text"),
        why="Not every chat template renders tools, tool calls, tool results and reasoning. "
        "Training and scoring skip rows that are not rendered in full.",
        advice="Name the base model with --tokenizer to check what its chat template renders.",
        applies=lambda evidence: not _renders(evidence),
    ),
    Check(
        name="ties",
        title="Ties",
        severity="info",
        find=_reason(reasons.TIE),
        why="All responses of the row have the same grade, so training with this objective skips "
        "the row.",
        advice="Train with loss.kind davidson or rao_kupper, which learn from ties, or drop the "
        "rows.",
    ),
    Check(
        name="nothing_compared",
        title="Nothing to compare",
        severity="info",
        find=_reason(reasons.SINGLE_RESPONSE, reasons.UNLABELLED),
        why="The row has a single response or no label, so training with this objective skips it.",
        advice="Train with loss.kind mse, huber, bce or ordinal if it has a rating, or with "
        "outputs if it has attributes. Otherwise add the missing responses or labels.",
    ),
    Check(
        name="several_votes",
        title="Pairs labelled more than once",
        severity="info",
        find=several_votes,
        why="The agreement between annotators bounds the accuracy of any model on these labels.",
        advice="Compare a model's accuracy with this agreement, not with 100%.",
    ),
)
"""All checks; a row is dropped for the first one that flags it."""
