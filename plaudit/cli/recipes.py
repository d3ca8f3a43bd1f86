"""The recipe that a verb is given: a recipe file, or a YAML of LLaMA-Factory's reward stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit.errors import RecipeError
from plaudit.recipe import Recipe, load_recipe, parse_recipe, read_mapping, with_overrides
from plaudit.recipe_llamafactory import Fate, Note, translate

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A checked recipe; of a translated one, what became of its keys and where it wants to go."""

    recipe: Recipe
    file: Path
    notes: tuple[Note, ...] = ()
    out: Path | None = None


def choose(recipe: Path | None, llamafactory: Path | None, overrides: Sequence[str]) -> Chosen:
    """The one recipe that the command line names, ``overrides`` laid over it.

    Raises:
        RecipeError: it names none or two, or the file cannot be used.
    """
    if (recipe is None) == (llamafactory is None):
        raise RecipeError(
            "give one recipe: a recipe file, or --from-llamafactory with a reward YAML."
        )
    if recipe is not None:
        return Chosen(recipe=load_recipe(recipe, overrides), file=recipe)
    assert llamafactory is not None
    translated = translate(read_mapping(llamafactory), str(llamafactory))
    checked = parse_recipe(with_overrides(translated.recipe, overrides), str(llamafactory))
    return Chosen(recipe=checked, file=llamafactory, notes=translated.notes, out=translated.out)


_TITLES: dict[Fate, str] = {
    "mapped": "Taken over from LLaMA-Factory",
    "ignored": "Left out, and why",
    "unknown": "Not known, and left out",
    "differs": "Different here",
}


def show_notes(notes: Sequence[Note], console: Console) -> None:
    """What became of every key, by fate, as tables that fit 80 columns; like words stand once."""
    from rich.table import Table
    from rich.text import Text

    for fate, title in _TITLES.items():
        keys: dict[str, list[str]] = {}
        for note in notes:
            if note.fate == fate:
                keys.setdefault(note.words, []).append(note.key)
        if not keys:
            continue
        table = Table(title=title, title_justify="left", show_header=False, padding=(0, 1))
        table.add_column(max_width=31)
        table.add_column()
        for words, names in keys.items():
            table.add_row(Text(", ".join(names)), Text(words))
        console.print(table)
