"""What card, report and plots share: templates, recalibration, sources, the environment."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import ValidationError

from plaudit import __version__
from plaudit.data.load import SourceUse
from plaudit.errors import DataError, printable
from plaudit.evaluation.numbers import FORMATS, NOTHING, metric, setting, signed, words
from plaudit.evaluation.schema import (
    EvaluationMetrics,
    RecordedEvaluation,
    RunInfo,
    RunMetrics,
    UncertaintyScore,
    adapter,
    first_mistake,
)
from plaudit.recipe.objectives import ITEMS, OBJECTIVES

if TYPE_CHECKING:
    from jinja2 import Environment

MISTAKES_FILE = "mistakes.jsonl"
"""The texts of the most confident mistakes, beside ``metrics.json``."""

PLOTS_FOLDER = "plots"
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """The temperature that ``plaudit calibrate`` stored after training, and what it changed."""

    temperature: float
    pairs: int
    prompts: int
    log_loss_before: float
    log_loss: float


def template_environment(
    finalize: Callable[[Any], Any] | None = None, *, autoescape: bool = True
) -> Environment:
    """Templates with the formats of numbers; ``finalize`` sees every value before it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=autoescape,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        FORMATS,
        path=shown_path,
        loss_name=loss_name,
        reward_meaning=reward_meaning,
        outputs_in_words=outputs_in_words,
        is_sum_of_named=is_sum_of_named,
        expected_rating=expected_rating,
        interval_method=INTERVAL_METHODS.get,
    )
    return environment


INTERVAL_METHODS: Final[Mapping[str | None, str]] = {
    "wilson": "Wilson",
    "bootstrap_by_prompt": "bootstrap over prompts",
    "wilson_over_prompts": "Wilson over prompts",
    None: NOTHING,
}
"""How the interval of an accuracy was made."""


def loss_name(loss: str) -> str:
    """The name of a loss as papers write it."""
    return _LOSS_NAMES.get(loss, words(loss))


_LOSS_NAMES: Final[Mapping[str, str]] = {
    "bradley_terry": "Bradley-Terry",
    "rao_kupper": "Rao-Kupper",
    "davidson": "Davidson",
    "plackett_luce": "Plackett-Luce",
    "listnet": "ListNet",
    "mse": "MSE",
    "huber": "Huber",
    "bce": "binary cross-entropy",
}


def reward_meaning(loss: str) -> str:
    """What the reward of a model of single responses stands for, behind "returns one number"."""
    meant = {
        "mse": "the rating that it expects",
        "huber": "the rating that it expects",
        "bce": "the log-odds that the response is good",
    }.get(loss)
    return "" if meant is None else f", {meant}"


def expected_rating(loss: str) -> str:
    """How the rating that a model expects follows from its reward."""
    return {
        "bce": "the probability of a good response, σ(r)",
        "ordinal": "the mean of the levels under the model",
    }.get(loss, "the reward")


class LossInWords(NamedTuple):
    """What a run's loss is, ``before`` its formula and ``after`` it."""

    before: str
    after: str


def loss_in_words(run: RunInfo) -> LossInWords | None:
    """What card and report say of a run's objective; None where none is recorded."""
    objective = run.objective
    if objective is None:
        return None
    sentences = [f"where {objective.where}."]
    if objective.outputs is not None and not objective.outputs.ensemble:
        sentences.append(
            "Each output learns it from the labels of its name, in place of the reward."
        )
    if objective.options:
        options = ", ".join(f"{name} {setting(value)}" for name, value in objective.options.items())
        sentences.append(f"Options that differ from their defaults: {options}.")
    if objective.learned:
        learned = "; ".join(
            f"{name} {', '.join(map(metric, values))}" for name, values in objective.learned.items()
        )
        sentences.append(f"Learned with the model: {learned}.")
    if objective.offset:
        sentences.append(
            f"plaudit adds {signed(objective.offset, 3)} to every reward; plain transformers"
            " returns rewards without it, in the same order."
        )
    row = OBJECTIVES.get(run.loss)
    item = ITEMS[objective.family] if row is None else row.item
    return LossInWords(
        before=f"The training loss is {loss_name(run.loss)}. Source: {objective.source}."
        f" For one {item} it is",
        after=" ".join(sentences),
    )


SCORES: Final[Mapping[UncertaintyScore, str]] = {
    "spread": "spread over heads",
    "relative_spread": "spread over size of the difference",
    "margin": "size of the difference alone",
}
"""What may tell which pairs are ranked wrongly."""


MOST_OUTPUTS: Final = 5
"""Outputs of the head in the card."""


def outputs_in_words(run: RunInfo) -> str | None:
    """What the outputs of a run's head are and how they make the reward; None for one output."""
    outputs = None if run.objective is None else run.objective.outputs
    if outputs is None:
        return None
    count = len(outputs.names)
    if outputs.ensemble:
        return (
            f"The head has {count} outputs, {outputs.names[0]} to {outputs.names[-1]}, that all"
            " learn the reward, each from a bootstrap sample of its own. The reward is their mean,"
            " and their standard deviation is its uncertainty."
        )
    terms = [
        f"{'−' if weight < 0 else '+'} {abs(weight):.3g} × {printable(name, 40)}"
        for name, weight in zip(outputs.names, outputs.weights, strict=True)
    ]
    more = f" and {count - MOST_OUTPUTS} more" if count > MOST_OUTPUTS else ""
    return (
        f"The head has {count} outputs, each of which learns the labels of its name. The reward is"
        f" their weighted sum: {' '.join(terms[:MOST_OUTPUTS]).removeprefix('+ ')}{more}."
    )


def is_sum_of_named(run: RunInfo) -> bool:
    """Whether the reward is a weighted sum of named outputs, and so no rating by itself."""
    outputs = None if run.objective is None else run.objective.outputs
    return outputs is not None and not outputs.ensemble


def learned_from(metrics: RunMetrics) -> str:
    """What a run was trained on, as the noun behind a count."""
    objective = metrics.run.objective
    if objective is None or objective.family != "pointwise":
        return "preference comparison"
    return "labelled comparison" if metrics.train.pairs else "rated response"


def read_recalibration(folder: Path) -> Recalibration | None:
    """What ``plaudit calibrate`` stored in ``plaudit.json`` after training.

    None where it was not run, or where there is no such file (the folder of an evaluation).

    Raises DataError when the file cannot be read.
    """
    path = folder / "plaudit.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path} ({error}); restore it from a backup.") from error
    fit = metadata.get("temperature_fit")
    if fit is None:
        return None
    try:
        recalibration: Recalibration = adapter(Recalibration).validate_python(
            {**fit, "temperature": metadata["temperature"] or 1.0}
        )
    except ValidationError as error:
        raise DataError(f"{path} is damaged: {first_mistake(error)}. Restore it.") from None
    return recalibration


def shown_evaluation(metrics: RunMetrics | RecordedEvaluation) -> EvaluationMetrics | None:
    """The evaluation that a single picture is drawn of: the test data, which chose nothing."""
    return (metrics.test or metrics.eval) if isinstance(metrics, RunMetrics) else metrics.eval


def evaluations(metrics: RunMetrics | RecordedEvaluation) -> list[EvaluationMetrics]:
    """The evaluations there are: ``eval`` (which has the history) first, then ``test``."""
    test = metrics.test if isinstance(metrics, RunMetrics) else None
    return [block for block in (metrics.eval, test) if block is not None]


def hub_datasets(metrics: RunMetrics, split: str | None = None) -> list[str]:
    """Hub ids among the sources, in order, each once; of one split where it is named."""
    ids = [
        source.path
        for source in metrics.data.sources
        if is_hub_source(source) and split in (None, source.split)
    ]
    return list(dict.fromkeys(ids))


def is_hub_source(source: SourceUse) -> bool:
    """Whether a source was read from the Hub: its fingerprint is then the Hub's."""
    return source.fingerprint.startswith(("revision:", "datasets:"))


def shown_base(run: RunInfo) -> str:
    """The base as readers elsewhere may see it: of a local folder, its name alone."""
    return run.base if run.base_is_hub_id else _last_part(run.base)


def shown_path(source: SourceUse) -> str:
    """A Hub id, or the last part of a local path: folders of one machine help nobody else."""
    return source.path if is_hub_source(source) else _last_part(source.path)


def without_controls(value: object) -> str:
    """Any text with spaces in place of line breaks and of what cannot be seen."""
    return "".join(char if char.isprintable() else " " for char in str(value))


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or path


PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "scikit-learn",
)


def describe_environment(device: str) -> dict[str, str]:
    """Versions by package name, Python, the platform and the device computed on."""
    found = {"plaudit": __version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "platform": platform.platform(), "device": device}
