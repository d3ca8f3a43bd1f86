"""Fit a saved model's temperature on labelled data, and store it where that is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from plaudit.data.load import LoadedComparisons, load_comparisons
from plaudit.errors import DataError, ModelError
from plaudit.evaluate_model import OpenOptions, as_sources, data_use, open_model, score_comparisons
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.calibration import (
    FittedTemperature,
    beyond_noise,
    cross_fit,
    improvement,
)
from plaudit.evaluation.numbers import counted, metric
from plaudit.evaluation.schema import METRICS_FILE, DataUse, Interval
from plaudit.evaluation.table import Pairs, pairs
from plaudit.model.checkpoint import (
    METADATA_FILE,
    CheckpointMetadata,
    TemperatureFit,
    read_metadata,
    run_of,
    write_metadata,
)
from plaudit.recipe.load import RUN_RECIPE
from plaudit.recipe.schema import Source
from plaudit.report.card import write_card
from plaudit.report.html import REPORT_FILE, write_report
from plaudit.storage.manifest import TRAINING_FILE
from plaudit.types import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class AtTemperature:
    """A temperature, and log loss and ECE of the probabilities at it; cross-fitted where new."""

    temperature: float
    log_loss: float
    ece: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """The stored temperature on ``pairs`` pairs before, and the one that these pairs call for.

    ``after`` is 1 where no fitted temperature is significantly better than 1. ``gain`` is the
    decrease of the log loss from ``before`` to ``after`` (``calibration.improvement``). ``stored``:
    the decrease is significant, and the model has the new temperature. ``data`` counts the rows;
    ``dtype`` is the precision of the body that scored them.
    """

    model: str
    dtype: str
    pairs: int
    prompts: int
    before: AtTemperature
    after: AtTemperature
    gain: float
    gain_ci95: Interval | None
    stored: bool
    sentence: str
    data: DataUse


def calibrate(
    model: str | Path,
    data: str | Path | Source | Sequence[str | Path | Source],
    options: OpenOptions = OpenOptions(),
    *,
    console: Console | None = None,
) -> Recalibration:
    """Fit the temperature of a plaudit folder on labelled comparisons that it was not trained on.

    Where the log loss falls significantly, ``plaudit.json`` is rewritten atomically, with what was
    fitted on; then card and report, which say that their numbers are of the temperature before.

    Raises:
        ModelError: no folder of plaudit's, or a checkpoint, which has no temperature of its own.
        DataError: nothing to fit on, or the model's training data.
        OutputError: ``plaudit.json`` cannot be written, and the folder is left as it was; or card
            or report cannot, and the new temperature is stored.
    """
    console = Console(quiet=True) if console is None else console
    folder = Path(model)
    check_plaudit_folder(folder)
    metadata = read_metadata(folder)
    loaded = load_comparisons(as_sources(data), seed=options.seed)
    _check_unseen(metadata, loaded)
    reward_model = open_model(folder, console, options)
    _, held_out, skipped = score_comparisons(
        reward_model, loaded.comparisons, console, name=str(model)
    )
    paired = pairs(held_out.table)
    if not len(paired):
        raise DataError(
            "The comparisons have no two responses with different grades, so no temperature can"
            " be fitted; use labelled comparisons."
        )
    result = recalibrate(
        paired,
        metadata.probability_temperature,
        model=str(model),
        dtype=reward_model.dtype,
        data=data_use(loaded, skipped),
        seed=options.seed,
    )
    if result.stored:
        _store(folder, metadata, result, loaded)
    return result


def check_plaudit_folder(folder: Path) -> None:
    """Say before anything is loaded that a temperature cannot be stored there.

    Raises:
        ModelError: it is a checkpoint, an unfinished run, or no folder with a ``plaudit.json``.
    """
    run = run_of(folder) if folder.is_dir() else None
    if run is not None and not (run / METRICS_FILE).is_file():
        raise ModelError(
            f"{folder} is a checkpoint of an unfinished run, and only a finished run has a"
            f" temperature; finish it with plaudit train {run} --resume, which fits one."
        )
    if run is not None:
        raise ModelError(
            f"{folder} is a checkpoint, and only its run has a temperature; calibrate {run}."
        )
    if not (folder / METADATA_FILE).is_file() and (folder / RUN_RECIPE).is_file():
        raise ModelError(
            f"The training of {folder} has not finished, so there is no model to calibrate;"
            f" finish the run with plaudit train {folder} --resume, which fits a temperature."
        )
    if (folder / TRAINING_FILE).is_file():
        raise ModelError(
            f"The evaluation of {folder} has not finished; finish it with plaudit train {folder}"
            " --resume, which fits a temperature."
        )
    if not (folder / METADATA_FILE).is_file():
        raise ModelError(
            f"{folder} is not a plaudit model folder (no {METADATA_FILE}), so a temperature"
            " cannot be stored; download a plaudit model with plaudit pull, or convert another"
            " model with plaudit import, and calibrate that folder."
        )


def _check_unseen(metadata: CheckpointMetadata, loaded: LoadedComparisons) -> None:
    trained_on = (metadata.data_fingerprint or "").split("+")
    for source in loaded.sources:
        # A revision of a Hub data set stands for all its splits.
        if source.fingerprint in trained_on and not source.fingerprint.startswith("revision:"):
            raise DataError(
                f"{source.path} is training data of this model, so the fitted temperature would"
                " be too low; calibrate on new data."
            )


def recalibrate(
    paired: Pairs,
    current: float,
    *,
    model: str,
    dtype: str,
    data: DataUse,
    seed: int = 0,
) -> Recalibration:
    """The verdict on pairs at hand; nothing is stored."""
    fitted = cross_fit(paired.delta_P, paired.group_P, seed=seed)
    temperature, after_P = 1.0, paired.delta_P
    if fitted.accepted is not None and fitted.delta_P is not None:
        temperature, after_P = fitted.accepted, fitted.delta_P
    before_P = paired.delta_P / current
    gain = improvement(before_P, after_P, paired.group_P)
    before, after = _at(current, before_P), _at(temperature, after_P)
    stored = beyond_noise(gain)
    return Recalibration(
        model=model,
        dtype=dtype,
        pairs=len(paired),
        prompts=gain.groups,
        before=before,
        after=after,
        gain=gain.mean,
        gain_ci95=gain.interval,
        stored=stored,
        sentence=_sentence(before, after, fitted, stored, gain),
        data=data,
    )


def _at(temperature: float, delta_P: FloatArray) -> AtTemperature:
    curve = pairwise.reliability_equal_width(
        pairwise.confidences(delta_P), pairwise.pair_credits(delta_P)
    )
    return AtTemperature(
        temperature=temperature,
        log_loss=pairwise.nll(delta_P),
        ece=pairwise.expected_calibration_error(curve),
    )


def _sentence(
    before: AtTemperature,
    after: AtTemperature,
    fitted: FittedTemperature,
    stored: bool,
    gain: pairwise.PairedDifference,
) -> str:
    on = f"{counted(gain.pairs, 'pair')} of {counted(gain.groups, 'prompt')}"
    if stored:
        how = "cross-fitted" if after.temperature != 1.0 else "uncalibrated"
        return (
            f"The temperature is now {after.temperature:.4g} (before: {before.temperature:.4g})."
            f" On {on}, log loss goes from {before.log_loss:.4f} to {after.log_loss:.4f} and ECE"
            f" from {metric(before.ece)} to {metric(after.ece)} ({how})."
        )
    stays = f"The temperature stays {before.temperature:.4g}"
    if fitted.temperature is None or fitted.delta_P is None:
        return f"{stays}: {fitted.note} ({on})."
    return (
        f"{stays}: on {on} its log loss is {before.log_loss:.4f}; the fitted temperature"
        f" ({fitted.temperature:.4g}) has log loss {pairwise.nll(fitted.delta_P):.4f}"
        " (cross-fitted), which is not significantly better."
    )


def _store(
    folder: Path, metadata: CheckpointMetadata, result: Recalibration, loaded: LoadedComparisons
) -> None:
    fit = TemperatureFit(
        fingerprints=tuple(source.fingerprint for source in loaded.sources),
        pairs=result.pairs,
        prompts=result.prompts,
        temperature_before=result.before.temperature,
        log_loss_before=result.before.log_loss,
        log_loss=result.after.log_loss,
    )
    new = None if result.after.temperature == 1.0 else result.after.temperature
    write_metadata(folder, replace(metadata, temperature=new, temperature_fit=fit))
    if (folder / METRICS_FILE).is_file():
        write_card(folder)
        if (folder / REPORT_FILE).is_file():
            write_report(folder)
