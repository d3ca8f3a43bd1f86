"""``plaudit plan``: what a run will take, before renting anything."""

from __future__ import annotations

import json as json_format
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from plaudit.cli import options
from plaudit.cli.help import DATA as DATA_OPTIONS
from plaudit.cli.help import HARDWARE
from plaudit.cli.recipes import RecipeRequest, select_recipe, show_notes
from plaudit.planning.estimate import UTILISATION, Hardware, Plan, equal_lengths, find_gpus
from plaudit.planning.microbatch import MicroBatches
from plaudit.recipe.load import DATA


def plan(
    recipe: options.Recipe = None,
    model: options.BaseModel = None,
    data: options.TrainData = None,
    test: options.TestData = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=DATA_OPTIONS,
            help="Number of pairs; no data are read.",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            rich_help_panel=DATA_OPTIONS,
            help="Tokens per prompt, with --pairs.",
        ),
    ] = 300,
    response_tokens: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=DATA_OPTIONS,
            help="Tokens per response, with --pairs.",
        ),
    ] = 200,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=HARDWARE,
            help="GPU to plan for, such as H100 or A100-80GB. Default: a table of several.",
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(metavar="N", min=1, rich_help_panel=HARDWARE, help="Number of GPUs.")
    ] = 1,
    utilisation: Annotated[
        float,
        typer.Option(
            metavar="X",
            min=0.01,
            max=1.0,
            rich_help_panel=HARDWARE,
            help="Share of a GPU's peak FLOP/s that is reached (MFU).",
        ),
    ] = UTILISATION,
    from_llamafactory: options.FromLlamaFactory = None,
    set_: options.Set = None,
    columns: options.Columns = None,
    json: options.ResultAsJson = False,
) -> None:
    """Estimate steps, memory, FLOPs and time of a run.

    Takes the arguments of plaudit train and loads no weights.

    Examples:
      plaudit plan recipe.yaml --gpu H100
      plaudit plan --model Qwen/Qwen3-0.6B --pairs 20000
    """
    if pairs is not None and recipe is None and from_llamafactory is None:
        # The recipe needs data; nothing reads them.
        data = data or [DATA]
    request = RecipeRequest(
        argument=recipe,
        llamafactory=from_llamafactory,
        model=model,
        data=data,
        test=test,
        overrides=set_,
        columns=columns,
    )
    selected = select_recipe(request, "plan")
    hardware = Hardware(gpus=find_gpus(gpu), devices=devices, utilisation=utilisation)
    from plaudit.training.plan import plan_run

    lengths = equal_lengths(prompt_tokens, response_tokens)
    result = plan_run(selected.recipe, hardware, None if pairs is None else (pairs, lengths))
    if json:
        print(json_format.dumps(result.as_dict(), indent=2))
    else:
        console = Console()
        show_notes(selected.notes, console)
        show(result, console)


def show(result: Plan, console: Console) -> None:
    """Print the plan as tables that fit 80 columns."""
    head = Text.assemble((result.base, "bold"), f"  {result.method}, ")
    head.append(f"{result.devices} device{'s' if result.devices > 1 else ''}")
    console.print(head)
    for title, rows in (("Run", _run_rows(result)), ("Memory per device", _memory_rows(result))):
        table = _table(title, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right")
        for name, value in rows:
            table.add_row(name, value)
        console.print(table)
    console.print(_gpu_table(result))
    if result.notes:
        console.print()
    for note in result.notes:
        console.print(Text(f"- {note}"))


def _run_rows(result: Plan) -> list[tuple[str, str]]:
    split, steps, tokens, model = result.split, result.steps, result.tokens, result.model
    saving = tokens.padded_per_epoch / tokens.packed_per_epoch
    return [
        ("pairs", f"{split.pairs:,}"),
        ("train / evaluation / test", f"{split.train:,} / {split.evaluation:,} / {split.test:,}"),
        ("pairs per step", f"{steps.pairs_per_step:,}"),
        ("steps per epoch", f"{steps.per_epoch:,}"),
        (f"total steps ({steps.epochs:g} epochs)", f"{steps.total:,}"),
        ("scheduled evaluations", f"{steps.evaluations:,}"),
        ("tokens per pair", f"{tokens.per_pair:,.0f} ({tokens.how})"),
        ("tokens per epoch, packed", f"{tokens.packed_per_epoch:,}"),
        ("tokens per epoch, padded", f"{tokens.padded_per_epoch:,} ({saving:.2f}x)"),
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
        (f"activations ({memory.micro_batch_tokens:,} tokens)", memory.activations),
        ("total", memory.total),
    ]
    return [(name, "unknown" if count is None else _bytes(count)) for name, count in parts]


def _gpu_table(result: Plan) -> Table:
    title = f"Time at {result.utilisation:.0%} of peak"
    columns = (
        Column(name, justify="right")
        for name in ("TFLOP/s", "memory", "fits", "tokens", "recomputed", "time")
    )
    table = _table(title, "GPU", *columns)
    words: dict[Any, str] = {True: "yes", False: "no", None: "unknown"}
    for name, row in result.gpus.items():
        table.add_row(
            f"{result.devices} x {name}",
            f"{row.tflops:g}",
            f"{row.gigabytes:g} GB",
            words[row.fits],
            "-" if row.micro_batches is None else f"{row.micro_batches.tokens:,}",
            _layers(row.micro_batches),
            _duration(row.seconds) if row.fits is not False else "-",
        )
    return table


def _layers(chosen: MicroBatches | None) -> str:
    if chosen is None:
        return "-"
    return f"{chosen.checkpointed_layers or 0}/{chosen.layers}"


def _table(title: str, *columns: str | Column, **options: Any) -> Table:
    return Table(
        *columns,
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        **options,
    )


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 else f"{count / 1e6:,.2f} MB"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
