"""``plaudit train``: data in; reward model, evaluation, plots and card out."""

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
    from plaudit.cli.recipes import choose, request_of, show_notes
    from plaudit.cli.screen import hush_weight_loading, quiet_console, summarise_run
    from plaudit.errors import OutputError
    from plaudit.recipe import with_columns
    from plaudit.train.folder import is_main_process, refuse_existing
    from plaudit.train.needs import check_needs

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
    if is_main_process():
        show_notes(chosen.notes, console)
    else:
        # Every process would warn of the same.
        logging.getLogger("plaudit").setLevel(logging.ERROR)
    with console.status("starting"):
        hush_weight_loading()
        from plaudit.train.run import train as run
    trained = run(mapped, folder, resume=resume, console=console)
    if not trained.metrics:
        return
    if json:
        print(json_module.dumps(trained.metrics))
    summarise_run(console, trained.folder, trained.metrics)
