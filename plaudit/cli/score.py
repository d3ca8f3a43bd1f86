"""``plaudit score`` and ``plaudit best-of``: rewards of a file, or of one prompt's responses."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from plaudit.cli import options
from plaudit.errors import DataError
from plaudit.storage.atomic import existing_path

if TYPE_CHECKING:
    from plaudit.recipe.schema import Source
    from plaudit.score_file import ScoreColumns, ScoredFile

_COLUMN: Final = "rewards"


def score(
    model: options.Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA|PROMPT", help="File, folder, Hub id or - for stdin; or a prompt."
        ),
    ],
    responses: Annotated[
        list[str] | None, typer.Argument(metavar="[RESPONSE]...", help="Responses to the prompt.")
    ] = None,
    out: options.ScoresOut = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    column: Annotated[str, typer.Option(help="The column to add.")] = _COLUMN,
    limit: options.Limit = None,
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.CountsAsJson = False,
) -> None:
    """Score every response of a file, in its order, or responses to one prompt.

    With --out, a stopped command continues where it was when it is run again.

    A file: plaudit score runs/first pairs.jsonl --out scored.jsonl

    A prompt: plaudit score runs/first "Capital of Peru?" "Lima." "Cusco."
    """
    if responses:
        _check_inline(data, out, limit, format_, columns, None if column == _COLUMN else column)
        _score_responses(
            model, data, responses, base=base, trust_remote_code=trust_remote_code, json=json
        )
        return
    from plaudit.recipe.schema import Source
    from plaudit.score_file import ScoreColumns

    mapped = options.parse_columns(columns)
    source = Source(path=data, format=format_, columns=mapped, max_rows=limit)
    added = ScoreColumns(rewards=column)
    _score_rows(
        model, source, out, added, base=base, trust_remote_code=trust_remote_code, json=json
    )


def best_of(
    model: options.Model,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="File, folder, Hub id or - for stdin.")
    ],
    out: options.ScoresOut = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    column: Annotated[
        str, typer.Option(help="The column for the best response, counted from 0.")
    ] = "best",
    limit: options.Limit = None,
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.CountsAsJson = False,
) -> None:
    """Pick the response with the highest reward of every row; all rewards are kept beside it."""
    from plaudit.recipe.schema import Source
    from plaudit.score_file import ScoreColumns

    mapped = options.parse_columns(columns)
    source = Source(path=data, format=format_, columns=mapped, max_rows=limit)
    added = ScoreColumns(best=column)
    _score_rows(
        model, source, out, added, base=base, trust_remote_code=trust_remote_code, json=json
    )


def _check_inline(prompt: str, *file_options: object) -> None:
    """Whether several words behind the model can be a prompt and its responses.

    ``file_options`` are the values of options that only files have, None where one is not set.

    Raises:
        DataError: the first one is a file, or an option belongs to files.
    """
    path = existing_path(prompt)
    if path is not None and path.is_file():
        raise DataError(f"{prompt} is a file; score one at a time, without responses.")
    if any(option is not None for option in file_options):
        raise DataError(
            "--out, --limit, --format, --columns and --column are for files; the rewards of"
            " responses are printed, so remove these options."
        )


def _score_responses(
    model: Path,
    prompt: str,
    responses: list[str],
    *,
    base: str | None,
    trust_remote_code: bool,
    json: bool,
) -> None:
    """Print a reward and its response a line, or the rewards as JSON."""
    from plaudit.cli.main import one_line
    from plaudit.cli.printing import open_model

    _, reward_model = open_model(model, base=base, trust_remote_code=trust_remote_code)
    rewards = reward_model.score(prompt, responses)
    if json:
        print(json_module.dumps({"rewards": rewards}))
        return
    for reward, response in zip(rewards, responses, strict=True):
        print(f"{reward:.6f}\t{one_line(response)}")


def _score_rows(
    model: Path,
    source: Source,
    out: Path | None,
    columns: ScoreColumns,
    *,
    base: str | None,
    trust_remote_code: bool,
    json: bool,
) -> None:
    """Score rows into ``out`` or onto stdout, and say on stderr what became of them."""
    if out is None and json:
        raise DataError("--json prints the counts on stdout, where the rows go; add --out FILE.")
    from plaudit.cli.printing import open_model, print_lines
    from plaudit.data.load import check_source
    from plaudit.data.sources.files import row_file_ending
    from plaudit.evaluate_model import progress_bars
    from plaudit.score_file import score_file, score_to_stream
    from plaudit.storage.atomic import check_new_file

    # What is wrong is said before the model is loaded.
    if out is not None:
        row_file_ending(out)
        check_new_file(out)
    check_source(source)
    console, reward_model = open_model(model, base=base, trust_remote_code=trust_remote_code)
    if out is None:
        scored = score_to_stream(reward_model, source, sys.stdout, columns)
    else:
        with progress_bars(console) as show:
            scored = score_file(
                reward_model, source, out, columns, on_progress=partial(show, "scoring")
            )
    if json:
        print(json_module.dumps(asdict(scored)))
    print_lines(console, [scored_line(scored, out), *scored.unread.lines(source.path)])


def scored_line(scored: ScoredFile, out: Path | None) -> str:
    """What became of the rows, in one line."""
    skipped = "".join(f"; {reason} {count:,}" for reason, count in scored.skipped.items())
    resumed = f" ({scored.resumed:,} of them by an earlier call)" if scored.resumed else ""
    written = "" if out is None else f"; written to {out}"
    return f"{scored.scored:,} of {scored.rows:,} rows scored{resumed}{skipped}{written}"
