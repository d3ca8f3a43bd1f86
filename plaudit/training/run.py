"""A whole run, top to bottom: data, tokens, model, training, evaluation, everything written."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from plaudit.errors import (
    InterruptedRunError,
    PlauditError,
    RecipeError,
    TrainingError,
    one_line,
)
from plaudit.evaluation.analysis.surface import fit_baselines
from plaudit.evaluation.schema import RunMetrics, read_metrics
from plaudit.evaluation.table import write_rewards
from plaudit.model.scoring import is_out_of_memory
from plaudit.recipe.load import dump_recipe, load_recipe, parse_recipe
from plaudit.recipe.schema import Recipe
from plaudit.report.record import describe_environment
from plaudit.storage.atomic import write_json, write_text, writing
from plaudit.training.callbacks import (
    EventLog,
    LastEvaluation,
    ProgressReport,
    StopSignal,
)
from plaudit.training.folder import (
    RunFolder,
    TrainingEnd,
    check_recipe,
    checkpoint_to_resume,
    is_main_process,
    read_training_end,
    resume_folder,
    start_folder,
)
from plaudit.training.measure import (
    PairIndex,
    end_to_end,
    index_losses,
    index_pairs,
    measure,
    measure_losses,
    probe_run,
    read_parts,
)
from plaudit.training.metrics import computed_tokens, gather_metrics
from plaudit.training.needs import check_needs, logging_into
from plaudit.training.prepare import PreparedRun, StepArguments, prepare, step_arguments
from plaudit.training.results import (
    checkpoint_metadata,
    write_presentation,
    write_results,
    write_trained,
)
from plaudit.training.sharding import check_sharding
from plaudit.training.trainer import EvalOutputs, NotFiniteError, RewardTrainer

logger = logging.getLogger("plaudit")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """The result of :func:`plaudit.train`.

    Attributes:
        folder: The run folder. :func:`plaudit.load` takes it.
        metrics: The content of ``metrics.json``. None on every rank but the first.
    """

    folder: Path
    metrics: RunMetrics | None


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    verbose: bool = False,
) -> TrainedRun:
    """Train a reward model, evaluate it and write the run folder.

    Args:
        recipe: A mapping of recipe keys, a recipe file, the name of a shipped recipe, or a run
            folder, whose recipe is used.
        out: The run folder to write. It must not exist, unless ``resume`` is set.
        resume: Resume the run in ``out``. The result is the same as without the stop, on a GPU
            within rounding.
        console: A rich console for progress. None prints nothing.
        verbose: Print a line at every logging step.

    Returns:
        The run folder and its metrics.

    Raises:
        RecipeError: The recipe cannot be used. The message names every problem.
        DataError: The data cannot be read, or no row can be used.
        ModelError: The base model cannot be loaded.
        OutputError: ``out`` exists or cannot be written.
        TrainingError: The loss is not finite.
        InterruptedRunError: The run was stopped. It can be resumed.

    Examples:
        >>> recipe = {"model": {"base": "my-base"}, "data": {"train": "pairs.jsonl"}}
        >>> run = plaudit.train(recipe, "runs/second")
        >>> accuracy = run.metrics.eval.accuracy
    """
    if isinstance(recipe, Mapping):
        recipe = parse_recipe(recipe, "recipe")
    elif not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    if console is None or not is_main_process():
        console = Console(quiet=True)
    folder = resume_folder(Path(out), recipe) if resume else start_folder(Path(out), recipe)
    if folder.metrics.is_file() and resume:
        console.print(
            f"{folder.path} is already finished; rewriting its card and report.", soft_wrap=True
        )
        if is_main_process():
            if recipe != load_recipe(folder.recipe):
                write_text(folder.recipe, dump_recipe(recipe))
            write_presentation(folder, recipe)
        return TrainedRun(folder=folder.path, metrics=read_metrics(folder.path))
    try:
        check_needs(recipe)
        args = step_arguments(recipe, folder)
        check_sharding(recipe, args)
        start = (
            _on_main_process(lambda: _find_start(folder, recipe, args, console), args)
            if resume
            else None
        )
        run = prepare(recipe, args, folder, console)
        if resume and is_main_process():
            write_text(folder.recipe, run.recorded_recipe)
        with logging_into(folder, list(args.report_to or ())):
            return _train(run, start, ProgressReport(console, verbose=verbose))
    except BaseException:
        # A run that failed before its first step leaves no folder behind to trip over.
        if not resume and not folder.events.exists() and is_main_process():
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _find_start(
    folder: RunFolder, recipe: Recipe, args: StepArguments, console: Console
) -> TrainingEnd | Path | None:
    """Where a stopped run goes on; None is its first step. What it measures differently is printed.

    DeepSpeed gets the weights of a model from a checkpoint alone.
    """
    end = None if args.deepspeed_plugin is not None else read_training_end(folder)
    start = checkpoint_to_resume(folder) if end is None else end
    for change in check_recipe(folder, start, recipe):
        console.print(
            f"changed on resuming: {change}", highlight=False, markup=False, soft_wrap=True
        )
    return start


def _on_main_process(call: Callable[[], Result], args: StepArguments) -> Result:
    """What ``call`` returns or raises on the main process, on every rank.

    An exception that is no PlauditError may not pickle, so the other ranks raise a TrainingError.
    """
    if args.world_size == 1:
        return call()
    outcome: list[Result | PlauditError | None] = [None]
    if is_main_process():
        try:
            outcome = [call()]
        except PlauditError as error:
            outcome = [error]
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            broadcast_object_list(
                [TrainingError(f"The main process failed ({cause}); see its error.")]
            )
            raise
    (agreed,) = broadcast_object_list(outcome)
    if isinstance(agreed, PlauditError):
        raise agreed
    return cast(Result, agreed)


def _train(
    run: PreparedRun, start: TrainingEnd | Path | None, progress: ProgressReport
) -> TrainedRun:
    folder = run.folder
    temperature = run.recipe.loss.temperature
    index = index_pairs(run.corpus.evaluation, temperature) if run.corpus.evaluation else None
    stop = StopSignal()
    trainer = make_trainer(run, index, stop, progress)
    if is_main_process():
        write_json(folder.environment, describe_environment(str(run.args.device)))
    if isinstance(start, TrainingEnd):
        trainer.restore_end(start, folder.path)
    else:
        _fit(trainer, run, start, stop)
        write_trained(run, trainer)
    try:
        return _evaluate(trainer, run, index, trainer.seconds(), progress.console)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"Stopped during the evaluation; the trained model is in {folder.path}. To finish the "
            f"evaluation: {folder.resume_command()}"
        ) from None
    except Exception:
        logger.warning(
            "The evaluation failed; the trained model is in %s. To evaluate it without training"
            " again: %s",
            folder.path,
            folder.resume_command(),
        )
        raise


def _evaluate(
    trainer: RewardTrainer,
    run: PreparedRun,
    index: PairIndex | None,
    seconds: float,
    console: Console,
) -> TrainedRun:
    """Measure the trained model on the evaluation and test sets, and write what was measured."""
    sets = {"eval": run.corpus.evaluation, "test": run.corpus.test}
    with console.status("final evaluation"):
        outputs = {
            role: {name: trainer.score_outputs(part.trees) for name, part in parts.items()}
            for role, parts in sets.items()
        }
    with console.status("perturbation tests"):
        probed = probe_run(run, trainer, computed_tokens(run, trainer))
    if not is_main_process():
        return TrainedRun(folder=run.folder.path, metrics=None)
    scorers = fit_baselines(run.recipe.evaluate.baselines, run.corpus.train.comparisons)
    held_out = {
        role: read_parts(parts, outputs[role], scorers, trainer) for role, parts in sets.items()
    }
    metrics = gather_metrics(run, trainer, index, held_out, probed, seconds)
    write_results(run, trainer, metrics, held_out)
    return TrainedRun(folder=run.folder.path, metrics=metrics)


def make_trainer(
    run: PreparedRun, index: PairIndex | None, stop: StopSignal, progress: ProgressReport
) -> RewardTrainer:
    """The trainer of a run, with what watches it."""
    folder, evaluate = run.folder, run.recipe.evaluate
    losses = None if index is None else index_losses(run.built.loss, run.corpus.evaluation)

    def measured(outputs: EvalOutputs, step: int) -> dict[str, float]:
        assert index is not None
        outputs_NO = end_to_end(outputs)
        reward_N = trainer.rewards(outputs_NO)
        if is_main_process():
            write_rewards(folder.evaluations, step, reward_N)
        if losses is None:
            return measure(index, reward_N)
        if not losses.loss.options.outputs:
            outputs_NO = reward_N[:, None]
        return measure(index, reward_N) | measure_losses(
            losses, outputs_NO, trainer.learned.numbers()
        )

    callbacks: list[TrainerCallback] = [
        EventLog(folder.events),
        progress,
        LastEvaluation(),
        stop,
    ]
    patience = evaluate.early_stopping_patience
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(patience, evaluate.early_stopping_threshold))
    try:
        with writing(folder.path):
            trainer = RewardTrainer(
                run, measure=measured, metadata=checkpoint_metadata(run), callbacks=callbacks
            )
    except (ImportError, RuntimeError) as error:
        # What report_to and optim name may be missing here; transformers says which.
        raise RecipeError(f"train: transformers cannot set this run up ({error}).") from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def _fit(
    trainer: RewardTrainer, run: PreparedRun, checkpoint: Path | None, stop: StopSignal
) -> None:
    """Train to the end, or stop with a sentence that says how to resume.

    Raises:
        InterruptedRunError: the user stopped it; a checkpoint is kept.
        TrainingError: a loss, reward or weight was not finite; the rows are named.
    """
    try:
        with stop.listening():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        trainer.step_metrics.check()
    except NotFiniteError as error:
        rows = [run.corpus.train.comparisons[i].where for i in error.rows]
        shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        named = f"; the rows of that step are {shown}" if rows else ""
        raise TrainingError(
            f"{error}{named}; look at the data and at the base, or lower train.learning_rate, and "
            "start again with another --out."
        ) from None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "The optimizer does not fit in the memory of the device"
            f" ({one_line(error, 200)}); train an adapter (lora), or set train.optim to adamw_8bit."
        ) from None
    except ImportError as error:
        raise RecipeError(f"train: a library is missing ({error}).") from error
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"Stopped at once. To resume from the last checkpoint: {run.folder.resume_command()}"
        ) from None
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressReport):
                callback.close()
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise InterruptedRunError(
            f"Stopped after step {trainer.state.global_step} of {trainer.state.max_steps} with a "
            f"checkpoint. To resume: {run.folder.resume_command()}"
        )
