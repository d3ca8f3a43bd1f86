"""``plaudit init``, ``train`` and ``quickstart``: a recipe to edit, and runs."""

from __future__ import annotations

import logging
import os
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import options
from plaudit.cli.help import OUTPUT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from plaudit.evaluation.schema import EvaluationMetrics
    from plaudit.training.folder import RunFolder


def init(
    model: options.BaseModel = None,
    data: options.TrainData = None,
    test: options.TestData = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="Recipe file to write.")
    ] = Path("recipe.yaml"),
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Overwrite an existing file.")
    ] = False,
) -> None:
    """Write a commented recipe to edit.

    Nothing is read or downloaded.

    Examples:
      plaudit init --model Qwen/Qwen3-0.6B --data pairs.jsonl
    """
    from plaudit.cli.recipes import RecipeRequest, with_options
    from plaudit.recipe.load import BASE, DATA, starter, starter_text
    from plaudit.storage.atomic import check_new_file, write_text

    if not force:
        check_new_file(out, advice="choose another name, or add --force")
    request = RecipeRequest(model=model or BASE, data=data or [DATA], test=test or ())
    write_text(out, starter_text(with_options(starter(), request)))
    print(f"Wrote {out}. Edit it, then run: plaudit train {shlex.quote(str(out))}")


def train(
    recipe: options.Recipe = None,
    model: options.BaseModel = None,
    data: options.TrainData = None,
    test: options.TestData = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="Run folder. Default: runs/RECIPE-TIME.",
        ),
    ] = None,
    from_llamafactory: options.FromLlamaFactory = None,
    set_: options.Set = None,
    columns: options.Columns = None,
    resume: options.Resume = False,
    verbose: options.Verbose = False,
    json: options.MetricsAsJson = False,
) -> None:
    """Train a reward model from preference comparisons.

    Also evaluates it, and writes the model, a model card and an HTML report. Settings come from a
    recipe, or from --model and --data alone. Options override the recipe, and --set overrides other
    options.

    Examples:
      plaudit train --model Qwen/Qwen3-0.6B --data pairs.jsonl --out runs/first
      plaudit train recipe.yaml --set train.learning_rate=1e-5
      plaudit train runs/first --resume
    """
    from plaudit.cli.printing import quiet_console, show_run_details, silence_weight_loading
    from plaudit.cli.recipes import RecipeRequest, select_recipe, show_notes
    from plaudit.cli.summary import show_run
    from plaudit.errors import OutputError
    from plaudit.training.folder import RunFolder, check_run_folder, is_main_process
    from plaudit.training.needs import check_needs

    # Errors come before the import of torch, which takes many seconds.
    request = RecipeRequest(
        argument=recipe,
        llamafactory=from_llamafactory,
        model=model,
        data=data,
        test=test,
        overrides=set_,
        columns=columns,
    )
    selected = select_recipe(request, "train")
    out = out or selected.out or (selected.run if resume else None)
    if out is None and (resume or "WORLD_SIZE" in os.environ):
        raise OutputError("--out FOLDER is required with --resume and on several processes.")
    started = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder = out or Path("runs") / f"{selected.name}-{started}"
    if not resume and is_main_process():
        check_run_folder(folder)
    if not resume:
        check_needs(selected.recipe)
    console = quiet_console()
    if selected.run is not None and out is None:
        _announce_new_run(console, RunFolder(selected.run), folder)
    if is_main_process():
        show_notes(selected.notes, console)
    else:
        # Every process would warn of the same.
        logging.getLogger("plaudit").setLevel(logging.ERROR)
    with console.status("starting"):
        silence_weight_loading()
        from plaudit.training.run import train as run
    trained = run(selected.recipe, folder, resume=resume, console=console, verbose=verbose)
    _leave_process_group()
    if trained.metrics is None:
        return
    if json:
        options.print_json(trained.metrics)
    if verbose:
        show_run_details(console, trained.metrics)
    show_run(console, trained.folder, trained.metrics, verbose=verbose)


def _leave_process_group() -> None:
    """End what torchrun's processes share, and its threads, while the interpreter still runs.

    A thread of gloo that frees a tensor during the interpreter's finalization aborts the process
    although everything is written (https://github.com/pytorch/pytorch/pull/179291). This can go
    once torch ends them at exit.
    """
    import gc

    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        # The trainer and its model are a cycle that keeps the group, and the group its threads.
        gc.collect()


def _announce_new_run(console: Console, named: RunFolder, new: Path) -> None:
    """A run folder without --resume is a recipe, which may surprise."""
    from plaudit.cli.printing import print_lines

    finished = named.metrics.is_file()
    kind = "a finished run" if finished else "a run that has not finished"
    line = f"{named.path} is {kind}; a new run of its recipe starts in {new}."
    resume = "" if finished else f" To resume the old one: {named.resume_command()}"
    print_lines(console, [line + resume])


def quickstart(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", rich_help_panel=OUTPUT, help="Run folder.")
    ] = Path("runs/quickstart"),
    set_: options.Set = None,
    resume: options.Resume = False,
    verbose: options.Verbose = False,
) -> None:
    """Run an end-to-end demo: train, evaluate and report offline.

    Trains an embedded base model on embedded documentation, in minutes on a CPU.

    Examples:
      plaudit quickstart
    """
    from plaudit.cli.printing import show_run_details, starting
    from plaudit.cli.summary import show_run
    from plaudit.embedded import quickstart_path
    from plaudit.recipe.load import load_recipe
    from plaudit.training.folder import check_run_folder

    recipe = load_recipe(quickstart_path(), set_ or ())
    if not resume:
        check_run_folder(out)
    with starting() as console:
        from plaudit.training.run import train
    trained = train(recipe, out, resume=resume, console=console, verbose=verbose)
    if trained.metrics is None:
        return
    if verbose:
        show_run_details(console, trained.metrics)
        if trained.metrics.test is not None:
            console.print()
            console.print(degradation_table(trained.metrics.test))
    next_steps = [step.format(out=shlex.quote(str(out))) for step in NEXT_STEPS]
    show_run(console, trained.folder, trained.metrics, next_steps=next_steps, verbose=verbose)


NEXT_STEPS = (
    "plaudit train --model BASE --data pairs.jsonl  # your own base and data",
    "plaudit score {out} pairs.jsonl --out scored.jsonl",
)
"""What to do after the demo."""


def degradation_table(block: EvaluationMetrics) -> Table:
    """Accuracy by kind of degradation on held-out modules, with intervals, the hardest first."""
    from plaudit.cli.printing import results_table, with_interval, wrapping

    title = "Held-out modules, by kind of degradation"
    table = results_table("degradation", "pairs", wrapping("accuracy (95% CI)"), title=title)
    slices = [entry for entry in block.slices if entry.column == "subset"]
    for entry in sorted(slices, key=lambda entry: entry.accuracy or 0.0):
        name = (entry.value or "").replace("_", " ")
        table.add_row(name, str(entry.pairs), with_interval(entry.accuracy, entry.accuracy_ci95))
    return table
