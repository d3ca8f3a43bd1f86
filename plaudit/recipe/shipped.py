"""The recipes that come with plaudit, and which recipe an argument names."""

from __future__ import annotations

from pathlib import Path

from plaudit.embedded import quickstart_path

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
