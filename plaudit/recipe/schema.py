"""The recipe: one small frozen section per stage, checked completely when it is loaded.

Loads no torch. The ``train`` and ``lora`` sections pass through to
``transformers.TrainingArguments`` and ``peft.LoraConfig`` under their own names. Importing those
classes takes many seconds, so both sections are built from a generated table of their keys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, TypeAlias, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from plaudit.errors import RecipeError
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.types import Dtype


class Section(BaseModel):
    """A part of the recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def user_path(value: Any) -> Any:
    """A path in text with ``~`` replaced by the home folder; anything else as it is."""
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111


UserPath = Annotated[str, AfterValidator(user_path)]
"""A path or an id as text; ``~`` at its start is the home folder."""


class ModelSection(Section):
    """The base model, or a reward model to continue training, and how to load it."""

    base: UserPath
    """Path or Hub id of the base model, or of a reward model to continue training."""
    revision: str | None = None
    """Branch, tag or commit of the base on the Hub."""
    dtype: Dtype = "auto"
    """Data type of the base weights; auto is bfloat16 for LoRA on a GPU with bf16, else float32."""
    quantize: Literal["4bit"] | None = None
    """4bit quantizes the base to NF4 (QLoRA); needs bitsandbytes."""
    attention: Literal["auto", "packed", "padded"] = "auto"
    """packed computes each prompt once, padded uses one row per response, and auto uses packed
    where it gives the same scores."""
    head_init: Literal["zero", "normal"] | None = None
    """Initial weights of a new reward head: zeros, or a normal distribution. Default: zero, and
    normal with loss.heads, which would start equal."""
    head_learning_rate: Annotated[float, Field(ge=0)] | None = None
    """Learning rate of the reward head. Default: train.learning_rate."""
    freeze_layers: Annotated[int, Field(ge=0)] = 0
    """Number of layers, from the first, that do not train, nor do the embeddings then; for full
    fine-tuning (lora: null)."""
    trust_remote_code: bool = False
    """Run custom Python code from the repository of the base model."""


class Source(Section):
    """A source of comparisons: a file, a folder of files or a Hub dataset id.

    ``columns`` maps columns: ``{prompt: question}`` reads the column ``question`` as ``prompt``,
    and ``{system: null}`` ignores the column ``system``. ``tags`` does the same for the keys and
    roles of ShareGPT turns. Set at most one of ``weight``, ``num_samples`` and ``probability``; it
    sets how many of the usable rows are used.
    """

    path: UserPath
    """File, folder of files or Hub dataset id."""
    name: str | None = None
    """Name in results. Default: the file name without its extension, or the Hub id."""
    format: str | None = None
    """Format of the rows. Default: detected from the first row."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Column mapping, for example {prompt: question}; null ignores a column."""
    tags: dict[str, str | None] = Field(default_factory=dict)
    """Mapping of the keys and roles of ShareGPT turns."""
    preference_strength: Literal["ignore", "margin", "weight", "soft_label"] = "ignore"
    """How to use how clear a preference is: ignore it; its strength as margin or row weight; or the
    share of annotators who agree as soft label."""
    split: str | None = None
    """Split of a dataset; a Hub dataset defaults to train."""
    subset: str | None = None
    """Subset (configuration) of a Hub dataset."""
    data_dir: str | None = None
    """Folder inside a Hub dataset."""
    streaming: bool = False
    """Stream a Hub dataset instead of downloading it."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of rows to read, from the start."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Number of copies of each usable row; below 1, the fraction of rows to use."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Number of usable rows to sample; rows are repeated if there are fewer."""
    probability: Annotated[float, Field(gt=0)] | None = None
    """Sampling probability of this source in a mixture, relative to the other sources."""


def _as_sources(value: Any) -> Any:
    """A path, a ``{path: …}`` entry or a list of either becomes a list of entries."""
    if value is None:
        return ()
    entries = value if isinstance(value, (list, tuple)) else [value]
    return tuple({"path": entry} if isinstance(entry, str) else entry for entry in entries)


Sources = Annotated[tuple[Source, ...], BeforeValidator(_as_sources)]
StoppingStrategy: TypeAlias = Literal["first_exhausted", "all_exhausted"]


class DataSection(Section):
    """Comparisons for training, for choosing the checkpoint, and for the test after training.

    ``eval_rows`` replaces ``eval_fraction``. ``stopping_strategy`` applies to sources with a
    ``probability``: ``first_exhausted`` samples until the first source is exhausted;
    ``all_exhausted`` samples until all are, and repeats rows of the smaller ones.
    """

    train: Sources
    """Training data: files, folders or Hub dataset ids."""
    stopping_strategy: StoppingStrategy = "first_exhausted"
    """When a mixture by probability ends: at the first or at the last exhausted source."""
    eval: Sources = ()
    """Evaluation data, which chooses the checkpoint. Default: eval_fraction of train."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = 0.1
    """Fraction of the training data to hold out for evaluation; null for none."""
    eval_rows: Annotated[int, Field(ge=1)] | None = None
    """Number of rows to hold out for evaluation, instead of eval_fraction."""
    test: Sources = ()
    """Test data, evaluated once after training."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Fraction of the training data to hold out as test data."""
    as_chat: bool | None = None
    """Plain text on a base with a chat template: true converts it into chat turns, false keeps it,
    and null keeps it with a warning."""
    split_by: Literal["prompt", "row"] = "prompt"
    """prompt keeps all rows of a prompt on the same side of a split; row splits row by row."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of the splits and of sampling."""


class TemplateSection(Section):
    """A chat template of another trainer, by its name and release."""

    tool: str
    """Trainer that defines the template."""
    name: str
    """Name of the template in that trainer."""
    release: str | None = None
    """Release of the trainer. Default: the newest release that plaudit knows."""


Truncation: TypeAlias = Literal["drop", "left", "proportional", "error"]
MICROBATCH_TOKENS: Final = 8192
"""``max_tokens_per_microbatch: auto`` where memory is not measured."""


class TokensSection(Section):
    """Tokenization, truncation and the size of micro-batches.

    ``template`` renders conversations with a template of another trainer instead of the tokenizer's
    chat template.
    """

    max_length: Annotated[int, Field(ge=2)] = 2048
    """Maximum length of a conversation (prompt and response) in tokens."""
    truncation: Truncation = "drop"
    """Longer conversations: drop skips and counts them, left truncates the prompt, proportional
    truncates prompt and responses, and error stops."""
    chat_template: Annotated[Path, AfterValidator(Path.expanduser)] | None = None
    """File with a Jinja chat template. Default: the tokenizer's chat template."""
    template: TemplateSection | None = None
    """Chat template of another trainer."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the chat template."""
    pad_token: str | None = None
    """Padding token. Default: chosen from the vocabulary."""
    date: Annotated[
        str,
        Field(pattern=r"^\d{4}-\d{2}-\d{2}$"),
        AfterValidator(lambda day: date.fromisoformat(day).isoformat()),
    ] = "2024-07-26"
    """Date that the chat template uses as today (YYYY-MM-DD)."""
    max_tokens_per_microbatch: Annotated[int, Field(ge=2)] | Literal["auto"] = "auto"
    """Maximum number of tokens per micro-batch. It limits memory use and does not change results;
    auto is measured on a GPU, and 8192 on a CPU and under FSDP and DeepSpeed."""


if TYPE_CHECKING:
    ObjectiveName: TypeAlias = str
else:
    ObjectiveName = Literal.__getitem__(tuple(OBJECTIVES))


class LossSection(Section):
    """The training objective. ``kind`` is a key of ``plaudit.recipe.objectives.OBJECTIVES``.

    A recipe that sets a key which its objective does not read is an error. ``margin`` and
    ``soft_label`` read the columns of that name where the data have them; a margin is in units of
    reward.
    """

    kind: ObjectiveName = "bradley_terry"
    """Training objective."""
    margin: Literal["column", "ignore"] = "column"
    """column subtracts the margin column of a row from the reward difference; ignore does not."""
    soft_label: Literal["column", "ignore"] = "column"
    """column reads the share of annotators who prefer the better response; ignore counts it as
    1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability with which a label counts as wrong."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the reward differences in the loss."""
    centering: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the squared sum of a pair's rewards, which pulls their mean to 0."""
    reward_norm: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the mean squared reward."""
    consistency: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the squared difference between the rewards of a response and of a copy that is
    rewritten by a meaning-preserving perturbation; each training comparison gets one copy."""
    language_model: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the language-model loss on the better responses: the mean negative
    log-likelihood of a token under the language-model head of the base, which stays frozen."""
    length: Literal["ignore", "residual"] = "ignore"
    """residual fits what the length of the responses explains of the labels, beside the reward,
    and leaves it out of the reward."""
    tie_parameter: Annotated[float, Field(gt=0)] | Literal["learned"] = "learned"
    """How likely ties are: nu of davidson or theta (above 1) of rao_kupper; learned fits it."""
    huber_delta: Annotated[float, Field(gt=0)] = 1.0
    """Error at which the huber loss becomes linear, in units of the rating."""
    outputs: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Names of attributes of the data, at least two: the head gets an output for each, which learns
    it. preference is the order or rating of the row itself."""
    gate: Literal["mean", "learned"] | dict[str, float] | None = None
    """How outputs make the reward: their mean, a mapping of weights, or weights that are learned
    from the order of the rows, and not from their attributes. Default: mean, or that of the reward
    model that training continues."""
    heads: Annotated[int, Field(ge=2)] | None = None
    """Number of outputs that all learn the reward, each from a bootstrap sample of the comparisons;
    their mean is the reward and their standard deviation its uncertainty."""


class EvaluateSection(Section):
    """Metrics besides the loss, and early stopping."""

    calibrate: bool = True
    """Fit a temperature that calibrates the probabilities."""
    baselines: tuple[Literal["longer", "shorter", "bag_of_words"], ...] = (
        "longer",
        "shorter",
        "bag_of_words",
    )
    """Baselines to compare the model with."""
    perturbation_tests: Annotated[int, Field(ge=0)] = 200
    """Maximum number of responses to perturb in perturbation tests; 0 turns them off."""
    perturbation_share: Annotated[float, Field(gt=0)] = 0.25
    """Maximum number of tokens for perturbation tests, as a fraction of the tokens of training."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Stop training after this many evaluations without improvement."""
    early_stopping_threshold: Annotated[float, Field(ge=0)] = 0.0
    """Minimum change of the metric that counts as an improvement."""


class ReportSection(Section):
    """The report that a run writes."""

    html: bool = True
    """Write report.html."""
    plots: bool = True
    """Draw the plots."""


# ---- the sections of other libraries


class Key(NamedTuple):
    """A key of another library: its types, its choices where they are closed, its default.

    A key with no types takes an object that YAML cannot write.
    """

    types: Sequence[str]
    default: Any
    choices: Sequence[str]
    description: str


def _read_table(name: str) -> dict[str, Any]:
    text = files("plaudit.recipe").joinpath(name).read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


_KEYS = _read_table("hf_keys.json")

HF_KEYS: Final[Mapping[str, Mapping[str, Key]]] = {
    section: {name: Key(**entry) for name, entry in _KEYS[section].items()}
    for section in ("train", "lora")
}
"""The keys of ``train`` and ``lora``, written by ``scripts/generate_recipe_keys.py``."""

KEY_VERSIONS: Final[Mapping[str, str]] = _KEYS["versions"]
"""The versions of transformers and peft that the keys were read from."""

NAMES: Final = _read_table("names.json")
"""Keys and values under the names of other trainers and of earlier versions."""

MANAGED: Final[Mapping[str, Mapping[str, str]]] = NAMES["managed"]
"""Keys that plaudit sets itself, and what to do instead."""


def _number(value: Any) -> Any:
    """``"5e-5"`` and ``8.0`` as the numbers they are; validation is strict about all else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _steps_or_fraction(value: float) -> float:
    """Below 1 a fraction of all steps, from 1 on a number of steps."""
    if value >= 1 and value != int(value):
        raise PydanticCustomError("rule", "a whole number of steps, or a fraction below 1")
    return int(value) if value >= 1 else value


def _step_limit(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("rule", "-1 (no limit) or at least 1")
    return value


def _module_names(value: Any) -> Any:
    if value in ("all", "all_linear", "all-linears"):
        raise PydanticCustomError("rule", "all-linear, a list of names or a regular expression")
    return value


RULES: Final[Mapping[str, tuple[Any, ...]]] = {
    name: rules
    for names, rules in (
        ("learning_rate eval_delay weight_decay max_grad_norm", (Field(ge=0),)),
        ("seed data_seed dataloader_num_workers", (Field(ge=0),)),
        ("per_device_train_batch_size per_device_eval_batch_size", (Field(ge=1),)),
        ("gradient_accumulation_steps eval_accumulation_steps", (Field(ge=1),)),
        ("save_total_limit r lora_alpha", (Field(ge=1),)),
        ("num_train_epochs adam_epsilon", (Field(gt=0),)),
        ("adam_beta1 adam_beta2 lora_dropout", (Field(ge=0, lt=1),)),
        ("warmup_steps", (Field(ge=0), AfterValidator(_steps_or_fraction))),
        ("eval_steps save_steps logging_steps", (Field(gt=0), AfterValidator(_steps_or_fraction))),
        ("max_steps", (Field(ge=-1), AfterValidator(_step_limit))),
        ("target_modules", (AfterValidator(_module_names),)),
        ("accelerator_config deepspeed fsdp_config", (AfterValidator(user_path),)),
    )
    for name in names.split()
}
"""What a value must satisfy beside its type: its number where it may be one."""

_TYPES: Final[Mapping[str, Any]] = {
    "bool": bool,
    "int": Annotated[int, BeforeValidator(_number)],
    "float": Annotated[float, BeforeValidator(_number)],
    "str": str,
    "list": list,
    "dict": dict[str, Any],
    "null": None,
}


def _section_of(section: Literal["train", "lora"]) -> Any:
    """The keys of another library that a recipe may set, as a TypedDict: it keeps what is given."""
    keys: dict[str, Any] = {}
    for name, key in HF_KEYS[section].items():
        if name in MANAGED[section] or not key.types:
            continue
        rules = RULES.get(name, ())
        numbers = {"int", "float"} & set(key.types)
        accepted = {kind: _TYPES[kind] for kind in key.types}
        if key.choices:
            accepted["str"] = Literal.__getitem__(tuple(key.choices))
        # A limit is one of the numbers alone; other rules look at any value.
        for kind in numbers if rules else ():
            accepted[kind] = Annotated[accepted[kind], *rules]
        union = Union.__getitem__(tuple(accepted.values()))
        others = () if numbers else rules
        keys[name] = Annotated[union, *others, Field(description=key.description)]
    make: Any = TypedDict
    made = make(f"{section.title()}Keys", keys, total=False)
    made.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return made


if TYPE_CHECKING:
    TrainKeys: TypeAlias = dict[str, Any]
    LoraKeys: TypeAlias = dict[str, Any]
else:
    TrainKeys, LoraKeys = _section_of("train"), _section_of("lora")

LORA_DEFAULTS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
}


def _over_defaults(value: Any) -> Any:
    return {**LORA_DEFAULTS, **value} if isinstance(value, Mapping) else value


class Recipe(Section):
    """A whole run. ``lora: null`` is full fine-tuning; other keys are laid over the defaults."""

    model: ModelSection
    """The base model."""
    lora: Annotated[LoraKeys | None, BeforeValidator(_over_defaults)] = Field(
        default_factory=lambda: dict(LORA_DEFAULTS)
    )
    """The adapter, with the keys of peft.LoraConfig; null trains all weights."""
    data: DataSection
    """The data and the splits."""
    tokens: TokensSection = TokensSection()
    """Tokenization and micro-batches."""
    loss: LossSection = LossSection()
    """The training loss."""
    train: TrainKeys = Field(default_factory=dict)
    """Optimization, with the keys of transformers.TrainingArguments."""
    evaluate: EvaluateSection = EvaluateSection()
    """Metrics besides the loss, and early stopping."""
    report: ReportSection = ReportSection()
    """The report."""

    @property
    def training_arguments(self) -> dict[str, Any]:
        """Arguments of ``transformers.TrainingArguments``: the recipe's keys over the defaults.

        Raises:
            RecipeError: keys that contradict each other.
        """
        keys, data = self.train, self.data
        evaluates = bool(data.eval or data.eval_rows) or data.eval_fraction is not None
        # Saving and evaluating share one schedule: a checkpoint without its loss cannot be chosen,
        # a loss without its checkpoint cannot be gone back to. Naming either sets both.
        schedule = keys.get("eval_strategy", keys.get("save_strategy", "steps"))
        schedule = "steps" if schedule in ("no", "best") else schedule
        resolved: dict[str, Any] = {
            **{name: HF_KEYS["train"][name].default for name in READ_BY_PLAUDIT},
            "eval_strategy": schedule if evaluates else "no",
            # A tenth of the run: ten points show overfitting for any data size.
            "eval_steps": 0.1,
            "save_strategy": schedule,
            "save_steps": keys.get("eval_steps") or 0.1,
            # The best and the last: the one to use, and the one to resume from.
            "save_total_limit": 2,
            "logging_steps": 10,
            # Nothing leaves the machine unless asked for.
            "report_to": "none",
            **keys,
        }
        if resolved["save_total_limit"] is not None:
            # With 1 the Trainer deletes the last checkpoint at the end, the one to resume from.
            resolved["save_total_limit"] = max(2, resolved["save_total_limit"])
        chooses = resolved["eval_strategy"] != "no" and resolved["save_strategy"] != "no"
        # The last checkpoint of a reward model is often worse than an earlier one: validation loss
        # rises after about one epoch while accuracy stands still.
        resolved.setdefault("load_best_model_at_end", chooses)
        if resolved["load_best_model_at_end"]:
            metric = resolved.setdefault("metric_for_best_model", "eval_loss") or "eval_loss"
            resolved.setdefault("greater_is_better", not metric.endswith(("loss", "mae", "ties")))
        _check_schedule(resolved, evaluates)
        return resolved

    @property
    def method(self) -> Literal["full", "lora", "qlora"]:
        """Which weights train, and whether the base is quantized."""
        if self.lora is None:
            return "full"
        return "qlora" if self.model.quantize else "lora"

    @property
    def head_init(self) -> Literal["zero", "normal"]:
        """Initial weights of a new reward head."""
        return self.model.head_init or ("normal" if self.loss.heads else "zero")

    @property
    def microbatch_tokens(self) -> int | None:
        """The most tokens of a micro-batch; None leaves it to the run."""
        asked = self.tokens.max_tokens_per_microbatch
        return None if asked == "auto" else asked

    @property
    def checkpointing(self) -> bool | None:
        """Whether activations are recomputed; None leaves it to the run."""
        names = ("activation_checkpointing", "gradient_checkpointing")
        return next((self.train[name] for name in names if self.train.get(name) is not None), None)

    @property
    def defaults_to_bf16(self) -> bool:
        """Whether the run autocasts to bf16 on a GPU that has it: full fine-tuning, unless told."""
        told = "bf16" in self.train or self.train.get("fp16")
        return self.lora is None and self.model.dtype == "auto" and not told


# ---- the resolved training arguments


READ_BY_PLAUDIT: Final = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "optim",
)
"""Training arguments that plaudit reads before there is a Trainer, at the library's defaults."""


def _check_schedule(resolved: Mapping[str, Any], evaluates: bool) -> None:
    """What transformers would reject later, or silently not do, in a sentence now."""
    if resolved["eval_strategy"] != "no" and not evaluates:
        raise RecipeError(
            f"`train.eval_strategy` is {resolved['eval_strategy']!r}, but there is no evaluation"
            " data; set data.eval or data.eval_fraction."
        )
    if not resolved["load_best_model_at_end"] or resolved["save_strategy"] == "best":
        return
    if resolved["eval_strategy"] == "no" or resolved["save_strategy"] == "no":
        raise RecipeError(
            "`train.load_best_model_at_end` needs both evaluation and saving; set eval_strategy "
            "and save_strategy to steps, or load_best_model_at_end to false."
        )
    if resolved["eval_strategy"] != resolved["save_strategy"]:
        raise RecipeError(
            f"`train.save_strategy` is {resolved['save_strategy']!r} and `train.eval_strategy` is"
            f" {resolved['eval_strategy']!r}, but load_best_model_at_end needs the same strategy"
            " for both; make them equal, or set load_best_model_at_end to false."
        )
    if resolved["eval_strategy"] == "steps":
        save_steps, eval_steps = resolved["save_steps"], resolved["eval_steps"] or 0.1
        # The Trainer notes a best step also where nothing was saved, and then keeps another one.
        if save_steps != eval_steps:
            raise RecipeError(
                f"`train.save_steps` is {save_steps:g} and `train.eval_steps` is {eval_steps:g},"
                " but load_best_model_at_end needs a checkpoint at every evaluation; set"
                f" save_steps to {eval_steps:g}, or load_best_model_at_end to false."
            )
