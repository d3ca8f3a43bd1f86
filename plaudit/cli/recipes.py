"""The recipe that a command is to use, from its argument and options."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit import registry
from plaudit.cli.options import parse_columns
from plaudit.data.sources.files import FILE_KINDS
from plaudit.errors import RecipeError, did_you_mean
from plaudit.recipe.load import (
    BASE,
    CHECKPOINT_RECIPE,
    DATA,
    RUN_RECIPE,
    Draft,
    Note,
    Outcome,
    Translation,
    read_draft,
    recipe_file,
    shipped_recipes,
    starter,
    with_columns,
)
from plaudit.recipe.problems import either
from plaudit.recipe.schema import Recipe

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRequest:
    """What a command line says of its recipe: an argument, another trainer's YAML, and options.

    ``argument`` is a recipe file, a shipped recipe's name, a run folder or a data file.
    ``overrides`` win over ``model``, ``data`` and ``test``, and these over the recipe.
    """

    argument: str | None = None
    llamafactory: Path | None = None
    model: str | None = None
    data: Sequence[str] | None = None
    test: Sequence[str] | None = None
    overrides: Sequence[str] | None = None
    columns: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedRecipe:
    """A checked recipe and a name for its run.

    ``run`` is the run folder that the argument names. A translated recipe has ``notes`` on its
    keys, and ``out`` where it says where the run goes.
    """

    recipe: Recipe
    name: str
    run: Path | None = None
    notes: tuple[Note, ...] = ()
    out: Path | None = None


def select_recipe(request: RecipeRequest, command: str) -> SelectedRecipe:
    """The recipe that the command line of ``plaudit <command>`` asks for.

    Raises:
        RecipeError: it names none or two, or one that cannot be used.
    """
    selected = _select(request, command)
    recipe = with_columns(selected.recipe, parse_columns(request.columns))
    return replace(selected, recipe=recipe)


def _select(request: RecipeRequest, command: str) -> SelectedRecipe:
    if request.llamafactory is not None:
        return _translated(request, request.llamafactory)
    named = request.argument
    if named is None or _is_data(named):
        return _started(request, command)
    file = _named_file(named)
    run = file.parent if file == Path(named) / RUN_RECIPE else None
    return SelectedRecipe(
        recipe=with_options(read_draft(file), request).check(),
        name=file.stem if run is None else run.resolve().name,
        run=run,
    )


def _started(request: RecipeRequest, command: str) -> SelectedRecipe:
    """The starter recipe for a base and data that options and a data file name."""
    if request.argument is not None:
        if request.data:
            raise RecipeError(
                f"{request.argument} is a data file, and --data is also set; pass all data with "
                "--data."
            )
        request = replace(request, data=[request.argument])
    draft = with_options(starter(), request)
    base, train = _value(draft, "model", "base"), _value(draft, "data", "train")
    if base is None or train is None:
        missing = [
            words
            for words, value in (("a base model (--model)", base), ("data (--data)", train))
            if value is None
        ]
        files = request.data or ([train] if isinstance(train, str) else [DATA])
        options = " ".join(f"--data {shlex.quote(name)}" for name in files)
        raise RecipeError(
            f"without a recipe, {' and '.join(missing)} must be set: plaudit {command} --model "
            f"{shlex.quote(str(base or BASE))} {options}; or write a recipe with plaudit init."
        )
    return SelectedRecipe(recipe=draft.check(), name=Path(str(base)).name or "run")


def _value(draft: Draft, section: str, key: str) -> Any:
    """A key's value in a draft; None where it, or its section, is missing.

    A section that is not a mapping is left for the check.
    """
    inside = draft.values.get(section)
    return inside.get(key) if isinstance(inside, Mapping) else inside


def _translated(request: RecipeRequest, file: Path) -> SelectedRecipe:
    if request.argument is not None:
        raise RecipeError("pass either a recipe or --from-llamafactory, not both.")
    translate = registry.find("recipe_source", "llamafactory")
    translated: Translation = translate(read_draft(file).values, str(file))
    draft = with_options(Draft(str(file), translated.recipe), request)
    return SelectedRecipe(
        recipe=draft.check(), name=file.stem, notes=translated.notes, out=translated.out
    )


def with_options(draft: Draft, request: RecipeRequest) -> Draft:
    """The draft with the options laid over it."""
    if request.model is not None:
        draft = draft.with_value(("model", "base"), request.model, f"--model {request.model}")
    for key, option, paths in (
        ("train", "--data", request.data),
        ("test", "--test", request.test),
    ):
        if paths:
            value = paths[0] if len(paths) == 1 else list(paths)
            draft = draft.with_value(("data", key), value, f"{option} {', '.join(paths)}")
    return draft.with_overrides(request.overrides or ())


def _is_data(named: str) -> bool:
    """Whether an argument is a data file that is there, or a folder of them.

    A shipped recipe and a run folder come first.
    """
    path = Path(named)
    if path.is_file():
        return _has_data_ending(path)
    if not path.is_dir() or recipe_file(named) != path or _is_model(path) or _is_run(path):
        return False
    return any(_has_data_ending(inner) for inner in path.iterdir())


def _is_run(folder: Path) -> bool:
    """Whether ``plaudit train`` began a run there; its :data:`RUN_RECIPE` may be lost."""
    return all((folder / name).is_file() for name in ("data.json", "environment.json"))


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _has_data_ending(path: Path) -> bool:
    return path.name.lower().endswith(tuple(FILE_KINDS))


def _named_file(named: str) -> Path:
    """The recipe file that an argument stands for.

    Raises:
        RecipeError: it is none of the things that an argument may be.
    """
    path = recipe_file(named)
    if _is_run(path):
        copies = sorted(path.glob(f"checkpoints/*/{CHECKPOINT_RECIPE}"))
        advice = (
            f"copy {copies[-1]} to {path / RUN_RECIPE}" if copies else "restore it from a backup"
        )
        raise RecipeError(f"{named} is a run folder, and its {RUN_RECIPE} is missing; {advice}.")
    if path.is_file() or path.suffix.lower() in (".yaml", ".yml"):
        return path
    names = list(shipped_recipes())
    problem = "does not exist"
    if path.is_dir():
        problem = "is a model folder" if _is_model(path) else "has no recipe.yaml and no data"
    end = did_you_mean(named, names, "pass a base model with --model and data with --data.")
    raise RecipeError(
        f"{named} {problem}; expected, in this order, a recipe file (.yaml), a shipped recipe "
        f"({either(names)}), a run folder or a data file; {end}"
    )


_TITLES: dict[Outcome, str] = {
    "mapped": "Translated from LLaMA-Factory",
    "ignored": "Ignored, and why",
    "unknown": "Unknown, and ignored",
    "differs": "Differences",
}


def show_notes(notes: Sequence[Note], console: Console) -> None:
    """The outcome of every key, as tables that fit 80 columns; equal words stand once."""
    from rich.table import Table
    from rich.text import Text

    for outcome, title in _TITLES.items():
        keys: dict[str, list[str]] = {}
        for note in notes:
            if note.outcome == outcome:
                keys.setdefault(note.words, []).append(note.key)
        if not keys:
            continue
        table = Table(title=title, title_justify="left", show_header=False, padding=(0, 1))
        table.add_column(max_width=31)
        for words, names in keys.items():
            table.add_row(Text(", ".join(names)), Text(words))
        console.print(table)
