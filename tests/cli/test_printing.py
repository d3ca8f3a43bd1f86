"""What an evaluation looks like on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from plaudit.cli.printing import (
    results_table,
    show_evaluation,
    with_interval,
    wrapping,
)
from plaudit.evaluation.numbers import interval, signed_interval
from plaudit.evaluation.schema import EvaluationMetrics, read_metrics

GOLDEN = Path(__file__).parents[1] / "goldens" / "run"


def shown(block: EvaluationMetrics, width: int) -> str:
    screen = io.StringIO()
    show_evaluation(Console(file=screen, width=width), block)
    return screen.getvalue()


def intervals(block: EvaluationMetrics) -> Iterator[str]:
    """Every interval that a table of the screen holds."""
    for facts in block.baselines.values():
        yield interval(facts.accuracy_ci95, 3)
        yield signed_interval(facts.delta_accuracy_ci95, 3)
    for row in block.bias.features:
        if row.pairs:
            yield signed_interval(row.gap_ci95, 3)
    for test in block.perturbations.rows if block.perturbations else ():
        yield interval(test.fell_ci95, 3)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("role", ["eval", "test"])
def test_no_number_is_cut_off(role: str, width: int) -> None:
    """A table wider than the screen would lose its last columns without a word."""
    block = getattr(read_metrics(GOLDEN), role)
    if block is None:
        pytest.skip("the golden run has no such part")
    text = shown(block, width)
    assert max(len(line.rstrip()) for line in text.splitlines()[1:]) <= width
    for ends in intervals(block):
        assert ends in text


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_screen_cuts_neither_names_nor_numbers(width: int) -> None:
    """Checkpoints differ at the end of their names."""
    accuracy, loss = wrapping("accuracy (95% CI)"), wrapping("log loss (95% CI)")
    table = results_table("model", accuracy, "p", loss, "p")
    table.add_row("runs/checkpoint-1000", *[with_interval(0.9, (0.88, 0.92)), "< 0.0001"] * 2)
    screen = io.StringIO()
    Console(file=screen, width=width).print(table)
    lines = screen.getvalue().splitlines()
    names = "".join(line.split()[0] for line in lines if not line.startswith(" "))
    assert names == "modelruns/checkpoint-1000"
    for piece in ("0.900 ", "(0.880", "0.920)", "< 0.0001"):
        assert screen.getvalue().count(piece) == 2
