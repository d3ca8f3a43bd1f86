"""What verbs share on the screen: a console on stderr, quiet libraries, tables of results."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from plaudit.serve.scorer import RewardModel
    from plaudit.share.parity import Parity


def quiet_console() -> Console:
    """A console on stderr, with the libraries' own chatter silenced.

    Call before transformers is imported: it reads its verbosity from the environment. What the
    libraries would warn of (missing weights, tokens, schedules) is checked and said by plaudit.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|peft|transformers)\.")
    console = Console(stderr=True)
    logging.basicConfig(level=logging.ERROR)
    plaudit_log = logging.getLogger("plaudit")
    plaudit_log.setLevel(logging.WARNING)
    # Replaced, not added: a second command in one process would say everything twice.
    plaudit_log.handlers = [ScreenHandler(console)]
    plaudit_log.propagate = False
    return console


class ScreenHandler(logging.Handler):
    """Warnings of plaudit as plain lines, above a running progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(escape(record.getMessage()), style="yellow", highlight=False)


def hush_weight_loading() -> None:
    """No bar for loading weights from a local disk. Imports transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def open_model(
    path: Path, *, base: str | None, trust_remote_code: bool
) -> tuple[Console, RewardModel]:
    """A quiet console, and the reward model that a verb works with."""
    console = quiet_console()
    with console.status("starting"):
        hush_weight_loading()
        from plaudit.serve.scorer import load
    with console.status("loading the model"):
        return console, load(path, base=base, trust_remote_code=trust_remote_code)


def summarise_run(console: Console, folder: Path, metrics: Mapping[str, Any]) -> None:
    """The end of a run on the terminal: results table, accuracies in company, overfit in words."""
    if metrics["eval"] is not None:
        best = metrics["best"]
        console.print()
        console.print(history_table(metrics["eval"]["history"], best and best["step"]))
        console.print()
    for block in (metrics["eval"], metrics["test"]):
        for line in evaluation_lines(block) if block else ():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if metrics["overfit"] is not None:
        console.print(metrics["overfit"]["sentence"], highlight=False, markup=False)
    console.print(f"Written to {folder}", highlight=False, markup=False, soft_wrap=True)


def history_table(history: list[Mapping[str, Any]], best_step: int | None) -> Table:
    """The training-results table of a model card, the kept step marked."""
    table = Table(box=None, pad_edge=False)
    for heading in ("Training Loss", "Epoch", "Step", "Validation Loss", "Accuracy", ""):
        table.add_column(heading, justify="right")
    for entry in history:
        table.add_row(
            number(entry["training_loss"]),
            number(entry["epoch"]),
            str(entry["step"]),
            number(entry["validation_loss"]),
            number(entry["accuracy"]),
            "kept" if entry["step"] == best_step else "",
        )
    return table


def evaluation_lines(block: Mapping[str, Any]) -> list[str]:
    """Accuracy with its interval, never alone: ties and baselines stand beside it."""
    chose = " (this data chose the checkpoint)" if block["chose_checkpoint"] else ""
    measured_on = f"on {block['pairs']:,} pairs{chose}, {block['ties']} ties"
    lines = [
        f"{block['dataset']}: accuracy {with_interval(block)} {measured_on}; loss "
        + number(block["loss"])
    ]
    for name, measured in block["baselines"].items():
        found = (
            "not fitted: no training data given" if measured is None else with_interval(measured)
        )
        lines.append(f"  baseline {name.replace('_', ' ')}: {found}")
    if block["temperature"] is not None:
        lines.append(
            f"  calibration: ECE {number(block['ece'])}, {number(block['ece_calibrated'])} at "
            f"temperature {block['temperature']:.3g}"
        )
    return lines


def with_interval(measured: Mapping[str, Any]) -> str:
    interval = measured["accuracy_ci95"]
    if interval is None:
        return number(measured["accuracy"])
    return f"{number(measured['accuracy'])} [{number(interval[0])}, {number(interval[1])}]"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def file_lines(files: Sequence[tuple[str, int]], others: Sequence[str], *, left: str) -> list[str]:
    """Files with their sizes and their sum, and the names of those that stay where they are."""
    lines = [f"  {_size(size):>9}  {name}" for name, size in files]
    lines.append(f"  {_size(sum(size for _, size in files)):>9}  in {len(files)} files")
    folders = sorted({f"{name.partition('/')[0]}/" if "/" in name else name for name in others})
    if folders:
        lines.append(f"  {left}: {', '.join(folders)}")
    return lines


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def parity_lines(parity: Parity | None) -> list[str]:
    """The check in words: what was compared, how far apart, what rounding did."""
    if parity is None:
        return ["  not checked (--no-check)"]
    found: dict[str, Any] = asdict(parity)
    lines = [
        "  parity: {responses} responses of {comparisons} comparisons ({rows}); largest difference "
        "{largest_difference:.2g}, allowed {tolerance:.2g}".format(**found)
    ]
    if parity.rounding is not None:
        lines.append(
            "  rounding moved rewards by up to {rounding:.2g} and changed the order in "
            "{order_changes} of {comparisons} comparisons".format(**found)
        )
    return lines
