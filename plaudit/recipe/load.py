"""Recipes from files and command lines to records, and back: read, set keys, check, write.

The shipped recipes and the starter of ``plaudit init`` are here too.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from plaudit.embedded import quickstart_path
from plaudit.errors import RecipeError
from plaudit.recipe.problems import KeyPath, Problem, fields_of, find_problems, shown
from plaudit.recipe.schema import HF_KEYS, Recipe
from plaudit.recipe.yaml import key_lines, read_yaml, write_yaml

RUN_RECIPE = "recipe.yaml"
"""The name of the resolved recipe in a run folder."""
CHECKPOINT_RECIPE = "training_recipe.yaml"
"""Its copy in each checkpoint: the recipe that the run was trained with until then."""


def shipped_recipes() -> dict[str, Path]:
    """The files of the shipped recipes by the names that stand for them."""
    files = [*Path(__file__).parents[1].joinpath("recipes").glob("*.yaml"), quickstart_path()]
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def recipe_file(named: Path | str) -> Path:
    """The file that ``named`` stands for: a file, else a shipped recipe, else a run folder's.

    Where it is none of them it is returned as it is, a path where nothing is.
    """
    path = Path(named)
    if path.is_file():
        return path
    shipped = shipped_recipes().get(str(named))
    if shipped is not None:
        return shipped
    return path / RUN_RECIPE if (path / RUN_RECIPE).is_file() else path


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
                    f"{place}: `{name}` is {shown(inside)} in this recipe and has no keys; set"
                    f" `{name}` itself."
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
        recipe, problems = find_problems(
            {
                name: {} if value is None and name != "lora" else value
                for name, value in self.values.items()
            }
        )
        if recipe is None:
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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: the recipe file does not exist.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file; expected a recipe in YAML.") from error
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error.strerror}.") from error
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        content = "is empty" if values is None else f"holds {shown(values)}"
        raise RecipeError(
            f"{path}: this file {content}; expected a recipe, a mapping of sections"
            f" ({', '.join(Recipe.model_fields)})."
        )
    return Draft(str(path), values, {key: f"{path}:{n}" for key, n in key_lines(text).items()})


def parse_recipe(mapping: Mapping[str, Any], where: str) -> Recipe:
    """Check a recipe in the form of a mapping; ``where`` names its origin in messages.

    Raises:
        RecipeError: all its problems.
    """
    return Draft(where, mapping).check()


def with_columns(recipe: Recipe, columns: Mapping[str, str | None]) -> Recipe:
    """The recipe with ``columns`` laid over those of each of its sources."""
    data = {
        role: tuple(
            source.model_copy(update={"columns": {**source.columns, **columns}})
            for source in getattr(recipe.data, role)
        )
        for role in ("train", "eval", "test")
    }
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key written out; parsing it gives an equal recipe."""
    return write_yaml(recipe.model_dump(mode="json"))


# ---- recipes of other trainers


Outcome: TypeAlias = Literal["mapped", "ignored", "unknown", "differs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """The outcome of one key, or a difference that no key names, and its words."""

    key: str
    outcome: Outcome
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A recipe's mapping, the outcome of every key, and where the run is to be written.

    What a ``recipe_source`` of the registry makes of the settings of another trainer.
    """

    recipe: dict[str, Any]
    notes: tuple[Note, ...]
    out: Path | None


# ---- the starter: a run that names only a base and data

BASE: Final = "Qwen/Qwen3-0.6B"
DATA: Final = "pairs.jsonl"
"""What stands in for a base and data that are not named."""

TRAINING: Final[Mapping[str, Any]] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "seed": 42,
}
"""Training arguments of a first LoRA run; of its ten evaluations the best checkpoint is kept."""

WRITTEN: Final[Mapping[str, tuple[str, ...]]] = {
    "model": ("base", "dtype"),
    "lora": ("r", "lora_alpha", "lora_dropout", "target_modules"),
    "data": ("train", "eval_fraction", "split_by", "seed"),
    "tokens": ("max_length", "truncation"),
    "train": tuple(TRAINING),
    "evaluate": ("calibrate", "baselines"),
    "report": ("html", "plots"),
}
"""The keys that :func:`starter_text` writes, by section."""

SUGGESTED: Final[Mapping[str, Mapping[str, Any]]] = {
    "data": {"eval": "eval.jsonl", "test": "test.jsonl"},
    "tokens": {"chat_template": "template.jinja"},
    "train": {"report_to": "tensorboard"},
    "evaluate": {"early_stopping_patience": 3},
}
"""Keys that it writes as comments, with an example."""


def starter() -> Draft:
    """The recipe that a base and data are laid over; every other key is at its default."""
    return Draft("the recipe", {"train": dict(TRAINING)})


def starter_text(draft: Draft) -> str:
    """A checked draft as a commented recipe: its main keys with their values.

    Raises:
        RecipeError: the draft is not a valid recipe.
    """
    values = draft.check().model_dump(mode="json")
    values["data"]["train"] = draft.values["data"]["train"]
    lines = ["# Every key is described in docs/reference/recipe.md."]
    for section, names in WRITTEN.items():
        about = Recipe.model_fields[section].description
        lines += ["", f"# {about}", f"{section}:"]
        for name in names:
            lines += _key(section, name, values[section][name])
        chosen = draft.values.get(section, {})
        for name, example in SUGGESTED.get(section, {}).items():
            mark = "" if name in chosen else "# "
            lines += _key(section, name, chosen.get(name, example), mark)
    return "\n".join(lines) + "\n"


def _key(section: str, name: str, value: Any, mark: str = "") -> Iterator[str]:
    """A key with its value below its description, indented; ``mark`` stands in front of it."""
    yield from (f"  # {line}" for line in textwrap.wrap(description(section, name), 96))
    yield from (f"  {mark}{line}" for line in write_yaml({name: value}).splitlines())


def description(section: str, name: str) -> str:
    """What a key of a section means, in one sentence."""
    if section in HF_KEYS:
        return HF_KEYS[section][name].description
    return fields_of(Recipe.model_fields[section].annotation)[name].description or ""
