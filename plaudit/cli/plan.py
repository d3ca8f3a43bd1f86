"""``plaudit plan``: what a run will take, before renting anything."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from plaudit.cli import options
from plaudit.cli.recipes import choose as choose_recipe
from plaudit.cli.recipes import request_of, show_notes
from plaudit.errors import DataError
from plaudit.planning.estimate import UTILISATION, Plan, Split
from plaudit.planning.estimate import plan as estimate
from plaudit.planning.gpus import choose
from plaudit.planning.lengths import Length, Lengths, from_characters, given, within
from plaudit.recipe.load import DATA, with_columns
from plaudit.recipe.schema import Recipe
from plaudit.types import Comparison, TokenTree, Turns

if TYPE_CHECKING:
    from plaudit.planning.model import ModelSize

NO_LIMIT = 2**31
ENCODED_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Sizes stated on the command line in place of reading the data."""

    pairs: int
    prompt_tokens: int
    response_tokens: int


def plan(
    recipe: options.Recipe = None,
    model: options.BaseModel = None,
    data: options.TrainData = None,
    test: options.TestData = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Number of pairs, in place of reading the data.")
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of a prompt; with --pairs.")
    ] = 300,
    response_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a response; with --pairs.")
    ] = 200,
    gpu: Annotated[
        str | None, typer.Option(help="One GPU to plan for, such as H100 or A100-80GB.")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of a GPU's peak that is reached.")
    ] = UTILISATION,
    from_llamafactory: options.FromLlamaFactory = None,
    set_: options.Set = None,
    columns: options.Columns = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run's steps, parameters, memory, FLOPs and time, without weights.

    It takes the arguments of train; --pairs stands in for the data.
    """
    if pairs is not None and recipe is None and from_llamafactory is None:
        # The recipe needs data; nothing reads them.
        data = data or [DATA]
    request = request_of(recipe, from_llamafactory, model, data, test, set_)
    chosen = choose_recipe(request, "plan")
    loaded = with_columns(chosen.recipe, options.parse_columns(columns))
    gpus = choose(gpu)
    asked = None
    if pairs is not None:
        asked = Asked(pairs=pairs, prompt_tokens=prompt_tokens, response_tokens=response_tokens)
    split, lengths, remarks = _sizes(loaded, asked)
    size, packed = _model(loaded)
    from plaudit.tokens.batch import MICROBATCH_TOKENS

    result = estimate(
        loaded,
        size=size,
        lengths=lengths,
        split=split,
        gpus=gpus,
        devices=devices,
        utilisation=utilisation,
        packed=packed,
        auto_tokens=MICROBATCH_TOKENS,
    )
    if json:
        record = result.as_dict()
        record["notes"] = [*remarks, *record["notes"]]
        print(json_format.dumps(record, indent=2))
    else:
        console = Console()
        show_notes(chosen.notes, console)
        show(result, remarks, console)


def _model(recipe: Recipe) -> tuple[ModelSize, bool]:
    """The model's sizes, and whether its batches can be packed."""
    from plaudit.model.architectures import why_not_packed
    from plaudit.model.load import check_lora
    from plaudit.planning.architecture import read_config
    from plaudit.planning.estimate import activation_dtype
    from plaudit.planning.model import measure

    model = recipe.model
    config = read_config(
        model.base, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    if recipe.lora is not None:
        check_lora(config, recipe.lora)
    size = measure(config, recipe.lora, activations=activation_dtype(recipe))
    return size, model.attention != "padded" and why_not_packed(config) is None


def _sizes(recipe: Recipe, asked: Asked | None) -> tuple[Split, Lengths, list[str]]:
    """The parts, the lengths of the training part and remarks: stated, or read and split as
    training does.
    """
    from plaudit.training.corpus import read_comparisons, split_sizes

    data = recipe.data
    if asked is not None:
        own = [name for name, files in (("eval", data.eval), ("test", data.test)) if files]
        remarks = [f"data.{name} has files of its own, not counted with --pairs." for name in own]
        lengths = given(asked.prompt_tokens, asked.response_tokens)
        return Split.of(*split_sizes(data, asked.pairs)), lengths, remarks
    parts = read_comparisons(data)
    tallies = [loaded.tally for loaded in parts.loaded.values()]
    dropped = sum(sum(tally.dropped.values()) for tally in tallies)
    rows = sum(tally.rows for tally in tallies)
    remarks = [f"{dropped:,} of {rows:,} rows cannot be used."] if dropped else []
    sources = [fact for loaded in parts.loaded.values() for fact in loaded.sources]
    remarks += [line for fact in sources if (line := fact.unread.sentence(fact.name))]
    lengths_of = _lengths_of(recipe)
    train = lengths_of(parts.train)
    if not train.rows:
        raise DataError("not one comparison of data.train can be encoded by this tokenizer.")
    held_out = [
        [lengths_of(part) for part in sets.values()] for sets in (parts.evaluation, parts.test)
    ]
    tokens = recipe.tokens
    kept = [
        sum(
            len(within(lengths, max_length=tokens.max_length, truncation=tokens.truncation))
            for lengths in role
        )
        for role in ([train], *held_out)
    ]
    encoded = sum(len(lengths.rows) for role in ([train], *held_out) for lengths in role)
    known = sum(map(len, (parts.train, *parts.evaluation.values(), *parts.test.values())))
    if encoded < known:
        remarks.append(f"{known - encoded:,} comparisons cannot be encoded.")
    return Split.of(*kept, over_length=encoded - sum(kept)), train, remarks


def _lengths_of(recipe: Recipe) -> Callable[[Sequence[Comparison]], Lengths]:
    """Lengths of what can be encoded by the base's tokenizer where its folder is here, else from
    characters.
    """
    if not (Path(recipe.model.base) / "tokenizer_config.json").is_file():
        return _from_characters
    from plaudit.tokens.encode import Encoder, encode
    from plaudit.training.prepare import prepare_tokenizer, rendering_of

    encoder = Encoder(
        tokenizer=prepare_tokenizer(recipe.model, recipe.tokens, recipe.model.base),
        max_length=NO_LIMIT,
        text_as_turns=recipe.data.as_chat is True,
        chat_template_kwargs=recipe.tokens.chat_template_kwargs,
        rendering=rendering_of(recipe.tokens, None),
    )

    def counted(comparisons: Sequence[Comparison]) -> Lengths:
        rows = tuple(
            Length(
                prompt=len(tree.prefix), responses=tuple(len(branch) for branch in tree.branches)
            )
            for start in range(0, len(comparisons), ENCODED_ROWS)
            for tree in encode(encoder, comparisons[start : start + ENCODED_ROWS])
            if isinstance(tree, TokenTree)
        )
        return Lengths(rows=rows, how="counted by the base's tokenizer")

    return counted


def _from_characters(comparisons: Sequence[Comparison]) -> Lengths:
    return from_characters(
        [
            (_characters(item.prompt), tuple(_characters(r) for r in item.responses))
            for item in comparisons
        ]
    )


def _characters(turns: Turns) -> int:
    if isinstance(turns, str):
        return len(turns)
    return sum(
        len(turn.content if isinstance(turn.content, str) else str(turn.content)) for turn in turns
    )


def show(result: Plan, remarks: list[str], console: Console) -> None:
    """Print the plan as tables that fit 80 columns."""
    head = Text.assemble((result.base, "bold"), f"  {result.method}, ")
    head.append(f"{result.devices} device{'s' if result.devices > 1 else ''}")
    console.print(head)
    for title, rows in (("Run", _run_rows(result)), ("Bytes per device", _memory_rows(result))):
        table = Table(title=title, title_justify="left", show_header=False, min_width=60)
        table.add_column(no_wrap=True)
        table.add_column(justify="right")
        for name, value in rows:
            table.add_row(name, value)
        console.print(table)
    console.print(_gpu_table(result))
    for note in (*remarks, *result.notes):
        console.print(Text(f"- {note}"))


def _run_rows(result: Plan) -> list[tuple[str, str]]:
    split, steps, tokens, model = result.split, result.steps, result.tokens, result.model
    saving = tokens.padded_per_epoch / tokens.packed_per_epoch
    return [
        ("pairs", f"{split.pairs:,}"),
        ("train / evaluation / test", f"{split.train:,} / {split.evaluation:,} / {split.test:,}"),
        ("pairs per step", f"{steps.pairs_per_step:,}"),
        ("steps per epoch", f"{steps.per_epoch:,}"),
        (f"steps in all ({steps.epochs:g} epochs)", f"{steps.total:,}"),
        ("evaluations on schedule", f"{steps.evaluations:,}"),
        ("tokens per pair", f"{tokens.per_pair:,.0f} ({tokens.how})"),
        ("tokens per epoch, prompt once", f"{tokens.packed_per_epoch:,}"),
        ("tokens per epoch, padded rows", f"{tokens.padded_per_epoch:,} ({saving:.2f}x)"),
        ("trainable parameters", f"{model.trainable:,}"),
        ("parameters", f"{model.total:,}"),
        ("FLOPs, training", f"{result.flops.total - result.flops.evaluation:.3g}"),
        ("FLOPs, evaluation", f"{result.flops.evaluation:.3g}"),
    ]


def _memory_rows(result: Plan) -> list[tuple[str, str]]:
    memory = result.memory
    parts: list[tuple[str, int | None]] = [
        ("weights", memory.weights),
        ("adapter and head", memory.adapter_and_head),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("half-precision copies", memory.half_precision_copies),
        (f"activations ({memory.micro_batch_tokens:,} tokens)", memory.activations),
        ("together", memory.total),
    ]
    return [(name, "unknown" if count is None else _bytes(count)) for name, count in parts]


def _gpu_table(result: Plan) -> Table:
    title = f"Time at {result.utilisation:.0%} of peak"
    table = Table(title=title, title_justify="left", min_width=60)
    table.add_column("GPU")
    for name in ("TFLOP/s", "memory", "fits", "time"):
        table.add_column(name, justify="right")
    words: dict[Any, str] = {True: "yes", False: "no", None: "unknown"}
    for name, row in result.gpus.items():
        table.add_row(
            f"{result.devices} x {name}",
            f"{row.tflops:g}",
            f"{row.gigabytes:g} GB",
            words[row.fits],
            _duration(row.seconds) if row.fits is not False else "-",
        )
    return table


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 else f"{count / 1e6:,.2f} MB"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
