"""What a finished run writes: the model, its predictions, metrics, plots, card and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from accelerate.utils import DistributedType

from plaudit.evaluation.analysis.error_analysis import token_rewards_of, with_texts
from plaudit.evaluation.schema import MistakeText, RunMetrics, json_safe
from plaudit.evaluation.table import HeldOut, concatenate, write_table
from plaudit.model.checkpoint import CheckpointMetadata, write_metadata, write_model
from plaudit.model.module import classifier, has_score_head
from plaudit.recipe.schema import Recipe
from plaudit.report.card import CARD_FILE, write_card
from plaudit.report.html import write_report
from plaudit.report.plots import write_plots
from plaudit.reward_model import RewardModel
from plaudit.storage.atomic import write_json, write_json_lines, write_text, writing
from plaudit.training import corpus as corpora
from plaudit.training.folder import (
    RunFolder,
    is_main_process,
    remove_training_end,
    write_training_end,
)
from plaudit.training.prepare import PreparedRun
from plaudit.training.trainer import RewardTrainer
from plaudit.types import TrainedObjective


def write_trained(run: PreparedRun, trainer: RewardTrainer) -> None:
    """The model as soon as it is trained, with a card that says that it is not evaluated yet.

    A run that stops from here on is resumed at its evaluation. Every rank calls it, the first one
    writes.
    """
    folder, end = run.folder, trainer.end()
    state = trainer.gather_state()
    if not is_main_process():
        return
    folder.training.unlink(missing_ok=True)
    module = trainer.accelerator.unwrap_model(trainer.model)
    write_model(folder.path, module.network, run.tokenizer, trainer.metadata, state)
    write_text(
        folder.path / CARD_FILE,
        f"# {folder.path.name}\n\nA reward model. It is trained but not evaluated, so there are no"
        f" metrics yet. To finish the evaluation, run:\n\n```sh\n{folder.resume_command()}\n```\n",
    )
    write_training_end(folder, end)


def write_results(
    run: PreparedRun,
    trainer: RewardTrainer,
    metrics: RunMetrics,
    held_out: Mapping[str, HeldOut],
) -> None:
    """Predictions, metrics, plots, report and card. ``metrics.json`` marks the end."""
    folder = run.folder
    module = trainer.accelerator.unwrap_model(trainer.model)
    metadata = trainer.metadata
    if metrics.eval is not None:
        metadata = replace(
            metadata,
            temperature=metrics.eval.stored_temperature,
            reward_mean=metrics.eval.reward.mean,
            reward_std=metrics.eval.reward.std,
        )
    write_table(concatenate([part.table for part in held_out.values()]), folder.predictions)
    module.eval()
    model = RewardModel(
        source=str(folder.path),
        module=module,
        tokenizer=run.tokenizer,
        metadata=metadata,
        batcher=trainer.batcher,
        encoder=run.encoder,
    )
    alone = trainer.accelerator.distributed_type in _WHOLE_MODEL_ON_EACH_RANK
    texts = _mistakes(run, metrics, model if alone else None)
    write_json_lines(folder.mistakes, map(json_safe, texts))
    write_metadata(folder.path, metadata)
    write_json(folder.metrics, json_safe(metrics))
    write_presentation(folder, run.recipe)


# Elsewhere the ranks share the weights, and one of them cannot compute by itself.
_WHOLE_MODEL_ON_EACH_RANK = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
)


def _mistakes(
    run: PreparedRun, metrics: RunMetrics, model: RewardModel | None
) -> list[MistakeText]:
    """The most confident mistakes of both evaluations, with their texts.

    With ``model``, which holds the kept weights, also the per-token rewards of both responses.
    """
    recorded = [
        mistake
        for block in (metrics.eval, metrics.test)
        for mistake in (block.mistakes if block else ())
    ]
    parts = {**run.corpus.evaluation, **run.corpus.test}
    places = [(mistake.dataset, mistake.number) for mistake in recorded]
    held_out = ((name, number, parts[name].comparisons[number]) for name, number in places)
    options = {} if model is None else {"rewards_of": token_rewards_of(model)}
    return list(with_texts(recorded, held_out, **options))


def write_presentation(folder: RunFolder, recipe: Recipe) -> None:
    """Plots, card and report, all from what is recorded in the folder."""
    with writing(folder.path):
        remove_training_end(folder)
        if recipe.report.plots:
            write_plots(folder.path)
        write_card(folder.path)
        if recipe.report.html:
            write_report(folder.path)


def checkpoint_metadata(run: PreparedRun) -> CheckpointMetadata:
    """``plaudit.json`` of this run, before anything is measured."""
    recipe, module, start = run.recipe, run.built.model.module, run.built.start
    template = run.tokenizer.chat_template
    return CheckpointMetadata(
        kind="full" if recipe.lora is None else "adapter",
        base=run.base,
        # The commit that was loaded: the branch a Hub id names moves on.
        base_revision=recipe.model.revision
        or getattr(classifier(module.network).config, "_commit_hash", None),
        max_length=recipe.tokens.max_length,
        text=corpora.text_kind(run.corpus),
        chat_template=template if isinstance(template, str) else None,
        chat_template_kwargs=dict(run.encoder.chat_template_kwargs),
        pad_token=str(run.tokenizer.pad_token),
        attention=run.built.model.layout,
        attention_note=run.built.model.note,
        head={
            "name": "score" if has_score_head(module.network) else "classifier",
            "init": run.built.head_init,
            "dtype": "float32",
        },
        data_fingerprint="+".join(
            source.fingerprint for source in run.corpus.loaded["train"].sources
        ),
        trust_remote_code=recipe.model.trust_remote_code,
        rendering=run.encoder.rendering,
        scored_token=run.encoder.scored_token,
        reward_transform=module.reward_transform,
        output=None if run.warm_start is None else run.warm_start.metadata.output,
        origin=None if run.warm_start is None else run.warm_start.metadata.origin,
        objective=TrainedObjective(
            kind=recipe.loss.kind,
            temperature=recipe.loss.temperature,
            learned=() if recipe.loss.gate == "learned" else start.objective.learned,
            levels=start.objective.levels,
        ),
        outputs=start.outputs,
    )
