"""What ``plaudit eval`` can add to an evaluation: suites, best-of-N, a gate against a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from plaudit import __version__
from plaudit.evaluate_model import Evaluation
from plaudit.evaluation.candidates import is_recorded, open_contestant, recorded_table, score
from plaudit.evaluation.compare import Scored
from plaudit.evaluation.facts import json_safe
from plaudit.evaluation.metrics.best_of import best_of_n
from plaudit.evaluation.regression import Gate, judge
from plaudit.evaluation.suites.request import Request
from plaudit.evaluation.suites.run import RunSuite, run_suite
from plaudit.evaluation.table import ScoreTable, build_table
from plaudit.report.record import describe_environment
from plaudit.reward_model import RewardModel


def without_data(model: RewardModel) -> Evaluation:
    """An evaluation of nothing, for suites to be added to."""
    device = str(next(model.module.parameters()).device)
    metrics = json_safe(
        {
            "format": 1,
            "plaudit_version": __version__,
            "model": model.source,
            "data": None,
            "eval": None,
            "environment": describe_environment(device),
        }
    )
    return Evaluation(metrics=metrics, table=build_table(()), comparisons=None)


def add_suites(
    evaluation: Evaluation, model: RewardModel, requests: Sequence[Request], console: Console
) -> Evaluation:
    """With ``suites`` in the metrics, by name, and their rows in the table.

    Raises:
        DataError: a suite's files are missing or not the suite's.
    """
    suites, rows = {}, [evaluation.table]
    for request in requests:
        found = _run(model, request, console)
        suites[request.suite.name] = found.facts
        rows.append(build_table(found.rows))
    return replace(
        evaluation, metrics={**evaluation.metrics, "suites": suites}, table=concatenate(rows)
    )


def _run(model: RewardModel, request: Request, console: Console) -> RunSuite:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"scoring {request.suite.title}", total=None)
        return run_suite(
            model,
            request,
            on_batch=lambda done, total: progress.update(task, completed=done, total=total),
        )


def add_best_of(evaluation: Evaluation) -> Evaluation:
    """With ``best_of`` in the metrics, from the grades of the evaluated responses.

    Raises:
        DataError: no prompt has at least three graded responses.
    """
    block = best_of_n(evaluation.table)
    return replace(evaluation, metrics={**evaluation.metrics, "best_of": block})


def add_gate(
    evaluation: Evaluation,
    baseline: Path,
    requests: Sequence[Request],
    gate: Gate,
    *,
    options: Mapping[str, Any],
    console: Console,
) -> Evaluation:
    """With ``gate`` in the metrics: is the model significantly worse than ``baseline``?

    The baseline is scored on the same data and suites, or its recorded scores are read.
    ``options`` are those of :func:`plaudit.reward_model.load`.

    Raises:
        PlauditError: the baseline cannot be used, or nothing is in common.
    """
    if is_recorded(baseline):
        table = recorded_table(baseline)
    else:
        model = open_contestant(baseline, options, console)
        tables = [build_table(_run(model, request, console).rows) for request in requests]
        if evaluation.comparisons is not None:
            tables.insert(0, score(model, evaluation.comparisons, str(baseline), console)[0])
        table = concatenate(tables)
    block = judge(
        Scored(name="this model", table=evaluation.table),
        Scored(name=str(baseline), table=table),
        gate,
    )
    return replace(evaluation, metrics={**evaluation.metrics, "gate": block})


def concatenate(tables: Sequence[ScoreTable]) -> ScoreTable:
    """One table after the other; a metadata column that a table lacks is None there."""
    filled = [table for table in tables if len(table)] or list(tables[:1])
    columns = {
        name: np.concatenate([getattr(table, name) for table in filled])
        for name in ScoreTable.__slots__
        if name != "metadata"
    }
    names = dict.fromkeys(name for table in filled for name in table.metadata)
    metadata = {
        name: np.concatenate(
            [t.metadata.get(name, np.full(len(t), None, dtype=np.object_)) for t in filled]
        )
        for name in names
    }
    return ScoreTable(**columns, metadata=metadata)
