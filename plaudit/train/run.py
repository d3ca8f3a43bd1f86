"""A whole run, top to bottom: data, tokens, model, training, evaluation, everything written."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)

from plaudit import __version__, embedded
from plaudit.environment import describe_environment
from plaudit.errors import InterruptedRunError, RecipeError, TrainingError
from plaudit.evaluate.baselines import measure_baselines
from plaudit.evaluate.facts import json_safe, judge_overfit, summarise
from plaudit.evaluate.table import write_table
from plaudit.files import write_json, writing
from plaudit.loss.losses import LOSSES
from plaudit.loss.pairs import ordered_pairs, pairs_of, total_weight
from plaudit.model.artefact import ArtefactFacts, save_artefact
from plaudit.model.load import (
    BaseRequest,
    Prepared,
    add_lora,
    choose_dtype,
    choose_layout,
    dropouts_off,
    load_base,
    load_config,
    load_tokenizer,
    refuse_too_long,
    refuse_unknown_ids,
    trainable_parameters,
)
from plaudit.model.module import classifier, has_score_head
from plaudit.recipe import (
    ModelSection,
    Recipe,
    TokensSection,
    effective_training_arguments,
    load_recipe,
    parse_recipe,
)
from plaudit.report.card import write_card
from plaudit.report.html import write_report
from plaudit.report.plots import write_plots
from plaudit.tokens.batch import make_batchers
from plaudit.tokens.encode import Encoder
from plaudit.tokens.template import freeze_dates, read_template
from plaudit.train import corpus as corpora
from plaudit.train.callbacks import (
    EventLog,
    LastEvaluation,
    ProgressReport,
    StopSignal,
    count_resumes,
)
from plaudit.train.corpus import Corpus
from plaudit.train.folder import (
    RunFolder,
    is_main_process,
    refuse_changed_data,
    resume_folder,
    start_folder,
)
from plaudit.train.measure import (
    PairIndex,
    end_to_end,
    history,
    index_pairs,
    measure,
    read_evaluated,
    score_table,
    write_rewards,
)
from plaudit.train.meter import NotFiniteError
from plaudit.train.steps import rows_of_first
from plaudit.train.trainer import EvalScores, Objective, RewardTrainer, StepArguments
from plaudit.types import Batcher, TokenTree

logger = logging.getLogger("plaudit")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """What :func:`train` leaves: the run folder, and everything measured (``metrics.json``)."""

    folder: Path
    metrics: Mapping[str, Any]


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> TrainedRun:
    """Train a reward model and write its run folder.

    ``recipe`` is a recipe, its mapping or its file. ``resume`` goes on after a stop of any kind;
    the result is that of the uninterrupted run. ``console`` gets progress; None is silent.

    Raises:
        PlauditError: anything the user can act on, each with one sentence.
    """
    recipe = _as_recipe(recipe)
    if console is None or not is_main_process():
        console = Console(quiet=True)
    arguments = effective_training_arguments(recipe)
    folder, checkpoint = _open_folder(Path(out), recipe, resume)
    if folder.metrics.is_file() and resume:
        console.print(f"{folder.path} is finished already; its card and report are written again.")
        if is_main_process():
            write_presentation(folder, recipe)
        return TrainedRun(folder=folder.path, metrics=json.loads(folder.metrics.read_text()))
    try:
        args = step_arguments(recipe, arguments, folder)
        run = _prepare(recipe, args, folder, console)
        return _train(run, folder, checkpoint, console)
    except BaseException:
        _remove_if_untouched(folder, resume)
        raise


def _as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return parse_recipe(recipe, "recipe")
    return load_recipe(recipe)


def _open_folder(out: Path, recipe: Recipe, resume: bool) -> tuple[RunFolder, Path | None]:
    if resume:
        return resume_folder(out, recipe)
    return start_folder(out, recipe), None


def _remove_if_untouched(folder: RunFolder, resume: bool) -> None:
    """A run that failed before its first step leaves no folder behind to trip over."""
    if resume or folder.events.exists() or not is_main_process():
        return
    shutil.rmtree(folder.path, ignore_errors=True)


def step_arguments(
    recipe: Recipe, arguments: Mapping[str, Any], folder: RunFolder
) -> StepArguments:
    """TrainingArguments for one batch per optimizer step, from the recipe's own numbers.

    Raises:
        RecipeError: transformers refuses a value.
    """
    given = dict(arguments)
    batch = int(given.pop("per_device_train_batch_size", 8))
    accumulation = int(given.pop("gradient_accumulation_steps", 1))
    fixed = {
        "output_dir": str(folder.checkpoints),
        "per_device_train_batch_size": batch * accumulation,
        "gradient_accumulation_steps": 1,
        "asked_batch_size": batch,
        "asked_accumulation": accumulation,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # It asks the device for every step's loss, and hides a loss that is not finite.
        "logging_nan_inf_filter": False,
    }
    given.setdefault("ddp_find_unused_parameters", False)
    if not torch.accelerator.is_available():
        # Otherwise accelerate looks for a GPU backend, finds none, and every rank trains alone.
        given.setdefault("use_cpu", True)
    full = recipe.lora is None and recipe.model.dtype == "auto" and not given.get("fp16")
    if full and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        given.setdefault("bf16", True)
    try:
        args = StepArguments(**{**given, **fixed})
        if args.n_gpu > 1:
            logger.warning(
                "%d GPUs are visible and one is used; start with torchrun to use all.", args.n_gpu
            )
            # Otherwise the Trainer splits batches by rows (DataParallel), and ours have none.
            args._n_gpu = 1
        return args
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"train: transformers refuses these settings ({error}).") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    """Everything a run needs before its first step."""

    recipe: Recipe
    base: str
    args: StepArguments
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    built: Built
    started: datetime


def _prepare(
    recipe: Recipe, args: StepArguments, folder: RunFolder, console: Console
) -> PreparedRun:
    """Cheap checks first: data and configuration are read before any weight is."""
    started = datetime.now(UTC)
    set_seed(args.seed)
    comparisons = corpora.read_comparisons(recipe.data)
    refuse_changed_data(folder, corpora.fingerprints(comparisons))
    base = place_base(recipe.model.base, folder)
    request = BaseRequest(
        base=base,
        revision=recipe.model.revision,
        dtype=choose_dtype(recipe.model.dtype, args.device, lora=recipe.lora is not None),
        quantize=recipe.model.quantize,
        head_init=recipe.model.head_init,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    load_config(request)
    tokenizer = prepare_tokenizer(recipe.model, recipe.tokens, base)
    encoder = Encoder(
        tokenizer=tokenizer,
        max_length=recipe.tokens.max_length,
        overlong=recipe.tokens.overlong,
        chat_template_kwargs=recipe.tokens.chat_template_kwargs,
    )
    with console.status("encoding") as status:
        corpus = corpora.encode_corpus(
            encoder,
            comparisons,
            on_part=lambda name, rows: status.update(f"encoding {rows:,} comparisons of {name}"),
        )
    _tell_data(corpus, recipe, console)
    with console.status(f"loading {recipe.model.base}"):
        built = _build_model(recipe, request, tokenizer, args, corpora.largest_id(corpus))
    trainable, total = built.parameters
    console.print(
        f"model: {trainable:,} of {total:,} parameters train; batches are {built.model.layout}",
        highlight=False,
    )
    return PreparedRun(
        recipe=recipe,
        base=base,
        args=args,
        corpus=corpus,
        tokenizer=tokenizer,
        built=built,
        started=started,
    )


def place_base(base: str, folder: RunFolder) -> str:
    """Where the base is loaded from.

    A local folder is an absolute path, so that the saved adapter finds it from anywhere; the
    embedded base is copied into the run, so that the run folder can be moved.
    """
    if base == embedded.NAME:
        if not is_main_process():
            return str(embedded.base_path())
        if not folder.base.is_dir():
            staged = folder.base.with_name(".base.partial")
            shutil.copytree(embedded.base_path(), staged, dirs_exist_ok=True)
            staged.rename(folder.base)
        return str(folder.base.resolve())
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def prepare_tokenizer(
    model: ModelSection, tokens: TokensSection, base: str
) -> PreTrainedTokenizerBase:
    """The base's tokenizer with its pad token chosen and its chat template frozen in time."""
    tokenizer = load_tokenizer(
        base,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        pad_token=tokens.pad_token,
    )
    if tokens.chat_template is not None:
        tokenizer.chat_template = read_template(tokens.chat_template)
    if isinstance(tokenizer.chat_template, dict):
        # A tokenizer may carry several named templates; transformers renders this one.
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = freeze_dates(
            tokenizer.chat_template, date.fromisoformat(tokens.date)
        )
    return tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The model of a run, its batcher, parameters (trainable, all), and where its head began."""

    model: Prepared
    batcher: Batcher
    parameters: tuple[int, int]
    head_init: str


def _build_model(
    recipe: Recipe,
    request: BaseRequest,
    tokenizer: PreTrainedTokenizerBase,
    args: StepArguments,
    largest_id: int,
) -> Built:
    assert isinstance(tokenizer.pad_token_id, int)
    loaded = load_base(request, pad_id=tokenizer.pad_token_id)
    network = loaded.network
    refuse_too_long(network, recipe.tokens.max_length)
    refuse_unknown_ids(network, max(largest_id, tokenizer.pad_token_id), recipe.model.base)
    if recipe.lora is not None:
        network = add_lora(network, recipe.lora, quantized=request.quantize is not None)
    dropouts_off(network, keep_lora=True)
    parameters = trainable_parameters(network)
    if request.quantize is None:
        network.to(args.device)
    batchers = make_batchers(
        recipe.tokens.max_tokens_per_microbatch, args.device, tokenizer.pad_token_id
    )
    model = choose_layout(
        network, recipe.model.attention, packed=batchers["packed"], padded=batchers["padded"]
    )
    return Built(
        model=model,
        batcher=batchers[model.layout],
        parameters=parameters,
        head_init=recipe.model.head_init if loaded.fresh_head else "the base's own",
    )


def _tell_data(corpus: Corpus, recipe: Recipe, console: Console) -> None:
    facts = corpora.data_facts(corpus, recipe.data.split_by)
    sizes = ", ".join(f"{name} {part['used']:,}" for name, part in facts["splits"].items())
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in facts["dropped"].items())
    console.print(
        f"data: {facts['rows']:,} rows, {facts['used']:,} used ({sizes})"
        + (f"; dropped: {dropped}" if dropped else ""),
        highlight=False,
    )
    tokens = facts["tokens"]
    saved = 1 - tokens["packed"] / tokens["separate"]
    console.print(
        f"tokens: {tokens['packed']:,}, {saved:.0%} fewer than with the prompt computed for "
        "every response",
        highlight=False,
    )
    if corpus.leaked_prompts:
        console.print(
            f"[bold]{corpus.leaked_prompts:,} evaluation or test comparisons have a prompt that "
            "is in the training part too[/bold]; their accuracy flatters the model."
        )


def objective(kind: str, device: torch.device) -> Objective:
    """The recipe's loss as the trainer calls it."""
    loss = LOSSES[kind]

    def of_batch(scores_R: Tensor, trees: Sequence[TokenTree]) -> tuple[Tensor, Tensor]:
        pairs = pairs_of(trees, device)
        delta_P = scores_R.detach()[pairs.winner_P] - scores_R.detach()[pairs.loser_P]
        return loss(scores_R, pairs), delta_P

    return Objective(of_batch=of_batch, weight=total_weight)


def _train(
    run: PreparedRun, folder: RunFolder, checkpoint: Path | None, console: Console
) -> TrainedRun:
    index = index_pairs(run.corpus.evaluation) if run.corpus.evaluation else None
    stop = StopSignal()
    trainer = _make_trainer(run, folder, index, stop, console)
    if is_main_process():
        write_json(folder.environment, describe_environment(str(run.args.device)))
    _fit(trainer, run, folder, checkpoint, stop)
    seconds = trainer.seconds()
    with console.status("final evaluation"):
        scores = {
            "eval": {n: trainer.score(p.trees) for n, p in run.corpus.evaluation.items()},
            "test": {n: trainer.score(p.trees) for n, p in run.corpus.test.items()},
        }
    if not is_main_process():
        return TrainedRun(folder=folder.path, metrics={})
    metrics = gather_metrics(run, trainer, folder, index, scores, seconds)
    write_results(run, trainer, folder, metrics, scores)
    return TrainedRun(folder=folder.path, metrics=metrics)


def _make_trainer(
    run: PreparedRun,
    folder: RunFolder,
    index: PairIndex | None,
    stop: StopSignal,
    console: Console,
) -> RewardTrainer:
    def measured(scores: EvalScores, step: int) -> dict[str, float]:
        assert index is not None
        reward_N = end_to_end(scores)
        if is_main_process():
            write_rewards(folder.evaluations, step, reward_N)
        return measure(index, reward_N)

    callbacks: list[TrainerCallback] = [
        EventLog(folder.events),
        ProgressReport(console),
        LastEvaluation(),
        stop,
    ]
    patience = run.recipe.evaluate.early_stopping_patience
    if patience is not None:
        callbacks.append(
            EarlyStoppingCallback(patience, run.recipe.evaluate.early_stopping_threshold)
        )
    try:
        with writing(folder.path):
            trainer = RewardTrainer(
                module=run.built.model.module,
                args=run.args,
                batcher=run.built.batcher,
                objective=objective(run.recipe.loss.kind, run.args.device),
                train_trees=run.corpus.train.trees,
                eval_trees={name: part.trees for name, part in run.corpus.evaluation.items()},
                measure=measured,
                tokenizer=run.tokenizer,
                callbacks=callbacks,
            )
    except (ImportError, RuntimeError) as error:
        # What report_to and optim name may be missing here; transformers says which.
        raise RecipeError(f"train: transformers cannot set this run up ({error}).") from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def _fit(
    trainer: RewardTrainer,
    run: PreparedRun,
    folder: RunFolder,
    checkpoint: Path | None,
    stop: StopSignal,
) -> None:
    """Train to the end, or stop with a sentence that says how to go on.

    Raises:
        InterruptedRunError: the user stopped it; a checkpoint is kept.
        TrainingError: a loss, reward or weight was not finite; the rows are named.
    """
    try:
        with stop.listening():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        trainer.meter.check()
    except NotFiniteError as error:
        rows = [run.corpus.train.comparisons[i].where for i in error.rows]
        shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        named = f"; the rows of that step are {shown}" if rows else ""
        raise TrainingError(
            f"{error}{named}; look at the data and at the base, or lower train.learning_rate, and "
            "start again with another --out."
        ) from None
    except ImportError as error:
        raise RecipeError(f"train: a library is missing ({error}).") from error
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"Stopped at once; go on from the last checkpoint with: {folder.resume_command()}"
        ) from None
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, (ProgressReport, EventLog)):
                callback.close()
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise InterruptedRunError(
            f"Stopped after step {trainer.state.global_step} of {trainer.state.max_steps}, its "
            f"checkpoint is kept; go on with: {folder.resume_command()}"
        )


def gather_metrics(
    run: PreparedRun,
    trainer: RewardTrainer,
    folder: RunFolder,
    index: PairIndex | None,
    scores: Mapping[str, EvalScores],
    seconds: float,
) -> dict[str, Any]:
    """Everything ``metrics.json`` says about the run. Card, report and plots compute nothing."""
    state = trainer.state
    facts: dict[str, Any] = {
        "format": 1,
        "plaudit_version": __version__,
        "run": run_facts(run, folder),
        "data": corpora.data_facts(run.corpus, run.recipe.data.split_by),
        "train": {
            **_train_facts(run, trainer, seconds),
            "resumed": count_resumes(folder.events),
        },
        "eval": None,
        "test": None,
        "best": None,
        "overfit": None,
        "training_curve": [
            {k: event[k] for k in ("step", "epoch", "loss", "learning_rate")}
            for event in state.log_history
            if "loss" in event
        ],
        "environment": json.loads(folder.environment.read_text(encoding="utf-8")),
    }
    if index is not None:
        evaluations = history(state.log_history, len(index.pairs))
        facts["eval"] = _evaluation_facts(run, "eval", scores["eval"], evaluations)
        facts["best"], facts["overfit"] = _best_facts(trainer, folder, index, evaluations)
    if run.corpus.test:
        facts["test"] = _evaluation_facts(run, "test", scores["test"], None)
    safe: dict[str, Any] = json_safe(facts)
    return safe


def _train_facts(run: PreparedRun, trainer: RewardTrainer, seconds: float) -> dict[str, Any]:
    state = trainer.state
    losses = [event["loss"] for event in state.log_history if "loss" in event]
    throughput = [e["pairs_per_second"] for e in state.log_history if "pairs_per_second" in e]
    trees = run.corpus.train.trees
    rows = list(rows_of_first(trainer.sampler(), state.global_step))
    return {
        "steps": state.global_step,
        "planned_steps": state.max_steps,
        "epochs": state.epoch,
        "pairs": sum(len(ordered_pairs(trees[row].grades)) for row in rows),
        "comparisons": len(rows),
        "tokens": sum(trees[row].tokens for row in rows),
        "seconds": seconds,
        "pairs_per_second": float(np.median(throughput)) if throughput else None,
        "final_loss": losses[-1] if losses else None,
    }


def step_size(args: StepArguments) -> int:
    """Comparisons of one optimizer step, all ranks together."""
    return int(args.per_device_train_batch_size * args.world_size)


def _evaluation_facts(
    run: PreparedRun,
    role: str,
    scores: EvalScores,
    evaluations: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
    parts = run.corpus.evaluation if role == "eval" else run.corpus.test
    held_out = [c for part in parts.values() for c in part.comparisons]
    chose = role == "eval" and bool(run.args.load_best_model_at_end)
    return summarise(
        score_table(parts, scores),
        dataset=role,
        chose_checkpoint=chose,
        baselines=measure_baselines(
            run.recipe.evaluate.baselines, run.corpus.train.comparisons, held_out
        ),
        history=evaluations,
        calibrate=run.recipe.evaluate.calibrate,
        seed=run.recipe.data.seed,
    )


def _best_facts(
    trainer: RewardTrainer,
    folder: RunFolder,
    index: PairIndex,
    evaluations: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Which step was kept, and the kept step against the last in words."""
    if not evaluations:
        return None, None
    state = trainer.state
    last_step = evaluations[-1]["step"]
    lowest_step = min(evaluations, key=lambda entry: entry["validation_loss"])["step"]
    chosen = state.best_global_step if trainer.args.load_best_model_at_end else None
    best = {
        "step": chosen or last_step,
        "metric": trainer.args.metric_for_best_model if chosen else None,
        "value": state.best_metric if chosen else None,
    }
    overfit = judge_overfit(
        read_evaluated(folder.evaluations, lowest_step, index),
        read_evaluated(folder.evaluations, last_step, index),
        kept_step=chosen or last_step,
        margin_P=index.pairs.margin_P,
        group_P=index.pairs.group_P,
        evaluations=len(evaluations),
    )
    return best, overfit


def run_facts(run: PreparedRun, folder: RunFolder) -> dict[str, Any]:
    """The ``run`` block: what was trained and how."""
    recipe, (trainable, total) = run.recipe, run.built.parameters
    config = run.built.model.module.config
    method = "full" if recipe.lora is None else "qlora" if recipe.model.quantize else "lora"
    return {
        "name": folder.path.name,
        "base": recipe.model.base,
        "base_revision": recipe.model.revision,
        "base_is_hub_id": run.base == recipe.model.base and not Path(run.base).is_dir(),
        "architecture": config.model_type,
        "method": method,
        "lora": recipe.lora,
        "parameters": {"trainable": trainable, "total": total},
        "attention": run.built.model.layout,
        "attention_note": run.built.model.note,
        "dtype": str(next(run.built.model.module.parameters()).dtype).removeprefix("torch."),
        "max_length": recipe.tokens.max_length,
        "overlong": recipe.tokens.overlong,
        "chat_template_kind": corpora.text_kind(
            [part for parts in run.corpus.parts().values() for part in parts]
        ),
        "head_init": run.built.head_init,
        "loss": recipe.loss.kind,
        "seed": run.args.seed,
        "hyperparameters": _hyperparameters(run.args),
        "started": run.started.isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def _hyperparameters(args: StepArguments) -> list[list[Any]]:
    """The list a model card shows, under transformers' names, with the user's own numbers."""
    return [
        ["learning_rate", args.learning_rate],
        ["per_device_train_batch_size", args.asked_batch_size],
        ["gradient_accumulation_steps", args.asked_accumulation],
        ["total_train_batch_size", step_size(args)],
        ["num_devices", args.world_size],
        ["seed", args.seed],
        ["optimizer", str(getattr(args.optim, "value", args.optim))],
        ["adam_beta1", args.adam_beta1],
        ["adam_beta2", args.adam_beta2],
        ["adam_epsilon", args.adam_epsilon],
        ["weight_decay", args.weight_decay],
        ["max_grad_norm", args.max_grad_norm],
        [
            "lr_scheduler_type",
            str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        ],
        ["warmup_steps", args.warmup_steps],
        ["num_train_epochs", args.num_train_epochs],
        ["max_steps", args.max_steps],
    ]


def write_results(
    run: PreparedRun,
    trainer: RewardTrainer,
    folder: RunFolder,
    metrics: Mapping[str, Any],
    scores: Mapping[str, EvalScores],
) -> None:
    """Model, predictions, metrics, plots, report and card. ``metrics.json`` marks the end."""
    network = trainer.accelerator.unwrap_model(trainer.model).network
    facts = artefact_facts(run, metrics)
    save_artefact(folder.path, network, run.tokenizer, facts)
    parts = {**run.corpus.evaluation, **run.corpus.test}
    table = score_table(parts, {**scores["eval"], **scores["test"]})
    write_table(table, folder.predictions)
    write_json(folder.metrics, metrics)
    write_presentation(folder, run.recipe)


def write_presentation(folder: RunFolder, recipe: Recipe) -> None:
    """Plots, card and report, all from what is recorded in the folder."""
    with writing(folder.path):
        if recipe.report.plots:
            write_plots(folder.path)
        write_card(folder.path)
        if recipe.report.html:
            write_report(folder.path)


def artefact_facts(run: PreparedRun, metrics: Mapping[str, Any]) -> ArtefactFacts:
    """``plaudit.json`` of this run."""
    recipe, module = run.recipe, run.built.model.module
    evaluation = metrics["eval"] or {}
    template = run.tokenizer.chat_template
    fingerprints = [s["fingerprint"] for s in metrics["data"]["sources"] if s["split"] == "train"]
    return ArtefactFacts(
        kind="full" if recipe.lora is None else "adapter",
        base=run.base,
        # The commit that was loaded: the branch a Hub id names moves on.
        base_revision=recipe.model.revision
        or getattr(classifier(module.network).config, "_commit_hash", None),
        max_length=recipe.tokens.max_length,
        text=metrics["run"]["chat_template_kind"],
        chat_template=template if isinstance(template, str) else None,
        chat_template_kwargs=dict(recipe.tokens.chat_template_kwargs),
        pad_token=str(run.tokenizer.pad_token),
        attention=run.built.model.layout,
        attention_note=run.built.model.note,
        head={
            "name": "score" if has_score_head(module.network) else "classifier",
            "init": run.built.head_init,
            "dtype": "float32",
        },
        temperature=evaluation.get("temperature"),
        reward_mean=evaluation.get("reward", {}).get("mean"),
        reward_std=evaluation.get("reward", {}).get("std"),
        data_fingerprint="+".join(fingerprints),
        trust_remote_code=recipe.model.trust_remote_code,
    )
