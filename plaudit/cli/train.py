"""``plaudit train``: data in; reward model, evaluation, plots and card out."""

from __future__ import annotations

import json as json_module
import logging
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from plaudit.training.folder import RunFolder


def train(
    recipe: options.Recipe = None,
    model: options.BaseModel = None,
    data: options.TrainData = None,
    test: options.TestData = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/<recipe>-<time> unless set.")
    ] = None,
    from_llamafactory: options.FromLlamaFactory = None,
    set_: options.Set = None,
    columns: options.Columns = None,
    resume: options.Resume = False,
    json: Annotated[bool, typer.Option("--json", help="Print metrics.json on stdout.")] = False,
) -> None:
    """Train a reward model, evaluate it, and write the model, its card and its report.

    What to train comes from a recipe, or from --model and --data alone. Options win over the
    recipe, --set over the other options; the resolved recipe is written into the run folder.
    """
    from plaudit.cli.printing import hush_weight_loading, quiet_console, summarise_run
    from plaudit.cli.recipes import choose, request_of, show_notes
    from plaudit.errors import OutputError
    from plaudit.recipe.load import with_columns
    from plaudit.training.folder import RunFolder, is_main_process, refuse_existing
    from plaudit.training.needs import check_needs

    # What is wrong is said before torch is imported, which takes many seconds.
    request = request_of(recipe, from_llamafactory, model, data, test, set_)
    chosen = choose(request, "train")
    mapped = with_columns(chosen.recipe, options.parse_columns(columns))
    out = out or chosen.out or (chosen.run if resume else None)
    if out is None and (resume or "WORLD_SIZE" in os.environ):
        raise OutputError("--resume and runs on several processes need --out: name the run folder.")
    started = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder = out or Path("runs") / f"{chosen.name}-{started}"
    if not resume and is_main_process():
        refuse_existing(folder)
    if not resume:
        check_needs(mapped)
    console = quiet_console()
    if chosen.run is not None and out is None:
        _say_that_it_is_new(console, RunFolder(chosen.run), folder)
    if is_main_process():
        show_notes(chosen.notes, console)
    else:
        # Every process would warn of the same.
        logging.getLogger("plaudit").setLevel(logging.ERROR)
    with console.status("starting"):
        hush_weight_loading()
        from plaudit.training.run import train as run
    trained = run(mapped, folder, resume=resume, console=console)
    _leave_process_group()
    if not trained.metrics:
        return
    if json:
        print(json_module.dumps(trained.metrics))
    summarise_run(console, trained.folder, trained.metrics)


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


def _say_that_it_is_new(console: Console, named: RunFolder, new: Path) -> None:
    """A run folder without --resume is a recipe, which may surprise."""
    line = (
        f"{named.path} is a finished run; a new run of its recipe starts in {new}."
        if named.metrics.is_file()
        else f"{named.path} is a run that has not finished; a new run of its recipe starts in "
        f"{new}. To resume the old one: {named.resume_command()}"
    )
    console.print(line, highlight=False, markup=False, soft_wrap=True)
