"""The sides of a training comparison: plaudit, TRL's RewardTrainer, plain transformers.

All get the same rows in the same order as token ids, the same base and the same adapter weights to
start from, and plaudit's ``TrainingArguments``; what differs is how a batch is laid out and
computed. Rows in a group are the pairs of one optimizer step.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from benchmarks.common.machine import keep_heap
from benchmarks.common.models import LORA
from benchmarks.common.results import Recorder, recorder
from plaudit.data.store import StoredComparisons
from plaudit.recipe.load import parse_recipe
from plaudit.tokens.store import StoredTrees
from plaudit.training.callbacks import ProgressReport, StopSignal
from plaudit.training.folder import start_folder
from plaudit.training.prepare import PreparedRun, prepare, step_arguments
from plaudit.training.run import make_trainer
from plaudit.training.trainer import StepSampler
from plaudit.types import TokenTree

MAX_LENGTH = 2048
LEARNING_RATE = 5e-5

Groups = Sequence[Sequence[TokenTree]]


def quiet() -> None:
    """The libraries' advice is not the benchmark's output."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("plaudit").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def begin(
    question: str,
    arguments: argparse.Namespace,
    *,
    settings: Mapping[str, Any],
    peers: Mapping[str, Any] | None = None,
) -> Recorder:
    """The recorder of a command that measures in this process: quiet, and freed memory is kept."""
    quiet()
    keep_heap()
    return recorder(question, arguments, settings=settings, peers=peers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """plaudit's own run, prepared once for a model: its data are every side's rows."""

    run: PreparedRun
    folder: Any
    start: dict[str, Tensor]
    classifier: Callable[[], nn.Module] | None = None
    """Builds the other sides' base; None loads the run's from disk."""

    @property
    def trees(self) -> Sequence[TokenTree]:
        return self.run.corpus.train.trees


def prepare_run(
    base: Path,
    data: Path,
    work: Path,
    *,
    batch: int,
    seed: int,
    lora: bool = True,
    options: Mapping[str, Any] | None = None,
    max_tokens: int | Literal["auto"] = "auto",
) -> Prepared:
    """Read, encode and load as ``plaudit train`` does, with plaudit's own defaults.

    ``options`` are laid over the recipe's ``train`` section; ``max_tokens`` are those of a
    micro-batch.
    """
    recipe = parse_recipe(
        {
            "model": {"base": str(base)},
            "lora": dict(LORA) if lora else None,
            "data": {"train": str(data), "eval_fraction": None, "seed": seed},
            "tokens": {"max_length": MAX_LENGTH, "max_tokens_per_microbatch": max_tokens},
            "loss": {"margin": "ignore"},
            "train": {
                "learning_rate": LEARNING_RATE,
                "lr_scheduler_type": "constant",
                "num_train_epochs": 1,
                "per_device_train_batch_size": batch,
                "save_strategy": "no",
                "logging_steps": 100_000,
                "seed": seed,
                **(options or {}),
            },
        },
        "benchmark",
    )
    folder = start_folder(work, recipe)
    args = step_arguments(recipe, folder)
    run = prepare(recipe, args, folder, Console(quiet=True))
    network = run.built.model.module.network
    start = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
    return Prepared(run=run, folder=folder, start=start)


class TreesInMemory(tuple[TokenTree, ...]):
    """Trees that a run reads as it reads stored ones: by number, by length, and which are chats."""

    chat_N: npt.NDArray[np.bool_]

    def column(self, name: str) -> npt.NDArray[np.bool_]:
        assert name == "chat", "a trainer reads no other column"
        return self.chat_N


def plaudit_trainer(prepared: Prepared, groups: Groups) -> Trainer:
    """Plaudit's RewardTrainer as ``plaudit train`` makes it, over these groups in this order."""
    run = prepared.run
    _load(run.built.model.module.network, prepared.start)
    batch = len(groups[0])
    args = replace(run.args, per_device_train_batch_size=batch, user_batch_size=batch)
    part = run.corpus.train
    wanted = [tree for group in groups for tree in group]
    placed: list[TokenTree] = list(wanted)
    order = (i for rows in StepSampler(len(wanted), batch, seed=args.seed) for i in rows)
    for at, tree in zip(order, wanted, strict=True):
        placed[at] = tree
    trees = TreesInMemory(replace(tree, index=i) for i, tree in enumerate(placed))
    trees.chat_N = part.trees.column("chat")[[tree.index for tree in placed]]
    train = replace(
        part,
        trees=cast(StoredTrees, trees),
        comparisons=cast(StoredComparisons, tuple(part.comparisons[tree.index] for tree in placed)),
    )
    corpus = replace(run.corpus, train=train)
    return make_trainer(
        replace(run, args=args, corpus=corpus),
        None,
        StopSignal(),
        ProgressReport(Console(quiet=True)),
    )


def trl_trainer(prepared: Prepared, groups: Groups, rows: int | None = None) -> Trainer:
    """TRL's RewardTrainer as released: its own collator, loss and step.

    fp32 without activation checkpointing, which is its fastest on a CPU (its defaults are bf16 and
    checkpointing on). ``max_length`` is off, so that it drops no row that plaudit keeps. ``rows``
    are the pairs of a micro-batch, all of a step where it is None.
    """
    # Only this side needs them: the others run where neither is installed.
    from datasets import Dataset, disable_progress_bars
    from trl import RewardConfig
    from trl import RewardTrainer as TrlTrainer

    disable_progress_bars()
    pairs = [conversations(tree) for group in groups for tree in group]
    config = RewardConfig(
        **_arguments(prepared, groups, rows),
        max_length=None,
        dataloader_pin_memory=False,
    )
    trainer = TrlTrainer(
        model=cast(PreTrainedModel, _network(prepared)),
        args=config,
        processing_class=prepared.run.tokenizer,
        train_dataset=Dataset.from_list(
            [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in pairs]
        ),
    )
    _silence(trainer)
    return trainer


def padded_trainer(prepared: Prepared, groups: Groups, rows: int | None = None) -> Trainer:
    """``AutoModelForSequenceClassification`` in a plain Trainer, right-padded pairs, ``rows`` of
    them in a micro-batch.
    """
    trainer = PaddedTrainer(
        model=_network(prepared),
        args=TrainingArguments(
            **_arguments(prepared, groups, rows),
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        data_collator=PaddedPairs(prepared.run.tokenizer.pad_token_id),
        train_dataset=[tree for group in groups for tree in group],
    )
    _silence(trainer)
    return trainer


TRAINERS: dict[str, Callable[[Prepared, Groups], Trainer]] = {
    "plaudit": plaudit_trainer,
    "trl": trl_trainer,
    "padded": padded_trainer,
}

CONFIGURATIONS = {
    "plaudit": "plaudit train with its defaults: packed, fp32, the Trainer's default optimizer",
    "trl": "RewardTrainer as released; fp32, no activation checkpointing, sdpa attention, "
    "max_length off, chosen_ids and rejected_ids given, its own collator",
    "padded": "AutoModelForSequenceClassification in a transformers Trainer; fp32, sdpa attention, "
    "right padding to the longest row of the batch",
}


class PaddedPairs:
    """Pairs as rows, chosen first, padded on the right to the longest of the batch."""

    def __init__(self, pad_id: Any) -> None:
        self.pad_id = int(pad_id)

    def __call__(self, trees: Sequence[TokenTree]) -> dict[str, Tensor]:
        pairs = [conversations(tree) for tree in trees]
        rows = [torch.tensor(ids) for side in (0, 1) for ids in (pair[side] for pair in pairs)]
        ids_BT = pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        length_B = torch.tensor([len(row) for row in rows])
        mask_BT = (torch.arange(ids_BT.shape[1]) < length_B[:, None]).long()
        return {"input_ids": ids_BT, "attention_mask": mask_BT}


class PaddedTrainer(Trainer):
    """The pairwise loss on a plain classifier."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        outputs = model(**inputs, use_cache=False)
        chosen_P, rejected_P = outputs.logits.squeeze(-1).chunk(2)
        loss = -nn.functional.logsigmoid(chosen_P - rejected_P).mean()
        return (loss, outputs) if return_outputs else loss


def _network(prepared: Prepared) -> nn.Module:
    """The base with plaudit's adapter weights, under transformers' own attention."""
    network: nn.Module = (
        AutoModelForSequenceClassification.from_pretrained(
            prepared.run.base, num_labels=1, dtype=_body_dtype(prepared)
        ).to(prepared.run.args.device)
        if prepared.classifier is None
        else prepared.classifier()
    )
    options = prepared.run.recipe.lora
    if options is not None:
        config = LoraConfig(task_type=TaskType.SEQ_CLS, modules_to_save=["score"], **options)
        network = get_peft_model(network, config)
    _load(network, prepared.start)
    return network


def _body_dtype(prepared: Prepared) -> torch.dtype:
    """The precision plaudit chose for the body: fp32 on a CPU, bf16 on a GPU."""
    network: Any = prepared.run.built.model.module.network
    dtype: torch.dtype = network.get_input_embeddings().weight.dtype
    return dtype


def _load(network: nn.Module, start: dict[str, Tensor]) -> None:
    parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert parameters.keys() == start.keys(), "the sides train different parameters"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])


def _arguments(prepared: Prepared, groups: Groups, rows: int | None) -> dict[str, Any]:
    """What plaudit's run was given, for a Trainer that reads its rows in order."""
    args, pairs = prepared.run.args, len(groups[0])
    return {
        "output_dir": str(prepared.folder.path / "peer"),
        "per_device_train_batch_size": rows or pairs,
        "gradient_accumulation_steps": pairs // (rows or pairs),
        "num_train_epochs": 1,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": args.lr_scheduler_type,
        "optim": args.optim,
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": 100_000,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": args.seed,
        "use_cpu": args.device.type == "cpu",
        # Plain transformers needs autocast where the body and the adapter differ in precision.
        "bf16": _body_dtype(prepared) == torch.bfloat16,
        "gradient_checkpointing": bool(args.gradient_checkpointing),
    }


def _silence(trainer: Trainer) -> None:
    trainer.remove_callback(transformers.PrinterCallback)


def conversations(tree: TokenTree) -> tuple[list[int], list[int]]:
    """A pair's two conversations, chosen first."""
    best = max(range(len(tree.branches)), key=lambda k: tree.grades[k])
    rows = [[*tree.prefix.tolist(), *branch.tolist()] for branch in tree.branches]
    return rows[best], rows[1 - best]
