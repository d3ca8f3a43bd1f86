"""What a run needs beside its recipe: files, libraries, folders of trackers. Loads no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from plaudit.data.load import check_source
from plaudit.errors import PlauditError, RecipeError, nearest
from plaudit.recipe.schema import Recipe
from plaudit.storage.atomic import missing_path
from plaudit.training.folder import RunFolder


class Library(NamedTuple):
    """A library that is not a dependency: its module, and what pip installs it as.

    ``other`` is a module that does as well.
    """

    module: str
    package: str
    other: str | None = None

    @property
    def installed(self) -> bool:
        modules = (self.module, self.other)
        return any(name is not None and find_spec(name) is not None for name in modules)


LOGGERS: Final[dict[str, Library | None]] = {
    "azure_ml": Library("azureml", "azureml-mlflow"),
    "clearml": Library("clearml", "clearml"),
    "codecarbon": Library("codecarbon", "codecarbon"),
    "comet_ml": Library("comet_ml", "comet_ml"),
    "dagshub": Library("dagshub", "dagshub"),
    "dvclive": Library("dvclive", "dvclive"),
    "flyte": Library("flytekit", "flytekit"),
    "kubeflow": None,
    "mlflow": Library("mlflow", "mlflow"),
    "neptune": Library("neptune", "neptune"),
    "swanlab": Library("swanlab", "swanlab"),
    "tensorboard": Library("tensorboard", "tensorboard", "tensorboardX"),
    "trackio": Library("trackio", "trackio"),
    "wandb": Library("wandb", "wandb"),
}
"""What ``train.report_to`` may name, and the library that each takes."""

OPTIMIZERS: Final[dict[str, Library]] = {
    r"adamw_torch_[48]bit": Library("torchao", "torchao"),
    r"paged_|adamw_bnb|adamw_8bit|ademamix|lion_|rmsprop_bnb": Library(
        "bitsandbytes", "'plaudit[gpu]'"
    ),
    r"galore_": Library("galore_torch", "galore-torch"),
    r"apollo_": Library("apollo_torch", "apollo-torch"),
    r"(ada)?lomo": Library("lomo_optim", "lomo-optim"),
    r"grokadamw": Library("grokadamw", "grokadamw"),
    r"schedule_free_": Library("schedulefree", "schedulefree"),
    r"stable_adamw": Library("optimi", "torch-optimi"),
}
"""Prefixes of names in ``train.optim`` (regular expressions) that take a library."""


def check_needs(recipe: Recipe) -> None:
    """Whether the files that a recipe names are there and the libraries are installed.

    Raises:
        RecipeError: all that is missing, with what to do about each.
    """
    problems = [*_missing_files(recipe), *_missing_libraries(recipe)]
    if problems:
        raise RecipeError(*problems)


def _missing_files(recipe: Recipe) -> Iterator[str]:
    missing = missing_path(recipe.model.base)
    if missing is not None:
        yield f"model.base: {missing}; expected a model folder or a Hub id."
    for role in ("train", "eval", "test"):
        for source in getattr(recipe.data, role):
            try:
                check_source(source)
            except PlauditError as error:
                yield f"data.{role}: {error}"
    if recipe.tokens.chat_template is not None:
        try:
            read_template(recipe.tokens.chat_template)
        except RecipeError as error:
            yield str(error)
    deepspeed = recipe.train.get("deepspeed")
    if isinstance(deepspeed, str) and deepspeed.endswith(".json") and not Path(deepspeed).is_file():
        yield (
            f"train.deepspeed: {deepspeed} does not exist; expected the path of a DeepSpeed"
            " configuration."
        )


def _missing_libraries(recipe: Recipe) -> Iterator[str]:
    train = recipe.train
    named: dict[str, Library | None] = {}
    for name in _loggers(train.get("report_to")):
        if name not in LOGGERS:
            guess = nearest(name, LOGGERS)
            end = f"did you mean {guess}?" if guess else f"expected one of {', '.join(LOGGERS)}."
            yield f"train.report_to: unknown integration {name}; {end}"
        named[f"report_to: {name}"] = LOGGERS.get(name)
    optimizer = str(train.get("optim"))
    named[f"optim: {optimizer}"] = next(
        (row for start, row in OPTIMIZERS.items() if re.match(start, optimizer)), None
    )
    if train.get("deepspeed"):
        named["deepspeed"] = Library("deepspeed", "deepspeed")
    if train.get("use_liger_kernel"):
        named["use_liger_kernel"] = Library("liger_kernel", "'plaudit[gpu]'")
    for key, library in named.items():
        if library is not None and not library.installed:
            yield (
                f"train.{key} needs {library.module}, which is not installed; run pip install"
                f" {library.package}"
            )


def _loggers(report_to: object) -> list[str]:
    names = report_to if isinstance(report_to, list) else [report_to]
    return [str(name) for name in names if name not in (None, "none", "all")]


# ---- where trackers write

TRACKER_FOLDERS: Final = {
    "tensorboard": ("TENSORBOARD_LOGGING_DIR", "tensorboard"),
    # It adds a folder of its own name.
    "wandb": ("WANDB_DIR", "."),
    "swanlab": ("SWANLAB_LOG_DIR", "swanlab"),
}
"""Tracker to the variable that it reads and its place in the run's ``logs``.

By themselves they write beside the checkpoints, which may be deleted after training, or into the
current folder.
"""


@contextmanager
def logging_into(folder: RunFolder, trackers: Sequence[str]) -> Iterator[None]:
    """Trackers of this run write into its ``logs``, unless the user has set their variable."""
    ours = {}
    for tracker in trackers:
        variable, place = TRACKER_FOLDERS.get(tracker, ("", ""))
        if variable and variable not in os.environ:
            ours[variable] = folder.logs / place
    for path in ours.values():
        # wandb takes a temporary folder where its own does not exist.
        path.mkdir(parents=True, exist_ok=True)
    os.environ.update({variable: str(path.resolve()) for variable, path in ours.items()})
    try:
        yield
    finally:
        for variable in ours:
            os.environ.pop(variable, None)


def read_template(path: Path) -> str:
    """The text of a jinja chat template file.

    Raises:
        RecipeError: the file is missing or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = (
            f"no file at {path}"
            if isinstance(error, FileNotFoundError)
            else f"{path} cannot be read as text ({error})"
        )
        raise RecipeError(
            f"tokens.chat_template: {problem}; expected the path of a Jinja chat template."
        ) from None
