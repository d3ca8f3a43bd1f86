"""Write ``plaudit/recipe/hf_keys.json`` from the installed transformers and peft.

The recipe's ``train`` and ``lora`` sections pass through to ``transformers.TrainingArguments`` and
``peft.LoraConfig``. Importing those takes many seconds, so what a recipe check needs of them (keys,
accepted types, choices, defaults) is kept as package data. Run this after changing either library.

A key with no types takes an object that YAML cannot write. Descriptions are the libraries' own,
shortened to whole sentences, except those of common keys and those with mistakes.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "plaudit" / "recipe" / "hf_keys.json"

DESCRIPTION = 160
"""Characters that several sentences of a description may have together."""

COMMON = {
    "train": {
        "learning_rate": "Peak learning rate.",
        "num_train_epochs": "Number of epochs.",
        "max_steps": "Number of optimizer steps, in place of num_train_epochs; -1 for no limit.",
        "per_device_train_batch_size": "Comparisons per device in one batch.",
        "gradient_accumulation_steps": "Batches whose gradients make one optimizer step.",
        "per_device_eval_batch_size": "Comparisons per device in one evaluation batch.",
        "lr_scheduler_type": "Learning rate schedule.",
        "warmup_steps": "Steps of linear warmup; below 1, a fraction of all steps.",
        "weight_decay": "Weight decay, applied to all weights except biases and norms.",
        "max_grad_norm": "Gradient norm to clip to; 0 for no clipping.",
        "optim": "Optimizer.",
        "bf16": "Compute in bf16 mixed precision.",
        "activation_checkpointing": "Recompute activations in the backward pass: less memory, "
        "slower steps. Unset, a GPU recomputes as few layers as its memory needs.",
        "eval_strategy": "When to evaluate.",
        "eval_steps": "Number of steps between evaluations; below 1, a fraction of all steps.",
        "save_strategy": "When to save a checkpoint.",
        "save_steps": "Number of steps between checkpoints; below 1, a fraction of all steps.",
        "save_total_limit": "Number of checkpoints to keep, at least 2: the best and the last.",
        "load_best_model_at_end": "Keep the best checkpoint by metric_for_best_model, not the "
        "last.",
        "metric_for_best_model": "Metric that chooses the best checkpoint, such as eval_loss, "
        "eval_accuracy or eval_calibrated_loss.",
        "greater_is_better": "Whether a higher metric_for_best_model is better.",
        "logging_steps": "Number of steps between logged losses; below 1, a fraction of all steps.",
        "report_to": "Experiment trackers to log to, such as wandb, tensorboard or trackio.",
        "run_name": "Name of the run in experiment trackers.",
        "seed": "Seed of training.",
        "dataloader_num_workers": "Processes that prepare batches; 0 for the main process.",
        "fsdp": "Train with FSDP: shard parameters, gradients and optimizer state.",
        "deepspeed": "DeepSpeed configuration: a JSON file or a mapping.",
    },
    "lora": {
        "r": "Rank of the LoRA adapter.",
        "lora_alpha": "Scale of the LoRA adapter: its output is multiplied by lora_alpha / r.",
        "lora_dropout": "Dropout probability before the LoRA adapter, in training only.",
        "target_modules": "Modules to adapt: all-linear, a list of name suffixes such "
        "as [q_proj, v_proj], or a regular expression.",
        "modules_to_save": "Modules besides the adapter to train in full and save.",
        "use_rslora": "Rank-stabilized LoRA: scale by lora_alpha / sqrt(r).",
        "use_dora": "DoRA: train the magnitude and the direction of each weight separately.",
        "init_lora_weights": "Initial weights of the adapter; true starts as the base model.",
    },
}
"""Keys that most recipes set, in the order of the reference page, and their descriptions."""

CORRECTED = {
    "use_cache": "Whether to use the model's cache.",
    "use_qalora": "Enable Quantization-Aware Low-Rank Adaptation (QALoRA), for GPTQ only.",
    "layers_to_transform": "Indexes of the layers that get an adapter.",
    "layers_pattern": "Name of the module list that `layers_to_transform` counts in, where PEFT "
    "does not know it.",
    "megatron_core": "Module of Megatron that creates LoRA's parallel linear layers.",
    "local_rank": "Rank of the process on its machine, set by the launcher.",
    "trainable_token_indices": "Token indices whose embeddings are trained, without the rest of "
    "the embedding matrix.",
    "velora_config": "Configuration of VeLoRA, a variant of LoRA.",
    "target_parameters": "Like `target_modules`, with names of parameters.",
}
"""Descriptions in place of the library's own where those have mistakes."""

SIMPLE = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict", list: "list"}


def describe(annotation: Any) -> tuple[set[str], tuple[str, ...]]:
    """Accepted type names and closed choices of one annotation; objects YAML cannot write: none."""
    if annotation is None or annotation is type(None):
        return {"null"}, ()
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType):
        return merge([describe(part) for part in typing.get_args(annotation)])
    if origin is typing.Literal:
        values = typing.get_args(annotation)
        names = {SIMPLE[type(value)] for value in values}
        return names, tuple(value for value in values if isinstance(value, str))
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return {"str"}, tuple(str(member.value) for member in origin)
    return ({SIMPLE[origin]}, ()) if origin in SIMPLE else (set(), ())


def merge(parts: list[tuple[set[str], tuple[str, ...]]]) -> tuple[set[str], tuple[str, ...]]:
    """A union of annotations. An enumeration beside ``str`` stays closed: it is its spelling."""
    names: set[str] = set().union(*(names for names, _ in parts))
    choices = tuple(choice for _, group in parts for choice in group)
    # peft spells a pattern as a choice ("pissa_niter_[number of iters]"): then the set is open.
    return names, () if any("[" in choice for choice in choices) else choices


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The field's default as YAML would write it; objects become None."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if isinstance(value, enum.Enum):
        return value.value
    return value if isinstance(value, (bool, int, float, str, list, dict)) else None


def keys(config: type) -> dict[str, dict[str, Any]]:
    """What a recipe may set of each field of a configuration dataclass."""
    order = ("bool", "int", "float", "str", "list", "dict", "null")
    hints = typing.get_type_hints(config)
    table = {}
    for field in dataclasses.fields(config):
        names, choices = describe(hints[field.name])
        table[field.name] = {
            "types": [name for name in order if name in names and names != {"null"}],
            "default": default_of(field),
            "choices": choices,
            "description": description_of(field),
        }
    return table


def description_of(field: dataclasses.Field[Any]) -> str:
    """The library's help: its first sentence, and those after it that fit beside it."""
    for ours in (*COMMON.values(), CORRECTED):
        if field.name in ours:
            return ours[field.name]
    words = " ".join(str(field.metadata.get("help") or "").split())
    # Links lose their address, and argparse's %% is a percent sign.
    words = re.sub(r"</?a\b[^>]*>|\[([^]]+)\]\(https[^)]*\)", r"\1", words).replace("%%", "%")
    first, *more = re.split(r"(?<=[a-z)`'\"]\.) (?=[A-Z`])", words)
    for sentence in more:
        if len(first) + len(sentence) >= DESCRIPTION:
            break
        first = f"{first} {sentence}"
    return first.rstrip(".") + "." * bool(first)


def generate() -> str:
    """The text of ``plaudit/recipe/hf_keys.json`` for the installed versions, a key a line."""
    import peft
    import transformers

    versions = {"transformers": transformers.__version__, "peft": peft.__version__}
    sections = {"train": keys(transformers.TrainingArguments), "lora": keys(peft.LoraConfig)}
    blocks = [f'"versions": {json.dumps(versions)}']
    for name, table in sections.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in table.items()]
        blocks.append(f'"{name}": {{\n' + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
    print(f"wrote {TARGET}")
