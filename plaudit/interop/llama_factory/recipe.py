"""A reward run's YAML of LLaMA-Factory as a recipe, every key accounted for. Loads no torch.

A key becomes a part of the recipe, or is left out for a stated reason, or stops the translation
because the run would be another one without it. What every key means is LLaMA-Factory's
``hparams`` (0.9.5). To add a key, add a row to :data:`KEYS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from plaudit.errors import RecipeError, nearest
from plaudit.recipe.load import Draft, Note, Outcome, Translation
from plaudit.recipe.problems import shown
from plaudit.recipe.schema import HF_KEYS, LORA_DEFAULTS, MANAGED

Settings: TypeAlias = Mapping[str, Any]

CUTOFF: Final = 2048
RELEASE: Final = "0.9.5"


@dataclass(frozen=True, slots=True)
class Decision:
    """The words for what becomes of a key, and values by their dotted place in the recipe."""

    words: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    outcome: Outcome = "mapped"


Rule: TypeAlias = Callable[[str, Settings], Decision]


def translate(settings: Settings, where: str) -> Translation:
    """The recipe of a LLaMA-Factory reward YAML.

    Raises:
        RecipeError: it is no reward run, or asks for something that plaudit does otherwise.
    """
    try:
        _check_run(settings)
        draft = Draft(where, {})
        notes = []
        for key in [*_implied(settings), *settings]:
            decision = _decide(key, settings)
            notes.append(Note(key=key, outcome=decision.outcome, words=decision.words))
            for dotted, value in decision.sets.items():
                draft = draft.with_value(tuple(dotted.split(".")), value, where)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    for key, words in _DIFFERENCES.items():
        notes.append(Note(key=key, outcome="differs", words=words))
    out = settings.get("output_dir")
    return Translation(
        recipe=dict(draft.values),
        notes=tuple(notes),
        out=None if out is None else Path(str(out)).expanduser(),
    )


def _decide(key: str, settings: Settings) -> Decision:
    if key in settings and settings[key] is None:
        return _ignore("it is null, so the default applies")
    rule = _rule(key)
    decision = _ignore(rule) if isinstance(rule, str) else rule(key, settings)
    if _is_full(settings) and any(place.startswith("lora.") for place in decision.sets):
        return _ignore("all weights are trained (finetuning_type: full)")
    return decision


def _rule(key: str) -> Rule | str:
    """The rule of a key, or why it is ignored."""
    by_prefix = (why for why, prefixes in _PREFIXES.items() if key.startswith(prefixes))
    usual = _argument if key in HF_KEYS["train"] else _unknown
    return KEYS.get(key) or next(by_prefix, None) or MANAGED["train"].get(key) or usual


def _implied(settings: Settings) -> list[str]:
    """Keys that hold also where the YAML does not name them: their defaults matter."""
    implied = {"cutoff_len", "disable_gradient_checkpointing", "seed"}
    implied |= set() if "eval_dataset" in settings else {"val_size"}
    implied |= set() if _is_full(settings) else {"lora_target"}
    return sorted(implied - settings.keys())


def _check_run(settings: Settings) -> None:
    stage = settings.get("stage", "sft")
    if stage != "rm":
        raise RecipeError(
            f"stage is {shown(stage)}, but plaudit trains only reward models; expected stage: rm."
        )
    for key, why in (("model_name_or_path", "the base model"), ("dataset", "the data to train on")):
        if not settings.get(key):
            raise RecipeError(f"{key} is missing; set it to {why}.")
    if settings.get("val_size") and settings.get("eval_dataset"):
        raise RecipeError("val_size and eval_dataset both set the held-out data; keep one.")


def _is_full(settings: Settings) -> bool:
    return bool(settings.get("finetuning_type", "lora") == "full")


def _holds_out(settings: Settings) -> bool:
    return bool(settings.get("val_size") or settings.get("eval_dataset"))


# --- rules --------------------------------------------------------------------------------------


def _to(*places: str, read: Callable[[Any], Any] = lambda value: value) -> Rule:
    """The value, as it is or as ``read`` gives it, at these places of the recipe."""
    return lambda key, settings: Decision(
        " and ".join(places), dict.fromkeys(places, read(settings[key]))
    )


def _ignore(why: str) -> Decision:
    return Decision(why, outcome="ignored")


def _mapped(words: str) -> Rule:
    """Translated by the rule of another key."""
    return lambda key, settings: Decision(words)


def _one_of(why: str, *choices: tuple[Any, Decision]) -> Rule:
    """Values with a decision each; no other can stand."""

    def rule(key: str, settings: Settings) -> Decision:
        for value, decision in choices:
            if settings[key] == value:
                return decision
        raise RecipeError(f"{key} is {shown(settings[key])}, but {why}.")

    return rule


def _unsupported(why: str, *, harmless: Sequence[Any] = (False, 0)) -> Rule:
    """Only values that ask for nothing can stand."""
    return _one_of(why, *((value, _ignore("it is off")) for value in harmless))


def _argument(key: str, settings: Settings) -> Decision:
    return Decision("the train section, under their own names", {f"train.{key}": settings[key]})


def _unknown(key: str, settings: Settings) -> Decision:
    guess = nearest(key, [*KEYS, *HF_KEYS["train"]])
    hint = f"; did you mean {guess}?" if guess else ""
    words = f"not a known key of LLaMA-Factory's reward stage{hint}"
    return Decision(words, outcome="unknown")


def _adapter(key: str, settings: Settings) -> Decision:
    names = _names(settings[key])
    if len(names) > 1 or settings.get("create_new_adapter"):
        raise RecipeError(
            f"adapter_name_or_path is {shown(settings[key])}, but plaudit trains a single"
            " adapter; merge the others into the base first, and remove create_new_adapter."
        )
    words = "model.base: the adapter, with its own settings and head"
    return Decision(words, {"model.base": names[0]})


def _base(key: str, settings: Settings) -> Decision:
    if settings.get("adapter_name_or_path"):
        return _ignore("the adapter of adapter_name_or_path records its base")
    return _to("model.base")(key, settings)


def _revision(key: str, settings: Settings) -> Decision:
    if settings[key] == "main":
        return _ignore("main is the default")
    return _to("model.revision")(key, settings)


def _pure_bf16(key: str, settings: Settings) -> Decision:
    if not settings[key]:
        return _ignore("it is off")
    return Decision("model.dtype: bfloat16", {"model.dtype": "bfloat16"})


def _checkpointing(key: str, settings: Settings) -> Decision:
    on = not settings.get(key, False)
    said = "" if key in settings else ", LLaMA-Factory's default"
    return Decision(
        f"train.gradient_checkpointing: {shown(on)}{said}", {"train.gradient_checkpointing": on}
    )


def _lora_rank(key: str, settings: Settings) -> Decision:
    rank = settings[key]
    if settings.get("lora_alpha"):
        return _to("lora.r")(key, settings)
    return Decision(
        "lora.r, and lora.lora_alpha = 2 * lora_rank, LLaMA-Factory's default",
        {
            "lora.r": rank,
            "lora.lora_alpha": 2 * rank if isinstance(rank, int) else LORA_DEFAULTS["lora_alpha"],
        },
    )


def _lora_target(key: str, settings: Settings) -> Decision:
    names = _names(settings.get(key, "all"))
    if names == ["all"]:
        return Decision("lora.target_modules: all-linear", {"lora.target_modules": "all-linear"})
    return Decision("lora.target_modules", {"lora.target_modules": names})


def _pissa(key: str, settings: Settings) -> Decision:
    if not settings[key]:
        return _ignore("it is off")
    rounds = settings.get("pissa_iter", 16)
    init = "pissa" if rounds == -1 else f"pissa_niter_{rounds}"
    return Decision("lora.init_lora_weights", {"lora.init_lora_weights": init})


_STOPPING: Final = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
}


def _dataset(key: str, settings: Settings) -> Decision:
    place = "data.train" if key == "dataset" else "data.eval"
    names = [str(name) for name in _names(settings[key])]
    sources = [_source(name, settings) for name in names]
    sets: dict[str, Any] = {}
    strategy = settings.get("mix_strategy") or "concat"
    if place == "data.train" and strategy != "concat" and len(names) > 1:
        shares = _names(settings.get("interleave_probs") or [1] * len(names))
        if len(shares) != len(names):
            raise RecipeError(
                f"interleave_probs has {len(shares)} numbers for {len(names)} data sets; expected"
                " one number per data set."
            )
        for source, share in zip(sources, shares, strict=True):
            source["probability"] = _number("interleave_probs", share)
        if strategy not in _STOPPING:
            raise RecipeError(
                f"mix_strategy is {shown(strategy)}; expected concat, interleave_under or"
                " interleave_over."
            )
        sets["data.stopping_strategy"] = _STOPPING[strategy]
    return Decision(f"{place}: {', '.join(names)}", {**sets, place: sources})


def _source(name: str, settings: Settings) -> dict[str, Any]:
    folder = str(settings.get("dataset_dir") or "data")
    if folder.startswith("REMOTE:"):
        raise RecipeError(
            f"dataset_dir is {shown(folder)}; download that dataset_info.json and set dataset_dir"
            " to its folder."
        )
    source: dict[str, Any] = (
        {"path": name}
        if folder == "ONLINE"
        else {"path": str(Path(folder) / "dataset_info.json"), "subset": name}
    )
    if settings.get("max_samples") is not None:
        source["max_rows"] = settings["max_samples"]
    if settings.get("streaming"):
        source["streaming"] = True
    return source


def _val_size(key: str, settings: Settings) -> Decision:
    size = _number(key, settings.get(key, 0))
    if size <= 1e-6:
        return Decision(
            "data.eval_fraction: null, so nothing is held out", {"data.eval_fraction": None}
        )
    place, value = ("data.eval_rows", int(size)) if size > 1 else ("data.eval_fraction", size)
    return Decision(
        f"{place}, and data.split_by: row, as in LLaMA-Factory; prompts on both sides of the"
        " split are counted (data.split_by=prompt avoids them)",
        {place: value, "data.split_by": "row"},
    )


def _seed(key: str, settings: Settings) -> Decision:
    return _to("train.seed", "data.seed")(key, {key: 42, **settings})


def _cutoff(key: str, settings: Settings) -> Decision:
    said = "" if key in settings else f" ({CUTOFF} is LLaMA-Factory's default)"
    return Decision(
        f"tokens.max_length{said}, and tokens.truncation: proportional, which truncates the ends"
        " of prompt and answers as LLaMA-Factory does and counts them (tokens.truncation=drop"
        " skips such rows)",
        {"tokens.max_length": settings.get(key, CUTOFF), "tokens.truncation": "proportional"},
    )


def _template(key: str, settings: Settings) -> Decision:
    return Decision(
        f"tokens.template, in the version of release {RELEASE} (set another with"
        " tokens.template.release=…)",
        {"tokens.template": {"tool": "llamafactory", "name": settings[key], "release": RELEASE}},
    )


def _warmup_ratio(key: str, settings: Settings) -> Decision:
    if settings.get("warmup_steps"):
        return _ignore("warmup_steps takes precedence")
    return _to("train.warmup_steps")(key, settings)


def _schedule_of_saving(key: str, settings: Settings) -> Decision:
    """Saving follows evaluation: keeping the best checkpoint needs one at every evaluation."""
    if not _holds_out(settings):
        return _argument(key, settings)
    strategy = settings.get("eval_strategy", settings.get("evaluation_strategy", "no"))
    if _is_no(strategy):
        return _ignore("with eval_strategy no, plaudit evaluates and saves ten times per run")
    return _ignore("plaudit saves a checkpoint at every evaluation, to keep the best")


def _strategy_of_evaluation(key: str, settings: Settings) -> Decision:
    if _is_no(settings[key]) and _holds_out(settings):
        return _ignore(
            "with held-out data, plaudit evaluates ten times per run to keep the best checkpoint"
        )
    return _argument("eval_strategy", {"eval_strategy": settings[key]})


def _is_no(strategy: Any) -> bool:
    """Whether it says never; YAML reads a bare ``no`` as false."""
    return str(strategy).lower() in ("no", "false")


def _names(value: Any) -> list[Any]:
    """A list, given as such or as text with commas."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RecipeError(f"{key} is {shown(value)}; expected a number.") from None


_GENERATION = "it applies to text generation"
_SPEED = "it changes no result; plaudit packs rows and has its own cache"
_TOKEN = "recipes are copied into the run folder and must not hold secrets; use hf auth login"
_OTHER_MODEL = "it would train a different model"

KEYS: Final[dict[str, Rule | str]] = {
    # the run
    "stage": _mapped("rm, the only stage that plaudit trains"),
    "do_train": _mapped("implied by plaudit train"),
    "finetuning_type": _one_of(
        "plaudit trains LoRA adapters or all weights; set lora or full",
        ("lora", Decision("the lora section")),
        ("full", Decision("lora: null", {"lora": None})),
    ),
    "output_dir": lambda key, out: Decision(f"--out {out[key]}, unless --out is given"),
    "overwrite_output_dir": "plaudit never overwrites a run folder",
    "plot_loss": "plaudit always draws loss curves",
    "compute_accuracy": "plaudit always measures accuracy",
    "include_effective_tokens_per_second": "plaudit always measures throughput",
    "early_stopping_steps": _to("evaluate.early_stopping_patience"),
    "disable_shuffling": _unsupported("plaudit always shuffles the training rows; remove it"),
    "logging_dir": "event files are written to the run folder",
    "save_safetensors": "plaudit always saves weights as safetensors",
    # the model
    "model_name_or_path": _base,
    "model_revision": _revision,
    "adapter_name_or_path": _adapter,
    "create_new_adapter": _unsupported("plaudit trains a single adapter; remove it"),
    "adapter_folder": _unsupported(_OTHER_MODEL),
    "trust_remote_code": _to("model.trust_remote_code"),
    "quantization_bit": _one_of(
        "plaudit supports only 4-bit quantization",
        (4, Decision("model.quantize: 4bit", {"model.quantize": "4bit"})),
    ),
    "quantization_method": _unsupported(
        "plaudit supports only bitsandbytes quantization", harmless=("bnb", "bitsandbytes", "BNB")
    ),
    "quantization_type": _unsupported("plaudit supports only NF4 quantization", harmless=("nf4",)),
    "double_quantization": "plaudit sets the quantization of the constants",
    "bf16": "model.dtype: auto is bfloat16 with a float32 adapter and head on a GPU, and float32 on"
    " a CPU",
    "pure_bf16": _pure_bf16,
    "flash_attn": "model.attention: auto packs rows where scores are exact",
    "disable_gradient_checkpointing": _checkpointing,
    "use_reentrant_gc": "it changes no result",
    "enable_liger_kernel": _to("train.use_liger_kernel"),
    "use_unsloth": "plaudit has its own optimizations",
    "use_unsloth_gc": _SPEED,
    "low_cpu_mem_usage": _SPEED,
    "use_fast_tokenizer": "plaudit uses the fast tokenizer if there is one",
    "upcast_layernorm": "norm layers keep the dtype of the base model",
    "upcast_lmhead_output": _GENERATION,
    "cache_dir": "set HF_HOME to change the download folder",
    "hf_hub_token": _TOKEN,
    "ms_hub_token": _TOKEN,
    "om_hub_token": _TOKEN,
    "print_param_status": "plaudit counts and records the trained parameters",
    "use_v1_kernels": _SPEED,
    # adapters
    "lora_rank": _lora_rank,
    "lora_alpha": _to("lora.lora_alpha"),
    "lora_dropout": _to("lora.lora_dropout"),
    "lora_target": _lora_target,
    "additional_target": _to("lora.modules_to_save", read=_names),
    "use_rslora": _to("lora.use_rslora"),
    "use_dora": _to("lora.use_dora"),
    "pissa_init": _pissa,
    "pissa_iter": _mapped("lora.init_lora_weights, with pissa_init"),
    "pissa_convert": "plaudit saves the adapter as it was trained",
    "loraplus_lr_ratio": _unsupported("plaudit trains both LoRA matrices with one learning rate"),
    "loraplus_lr_embedding": "it applies only with loraplus_lr_ratio",
    # the data
    "dataset": _dataset,
    "eval_dataset": _dataset,
    "dataset_dir": _mapped("the paths of the sources, together with dataset"),
    "max_samples": _mapped("max_rows of every source"),
    "streaming": _mapped("streaming of the Hub sources; local files are always streamed"),
    "mix_strategy": _mapped(
        "probability and data.stopping_strategy; the counts are equal in expectation"
    ),
    "interleave_probs": _mapped("probability of every source"),
    "val_size": _val_size,
    "eval_on_each_dataset": "plaudit evaluates every evaluation set separately",
    "template": _template,
    "cutoff_len": _cutoff,
    "tool_format": _unsupported(
        "plaudit renders these templates without tools", harmless=("default",)
    ),
    "media_dir": "plaudit reads only text",
    "tokenized_path": "plaudit tokenizes the data and caches the tokens",
    "overwrite_cache": "the cache key covers everything that affects its content",
    "preprocessing_batch_size": _SPEED,
    "preprocessing_num_workers": _SPEED,
    "data_shared_file_system": _SPEED,
    "buffer_size": "plaudit shuffles all rows instead of a buffer",
    "packing": "plaudit always packs rows, and each row attends only to its own tokens",
    "neat_packing": "plaudit always packs rows, and each row attends only to its own tokens",
    "train_on_prompt": _GENERATION,
    "mask_history": _GENERATION,
    "ignore_pad_token_for_loss": _GENERATION,
    "eval_num_beams": _GENERATION,
    "predict_with_generate": _GENERATION,
    "enable_thinking": _unsupported(
        "plaudit renders the template's empty thinking block as in training", harmless=(True,)
    ),
    # training
    "seed": _seed,
    "evaluation_strategy": _strategy_of_evaluation,
    "eval_strategy": _strategy_of_evaluation,
    "save_strategy": _schedule_of_saving,
    "save_steps": _schedule_of_saving,
    "warmup_ratio": _warmup_ratio,
    "group_by_length": "batches are packed by tokens, so grouping by length has no effect",
    "no_cuda": _to("train.use_cpu"),
    "tf32": _argument,
    **dict.fromkeys(
        (
            *("rope_scaling", "resize_vocab", "split_special_tokens", "add_tokens", "shift_attn"),
            *("add_special_tokens", "new_special_tokens_config", "mixture_of_depths", "fp8"),
            *("moe_aux_loss_coef", "train_from_scratch", "use_llama_pro"),
        ),
        _unsupported(_OTHER_MODEL),
    ),
    **dict.fromkeys(
        ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "use_mca"),
        _unsupported("plaudit supports only the optimizers of transformers (train.optim)"),
    ),
}
"""Every key of a reward run, beside transformers' own, and its rule, or why it is ignored."""

_PREFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "it applies to inference or export": (
        *("infer_", "vllm_", "sglang_", "ktransformers_", "kt_"),
        *("export_", "init_special", "offload_"),
    ),
    "plaudit reads only text": ("image_", "video_", "audio_", "crop_to", "use_audio"),
    "it applies to stages other than rm": (
        *("ppo_", "pref_", "dpo_", "kto_", "simpo_"),
        *("ref_model", "reward_model", "ld_alpha"),
    ),
    "it applies to a method that this run does not use": (
        *("freeze_", "galore_", "apollo_", "badam_", "oft_", "module_dropout"),
    ),
    "set train.report_to to log runs": ("swanlab_", "use_swanlab", "ray_"),
    "it applies to a precision that this run does not use": ("fp8_", "quantization_device"),
    _GENERATION: (
        *("use_kv_cache", "do_sample", "temperature", "top_", "num_beams", "max_new_tokens"),
        *("repetition_penalty", "length_penalty", "default_system", "skip_special"),
    ),
}
"""Why keys that start so are ignored."""

_DIFFERENCES: Final = {
    "value head": "LLaMA-Factory uses a linear head with bias and 10% dropout, initialized at"
    " random; plaudit uses a linear head without bias and dropout, initialized to zero"
    " (model.head_init: normal initializes it at random)",
    "final model": "LLaMA-Factory keeps the last step unless load_best_model_at_end is set;"
    " plaudit keeps the evaluation with the lowest loss if there is held-out data"
    " (train.load_best_model_at_end=false keeps the last step)",
    "skipped rows": "LLaMA-Factory skips them with a warning, after the split since 0.9.2;"
    " plaudit counts them by reason and skips them before the split",
}
