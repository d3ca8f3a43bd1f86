"""The audit from rows to facts; it reads top to bottom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from plaudit import __version__
from plaudit.data.audit import statistics
from plaudit.data.audit.checks import BY_NAME, CHECKS, Check, Found
from plaudit.data.audit.columns import REASONS, Columns, measure_columns
from plaudit.data.audit.evidence import Evidence, first_of_equals
from plaudit.data.audit.judgements import count_votes, judge_pairs
from plaudit.data.audit.near import SAMPLED_PROMPTS, Texts, near_prompts, near_rows
from plaudit.data.audit.overlap import EvalGrams
from plaudit.data.audit.rows import (
    AuditRows,
    Part,
    Progress,
    StoredPart,
    store_rows,
    work_folder,
)
from plaudit.data.audit.shingles import NEAR, evenly_spaced
from plaudit.data.audit.tools import Tools
from plaudit.errors import DataError
from plaudit.storage.arrow import RowArray

FORMAT: Final = 1
EXAMPLES: Final = 5
_BLANK: Final = REASONS.index("empty_response") + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """``facts`` is the content of ``audit.json``, ``found`` every row that a check complains of.

    ``verdict_N`` is what the cleaned copy does: per row of the data the number (from 1) of the
    check in :data:`CHECKS` for which the row is dropped, 0 for a row that stays.
    """

    facts: dict[str, Any]
    found: Mapping[str, Found]
    verdict_N: npt.NDArray[np.uint8]

    @property
    def errors(self) -> list[str]:
        """Names of checks of severity error that found something."""
        return [
            finding["check"]
            for finding in self.facts["findings"]
            if finding["severity"] == "error" and finding["rows"]
        ]


def audit(
    parts: Sequence[Part],
    tools: Tools,
    *,
    max_length: int,
    on_progress: Progress = lambda doing, done, total: None,
) -> Audit:
    """Look over the parts of kind ``data``, and compare them with the others.

    Raises:
        DataError: a row cannot be read, or there is nothing to look over.
        OutputError: the disk.
    """
    with work_folder() as name:
        folder = Path(name)
        rows = store_rows(folder, parts, on_progress)
        if not rows.data:
            raise DataError("there is nothing to look over; name a file of comparisons.")
        evidence = gather(rows, folder, tools, max_length, on_progress)
        found = {check.name: check.find(evidence) for check in CHECKS if check.looks(evidence)}
        return Audit(
            facts={
                "format": FORMAT,
                "plaudit_version": __version__,
                "rows": rows.data,
                "settings": _settings(evidence),
                "parts": [_part(part) for part in rows.parts],
                "findings": [_finding(check, found.get(check.name), evidence) for check in CHECKS],
                "usable": _usable(evidence),
                "lengths": statistics.lengths(evidence),
                "over_lengths": statistics.over_lengths(evidence),
                "scripts": statistics.scripts(evidence),
                "languages": statistics.languages(evidence),
                "shape": statistics.shape(evidence),
                "surface": statistics.surface(evidence, on_progress),
            },
            found=found,
            verdict_N=_verdicts(found, rows.data),
        )


def gather(
    rows: AuditRows, folder: Path, tools: Tools, max_length: int, on_progress: Progress
) -> Evidence:
    """Measure the rows, and look for pairs of them that are alike."""
    others = evenly_spaced(rows.data, SAMPLED_PROMPTS)
    held_out = EvalGrams(
        ((row, tools.text(rows[row].prompt)) for row in range(rows.data, len(rows))),
        (tools.text(rows[row].prompt) for row in others.tolist()),
    )
    columns = measure_columns(rows, folder, tools, held_out, on_progress)
    texts = Texts(rows, tools)
    judgements = judge_pairs(columns, rows.data)
    return Evidence(
        rows=rows,
        columns=columns,
        judgements=judgements,
        votes=count_votes(judgements),
        near_rows=near_rows(columns, _different(columns, rows.data), texts, on_progress),
        near_prompts=near_prompts(
            columns, _prompts_once(columns, rows.data), rows.data, texts, on_progress
        )
        if len(rows) > rows.data
        else None,
        texts=texts,
        tools=tools,
        max_length=max_length,
    )


def _different(columns: Columns, data: int) -> RowArray:
    """Rows that say something, the first of each set of equal pairs."""
    key_N = columns.of_rows["pair_key"][:data]
    first = first_of_equals(key_N) == np.arange(data)
    return np.flatnonzero(first & (columns.of_rows["reason"][:data] != _BLANK))


def _prompts_once(columns: Columns, data: int) -> RowArray:
    """All rows with a prompt; of those to compare with, the first of each prompt."""
    key_N = columns.of_rows["prompt_key"]
    keep = key_N != 0
    first = first_of_equals(key_N[data:]) == np.arange(len(key_N) - data)
    keep[data:] &= first
    return np.flatnonzero(keep)


def _settings(evidence: Evidence) -> dict[str, Any]:
    counting = evidence.tools.counting
    return {
        "max_length": evidence.max_length,
        "tokens": counting.how,
        "tokens_exact": counting.exact,
        "near": NEAR,
    }


def _part(part: StoredPart) -> dict[str, Any]:
    return {
        "name": part.name,
        "path": part.path,
        "kind": part.kind,
        "format": part.format,
        "fingerprint": part.fingerprint,
        "rows": part.count,
        "unread": asdict(part.unread),
        "not_read": part.unread.sentence(part.name),
    }


def _usable(evidence: Evidence) -> dict[str, Any]:
    """Rows that can train, and those that cannot by reason: all rows, each once."""
    reason_N, refused_N = evidence.column("reason"), evidence.column("refused")
    counts = Counter(reason_N[reason_N != 0].tolist())
    others = {REASONS[code - 1]: count for code, count in sorted(counts.items())}
    refused = Counter(refused_N[(reason_N == 0) & (refused_N != 0)].tolist())
    others |= {evidence.columns.names[code]: count for code, count in refused.items()}
    return {"rows": evidence.data - sum(others.values()), "others": others}


def _finding(check: Check, found: Found | None, evidence: Evidence) -> dict[str, Any]:
    """One entry of ``findings``; ``rows`` is None where there was nothing to look at."""
    words = {
        "check": check.name,
        "title": check.title,
        "severity": check.severity,
        "why": check.why,
        "advice": check.advice,
        "fix": check.fix,
    }
    if found is None:
        return {**words, "rows": None, "share": None, "examples": [], "details": {}}
    count = len(found.rows_M)
    like_M = np.full(count, -1) if found.like_M is None else found.like_M
    examples = [
        {
            "where": evidence.rows.where(row),
            "like": None if like < 0 else evidence.rows.where(like),
        }
        for row, like in zip(
            found.rows_M[:EXAMPLES].tolist(), like_M[:EXAMPLES].tolist(), strict=True
        )
    ]
    return {
        **words,
        "rows": count,
        "share": count / evidence.data,
        "examples": examples,
        "details": dict(found.details),
    }


def _verdicts(found: dict[str, Found], data: int) -> npt.NDArray[np.uint8]:
    """For what each row is dropped: the first check of the table that drops it.

    One of a set of exact duplicates stays where the row that they repeat goes.
    """
    verdict_N = np.zeros(data, np.uint8)
    for number, check in enumerate(CHECKS, start=1):
        if check.fix != "drop" or check.name not in found:
            continue
        hers = found[check.name]
        if check is BY_NAME["exact_duplicates"]:
            rows_M = _but_one_of_each(hers, verdict_N)
        else:
            rows_M = hers.rows_M if hers.drop_M is None else hers.drop_M
        verdict_N[rows_M[verdict_N[rows_M] == 0]] = number
    return verdict_N


def _but_one_of_each(repeats: Found, verdict_N: npt.NDArray[np.uint8]) -> RowArray:
    """Repeated rows without the one of each set that stays where the set's first row goes."""
    assert repeats.like_M is not None, "an exact duplicate is one of a row"
    staying: dict[int, int] = {}
    for row, first in zip(repeats.rows_M.tolist(), repeats.like_M.tolist(), strict=True):
        if verdict_N[first] and not verdict_N[row]:
            staying.setdefault(first, row)
    return np.setdiff1d(repeats.rows_M, np.array(list(staying.values()), np.int64))
