"""The recipe: one small frozen section per stage, checked completely when it is loaded.

Loads no torch. The ``train`` and ``lora`` sections pass through to
``transformers.TrainingArguments`` and ``peft.LoraConfig`` under their own names; their keys and
types are checked against a generated table (:mod:`plaudit.recipe.hf_keys`), because importing the
real classes takes many seconds.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from plaudit import registry
from plaudit.errors import RecipeError
from plaudit.recipe.shipped import recipe_file
from plaudit.recipe.validate import (
    KeyPath,
    Problem,
    SectionError,
    check_lora,
    check_train,
    expected,
    meant,
    open_keys,
    shown,
    unknown_key,
    user_path,
    value_alias,
)
from plaudit.recipe.yaml import key_lines, read_yaml, write_yaml


class Section(BaseModel):
    """A part of the recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


UserPath = Annotated[str, AfterValidator(user_path)]
"""A path or an id as text; ``~`` at its start is the home folder."""


class ModelSection(Section):
    """The base model, or a reward model to train on from, and how it is loaded."""

    base: UserPath
    """Path or Hub id of the base model, or of a reward model to train further."""
    revision: str | None = None
    """Branch, tag or commit of the base on the Hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the base's weights; auto: bfloat16 for LoRA on CUDA, else float32."""
    quantize: Literal["4bit"] | None = None
    """4bit: QLoRA on an NF4-quantized base; needs CUDA and bitsandbytes."""
    attention: Literal["auto", "packed", "padded"] = "auto"
    """packed computes each prompt once; auto falls back to padded batches."""
    head_init: Literal["zero", "normal"] = "zero"
    """How a new reward head starts."""
    trust_remote_code: bool = False
    """Run Python code that comes with the base."""


class Source(Section):
    """One place comparisons come from: a file, a folder of files or a Hub dataset id.

    ``columns`` says where the columns of the format are: ``{prompt: question}`` reads the column
    ``question`` as ``prompt``, and ``{system: null}`` leaves ``system`` unread. ``tags`` does the
    same for the keys and roles of ShareGPT turns. At most one of ``weight``, ``num_samples`` and
    ``probability`` sets how many of the usable rows are used.
    """

    path: UserPath
    """File, folder of files or Hub dataset id."""
    name: str | None = None
    """Name in results; the file's own unless set."""
    format: str | None = None
    """Format of the rows; recognised from the first row unless set."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Names of the format's columns in this file: {prompt: question}."""
    tags: dict[str, str | None] = Field(default_factory=dict)
    """Names of the keys and roles of ShareGPT turns in this file."""
    preference_strength: Literal["ignore", "margin", "weight"] = "ignore"
    """Use of how strongly a row prefers its chosen response: margin of the loss, or row weight."""
    split: str | None = None
    """Split of a Hub dataset."""
    subset: str | None = None
    """Configuration of a Hub dataset."""
    data_dir: str | None = None
    """Folder of a Hub dataset."""
    streaming: bool = False
    """Read a Hub dataset without a local copy."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Read at most this many rows, from the first on."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Copies of each row; below 1, the fraction of rows that is used."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Number of usable rows to sample; rows are repeated where there are fewer."""
    probability: Annotated[float, Field(gt=0)] | None = None
    """Sampling probability of this source in a mixture, relative to the others."""


def _as_sources(value: Any) -> Any:
    """A path, a ``{path: …}`` entry or a list of either becomes a list of entries."""
    if value is None:
        return ()
    entries = value if isinstance(value, (list, tuple)) else [value]
    return tuple({"path": entry} if isinstance(entry, str) else entry for entry in entries)


Sources = Annotated[tuple[Source, ...], BeforeValidator(_as_sources)]
StoppingStrategy: TypeAlias = Literal["first_exhausted", "all_exhausted"]


class DataSection(Section):
    """Which comparisons train, which choose the checkpoint, which are evaluated once, at the end.

    ``eval_rows`` holds out that many rows, in place of a fraction. ``stopping_strategy`` is for
    sources with a ``probability``: they are sampled until the first is exhausted, or until all
    are, with rows of the smaller ones repeated.
    """

    train: Sources
    """Pairs to train on: files, folders or Hub dataset ids."""
    stopping_strategy: StoppingStrategy = "first_exhausted"
    """When a mixture by probability ends: with its first or its last exhausted source."""
    eval: Sources = ()
    """Pairs that choose the checkpoint; without them eval_fraction of train is held out."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = 0.1
    """Share of train held out to choose the checkpoint; null for none."""
    eval_rows: Annotated[int, Field(ge=1)] | None = None
    """Number of rows held out, in place of eval_fraction."""
    test: Sources = ()
    """Pairs evaluated once, after training."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of train held out as test set."""
    as_chat: bool | None = None
    """Plain text on a base with a chat template: true makes it turns, false and null keep it, null
    with a warning."""
    split_by: Literal["prompt", "row"] = "prompt"
    """prompt keeps all rows of one prompt on one side of a split."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of splits and samples."""


def _real_day(text: str) -> str:
    date.fromisoformat(text)
    return text


class TemplateSection(Section):
    """A conversation template of another trainer by its name, as a release had it."""

    tool: str
    """Trainer whose template it is."""
    name: str
    """Name of the template there."""
    release: str | None = None
    """Release whose version of the template is used; null is the newest known."""


class TokensSection(Section):
    """How comparisons become tokens, and how many go through the model at once.

    ``template`` renders conversations as another trainer does, by one of its templates, in place
    of the tokenizer's chat template.
    """

    max_length: Annotated[int, Field(ge=2)] = 2048
    """Longest conversation, prompt and response together, in tokens."""
    truncation: Literal["drop", "left", "proportional", "error"] = "drop"
    """What becomes of a longer one: drop it (counted), truncate its prompt, or stop."""
    chat_template: Annotated[Path, AfterValidator(Path.expanduser)] | None = None
    """File of a Jinja chat template, in place of the tokenizer's."""
    template: TemplateSection | None = None
    """Render conversations with a template of another trainer."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the chat template."""
    pad_token: str | None = None
    """Padding token; chosen from the vocabulary unless set."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_real_day)] = (
        "2024-07-26"
    )
    """Date that the chat template sees as today."""
    max_tokens_per_microbatch: Annotated[int, Field(ge=2)] | Literal["auto"] = "auto"
    """Bounds memory: tokens computed at once; results do not depend on it."""


class LossSection(Section):
    """The training objective; ``kind`` is a row of the table in :mod:`plaudit.losses`.

    ``margin`` says whether a row's margin column is subtracted in the loss. It is in units of
    reward; a column of quality points belongs to other tools.
    """

    kind: Literal["bradley_terry"] = "bradley_terry"
    """Training objective."""
    margin: Literal["column", "ignore"] = "column"
    """Whether the rows' margin column is subtracted in the loss."""


class EvaluateSection(Section):
    """What is measured beside the loss, and when training may stop early."""

    calibrate: bool = True
    """Fit a temperature for the probabilities."""
    baselines: tuple[Literal["longer", "shorter", "bag_of_words"], ...] = (
        "longer",
        "shorter",
        "bag_of_words",
    )
    """Baselines to compare the model with."""
    perturbation_tests: Annotated[int, Field(ge=0)] = 200
    """Most responses that the perturbation tests perturb; 0 for none."""
    perturbation_share: Annotated[float, Field(gt=0)] = 0.25
    """Most tokens of the perturbation tests, as a share of those that training computed."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many evaluations without improvement."""
    early_stopping_threshold: Annotated[float, Field(ge=0)] = 0.0
    """Smallest change of the metric that counts as improvement."""


class ReportSection(Section):
    """What is written for people to look at."""

    html: bool = True
    """Write report.html."""
    plots: bool = True
    """Draw the plots."""


LORA_DEFAULTS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
}


def _lora(given: Any) -> dict[str, Any] | None:
    return check_lora(given, LORA_DEFAULTS)


class Recipe(Section):
    """A whole run. ``lora: null`` is full fine-tuning; given keys are laid over the defaults."""

    model: ModelSection
    """The base model."""
    lora: Annotated[dict[str, Any] | None, BeforeValidator(_lora)] = Field(
        default_factory=lambda: dict(LORA_DEFAULTS)
    )
    """The adapter, in the keys of peft.LoraConfig; null trains all weights."""
    data: DataSection
    """The data and how they are split."""
    tokens: TokensSection = TokensSection()
    """How comparisons become tokens."""
    loss: LossSection = LossSection()
    """The training objective."""
    train: Annotated[dict[str, Any], BeforeValidator(check_train)] = Field(default_factory=dict)
    """Optimization, in the keys of transformers.TrainingArguments."""
    evaluate: EvaluateSection = EvaluateSection()
    """What is measured beside the loss, and early stopping."""
    report: ReportSection = ReportSection()
    """What is written for people to read."""


REQUIRED = {
    "model.base": "name a base model, a Hub id or a local folder",
    "data.train": "name a file of comparisons, a Hub id or a list of them",
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe before it is checked: its mapping, and where each key of it was set.

    ``places`` says ``file:line`` or the option, in the order of reading; ``name`` stands for keys
    that are in no place, such as missing ones.
    """

    name: str
    values: Mapping[str, Any]
    places: Mapping[KeyPath, str] = field(default_factory=dict)

    def with_value(self, path: KeyPath, value: Any, place: str) -> Draft:
        """The draft with one key set; sections on the way are made where they are missing.

        Raises:
            RecipeError: something on the way is not a mapping.
        """
        *parents, last = path
        values = copy.deepcopy(dict(self.values))
        inner = values
        for name in parents:
            inside = inner.get(str(name))
            if inside is not None and not isinstance(inside, dict):
                raise RecipeError(
                    f"{place}: `{name}` is {shown(inside)} in this recipe and has no keys to set; "
                    f"set `{name}` itself."
                )
            inner[str(name)] = inside or {}
            inner = inner[str(name)]
        inner[str(last)] = value
        kept = {key: at for key, at in self.places.items() if key[: len(path)] != path}
        return Draft(self.name, values, {**kept, path: place})

    def with_overrides(self, overrides: Sequence[str]) -> Draft:
        """The draft with each ``section.key=value`` laid over it; values are read as YAML.

        Raises:
            RecipeError: all overrides that cannot be read or set.
        """
        draft, problems = self, []
        for override in overrides:
            dotted, equals, text = override.partition("=")
            path = tuple(part.strip() for part in dotted.split("."))
            place = f"--set {override}"
            if not equals or not all(path):
                problems.append(f"{place}: expected section.key=value.")
                continue
            try:
                draft = draft.with_value(path, read_yaml(text, place), place)
            except RecipeError as error:
                problems += error.problems
        if problems:
            raise RecipeError(*problems)
        return draft

    def check(self) -> Recipe:
        """The recipe.

        Raises:
            RecipeError: all its problems, each with its place. Keys that contradict each other are
                among them where their sections are right by themselves.
        """
        # A section whose every key is commented out reads as null; only for lora is null a value.
        values = {
            name: {} if value is None and name != "lora" else value
            for name, value in self.values.items()
        }
        try:
            recipe = Recipe.model_validate(values)
            problems = list(_contradictions(recipe))
        except ValidationError as error:
            problems = _problems(error, values)
            problems += _contradictions_outside(_sections_of(problems), values)
        if problems:
            raise RecipeError(*self._located(problems))
        return recipe

    def _located(self, problems: Sequence[Problem]) -> dict[str, None]:
        """The problems' sentences behind their places, in the order of these."""
        order = {path: number for number, path in enumerate(self.places)}

        def nearest_place(path: KeyPath) -> KeyPath:
            # Its own, else that of what is inside it, else that of what it is inside.
            inside = (key for key in self.places if key[: len(path)] == path)
            above = (path[:length] for length in range(len(path) - 1, 0, -1))
            return next(chain(inside, (key for key in above if key in self.places)), ())

        located = [(nearest_place(problem.path), problem.sentence) for problem in problems]
        located.sort(key=lambda item: order.get(item[0], len(order)))
        return dict.fromkeys(
            f"{self.places.get(path, self.name)}: {sentence}" for path, sentence in located
        )


def load_recipe(named: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay ``section.key=value`` overrides over it.

    ``named`` is a file, the name of a shipped recipe or a run folder (:func:`recipe_file`). Values
    of overrides are read as YAML.

    Raises:
        RecipeError: the file is missing or is not YAML, or all that a recipe does not allow; each
            problem names its line and key.
    """
    return read_draft(recipe_file(named)).with_overrides(overrides).check()


def read_draft(path: Path) -> Draft:
    """The recipe in a file, not checked yet.

    Raises:
        RecipeError: the file is missing, is not YAML or holds something else than a mapping.
    """
    text = _read_text(path)
    values = _mapping(text, str(path))
    return Draft(str(path), values, {key: f"{path}:{n}" for key, n in key_lines(text).items()})


def read_mapping(path: Path | str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        RecipeError: the file is missing, is not YAML or holds something else.
    """
    return _mapping(_read_text(Path(path)), str(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such recipe file.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: this is not a text file, so it is no recipe.") from error
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error.strerror}.") from error


def _mapping(text: str, where: str) -> dict[str, Any]:
    mapping = read_yaml(text, where)
    if not isinstance(mapping, dict):
        content = "is empty" if mapping is None else f"holds {shown(mapping)}"
        raise RecipeError(
            f"{where}: a recipe is a mapping of sections ({', '.join(Recipe.model_fields)}), "
            f"but this file {content}."
        )
    return mapping


def parse_recipe(mapping: Mapping[str, Any], where: str) -> Recipe:
    """Check a recipe in the form of a mapping; ``where`` names its origin in messages.

    Raises:
        RecipeError: all its problems.
    """
    return Draft(where, mapping).check()


def with_columns(recipe: Recipe, columns: Mapping[str, str | None]) -> Recipe:
    """The recipe with ``columns`` laid over those of each of its sources."""
    if not columns:
        return recipe

    def mapped(sources: Sequence[Source]) -> tuple[Source, ...]:
        return tuple(
            source.model_copy(update={"columns": {**source.columns, **columns}})
            for source in sources
        )

    data = recipe.data
    sources = {"train": mapped(data.train), "eval": mapped(data.eval), "test": mapped(data.test)}
    return recipe.model_copy(update={"data": data.model_copy(update=sources)})


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key written out; parsing it gives an equal recipe."""
    return write_yaml(recipe.model_dump(mode="json"))


def effective_training_arguments(recipe: Recipe) -> dict[str, Any]:
    """What ``transformers.TrainingArguments`` is given: plaudit's defaults under the recipe's keys.

    Raises RecipeError where the recipe's own keys contradict each other.
    """
    given = recipe.train
    evaluates = bool(recipe.data.eval or recipe.data.eval_rows) or (
        recipe.data.eval_fraction is not None
    )
    # Saving and evaluating share one schedule: a checkpoint without its loss cannot be chosen, a
    # loss without its checkpoint cannot be gone back to. Naming either sets both.
    schedule = given.get("eval_strategy", given.get("save_strategy", "steps"))
    schedule = "steps" if schedule in ("no", "best") else schedule
    defaults: dict[str, Any] = {
        "eval_strategy": schedule if evaluates else "no",
        # A tenth of the run: ten points show an overfit, whatever the size of the data.
        "eval_steps": 0.1,
        "save_strategy": schedule,
        "save_steps": given.get("eval_steps") or 0.1,
        # The best and the last: the one to use, and the one to go on from.
        "save_total_limit": 2,
        "logging_steps": 10,
        # Nothing leaves the machine unless asked for.
        "report_to": "none",
    }
    effective = {**defaults, **given}
    if effective["save_total_limit"] is not None:
        # With 1 the Trainer deletes the last checkpoint at the end, the one a stop goes on from.
        effective["save_total_limit"] = max(2, effective["save_total_limit"])
    chooses = effective["eval_strategy"] != "no" and effective["save_strategy"] != "no"
    # The last checkpoint of a reward model is often worse than an earlier one: validation loss
    # rises after about one epoch while accuracy stands still.
    effective.setdefault("load_best_model_at_end", chooses)
    if effective["load_best_model_at_end"]:
        metric = effective.setdefault("metric_for_best_model", "eval_loss") or "eval_loss"
        effective.setdefault("greater_is_better", not metric.endswith("loss"))
    _check_schedule(effective, evaluates)
    return effective


def _check_schedule(effective: Mapping[str, Any], evaluates: bool) -> None:
    """What transformers would refuse later, or silently not do, in a sentence now."""
    if effective["eval_strategy"] != "no" and not evaluates:
        raise RecipeError(
            f"`train.eval_strategy` is {effective['eval_strategy']!r}, but there is nothing to "
            "evaluate on; set data.eval or data.eval_fraction."
        )
    if not effective["load_best_model_at_end"] or effective["save_strategy"] == "best":
        return
    if effective["eval_strategy"] == "no" or effective["save_strategy"] == "no":
        raise RecipeError(
            "`train.load_best_model_at_end` needs both evaluation and saving; set eval_strategy "
            "and save_strategy to steps, or load_best_model_at_end to false."
        )
    if effective["eval_strategy"] != effective["save_strategy"]:
        raise RecipeError(
            f"`train.save_strategy` is {effective['save_strategy']!r} and `train.eval_strategy` "
            f"{effective['eval_strategy']!r}, but keeping the best checkpoint needs one schedule; "
            "make them equal, or set load_best_model_at_end to false."
        )
    if effective["eval_strategy"] == "steps":
        _check_same_steps(effective["save_steps"], effective["eval_steps"] or 0.1)


def _check_same_steps(save_steps: float, eval_steps: float) -> None:
    """The Trainer notes a best step also where nothing was saved, and then keeps another one."""
    if save_steps != eval_steps:
        raise RecipeError(
            f"`train.save_steps` is {save_steps:g} and `train.eval_steps` {eval_steps:g}, but "
            "keeping the best checkpoint needs one saved at every evaluation; set save_steps to "
            f"{eval_steps:g}, or load_best_model_at_end to false."
        )


def _contradictions(recipe: Recipe, wrong: Collection[str] = ()) -> Iterator[Problem]:
    """What no section can know alone; nothing is said of sections that are ``wrong`` already."""
    for sections, check in CONTRADICTIONS.items():
        if not set(sections) & set(wrong):
            yield from check(recipe)


def _contradictions_outside(wrong: Collection[str], values: Mapping[str, Any]) -> list[Problem]:
    """Contradictions among the sections that are right, the others left out."""
    right = {n: v for n, v in values.items() if n in Recipe.model_fields and n not in wrong}
    stand_in = {"model": {"base": "unknown"}, "data": {"train": "unknown"}}
    return list(_contradictions(Recipe.model_validate({**stand_in, **right}), wrong))


def _sections_of(problems: Sequence[Problem]) -> set[str]:
    """The sections that problems are in, or where a key at the top was most likely meant to be."""
    names: set[str] = set()
    for path in (problem.path for problem in problems):
        known = path[0] in Recipe.model_fields
        names |= {str(path[0])} if known else {g.split(".")[0] for g in meant(*_unknown(path[:1]))}
    return names


def _data_contradictions(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if not data.train:
        yield Problem(("data", "train"), f"`data.train` is missing; {REQUIRED['data.train']}.")
    for role, sources in (("train", data.train), ("eval", data.eval), ("test", data.test)):
        yield from _source_contradictions(role, sources)
    held_out = (data.eval_fraction or 0) + (data.test_fraction or 0)
    if held_out >= 1:
        yield Problem(
            ("data", "test_fraction"),
            f"`data.eval_fraction` and `data.test_fraction` hold out {held_out:g} of the data "
            "together, which leaves nothing to train on; make them smaller.",
        )


def _token_contradictions(recipe: Recipe) -> Iterator[Problem]:
    named, known = recipe.tokens.template, registry.names("renderer")
    if named is not None and named.tool not in known:
        yield Problem(
            ("tokens", "template", "tool"),
            f"`tokens.template.tool` is {named.tool!r}, but must be {' or '.join(known)}.",
        )
    if recipe.tokens.template and recipe.tokens.chat_template:
        yield Problem(
            ("tokens", "template"),
            "`tokens.template` and `tokens.chat_template` both say how conversations are "
            "written; keep one.",
        )


def _model_contradictions(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.model.base.strip():
        yield Problem(("model", "base"), f"`model.base` is empty; {REQUIRED['model.base']}.")
    if recipe.model.quantize and recipe.lora is None:
        yield Problem(
            ("model", "quantize"),
            "`model.quantize` is '4bit' and `lora` is null, but quantized weights cannot be "
            "trained; keep a lora section, or set quantize to null.",
        )


def _schedule_contradictions(recipe: Recipe) -> Iterator[Problem]:
    try:
        arguments = effective_training_arguments(recipe)
    except RecipeError as error:
        yield Problem(("train",), str(error))
        return
    patience = recipe.evaluate.early_stopping_patience
    if patience is not None and not arguments["load_best_model_at_end"]:
        yield Problem(
            ("evaluate", "early_stopping_patience"),
            f"`evaluate.early_stopping_patience` is {patience}, but stopping early needs "
            "evaluation on schedule and the best checkpoint kept; set data.eval or "
            "data.eval_fraction, and leave load_best_model_at_end true.",
        )


CONTRADICTIONS: dict[tuple[str, ...], Callable[[Recipe], Iterator[Problem]]] = {
    ("model", "lora"): _model_contradictions,
    ("data",): _data_contradictions,
    ("tokens",): _token_contradictions,
    ("data", "train", "evaluate"): _schedule_contradictions,
}
"""Checks of keys that must agree, by the sections that they look at."""


def _source_contradictions(role: str, sources: Sequence[Source]) -> Iterator[Problem]:
    """At most one sample size a source; probabilities for all of a mixture or for none."""
    for number, source in enumerate(sources):
        sizes = {
            "weight": source.weight != 1,
            "num_samples": source.num_samples,
            "probability": source.probability,
        }
        named = [name for name, value in sizes.items() if value]
        if len(named) > 1:
            yield Problem(
                ("data", role, number),
                f"`data.{role}.{number}` has {' and '.join(named)}, which each set how many of its "
                "rows are used; keep one.",
            )
    probabilities = [source.probability is not None for source in sources]
    if any(probabilities) and (role != "train" or not all(probabilities)):
        yield Problem(
            ("data", role),
            f"`data.{role}` has a source with a probability and another without; give every "
            "source one."
            if role == "train"
            else f"`data.{role}` has a probability, but its sets are not mixed; use num_samples or "
            "weight.",
        )


def _problems(error: ValidationError, values: Mapping[str, Any]) -> list[Problem]:
    """Every error of pydantic in plain words; a required key that was only misspelt is left out."""
    problems: list[Problem] = []
    missing: list[KeyPath] = []
    for item in error.errors():
        path = tuple(_field_at(item["loc"])[0])
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, SectionError):
            problems += [Problem((*path, *own.path), own.sentence) for own in inner.problems]
        elif item["type"] == "missing":
            missing.append(path)
        else:
            unknown = item["type"] == "extra_forbidden"
            problems.append(Problem(path, None if unknown else _sentence(item, values)))
    unknown_paths = [problem.path for problem in problems if problem.sentence is None]
    guesses = {guess for path in unknown_paths for guess in meant(*_unknown(path))}
    return [
        *(Problem(path, sentence or unknown_key(*_unknown(path))) for path, sentence in problems),
        *(_missing(path) for path in missing if not guesses & {*_required(path)}),
    ]


def _required(path: KeyPath) -> list[str]:
    """What may have been meant to give a missing key: its name, and that of a missing section."""
    dotted = ".".join(str(part) for part in path)
    return [dotted, *(key for key in REQUIRED if key.startswith(f"{dotted}."))]


def _missing(path: KeyPath) -> Problem:
    dotted = _required(path)[-1]
    advice = f"; {REQUIRED[dotted]}" if dotted in REQUIRED else ""
    return Problem(path, f"`{dotted}` is missing{advice}.")


def _unknown(path: KeyPath) -> tuple[str, str, Sequence[str], Mapping[str, Sequence[str]]]:
    """An unknown key's section and name, the keys of that section, and those of every section."""
    return ".".join(map(str, path[:-1])), str(path[-1]), _keys_at(path[:-1]), _known_keys()


@cache
def _known_keys() -> dict[str, Sequence[str]]:
    """The keys of every section by its name."""
    return {name: _keys_at((name,)) for name in Recipe.model_fields}


def _keys_at(path: KeyPath) -> Sequence[str]:
    """The keys of the section at a path, the top level where it is empty."""
    if path in (("train",), ("lora",)):
        return open_keys("train" if path == ("train",) else "lora")
    return list(_section_at(path).model_fields)


def _sentence(item: ErrorDetails, values: Mapping[str, Any]) -> str:
    """What is wrong with a value, and what was expected."""
    path, kind, metadata = _field_at(item["loc"])
    dotted = ".".join(str(part) for part in path)
    value: Any = values
    for part in path:
        value = value[part] if isinstance(value, Mapping) and part in value else item["input"]
    if isinstance(kind, type) and issubclass(kind, Section):
        alone = "a path, a Hub id or " if kind is Source else ""
        keys = ", ".join(kind.model_fields)
        return f"`{dotted}` is {shown(value)}, but must be {alone}a mapping of {keys}."
    alias = value_alias(dotted, value)
    hint = f"; did you mean {alias!r}?" if alias is not None else "."
    return f"`{dotted}` is {shown(value)}, but must be {expected(kind, metadata)}{hint}"


def _section_at(path: Sequence[str | int]) -> type[Section]:
    kind = _field_at(path)[1]
    return kind if isinstance(kind, type) and issubclass(kind, Section) else Recipe


def _field_at(loc: Sequence[str | int]) -> tuple[list[str | int], Any, Sequence[Any]]:
    """Follow an error's location through the sections, leaving out pydantic's own marks."""
    path: list[str | int] = []
    kind: Any = Recipe
    metadata: Sequence[Any] = ()
    for part in loc:
        if isinstance(part, int):
            path.append(part)
            kind, metadata = typing.get_args(kind)[0], ()
        elif isinstance(kind, type) and issubclass(kind, Section):
            path.append(part)
            field = kind.model_fields.get(part)
            kind, metadata = (field.annotation, field.metadata) if field else (None, ())
            # A section that may be null is followed like any other.
            inner = [part for part in typing.get_args(kind) if part is not type(None)]
            if len(inner) == 1 and isinstance(inner[0], type) and issubclass(inner[0], Section):
                kind = inner[0]
        else:
            break
    return path, kind, metadata
