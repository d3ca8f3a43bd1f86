"""The audit of preference data, with tokens, baselines and benchmark suites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from plaudit import embedded
from plaudit.data.audit.fix import check_cleaned, write_cleaned
from plaudit.data.audit.measure import (
    Array,
    BaselineAccuracy,
    Functions,
    Kind,
    OpenPart,
    Part,
    Progress,
    TokenCount,
    TokenCounter,
)
from plaudit.data.audit.run import Audit, audit
from plaudit.data.load import open_source, with_known_columns
from plaudit.data.reasons import learned_labels
from plaudit.data.sources.read import resolve, source_fingerprint, source_name
from plaudit.errors import DataError
from plaudit.evaluation.analysis.features import letters_by_script, response_text
from plaudit.evaluation.analysis.surface import bag_of_words, score_differences
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.suites.run import SuiteRequest, parse_request
from plaudit.planning.estimate import CHARACTERS_PER_TOKEN
from plaudit.recipe.schema import Source
from plaudit.types import Comparison, FloatArray, Skipped, TokenTree


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """What to audit, and what to compare it with.

    ``data`` and ``eval_data`` are files, folders and Hub ids, ``suites`` are ``NAME`` or
    ``NAME:PATH``. ``format`` and ``columns`` are those of ``data``; ``eval_data`` may have the same
    columns. ``tokenizer`` is a folder, a Hub id or ``embedded``; without one, tokens are estimated
    from bytes. ``fix`` is where to write a cleaned copy of ``data``. ``loss`` is the objective that
    decides which rows can be trained on.
    """

    data: Sequence[str]
    eval_data: Sequence[str] = ()
    suites: Sequence[str] = ()
    loss: str = "bradley_terry"
    max_length: int = 2048
    tokenizer: str | None = None
    fix: Path | None = None
    format: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)


def audit_data(
    options: AuditOptions, *, on_progress: Progress = lambda task, done, total: None
) -> Audit:
    """Audit preference data, and write the cleaned copy where one is asked for.

    Raises:
        DataError: a source cannot be read, or ``loss`` is no objective.
        ModelError: there is no such tokenizer.
        OutputError: the cleaned copy already exists, or cannot be written.
    """
    learned_labels(options.loss)
    columns = dict(options.columns)
    sources = [
        resolve(Source(path=path, format=options.format, columns=columns)) for path in options.data
    ]
    if options.fix is not None:
        if len(sources) > 1:
            raise DataError("--fix writes a cleaned copy of one file; pass a single DATA argument.")
        check_cleaned(options.fix)
    held_out = [
        with_known_columns(Source(path=path, columns=columns)) for path in options.eval_data
    ]
    requests = [parse_request(suite) for suite in options.suites]
    result = audit(
        [
            *(_part(source, "data") for source in sources),
            *(_part(source, "eval") for source in held_out),
            *(_suite_part(request) for request in requests),
        ],
        functions(options.tokenizer),
        max_length=options.max_length,
        loss=options.loss,
        on_progress=on_progress,
    )
    if options.fix is None:
        return result
    (source,), rows = sources, result.report.rows
    if source_fingerprint(source) != result.report.parts[0].fingerprint:
        raise DataError(f"{source.path} changed while it was audited; run the command again.")
    cleaned = write_cleaned(
        source,
        options.fix,
        result.drop_N,
        lambda done: on_progress("writing", done, rows),
        loss=options.loss,
    )
    return replace(result, report=replace(result.report, cleaned=cleaned))


def _part(source: Source, kind: Kind) -> OpenPart:
    opened = open_source(source)
    part = Part(
        name=source_name(source),
        path=source.path,
        kind=kind,
        format=source.format,
        fingerprint=source_fingerprint(source),
    )
    comparisons = (comparison for _, _, _, comparison in opened.rows)
    return OpenPart(part=part, comparisons=comparisons, counter=opened.counter)


def _suite_part(request: SuiteRequest) -> OpenPart:
    # Loads torch, which an audit without a suite does not need.
    from plaudit.evaluation.suites.run import read_suite

    items, files = read_suite(request)
    name = request.suite.name
    part = Part(
        name=name,
        path=str(request.path or name),
        kind="suite",
        format=None,
        fingerprint=", ".join(file.fingerprint for file in files),
    )
    comparisons = [replace(item, source=name, where=f"{name}:{item.id}") for item in items]
    return OpenPart(part=part, comparisons=comparisons)


# --- functions of other stages --------------------------------------------------------------------


def functions(tokenizer: str | None) -> Functions:
    """What the audit needs of tokens and evaluation.

    Raises:
        ModelError: there is no such tokenizer.
    """
    return Functions(
        text=response_text,
        scripts=letters_by_script,
        accuracy=_accuracy,
        bag_of_words=lambda train, held_out: score_differences(bag_of_words(train), held_out),
        tokens=estimated_tokens() if tokenizer is None else tokens_by(tokenizer),
    )


def _accuracy(delta_P: FloatArray, group_P: Array) -> BaselineAccuracy:
    interval = pairwise.share_interval(pairwise.pair_credits(delta_P), group_P)
    return BaselineAccuracy(
        accuracy=pairwise.accuracy_half_ties(delta_P) if len(delta_P) else None,
        accuracy_ci95=interval.shown and (interval.shown.low, interval.shown.high),
        accuracy_ci95_method=interval.method,
        ties=pairwise.ties(delta_P),
        pairs=len(delta_P),
    )


def estimated_tokens() -> TokenCounter:
    """Four bytes of UTF-8 a token: an estimate that is close for English and for Chinese."""

    def common(one: bytes, other: bytes) -> int:
        length = min(len(one), len(other))
        ours, theirs = (np.frombuffer(part, np.uint8, length) for part in (one, other))
        differs = np.flatnonzero(ours != theirs)
        return int(differs[0]) if len(differs) else length

    def count(comparison: Comparison) -> TokenCount:
        prompt, *responses = (
            response_text(turns).encode("utf-8", "surrogatepass")
            for turns in (comparison.prompt, *comparison.responses)
        )
        shared = [
            len(prompt) + common(responses[one], responses[other])
            for one, other in _graded_apart(comparison.grades)
            if responses[one] != responses[other]
        ]
        longest = len(prompt) + max(map(len, responses))
        return TokenCount(
            longest=-(-longest // CHARACTERS_PER_TOKEN),
            shared=max(shared, default=0) // CHARACTERS_PER_TOKEN,
        )

    return TokenCounter(
        count=lambda comparisons: [count(comparison) for comparison in comparisons],
        method=f"estimated at {CHARACTERS_PER_TOKEN} bytes of text per token",
        exact=False,
        renders=False,
    )


def tokens_by(name: str) -> TokenCounter:
    """Tokens as training counts them, with chat template and special tokens.

    Raises:
        ModelError: there is no such tokenizer.
    """
    from plaudit.model.load import load_tokenizer
    from plaudit.tokens.encode import Encoder, common_prefix, encode

    path = str(embedded.base_path()) if name == embedded.NAME else name
    encoder = Encoder(
        tokenizer=load_tokenizer(path, revision=None, trust_remote_code=False, pad_token=None),
        max_length=1 << 40,
    )

    def count(tree: TokenTree) -> TokenCount:
        shared = [
            len(tree.prefix) + common_prefix([tree.branches[one], tree.branches[other]])
            for one, other in _graded_apart(tree.grades)
            if tree.branches[one].tobytes() != tree.branches[other].tobytes()
        ]
        return TokenCount(longest=max(tree.lengths), shared=max(shared, default=0))

    def count_all(comparisons: Sequence[Comparison]) -> list[TokenCount | Skipped]:
        return [
            count(tree) if isinstance(tree, TokenTree) else tree
            for tree in encode(encoder, comparisons)
        ]

    # The embedded base's tokenizer has a small vocabulary: another model's counts are lower.
    exact = name != embedded.NAME
    remark = "" if exact else ", whose vocabulary is small, so other tokenizers count fewer tokens"
    return TokenCounter(
        count=count_all,
        method=f"counted by the tokenizer {name}{remark}",
        exact=exact,
        renders=True,
        has_template=encoder.has_template,
    )


def _graded_apart(grades: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Numbers of two responses with different grades."""
    for other in range(len(grades)):
        for one in range(other):
            if grades[one] != grades[other]:
                yield one, other
