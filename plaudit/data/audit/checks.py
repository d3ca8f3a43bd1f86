"""The table of checks. A check is one function from the evidence to :class:`Found`, and one row.

It gets numbers of all rows (:class:`~plaudit.data.audit.evidence.Evidence`) and returns the numbers
of the rows it complains of. What the cleaned copy does with them is said in the same row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from plaudit.data import reasons
from plaudit.data.audit import chat
from plaudit.data.audit.columns import REASONS
from plaudit.data.audit.evidence import Evidence, first_of_equals
from plaudit.data.audit.shingles import GRAM_WORDS, NEAR
from plaudit.storage.arrow import RowArray
from plaudit.types import MEDIA

Severity: TypeAlias = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a check found.

    ``rows_M`` are the rows it complains of, rising. ``like_M`` names for each the row that it
    repeats or contradicts (-1: none). ``drop_M`` are those that the cleaned copy leaves out, where
    they are not all of them. ``details`` are further facts, as JSON holds them.
    """

    rows_M: RowArray
    like_M: RowArray | None = None
    drop_M: RowArray | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check: its words for people, and what the cleaned copy does with a row it complains of.

    ``looks`` is False where there is nothing to look at (no held-out data), so that "nothing found"
    is never said of what was not looked for.
    """

    name: str
    title: str
    severity: Severity
    find: Callable[[Evidence], Found]
    why: str
    advice: str
    fix: Literal["drop", "change", "keep"] = "keep"
    looks: Callable[[Evidence], bool] = lambda evidence: True


# --- rows by themselves -------------------------------------------------------------------------


def _reason(*names: str) -> Callable[[Evidence], Found]:
    """Rows that cannot train for one of these reasons."""
    codes = [REASONS.index(name) + 1 for name in names]

    def find(evidence: Evidence) -> Found:
        return Found(rows_M=np.flatnonzero(np.isin(evidence.column("reason"), codes)))

    return find


def _problem(name: str) -> Callable[[Evidence], Found]:
    """Rows with a problem of turns and texts."""
    bit = np.uint32(1 << list(chat.PROBLEMS).index(name))

    def find(evidence: Evidence) -> Found:
        return Found(rows_M=np.flatnonzero(evidence.column("problems") & bit))

    return find


def identical_after_truncation(evidence: Evidence) -> Found:
    """Conversations that differ only behind the length at which a row would be cut."""
    shared = evidence.column("shared") >= evidence.max_length
    exact = evidence.tools.counting.exact
    rows = np.flatnonzero(shared & (evidence.column("reason") == 0))
    return Found(rows_M=rows, drop_M=rows if exact else rows[:0], details=_counted(evidence))


def over_length(evidence: Evidence) -> Found:
    """Rows with a conversation that is longer than the given length."""
    rows = np.flatnonzero(evidence.column("longest") > evidence.max_length)
    return Found(rows_M=rows, details=_counted(evidence))


def _counted(evidence: Evidence) -> dict[str, Any]:
    return {"max_length": evidence.max_length, "tokens": evidence.tools.counting.how}


def template_refused(evidence: Evidence) -> Found:
    """Rows that the chat template refuses to render."""
    media = evidence.column("reason") == REASONS.index(MEDIA) + 1
    refused = (evidence.column("refused") != 0) & (evidence.column("unrendered") == 0) & ~media
    return Found(rows_M=np.flatnonzero(refused))


def not_rendered(evidence: Evidence) -> Found:
    """Rows with a field or a turn that the chat template leaves out; how many by field."""
    code_N = evidence.column("unrendered")
    rows = np.flatnonzero(code_N)
    counts = Counter(code_N[rows].tolist()).most_common()
    fields = {evidence.columns.names[code]: count for code, count in counts}
    return Found(rows_M=rows, details={"fields": fields})


def _renders(evidence: Evidence) -> bool:
    return evidence.tools.counting.renders


def plain_text(evidence: Evidence) -> Found:
    """Rows of plain text, where the tokenizer has a chat template."""
    return Found(rows_M=np.flatnonzero(evidence.column("plain")))


def _has_template(evidence: Evidence) -> bool:
    return evidence.tools.counting.has_template


def mixed_scripts(evidence: Evidence) -> Found:
    """Responses of one row in different scripts."""
    return Found(rows_M=np.flatnonzero(evidence.column("mixed_scripts")))


def no_prompt(evidence: Evidence) -> Found:
    """All rows of a file in which not one row has a prompt."""
    rows = [
        np.arange(part.start, part.end)
        for part in evidence.rows.parts
        if part.kind == "data" and part.unread.without_prompt == part.unread.rows
    ]
    return Found(rows_M=np.concatenate([np.zeros(0, np.int64), *rows]))


# --- rows against each other --------------------------------------------------------------------


def exact_duplicates(evidence: Evidence) -> Found:
    """Rows with the prompt, the responses and the grades of an earlier row."""
    first_N = first_of_equals(evidence.column("row_key"))
    rows = np.flatnonzero(first_N != np.arange(evidence.data))
    return Found(rows_M=rows, like_M=first_N[rows])


def near_duplicates(evidence: Evidence) -> Found:
    """Rows whose prompt and responses are nearly those of an earlier row."""
    near = evidence.near_rows
    details = {"jaccard": NEAR, "candidates": near.candidates, "checked": near.checked}
    return Found(rows_M=near.row_M, like_M=near.like_M, details=details)


def opposite_labels(evidence: Evidence) -> Found:
    """Rows that say of the same two responses to the same prompt what another row denies.

    The cleaned copy keeps what the majority says, and none of them where there is no majority.
    """
    judgements, votes = evidence.judgements, evidence.votes
    against = (votes.for_V > 0) & (votes.against_V > 0)
    sizes = np.diff(np.concatenate([votes.start_V, [len(judgements)]]))
    vote_J = np.repeat(np.arange(len(sizes)), sizes)
    places = np.flatnonzero(against[vote_J] & (judgements.sign_J[votes.order_J] != 0))
    balance = np.sign(votes.for_V - votes.against_V)[vote_J[places]]
    judged = votes.order_J[places]
    lost = judgements.sign_J[judged] != balance
    rows_M = judgements.row_J[judged]
    # The other side of each: the first judgement of the pair that says the opposite.
    other = _first_opposite(vote_J[places], judgements.sign_J[judged], rows_M)
    order = np.argsort(rows_M, kind="stable")
    rows, first = np.unique(rows_M[order], return_index=True)
    return Found(
        rows_M=rows,
        like_M=other[order][first],
        drop_M=np.unique(rows_M[lost]),
        details={"pairs": int(against.sum())},
    )


def _first_opposite(vote_M: RowArray, sign_M: Any, row_M: RowArray) -> RowArray:
    first: dict[tuple[int, int], int] = {}
    keys = list(zip(vote_M.tolist(), sign_M.tolist(), strict=True))
    for key, row in zip(keys, row_M.tolist(), strict=True):
        first[key] = min(row, first.get(key, row))
    return np.array([first[vote, -sign] for vote, sign in keys], np.int64)


def several_votes(evidence: Evidence) -> Found:
    """Pairs that were judged more than once, and how far the judgements agree."""
    votes, judgements = evidence.votes, evidence.judgements
    count_V = votes.counts
    several = count_V > 1
    sizes = np.diff(np.concatenate([votes.start_V, [len(judgements)]]))
    rows = np.unique(judgements.row_J[votes.order_J[np.repeat(several, sizes)]])
    decided_V = _couples(votes.for_V) + _couples(votes.against_V)
    agreeing = (decided_V + _couples(votes.ties_V))[several].sum()
    couples = _couples(count_V)[several].sum()
    untied = several & (votes.ties_V == 0)
    same = decided_V[untied].sum()
    untied_couples = _couples(count_V)[untied].sum()
    return Found(
        rows_M=rows,
        details={
            "pairs": int(several.sum()),
            "judgements": int(count_V[several].sum()),
            "unanimous": int((np.maximum(votes.for_V, votes.against_V) == count_V)[several].sum()),
            "agreement": float(agreeing / couples) if couples else None,
            # Which response is called the first is arbitrary, so chance agreement is a half.
            "kappa": float(2 * same / untied_couples - 1) if untied_couples else None,
        },
    )


def _couples(count_V: RowArray) -> RowArray:
    return count_V * (count_V - 1) // 2


# --- rows against other sets --------------------------------------------------------------------


def split_column_leak(evidence: Evidence) -> Found:
    """Rows whose prompt stands under two values of the column ``split``.

    All but those of the largest part: taking these out parts the prompts.
    """
    split_N, group_N = evidence.column("split"), evidence.column("group")
    named = np.flatnonzero(split_N)
    if not len(named):
        return Found(rows_M=named)
    values, counts = np.unique(split_N[named], return_counts=True)
    largest = values[np.argmax(counts)]
    _, group_U = np.unique(group_N[named], return_inverse=True)
    low = np.full(group_U.max() + 1, np.iinfo(np.uint64).max)
    high = np.zeros(group_U.max() + 1, np.uint64)
    np.minimum.at(low, group_U, split_N[named])
    np.maximum.at(high, group_U, split_N[named])
    leaking = low[group_U] != high[group_U]
    rows = named[leaking]
    return Found(
        rows_M=rows,
        drop_M=rows[split_N[rows] == largest],
        details={"prompts": len(np.unique(group_U[leaking]))},
    )


def _has_split(evidence: Evidence) -> bool:
    return len(set(evidence.column("split").tolist()) - {0}) > 1


def _shared_prompts(kind: str) -> Callable[[Evidence], Found]:
    """Rows whose prompt is that of a row of another set, case and white space aside."""

    def find(evidence: Evidence) -> Found:
        other_rows, other_keys = evidence.other("prompt_key", kind)
        keys = evidence.column("prompt_key")
        order = np.argsort(other_keys, kind="stable")
        sorted_keys = other_keys[order]
        rows = np.flatnonzero((keys != 0) & np.isin(keys, other_keys))
        like = other_rows[order[np.searchsorted(sorted_keys, keys[rows])]]
        return Found(rows_M=rows, like_M=like, details={"prompts": len(np.unique(keys[rows]))})

    return find


def _near_prompts(kind: str) -> Callable[[Evidence], Found]:
    """Rows whose prompt is nearly that of another set, or that hold most of such a prompt."""

    def find(evidence: Evidence) -> Found:
        keys = evidence.column("prompt_key")
        _, other_keys = evidence.other("prompt_key", kind)
        near = evidence.near_prompts
        assert near is not None, "looked for where there is nothing to compare with"
        ours = evidence.kind_of(near.like_M) == kind
        like_N = np.full(evidence.data, -1, np.int64)
        copied_N = evidence.column("copied_from")
        copied = np.flatnonzero(copied_N >= 0)
        copied = copied[evidence.kind_of(copied_N[copied]) == kind]
        like_N[copied] = copied_N[copied]
        like_N[near.row_M[ours]] = near.like_M[ours]
        rows = np.flatnonzero((like_N >= 0) & ~((keys != 0) & np.isin(keys, other_keys)))
        details = {
            "jaccard": NEAR,
            "run_of_words": GRAM_WORDS,
            "candidates": near.candidates,
            "checked": near.checked,
        }
        return Found(rows_M=rows, like_M=like_N[rows], details=details)

    return find


def _has(kind: str) -> Callable[[Evidence], bool]:
    return lambda evidence: any(part.kind == kind for part in evidence.rows.parts)


CHECKS: Final[tuple[Check, ...]] = (
    Check(
        name="empty_responses",
        title="Empty responses",
        severity="error",
        find=_reason(reasons.EMPTY_RESPONSE),
        why="A response says nothing, so its label is about a failure and not about quality.",
        advice="Drop the rows, or find out where the text was lost.",
        fix="drop",
    ),
    Check(
        name="identical_responses",
        title="Identical responses",
        severity="error",
        find=_reason(reasons.IDENTICAL_RESPONSES),
        why="Both responses are the same, so the label is a coin.",
        advice="Drop the rows.",
        fix="drop",
    ),
    Check(
        name="prompt_mismatch",
        title="Responses to different prompts",
        severity="error",
        find=_reason(reasons.PROMPT_MISMATCH),
        why="The two sides do not answer the same prompt, so they cannot be compared.",
        advice="Drop the rows, or repair the prompts.",
        fix="drop",
    ),
    Check(
        name="no_prompt",
        title="No prompt in 100% of rows",
        severity="error",
        find=no_prompt,
        why="Not one row of the file has a prompt, so responses are judged without the question.",
        advice="If a column holds the prompt, name it: --columns prompt=COLUMN. Otherwise keep the "
        "rows as they are.",
    ),
    Check(
        name="opposite_labels",
        title="The same pair with opposite labels",
        severity="error",
        find=opposite_labels,
        why="Rows contradict each other: the same two responses, the winner swapped.",
        advice="Keep what the majority says; without one, drop all of the pair's rows.",
        fix="drop",
    ),
    Check(
        name="identical_after_truncation",
        title="Identical after truncation",
        severity="error",
        find=identical_after_truncation,
        why="Cut at the given length the responses are the same, so nothing can be learned.",
        advice="Raise the length, drop the rows, or cut the prompt in front instead.",
        fix="drop",
    ),
    Check(
        name="shared_with_eval",
        title="Prompts shared with --eval data",
        severity="error",
        find=_shared_prompts("eval"),
        why="A prompt on both sides makes the held-out accuracy too good.",
        advice="Take these rows out of the training side, or split by prompt.",
        fix="drop",
        looks=_has("eval"),
    ),
    Check(
        name="shared_with_suite",
        title="Prompts shared with a benchmark",
        severity="error",
        find=_shared_prompts("suite"),
        why="Training on a benchmark's prompts makes its number worthless.",
        advice="Take these rows out.",
        fix="drop",
        looks=_has("suite"),
    ),
    Check(
        name="split_column_leak",
        title="Prompts under two values of column split",
        severity="error",
        find=split_column_leak,
        why="The file's own split puts a prompt on both sides.",
        advice="Split by prompt, or take the rows out of the larger part.",
        fix="drop",
        looks=_has_split,
    ),
    Check(
        name="role_order",
        title="Roles out of order",
        severity="error",
        find=_problem("role_order"),
        why="Chat templates refuse or garble such turns: a late system turn, two turns of one side "
        "in a row, a response that is not the assistant's.",
        advice="Put the turns in order, or drop the rows.",
        fix="drop",
    ),
    Check(
        name="template_refused",
        title="Refused by the chat template",
        severity="error",
        find=template_refused,
        why="The tokenizer's chat template cannot render the row.",
        advice="Put the turns in order, or use another template.",
        fix="drop",
        looks=_renders,
    ),
    Check(
        name="not_rendered",
        title="Not rendered by the chat template",
        severity="error",
        find=not_rendered,
        why="A field or a turn (tool calls, tools, reasoning, a tool's answer) leaves no trace in "
        "the rendered text. Training and scoring skip the row.",
        advice="Use a chat template that renders it, or put it into the text of a turn.",
        fix="drop",
        looks=_renders,
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
        find=_problem("special_tokens"),
        why="Control tokens inside a text are read as control: a turn ends where none does.",
        advice="Take them out of the texts.",
        fix="change",
    ),
    Check(
        name="exact_duplicates",
        title="Exact duplicates",
        severity="warning",
        find=exact_duplicates,
        why="Repeated rows count several times in training and narrow intervals without cause.",
        advice="Keep the first of each.",
        fix="drop",
    ),
    Check(
        name="near_duplicates",
        title="Near duplicates",
        severity="warning",
        find=near_duplicates,
        why="Prompt and responses differ from another row's in few words or none.",
        advice="Look at the examples: questions that differ in one number are not repeats.",
    ),
    Check(
        name="near_eval",
        title="Prompts nearly those of --eval data",
        severity="warning",
        find=_near_prompts("eval"),
        why="A held-out prompt with a few words changed, or most of it inside a row, still leaks.",
        advice="Look at the examples; take the rows out where they are the same question.",
        fix="drop",
        looks=_has("eval"),
    ),
    Check(
        name="near_suite",
        title="Prompts nearly those of a benchmark",
        severity="warning",
        find=_near_prompts("suite"),
        why="A benchmark's prompt with few words changed, or most of it inside a row, still leaks.",
        advice="Look at the examples; take the rows out where they are the same question.",
        fix="drop",
        looks=_has("suite"),
    ),
    Check(
        name="empty_turns",
        title="Empty turns",
        severity="warning",
        find=_problem("empty_turn"),
        why="A turn or a whole prompt says nothing; often a text that was lost on the way.",
        advice="Repair or drop the rows.",
        fix="drop",
    ),
    Check(
        name="dialogue_markers",
        title="Speaker names inside turns",
        severity="warning",
        find=_problem("dialogue_markers"),
        why="A line begins with Human:, Assistant: or the like: a second dialogue inside a turn.",
        advice="Cut what a model wrote for the other side; take off a leading name.",
    ),
    Check(
        name="bad_characters",
        title="Broken characters",
        severity="warning",
        find=_problem("bad_characters"),
        why="Control or replacement characters, or UTF-8 that was once read as Latin-1.",
        advice="Read the source again as UTF-8; take out control characters.",
        fix="change",
    ),
    Check(
        name="over_length",
        title="Over the given length",
        severity="warning",
        find=over_length,
        why="Training drops or cuts rows with a conversation above this length.",
        advice="Raise the length, or know which rows you lose.",
    ),
    Check(
        name="mixed_scripts",
        title="Responses in different scripts",
        severity="warning",
        find=mixed_scripts,
        why="The label may be about the language and not about the answer.",
        advice="Look at the examples.",
    ),
    Check(
        name="plain_text",
        title="Plain text beside a chat template",
        severity="info",
        find=plain_text,
        why="Training keeps plain text as it stands, outside the tokenizer's chat template.",
        advice="Set data.as_chat: true to train on turns, or data.as_chat: false to keep the text.",
        looks=_has_template,
    ),
    Check(
        name="more_than_text",
        title="Turns with more than text",
        severity="info",
        find=_problem("more_than_text"),
        why="Not every chat template renders tools, tool calls, tool answers and reasoning. Rows "
        "that are not rendered in full are skipped.",
        advice="Name the base with --tokenizer to see what its chat template renders.",
        looks=lambda evidence: not _renders(evidence),
    ),
    Check(
        name="ties",
        title="Ties",
        severity="info",
        find=_reason(reasons.TIE),
        why="All responses of the row have one grade; training leaves the row out.",
        advice="Keep them for calibration, or drop them.",
    ),
    Check(
        name="nothing_compared",
        title="Nothing compared",
        severity="info",
        find=_reason(reasons.SINGLE_RESPONSE, reasons.UNLABELLED),
        why="One response only, or no label: training leaves the row out.",
        advice="Add the missing responses or labels.",
    ),
    Check(
        name="several_votes",
        title="Pairs judged more than once",
        severity="info",
        find=several_votes,
        why="How far people agree bounds the accuracy that any model can reach on these labels.",
        advice="Compare a model's accuracy with this agreement, not with 100%.",
    ),
)
"""All checks, in the order in which a row's first complaint is looked for."""

BY_NAME: Final = {check.name: check for check in CHECKS}
