"""``plaudit train RECIPE``: data in; reward model, evaluation, plots and card out."""

from __future__ import annotations

import json as json_module
import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import options


def train(
    recipe: options.RecipeFile = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/<recipe>-<time> unless given.")
    ] = None,
    from_llamafactory: options.FromLlamaFactory = None,
    set_: options.Set = None,
    columns: options.Columns = None,
    resume: options.Resume = False,
    json: Annotated[bool, typer.Option("--json", help="Print metrics.json on stdout.")] = False,
) -> None:
    """Train a reward model from a recipe; evaluate it; write model, plots, report and card."""
    from plaudit.cli.recipes import choose, show_notes
    from plaudit.cli.screen import hush_weight_loading, quiet_console, summarise_run
    from plaudit.errors import OutputError
    from plaudit.recipe import effective_training_arguments, with_columns
    from plaudit.train.folder import is_main_process, refuse_existing

    # What can be refused at once is refused before torch is imported, which takes many seconds.
    chosen = choose(recipe, from_llamafactory, set_ or ())
    checked = with_columns(chosen.recipe, options.parse_columns(columns))
    out = out or chosen.out
    effective_training_arguments(checked)
    if out is None and (resume or "WORLD_SIZE" in os.environ):
        raise OutputError("--resume and runs on several processes need --out: name the run folder.")
    started = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder = out or Path("runs") / f"{chosen.file.stem}-{started}"
    if not resume and is_main_process():
        refuse_existing(folder)
    console = quiet_console()
    if is_main_process():
        show_notes(chosen.notes, console)
    else:
        # Every process would warn of the same.
        logging.getLogger("plaudit").setLevel(logging.ERROR)
    with console.status("starting"):
        hush_weight_loading()
        from plaudit.train.run import train as run
    trained = run(checked, folder, resume=resume, console=console)
    if not trained.metrics:
        return
    if json:
        print(json_module.dumps(trained.metrics))
    summarise_run(console, trained.folder, trained.metrics)
