"""Reading what a run recorded, and how recorded numbers are written for people."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from plaudit import __version__
from plaudit.errors import DataError

METRICS_FILE = "metrics.json"
MISTAKES_FILE = "mistakes.jsonl"
"""The texts of the most confident mistakes, beside ``metrics.json``."""

PLOTS_FOLDER = "plots"
TEMPLATES = Path(__file__).parent / "templates"
NOTHING = "–"
"""Stands where a number does not exist."""

_FORMAT = 1
_SECTIONS = ("run", "data", "train", "environment")


def read_metrics(folder: Path) -> dict[str, Any]:
    """The facts of a finished training run.

    Raises DataError when the folder has no ``metrics.json``, or one that is broken, of a newer
    format or without the sections of a run.
    """
    found = read_recorded(folder)
    missing = [name for name in _SECTIONS if not isinstance(found.get(name), dict)]
    if missing:
        raise DataError(
            f"{folder / METRICS_FILE} lacks {', '.join(missing)}; expected the metrics of a "
            "training run, written by plaudit train."
        )
    return found


def read_recorded(folder: Path) -> dict[str, Any]:
    """The facts of a run or of an evaluation.

    Raises DataError when the folder has no ``metrics.json``, or one that is broken or of another
    format.
    """
    path = folder / METRICS_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"Cannot read {path} ({error.strerror or error}); give the folder of a finished run."
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); it is written at the end of a run, so run again "
            "or restore it."
        ) from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        stated = found.get("format") if isinstance(found, dict) else None
        raise DataError(
            f"{path} has format {stated!r}, expected {_FORMAT}; use the version of plaudit that "
            "wrote it, or a newer one."
        )
    return found


def read_recalibration(folder: Path) -> dict[str, Any] | None:
    """What ``plaudit calibrate`` stored in ``plaudit.json`` after training, with the temperature.

    None where it was not run, or where there is no such file (the folder of an evaluation).

    Raises DataError when the file cannot be read.
    """
    path = folder / "plaudit.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path} ({error}); restore it from a backup.") from error
    fit: dict[str, Any] | None = facts.get("temperature_fit")
    return None if fit is None else {**fit, "temperature": facts["temperature"] or 1.0}


def shown_evaluation(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The evaluation that a single picture is drawn of: the test data, which chose nothing."""
    found: dict[str, Any] | None = metrics.get("test") or metrics.get("eval")
    return found


def evaluations(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The evaluation blocks there are: ``eval`` (which has the history) first, then ``test``."""
    return [metrics[name] for name in ("eval", "test") if metrics.get(name)]


def hub_datasets(metrics: Mapping[str, Any], split: str | None = None) -> list[str]:
    """Hub ids among the sources, in order, each once; of one split where it is named."""
    ids = [
        source["path"]
        for source in metrics["data"]["sources"]
        if is_hub_source(source) and split in (None, source.get("split"))
    ]
    return list(dict.fromkeys(ids))


def is_hub_source(source: Mapping[str, Any]) -> bool:
    """Whether a source was read from the Hub: its fingerprint is then the Hub's."""
    return str(source.get("fingerprint") or "").startswith(("revision:", "datasets:"))


def shown_base(run: Mapping[str, Any]) -> str:
    """The base as readers elsewhere may see it: of a local folder, its name alone."""
    base: str = run["base"]
    return base if run["base_is_hub_id"] else _last_part(base)


def shown_path(source: Mapping[str, Any]) -> str:
    """A Hub id, or the last part of a local path: folders of one machine help nobody else."""
    path: str = source["path"]
    return path if is_hub_source(source) else _last_part(path)


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or path


def fraction(value: float | None) -> str:
    """Four decimals, as the training-results table of a card has them."""
    return NOTHING if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    """A difference: four decimals and its sign."""
    return NOTHING if value is None else f"{value:+.4f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}%"


def points(value: float | None) -> str:
    """Percent with one decimal and no sign, as leaderboards print benchmark suites."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def percent_interval(ends: Sequence[float] | None) -> str:
    return NOTHING if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def probability(value: float | None) -> str:
    """A p-value: four decimals, and no zero."""
    return NOTHING if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def interval(ends: Sequence[float] | None) -> str:
    return NOTHING if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def signed_interval(ends: Sequence[float] | None) -> str:
    return NOTHING if ends is None else f"{signed(ends[0])} to {signed(ends[1])}"


def count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def number(value: Any) -> str:
    """Any recorded setting, in its shortest exact form."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(number(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={number(item)}" for key, item in value.items())
    return str(value)


def drops(reasons: Mapping[str, int]) -> str:
    """Dropped rows by reason."""
    return ", ".join(f"{words(name)} {count(rows)}" for name, rows in reasons.items()) or "none"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds."""
    return NOTHING if seconds is None else str(timedelta(seconds=round(seconds)))


def rate(value: float | None) -> str:
    """Two decimals: pairs a second."""
    return NOTHING if value is None else f"{value:.2f}"


def words(name: str) -> str:
    """A recorded key as words: ``bag_of_words`` to ``bag of words``."""
    return str(name).replace("_", " ")


FORMATS = {
    "fraction": fraction,
    "percent": percent,
    "points": points,
    "percent_interval": percent_interval,
    "interval": interval,
    "probability": probability,
    "signed": signed,
    "signed_interval": signed_interval,
    "count": count,
    "number": number,
    "drops": drops,
    "duration": duration,
    "path": shown_path,
    "rate": rate,
    "words": words,
}
"""Template filters, by name."""


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
