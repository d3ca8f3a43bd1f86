"""What commands share on the screen: a console on stderr, quiet libraries, tables of results."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from plaudit.errors import printable
from plaudit.evaluation.numbers import (
    counted,
    fraction,
    interval,
    metric,
    probability,
    signed,
    signed_interval,
    size,
    words,
)

if TYPE_CHECKING:
    from plaudit.evaluation.schema import (
        EvaluationMetrics,
        FeatureBias,
        HistoryEntry,
        PerturbationTests,
        RunMetrics,
        Slice,
    )
    from plaudit.interop.parity import Parity
    from plaudit.reward_model import LoadArguments, RewardModel


def quiet_console() -> Console:
    """A console on stderr, with the libraries' own chatter silenced.

    Call before transformers is imported: it reads its verbosity from the environment. What the
    libraries would warn of (missing weights, tokens, schedules) is checked and said by plaudit.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for category in (UserWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(torch|peft|transformers)\.")
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
        lines = (printable(line) for line in record.getMessage().split("\n"))
        self.console.print("\n".join(lines), style="yellow", highlight=False, markup=False)


def silence_weight_loading() -> None:
    """No bar for loading weights from a local disk, and no chatter. Imports transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if os.environ.get("TRANSFORMERS_VERBOSITY") == "error":
        # It reads the variable once, and another module may have imported it before.
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


@contextmanager
def starting() -> Iterator[Console]:
    """A quiet console, with a spinner around the imports of a command."""
    console = quiet_console()
    with console.status("starting"):
        silence_weight_loading()
        yield console


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Plain lines, as they are: no markup, no wrapping."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def open_model(path: Path, **options: Unpack[LoadArguments]) -> tuple[Console, RewardModel]:
    """A quiet console, and the reward model that a command works with."""
    with starting() as console:
        from plaudit.reward_model import load
    with console.status("loading the model"):
        return console, load(path, **options)


def results_table(first: str, *numbers: str | Column, title: str | None = None) -> Table:
    """A table of names and numbers without lines.

    On a narrow screen names are folded and the columns of :func:`wrapping` wrap; others stay.
    """
    columns = (
        Column(name, justify="right", no_wrap=True) if isinstance(name, str) else name
        for name in numbers
    )
    names = Column(first, overflow="fold", min_width=12)
    return Table(names, *columns, box=None, pad_edge=False, title=title)


def wrapping(heading: str) -> Column:
    """A column that a narrow screen wraps between words: a number and its interval."""
    return Column(heading, justify="right")


def show_run_details(console: Console, metrics: RunMetrics) -> None:
    """A run in full: training results, all sentences and tables of its evaluations.

    The verdict on overfitting comes last, except where it is a finding of the summary.
    """
    if metrics.eval is not None:
        step = None if metrics.best is None else metrics.best.step
        console.print()
        console.print(history_table(metrics.eval.history or (), step))
        console.print()
    for block in (metrics.eval, metrics.test):
        if block:
            show_evaluation(console, block)
    if metrics.overfit is not None and metrics.overfit.verdict != "overfit":
        console.print(metrics.overfit.sentence, highlight=False, markup=False)


def history_table(history: Sequence[HistoryEntry], best_step: int | None) -> Table:
    """The training-results table of a model card, the best checkpoint marked."""
    headings = ("Training Loss", "Epoch", "Step", "Validation Loss", "Accuracy", "")
    table = Table(*map(wrapping, headings), box=None, pad_edge=False)
    for entry in history:
        table.add_row(
            fraction(entry.training_loss),
            fraction(entry.epoch),
            str(entry.step),
            fraction(entry.validation_loss),
            fraction(entry.accuracy),
            "best" if entry.step == best_step else "",
        )
    return table


def show_evaluation(console: Console, block: EvaluationMetrics) -> None:
    """An evaluation in plain words, then all its tables. Every number is a recorded one."""
    print_lines(console, [_headline(block)])
    console.print(_points([*block.summary, *block.perturbation_notes]))
    console.print()
    slices = [entry for entry in block.slices if entry.pairs < block.pairs]
    tables = (
        _baselines(block),
        _probabilities(block),
        _bias(block.bias.features),
        _perturbations(block.perturbations),
        _slices(slices),
    )
    for table in tables:
        if table.row_count:
            console.print(Padding(table, (0, 0, 1, 2)))


def _headline(block: EvaluationMetrics) -> str:
    """The accuracy, and what it was measured on."""
    chose = " (this data chose the checkpoint)" if block.chose_checkpoint else ""
    return (
        f"{block.dataset}: accuracy {with_interval(block.accuracy, block.accuracy_ci95)} on "
        f"{counted(block.pairs, 'pair')} of {counted(block.groups, 'prompt')}{chose}; loss "
        f"{fraction(block.loss)}"
    )


def _points(sentences: Sequence[str]) -> Table:
    """Sentences one below the other, with a hanging indent."""
    points = Table.grid(padding=(0, 1, 0, 0))
    for sentence in sentences:
        points.add_row("  •", Text(sentence))
    return points


def _baselines(block: EvaluationMetrics) -> Table:
    table = results_table("baseline", "accuracy", "95% CI", "Δ accuracy", "95% CI")
    if block.pairs:
        table.add_row("this model", metric(block.accuracy), interval(block.accuracy_ci95, 3))
    for name, baseline in block.baselines.items():
        if baseline is None:
            table.add_row(words(name), "not fitted")
        else:
            table.add_row(
                words(name),
                metric(baseline.accuracy),
                interval(baseline.accuracy_ci95, 3),
                signed(baseline.delta_accuracy, 3),
                signed_interval(baseline.delta_accuracy_ci95, 3),
            )
    return table


def _probabilities(block: EvaluationMetrics) -> Table:
    table = results_table("probabilities", "log loss", "Brier", "ECE", "ECE (equal-mass bins)")
    stored, fitted = (
        "" if temperature is None else f"{temperature:.3g}"
        for temperature in (block.stored_temperature, block.temperature)
    )
    ways = block.calibrations
    for title, found in (
        ("uncalibrated", ways.uncalibrated),
        (f"stored temperature {stored}", ways.stored),
        (f"temperature {fitted}, cross-fitted", ways.temperature),
        ("isotonic, cross-fitted", ways.isotonic),
    ):
        if found is not None and block.pairs:
            numbers = (found.nll, found.brier, found.ece, found.ece_equal_mass)
            table.add_row(title, *map(fraction, numbers))
    return table


def _bias(rows: Sequence[FeatureBias]) -> Table:
    table = results_table("feature bias", "pairs", "labels", "model", "gap", "95% CI", "adjusted p")
    for row in rows:
        if row.pairs:
            table.add_row(
                words(row.feature) + (" *" if row.significant else ""),
                f"{row.pairs:,}",
                metric(row.labels_prefer_more),
                metric(row.model_prefers_more),
                signed(row.gap, 3),
                signed_interval(row.gap_ci95, 3),
                probability(row.p_adjusted),
            )
    return table


def _perturbations(tests: PerturbationTests | None) -> Table:
    table = results_table("perturbation", "n", "fell", "95% CI", "rose", "shift", "flipped")
    kind = None
    if tests is None:
        return table
    for row in tests.rows:
        if row.kind != kind:
            kind = row.kind
            table.add_row(Text(tests.kinds[kind].meaning, style="italic"))
        table.add_row(
            f"  {words(row.perturbation)}",
            f"{row.responses:,}",
            metric(row.fell),
            interval(row.fell_ci95, 3),
            metric(row.rose),
            signed(row.shift, 3),
            metric(row.flipped),
        )
    return table


_MOST_SLICES = 24


def _slices(slices: Sequence[Slice]) -> Table:
    table = results_table("slice", "pairs", "accuracy", "95% CI", "adjusted p")
    for entry in slices[:_MOST_SLICES]:
        value = "(none)" if entry.value is None else entry.value
        mark = " (few pairs)" if entry.small else " *" if entry.significant else ""
        table.add_row(
            Text(printable(f"{words(entry.column)}: {value}{mark}")),
            f"{entry.pairs:,}",
            metric(entry.accuracy),
            interval(entry.accuracy_ci95, 3),
            probability(entry.p_adjusted),
        )
    if len(slices) > _MOST_SLICES:
        table.add_row(f"and {len(slices) - _MOST_SLICES} more in metrics.json")
    return table


def with_interval(value: float | None, ends: Sequence[float] | None) -> str:
    """A number and the ends of its interval."""
    return metric(value) + ("" if ends is None else f" ({interval(ends, 3)})")


def file_lines(
    files: Sequence[tuple[str, int]], others: Sequence[str], *, skipped: str
) -> list[str]:
    """Files with their sizes and their sum, and the names of those that were not copied."""
    total = (f"total, {counted(len(files), 'file')}", sum(held for _, held in files))
    lines = [f"  {size(held):>9}  {name}" for name, held in (*files, total)]
    folders = sorted({f"{name.partition('/')[0]}/" if "/" in name else name for name in others})
    if folders:
        lines.append(f"  {skipped}: {', '.join(folders)}")
    return lines


def parity_lines(parity: Parity | None) -> list[str]:
    """The check in words: what was compared, how far apart, what rounding did."""
    if parity is None:
        return ["  check: skipped (--no-check)"]
    compared = (
        f"  check: passed, largest reward difference {parity.largest_difference:.2g} (allowed "
        f"{parity.tolerance:.2g}) over {counted(parity.responses, 'response')} of "
        f"{counted(parity.comparisons, 'comparison')} ({parity.rows})"
    )
    lines = [compared]
    if parity.rounding is not None:
        lines.append(
            f"  rounding: rewards changed by up to {parity.rounding:.2g}, the ranking in "
            f"{parity.order_changes} of {counted(parity.comparisons, 'comparison')}"
        )
    return lines
