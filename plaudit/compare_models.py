"""Compare reward models pair by pair: models scored now, and scores that were recorded earlier.

A candidate is a path: a run folder, a checkpoint of a run, another model folder, the folder of an
evaluation, or a ``predictions.parquet``. A run keeps the rewards of every evaluation it made, so
its checkpoints are compared on its own evaluation data without scoring anything again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from plaudit import __version__
from plaudit.data.load import load_comparisons
from plaudit.data.store import StoredComparisons
from plaudit.errors import DataError
from plaudit.evaluate_model import (
    PREDICTIONS,
    OpenOptions,
    as_sources,
    data_use,
    is_candidate,
    is_recorded,
    open_model,
    recorded_table,
    score_comparisons,
)
from plaudit.evaluation.analysis.features import response_text
from plaudit.evaluation.compare import (
    Example,
    ModelComparison,
    Scored,
    align,
    compare_aligned,
)
from plaudit.evaluation.metrics.pairwise import ALPHA
from plaudit.evaluation.schema import METRICS_FILE, DataUse, json_safe, parts, read_metrics
from plaudit.evaluation.table import (
    EVALUATIONS_FOLDER,
    ScoreTable,
    evaluated_steps,
    read_rewards,
    read_table,
    rewards_file,
)
from plaudit.recipe.schema import Source
from plaudit.report.comparison import comparison_figure
from plaudit.report.plots import save_figure
from plaudit.storage.atomic import check_new_folder, existing_path, write_folder, write_json
from plaudit.types import Comparison

COMPARISON_FILE = "comparison.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_EXAMPLE_CHARACTERS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions(OpenOptions):
    """How :func:`compare` tests, and the folder that it writes; filled by ``plaudit compare``.

    ``alpha`` is the significance level.
    """

    out: Path | None = None
    alpha: float = ALPHA


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedData:
    """What the models were compared on.

    ``scored``: models scored ``use`` now; otherwise all scores are recorded ones. ``skipped``
    counts comparisons that a model could not score, by model and reason; ``dtypes`` has the
    precision of the body of each model that scored. ``chose_checkpoint``: a run chose its best
    checkpoint on these data.
    """

    scored: bool
    chose_checkpoint: bool
    use: DataUse | None = None
    skipped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult(ModelComparison):
    """The content of ``comparison.json``."""

    format: int = 1
    plaudit_version: str = __version__
    data: ComparedData


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Candidates, which come first, and data.

    Raises:
        DataError: no candidate at the start, or one after the data.
    """
    kinds = [is_candidate(argument) for argument in arguments]
    count = kinds.index(False) if False in kinds else len(kinds)
    if not count:
        raise DataError(
            f"{arguments[0]} is not a run folder, checkpoint, model folder or"
            " predictions.parquet; name the models first, then the data: plaudit compare A B"
            " pairs.jsonl."
        )
    if any(kinds[count:]):
        late = arguments[kinds.index(True, count)]
        raise DataError(
            f"{late} comes after the data {arguments[count]}; name the models first, then the data."
        )
    return [existing_path(a) or Path(a) for a in arguments[:count]], list(arguments[count:])


def compare(
    candidates: Sequence[Path],
    data: str | Path | Source | Sequence[str | Path | Source] = (),
    options: CompareOptions = CompareOptions(),
    *,
    console: Console | None = None,
) -> ComparisonResult:
    """Compare models on ``data``, or without data on their recorded scores.

    One run folder alone, without data: all its evaluations. With data, models are scored; recorded
    scores take part where they are of the same comparisons. With ``options.out``, write
    ``comparison.json`` and ``comparison.png`` there.

    Raises:
        PlauditError: fewer than two candidates, nothing in common, one that cannot be opened, or
            ``options.out`` exists.
    """
    console = Console(quiet=True) if console is None else console
    if options.out is not None:
        check_new_folder(options.out)
    comparisons: Sequence[Comparison] = ()
    sources = as_sources(data)
    if sources:
        _check_several(
            len(candidates), "for the checkpoints of a run: plaudit compare RUN/checkpoints/*"
        )
        scored, used, comparisons = _score_all(candidates, sources, options, console)
    else:
        scored, used = _recorded_scores(candidates)
    comparison = compare_aligned(align(scored), alpha=options.alpha, seed=options.seed)
    values = {**parts(comparison), "examples": _with_texts(comparison.examples, comparisons)}
    result = ComparisonResult(data=used, **values)
    if options.out is not None:
        write_folder(
            options.out,
            {
                COMPARISON_FILE: lambda path: write_json(path, json_safe(result)),
                "comparison.png": lambda path: save_figure(comparison_figure(result), path),
            },
        )
    return result


def _check_several(count: int, hint: str) -> None:
    if count < 2:
        raise DataError(f"Only one model to compare; name two or more ({hint}).")


# ---- recorded ------------------------------------------------------------------------------------


def _recorded_scores(candidates: Sequence[Path]) -> tuple[list[Scored], ComparedData]:
    """Recorded scores of each candidate; one run alone stands for all its evaluations."""
    alone = candidates[0]
    if len(candidates) == 1 and (alone / EVALUATIONS_FOLDER).is_dir():
        steps = _steps_of(alone)
        _check_several(len(steps), f"{alone} has a single evaluation")
        scored = [Scored(name=f"step {step:,}", table=_at_step(alone, step)) for step in steps]
    else:
        _check_several(len(candidates), "or one run folder, to compare its evaluations")
        named = zip(short_names(candidates), candidates, strict=True)
        scored = [Scored(name=name, table=_recorded(path)) for name, path in named]
    chose = any(
        _step_of(path) is not None or (path / EVALUATIONS_FOLDER).is_dir() for path in candidates
    )
    return scored, ComparedData(scored=False, chose_checkpoint=chose)


def _step_of(path: Path) -> int | None:
    """The step of a checkpoint; None for any other candidate."""
    match = _CHECKPOINT.fullmatch(path.resolve().name)
    return int(match[1]) if match is not None and path.is_dir() else None


def _recorded(path: Path) -> ScoreTable:
    step = _step_of(path)
    return recorded_table(path) if step is None else _at_step(path.resolve().parent.parent, step)


def _steps_of(run: Path) -> list[int]:
    """The steps at which a run was evaluated, in order: those recorded at its end.

    Until then, those whose rewards are there.

    Raises:
        DataError: ``metrics.json`` is damaged.
    """
    if not (run / METRICS_FILE).is_file():
        return evaluated_steps(run / EVALUATIONS_FOLDER)
    evaluation = read_metrics(run).eval
    history = None if evaluation is None else evaluation.history
    return [entry.step for entry in history or ()]


def _at_step(run: Path, step: int) -> ScoreTable:
    """The run's evaluation rows with the rewards of that step.

    Raises:
        DataError: the run is not finished or was not evaluated at that step, or a file is missing
            or damaged.
    """
    stored = rewards_file(run / EVALUATIONS_FOLDER, step)
    if step not in _steps_of(run):
        raise DataError(
            f"{run} has no evaluation at step {step}; name data to score its checkpoints."
        )
    if not (run / METRICS_FILE).is_file():
        raise DataError(
            f"{run} is not finished, so it has no {PREDICTIONS} yet; finish it with plaudit train"
            f" {run} --resume, or name data to score its checkpoints."
        )
    restore = "restore it from a backup, or name data to score the checkpoints."
    if not (run / PREDICTIONS).is_file():
        raise DataError(f"{run / PREDICTIONS} is missing; {restore}")
    table = read_table(run / PREDICTIONS)
    try:
        reward_N = read_rewards(run / EVALUATIONS_FOLDER, step)
    except DataError as error:
        raise DataError(f"{error}; {restore}") from None
    # The evaluation sets come first, then the test sets, each whole.
    inside = len(reward_N)
    whole = inside == len(table) or (
        inside < len(table) and table.dataset_N[inside - 1] != table.dataset_N[inside]
    )
    if not whole or inside == 0:
        raise DataError(
            f"{stored} has {inside} rewards, which do not match the evaluation rows in"
            f" {run / PREDICTIONS}; name data to score the checkpoints."
        )
    keep_N = np.arange(len(table)) < inside
    return replace(table.take(keep_N), reward_N=reward_N)


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell them apart.

    Raises:
        DataError: one path is named twice.
    """
    parts = [path.resolve().parts for path in paths]
    twice = [path for path, count in Counter(parts).items() if count > 1]
    if twice:
        raise DataError(f"{Path(*twice[0])} is named twice; name different models.")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names


# ---- scored now ----------------------------------------------------------------------------------


def _score_all(
    candidates: Sequence[Path],
    data: Sequence[Source],
    options: CompareOptions,
    console: Console,
) -> tuple[list[Scored], ComparedData, StoredComparisons]:
    loaded = load_comparisons(data, seed=options.seed)
    skipped: dict[str, Mapping[str, int]] = {}
    dtypes: dict[str, str] = {}
    scored = []
    for name, path in zip(short_names(candidates), candidates, strict=True):
        if is_recorded(path):
            scored.append(Scored(name=name, table=recorded_table(path)))
            continue
        model = open_model(path, console, options)
        _, held_out, reasons = score_comparisons(model, loaded.comparisons, console, name=name)
        skipped[name], dtypes[name] = dict(reasons), model.dtype
        scored.append(Scored(name=name, table=held_out.table))
    used = ComparedData(
        scored=True,
        chose_checkpoint=False,
        use=data_use(loaded, {}),
        skipped=skipped,
        dtypes=dtypes,
    )
    return scored, used, loaded.comparisons


def _with_texts(
    examples: Sequence[Example], comparisons: Sequence[Comparison]
) -> tuple[Example, ...]:
    """The examples with their texts and where they are, if the data were read."""
    wanted = {(example.source, example.id, example.group) for example in examples}
    texts = {
        key: comparison
        for comparison in (comparisons if wanted else ())
        if (key := (comparison.source, comparison.id, comparison.group)) in wanted
    }
    return tuple(
        replace(
            example,
            where=row.where,
            prompt=response_text(row.prompt)[-_EXAMPLE_CHARACTERS:],
            better_text=response_text(row.responses[example.better])[:_EXAMPLE_CHARACTERS],
            worse_text=response_text(row.responses[example.worse])[:_EXAMPLE_CHARACTERS],
        )
        if (row := texts.get((example.source, example.id, example.group)))
        else example
        for example in examples
    )
