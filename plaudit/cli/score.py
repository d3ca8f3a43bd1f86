"""``plaudit score`` and ``plaudit best-of``: rewards of a file, or of one prompt's responses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from plaudit.cli import options
from plaudit.cli.help import OUTPUT
from plaudit.errors import DataError
from plaudit.evaluation.numbers import counted
from plaudit.storage.atomic import existing_path
from plaudit.types import RewardDetails

if TYPE_CHECKING:
    from rich.console import Console

    from plaudit.recipe.schema import Source
    from plaudit.reward_model import RewardModel
    from plaudit.score_file import ScoreColumns, ScoredFile

_COLUMN: Final = "rewards"

Opening: TypeAlias = "Callable[[], tuple[Console, RewardModel]]"
"""What loads the model; what is wrong beside it is said before."""


def score(
    model: options.Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA|PROMPT", help="File, folder, Hub id or - for stdin; or one prompt."
        ),
    ],
    responses: Annotated[
        list[str] | None, typer.Argument(metavar="RESPONSE", help="Responses to the prompt.")
    ] = None,
    out: options.ScoresOut = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    column: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=OUTPUT, help="Name of the column to add.")
    ] = _COLUMN,
    outputs: Annotated[
        bool,
        typer.Option(
            "--outputs", rich_help_panel=OUTPUT, help="Add the outputs of the model by name."
        ),
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            rich_help_panel=OUTPUT,
            help="Add mean, spread and lower bound of an ensemble of heads.",
        ),
    ] = False,
    limit: options.Limit = None,
    base: options.Base = None,
    dtype: options.Precision = "auto",
    reward: options.Reward = "mean",
    lower_bound_k: options.LowerBoundK = 1.0,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.CountsAsJson = False,
) -> None:
    """Score the responses of a file, or responses to one prompt.

    Rows keep their order. With --out, a stopped command continues where it was when it is run
    again.

    Examples:
      plaudit score runs/first pairs.jsonl --out scored.jsonl
      plaudit score runs/first "Capital of Peru?" "Lima." "Cusco."
    """
    from plaudit.cli.printing import open_model

    opening = partial(
        open_model,
        model,
        base=base,
        dtype=dtype,
        reward=reward,
        lower_bound_k=lower_bound_k,
        trust_remote_code=trust_remote_code,
    )
    from plaudit.score_file import ScoreColumns

    added = ScoreColumns(rewards=column, outputs=outputs, uncertainty=uncertainty)
    if responses:
        _check_inline(data, out, limit, format_, columns, None if column == _COLUMN else column)
        _score_responses(opening, data, responses, added, json=json)
        return
    source = options.source(data, format_, columns, limit)
    _score_rows(opening, source, out, added, json=json)


def best_of(
    model: options.Model,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="File, folder, Hub id or - for stdin.")
    ],
    out: options.ScoresOut = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    column: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=OUTPUT,
            help="Name of the column for the index of the best response, from 0.",
        ),
    ] = "best",
    limit: options.Limit = None,
    base: options.Base = None,
    dtype: options.Precision = "auto",
    reward: options.Reward = "mean",
    lower_bound_k: options.LowerBoundK = 1.0,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.CountsAsJson = False,
) -> None:
    """Pick the best response of every row (best-of-N).

    All rewards are kept in the column rewards.

    Examples:
      plaudit best-of runs/first responses.jsonl --out best.jsonl
    """
    from plaudit.cli.printing import open_model
    from plaudit.score_file import ScoreColumns

    opening = partial(
        open_model,
        model,
        base=base,
        dtype=dtype,
        reward=reward,
        lower_bound_k=lower_bound_k,
        trust_remote_code=trust_remote_code,
    )
    source = options.source(data, format_, columns, limit)
    _score_rows(opening, source, out, ScoreColumns(best=column), json=json)


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
            "--out, --limit, --format, --columns and --column apply to files; remove them to score"
            " responses to a prompt."
        )


def _score_responses(
    opening: Opening, prompt: str, responses: list[str], columns: ScoreColumns, *, json: bool
) -> None:
    """Print a reward, its details and its response a line, or the rewards as JSON."""
    from plaudit.cli.main import one_line

    _, reward_model = opening()
    uncertainty = columns.uncertainty
    if columns.outputs:
        details = reward_model.score(prompt, responses, outputs=True, uncertainty=uncertainty)
    elif uncertainty:
        details = reward_model.score(prompt, responses, uncertainty=True)
    else:
        details = [RewardDetails(reward=one) for one in reward_model.score(prompt, responses)]
    if json:
        added = {field: [getattr(one, field) for one in details] for field in columns.details}
        options.print_json({"rewards": [one.reward for one in details], **added})
        return
    for one, response in zip(details, responses, strict=True):
        fields = [field for field in columns.details if field != "outputs"]
        numbers = {field: getattr(one, field) for field in fields} | dict(one.outputs or {})
        named = [one_line(f"{name}={number:.6f}") for name, number in numbers.items()]
        print("\t".join([f"{one.reward:.6f}", *named, one_line(response)]))


def _score_rows(
    opening: Opening, source: Source, out: Path | None, columns: ScoreColumns, *, json: bool
) -> None:
    """Score rows into ``out`` or onto stdout, and say on stderr what became of them."""
    if out is None and json:
        raise DataError("--json needs --out FILE: without it, the rows are printed on stdout.")
    from plaudit.cli.printing import print_lines
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
    console, reward_model = opening()
    if out is None:
        scored = score_to_stream(reward_model, source, sys.stdout, columns)
    else:
        with progress_bars(console) as show:
            scored = score_file(
                reward_model, source, out, columns, on_progress=partial(show, "scoring")
            )
    if json:
        options.print_json(scored)
    print_lines(console, [scored_line(scored, out), *scored.unread.lines(source.path)])


def scored_line(scored: ScoredFile, out: Path | None) -> str:
    """What became of the rows, in one line."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in scored.skipped.items())
    skipped = f"; skipped: {reasons}" if reasons else ""
    resumed = f" ({scored.resumed:,} by an earlier call)" if scored.resumed else ""
    written = "" if out is None else f"; written to {out}"
    return f"Scored {scored.scored:,} of {counted(scored.rows, 'row')}{resumed}{skipped}{written}"
