"""What a recipe's values may be, and the sentence when one is not. Loads no torch.

The ``train`` and ``lora`` sections are checked against :mod:`plaudit.recipe.hf_keys`; the other
sections are pydantic models, whose errors are put into plain words here.
"""

from __future__ import annotations

import math
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from plaudit import registry
from plaudit.errors import RecipeError, nearest
from plaudit.recipe.hf_keys import LORA_CONFIG, TRAINING_ARGUMENTS, Key

NUMBER = re.compile(r"^[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?$")

SOURCE_PATH = re.compile(r"^data\.(?:train|eval|test)\.\d+$")

OWNED_TRAIN: dict[str, str] = {
    "output_dir": "say where the run goes with --out",
    "resume_from_checkpoint": "go on after a stop with --resume",
    "do_train": "the verb decides: plaudit train trains, plaudit eval evaluates",
    "do_eval": "the verb decides: plaudit train trains, plaudit eval evaluates",
    "do_predict": "score a file with plaudit score",
    "remove_unused_columns": "plaudit builds its own batches and has no columns to remove",
    "label_names": "plaudit builds its own batches and has no label columns",
    "prediction_loss_only": "evaluation always keeps the scores, the metrics come from them",
    "include_for_metrics": "evaluation always keeps the scores, the metrics come from them",
    "batch_eval_metrics": "metrics are computed exactly, over all scores at once",
    "eval_do_concat_batches": "metrics are computed exactly, over all scores at once",
    "eval_use_gather_object": "metrics are computed exactly, over all scores at once",
    "include_num_input_tokens_seen": "tokens are always counted and recorded",
    "average_tokens_across_devices": "losses are always summed and divided once by the count of "
    "the whole step",
    "label_smoothing_factor": "the loss is set in the loss section",
    "neftune_noise_alpha": "its noise depends on how long a row is, and packed rows hold several "
    "comparisons",
    "auto_find_batch_size": "bound the memory with tokens.max_tokens_per_microbatch; the batch "
    "size then never depends on the machine",
    "train_sampling_strategy": "batches are packed by tokens, so grouping by length saves nothing",
    "length_column_name": "batches are packed by tokens, so grouping by length saves nothing",
    "dataloader_drop_last": "no comparison is dropped without being counted",
    "push_to_hub": "upload the finished run folder with hf upload",
    "disable_tqdm": "plaudit shows its own progress",
    "logging_nan_inf_filter": "a loss that is not finite always stops the run",
    "hub_token": "a recipe is copied into the run folder and must hold no secret",
    "hub_model_id": "upload the finished run folder with hf upload",
    "hub_private_repo": "upload the finished run folder with hf upload",
    "hub_strategy": "upload the finished run folder with hf upload",
    "hub_always_push": "upload the finished run folder with hf upload",
    "hub_revision": "upload the finished run folder with hf upload",
}
"""``train`` keys that plaudit sets itself, and what to do instead."""

OWNED_LORA: dict[str, str] = {
    "task_type": "plaudit always trains a sequence classifier with one score (SEQ_CLS)",
    "peft_type": "it is always LORA",
    "auto_mapping": "PEFT writes it when it saves",
    "peft_version": "PEFT writes it when it saves",
    "base_model_name_or_path": "the base is model.base",
    "revision": "the revision of the base is model.revision",
    "inference_mode": "plaudit trains the adapter and loads it for scoring itself",
}
"""``lora`` keys that plaudit sets itself, and what to do instead."""

ALIASES: dict[str, str] = {
    "model_name_or_path": "model.base",
    "model_name": "model.base",
    "model_path": "model.base",
    "model_id": "model.base",
    "base_model": "model.base",
    "base_model_name_or_path": "model.base",
    "pretrained_model_name_or_path": "model.base",
    "pretrain": "model.base",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "load_in_4bit": "model.quantize",
    "quantization_bit": "model.quantize",
    "dataset": "data.train",
    "datasets": "data.train",
    "dataset_name": "data.train",
    "dataset_path": "data.train",
    "dataset_name_or_path": "data.train",
    "data_path": "data.train",
    "train_data": "data.train",
    "train_dataset": "data.train",
    "train_file": "data.train",
    "train_files": "data.train",
    "eval_data": "data.eval",
    "eval_dataset": "data.eval",
    "eval_file": "data.eval",
    "val_file": "data.eval",
    "val_files": "data.eval",
    "valid_data": "data.eval",
    "validation_file": "data.eval",
    "test_data": "data.test",
    "test_dataset": "data.test",
    "test_file": "data.test",
    "val_size": "data.eval_fraction",
    "val_set_size": "data.eval_fraction",
    "validation_split": "data.eval_fraction",
    "template": "tokens.template",
    "cutoff_len": "tokens.max_length",
    "max_len": "tokens.max_length",
    "max_seq_len": "tokens.max_length",
    "max_seq_length": "tokens.max_length",
    "model_max_length": "tokens.max_length",
    "sequence_len": "tokens.max_length",
    "loss_type": "loss.kind",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "lora_modules_to_save": "lora.modules_to_save",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler_type",
    "scheduler": "train.lr_scheduler_type",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "max_epochs": "train.num_train_epochs",
    "batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "micro_train_batch_size": "train.per_device_train_batch_size",
    "train_batch_size": "train.per_device_train_batch_size",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "grad_accum": "train.gradient_accumulation_steps",
    "gradient_accumulation": "train.gradient_accumulation_steps",
    "optimizer": "train.optim",
    "evaluation_strategy": "train.eval_strategy",
    "no_cuda": "train.use_cpu",
    "use_wandb": "train.report_to",
}
"""Keys that other trainers and versions use, and the key here that means the same."""

ADVICE: dict[str, str] = {
    "warmup_ratio": "write train.warmup_steps with a value below 1",
    "group_by_length": "batches are packed by tokens, so grouping by length saves nothing",
    "use_peft": "a lora section trains an adapter, `lora: null` trains all weights",
    "use_lora": "a lora section trains an adapter, `lora: null` trains all weights",
    "finetuning_type": "a lora section trains an adapter, `lora: null` trains all weights",
    "max_samples": "set `num_samples` of the source: data.train: {path: …, num_samples: …}",
    "max_train_samples": "set `num_samples` of the source: data.train: {path: …, num_samples: …}",
    "save_path": "say where the run goes with --out",
    **{
        tool: f"write it as tokens.template: {{tool: {tool}, name: …, release: …}}"
        for tool in registry.names("renderer")
    },
}
"""Keys of other trainers and versions that no single key here stands for, and what to do."""

RENAMED: Final[Mapping[str, str]] = {
    "data.exhaust": "stopping_strategy",
    "data.source.first": "max_rows",
    "data.source.rows": "num_samples",
    "data.source.share": "probability",
    "data.source.graded": "preference_strength",
    "data.source.folder": "data_dir",
    "data.source.stream": "streaming",
    "tokens.overlong": "truncation",
    "evaluate.behaviour": "perturbation_tests",
}
"""Old names of keys, ``data.source`` standing for any source, and the name of today."""

VALUE_ALIASES: dict[str, dict[str, str]] = {
    "lora.target_modules": dict.fromkeys(("all", "all_linear", "all-linears"), "all-linear"),
    "model.dtype": {
        "bf16": "bfloat16",
        "torch.bfloat16": "bfloat16",
        "fp16": "float16",
        "half": "float16",
        "torch.float16": "float16",
        "fp32": "float32",
        "float": "float32",
        "torch.float32": "float32",
    },
    "model.quantize": dict.fromkeys(("4", "True", "int4", "nf4", "fp4"), "4bit"),
    "loss.kind": dict.fromkeys(("bt", "bradley-terry", "sigmoid"), "bradley_terry"),
    "train.optim": dict.fromkeys(("adam", "adamw", "adamw_hf"), "adamw_torch"),
}
"""Values that other trainers and versions use, by key, and the value here that means the same."""

FILE_KEYS = ("accelerator_config", "deepspeed", "fsdp_config")
"""``train`` keys whose text is the path of a file."""


class Range(NamedTuple):
    """Numbers allowed: ``low``/``high`` included, ``above``/``below`` excluded."""

    low: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = (("of at least", self.low), ("above", self.above), ("below", self.below))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


RANGES: dict[str, Range] = {
    "learning_rate": Range(low=0),
    "per_device_train_batch_size": Range(low=1),
    "per_device_eval_batch_size": Range(low=1),
    "gradient_accumulation_steps": Range(low=1),
    "num_train_epochs": Range(above=0),
    "warmup_steps": Range(low=0),
    "eval_steps": Range(above=0),
    "save_steps": Range(above=0),
    "logging_steps": Range(above=0),
    "eval_delay": Range(low=0),
    "eval_accumulation_steps": Range(low=1),
    "save_total_limit": Range(low=1),
    "weight_decay": Range(low=0),
    "adam_beta1": Range(low=0, below=1),
    "adam_beta2": Range(low=0, below=1),
    "adam_epsilon": Range(above=0),
    "max_grad_norm": Range(low=0),
    "max_steps": Range(low=-1),
    "seed": Range(low=0),
    "data_seed": Range(low=0),
    "dataloader_num_workers": Range(low=0),
    "r": Range(low=1),
    "lora_alpha": Range(low=1),
    "lora_dropout": Range(low=0, below=1),
}

WHOLE_ABOVE_ONE = ("eval_steps", "save_steps", "logging_steps", "warmup_steps")
"""Below 1 these are a share of all steps, from 1 on a number of steps."""

TYPE_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "null": "null",
}


def shown(value: Any) -> str:
    """A value as a message shows it: as YAML would write it, cut when long."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def either(options: Iterable[str]) -> str:
    """``a, b or c``."""
    *first, last = options
    return f"{', '.join(first)} or {last}" if first else last


KeyPath: TypeAlias = tuple[str | int, ...]
"""The way to a key: names of sections and keys, numbers of list entries."""


class Problem(NamedTuple):
    """One thing wrong with a recipe. ``sentence`` is None for a key that its section lacks."""

    path: KeyPath
    sentence: str | None


class SectionError(ValueError):
    """All problems of a section; pydantic collects errors that are ValueErrors."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(str(problem.sentence) for problem in problems))
        self.problems = tuple(problems)


def meant(
    section: str, name: str, known: Sequence[str], keys: Mapping[str, Sequence[str]]
) -> list[str]:
    """The dotted keys that a person most likely meant by an unknown one of a section.

    ``known`` are the keys of the section, whose name is empty at the top; ``keys`` are those of
    every section by its name.
    """
    if name.lower() in ALIASES:
        return [ALIASES[name.lower()]]
    homes = [f"{home}.{name}" for home, names in keys.items() if name in names]
    if homes:
        return homes
    guess = nearest(name, known)
    if guess is not None:
        return [f"{section}.{guess}" if section else guess]
    dotted = {key: f"{home}.{key}" for home, names in keys.items() for key in names}
    far = nearest(name, dotted, similarity=0.8)
    return [dotted[far]] if far else []


def unknown_key(
    section: str, name: str, known: Sequence[str], keys: Mapping[str, Sequence[str]]
) -> str:
    """The sentence for a key that a section does not have; the arguments are those of `meant`."""
    dotted = f"{section}.{name}" if section else name
    place = f"the {section} section" if section else "a recipe"
    renamed = RENAMED.get(f"{SOURCE_PATH.sub('data.source', section)}.{name}")
    if renamed is not None:
        return f"`{dotted}` is called `{renamed}` now."
    advice = ADVICE.get(name) or OWNED_TRAIN.get(name)
    if advice is not None:
        return f"`{dotted}` is not a key of {place}: {advice}."
    guesses = [
        f"`{guess.removeprefix(f'{section}.')}`" for guess in meant(section, name, known, keys)
    ]
    if guesses:
        return f"`{dotted}` is not a key of {place}; did you mean {either(guesses)}?"
    return f"`{dotted}` is not a key of {place}; it knows {', '.join(known)}."


def open_keys(section: Literal["train", "lora"]) -> list[str]:
    """The keys of a section of another library that a recipe may set."""
    table, owned = {
        "train": (TRAINING_ARGUMENTS, OWNED_TRAIN),
        "lora": (LORA_CONFIG, OWNED_LORA),
    }[section]
    return [name for name in table if name not in owned]


def check_train(given: Any) -> dict[str, Any]:
    """The ``train`` section, its numbers converted.

    Raises:
        SectionError: keys that it cannot have, or values that they cannot.
    """
    checked = _check_section("train", given, TRAINING_ARGUMENTS, OWNED_TRAIN)
    return {k: user_path(v) if k in FILE_KEYS else v for k, v in checked.items()}


def user_path(value: Any) -> Any:
    """A path in text with ``~`` replaced by the home folder; anything else as it is."""
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111


def check_lora(given: Any, defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``lora`` section laid over ``defaults``, or None for full fine-tuning.

    ``modules_to_save`` names modules trained whole beside the adapter; the ``score`` head always
    is one of them.

    Raises:
        SectionError: keys that it cannot have, or values that they cannot.
    """
    if given is None:
        return None
    return {**defaults, **_check_section("lora", given, LORA_CONFIG, OWNED_LORA)}


def _check_section(
    section: str, given: Any, table: Mapping[str, Key], owned: Mapping[str, str]
) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        sentence = f"`{section}` is {shown(given)}, but must be a mapping of keys."
        raise SectionError([Problem((), sentence)])
    checked, problems = {}, []
    for name, value in given.items():
        dotted = f"{section}.{name}"
        if name in owned:
            problems.append(
                Problem(
                    (name,),
                    f"`{dotted}` is managed by plaudit; remove it from the recipe: {owned[name]}.",
                )
            )
        elif name not in table:
            problems.append(Problem((name,), None))
        else:
            try:
                checked[name] = _check_value(dotted, name, value, table[name])
            except RecipeError as error:
                problems.append(Problem((name,), str(error)))
    if problems:
        raise SectionError(problems)
    # The table's order, so that two recipes that say the same are written the same.
    return {name: checked[name] for name in table if name in checked}


def _check_value(dotted: str, name: str, value: Any, key: Key) -> Any:
    """The value in the type the key takes; ``2`` for a float and ``"5e-5"`` are numbers too."""
    if not key.types:
        raise RecipeError(f"`{dotted}` takes a Python object and cannot be set in a recipe.")
    value = _as_number(value, key)
    if not _has_type(value, key) or (isinstance(value, float) and not math.isfinite(value)):
        raise RecipeError(f"`{dotted}` is {shown(value)}, but must be {_wanted(name, key)}.")
    alias = value_alias(dotted, value)
    if alias is not None:
        raise RecipeError(f"`{dotted}` cannot be {value!r}; did you mean {alias!r}?")
    if isinstance(value, str) and key.choices and value not in key.choices:
        guess = nearest(value, key.choices)
        end = f"did you mean {guess!r}?" if guess else f"it can be {either(key.choices)}."
        raise RecipeError(f"`{dotted}` cannot be {value!r}; {end}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_range(dotted, name, value, key)
        if name in WHOLE_ABOVE_ONE and value >= 1:
            return int(value)
    return value


def value_alias(dotted: str, value: Any) -> str | None:
    """The value that a person most likely meant by one of another trainer's."""
    return VALUE_ALIASES.get(dotted, {}).get(str(value))


def _as_number(value: Any, key: Key) -> Any:
    numeric = "float" in key.types or "int" in key.types
    if isinstance(value, str) and numeric and "str" not in key.types and NUMBER.match(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not numeric:
        return value
    if "float" in key.types:
        return float(value)
    return int(value) if math.isfinite(value) and value == int(value) else value


def _has_type(value: Any, key: Key) -> bool:
    kinds: dict[str, tuple[type, ...]] = {
        "bool": (bool,),
        "int": (int,),
        "float": (float,),
        "str": (str,),
        "list": (list, tuple),
        "dict": (dict,),
        "null": (type(None),),
    }
    if isinstance(value, bool):
        return "bool" in key.types
    return any(isinstance(value, kinds[name]) for name in key.types)


def _wanted(name: str, key: Key) -> str:
    words = [
        either(key.choices) if t == "str" and key.choices else TYPE_WORDS[t] for t in key.types
    ]
    limits = f" {RANGES[name]}" if name in RANGES else ""
    return either(words) + limits


def _check_range(dotted: str, name: str, value: float, key: Key) -> None:
    allowed = RANGES.get(name)
    if allowed is not None and not allowed.holds(value):
        raise RecipeError(f"`{dotted}` is {value:g}, but must be {_wanted(name, key)}.")
    if name == "max_steps" and value == 0:
        raise RecipeError(f"`{dotted}` is 0, but must be -1 (no limit) or at least 1.")
    if name in WHOLE_ABOVE_ONE and value > 1 and value != int(value):
        raise RecipeError(
            f"`{dotted}` is {value:g}, but must be a whole number of steps, or a share below 1."
        )


# Pydantic sections, in plain words


def expected(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a field of a section accepts, as a phrase: ``a whole number of at least 2 or auto``."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [part for item in arguments[1:] for part in _constraints(item)]
        return expected(arguments[0], inner)
    if origin in (typing.Union, types.UnionType):
        return either(expected(part) for part in arguments)
    if origin is typing.Literal:
        return either(str(value) for value in arguments)
    if origin is tuple:
        if isinstance(arguments[0], type):
            return "a path, a Hub id, a mapping with a path, or a list of these"
        return f"a list of {expected(arguments[0])}"
    return _scalar_words(annotation, metadata)


def _constraints(item: Any) -> list[Any]:
    """The limits inside a pydantic Field(...) or a plain annotated-types limit."""
    return list(item.metadata) if hasattr(item, "metadata") else [item]


def _scalar_words(annotation: Any, metadata: Sequence[Any]) -> str:
    names = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}
    if annotation is Path:
        return "a path"
    words = TYPE_WORDS[names[annotation]] if annotation in names else "a mapping"
    limits = []
    for item in metadata:
        for attribute, word in (("ge", "of at least"), ("gt", "above"), ("lt", "below")):
            if hasattr(item, attribute):
                limits.append(f"{word} {getattr(item, attribute):g}")
        if getattr(item, "pattern", None):
            limits.append("like 2024-07-26")
    return " ".join([words, *([" and ".join(limits)] if limits else [])])
