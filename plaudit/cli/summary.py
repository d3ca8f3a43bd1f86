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

from plaudit.cli.printing import with_interval
from plaudit.errors import printable
from plaudit.evaluation.numbers import (
    NOTHING,
    counted,
    metric,
    percent,
    signed,
    signed_interval,
    words,
)
from plaudit.evaluation.sentences import best_baseline
from plaudit.evaluation.warning_sentences import recorded_warnings
from plaudit.report.highlights import all_warnings, by_weight

if TYPE_CHECKING:
    from plaudit.evaluation.schema import EvaluationMetrics, RunMetrics

MOST_WARNINGS: Final = 2
"""Warnings that a summary shows; it counts the others."""

_NAME_CHARACTERS: Final = 40
_OUTPUT_CHARACTERS: Final = 20
_SURE: Final = 0.9

MOST_OUTPUTS: Final = 3
"""Outputs that a summary shows, those of the largest weights; it counts the others."""

Cell: TypeAlias = "Callable[[EvaluationMetrics], str | None]"
"""A metric as text; None where an evaluation does not have it."""


def _baseline(block: EvaluationMetrics) -> str | None:
    best = best_baseline(block.baselines)
    return None if best is None else f"{words(best[0])} {metric(best[1].accuracy)}"


def _delta(block: EvaluationMetrics) -> str | None:
    best = best_baseline(block.baselines)
    if best is None:
        return None
    ends = best[1].delta_accuracy_ci95
    return signed(best[1].delta_accuracy, 3) + (
        "" if ends is None else f" ({signed_interval(ends, 3)})"
    )


def _ece(block: EvaluationMetrics) -> str | None:
    if not block.has_pairs:
        return None
    return f"{metric(block.ece_stored)} ({metric(block.expected_ece)})"


def _pairs(block: EvaluationMetrics) -> str | None:
    return f"{block.pairs:,} ({counted(block.groups, 'prompt')})" if block.has_pairs else None


def _accuracy(block: EvaluationMetrics) -> str | None:
    return with_interval(block.accuracy, block.accuracy_ci95) if block.has_pairs else None


def _log_loss(block: EvaluationMetrics) -> str | None:
    return metric(block.nll_stored) if block.has_pairs else None


def _rated(block: EvaluationMetrics) -> str | None:
    ratings = block.ratings
    return (
        None if ratings is None else f"{ratings.responses:,} ({counted(ratings.prompts, 'prompt')})"
    )


def _mae(block: EvaluationMetrics) -> str | None:
    ratings = block.ratings
    if ratings is None or ratings.auc is not None:
        return None
    return f"{metric(ratings.mae)} ({metric(ratings.mae_of_median)})"


def _spearman(block: EvaluationMetrics) -> str | None:
    ratings = block.ratings
    if ratings is None or ratings.auc is not None:
        return None
    return with_interval(ratings.spearman, ratings.spearman_ci95)


def _auc(block: EvaluationMetrics) -> str | None:
    ratings = block.ratings
    if ratings is None or ratings.auc is None:
        return None
    return with_interval(ratings.auc, ratings.auc_ci95)


def _label_loss(block: EvaluationMetrics) -> str | None:
    ratings = block.ratings
    return None if ratings is None or ratings.log_loss is None else metric(ratings.log_loss)


def _ties(block: EvaluationMetrics) -> str | None:
    tied = block.tied
    return None if tied is None else f"{percent(tied.share)} ({percent(tied.expected_share)})"


def _outcome_loss(block: EvaluationMetrics) -> str | None:
    tied = block.tied
    return None if tied is None else f"{metric(tied.log_loss)} ({metric(tied.log_loss_constant)})"


def _outputs(block: EvaluationMetrics) -> str | None:
    shown = [
        f"{printable(one.name, _OUTPUT_CHARACTERS)} {metric(one.own.accuracy)}"
        for one in by_weight(block.outputs)
    ]
    more = len(shown) - MOST_OUTPUTS
    return ", ".join([*shown[:MOST_OUTPUTS], *([f"{more} more"] if more > 0 else [])]) or None


def _spread(block: EvaluationMetrics) -> str | None:
    found = block.uncertainty
    if found is None or not found.pairs:
        return None
    return f"{metric(found.of('spread').auroc)} ({metric(found.of('margin').auroc)})"


def _sure(block: EvaluationMetrics) -> str | None:
    levels = () if block.uncertainty is None else block.uncertainty.levels
    sure = (one for one in levels if one.level == _SURE)
    return next((f"{metric(one.accuracy)} ({percent(one.share)})" for one in sure), None)


def _covered(block: EvaluationMetrics) -> str | None:
    found = block.uncertainty
    levels = () if found is None or found.ratings is None else found.ratings.levels
    return next((metric(one.coverage) for one in levels if one.level == _SURE), None)


def _top1(block: EvaluationMetrics) -> str | None:
    ranks = block.ranks
    return None if ranks is None else f"{metric(ranks.top1)} ({metric(ranks.top1_by_chance)})"


ROWS: Final[tuple[tuple[str, Cell], ...]] = (
    ("rated responses", _rated),
    ("MAE (median rating)", _mae),
    ("Spearman (95% CI)", _spearman),
    ("AUC (95% CI)", _auc),
    ("log loss of labels", _label_loss),
    ("pairs", _pairs),
    ("accuracy (95% CI)", _accuracy),
    ("best baseline", _baseline),
    ("Δ accuracy (95% CI)", _delta),
    ("top-1 accuracy (chance)", _top1),
    ("log loss", _log_loss),
    ("ECE (expected)", _ece),
    ("ties (expected)", _ties),
    ("log loss with ties (constant)", _outcome_loss),
    ("accuracy of outputs by own labels", _outputs),
    ("AUROC of spread (margin)", _spread),
    (f"accuracy if {_SURE:.0%} sure (share)", _sure),
    (f"ratings in {_SURE:.0%} interval", _covered),
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
            # As Text, since names of outputs come from data and are no markup.
            table.add_row(name, *(Text(text or NOTHING) for text in cells))
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
    steps = _next_steps(folder, [*blocks.values()]) if next_steps is None else next_steps
    last = [_written(folder)]
    last += [f"{'Next:' if number == 0 else '':<6}{step}" for number, step in enumerate(steps)]
    rest = "in the report" if (folder / "report.html").is_file() else "in metrics.json"
    _show(
        console,
        blocks,
        lines=[*_chosen_on(metrics)],
        warnings=all_warnings(metrics),
        last=last,
        rest=None if verbose else rest,
    )


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
    warnings = recorded_warnings(block)
    _show(console, {name: block}, lines=lines, warnings=warnings, last=last, rest=rest)


def _show(
    console: Console,
    blocks: Mapping[str, EvaluationMetrics],
    *,
    lines: Sequence[str],
    warnings: Sequence[str],
    last: Sequence[str],
    rest: str | None,
) -> None:
    """Metrics, remarks with the strongest warnings, and the end, with an empty line before each.

    ``rest`` says where the warnings beyond the strongest are; without it, all are shown.
    """
    shown = warnings if rest is None else warnings[:MOST_WARNINGS]
    remarks: list[Table | Text] = [*map(Text, lines)]
    remarks += _findings(shown)
    if more := len(warnings) - len(shown):
        remarks.append(Text(f"  {counted(more, 'more warning')} {rest}."))
    tables: list[Table | Text] = [metrics_table(blocks)] if blocks else []
    ends: list[Table | Text] = [*map(Text, last)]
    for parts in (tables, remarks, ends):
        for number, part in enumerate(parts):
            if number == 0:
                console.print()
            # Paths and commands are there to be copied, so they are not wrapped.
            console.print(part, highlight=False, soft_wrap=parts is ends)


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
    if metrics.eval is not None and metrics.eval.chose_checkpoint:
        step = "" if metrics.best is None else f" (step {metrics.best.step})"
        advice = (
            "its metrics are biased upward" if metrics.test is None else "rely on the test metrics"
        )
        yield f"The evaluation data chose the checkpoint{step}; {advice}."


def _written(folder: Path) -> str:
    files = (("report.html", "report.html"), ("README.md", "README.md (model card)"))
    names = ", ".join(["model", *(shown for name, shown in files if (folder / name).is_file())])
    return f"Written to {folder}: {names}"


def _next_steps(folder: Path, blocks: Sequence[EvaluationMetrics]) -> list[str]:
    """What a user does next: evaluate a model, calibrate an over-confident one, score a file."""
    run = shlex.quote(str(folder))
    steps = [f"plaudit score {run} responses.jsonl --out scored.jsonl"]
    block = blocks[-1] if blocks else None
    if block is None:
        steps.insert(0, f"plaudit eval {run} held-out.jsonl")
    elif block.temperature_improves and block.stored_temperature is None:
        steps.insert(0, f"plaudit calibrate {run} held-out.jsonl  # fit a temperature")
    return steps
