"""The end of a run and of an evaluation on the terminal: short, whole, and warnings first."""

from __future__ import annotations

import io
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from plaudit.cli.printing import show_run_details
from plaudit.cli.summary import MOST_WARNINGS, show_evaluation_summary, show_run
from plaudit.evaluation.numbers import interval, signed_interval
from plaudit.evaluation.schema import EvaluationMetrics, RunMetrics, Verdict, read_metrics
from plaudit.evaluation.sentences import best_baseline
from plaudit.report.highlights import NOT_EVALUATED

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


def mentions(lines: list[str]) -> int:
    """How many of the warnings that :func:`with_warnings` made are shown."""
    return words(lines).count(FINDING)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_end_of_a_run_is_short_and_no_number_is_cut(
    metrics: RunMetrics, width: int, count: int
) -> None:
    lines = lines_of(with_warnings(metrics, count), width)
    assert len(lines) <= 20
    assert mentions(lines) >= min(count, 1)
    assert max(map(len, lines)) <= width
    for block in (metrics.eval, metrics.test):
        assert block is not None
        best = best_baseline(block.baselines)
        assert best is not None
        assert interval(block.accuracy_ci95, 3) in words(lines)
        assert signed_interval(best[1].delta_accuracy_ci95, 3) in words(lines)


def test_the_test_data_speak_first_and_the_rest_is_counted(metrics: RunMetrics) -> None:
    text = words(lines_of(with_warnings(metrics, 3), 160))
    first, second = (
        f"! Test set: {FINDING} pairs (number 0)",
        f"! Test set: {FINDING} pairs (number 1)",
    )
    assert text.index(first) < text.index(second)
    assert "! Evaluation set:" not in text
    # This run has no report.
    assert "5 more warnings in metrics.json." in text
    fine = replace(metrics, overfit=None)
    assert "more" not in words(lines_of(with_warnings(fine, 1), 160))


def test_overfitting_is_the_last_warning(metrics: RunMetrics) -> None:
    assert metrics.overfit is not None
    metrics = with_warnings(metrics, 0)
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
    lines = lines_of(bare, 80)
    assert f"Written to {RUN}: model" in lines
    assert f"! {NOT_EVALUATED}" in words(lines)
    assert shlex.split(commands(lines)[0])[:3] == ["plaudit", "eval", str(RUN)]
    assert NOT_EVALUATED not in words(lines_of(metrics, 80))


@pytest.mark.parametrize(
    ("leaked", "sentence"),
    [
        (1, "1 held-out comparison has a prompt that is also in the training data."),
        (1200, "1,200 held-out comparisons have prompts that are also in the training data."),
    ],
)
def test_prompts_of_the_training_data_are_the_first_warning(
    metrics: RunMetrics, leaked: int, sentence: str
) -> None:
    many = with_warnings(metrics, 3)
    lines = lines_of(replace(many, data=replace(many.data, leaked_prompts=leaked)), 160)
    (first, second, *_) = (line for line in lines if line.startswith("! "))
    assert first == f"! {sentence}"
    assert second == f"! Test set: {FINDING} pairs (number 0)."
    assert "6 more warnings in metrics.json." in words(lines)


def test_an_empty_line_stands_before_each_part_and_never_two(metrics: RunMetrics) -> None:
    assert metrics.test is not None
    quiet = replace(metrics.test, chose_checkpoint=False, warnings=())
    quiet_run = replace(metrics, eval=None, test=quiet, overfit=None)
    screens = [
        lines_of(metrics, 100),
        lines_of(quiet_run, 100),
        evaluation(metrics.test, 100, last=("Written to evaluations: report.html",)),
        evaluation(quiet, 100, last=("Written to evaluations: report.html",)),
    ]
    for lines in screens:
        (written,) = (n for n, line in enumerate(lines) if line.startswith("Written to"))
        assert lines[0] == lines[written - 1] == ""
        assert ("", "") not in pairwise(lines)


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


LONG = f"Written to evaluations/{'a-long-name/' * 20}: report.html, metrics.json"


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("last", [(), (*["  A line of a suite's results."] * 14, LONG)])
def test_other_output_takes_no_warning_away(
    metrics: RunMetrics, width: int, last: tuple[str, ...]
) -> None:
    block = with_warnings(metrics, 5).eval
    assert block is not None
    lines = evaluation(block, width, last)
    assert mentions(lines) == MOST_WARNINGS
    assert LONG in lines or not last
    assert "Data: 94 rows used (5 of 99 rows skipped: tie 5)" in lines
    assert "3 more warnings with --verbose" in words(lines)
    assert words(lines).endswith(words([*last]))
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


@pytest.mark.parametrize("verdict", ["overfit", "within_noise"])
def test_verbose_says_once_whether_the_run_overfits(metrics: RunMetrics, verdict: Verdict) -> None:
    assert metrics.overfit is not None
    judged = replace(metrics, overfit=replace(metrics.overfit, verdict=verdict))
    screen = io.StringIO()
    console = Console(file=screen, width=400)
    show_run_details(console, judged)
    show_run(console, RUN, judged, verbose=True)
    assert screen.getvalue().count(metrics.overfit.sentence) == 1


def test_one_pair_of_one_prompt_is_singular(metrics: RunMetrics) -> None:
    assert metrics.test is not None
    one = replace(metrics.test, pairs=1, groups=1)
    assert "1 (1 prompt)" in words(evaluation(one, 100))
