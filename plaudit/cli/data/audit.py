"""``plaudit data audit DATA…``: look over preference data, and write a cleaned copy.

The audit belongs to the stage ``data``; tokens, scripts and baselines are lent to it here.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli import options
from plaudit.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

    from plaudit.data.audit.rows import Part, Progress
    from plaudit.data.audit.run import Audit
    from plaudit.data.audit.tools import Counting, Tools
    from plaudit.recipe.schema import Source

MAX_LENGTH = 2048


def audit(
    data: Annotated[list[str], typer.Argument(help="Files, folders or Hub ids to look over.")],
    eval_: Annotated[
        list[str] | None,
        typer.Option("--eval", help="Held-out data whose prompts must not be in DATA."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PATH]",
            help="A benchmark to compare with, from the Hub or a local folder, as in plaudit eval.",
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=1, help="Tokens at which training would cut or drop a row.")
    ] = MAX_LENGTH,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Count tokens with it: a model or tokenizer folder, a Hub id, or embedded. "
            "Without it counts are estimates from bytes."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write audit.json and audit.html into this new folder.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a cleaned copy of DATA, and a ledger beside it."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if there is an error.")
    ] = False,
    format_: options.Format = None,
    columns: options.Columns = None,
    json: Annotated[bool, typer.Option("--json", help="Print audit.json on stdout.")] = False,
) -> None:
    """Look over preference data: duplicates, contradictions, leaks, lengths, broken turns."""
    from plaudit.cli.data.audit_screen import progress, show_audit
    from plaudit.cli.printing import quiet_console
    from plaudit.data.audit.fix import refuse_fix
    from plaudit.data.audit.run import audit as run
    from plaudit.data.sources.read import resolve
    from plaudit.recipe.schema import Source
    from plaudit.report.audit import audit_files
    from plaudit.storage.atomic import check_new_folder, write_folder

    mapped = options.parse_columns(columns)
    sources = [resolve(Source(path=path, format=format_, columns=mapped)) for path in data]
    if fix is not None:
        if len(sources) > 1:
            raise DataError("--fix writes one file's rows into one file; name one DATA alone.")
        refuse_fix(fix)
    if out is not None:
        check_new_folder(out)
    console = quiet_console()
    tools = tools_for(tokenizer, console)
    with progress(console) as on_progress:
        found = run(
            [*parts_of(sources, "data"), *compared_with(eval_ or (), suite or (), mapped)],
            tools,
            max_length=max_length,
            on_progress=on_progress,
        )
        if fix is not None:
            found.facts["fixed"] = _fixed(sources[0], fix, found, on_progress)
    show_audit(console, found.facts)
    if out is not None:
        write_folder(out, audit_files(found.facts))
        console.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)
    if json:
        print(json_module.dumps(found.facts))
    if strict and found.errors:
        raise typer.Exit(1)


def _fixed(source: Source, fix: Path, found: Audit, on_progress: Progress) -> dict[str, Any]:
    """Write the cleaned copy of what was audited; what became of its rows."""
    from plaudit.data.audit.fix import write_fixed
    from plaudit.data.sources.read import source_fingerprint

    if source_fingerprint(source) != found.facts["parts"][0]["fingerprint"]:
        raise DataError(f"{source.path} changed while it was audited; start again.")
    total = found.facts["rows"]
    cleaned = write_fixed(
        source, fix, found.verdict_N, lambda done: on_progress("writing", done, total)
    )
    return cleaned.facts()


def parts_of(sources: Sequence[Source], kind: str) -> list[Part]:
    """Files, folders and Hub ids as parts of an audit."""
    return [_part_of(source, kind) for source in sources]


def _part_of(source: Source, kind: str) -> Part:
    from plaudit.data.audit.rows import Part
    from plaudit.data.load import open_source
    from plaudit.data.sources.read import source_fingerprint, source_name

    opened = open_source(source)
    return Part(
        name=source_name(source),
        path=source.path,
        kind=kind,
        format=source.format,
        fingerprint=source_fingerprint(source),
        rows=(comparison for _, _, _, comparison in opened.rows),
        counter=opened.counter,
    )


def compared_with(
    eval_: Sequence[str], suites: Sequence[str], columns: Mapping[str, str | None]
) -> list[Part]:
    """Held-out data and benchmarks to compare with; ``columns`` holds where the data have them."""
    from plaudit.data.load import with_known_columns
    from plaudit.evaluation.suites.request import parse_request
    from plaudit.recipe.schema import Source

    requests = [parse_request(asked) for asked in suites]
    held_out = [with_known_columns(Source(path=path, columns=dict(columns))) for path in eval_]
    return parts_of(held_out, "eval") + [_suite_part(request) for request in requests]


def _suite_part(request: Any) -> Part:
    from plaudit.data.audit.rows import Part
    from plaudit.evaluation.suites.run import read_suite
    from plaudit.types import Comparison

    items, files = read_suite(request)
    return Part(
        name=request.suite.name,
        path=str(request.path or request.suite.name),
        kind="suite",
        format=None,
        fingerprint=", ".join(file["fingerprint"] for file in files),
        rows=[
            Comparison(
                id=item.id,
                prompt=item.prompt,
                responses=item.responses,
                grades=item.grades,
                group=item.group,
                source=request.suite.name,
                where=f"{request.suite.name}:{item.id}",
            )
            for item in items
        ],
    )


# --- what other stages know ---------------------------------------------------------------------


def tools_for(tokenizer: str | None, console: Console) -> Tools:
    """The functions of other stages that the audit borrows.

    Raises:
        ModelError: there is no such tokenizer.
    """
    from plaudit.data.audit.tools import Tools
    from plaudit.evaluation.analysis.baselines import bag_of_words, response_text
    from plaudit.evaluation.analysis.features import letters_by_script
    from plaudit.evaluation.metrics import pairwise

    def judge(delta_P: Any, group_P: Any) -> dict[str, Any]:
        pairs = len(delta_P)
        interval = pairwise.share_interval(pairwise.pair_credits(delta_P), group_P)
        return {
            "accuracy": pairwise.accuracy_half_ties(delta_P) if pairs else None,
            "accuracy_ci95": interval.shown,
            "accuracy_ci95_method": interval.method,
            "ties": pairwise.ties(delta_P),
            "pairs": pairs,
        }

    if tokenizer is None:
        counting = estimate(response_text)
    else:
        with console.status("loading the tokenizer"):
            counting = count_with(tokenizer)
    return Tools(
        text=response_text,
        scripts=letters_by_script,
        judge=judge,
        bag_of_words=bag_of_words,
        counting=counting,
    )


def estimate(text: Any) -> Counting:
    """Four bytes of UTF-8 a token: near for English and for Chinese, and an estimate for all."""
    import numpy as np

    from plaudit.data.audit.tools import Counting, Size
    from plaudit.planning.lengths import CHARACTERS_PER_TOKEN

    def common(one: bytes, other: bytes) -> int:
        length = min(len(one), len(other))
        ours, theirs = (np.frombuffer(part, np.uint8, length) for part in (one, other))
        differs = np.flatnonzero(ours != theirs)
        return int(differs[0]) if len(differs) else length

    def measure(comparisons: Any) -> list[Size]:
        found = []
        for comparison in comparisons:
            prompt = len(text(comparison.prompt).encode("utf-8", "surrogatepass"))
            responses = [
                text(response).encode("utf-8", "surrogatepass") for response in comparison.responses
            ]
            shared = [
                prompt + common(responses[one], responses[other])
                for one, other in graded_couples(comparison.grades)
                if responses[one] != responses[other]
            ]
            longest = prompt + max(map(len, responses))
            found.append(
                Size(
                    longest=-(-longest // CHARACTERS_PER_TOKEN),
                    shared=max(shared, default=0) // CHARACTERS_PER_TOKEN,
                )
            )
        return found

    how = f"estimated, {CHARACTERS_PER_TOKEN} bytes of text a token"
    return Counting(measure=measure, how=how, exact=False, renders=False)


def count_with(name: str) -> Counting:
    """Tokens as training would see them: chat template, special tokens and all.

    Raises:
        ModelError: there is no such tokenizer.
    """
    from plaudit import embedded
    from plaudit.data.audit.tools import Counting, Size
    from plaudit.model.load import load_tokenizer
    from plaudit.tokens.encode import Encoder, common_prefix, encode
    from plaudit.types import Refused, TokenTree

    path = str(embedded.base_path()) if name == embedded.NAME else name
    encoder = Encoder(
        tokenizer=load_tokenizer(path, revision=None, trust_remote_code=False, pad_token=None),
        max_length=1 << 40,
    )

    def size(tree: TokenTree) -> Size:
        shared = [
            len(tree.prefix) + common_prefix([tree.branches[one], tree.branches[other]])
            for one, other in graded_couples(tree.grades)
            if tree.branches[one].tobytes() != tree.branches[other].tobytes()
        ]
        return Size(longest=max(tree.lengths), shared=max(shared, default=0))

    def measure(comparisons: Any) -> list[Size | Refused]:
        outcomes = encode(encoder, comparisons)
        return [size(o) if isinstance(o, TokenTree) else o for o in outcomes]

    # The embedded base's tokenizer is small: another model's counts differ.
    stands_in = ", which cuts finer than larger ones" if name == embedded.NAME else ""
    return Counting(
        measure=measure,
        how=f"counted by the tokenizer {name}{stands_in}",
        exact=name != embedded.NAME,
        renders=True,
        has_template=encoder.has_template,
    )


def graded_couples(grades: Sequence[float]) -> list[tuple[int, int]]:
    """Numbers of responses with different grades, two by two."""
    return [
        (one, other)
        for other in range(len(grades))
        for one in range(other)
        if grades[one] != grades[other]
    ]
