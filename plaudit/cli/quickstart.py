"""``plaudit quickstart``: the whole main job on what comes with the package, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plaudit.cli import options


def quickstart(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/quickstart"),
    set_: options.Set = None,
    resume: options.Resume = False,
) -> None:
    """Train, evaluate and report on the embedded base and documentation: minutes, offline."""
    from plaudit.cli.printing import hush_weight_loading, quiet_console, summarise_run
    from plaudit.embedded import quickstart_path
    from plaudit.recipe.load import load_recipe
    from plaudit.training.folder import refuse_existing

    recipe = load_recipe(quickstart_path(), set_ or ())
    if not resume:
        refuse_existing(out)
    console = quiet_console()
    with console.status("starting (importing torch takes a few seconds)"):
        hush_weight_loading()
        from plaudit.training.run import train
    trained = train(recipe, out, resume=resume, console=console)
    summarise_run(console, trained.folder, trained.metrics)
    if trained.metrics["test"] is not None:
        console.print()
        console.print(operator_table(trained.metrics["test"]))
    # Not wrapped: these lines are there to be copied.
    console.print(NEXT_STEPS.format(out=out), highlight=False, markup=False, soft_wrap=True)


NEXT_STEPS = """
Next:
  look at it         open {out}/report.html, or read {out}/README.md
  your own data      plaudit train {out} --data pairs.jsonl --set data.test=null --out runs/mine
  a bigger base      … --model path/to/model (or a Hub id)
  score a file       plaudit score {out} pairs.jsonl --out scored.jsonl
  what it would cost plaudit plan {out} --model meta-llama/Meta-Llama-3-8B"""


def operator_table(block: Any) -> Any:
    """Accuracy by operator on held-out modules, with intervals, the hardest first."""
    from rich.table import Table

    from plaudit.cli.printing import with_interval

    table = Table(box=None, pad_edge=False, title="Held-out modules, by kind of damage")
    table.add_column("operator")
    table.add_column("pairs", justify="right")
    table.add_column("accuracy [95% interval]", justify="right")
    slices = [s for s in block["slices"] if s["column"] == "subset"]
    for found in sorted(slices, key=lambda s: s["accuracy"]):
        table.add_row(found["value"].replace("_", " "), str(found["pairs"]), with_interval(found))
    return table
