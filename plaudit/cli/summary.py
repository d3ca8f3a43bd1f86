"""The end of ``plaudit train``, ``quickstart`` and ``eval``: metrics side by side, then warnings.

To show another metric, add a row to :data:`ROWS`. Every number is a recorded one.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from plaudit.errors import printable
from plaudit.evaluation.numbers import NOTHING, interval, signed, signed_interval, words
from plaudit.evaluation.sentences import best_baseline
from plaudit.evaluation.warning_sentences import recorded_warnings

if TYPE_CHECKING:
    from plaudit.evaluation.schema import EvaluationMetrics, Interval, RunMetrics

SUMMARY_LINES: Final = 20
"""Lines that a summary takes at the most."""

_MOST_WARNINGS: Final = 2
_NAME_CHARACTERS: Final = 40

Cell: TypeAlias = "Callable[[EvaluationMetrics], str | None]"
"""A metric as text; None where an evaluation does not have it."""


def _three(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _with_interval(value: float | None, ends: Interval | None) -> str:
    return _three(value) + ("" if ends is None else f" ({interval(ends, 3)})")


def _baseline(block: EvaluationMetrics) -> str | None:
    best = best_baseline(block.baselines)
    return None if best is None else f"{words(best[0])} {_three(best[1].accuracy)}"


def _delta(block: EvaluationMetrics) -> str | None:
    best = best_baseline(block.baselines)
    if best is None:
        return None
    ends = best[1].delta_accuracy_ci95
    return signed(best[1].delta_accuracy, 3) + (
        "" if ends is None else f" ({signed_interval(ends, 3)})"
    )


def _ece(block: EvaluationMetrics) -> str:
    return f"{_three(block.ece_stored)} ({_three(block.expected_ece)})"


def _top1(block: EvaluationMetrics) -> str | None:
    ranks = block.ranks
    return None if ranks is None else f"{_three(ranks.top1)} ({_three(ranks.top1_by_chance)})"


def _degraded(block: EvaluationMetrics) -> str | None:
    tests = block.perturbations
    kind = None if tests is None else tests.kinds.get("degradation")
    return None if kind is None or kind.fell is None else _three(kind.fell)


ROWS: Final[tuple[tuple[str, Cell], ...]] = (
    ("pairs", lambda block: f"{block.pairs:,} ({block.groups:,} prompts)"),
    ("accuracy (95% CI)", lambda block: _with_interval(block.accuracy, block.accuracy_ci95)),
    ("best baseline", _baseline),
    ("Δ accuracy (95% CI)", _delta),
    ("top-1 accuracy (chance)", _top1),
    ("log loss", lambda block: _three(block.nll_stored)),
    ("ECE (calibrated model)", _ece),
    ("degradations scored lower", _degraded),
)
"""The metrics of a summary: what each is called, and how it is written."""


def metrics_table(blocks: Mapping[str, EvaluationMetrics]) -> Table:
    """The metrics of one or two evaluations, side by side."""
    table = Table(
        Column("", overflow="fold"),
        *(Column(printable(name, _NAME_CHARACTERS), overflow="fold") for name in blocks),
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for name, cell in ROWS:
        cells = [cell(block) for block in blocks.values()]
        if any(text is not None for text in cells):
            table.add_row(name, *(text or NOTHING for text in cells))
    return table


def show_run(
    console: Console,
    folder: Path,
    metrics: RunMetrics,
    *,
    next_steps: Sequence[str] | None = None,
    verbose: bool = False,
) -> None:
    """The end of a run: metrics, the strongest warnings, what was written and what to do next.

    ``next_steps`` are commands; without them they follow from the metrics. ``verbose`` shows all
    warnings.
    """
    blocks = {
        name: block
        for name, block in (("evaluation", metrics.eval), ("test", metrics.test))
        if block is not None
    }
    lines = [] if metrics.eval is None else list(_chosen_on(metrics))
    last: list[Text] = [Text(""), _written(folder)]
    steps = _next_steps(folder, [*blocks.values()]) if next_steps is None else next_steps
    last += [
        Text(f"{'Next:' if number == 0 else '':<6}{step}") for number, step in enumerate(steps)
    ]
    overfit = metrics.overfit
    always = [overfit.sentence] if overfit and overfit.verdict == "overfit" else []
    rest = None
    if not verbose:
        rest = "in the report" if (folder / "report.html").is_file() else "in metrics.json"
    _show(console, blocks, lines=lines, always=always, last=last, rest=rest)


def show_evaluation_summary(
    console: Console,
    name: str,
    block: EvaluationMetrics,
    *,
    lines: Sequence[str],
    last: Sequence[str],
    rest: str | None,
) -> None:
    """One evaluation, of the data ``name``: ``lines`` follow its metrics, ``last`` is the end.

    ``rest`` says where the other warnings are; None shows all of them.
    """
    parts = [Text(line) for line in last]
    _show(console, {name: block}, lines=lines, always=(), last=parts, rest=rest)


def _show(
    console: Console,
    blocks: Mapping[str, EvaluationMetrics],
    *,
    lines: Sequence[str],
    always: Sequence[str],
    last: Sequence[Text],
    rest: str | None,
) -> None:
    """Everything within :data:`SUMMARY_LINES`, with fewer warnings where there is no room.

    ``rest`` says where the other warnings are; without it, all are shown.
    """
    found = list(_warnings(blocks))
    first: list[Table | Text] = [Text("")]
    if blocks:
        first += [metrics_table(blocks), Text("")]
    first += map(Text, lines)
    most = len(found) if rest is None else min(_MOST_WARNINGS, len(found))
    for shown in range(most, -1, -1):
        parts = first + _findings([*found[:shown], *always])
        if len(found) > shown:
            parts.append(Text(f"  {len(found) - shown} more {_plural(found, shown)} {rest}."))
        parts += last
        height = sum(len(console.render_lines(part, pad=False)) for part in parts)
        if rest is None or height <= SUMMARY_LINES:
            break
    for part in parts:
        # Paths and commands are there to be copied, so they are not wrapped.
        console.print(part, highlight=False, soft_wrap=part in last)


def _plural(found: Sequence[str], shown: int) -> str:
    return "warning" if len(found) - shown == 1 else "warnings"


def _warnings(blocks: Mapping[str, EvaluationMetrics]) -> Iterator[str]:
    """The warnings of all evaluations, those of the test data first."""
    for name, block in reversed(list(blocks.items())):
        for sentence in recorded_warnings(block):
            yield f"{name}: {sentence}" if len(blocks) > 1 else sentence


def _findings(sentences: Sequence[str]) -> list[Table | Text]:
    """Sentences behind a mark, with a hanging indent."""
    grids: list[Table | Text] = []
    for sentence in sentences:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(Text("!", style="bold yellow"), Text(sentence))
        grids.append(grid)
    return grids


def _chosen_on(metrics: RunMetrics) -> Iterator[str]:
    """Which data chose the checkpoint, and what follows from that."""
    assert metrics.eval is not None
    if metrics.eval.chose_checkpoint:
        step = "" if metrics.best is None else f" (step {metrics.best.step})"
        advice = (
            "its metrics are biased upward" if metrics.test is None else "rely on the test metrics"
        )
        yield f"The evaluation data chose the checkpoint{step}; {advice}."


def _written(folder: Path) -> Text:
    files = (("report.html", "report.html"), ("README.md", "README.md (model card)"))
    names = ", ".join(["model", *(shown for name, shown in files if (folder / name).is_file())])
    return Text(f"Written to {folder}: {names}")


def _next_steps(folder: Path, blocks: Sequence[EvaluationMetrics]) -> list[str]:
    """What a user does next: calibrate an over-confident model, or score a file."""
    run = shlex.quote(str(folder))
    steps = [f"plaudit score {run} responses.jsonl --out scored.jsonl"]
    block = blocks[-1] if blocks else None
    if block is not None and block.temperature_improves and block.stored_temperature is None:
        steps.insert(0, f"plaudit calibrate {run} held-out.jsonl  # fit a temperature")
    return steps
