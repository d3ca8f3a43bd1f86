"""What is wrong with a recipe, in sentences: unknown keys, values, keys that contradict each other.

Pydantic says where and what; ``names.json`` knows the names that other trainers and earlier
versions use.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

from plaudit import registry
from plaudit.errors import RecipeError, nearest
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.recipe.schema import (
    HF_KEYS,
    MANAGED,
    NAMES,
    LossSection,
    Recipe,
    Section,
    Source,
)

KeyPath: TypeAlias = tuple[str | int, ...]
"""The way to a key: names of sections and keys, numbers of list entries."""

REQUIRED: Final[Mapping[str, str]] = {
    "model.base": "set it to the path or Hub id of a base model",
    "data.train": "set it to a file of comparisons, a Hub id, or a list of them",
}


class Problem(NamedTuple):
    """One thing wrong with a recipe."""

    path: KeyPath
    sentence: str


# ---- names of other trainers and earlier versions

RENAMED: Final[Mapping[str, str]] = NAMES["renamed"]
"""Old names of keys, ``data.source`` standing for any source, and the name of today."""

ALIASES: Final[Mapping[str, str]] = {
    name: key for key, names in NAMES["aliases"].items() for name in names
}
"""Keys of other trainers and versions, and the key here that means the same."""

ADVICE: Final[Mapping[str, str]] = {
    **NAMES["advice"],
    **{
        tool: f"write it as tokens.template: {{tool: {tool}, name: …, release: …}}"
        for tool in registry.names("renderer")
    },
}
"""Keys of other trainers and versions that no single key here stands for, and what to do."""

VALUE_ALIASES: Final[Mapping[str, Mapping[str, str]]] = NAMES["values"]
"""Values that other trainers and versions use, by key, and the value here that means the same."""


# ---- all problems of a mapping


def find_problems(values: Mapping[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """The recipe of a mapping, or all that is wrong with it.

    Keys that contradict each other are among the problems where their sections are right by
    themselves.
    """
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = _problems(error, values)
        wrong = _sections_of(problems)
        # Of the sections that are wrong already nothing more is said.
        right = {n: v for n, v in values.items() if n in Recipe.model_fields and n not in wrong}
        stand_in = {"model": {"base": "unknown"}, "data": {"train": "unknown"}}
        rest = Recipe.model_validate({**stand_in, **right})
        return None, [*problems, *_contradictions(rest, wrong)]
    problems = list(_contradictions(recipe, set()))
    return (None if problems else recipe), problems


def _problems(error: ValidationError, values: Mapping[str, Any]) -> list[Problem]:
    """Every error of pydantic in plain words; a required key that was only misspelt is left out."""
    missing: list[KeyPath] = []
    unknown: list[KeyPath] = []
    problems: list[Problem] = []
    for item in error.errors():
        path, kind, metadata = _field_at(item["loc"])
        if item["type"] == "missing":
            missing.append(path)
        elif item["type"] == "extra_forbidden":
            unknown.append(path)
            problems.append(Problem(path, _unknown(path)))
        else:
            problems.append(Problem(path, _wrong(item, values, path, kind, metadata)))
    guesses = {guess for path in unknown for guess in meant(path)}
    return problems + [_missing(path) for path in missing if not guesses & {*_required(path)}]


def _required(path: KeyPath) -> list[str]:
    """What may have been meant to give a missing key: its name, and that of a missing section."""
    dotted = _dotted(path)
    return [dotted, *(key for key in REQUIRED if key.startswith(f"{dotted}."))]


def _missing(path: KeyPath) -> Problem:
    dotted = _required(path)[-1]
    advice = f"; {REQUIRED[dotted]}" if dotted in REQUIRED else ""
    return Problem(path, f"`{dotted}` is missing{advice}.")


def _sections_of(problems: Sequence[Problem]) -> set[str]:
    """The sections that problems are in, or where a key at the top was most likely meant to be."""
    names: set[str] = set()
    for path in (problem.path for problem in problems):
        known = path[0] in Recipe.model_fields
        names |= {str(path[0])} if known else {guess.split(".")[0] for guess in meant(path[:1])}
    return names


# ---- unknown keys


def meant(path: KeyPath) -> list[str]:
    """The dotted keys that a person most likely meant by an unknown one."""
    section, name = _dotted(path[:-1]), str(path[-1])
    if name.lower() in ALIASES:
        return [ALIASES[name.lower()]]
    everywhere = _keys_by_section()
    homes = [f"{home}.{name}" for home, names in everywhere.items() if name in names]
    if homes:
        return homes
    guess = nearest(name, _keys_at(path[:-1]))
    if guess is not None:
        return [f"{section}.{guess}" if section else guess]
    dotted = {key: f"{home}.{key}" for home, names in everywhere.items() for key in names}
    far = nearest(name, dotted, similarity=0.8)
    return [dotted[far]] if far else []


def _unknown(path: KeyPath) -> str:
    """The sentence for a key that its section does not have."""
    dotted, section, name = _dotted(path), _dotted(path[:-1]), str(path[-1])
    if name in MANAGED.get(section, ()):
        advice = MANAGED[section][name]
        return f"`{dotted}` is managed by plaudit; remove it from the recipe: {advice}."
    if name in HF_KEYS.get(section, ()):
        return f"`{dotted}` takes a Python object and cannot be set in a recipe."
    of_source = len(path) == 4 and path[0] == "data"
    renamed = RENAMED.get(f"data.source.{name}" if of_source else dotted)
    if renamed is not None:
        return f"`{dotted}` was renamed to `{renamed}`."
    place = f"the {section} section" if section else "a recipe"
    advised = ADVICE.get(name) or MANAGED["train"].get(name)
    if advised is not None:
        return f"`{dotted}` is not a key of {place}: {advised}."
    guesses = [f"`{guess.removeprefix(f'{section}.')}`" for guess in meant(path)]
    if guesses:
        return f"`{dotted}` is not a key of {place}; did you mean {either(guesses)}?"
    return f"`{dotted}` is not a key of {place}; expected one of {', '.join(_keys_at(path[:-1]))}."


@cache
def _keys_by_section() -> dict[str, list[str]]:
    return {name: _keys_at((name,)) for name in Recipe.model_fields}


def _keys_at(path: KeyPath) -> list[str]:
    """The keys of the section at a path, the top level where it is empty."""
    kind = _field_at(path)[1]
    return list(fields_of(kind if is_section(kind) else Recipe))


# ---- wrong values


def _wrong(
    item: ErrorDetails,
    values: Mapping[str, Any],
    path: KeyPath,
    kind: Any,
    metadata: Sequence[Any],
) -> str:
    """What is wrong with a value, and what was expected."""
    dotted = _dotted(path)
    value: Any = values
    for part in path:
        value = value[part] if isinstance(value, Mapping) and part in value else item["input"]
    if is_section(kind):
        alone = "a path, a Hub id or " if kind is Source else ""
        keys = list(fields_of(kind))
        listed = "keys" if len(keys) > LISTED else ", ".join(keys)
        return f"`{dotted}` is {shown(value)}, but must be {alone}a mapping of {listed}."
    choices = [choice for choice in _choices(kind) if isinstance(value, str)]
    alias = VALUE_ALIASES.get(dotted, {}).get(str(value)) or nearest(str(value), choices)
    hint = f"; did you mean {alias!r}?" if alias is not None else "."
    if alias is not None and len(choices) > LISTED:
        return f"`{dotted}` cannot be {value!r}{hint}"
    wanted = item["msg"] if item["type"] == "rule" else expected(kind, metadata)
    return f"`{dotted}` is {shown(value)}, but must be {wanted}{hint}"


LISTED: Final = 16
"""Names that a message lists before it names only the nearest one."""


def _choices(annotation: Any) -> list[str]:
    """The texts that an annotation is closed to, those of a union's parts together."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(value) for value in typing.get_args(annotation)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [c for part in typing.get_args(annotation) for c in _choices(part)]
    return []


# ---- the fields of sections


def is_section(kind: Any) -> bool:
    """Whether an annotation is a section: a model, or the keys of another library."""
    return isinstance(kind, type) and (issubclass(kind, Section) or is_typeddict(kind))


def fields_of(section: Any) -> Mapping[str, FieldInfo]:
    """The fields of a section by name, whichever kind of section it is."""
    if issubclass(section, Section):
        return dict(section.model_fields)
    return {
        name: FieldInfo.from_annotation(annotation)
        for name, annotation in section.__annotations__.items()
    }


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _field_at(loc: KeyPath) -> tuple[KeyPath, Any, Sequence[Any]]:
    """Follow an error's location through the sections, leaving out pydantic's own marks."""
    path: list[str | int] = []
    kind: Any = Recipe
    metadata: Sequence[Any] = ()
    for part in loc:
        if is_section(kind):
            path.append(part)
            field = fields_of(kind).get(str(part))
            kind, metadata = (field.annotation, field.metadata) if field else (None, ())
            # A section that may be null is followed like any other.
            inner = [one for one in typing.get_args(kind) if is_section(one)]
            if len(inner) == 1 and type(None) in typing.get_args(kind):
                (kind,) = inner
        elif isinstance(part, int) and typing.get_origin(kind) is tuple:
            path.append(part)
            kind, metadata = typing.get_args(kind)[0], ()
        else:
            break
    return tuple(path), kind, metadata


WORDS: Final[Mapping[Any, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}
"""Types in words."""


def shown(value: Any) -> str:
    """A value as a message shows it: as YAML would write it, cut when long."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def either(options: Iterable[str]) -> str:
    """``a, b or c``."""
    *first, last = options
    return f"{', '.join(first)} or {last}" if first else last


def expected(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a field of a section accepts, as a phrase: ``a whole number of at least 2 or auto``."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        # The limits inside a pydantic Field(...), or a plain annotated-types limit.
        limits = (getattr(item, "metadata", [item]) for item in arguments[1:])
        return expected(arguments[0], [*chain.from_iterable(limits)])
    if origin in (typing.Union, types.UnionType):
        return either(expected(part) for part in arguments)
    if origin is typing.Literal:
        return either(str(value) for value in arguments)
    if origin is tuple:
        if isinstance(arguments[0], type):
            return "a path, a Hub id, a mapping with a path, or a list of these"
        return f"a list of {expected(arguments[0])}"
    if origin is dict and arguments[1] is float:
        return "a mapping of names to finite numbers"
    words = WORDS.get(origin or annotation, "a mapping")
    bounds = []
    for item in metadata:
        for attribute, word in (("ge", "of at least"), ("gt", "above"), ("lt", "below")):
            if hasattr(item, attribute):
                bounds.append(f"{word} {getattr(item, attribute):g}")
        if getattr(item, "pattern", None):
            bounds.append("like 2024-07-26")
    return " ".join([words, *([" and ".join(bounds)] if bounds else [])])


# ---- keys that contradict each other


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
            f"`data.eval_fraction` and `data.test_fraction` together hold out {held_out:g} of the"
            " data, which leaves nothing to train on; reduce them.",
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
            "`tokens.template` and `tokens.chat_template` both set the chat template; keep one.",
        )


def _model_contradictions(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.model.base.strip():
        yield Problem(("model", "base"), f"`model.base` is empty; {REQUIRED['model.base']}.")
    if recipe.model.quantize and recipe.lora is None:
        yield Problem(
            ("model", "quantize"),
            "`model.quantize` is '4bit' and `lora` is null, but quantized weights cannot be"
            " trained; add a lora section, or set quantize to null.",
        )
    if recipe.model.freeze_layers and recipe.lora is not None:
        yield Problem(
            ("model", "freeze_layers"),
            f"`model.freeze_layers` is {recipe.model.freeze_layers}, but LoRA leaves the whole base"
            " frozen; set lora to null, or choose the adapter's layers with"
            " `lora.layers_to_transform`.",
        )


def _loss_contradictions(recipe: Recipe) -> Iterator[Problem]:
    loss = recipe.loss
    read = OBJECTIVES[loss.kind].reads
    for name in sorted(loss.model_fields_set - read):
        if getattr(loss, name) != type(loss).model_fields[name].default:
            users = [kind for kind, row in OBJECTIVES.items() if name in row.reads]
            yield Problem(
                ("loss", name),
                f"`loss.{name}` is {shown(getattr(loss, name))}, but `loss.kind` is {loss.kind!r},"
                f" which does not read it; remove it, or set kind to {either(users)}.",
            )
    fixed = loss.tie_parameter
    if loss.kind == "rao_kupper" and fixed != "learned" and fixed <= 1:
        yield Problem(
            ("loss", "tie_parameter"),
            f"`loss.tie_parameter` is {fixed:g}, but rao_kupper's theta must be above 1.",
        )
    yield from _output_contradictions(loss)


def _output_contradictions(loss: LossSection) -> Iterator[Problem]:
    names = loss.outputs
    if loss.heads and names:
        yield Problem(
            ("loss", "heads"),
            "`loss.heads` and `loss.outputs` both say what the outputs of the head are; keep one.",
        )
    if len(names) == 1 or len(set(names)) < len(names):
        yield Problem(
            ("loss", "outputs"),
            f"`loss.outputs` is {shown(list(names))}, but must be at least two different names.",
        )
    if names and loss.length == "residual":
        yield Problem(
            ("loss", "length"),
            "`loss.length` is 'residual', which fits one weight of the length, but `loss.outputs`"
            " has several outputs; remove one of them.",
        )
    weights = loss.gate if isinstance(loss.gate, dict) else None
    if loss.gate is not None and not names:
        yield Problem(
            ("loss", "gate"),
            f"`loss.gate` is {shown(loss.gate)}, but there is no `loss.outputs` to make a reward"
            " of; set outputs, or remove gate.",
        )
    elif weights is not None and set(weights) != set(names):
        yield Problem(
            ("loss", "gate"),
            f"`loss.gate` has weights for {', '.join(sorted(weights)) or 'nothing'}, but"
            f" `loss.outputs` is {shown(list(names))}; set one weight for each.",
        )
    elif weights is not None and not any(weights.values()):
        yield Problem(
            ("loss", "gate"),
            f"`loss.gate` is {shown(weights)}, under which every reward is 0; set other weights.",
        )


def _schedule_contradictions(recipe: Recipe) -> Iterator[Problem]:
    try:
        arguments = recipe.training_arguments
    except RecipeError as error:
        yield Problem(("train",), str(error))
        return
    patience = recipe.evaluate.early_stopping_patience
    if patience is not None and not arguments["load_best_model_at_end"]:
        yield Problem(
            ("evaluate", "early_stopping_patience"),
            f"`evaluate.early_stopping_patience` is {patience}, but early stopping needs regular"
            " evaluation and the best checkpoint; set data.eval or data.eval_fraction, and keep"
            " load_best_model_at_end true.",
        )


CONTRADICTIONS: dict[tuple[str, ...], Callable[[Recipe], Iterator[Problem]]] = {
    ("model", "lora"): _model_contradictions,
    ("data",): _data_contradictions,
    ("tokens",): _token_contradictions,
    ("loss",): _loss_contradictions,
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
                f"`data.{role}.{number}` has {' and '.join(named)}, which all set the number of"
                " rows to use; keep one.",
            )
    probabilities = [source.probability is not None for source in sources]
    if any(probabilities) and (role != "train" or not all(probabilities)):
        yield Problem(
            ("data", role),
            f"`data.{role}` has sources with and without a probability; set one for every source."
            if role == "train"
            else f"`data.{role}` has a probability, but these sources are not mixed; use"
            " num_samples or weight.",
        )


def _contradictions(recipe: Recipe, wrong: set[str]) -> Iterator[Problem]:
    """What no section can know alone; nothing is said of sections that are ``wrong`` already."""
    for sections, check in CONTRADICTIONS.items():
        if wrong.isdisjoint(sections):
            yield from check(recipe)
