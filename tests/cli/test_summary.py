"""The end of a run and of an evaluation on the terminal: short, whole, and warnings first."""

from __future__ import annotations

import io
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from plaudit.cli.summary import SUMMARY_LINES, show_evaluation_summary, show_run
from plaudit.evaluation.numbers import interval, signed_interval
from plaudit.evaluation.schema import EvaluationMetrics, RunMetrics, read_metrics
from plaudit.evaluation.sentences import best_baseline

GOLDEN = Path(__file__).parents[1] / "goldens" / "run"
RUN = Path("runs/a name")
FINDING = "A finding of the kind that takes two lines of a terminal with 80 columns: 46.0% of 100"


@pytest.fixture
def metrics() -> RunMetrics:
    return read_metrics(GOLDEN)


def lines_of(
    metrics: RunMetrics, width: int, *, next_steps: tuple[str, ...] | None = None
) -> list[str]:
    screen = io.StringIO()
    show_run(Console(file=screen, width=width), RUN, metrics, next_steps=next_steps)
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def words(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def with_warnings(metrics: RunMetrics, count: int) -> RunMetrics:
    """The run with so many warnings in each of its evaluations."""
    assert metrics.eval is not None
    assert metrics.test is not None
    found = tuple(f"{FINDING} pairs (number {number})." for number in range(count))
    return replace(
        metrics,
        eval=replace(metrics.eval, warnings=found),
        test=replace(metrics.test, warnings=found),
    )


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_end_of_a_run_is_short_and_no_number_is_cut(
    metrics: RunMetrics, width: int, count: int
) -> None:
    lines = lines_of(with_warnings(metrics, count), width)
    assert len(lines) <= SUMMARY_LINES
    assert max(map(len, lines)) <= width
    for block in (metrics.eval, metrics.test):
        assert block is not None
        best = best_baseline(block.baselines)
        assert best is not None
        assert interval(block.accuracy_ci95, 3) in words(lines)
        assert signed_interval(best[1].delta_accuracy_ci95, 3) in words(lines)


def test_the_test_data_speak_first_and_the_rest_is_counted(metrics: RunMetrics) -> None:
    text = words(lines_of(with_warnings(metrics, 3), 160))
    first, second = f"! test: {FINDING} pairs (number 0)", f"! test: {FINDING} pairs (number 1)"
    assert text.index(first) < text.index(second)
    assert "! evaluation:" not in text
    # This run has no report.
    assert "4 more warnings in metrics.json." in text
    assert "more" not in words(lines_of(with_warnings(metrics, 1), 160))


def test_overfitting_is_shown_where_it_is_a_finding(metrics: RunMetrics) -> None:
    assert metrics.overfit is not None
    assert f"! {metrics.overfit.sentence}" in words(lines_of(metrics, 100))
    fine = replace(metrics, overfit=replace(metrics.overfit, verdict="within_noise"))
    assert metrics.overfit.sentence not in words(lines_of(fine, 100))


def test_what_chose_the_checkpoint_is_named(metrics: RunMetrics) -> None:
    sentence = "The evaluation data chose the checkpoint (step 6000)"
    assert f"{sentence}; rely on the test metrics." in words(lines_of(metrics, 100))
    without = replace(metrics, test=None)
    assert f"{sentence}; its metrics are biased upward." in words(lines_of(without, 100))


def commands(lines: list[str]) -> list[str]:
    return [line.removeprefix("Next:").strip() for line in lines if "plaudit " in line]


def test_an_over_confident_model_is_calibrated_next(metrics: RunMetrics) -> None:
    assert metrics.test is not None
    (score,) = commands(lines_of(metrics, 100))
    assert shlex.split(score)[:3] == ["plaudit", "score", str(RUN)]
    hot = replace(metrics.test, temperature_improves=True, stored_temperature=None)
    calibrate, _ = commands(lines_of(replace(metrics, test=hot), 100))
    assert shlex.split(calibrate)[:3] == ["plaudit", "calibrate", str(RUN)]


def test_next_steps_of_another_command_are_shown_in_their_place(metrics: RunMetrics) -> None:
    assert commands(lines_of(metrics, 100, next_steps=("plaudit one", "plaudit two"))) == [
        "plaudit one",
        "plaudit two",
    ]


def test_a_run_without_evaluation_says_where_its_model_is(metrics: RunMetrics) -> None:
    bare = replace(metrics, eval=None, test=None, overfit=None)
    assert f"Written to {RUN}: model" in lines_of(bare, 80)


def evaluation(
    block: EvaluationMetrics,
    width: int,
    last: tuple[str, ...] = (),
    rest: str | None = "with --verbose",
) -> list[str]:
    screen = io.StringIO()
    console = Console(file=screen, width=width)
    skipped = ("Data: 94 rows used (5 of 99 rows skipped: tie 5)",)
    show_evaluation_summary(console, "pairs", block, lines=skipped, last=last, rest=rest)
    return [line.rstrip() for line in screen.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("last", [(), ("One more line, such as a verdict.",) * 3])
def test_an_evaluation_is_as_short(metrics: RunMetrics, width: int, last: tuple[str, ...]) -> None:
    block = with_warnings(metrics, 5).eval
    assert block is not None
    lines = evaluation(block, width, last)
    assert len(lines) <= SUMMARY_LINES
    assert "Data: 94 rows used (5 of 99 rows skipped: tie 5)" in lines
    assert "3 more warnings with --verbose" in words(lines)
    assert words(lines).endswith(" ".join(last))
    assert "pairs" in lines[1]


def test_verbose_shows_every_warning(metrics: RunMetrics) -> None:
    many = with_warnings(metrics, 9)
    assert many.eval is not None
    text = words(evaluation(many.eval, 100, rest=None))
    assert all(f"! {sentence}" in text for sentence in many.eval.warnings)
    screen = io.StringIO()
    show_run(Console(file=screen, width=100), RUN, many, verbose=True)
    assert screen.getvalue().count(FINDING[:40]) == 18
    assert "more warning" not in screen.getvalue()
