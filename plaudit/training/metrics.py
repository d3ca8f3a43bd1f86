"""What a run measured, as ``metrics.json`` says it. Card, report and plots compute nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from plaudit import __version__
from plaudit.evaluation.analysis.perturbations import Probed
from plaudit.evaluation.analysis.surface import fitted_comparisons
from plaudit.evaluation.schema import (
    BestCheckpoint,
    EvaluationMetrics,
    HistoryEntry,
    Overfit,
    Parameters,
    RunInfo,
    RunMetrics,
    RunObjective,
    Setting,
    TrainingMetrics,
    TrainingPoint,
    settle,
)
from plaudit.evaluation.summary import EvaluationContext, judge_overfit, summarise
from plaudit.evaluation.table import HeldOut
from plaudit.losses.labels import ordered_pairs
from plaudit.model.checkpoint import CheckpointMetadata
from plaudit.recipe.objectives import OBJECTIVES, parameters_of
from plaudit.recipe.schema import LossSection
from plaudit.storage.arrow import RowArray
from plaudit.training import corpus as corpora
from plaudit.training.callbacks import count_resumes
from plaudit.training.measure import PairIndex, history, probed_role, read_evaluated
from plaudit.training.prepare import PreparedRun, StepArguments
from plaudit.training.trainer import RewardTrainer, rows_of_first


def gather_metrics(
    run: PreparedRun,
    trainer: RewardTrainer,
    index: PairIndex | None,
    held_out: Mapping[str, HeldOut],
    probed: Probed | None,
    seconds: float,
) -> RunMetrics:
    """Everything that ``metrics.json`` says of a run. Card, report and plots compute nothing."""
    state, folder = trainer.state, run.folder
    evaluation = test = best = overfit = None
    if index is not None:
        evaluations = history(state.log_history, folder.evaluations, index)
        evaluation = _evaluate(run, trainer, "eval", held_out["eval"], evaluations, probed)
        best, overfit = _best(trainer, folder.evaluations, index, evaluations)
    if run.corpus.test:
        stored = evaluation.stored_temperature if evaluation is not None else None
        test = _evaluate(run, trainer, "test", held_out["test"], None, probed, stored or 1.0)
    return settle(
        RunMetrics(
            plaudit_version=__version__,
            run=run_info(run, trainer.metadata),
            data=corpora.data_use(run.corpus, run.recipe.data.split_by),
            train=_training(run, trainer, seconds, count_resumes(folder.events)),
            eval=evaluation,
            test=test,
            best=best,
            overfit=overfit,
            training_curve=tuple(
                TrainingPoint(
                    step=int(event["step"]),
                    epoch=event["epoch"],
                    loss=event["loss"],
                    learning_rate=event["learning_rate"],
                )
                for event in state.log_history
                if "loss" in event
            ),
            environment=json.loads(folder.environment.read_text(encoding="utf-8")),
        )
    )


def computed_tokens(run: PreparedRun, trainer: RewardTrainer) -> int:
    """Tokens that the steps of training computed, in the layout of its batches."""
    column = "packed" if run.built.model.layout == "packed" else "separate"
    return int(run.corpus.train.trees.column(column) @ _times_taken(run, trainer))


def _times_taken(run: PreparedRun, trainer: RewardTrainer) -> RowArray:
    """``times_N``: in how many steps each training comparison was."""
    rows = rows_of_first(trainer.sampler(), trainer.state.global_step)
    return np.bincount(np.fromiter(rows, np.int64), minlength=len(run.corpus.train.trees))


def _training(
    run: PreparedRun, trainer: RewardTrainer, seconds: float, resumed: int
) -> TrainingMetrics:
    state = trainer.state
    losses = [event["loss"] for event in state.log_history if "loss" in event]
    throughput = [e["pairs_per_second"] for e in state.log_history if "pairs_per_second" in e]
    trees = run.corpus.train.trees
    times_N = _times_taken(run, trainer)
    seen_N = np.flatnonzero(times_N)
    pairs = (len(ordered_pairs(trees[row].grades)) * times_N[row] for row in seen_N.tolist())
    comparisons = int(times_N.sum())
    # A run shorter than train.logging_steps logs no throughput; then evaluations count as time too.
    whole_run = comparisons / seconds if comparisons else None
    return TrainingMetrics(
        steps=state.global_step,
        planned_steps=state.max_steps,
        epochs=state.epoch,
        pairs=int(sum(pairs)),
        comparisons=comparisons,
        tokens=int(trees.column("packed") @ times_N),
        seconds=seconds,
        pairs_per_second=float(np.median(throughput)) if throughput else whole_run,
        final_loss=losses[-1] if losses else None,
        resumed=resumed,
    )


_NOT_RUN = "Perturbation tests were not run: evaluate.perturbation_tests is 0 in the recipe."


def _evaluate(
    run: PreparedRun,
    trainer: RewardTrainer,
    role: Literal["eval", "test"],
    held_out: HeldOut,
    evaluations: Sequence[HistoryEntry] | None,
    probed: Probed | None,
    stored_temperature: float | None = None,
) -> EvaluationMetrics:
    """The metrics of ``role``; the evaluation data fit the temperature that test data judge."""
    return summarise(
        held_out.table,
        EvaluationContext(
            dataset=role,
            chose_checkpoint=role == "eval" and bool(run.args.load_best_model_at_end),
            baselines=held_out.baseline_differences(),
            baselines_fitted_on=fitted_comparisons(run.corpus.train.comparisons),
            perturbations=None if role != probed_role(run) else probed or _NOT_RUN,
            history=evaluations,
            calibrate=run.recipe.evaluate.calibrate,
            stored_temperature=stored_temperature,
            objective=trainer.metadata.objective,
            outputs=trainer.metadata.outputs,
            seed=run.recipe.data.seed,
        ),
    )


def _best(
    trainer: RewardTrainer,
    folder: Path,
    index: PairIndex,
    evaluations: Sequence[HistoryEntry],
) -> tuple[BestCheckpoint | None, Overfit | None]:
    """The best checkpoint, and the lowest validation loss against the last in words."""
    if not evaluations:
        return None, None
    state = trainer.state
    last_step = evaluations[-1].step
    lowest_step = min(evaluations, key=lambda entry: entry.validation_loss or 0.0).step
    chosen = state.best_global_step if trainer.args.load_best_model_at_end else None
    best = BestCheckpoint(
        step=chosen or last_step,
        metric=trainer.args.metric_for_best_model if chosen else None,
        value=state.best_metric if chosen else None,
    )
    if trainer.loss.objective.family == "pointwise":
        # Its validation loss is not one of pairs, which is what the verdict is about.
        return best, None
    overfit = judge_overfit(
        read_evaluated(folder, lowest_step, index),
        read_evaluated(folder, last_step, index),
        kept_step=chosen or last_step,
        margin_P=index.pairs.margin_P / index.temperature,
        group_P=index.pairs.group_P,
        evaluations=len(evaluations),
    )
    return best, overfit


def run_info(run: PreparedRun, metadata: CheckpointMetadata) -> RunInfo:
    """What was trained and how; ``metadata`` has what the objective learned."""
    recipe, (trainable, total) = run.recipe, run.built.parameters
    config = run.built.model.module.config
    return RunInfo(
        name=run.folder.path.name,
        base=recipe.model.base,
        base_revision=recipe.model.revision,
        base_is_hub_id=run.base == recipe.model.base and not Path(run.base).is_dir(),
        architecture=config.model_type,
        method=recipe.method,
        lora=recipe.lora,
        parameters=Parameters(trainable=trainable, total=total),
        attention=run.built.model.layout,
        attention_note=run.built.model.note,
        dtype=str(next(run.built.model.module.parameters()).dtype).removeprefix("torch."),
        max_length=recipe.tokens.max_length,
        truncation=recipe.tokens.truncation,
        chat_template_kind=corpora.text_kind(run.corpus),
        head_init=run.built.head_init,
        loss=recipe.loss.kind,
        seed=run.args.seed,
        hyperparameters=_hyperparameters(run.args),
        started=run.started.isoformat(timespec="seconds").replace("+00:00", "Z"),
        objective=objective_of(recipe.loss, metadata),
    )


def objective_of(options: LossSection, metadata: CheckpointMetadata) -> RunObjective:
    """The objective of a run as its metrics record it, with what it learned."""
    row, trained = OBJECTIVES[options.kind], metadata.objective
    defaults = type(options).model_fields
    learned = () if trained is None else trained.learned
    # A tie parameter that the recipe fixes is one of its options.
    fixed = row.learned if options.tie_parameter != "learned" else None
    return RunObjective(
        family=row.family,
        formula=row.formula,
        where=row.where,
        source=row.source,
        options={
            name: value
            for name, value in options
            if name not in ("kind", "outputs", "gate") and value != defaults[name].default
        },
        learned={
            name: values
            for name, values in parameters_of(options.kind, learned).items()
            if name != fixed
        }
        if learned
        else {},
        offset=metadata.reward_transform.offset,
        outputs=metadata.outputs,
    )


def _hyperparameters(args: StepArguments) -> tuple[tuple[str, Setting], ...]:
    """The list a model card shows, under transformers' names, with the user's own numbers."""
    named = args.to_dict()
    return (
        ("learning_rate", args.learning_rate),
        ("per_device_train_batch_size", args.user_batch_size),
        ("gradient_accumulation_steps", args.user_accumulation),
        ("total_train_batch_size", args.per_device_train_batch_size * args.world_size),
        ("num_devices", args.world_size),
        ("seed", args.seed),
        ("optimizer", named["optim"]),
        ("adam_beta1", args.adam_beta1),
        ("adam_beta2", args.adam_beta2),
        ("adam_epsilon", args.adam_epsilon),
        ("weight_decay", args.weight_decay),
        ("max_grad_norm", args.max_grad_norm),
        ("lr_scheduler_type", named["lr_scheduler_type"]),
        ("warmup_steps", args.warmup_steps),
        ("num_train_epochs", args.num_train_epochs),
        ("max_steps", args.max_steps),
    )
