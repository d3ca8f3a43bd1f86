"""The recipe: one small frozen section per stage, checked completely when it is loaded.

Loads no torch. The ``train`` and ``lora`` sections pass through to
``transformers.TrainingArguments`` and ``peft.LoraConfig`` under their own names; their keys and
types are checked against a generated table (:mod:`plaudit.recipe_keys`), because importing the
real classes takes many seconds.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from plaudit.errors import RecipeError
from plaudit.recipe_check import check_lora, check_train, expected, shown, unknown_key
from plaudit.recipe_yaml import read_yaml, write_yaml


class Section(BaseModel):
    """A part of the recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class ModelSection(Section):
    """The base model, or a reward model to train on from, and how it is loaded."""

    base: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Literal["4bit"] | None = None
    attention: Literal["auto", "packed", "padded"] = "auto"
    head_init: Literal["zero", "normal"] = "zero"
    trust_remote_code: bool = False


class Source(Section):
    """One place comparisons come from: a file, a folder of files or a Hub dataset id.

    ``columns`` says where the columns of the format are: ``{prompt: question}`` reads the column
    ``question`` as ``prompt``, and ``{system: null}`` leaves ``system`` unread. ``tags`` does the
    same for the keys and roles of ShareGPT turns. ``first`` reads no further than that row;
    ``weight``, ``rows`` and ``share`` say how many of the usable rows are taken. ``folder`` and
    ``stream`` are for the Hub: a folder of the dataset, and reading without a copy on this disk.
    """

    path: str
    name: str | None = None
    format: str | None = None
    columns: dict[str, str | None] = Field(default_factory=dict)
    tags: dict[str, str | None] = Field(default_factory=dict)
    graded: Literal["ignore", "margin", "weight"] = "ignore"
    split: str | None = None
    subset: str | None = None
    folder: str | None = None
    stream: bool = False
    first: Annotated[int, Field(ge=1)] | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    rows: Annotated[int, Field(ge=1)] | None = None
    share: Annotated[float, Field(gt=0)] | None = None


def _as_sources(value: Any) -> Any:
    """A path, a ``{path: …}`` entry or a list of either becomes a list of entries."""
    if value is None:
        return ()
    entries = value if isinstance(value, (list, tuple)) else [value]
    return tuple({"path": entry} if isinstance(entry, str) else entry for entry in entries)


Sources = Annotated[tuple[Source, ...], BeforeValidator(_as_sources)]


class DataSection(Section):
    """Which comparisons train, which choose the checkpoint, which are evaluated once, at the end.

    ``as_chat`` says what becomes of plain text where the base has a chat template: true makes the
    prompt a user turn and each response an assistant turn, false keeps the text as it stands.
    Unset, text is kept too, and the run says so.
    ``eval_rows`` holds out that many rows, in place of a fraction. ``exhaust`` is for sources with
    a ``share``: they are taken until the ``first`` runs out, or until ``all`` have, rows of the
    smaller ones repeated.
    """

    train: Sources
    exhaust: Literal["first", "all"] = "first"
    eval: Sources = ()
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = 0.1
    eval_rows: Annotated[int, Field(ge=1)] | None = None
    test: Sources = ()
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    as_chat: bool | None = None
    split_by: Literal["prompt", "row"] = "prompt"
    seed: Annotated[int, Field(ge=0)] = 42


def _real_day(text: str) -> str:
    date.fromisoformat(text)
    return text


class LlamaFactoryTemplate(Section):
    """A conversation template of LLaMA-Factory by its name, as a release had it."""

    template: str
    release: str = "0.9.5"


class TokensSection(Section):
    """How comparisons become tokens, and how many go through the model at once.

    ``llamafactory`` renders conversations as LLaMA-Factory does, by one of its templates, in place
    of the tokenizer's chat template: ``{template: llama3, release: 0.9.5}``.
    """

    max_length: Annotated[int, Field(ge=2)] = 2048
    overlong: Literal["drop", "truncate_prompt", "llamafactory", "error"] = "drop"
    chat_template: Path | None = None
    llamafactory: LlamaFactoryTemplate | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    pad_token: str | None = None
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_real_day)] = (
        "2024-07-26"
    )
    max_tokens_per_microbatch: Annotated[int, Field(ge=2)] | Literal["auto"] = "auto"


class LossSection(Section):
    """The training objective; ``kind`` is a row of the table in :mod:`plaudit.loss`.

    ``margin`` says whether a row's margin column is subtracted in the loss. It is in units of
    reward; a column of quality points belongs to other tools.
    """

    kind: Literal["bradley_terry"] = "bradley_terry"
    margin: Literal["column", "ignore"] = "column"


class EvaluateSection(Section):
    """What is measured beside the loss, and when training may stop early."""

    calibrate: bool = True
    baselines: tuple[Literal["longer", "shorter", "bag_of_words"], ...] = (
        "longer",
        "shorter",
        "bag_of_words",
    )
    behaviour: Annotated[int, Field(ge=0)] = 200
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    early_stopping_threshold: Annotated[float, Field(ge=0)] = 0.0


class ReportSection(Section):
    """What is written for people to look at."""

    html: bool = True
    plots: bool = True


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
    lora: Annotated[dict[str, Any] | None, BeforeValidator(_lora)] = Field(
        default_factory=lambda: dict(LORA_DEFAULTS)
    )
    data: DataSection
    tokens: TokensSection = TokensSection()
    loss: LossSection = LossSection()
    train: Annotated[dict[str, Any], BeforeValidator(check_train)] = Field(default_factory=dict)
    evaluate: EvaluateSection = EvaluateSection()
    report: ReportSection = ReportSection()


REQUIRED = {
    "model.base": "name a base model, a Hub id or a local folder",
    "data.train": "name a file of comparisons, a Hub id or a list of them",
}


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and lay ``section.key=value`` overrides over it.

    Values of overrides are read as YAML. Raises RecipeError for a file that is missing, is not
    YAML or holds anything a recipe does not allow; the message names the file and the key.
    """
    return parse_recipe(with_overrides(read_mapping(path), overrides), str(path))


def read_mapping(path: Path | str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        RecipeError: the file is missing, is not YAML or holds something else.
    """
    where = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{where}: there is no such recipe file.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{where}: this is not a text file, so it is no recipe.") from error
    except OSError as error:
        raise RecipeError(f"{where}: the recipe cannot be read: {error.strerror}.") from error
    mapping = read_yaml(text, where)
    if not isinstance(mapping, dict):
        found = "is empty" if mapping is None else f"holds {shown(mapping)}"
        raise RecipeError(
            f"{where}: a recipe is a mapping of sections ({', '.join(Recipe.model_fields)}), "
            f"but this file {found}."
        )
    return mapping


def parse_recipe(mapping: Mapping[str, Any], where: str) -> Recipe:
    """Check a recipe given as a mapping; ``where`` names its origin in messages.

    Raises RecipeError for the first mistake, and says how many more there are.
    """
    # A section whose every key is commented out reads as null; only for lora does null mean more.
    given = {
        name: {} if value is None and name != "lora" else value for name, value in mapping.items()
    }
    try:
        recipe = Recipe.model_validate(given)
        _check_together(recipe)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_plain(error, given)}") from error
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    return recipe


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


def _check_together(recipe: Recipe) -> None:
    """What no section can know alone."""
    data = recipe.data
    if not data.train:
        raise RecipeError(f"`data.train` is missing; {REQUIRED['data.train']}.")
    for role, sources in (("train", data.train), ("eval", data.eval), ("test", data.test)):
        _check_sources(role, sources)
    if recipe.tokens.llamafactory and recipe.tokens.chat_template:
        raise RecipeError(
            "`tokens.llamafactory` and `tokens.chat_template` both say how conversations are "
            "written; keep one."
        )
    if not recipe.model.base.strip():
        raise RecipeError(f"`model.base` is empty; {REQUIRED['model.base']}.")
    held_out = (data.eval_fraction or 0) + (data.test_fraction or 0)
    if held_out >= 1:
        raise RecipeError(
            f"`data.eval_fraction` and `data.test_fraction` hold out {held_out:g} of the data "
            "together, which leaves nothing to train on; make them smaller."
        )
    if recipe.model.quantize and recipe.lora is None:
        raise RecipeError(
            "`model.quantize` is '4bit' and `lora` is null, but quantized weights cannot be "
            "trained; keep a lora section, or set quantize to null."
        )
    arguments = effective_training_arguments(recipe)
    patience = recipe.evaluate.early_stopping_patience
    if patience is not None and not arguments["load_best_model_at_end"]:
        raise RecipeError(
            f"`evaluate.early_stopping_patience` is {patience}, but stopping early needs "
            "evaluation on schedule and the best checkpoint kept; set data.eval or "
            "data.eval_fraction, and leave load_best_model_at_end true."
        )


def _check_sources(role: str, sources: Sequence[Source]) -> None:
    """At most one of weight, rows and share a source; shares for all of a mixture or for none."""
    for number, source in enumerate(sources):
        given = {"weight": source.weight != 1, "rows": source.rows, "share": source.share}
        said = [name for name, value in given.items() if value]
        if len(said) > 1:
            raise RecipeError(
                f"`data.{role}.{number}` has {' and '.join(said)}, which each say how many of its "
                "rows are taken; keep one."
            )
    shares = [source.share is not None for source in sources]
    if any(shares) and (role != "train" or not all(shares)):
        raise RecipeError(
            f"`data.{role}` has a source with a share and another without, so the shares mean "
            "nothing; give every source one."
            if role == "train"
            else f"`data.{role}` has a share, but its sets are not mixed; use rows or weight."
        )


def with_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the mapping with each ``a.b=c`` set; sections on the way are made when missing."""
    result = copy.deepcopy(dict(mapping))
    for override in overrides:
        dotted, equals, text = override.partition("=")
        *parents, last = (part.strip() for part in dotted.split("."))
        if not equals or not last or not all(parents):
            raise RecipeError(f"--set {override}: expected section.key=value.")
        place = result
        for name in parents:
            inside = place.get(name)
            if inside is not None and not isinstance(inside, dict):
                raise RecipeError(
                    f"--set {override}: `{name}` is {shown(inside)} in this recipe and has no "
                    f"keys to set; set `{name}` itself."
                )
            place[name] = inside or {}
            place = place[name]
        place[last] = read_yaml(text, f"--set {override}")
    return result


def _plain(error: ValidationError, given: Mapping[str, Any]) -> str:
    """The first mistake pydantic found, as a sentence, and how many more there are."""
    # A misspelt key first: it is also why a required one may be missing.
    items = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    sentences = dict.fromkeys(_sentence(item, given) for item in items)
    first, *more = sentences
    return first if not more else f"{first} ({len(more)} more after this one.)"


def _sentence(item: ErrorDetails, given: Mapping[str, Any]) -> str:
    path, kind, metadata = _field_at(item["loc"])
    dotted = ".".join(str(part) for part in path)
    if item["type"] == "missing":
        dotted = {"model": "model.base", "data": "data.train"}.get(dotted, dotted)
        advice = f"; {REQUIRED[dotted]}" if dotted in REQUIRED else ""
        return f"`{dotted}` is missing{advice}."
    if item["type"] == "extra_forbidden":
        section = _section_at(path[:-1])
        return unknown_key(".".join(map(str, path[:-1])), path[-1], list(section.model_fields))
    value: Any = given
    for part in path:
        value = value[part] if isinstance(value, Mapping) and part in value else item["input"]
    if isinstance(kind, type) and issubclass(kind, Section):
        alone = "a path, a Hub id or " if kind is Source else ""
        keys = ", ".join(kind.model_fields)
        return f"`{dotted}` is {shown(value)}, but must be {alone}a mapping of {keys}."
    return f"`{dotted}` is {shown(value)}, but must be {expected(kind, metadata)}."


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
