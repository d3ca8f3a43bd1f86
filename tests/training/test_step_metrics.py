"""What a step leaves for the log: sums over steps, and a stop at a loss that is no number."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from plaudit.training.trainer import NotFiniteError, StepMetrics, StepTotals
from plaudit.types import TokenTree

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")


def tree(index: int, tokens: int) -> TokenTree:
    return TokenTree(
        index=index, prefix=np.zeros(tokens - 1, np.int32), branches=(np.zeros(1, np.int32),)
    )


def read(meter: StepMetrics) -> StepTotals:
    return meter.read(lambda tensor: tensor)


def test_reading_sums_and_starts_again() -> None:
    meter = StepMetrics(CPU)
    meter.add(torch.tensor([1.0, -2.0, 0.0]))
    meter.add(torch.tensor([4.0]))
    meter.add(torch.zeros(0))
    meter.step(torch.tensor(0.5), [tree(0, 7), tree(1, 5)], 1)
    reading = read(meter)
    # A tie is not ordered right.
    assert (reading.pairs, reading.correct, reading.margin) == (4, 2, 3)
    assert (reading.comparisons, reading.tokens) == (2, 12)
    again = read(meter)
    assert (again.pairs, again.correct, again.margin) == (0, 0, 0)
    assert (again.comparisons, again.tokens) == (0, 0)


def test_many_small_numbers_do_not_drift() -> None:
    meter = StepMetrics(CPU)
    for _ in range(3000):
        meter.add(torch.tensor([0.1]))
    assert read(meter).margin == pytest.approx(3000 * float(torch.tensor(0.1)), rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_names_its_rows(value: float) -> None:
    meter = StepMetrics(CPU)
    meter.step(torch.tensor(1.0), [tree(0, 2)], 1)
    with pytest.raises(NotFiniteError) as caught:
        meter.step(torch.tensor(value), [tree(4, 2), tree(9, 2)], 2)
    assert str(caught.value) == "The loss of step 2 is not a finite number"
    assert caught.value.rows == (4, 9)


def test_pauses_are_not_counted() -> None:
    meter = StepMetrics(CPU)
    time.sleep(0.05)
    meter.pause(0.05)
    assert read(meter).seconds < 0.05


def test_state_goes_on_where_it_was() -> None:
    one, other = StepMetrics(CPU), StepMetrics(CPU)
    one.add(torch.tensor([1.0, -3.0]))
    one.step(torch.tensor(0.5), [tree(0, 7)], 1)
    other.restore(one.state())
    for meter in (one, other):
        meter.add(torch.tensor([2.0]))
        meter.step(torch.tensor(0.5), [tree(1, 3)], 2)
    first, second = read(one), read(other)
    assert (second.pairs, second.correct, second.margin) == (3, 2, 0)
    assert (second.comparisons, second.tokens) == (first.comparisons, first.tokens) == (2, 10)


def test_what_a_step_spoiled_names_the_steps_rows() -> None:
    meter = StepMetrics(CPU)
    meter.step(torch.tensor(1.0), [tree(4, 2)], 1)
    meter.check_after("A weight after step 1", [torch.ones(3), torch.zeros(0)])
    with pytest.raises(NotFiniteError, match="A weight after step 1 is not a finite") as caught:
        meter.check_after("A weight after step 1", [torch.ones(3), torch.tensor([1.0, torch.inf])])
    assert caught.value.rows == (4,)
