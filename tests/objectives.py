"""Run folders of tests whose models were trained on ratings or ties: recorded metrics alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.evaluation.schema import (
    EvaluationMetrics,
    HistoryEntry,
    RunMetrics,
    RunObjective,
    json_safe,
    read_metrics,
)
from plaudit.evaluation.summary import EvaluationContext, summarise
from plaudit.model.checkpoint import CheckpointMetadata
from plaudit.recipe.objectives import OBJECTIVES, parameters_of
from plaudit.storage.atomic import write_json
from plaudit.types import Outputs, RewardTransform, TrainedObjective
from tests.tables import score_table

GOLDEN = Path(__file__).parent / "goldens" / "run"

LEARNED = {"davidson": (-0.3,), "rao_kupper": (-0.5,), "ordinal": (-1.5, 0.1, 0.2, -0.1)}


def trained_for(kind: str) -> TrainedObjective:
    """The objective of a model that learned something."""
    levels = (1.0, 2.0, 3.0, 4.0, 5.0) if kind == "ordinal" else ()
    return TrainedObjective(kind=kind, learned=LEARNED.get(kind, ()), levels=levels)


def evaluated(kind: str, *, noise: float = 0.6, responses: int = 200) -> EvaluationMetrics:
    """Single rated responses, or pairs with ties for davidson; ``noise`` is that of the rewards."""
    rng = np.random.default_rng(0)
    if OBJECTIVES[kind].learns_from == "ratings":
        rating_N = rng.integers(0, 2, responses) if kind == "bce" else rng.integers(1, 6, responses)
        centre_N = rating_N * 2.0 - 1.0 if kind == "bce" else rating_N.astype(float)
        reward_N = centre_N + rng.normal(0, noise, responses)
        rows = [
            [{"reward": float(reward), "grade": float(rating), "rated": True}]
            for reward, rating in zip(reward_N, rating_N, strict=True)
        ]
    else:
        grade_N = rng.integers(0, 3, responses)
        rows = [
            [
                {"reward": float(grade - 1 + rng.normal(0, noise)), "grade": float(grade)},
                {"reward": 0.0, "grade": 1.0},
            ]
            for grade in grade_N
        ]
    entry = {"accuracy": None, "accuracy_ci95": None, "accuracy_ci95_method": None}
    history = [
        HistoryEntry(
            step=step, epoch=step / 8, training_loss=0.9, validation_loss=0.8, mae=0.7, **entry
        )
        for step in (2, 4)
    ]
    context = EvaluationContext(dataset="eval", objective=trained_for(kind), history=history)
    return summarise(score_table(rows), context)


def write_run(folder: Path, kind: str, *, noise: float = 0.6) -> RunMetrics:
    """``metrics.json`` of a run of this objective, the rest of it as in the golden run."""
    golden, row = read_metrics(GOLDEN), OBJECTIVES[kind]
    objective = RunObjective(
        family=row.family,
        formula=row.formula,
        where=row.where,
        source=row.source,
        options={"label_smoothing": 0.125},
        learned=parameters_of(kind, LEARNED[kind]) if kind in LEARNED else {},
        offset=2.7182 if row.family == "pointwise" else 0.0,
    )
    train = replace(golden.train, pairs=0) if row.family == "pointwise" else golden.train
    metrics = replace(
        golden,
        run=replace(golden.run, loss=kind, objective=objective),
        train=train,
        eval=evaluated(kind, noise=noise),
        test=None,
        overfit=None,
        best=None,
    )
    write_json(folder / "metrics.json", json_safe(metrics))
    return metrics


def model_metadata(
    kind: str, learned: tuple[float, ...] = (), offset: float = 0.0
) -> CheckpointMetadata:
    """``plaudit.json`` of a model of this objective."""
    return CheckpointMetadata(
        kind="adapter",
        base="base",
        base_revision=None,
        max_length=64,
        text="chat",
        chat_template=None,
        pad_token="<pad>",
        attention="packed",
        attention_note=None,
        head={},
        reward_transform=RewardTransform(offset=offset),
        objective=TrainedObjective(kind=kind, learned=learned),
    )


HOSTILE_NAMES = ("<b>help|ful</b>", "$x_y$ `true` [a](b)", "short\u202e\x1b[31m")
"""Names of attributes, as data may have them, that mean harm to a page, a card and a terminal."""

NAMED = Outputs(names=HOSTILE_NAMES, weights=(0.75, 0.5, -0.25), offsets=(1.0, 2.0, 3.0))
ENSEMBLE = Outputs(
    names=tuple(f"head_{number}" for number in range(4)),
    weights=(0.25,) * 4,
    offsets=(0.0,) * 4,
    ensemble=True,
)


def evaluated_outputs(
    outputs: Outputs, kind: str, *, noise: float = 0.6, paired: bool = True
) -> EvaluationMetrics:
    """200 comparisons of two responses with attributes and a rating; or of one, if not paired."""
    rng = np.random.default_rng(0)

    def response() -> dict[str, Any]:
        label_O = rng.integers(1, 6, len(outputs.names)).astype(float)
        if outputs.ensemble:
            label_O[:] = label_O[0]
        # Half of the responses are hard: heads disagree about them.
        hard = noise * rng.choice([0.3, 2.0])
        output_O = label_O + rng.normal(0, hard, len(outputs.names))
        attributes = {} if outputs.ensemble else dict(zip(outputs.names, label_O, strict=True))
        return {
            "outputs": dict(zip(outputs.names, output_O.tolist(), strict=True)),
            "reward": float(output_O @ np.asarray(outputs.weights)),
            "grade": float(label_O @ np.asarray(outputs.weights)) if paired else label_O[0],
            "attributes": attributes,
            "rated": outputs.ensemble and OBJECTIVES[kind].learns_from == "ratings",
        }

    table = score_table([[response() for _ in range(1 + paired)] for _ in range(200)])
    context = EvaluationContext(dataset="eval", objective=trained_for(kind), outputs=outputs)
    return summarise(table, context)


def write_outputs_run(
    folder: Path, outputs: Outputs, kind: str, *, noise: float = 0.6, paired: bool = True
) -> RunMetrics:
    """``metrics.json`` of a run whose head has several outputs."""
    metrics = write_run(folder, kind)
    assert metrics.run.objective is not None
    objective = replace(metrics.run.objective, offset=0.0, outputs=outputs)
    metrics = replace(
        metrics,
        run=replace(metrics.run, objective=objective),
        eval=evaluated_outputs(outputs, kind, noise=noise, paired=paired),
    )
    write_json(folder / "metrics.json", json_safe(metrics))
    return metrics
