"""``plaudit data preview DATA --model MODEL``: rows token by token, as the model sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import options
from plaudit.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from plaudit.recipe.schema import Recipe, Source
    from plaudit.tokens.encode import Encoder
    from plaudit.types import Comparison, ShownComparison, ShownToken


def preview(
    data: Annotated[
        str | None,
        typer.Argument(help="A file, folder or Hub id; the recipe's data.train if not given."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A reward model, or a base to train on, by folder or Hub id.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe (file, shipped name or run folder), in place of --model."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows, from the first on.")] = 3,
    row: Annotated[
        int | None, typer.Option(min=1, help="One row alone, by its number from 1.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="The longest conversation in tokens.")
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="A jinja chat template, in place of the base's own.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show each token's number too.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page instead of the terminal.")
    ] = None,
    format_: options.Format = None,
    columns: options.Columns = None,
    base: options.Base = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show rows as the model sees them: every token, the shared prompt, the scored token."""
    from plaudit.cli.printing import quiet_console

    console = quiet_console()
    sources = _sources(data, recipe, format_, options.parse_columns(columns))
    comparisons, notes = pick(sources, rows=rows, row=row)
    with console.status("starting"):
        encoder, name, run = _encoder(
            model,
            recipe,
            max_length=max_length,
            chat_template=chat_template,
            base=base,
            trust_remote_code=trust_remote_code,
        )
        shown = _show(encoder, comparisons)
        if run is not None:
            notes += _text_notes(encoder, comparisons, run)
    for note in notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if html is None:
        from rich.console import Console

        _print(Console(highlight=False), shown, ids=ids)
        return
    from plaudit.report.preview import write_preview

    write_preview(html, shown, data=", ".join(source.path for source in sources), model=name)
    console.print(f"Written to {html}", highlight=False, markup=False, soft_wrap=True)


def pick(
    sources: Sequence[Source], *, rows: int, row: int | None
) -> tuple[list[Comparison], list[str]]:
    """The first rows of all sources together, or the one of a number; what is not read up to it.

    Raises:
        DataError: there is no row of that number.
    """
    from plaudit.data.load import OpenSource, open_source

    opened: list[tuple[str, OpenSource]] = []

    def comparisons() -> Iterator[Comparison]:
        for source in sources:
            opened.append((source.path, open_source(source)))
            yield from (comparison for _, _, _, comparison in opened[-1][1].rows)

    first, last = (0, rows) if row is None else (row - 1, row)
    found = list(islice(comparisons(), first, last))
    if not found:
        raise DataError(f"there is no row {row} in {', '.join(s.path for s in sources)}.")
    return found, [line for path, one in opened for line in one.counter.total.lines(path)]


def _sources(
    data: str | None,
    recipe: Path | None,
    format_: str | None,
    columns: Mapping[str, str | None],
) -> list[Source]:
    from plaudit.recipe.schema import Source, load_recipe, with_columns

    if data is not None:
        return [Source(path=data, format=format_, columns=dict(columns))]
    if recipe is None:
        raise DataError("nothing to show; name a file, or a --recipe with data.train.")
    return list(with_columns(load_recipe(recipe), columns).data.train)


def _encoder(
    model: str | None,
    recipe: Path | None,
    *,
    max_length: int | None,
    chat_template: Path | None,
    base: str | None,
    trust_remote_code: bool,
) -> tuple[Encoder, str, Recipe | None]:
    """The encoder of a recipe's run, of a reward model, or of a run on a plain base; its name.

    The recipe is that of the run; ``None`` for a reward model.

    Raises:
        DataError: neither or both of model and recipe, or a template for a model that has its own.
    """
    from dataclasses import replace

    from plaudit.recipe.schema import load_recipe, parse_recipe

    if (model is None) == (recipe is None):
        raise DataError("give either --model or --recipe, to say whose tokens to show.")
    if recipe is not None:
        loaded = load_recipe(recipe)
    else:
        from plaudit.interop.formats import is_reward_model

        if is_reward_model(Path(str(model))):
            from plaudit.reward_model import encoder_of, open_frozen

            if chat_template is not None:
                raise DataError(
                    f"{model} is a reward model and reads conversations by its own template; leave"
                    " out --chat-template, or name its base."
                )
            opened = open_frozen(str(model), base=base, trust_remote_code=trust_remote_code)
            encoder = encoder_of(opened)
            if max_length is not None:
                encoder = replace(encoder, max_length=max_length)
            return encoder, str(model), None
        loaded = parse_recipe(
            {
                "model": {"base": model, "trust_remote_code": trust_remote_code},
                "data": {"train": "-"},
            },
            "--model",
        )
    tokens = {"max_length": max_length, "chat_template": chat_template}
    given = {name: value for name, value in tokens.items() if value is not None}
    loaded = loaded.model_copy(update={"tokens": loaded.tokens.model_copy(update=given)})
    from plaudit import embedded
    from plaudit.training.prepare import make_encoder, open_warm_start, prepare_tokenizer

    warm_start = open_warm_start(loaded)
    name = loaded.model.base
    folder = str(embedded.base_path()) if name == embedded.NAME else name
    tokenizer = prepare_tokenizer(loaded.model, loaded.tokens, folder, warm_start)
    return make_encoder(loaded, tokenizer, warm_start), name, loaded


def _text_notes(encoder: Encoder, comparisons: Sequence[Comparison], recipe: Recipe) -> list[str]:
    from plaudit.tokens.rendering import is_chat
    from plaudit.training.prepare import text_remark

    texts = sum(not is_chat(comparison) for comparison in comparisons)
    remark = text_remark(encoder, recipe, texts, len(comparisons))
    return [] if remark is None else [remark]


def _show(
    encoder: Encoder, comparisons: Sequence[Comparison]
) -> list[tuple[ShownComparison, list[str]]]:
    from plaudit.data.reasons import EXPLANATIONS, why_untrainable
    from plaudit.report.preview import remarks
    from plaudit.tokens.preview import show

    rows = []
    for comparison, shown in zip(comparisons, show(encoder, comparisons), strict=True):
        reason = why_untrainable(comparison)
        # The reason for which a row is not encoded is said once.
        said = reason is None or reason == shown.reason
        rows.append((shown, remarks(shown, None if said else EXPLANATIONS[str(reason)])))
    return rows


def _print(
    console: Console, rows: Sequence[tuple[ShownComparison, list[str]]], *, ids: bool
) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from plaudit.cli.main import one_line
    from plaudit.report.preview import LEGEND, counted, sizes, standing, visible

    for shown, lines in rows:
        console.print()
        console.print(Text(one_line(shown.where), style="bold"))
        if shown.detail is None:
            console.print(Text(sizes(shown)))
        for line in lines:
            console.print(Text(f"! {one_line(line)}", style="yellow"))
        if shown.prefix:
            console.print(Text("shared by all responses, computed once", style="cyan"))
            console.print(Padding(_tokens(shown.prefix, ids=ids, style="cyan"), (0, 0, 0, 2)))
        for at, branch in enumerate(shown.branches):
            last = branch[-1]
            scored = visible(last.text).replace("\n", "")
            console.print(
                Text(
                    f"{standing(shown, at).lower()}: {counted(len(branch))}, the scored one is "
                    f"{scored} (id {last.id})"
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
    tokens: Sequence[ShownToken], *, ids: bool, style: str = "", scored: bool = False
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
