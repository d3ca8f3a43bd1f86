"""A thin Trainer: one optimizer step is one ``training_step``, cut by tokens, divided once.

The Trainer's own accumulation is 1, because it counts micro-batches in rows and divides by their
number. Here a rank gets all comparisons of its share of a step; the losses of its micro-batches
are summed and divided once by the step's global count, so that any cut into micro-batches and
ranks gives the same gradient.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import gather_object, save_fsdp_optimizer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer import SCHEDULER_NAME

from plaudit.errors import TrainingError
from plaudit.losses.loss import LearnedParameters
from plaudit.losses.outputs import OutputLabels
from plaudit.model.checkpoint import (
    ADAPTER_FILE,
    CheckpointMetadata,
    read_objective,
    read_outputs,
    write_model,
)
from plaudit.model.language import next_tokens_of
from plaudit.model.load import head_modules
from plaudit.model.module import RewardModule, classifier
from plaudit.model.scoring import (
    DUMMY_TREE,
    distinct_trees,
    free_memory,
    is_out_of_memory,
    micro_batches,
    score_distinct,
)
from plaudit.planning.microbatch import MicroBatches
from plaudit.recipe.load import CHECKPOINT_RECIPE
from plaudit.storage.atomic import write_text, writing
from plaudit.storage.manifest import COUNTERS
from plaudit.tokens.store import StoredTrees
from plaudit.training import checkpoints
from plaudit.training.folder import TrainingEnd
from plaudit.training.prepare import PreparedRun
from plaudit.training.sharding import fill, gather, reshard
from plaudit.types import Batch, FloatArray, Outputs, TokenTree

logger = logging.getLogger("plaudit")

EvalOutputs = Mapping[str, Sequence[FloatArray]]
"""``outputs_KO`` of each comparison of each evaluation set."""


class RewardTrainer(Trainer):
    """Trains a :class:`RewardModule` on token trees.

    ``measure`` turns the outputs of the evaluation sets into the metrics that are logged; it runs
    on every rank with the same outputs. ``metadata`` are the ``plaudit.json`` of every checkpoint.
    """

    def __init__(
        self,
        run: PreparedRun,
        *,
        measure: Callable[[EvalOutputs, int], dict[str, float]],
        metadata: CheckpointMetadata,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.train_trees = run.corpus.train.trees
        self.eval_trees = {name: part.trees for name, part in run.corpus.evaluation.items()}
        super().__init__(
            model=run.built.model.module,
            args=run.args,
            train_dataset=self.train_trees,
            eval_dataset=self.eval_trees or None,
            processing_class=run.tokenizer,
            data_collator=list,  # type: ignore[arg-type]
            callbacks=list(callbacks),
        )
        self.head_learning_rate = run.recipe.model.head_learning_rate
        self.batcher = run.built.batcher
        self.folder = run.folder
        self.rows = run.corpus.train.comparisons
        self.loss = run.built.loss
        self.learned = LearnedParameters[OutputLabels](
            self.loss, run.built.start.objective.learned, self.args.device
        )
        self.measure = measure
        self._metadata = metadata
        self.recipe = run.recorded_recipe
        self.step_metrics = StepMetrics(self.args.device)
        self._began = time.perf_counter()
        self._seconds_before = 0.0
        self._ended = False

    @property
    def metadata(self) -> CheckpointMetadata:
        """``plaudit.json`` of the model as it is now."""
        assert self._metadata.objective is not None
        if self._gate_learns:
            return replace(self._metadata, outputs=self.outputs)
        objective = replace(self._metadata.objective, learned=self.learned.numbers())
        return replace(self._metadata, objective=objective)

    @property
    def outputs(self) -> Outputs | None:
        """The outputs of the model with their weights as they are now."""
        outputs = self._metadata.outputs
        if outputs is None or not self._gate_learns:
            return outputs
        return replace(outputs, weights=self.learned.numbers())

    @property
    def _gate_learns(self) -> bool:
        return self.loss.options.gate == "learned"

    def rewards(self, outputs_KO: FloatArray) -> FloatArray:
        """``rewards_K`` of the outputs of some responses."""
        outputs = self.outputs
        return outputs_KO[:, 0] if outputs is None else outputs.rewards(outputs_KO)

    # ---- data

    def get_train_dataloader(self) -> StepLoader:
        return StepLoader(self.train_trees, self.sampler())

    def sampler(self) -> StepSampler:
        """The order of this run's comparisons."""
        return StepSampler(
            len(self.train_trees),
            self._train_batch_size * self.accelerator.num_processes,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )

    def restore_end(self, end: TrainingEnd, model: Path) -> None:
        """Be as after training: the state that it ended in, the weights saved in ``model``."""
        self.state = TrainerState(**json.loads(end.state))
        self._load(model)
        # Mixed precision, as training had it.
        self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        self._seconds_before, self._began = end.seconds, time.perf_counter()

    def end(self) -> TrainingEnd:
        """How training ended; the weights are those to evaluate from here on."""
        self._switch_optimizer("eval")
        return TrainingEnd(
            state=json.dumps(asdict(self.state)), seconds=self.seconds(), recipe=self.recipe
        )

    # ---- one step

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Train, from a complete checkpoint where one is given."""
        self._began = time.perf_counter()
        if resume_from_checkpoint is not None:
            self.add_callback(_RestoreCounters(self, Path(resume_from_checkpoint)))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        """One epoch; none from a checkpoint at which training ended.

        The Trainer compares steps with their maximum only after a step, so it would train one more.
        """
        if self._ended:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*arguments, **options)  # type: ignore[no-untyped-call]

    def training_step(
        self,
        model: nn.Module,
        inputs: list[TokenTree],  # type: ignore[override]
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """A whole optimizer step; ``inputs`` are the step's trees of all ranks, in one order.

        Returns this rank's share of the step's mean loss, times the number of ranks, as the
        Trainer averages what ranks return.
        """
        model.train()
        self._switch_optimizer("train")
        while True:
            before = _StepStart.of(self.step_metrics)
            try:
                total, mine = self._accumulate(model, inputs)
                break
            except _MicroBatchTooLargeError as error:
                trees = error.trees
            # Behind the except block, whose error keeps all that the failed pass had computed.
            model.zero_grad(set_to_none=True)
            before.restore(self.step_metrics)
            free_memory()
            self._halve_budget(trees)
        if not self.learned.fixed:
            mean = partial(self.accelerator.reduce, reduction="mean")
            self.learned.step(mean, self._schedule())
        self.step_metrics.step(total, mine, self.state.global_step + 1)
        return total

    def _schedule(self) -> float:
        """The share of its learning rate that the run has at this step."""
        return float(self._get_learning_rate()) / (self.args.learning_rate or 1.0)

    def _accumulate(
        self, model: nn.Module, inputs: Sequence[TokenTree]
    ) -> tuple[Tensor, Sequence[TokenTree]]:
        """The gradient of a step: its loss on this rank and this rank's trees."""
        _, mine, rounds = self._share(inputs)
        cuts = self.batcher.split(mine)
        # DDP and its kin average gradients over ranks; the sum over ranks is wanted.
        scale = self.accelerator.num_processes / max(self.loss.count(inputs), 1e-12)
        self.learned.clear()
        total = torch.zeros((), device=self.args.device)
        # Laying out the first one may already run out of memory.
        trees: Sequence[TokenTree] = [mine[i] for i in cuts[0]] if cuts else [DUMMY_TREE]
        batches = micro_batches(self.batcher, mine, cuts, rounds)
        try:
            for number, (trees, batch) in enumerate(batches):
                last = number == rounds - 1
                # DeepSpeed takes its optimizer step in the backward pass of the last micro-batch.
                self.accelerator.gradient_state._set_sync_gradients(last)
                # Gradients travel once per step, with its last micro-batch. Under FSDP they do with
                # each one: until then a rank would hold them for all weights.
                travel = last or self.is_fsdp_enabled
                with contextlib.nullcontext() if travel else self.accelerator.no_sync(model):
                    total += self._micro_batch(model, trees, batch, scale)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise _MicroBatchTooLargeError(trees) from None
        return total, mine

    def _halve_budget(self, trees: Sequence[TokenTree]) -> None:
        """Go on with half the tokens of a micro-batch that did not fit in memory.

        Raises:
            TrainingError: it is one tree, or other processes take part in the step.
        """
        tokens = self.batcher.size(trees)
        if len(trees) == 1:
            row = trees[0].index
            where = f" ({self.rows[row].where})" if row >= 0 else ""
            raise TrainingError(
                f"A comparison of {tokens:,} tokens{where} does not fit"
                " in the memory of the device; lower tokens.max_length, set"
                " train.activation_checkpointing to true, or set model.quantize to 4bit."
            )
        if self.accelerator.num_processes > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise TrainingError(
                f"A micro-batch of {tokens:,} tokens does not fit in the memory of the device;"
                f" {self._resume_smaller(tokens // 2)}."
            )
        self.batcher = replace(self.batcher, max_tokens=tokens // 2)
        recorded = self.folder.recorded_micro_batches() or MicroBatches(tokens=tokens)
        self.folder.record_micro_batches(
            replace(recorded, tokens=tokens // 2, reason="lowered after running out of memory")
        )
        logger.warning(
            "A micro-batch of %s tokens did not fit in the memory of the device; step %d is"
            " computed again, in micro-batches of at most %s tokens from now on. The result is the"
            " same.",
            f"{tokens:,}",
            self.state.global_step + 1,
            f"{tokens // 2:,}",
        )
        self.log({"max_tokens_per_microbatch": tokens // 2})

    def _resume_smaller(self, tokens: int) -> str:
        """What to do where other processes take part, so that a step cannot be computed again."""
        return (
            f"to resume in smaller ones: {self.folder.resume_command()}"
            f" --set tokens.max_tokens_per_microbatch={tokens}"
        )

    def _switch_optimizer(self, mode: Literal["train", "eval"]) -> None:
        """Schedule-free optimizers keep two sets of weights, one to train and one to use."""
        switch = getattr(self.optimizer, mode, None)
        if callable(switch):
            switch()

    def _micro_batch(
        self, model: nn.Module, trees: Sequence[TokenTree], batch: Batch, scale: float
    ) -> Tensor:
        language = self.loss.options.language_model
        with self.compute_loss_context_manager():
            if language:
                next_tokens = next_tokens_of(trees, batch, self.args.device)
                outputs_RO, of_language = model(batch, next_tokens=next_tokens)
            else:
                outputs_RO, of_language = model(batch, every_output=True), 0.0
        labels = self.loss.labels(trees, self.args.device)
        # A dummy batch has no labels: its loss is an empty sum, zero with a gradient path.
        loss = self.loss(outputs_RO, labels, self.learned.value_C).total
        loss = (loss + language * of_language) * scale
        self.learned.accumulate(outputs_RO, labels, scale)
        reward_R, pairs = self._gate(outputs_RO.detach()), labels.reward.pairs
        self.step_metrics.add(reward_R[pairs.winner_P] - reward_R[pairs.loser_P])
        self.accelerator.backward(loss)
        detached: Tensor = loss.detach()
        return detached

    def _gate(self, outputs_RO: Tensor) -> Tensor:
        """``reward_R`` of the outputs of a batch, on the device."""
        if self._gate_learns:
            return outputs_RO @ self.learned.value_C
        module: RewardModule = self.accelerator.unwrap_model(self.model)
        return module.gate(outputs_RO)

    def autocast_smart_context_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Autocast for a forward pass; accelerate puts it into that of a model unless FSDP2's."""
        if self.is_fsdp_enabled:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, which remembers what it optimizes."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.head_learning_rate is not None:
            _give_rate(optimizer, self._head_parameters(), self.head_learning_rate)
        self._optimized = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer

    def _head_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters of the head, inside whatever wraps the model."""
        network = self.accelerator.unwrap_model(self.model).network
        inside = classifier(network)
        heads = [inside.get_submodule(name) for name in head_modules(inside)]
        return [p for head in heads for p in head.parameters() if p.requires_grad]

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, which is created once accelerate has prepared the optimizer."""
        if self.is_fsdp_enabled:
            assert self.optimizer is not None
            # accelerate 1.15 (fsdp2_switch_optimizer_parameters) looks the parameters up by their
            # address. That of all empty shards is 0, and a rank has one of every tensor that has
            # fewer rows than there are ranks: the head, and a LoRA of small rank.
            for group, parameters in zip(self.optimizer.param_groups, self._optimized, strict=True):
                group["params"] = parameters
        return super().create_scheduler(*args, **kwargs)

    def _share(self, trees: Sequence[TokenTree]) -> tuple[Sequence[int], Sequence[TokenTree], int]:
        """Positions of this rank's trees, the trees, and how many micro-batches every rank runs.

        Every rank knows all trees, so it works out the others' cuts itself; asking them would
        make each step wait for the slowest host.
        """
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        if ranks == 1:
            # As it is: a list would hold every tree of a large evaluation set in memory.
            return range(len(trees)), trees, len(self.batcher.split(trees))
        shares = equal_shares(trees, ranks)
        parts = [
            # Stored trees stay in their file.
            trees.take(share) if isinstance(trees, StoredTrees) else [trees[i] for i in share]
            for share in shares
        ]
        return shares[rank], parts[rank], max(len(self.batcher.split(part)) for part in parts)

    # ---- evaluation

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score all evaluation sets exactly, log, and return the metrics."""
        del eval_dataset, ignore_keys, metric_key_prefix
        self.step_metrics.check()
        started = time.perf_counter()
        outputs = {name: self.score_outputs(trees) for name, trees in self.eval_trees.items()}
        self.step_metrics.check_after(
            f"A reward of the evaluation after step {self.state.global_step}",
            (torch.from_numpy(outputs_KO) for rows in outputs.values() for outputs_KO in rows),
        )
        metrics = self.measure(outputs, self.state.global_step)
        self.step_metrics.pause(time.perf_counter() - started)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def score(self, trees: Sequence[TokenTree]) -> list[FloatArray]:
        """``rewards_K`` of every tree: :meth:`score_outputs` through the gate."""
        return [self.rewards(outputs_KO) for outputs_KO in self.score_outputs(trees)]

    def score_outputs(self, trees: Sequence[TokenTree]) -> list[FloatArray]:
        """``outputs_KO`` of every tree, on every rank; each is computed once, on one rank."""
        model = self.model_wrapped
        training = model.training
        model.eval()
        self._switch_optimizer("eval")
        # Before the ranks share the trees: they must agree on the number of batches.
        distinct = distinct_trees(trees)
        positions, mine, rounds = self._share(distinct.trees)
        alone = self.accelerator.num_processes == 1
        try:
            with self.compute_loss_context_manager():
                scored = score_distinct(
                    partial(model, every_output=True),
                    self.batcher,
                    mine,
                    batches=None if alone else rounds,
                )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                "A batch of the evaluation does not fit in the memory of the device;"
                f" {self._resume_smaller(self.batcher.max_tokens // 2)}."
            ) from None
        finally:
            model.train(training)
            if self.is_fsdp_enabled:
                reshard(model)
        if alone:
            return distinct.restore(scored)
        everywhere = dict(gather_object([*zip(positions, scored, strict=True)]))
        return distinct.restore([everywhere[i] for i in range(len(distinct.trees))])

    # ---- log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step metrics to the training logs."""
        if "loss" in logs:
            totals = self.step_metrics.read(lambda t: self.accelerator.reduce(t, reduction="sum"))
            if totals.pairs:
                logs["accuracy"] = totals.correct / totals.pairs
                logs["margin"] = totals.margin / totals.pairs
            logs["pairs_per_second"] = totals.comparisons / max(totals.seconds, 1e-9)
            logs["tokens_per_second"] = totals.tokens / max(totals.seconds, 1e-9)
        super().log(logs, start_time)

    # ---- checkpoints

    def gather_state(self) -> dict[str, Tensor] | None:
        """The weights to save where the ranks share them, on the first; None where each has them.

        Every rank must call it.
        """
        if not self.is_fsdp_enabled:
            return None
        return gather(self.accelerator.unwrap_model(self.model).network)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model of a checkpoint. Every rank calls it, the first one writes."""
        if self.is_fsdp_enabled:
            # The Trainer would gather the frozen base, too, or save none of it.
            self._save(output_dir, self.gather_state())
        else:
            super().save_model(output_dir, _internal_call)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        # transformers < 5.23 calls this on the first rank alone.
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        if state_dict is not None:
            # ZeRO gathers the wrapper's state; the network inside is what others load.
            prefix = "network."
            state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items()}
        module = self.accelerator.unwrap_model(self.model)
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        write_model(folder, module.network, self.processing_class, self.metadata, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # The Trainer's saves the frozen base beside them.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint is complete with its manifest; older ones are deleted only then."""
        started = time.perf_counter()
        self.step_metrics.check()
        # A step with a finite loss can still have had gradients that are not; the next loss would
        # tell, too late for the checkpoint between the two.
        self.step_metrics.check_after(
            f"A weight after step {self.state.global_step}",
            (p.detach() for p in model.parameters() if p.requires_grad),
        )
        checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        rank = self.accelerator.process_index
        try:
            with writing(checkpoint):
                # A step may be saved twice. It is incomplete until the second save is whole.
                checkpoints.mark_incomplete(checkpoint)
                super()._save_checkpoint(model, trial)
                torch.save(self._counters(), checkpoint / f"{COUNTERS}{rank}.pt")
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_text(checkpoint / CHECKPOINT_RECIPE, self.recipe)
            checkpoints.mark_complete(checkpoint)
            # Damaged ones that the run resumed before: they would count among those to keep.
            checkpoints.remove_later(checkpoint.parent, self.state.global_step)
            best = self.state.best_model_checkpoint
            checkpoints.remove_oldest(checkpoint.parent, limit, Path(best) if best else None)
        self.step_metrics.pause(time.perf_counter() - started)

    def seconds(self) -> float:
        """Time spent training, evaluating and saving, earlier parts of a resumed run included."""
        return self._seconds_before + time.perf_counter() - self._began

    def _counters(self) -> dict[str, Any]:
        """What the next log line is made of. The Trainer forgets it between two lines."""
        return {
            "loss": self._tr_loss,
            "logged_step": self._globalstep_last_logged,
            "meter": self.step_metrics.state(),
            "learned": self.learned.state(),
            "seconds": self.seconds(),
            "patience": [callback.early_stopping_patience_counter for callback in self._stoppers()],
        }

    def restore_counters(self, checkpoint: Path) -> None:
        """Continue a checkpoint's log line, so that a resumed run logs what one run does."""
        best = checkpoints.best_of(checkpoint)
        self.state.best_model_checkpoint = None if best is None else str(best)
        rank = self.accelerator.process_index
        saved = torch.load(
            checkpoint / f"{COUNTERS}{rank}.pt", weights_only=True, map_location="cpu"
        )
        self._tr_loss = saved["loss"].to(self.args.device)
        self._globalstep_last_logged = saved["logged_step"]
        self.step_metrics.restore(saved["meter"])
        # Checkpoints of plaudit 0.1 have no learned parameters, nor do the objectives they had.
        if "learned" in saved:
            self.learned.restore(saved["learned"])
        self._seconds_before = saved["seconds"]
        for callback, count in zip(self._stoppers(), saved["patience"], strict=True):
            callback.early_stopping_patience_counter = count
        stopped_early = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self._stoppers()
        )
        self._ended = stopped_early or self.state.global_step >= self.state.max_steps

    def _stoppers(self) -> list[EarlyStoppingCallback]:
        """Callbacks that count evaluations without progress.

        The Trainer restores them only together with its control flags, and those of a checkpoint
        written on the way out say stop.
        """
        callbacks = self.callback_handler.callbacks
        return [c for c in callbacks if isinstance(c, EarlyStoppingCallback)]

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        self._load(Path(resume_from_checkpoint))

    def _load(self, folder: Path) -> None:
        """The weights of a model folder, and what its objective had learned."""
        load_weights(self.accelerator.unwrap_model(self.model), folder)
        self._load_learned(folder)

    def _load_learned(self, folder: Path) -> None:
        if self._gate_learns:
            outputs = read_outputs(folder)
            assert outputs is not None
            self.learned.put(outputs.weights)
            return
        objective = read_objective(folder)
        if objective is not None:
            self.learned.put(objective.learned)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        best = Path(self.state.best_model_checkpoint)
        if self.is_deepspeed_enabled:
            super()._load_best_model()
            self._load_learned(best)
            return
        damage = checkpoints.find_weight_damage(best)
        if damage is not None:
            raise TrainingError(
                f"The run ends with the weights of its best checkpoint, but {best}/{damage}; run"
                " again with --resume, which trains from an earlier checkpoint if there is one."
            )
        self._load(best)


def _give_rate(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], rate: float
) -> None:
    """Move parameters into groups of their own, like those they were in but for the rate."""
    moved = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        mine = [p for p in group["params"] if id(p) in moved]
        group["params"] = [p for p in group["params"] if id(p) not in moved]
        if mine:
            others = {key: value for key, value in group.items() if key != "params"}
            optimizer.add_param_group({**others, "params": mine, "lr": rate})


class _MicroBatchTooLargeError(Exception):
    """A micro-batch of ``trees`` did not fit in the memory of the device."""

    def __init__(self, trees: Sequence[TokenTree]) -> None:
        super().__init__()
        self.trees = trees


@dataclass(frozen=True, slots=True)
class _StepStart:
    """What a step changes besides gradients: random numbers and metrics."""

    rng: Tensor
    cuda_rng: Tensor | None
    metrics: dict[str, Any]

    @classmethod
    def of(cls, metrics: StepMetrics) -> _StepStart:
        on_cuda = metrics.device.type == "cuda"
        return cls(
            torch.get_rng_state(),
            torch.cuda.get_rng_state(metrics.device) if on_cuda else None,
            metrics.state(),
        )

    def restore(self, metrics: StepMetrics) -> None:
        torch.set_rng_state(self.rng)
        if self.cuda_rng is not None:
            torch.cuda.set_rng_state(self.cuda_rng, metrics.device)
        metrics.restore(self.metrics)


class _RestoreCounters(TrainerCallback):
    """The Trainer clears its counters just before this event, so they are restored in it."""

    def __init__(self, trainer: RewardTrainer, checkpoint: Path) -> None:
        self.trainer = trainer
        self.checkpoint = checkpoint

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.restore_counters(self.checkpoint)


def load_weights(module: RewardModule, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the module: adapter and head, or everything.

    Every tensor of the file must find its place; nothing trainable may be left out.
    """
    network = module.network
    state: dict[str, Tensor] = {}
    if hasattr(network, "peft_config"):
        from peft import get_peft_model_state_dict

        own = get_peft_model_state_dict(network, save_embedding_layers=False)
        state = load_file(checkpoint / ADAPTER_FILE)
    else:
        own = network.state_dict()
        for file in sorted(checkpoint.glob("model*.safetensors")):
            state.update(load_file(file))
        if not state.keys() <= own.keys():
            # Files have a tensor for each expert, the network one for all of a layer.
            state = type(network).from_pretrained(checkpoint).state_dict()
    assert state.keys() <= own.keys(), state.keys() - own.keys()
    tied = set(getattr(network, "all_tied_weights_keys", None) or ())
    assert own.keys() - state.keys() <= tied, own.keys() - state.keys()
    fill(own, state)


# ---- which comparisons make which optimizer step
#
# A step is counted in comparisons. A rank gets all comparisons of a step at once, takes its share
# and splits it by tokens. The order depends on the seed and the epoch alone, so a resumed run sees
# the rows that the uninterrupted one would have.


class StepSampler(Sampler[list[int]]):
    """Yields the row numbers of each optimizer step, the same on every rank.

    accelerate's own sharding repeats rows to make ranks even; here the last step of an epoch is
    simply smaller, and a rank without rows runs a dummy batch.
    """

    def __init__(self, rows: int, per_step: int, *, seed: int) -> None:
        self.rows = rows
        self.per_step = per_step
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.rows / self.per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        for step in range(len(self)):
            yield order[step * self.per_step : (step + 1) * self.per_step].tolist()


def equal_shares(trees: Sequence[TokenTree], ranks: int) -> list[list[int]]:
    """Positions in ``trees`` for each rank, in order: equal tokens rather than equal rows.

    The longest tree first, each to the rank with the fewest tokens so far (Graham 1969: at most
    4/3 of the best possible load). Ranks wait for the slowest one at every step. The same trees
    always give the same shares, so every rank knows all of them.
    """
    sizes = [tree.tokens for tree in trees]
    loads = [(0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for i in sorted(range(len(trees)), key=lambda i: (-sizes[i], i)):
        tokens, rank = heapq.heappop(loads)
        shares[rank].append(i)
        heapq.heappush(loads, (tokens + sizes[i], rank))
    return [sorted(share) for share in shares]


def rows_of_first(sampler: StepSampler, steps: int) -> Iterator[int]:
    """Row numbers of a run's first ``steps`` optimizer steps, in order, epoch after epoch."""
    for epoch, begin in enumerate(range(0, steps, len(sampler))):
        sampler.set_epoch(epoch)
        for rows in islice(sampler, min(len(sampler), steps - begin)):
            yield from rows


class StepLoader(DataLoader[TokenTree]):
    """One batch per optimizer step. The Trainer sets the epoch on the loader it is given."""

    def __init__(self, trees: Sequence[TokenTree], sampler: StepSampler) -> None:
        super().__init__(
            trees,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=list,
        )
        self.set_epoch = sampler.set_epoch


# ---- what a step leaves for the log, kept on the device until someone reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """Sums over all ranks since the last read."""

    pairs: float
    correct: float
    margin: float
    comparisons: float
    tokens: float
    seconds: float


class StepMetrics:
    """Accumulates on the device; :meth:`read` holds the only copy to the host.

    Host-side numbers (rows, tokens, time) are counted on the host; nothing here makes a step wait
    for the device, except the check for finite losses on a CPU, where waiting costs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._unchecked: list[tuple[Tensor, int, tuple[int, ...]]] = []
        self._last_rows: tuple[int, ...] = ()
        self._clear()

    def _clear(self) -> None:
        # Right pairs and summed margin; what the host knows is counted on the host.
        self._sums_2 = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._counts = dict.fromkeys(("pairs", "comparisons", "tokens"), 0)
        self._since = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What has been counted since the last read, for a checkpoint between two logs."""
        return {
            "sums": self._sums_2.clone(),
            **self._counts,
            "seconds": time.perf_counter() - self._since,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a :meth:`state`."""
        self._sums_2 = state["sums"].to(self.device)
        self._counts = {name: state[name] for name in self._counts}
        self._since = time.perf_counter() - state["seconds"]

    def pause(self, seconds: float) -> None:
        """Leave time out of the throughput (an evaluation, a save)."""
        self._since += seconds

    def add(self, delta_P: Tensor) -> None:
        """Count one micro-batch's pairs, whether they are ordered right, and their margins."""
        self._counts["pairs"] += delta_P.numel()
        with torch.no_grad():
            self._sums_2 += torch.stack([(delta_P > 0).sum().double(), delta_P.double().sum()])

    def step(self, loss: Tensor, trees: Sequence[TokenTree], step: int) -> None:
        """Close a step: its loss is checked for finiteness here (CPU) or at the next read."""
        self._counts["comparisons"] += len(trees)
        self._counts["tokens"] += sum(tree.tokens for tree in trees)
        self._last_rows = tuple(tree.index for tree in trees)
        self._unchecked.append((loss, step, self._last_rows))
        if self.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Stop if a step's loss since the last check was not finite.

        Raises:
            NotFiniteError: with the step and this rank's rows of it.
        """
        waiting, self._unchecked = self._unchecked, []
        if not waiting:
            return
        finite = torch.isfinite(torch.stack([loss for loss, _, _ in waiting])).tolist()
        for ok, (_, step, rows) in zip(finite, waiting, strict=True):
            if not ok:
                raise NotFiniteError(f"The loss of step {step}", rows)

    def check_after(self, what: str, numbers: Iterable[Tensor]) -> None:
        """Stop if the last step spoiled what is computed after it; ``what`` names that.

        Raises:
            NotFiniteError: with this rank's rows of the last step.
        """
        if not all(bool(torch.isfinite(tensor).all()) for tensor in numbers):
            raise NotFiniteError(what, self._last_rows)

    def read(self, total: Callable[[Tensor], Tensor]) -> StepTotals:
        """All ranks' sums since the last read; ``total`` sums a tensor over ranks."""
        self.check()
        counted = torch.tensor([*self._counts.values()], dtype=torch.float64, device=self.device)
        sums = total(torch.cat([self._sums_2, counted])).tolist()
        names = ("correct", "margin", *self._counts)
        totals = StepTotals(
            **dict(zip(names, sums, strict=True)), seconds=time.perf_counter() - self._since
        )
        self._clear()
        return totals


class NotFiniteError(TrainingError):
    """A step that gave no number; ``what`` says where, ``rows`` are this rank's rows in it."""

    def __init__(self, what: str, rows: tuple[int, ...]) -> None:
        super().__init__(f"{what} is not a finite number")
        self.rows = rows
