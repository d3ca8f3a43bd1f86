"""Measure a saved reward model on data: predictions, metrics with intervals, baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from plaudit import __version__
from plaudit.data.load import LoadedComparisons, load_comparisons
from plaudit.data.store import StoredComparisons
from plaudit.errors import DataError
from plaudit.evaluation.analysis.baselines import BASELINES, fitted_comparisons, measure_baselines
from plaudit.evaluation.analysis.mistakes import with_texts
from plaudit.evaluation.analysis.perturbations import Probed
from plaudit.evaluation.analysis.probing import probe
from plaudit.evaluation.analysis.token_rewards import along_of
from plaudit.evaluation.facts import json_safe, summarise
from plaudit.evaluation.metrics.best_of import best_of_n
from plaudit.evaluation.rows import score_rows
from plaudit.evaluation.suites.request import Request
from plaudit.evaluation.suites.run import RunSuite, run_suite
from plaudit.evaluation.table import ScoreTable, build_table, write_table
from plaudit.recipe.schema import Source
from plaudit.report.html import REPORT_FILE, write_report
from plaudit.report.plots import write_plots
from plaudit.report.record import METRICS_FILE, MISTAKES_FILE, PLOTS_FOLDER, describe_environment
from plaudit.reward_model import RewardModel
from plaudit.reward_model import load as load_model
from plaudit.storage.atomic import check_new_folder, write_folder, write_json, write_json_lines
from plaudit.tokens.batch import PackedBatcher
from plaudit.tokens.store import Trees, encode_rows

NOT_RUN = "Perturbation tests were not run; plaudit eval --behaviour 200 runs them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The metrics of one evaluation, its predictions (one row per response) and the texts of its
    most confident mistakes.

    ``comparisons`` are those that were scored, in the table's order; None without data of its own.
    """

    metrics: Mapping[str, Any]
    table: ScoreTable
    comparisons: StoredComparisons | None
    mistakes: Sequence[Mapping[str, Any]] = ()


def evaluate(
    model: RewardModel | str | Path,
    data: str | Path | Source | Sequence[str | Path | Source],
    *,
    out: str | Path | None = None,
    baseline_data: Sequence[Source] = (),
    behaviour: int = 0,
    console: Console | None = None,
    seed: int = 42,
) -> Evaluation:
    """Score labelled comparisons and measure; with ``out``, write the folder.

    ``baseline_data`` is what the bag-of-words baseline is fitted on (the model's training data is
    the fair choice); without it that baseline is left out and said to be. ``behaviour`` is how many
    good responses are perturbed and scored again, to see what moves the reward; 0 for none.

    Raises:
        PlauditError: data or model cannot be used, or ``out`` exists.
    """
    console = Console(quiet=True) if console is None else console
    folder = None if out is None else Path(out)
    if folder is not None:
        check_new_folder(folder)
    loaded = load_comparisons(_sources(data), seed=seed)
    fitted_on = load_comparisons(baseline_data, seed=seed).comparisons if baseline_data else []
    reward_model = model if isinstance(model, RewardModel) else load_model(model)
    kept, encoded = encode_scorable(reward_model, loaded.comparisons, console)
    trees = encoded.trees
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("scoring", total=int(trees.column("packed").sum()))
        rewards = reward_model.score_trees(
            trees,
            on_batch=lambda done: progress.advance(task, sum(tree.tokens for tree in done)),
        )
    probed: Probed | str = NOT_RUN
    if behaviour:
        with console.status("perturbation tests"):
            probed = probe(
                kept,
                reward_model.encode,
                reward_model.score_trees,
                most=behaviour,
                seed=seed,
                packed=isinstance(reward_model.batcher, PackedBatcher),
            )
    # One name for the whole set: each file of it is a slice by source.
    table = build_table(score_rows("eval", kept, trees, rewards))
    block = summarise(
        table,
        dataset="eval",
        chose_checkpoint=False,
        baselines=measure_baselines(BASELINES, fitted_on, kept),
        baselines_fitted_on=fitted_comparisons(fitted_on),
        behaviour=probed,
        stored_temperature=reward_model.facts.temperature or 1.0,
        seed=seed,
    )
    metrics = json_safe(
        {
            "format": 1,
            "plaudit_version": __version__,
            "model": reward_model.source,
            "data": data_facts(loaded, encoded.dropped),
            "eval": block,
            "environment": describe_environment(str(next(reward_model.module.parameters()).device)),
        }
    )
    numbered = (("eval", number, comparison) for number, comparison in enumerate(kept))
    evaluation = Evaluation(
        metrics=metrics,
        table=table,
        comparisons=kept,
        mistakes=list(with_texts(block["mistakes"], numbered, along=along_of(reward_model))),
    )
    if folder is not None:
        write_evaluation(folder, evaluation)
    return evaluation


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Predictions, mistakes, metrics, plots and report, all or no folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_folder(
        folder,
        {
            "predictions.parquet": lambda path: write_table(evaluation.table, path),
            MISTAKES_FILE: lambda path: write_json_lines(path, evaluation.mistakes),
            METRICS_FILE: lambda path: write_json(path, evaluation.metrics),
            # These two read what was just written beside them.
            PLOTS_FOLDER: lambda path: write_plots(path.parent),
            REPORT_FILE: lambda path: write_report(path.parent),
        },
    )


def _sources(data: str | Path | Source | Sequence[str | Path | Source]) -> tuple[Source, ...]:
    entries = [data] if isinstance(data, (str, Path, Source)) else list(data)
    return tuple(e if isinstance(e, Source) else Source(path=str(e)) for e in entries)


def encode_scorable(
    model: RewardModel, comparisons: StoredComparisons, console: Console
) -> tuple[StoredComparisons, Trees]:
    """Comparisons that can be scored, and their trees with the others counted by reason."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("encoding", total=None)
        encoded = encode_rows(
            model.encoder,
            comparisons,
            on_rows=lambda done, total: progress.update(task, completed=done, total=total),
        ).of(comparisons)
    if not len(encoded.kept_N):
        counts = ", ".join(f"{reason} {count}" for reason, count in encoded.dropped.items())
        example = f"; {encoded.example}" if encoded.example else ""
        raise DataError(
            f"None of the {len(comparisons)} comparisons can be scored ({counts}{example}); the "
            f"model reads at most {model.facts.max_length} tokens."
        )
    return comparisons.take(encoded.kept_N), encoded


def data_facts(loaded: LoadedComparisons, dropped: Mapping[str, int]) -> dict[str, Any]:
    reasons = Counter(loaded.tally.dropped) + Counter(dropped)
    return {
        "rows": loaded.tally.rows,
        "used": loaded.tally.rows - sum(reasons.values()),
        "dropped": dict(reasons),
        "sources": [
            {
                "name": s.name,
                "path": s.path,
                "format": s.format,
                "fingerprint": s.fingerprint,
                "unread": asdict(s.unread),
            }
            for s in loaded.sources
        ],
    }


# ---- optional analyses: suites, best-of-N


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
        found = score_suite(model, request, console)
        suites[request.suite.name] = found.facts
        rows.append(build_table(found.rows))
    return replace(
        evaluation, metrics={**evaluation.metrics, "suites": suites}, table=concatenate(rows)
    )


def score_suite(model: RewardModel, request: Request, console: Console) -> RunSuite:
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
