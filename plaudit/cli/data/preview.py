"""``plaudit data preview DATA --model MODEL``: rows token by token, as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import options
from plaudit.cli.help import DATA, MODEL, OUTPUT
from plaudit.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from plaudit.recipe.schema import Source
    from plaudit.types import ComparisonPreview, TokenPreview


def preview(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help="File, folder or Hub id. Default: data.train of --recipe."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=MODEL,
            help="Folder or Hub id of a reward model, or of a base model.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE",
            rich_help_panel=MODEL,
            help="Recipe file, name of a shipped recipe or run folder, in place of --model.",
        ),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, rich_help_panel=DATA, help="Number of rows, from the first."
        ),
    ] = 3,
    row: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, rich_help_panel=DATA, help="Show only row N, counted from 1."
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            rich_help_panel=MODEL,
            help="Maximum length of a conversation in tokens.",
        ),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=MODEL,
            help="Jinja chat template, in place of the base model's.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            rich_help_panel=DATA,
            help="Training objective, which decides what rows can be trained on. Default: that of "
            "--recipe, or bradley_terry.",
        ),
    ] = None,
    ids: Annotated[
        bool, typer.Option("--ids", rich_help_panel=OUTPUT, help="Show token ids.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=OUTPUT, help="Write an HTML page instead of printing."
        ),
    ] = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show rows as the model sees them, token by token.

    Marks the shared prompt, special tokens and the scored token.

    Examples:
      plaudit data preview pairs.jsonl --model Qwen/Qwen3-0.6B --rows 1
      plaudit data preview --recipe runs/first --html preview.html
    """
    from plaudit.cli.printing import print_lines, quiet_console
    from plaudit.data.load import check_source

    console = quiet_console()
    sources = _sources(data, recipe, format_, columns)
    # What is missing is said before torch is imported.
    for source in sources:
        check_source(source)
    with console.status("starting"):
        from plaudit.training.preview import PreviewOptions
        from plaudit.training.preview import preview as run

        result = run(
            sources,
            PreviewOptions(
                model=model,
                recipe=recipe,
                rows=rows,
                row=row,
                max_length=max_length,
                chat_template=chat_template,
                loss=loss,
                base=base,
                trust_remote_code=trust_remote_code,
            ),
        )
    for note in result.notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if html is None:
        from rich.console import Console

        print_rows(Console(highlight=False), result.rows, ids=ids)
        return
    from plaudit.report.preview import write_preview

    paths = ", ".join(source.path for source in sources)
    write_preview(html, result.rows, data=paths, model=result.model)
    print_lines(console, [f"Written to {html}"])


def _sources(
    data: str | None, recipe: Path | None, format_: str | None, columns: Sequence[str] | None
) -> list[Source]:
    from plaudit.recipe.load import load_recipe, with_columns

    if data is not None:
        return [options.source(data, format_, columns)]
    if recipe is None:
        raise DataError("no data to preview; pass DATA, or a --recipe with data.train.")
    return list(with_columns(load_recipe(recipe), options.parse_columns(columns)).data.train)


def print_rows(
    console: Console, rows: Sequence[tuple[ComparisonPreview, Sequence[str]]], *, ids: bool
) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from plaudit.cli.main import one_line
    from plaudit.evaluation.numbers import counted
    from plaudit.report.preview import LEGEND, attributes, labels, sizes, standing, visible

    for shown, lines in rows:
        console.print()
        console.print(Text(one_line(shown.where), style="bold"))
        if shown.detail is None:
            console.print(Text(sizes(shown)))
        console.print(Text(labels(shown)))
        for line in lines:
            console.print(Text(f"! {one_line(line)}", style="yellow"))
        if shown.prefix:
            console.print(Text("shared by all responses, computed once", style="cyan"))
            console.print(Padding(_tokens(shown.prefix, ids=ids, style="cyan"), (0, 0, 0, 2)))
        for at, branch in enumerate(shown.branches):
            last = branch[-1]
            scored = visible(last.text).replace("\n", "")
            known = attributes(shown, at)
            console.print(
                Text(
                    f"{standing(shown, at).lower()}: {counted(len(branch), 'token')}, the scored "
                    f"one is {scored} (id {last.id}){known and f'; {known}'}"
                )
            )
            console.print(Padding(_tokens(branch, ids=ids, scored=True), (0, 0, 0, 2)))
    console.print()
    console.print(
        Text(
            f"{LEGEND}; | parts tokens; special tokens are bold; the scored token is in [brackets]",
            style="dim",
        )
    )


def _tokens(
    tokens: Sequence[TokenPreview], *, ids: bool, style: str = "", scored: bool = False
) -> Text:
    """The tokens between bars, special ones bold, the scored one underlined in brackets."""
    from rich.text import Text

    from plaudit.report.preview import visible

    text = Text(style=style)
    for at, token in enumerate(tokens):
        shown = visible(token.text) + (f"({token.id})" if ids else "")
        bar = "" if at == 0 or text.plain.endswith("\n") else "|"
        text.append(bar, style="dim")
        if scored and at == len(tokens) - 1:
            text.append(f"[{shown}]", style="bold underline magenta")
        else:
            text.append(shown, style="bold" if token.special else "")
    return text
