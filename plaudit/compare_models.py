"""What ``plaudit compare`` compares: models scored now, and scores that were recorded earlier.

A candidate is a path: a run folder, a checkpoint of a run, another model folder, the folder of an
evaluation, or a ``predictions.parquet``. A run keeps the rewards of every evaluation it made, so
its checkpoints are compared on its own evaluation data without scoring anything again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from plaudit.data.load import load_comparisons
from plaudit.data.store import StoredComparisons
from plaudit.errors import DataError, ModelError
from plaudit.evaluate_model import Evaluation, concatenate, data_facts, encode_scorable, score_suite
from plaudit.evaluation.analysis.baselines import response_text
from plaudit.evaluation.compare import Scored, align, compare
from plaudit.evaluation.regression import Gate, judge
from plaudit.evaluation.rows import score_rows
from plaudit.evaluation.suites.request import Request
from plaudit.evaluation.table import (
    EVALUATIONS_FOLDER,
    ScoreTable,
    build_table,
    evaluated_steps,
    read_rewards,
    read_table,
    rewards_file,
)
from plaudit.recipe.schema import Source
from plaudit.report.record import METRICS_FILE, read_metrics
from plaudit.storage.atomic import existing_path
from plaudit.types import Comparison

if TYPE_CHECKING:
    from plaudit.reward_model import RewardModel

PREDICTIONS = "predictions.parquet"
_MODEL_FILES = ("plaudit.json", "adapter_config.json", "config.json")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_EXAMPLE_CHARACTERS = 2000


def is_candidate(argument: str) -> bool:
    """Whether a word of the command line names a model or recorded scores, rather than data."""
    path = existing_path(argument) or Path(argument)
    if path.is_dir():
        named = (*_MODEL_FILES, PREDICTIONS, EVALUATIONS_FOLDER)
        return any((path / name).exists() for name in named)
    return path.name == PREDICTIONS


def tell_apart(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Candidates, which come first, and data.

    Raises:
        DataError: no candidate at the start, or one after the data.
    """
    kinds = [is_candidate(argument) for argument in arguments]
    count = kinds.index(False) if False in kinds else len(kinds)
    if not count:
        raise DataError(
            f"{arguments[0]} is no run folder, checkpoint, model folder or predictions.parquet; "
            "name what to compare first, then data: plaudit compare A B pairs.jsonl."
        )
    if any(kinds[count:]):
        late = arguments[kinds.index(True, count)]
        raise DataError(f"{late} is named after the data {arguments[count]}; name models first.")
    return [existing_path(a) or Path(a) for a in arguments[:count]], list(arguments[count:])


def run_comparison(
    candidates: Sequence[Path],
    data: Sequence[Source],
    *,
    base: str | None = None,
    trust_remote_code: bool = False,
    level: float = 0.05,
    seed: int = 42,
    console: Console | None = None,
) -> dict[str, Any]:
    """Compare on ``data``, or without it on the scores that were recorded; ``compare.json``.

    One run folder alone, without data: all its evaluations. With data, models are scored; recorded
    scores take part where they are of the same comparisons.

    Raises:
        PlauditError: fewer than two candidates, nothing in common, or one that cannot be opened.
    """
    console = Console(quiet=True) if console is None else console
    comparisons: Sequence[Comparison] = ()
    facts: dict[str, Any] | None = None
    if data:
        _refuse_one(len(candidates), "checkpoints of a run: plaudit compare RUN/checkpoints/*")
        options = {"base": base, "trust_remote_code": trust_remote_code}
        scored, facts, comparisons = _score_all(candidates, data, options, seed, console)
    else:
        scored, facts = recorded(candidates)
    compared = compare(align(scored), level=level, seed=seed)
    compared["examples"] = _with_texts(compared["examples"], comparisons)
    return {"data": facts, **compared}


def _refuse_one(count: int, hint: str) -> None:
    if count < 2:
        raise DataError(f"There is one model to compare; name two or more ({hint}).")


# ---- recorded ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A recorded score table, and whether its data chose the checkpoint."""

    table: ScoreTable
    chose_checkpoint: bool


def recorded(candidates: Sequence[Path]) -> tuple[list[Scored], dict[str, Any]]:
    """Recorded scores of each candidate; one run alone stands for all its evaluations.

    Raises:
        DataError: nothing was recorded where it was looked for.
    """
    alone = candidates[0]
    if len(candidates) == 1 and (alone / EVALUATIONS_FOLDER).is_dir():
        steps = _steps_of(alone)
        _refuse_one(len(steps), f"{alone} made one evaluation")
        names = [f"step {step:,}" for step in steps]
        found = [Recorded(table=_at_step(alone, s), chose_checkpoint=True) for s in steps]
    else:
        _refuse_one(len(candidates), "or one run folder, for all its evaluations")
        names = short_names(candidates)
        found = [_recorded(path) for path in candidates]
    scored = [Scored(name=n, table=f.table) for n, f in zip(names, found, strict=True)]
    chose = any(each.chose_checkpoint for each in found)
    return scored, {"scored": False, "chose_checkpoint": chose}


def _recorded(path: Path) -> Recorded:
    if path.is_file():
        return Recorded(table=read_table(path), chose_checkpoint=False)
    match = _CHECKPOINT.fullmatch(path.resolve().name)
    if match is not None:
        run = path.resolve().parent.parent
        return Recorded(table=_at_step(run, int(match[1])), chose_checkpoint=True)
    if not (path / PREDICTIONS).is_file():
        raise DataError(
            f"{path} has no {PREDICTIONS}, so there are no recorded scores of it; name data to "
            "score it on: plaudit compare A B pairs.jsonl."
        )
    return Recorded(
        table=read_table(path / PREDICTIONS), chose_checkpoint=(path / EVALUATIONS_FOLDER).is_dir()
    )


def _steps_of(run: Path) -> list[int]:
    """The steps at which a run was evaluated, in order: those recorded at its end.

    Until then, those whose rewards are there.

    Raises:
        DataError: ``metrics.json`` is damaged.
    """
    if not (run / METRICS_FILE).is_file():
        return evaluated_steps(run / EVALUATIONS_FOLDER)
    evaluation = read_metrics(run)["eval"] or {}
    return [entry["step"] for entry in evaluation.get("history") or ()]


def _at_step(run: Path, step: int) -> ScoreTable:
    """The run's evaluation rows with the rewards of that step.

    Raises:
        DataError: the run is not finished or was not evaluated at that step, or a file is missing
            or damaged.
    """
    stored = rewards_file(run / EVALUATIONS_FOLDER, step)
    if step not in _steps_of(run):
        raise DataError(
            f"{run} has no evaluation at step {step}; name data to score its checkpoints on."
        )
    if not (run / METRICS_FILE).is_file():
        raise DataError(
            f"{run} is not finished, and its {PREDICTIONS} is written at the end; finish it with "
            f"plaudit train {run} --resume, or name data to score its checkpoints on."
        )
    restore = "restore it from a backup, or name data to score the checkpoints on."
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
            f"{stored} has {inside} rewards, which are not those of the evaluation rows in "
            f"{run / PREDICTIONS}; name data to score the checkpoints on."
        )
    keep_N = np.arange(len(table)) < inside
    return replace(table.where(keep_N), reward_N=reward_N)


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
    options: Mapping[str, Any],
    seed: int,
    console: Console,
) -> tuple[list[Scored], dict[str, Any], StoredComparisons]:
    # Recorded scores are compared without waiting for torch.

    loaded = load_comparisons(data, seed=seed)
    names = short_names(candidates)
    refused = {}
    scored = []
    for name, path in zip(names, candidates, strict=True):
        if is_recorded(path):
            scored.append(Scored(name=name, table=recorded_table(path)))
            continue
        model = open_candidate(path, options, console)
        table, refused[name] = score(model, loaded.comparisons, name, console)
        scored.append(Scored(name=name, table=table))
    facts = {
        "scored": True,
        "chose_checkpoint": False,
        **data_facts(loaded, {}),
        "refused": refused,
    }
    return scored, facts, loaded.comparisons


def is_recorded(path: Path) -> bool:
    """Whether a candidate is scores alone, without a model to score more."""
    return path.is_file() or not any((path / file).is_file() for file in _MODEL_FILES)


def recorded_table(path: Path) -> ScoreTable:
    """The scores recorded in an evaluation folder or a ``predictions.parquet``.

    Raises:
        DataError: there are none.
    """
    return _recorded(path).table


def open_candidate(path: Path, options: Mapping[str, Any], console: Console) -> RewardModel:
    """Load a model; ``options`` are those of :func:`plaudit.reward_model.load`."""
    from plaudit import reward_model

    with console.status(f"loading {path}"):
        return reward_model.load(path, **options)


def score(
    model: RewardModel, comparisons: StoredComparisons, name: str, console: Console
) -> tuple[ScoreTable, dict[str, int]]:
    """The score table of one model, and comparisons that it refused, by reason.

    Raises:
        ModelError: the model can score none of them.
    """
    try:
        kept, encoded = encode_scorable(model, comparisons, console)
    except DataError as error:
        raise ModelError(f"{name}: {error}") from None
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"scoring {name}", total=int(encoded.trees.column("packed").sum()))
        rewards = model.score_trees(
            encoded.trees,
            on_batch=lambda done: progress.advance(task, sum(tree.tokens for tree in done)),
        )
    table = build_table(score_rows("eval", kept, encoded.trees, rewards))
    return table, dict(encoded.dropped)


def _with_texts(
    examples: Sequence[dict[str, Any]], comparisons: Sequence[Comparison]
) -> list[dict[str, Any]]:
    """The examples with their texts and where they stand, if the data were read."""
    wanted = {_key(example) for example in examples}
    texts: dict[tuple[str, str, str], Comparison] = {}
    for comparison in comparisons if wanted else ():
        key = comparison.source, comparison.id, comparison.group
        if key in wanted:
            texts[key] = comparison
    return [_with_text(example, texts.get(_key(example))) for example in examples]


def _key(example: Mapping[str, Any]) -> tuple[str, str, str]:
    return example["source"], example["id"], example["group"]


def _with_text(example: dict[str, Any], found: Comparison | None) -> dict[str, Any]:
    if found is None:
        return example
    prompt = found.prompt
    return {
        **example,
        "where": found.where,
        "prompt": response_text(prompt)[-_EXAMPLE_CHARACTERS:],
        "better_text": response_text(found.responses[example["better"]])[:_EXAMPLE_CHARACTERS],
        "worse_text": response_text(found.responses[example["worse"]])[:_EXAMPLE_CHARACTERS],
    }


# ---- a regression check of one evaluation against a baseline


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
        model = open_candidate(baseline, options, console)
        tables = [build_table(score_suite(model, request, console).rows) for request in requests]
        if evaluation.comparisons is not None:
            tables.insert(0, score(model, evaluation.comparisons, str(baseline), console)[0])
        table = concatenate(tables)
    block = judge(
        Scored(name="this model", table=evaluation.table),
        Scored(name=str(baseline), table=table),
        gate,
    )
    return replace(evaluation, metrics={**evaluation.metrics, "gate": block})
