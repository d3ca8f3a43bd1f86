"""A saved reward model: what transformers, TRL and vLLM read, and ``plaudit.json`` beside it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from plaudit import __version__
from plaudit.errors import ModelError
from plaudit.model.load import BaseRequest, load_base, load_tokenizer, silence_load_messages
from plaudit.model.module import has_score_head
from plaudit.storage.atomic import json_text, write_json, writing
from plaudit.storage.manifest import (
    MANIFEST_FILE,
    TRAINING_FILE,
    check_model,
    rewrite_listed,
    write_model_manifest,
)
from plaudit.storage.model_files import tensor_names
from plaudit.types import Outputs, Rendering, RewardTransform, ScoredTokenRule, TrainedObjective

logger = logging.getLogger("plaudit")

FORMAT = 2
"""Version of ``plaudit.json``. Format 1 had other names for some keys: :func:`_upgraded`."""
METADATA_FILE = "plaudit.json"
ADAPTER_FILE = "adapter_model.safetensors"
BASE_FOLDER = "base"
"""Where a model folder keeps a copy of its adapter's base."""
RUN_FILES = ("recipe.yaml", "events.jsonl")
"""What a run holds from its first step on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Which output of a head with several is the reward: its number, of how many, its name."""

    index: int
    of: int
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a model that another tool trained comes from.

    ``format`` is the name of a model format; ``source_version`` the version
    whose rules it is read by; ``notes`` are the sentences that were said when it was read.
    """

    format: str
    source: str
    source_version: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureFit:
    """What ``plaudit calibrate`` fitted the temperature on, after training.

    Fingerprints of the data, and on their pairs the log loss at the temperature before and at the
    new one (cross-fitted).
    """

    fingerprints: tuple[str, ...]
    pairs: int
    prompts: int
    temperature_before: float
    log_loss_before: float
    log_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMetadata:
    """``plaudit.json``: everything about a reward model that its weights and tokenizer do not say.

    ``text`` says what it was trained on: messages through the chat template (``chat``), plain
    text with the end token added once (``text``), or both (``mixed``). ``temperature`` divides a
    reward difference before the sigmoid of :meth:`RewardModel.prefer`; None, which is 1, where none
    was measured or none is better. ``temperature_fit`` says what it was fitted on where that was
    not the run's evaluation data. ``reward_mean`` and ``reward_std`` are over the evaluation
    responses.

    ``rendering``, ``scored_token``, ``reward_transform`` and ``output`` have their defaults unless
    the model was imported; ``origin`` then says from where. An ``offset`` is also that of a model
    trained on ratings, whose rewards start at their mean. ``outputs`` is None for a head with one
    output; ``objective`` is None where nothing is known of the training.
    """

    kind: Literal["adapter", "full"]
    base: str
    base_revision: str | None
    max_length: int
    text: Literal["chat", "text", "mixed"]
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    pad_token: str
    attention: str
    attention_note: str | None
    head: Mapping[str, Any]
    temperature: float | None = None
    temperature_fit: TemperatureFit | None = None
    reward_mean: float | None = None
    reward_std: float | None = None
    data_fingerprint: str | None = None
    trust_remote_code: bool = False
    rendering: Rendering = field(default_factory=Rendering)
    scored_token: ScoredTokenRule = field(default_factory=ScoredTokenRule)
    reward_transform: RewardTransform = field(default_factory=RewardTransform)
    output: Output | None = None
    outputs: Outputs | None = None
    origin: Origin | None = None
    objective: TrainedObjective | None = None
    format: int = FORMAT
    plaudit_version: str = __version__

    @property
    def probability_temperature(self) -> float:
        """What divides a reward difference before the sigmoid: the fitted temperature, or that of
        the training loss.
        """
        of_loss = 1.0 if self.objective is None else self.objective.temperature
        return self.temperature or of_loss


# What loading and scoring rely on; the other metadata are for people.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "base": str,
    "max_length": int,
    "chat_template_kwargs": Mapping,
    "pad_token": str,
    "temperature": (int, float, type(None)),
}


def save_weights(network: Any, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Adapter and head, or the whole classifier, as safetensors.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(network, "peft_config"):
            # "auto" would ask the hub for the base's vocabulary size at every save.
            network.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
            # PEFT's blank card would claim things nobody measured; the run writes its own.
            (folder / "README.md").unlink(missing_ok=True)
        else:
            network.save_pretrained(folder, state_dict=state)


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    metadata: CheckpointMetadata,
) -> None:
    """Weights, tokenizer, ``plaudit.json`` and their manifest; the folder then loads on its own.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    write_model(folder, network, tokenizer, metadata)
    write_model_manifest(folder)


def write_model(
    folder: Path,
    network: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    metadata: CheckpointMetadata,
    state: dict[str, Any] | None = None,
) -> None:
    """Weights, tokenizer and ``plaudit.json``; the caller writes a manifest once all is there.

    ``state`` replaces the network's own tensors. Raises OutputError.
    """
    for last in (MANIFEST_FILE, METADATA_FILE):
        # Those of an earlier model would vouch for half of this one.
        (folder / last).unlink(missing_ok=True)
    save_weights(network, folder, state)
    save_tokenizer(tokenizer, folder)
    write_json(folder / METADATA_FILE, asdict(metadata))


def copy_base(base: str | Path, folder: Path) -> None:
    """Copy an adapter's base into its folder, with a manifest; a kill leaves no half of it.

    Raises OutputError.
    """
    staged = folder / f".{BASE_FOLDER}.partial"

    def copy(source: str, target: str) -> None:
        # Here, because copytree itself goes on after an OSError and reports all of them as text.
        with writing(folder / BASE_FOLDER):
            shutil.copy2(source, target)

    with writing(folder / BASE_FOLDER):
        shutil.copytree(base, staged, dirs_exist_ok=True, copy_function=copy)
    write_model_manifest(staged)
    staged.rename(folder / BASE_FOLDER)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The tokenizer files, its chat template included."""
    with writing(folder):
        tokenizer.save_pretrained(str(folder))


def write_metadata(folder: Path, metadata: CheckpointMetadata) -> None:
    """Write ``plaudit.json`` beside the other model files, and its line of the manifest."""
    rewrite_listed(folder, METADATA_FILE, json_text(asdict(metadata)))


def read_metadata(folder: Path) -> CheckpointMetadata:
    """The metadata of a saved reward model whose files are as they were written.

    Every byte of the model is read where there is a manifest, which costs what reading costs; the
    weights then come from the page cache.

    Raises:
        ModelError: no readable ``plaudit.json``, one of a newer format, or a damaged file.
    """
    check_model(folder)
    run = run_of(folder)
    check_model((folder if run is None else run) / BASE_FOLDER)
    metadata = _read_metadata_file(folder) if run is None else _metadata_of_step(folder, run)
    unfinished = _unfinished(folder, run)
    if unfinished is not None:
        logger.warning("%s %s, so it has no temperature yet.", folder, unfinished)
    return metadata


def read_objective(folder: Path) -> TrainedObjective | None:
    """What the model in ``folder`` was trained for; None where that is not recorded.

    Raises:
        ModelError: ``plaudit.json`` is damaged.
    """
    recorded = (folder / METADATA_FILE).is_file()
    return _read_metadata_file(folder).objective if recorded else None


def read_outputs(folder: Path) -> Outputs | None:
    """The outputs of the model in ``folder``; None for a head with one.

    Raises:
        ModelError: ``plaudit.json`` is damaged.
    """
    recorded = (folder / METADATA_FILE).is_file()
    return _read_metadata_file(folder).outputs if recorded else None


def _unfinished(folder: Path, run: Path | None) -> str | None:
    """What is still to come for a model of a run that has not ended."""
    if ((run or folder) / "metrics.json").is_file():
        return None
    if run is None:
        ended = (folder / TRAINING_FILE).is_file()
        return "is trained but not evaluated" if ended else None
    step = folder.resolve().name.removeprefix("checkpoint-")
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        return f"is from an unfinished run (step {step} of {state['max_steps']})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"is from an unfinished run (step {step})"


def _read_metadata_file(folder: Path) -> CheckpointMetadata:
    path = folder / METADATA_FILE
    if not folder.is_dir():
        raise ModelError(
            f"No reward model at {folder}; expected a folder that plaudit train wrote."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no {METADATA_FILE}, so it is not a finished plaudit run; expected a"
            " folder of a completed plaudit train."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); restore it from a backup.") from None
    if isinstance(raw, dict) and raw.get("format") == 1:
        raw = _upgraded(raw)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ModelError(
            f"{path} has format {raw.get('format') if isinstance(raw, dict) else raw!r}, but"
            f" plaudit {__version__} reads only formats 1 and {FORMAT}; upgrade plaudit."
        )
    known = {f.name for f in fields(CheckpointMetadata)}
    try:
        metadata = CheckpointMetadata(
            **{k: _record(k, v) for k, v in raw.items() if k in known},
        )
    except TypeError as error:
        raise ModelError(f"{path} is incomplete ({error}); restore it from a backup.") from None
    wrong = [name for name, kind in _KINDS.items() if not isinstance(getattr(metadata, name), kind)]
    if wrong:
        raise ModelError(
            f"{path} is damaged: {wrong[0]} is {getattr(metadata, wrong[0])!r}; restore it from a "
            "backup."
        )
    return metadata


def run_of(folder: Path) -> Path | None:
    """The run of a checkpoint (``RUN/checkpoints/checkpoint-N``); None for any other folder.

    Other trainers have folders of these names too: what is above must be a run of plaudit's.
    """
    folder = folder.resolve()
    run = folder.parent.parent
    inside = folder.name.startswith("checkpoint-") and folder.parent.name == "checkpoints"
    ours = any((run / name).is_file() for name in (METADATA_FILE, *RUN_FILES))
    return run if inside and ours else None


def _metadata_of_step(folder: Path, run: Path) -> CheckpointMetadata:
    """A checkpoint's metadata, its base where the run is now. Nothing was measured on it.

    Raises:
        ModelError: the checkpoint has no manifest: it is half-written or damaged.
    """
    if not any((folder / name).is_file() for name in (MANIFEST_FILE, "complete")):
        raise ModelError(
            f"{folder} is not a complete checkpoint (it has no {MANIFEST_FILE}); choose another"
            " checkpoint of the run."
        )
    # plaudit 0.1.0 kept the metadata of all checkpoints in the run, from its end on.
    metadata = _read_metadata_file(folder if (folder / METADATA_FILE).is_file() else run)
    return replace(
        metadata,
        base=resolve_base(run, metadata, None),
        temperature=None,
        temperature_fit=None,
        reward_mean=None,
        reward_std=None,
    )


_RECORDS: dict[str, type] = {
    "rendering": Rendering,
    "scored_token": ScoredTokenRule,
    "reward_transform": RewardTransform,
    "output": Output,
    "origin": Origin,
    "temperature_fit": TemperatureFit,
    "objective": TrainedObjective,
    "outputs": Outputs,
}


def _upgraded(raw: dict[str, Any]) -> dict[str, Any]:
    """Format 1 under the names of today; a key that stayed unread would change the scores."""
    names = {"reading": "scored_token", "affine": "reward_transform"}
    found = {names.get(key, key): value for key, value in raw.items()} | {"format": FORMAT}
    if isinstance(origin := found.get("origin"), dict) and "era" in origin:
        rest = {key: value for key, value in origin.items() if key != "era"}
        found["origin"] = rest | {"source_version": origin["era"]}
    return found


def _record(name: str, value: Any) -> Any:
    """The record that a mapping of ``plaudit.json`` stands for.

    Raises:
        TypeError: its keys are not the record's.
    """
    if name not in _RECORDS or value is None:
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{name} is {value!r}")
    return _RECORDS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})


def resolve_base(folder: Path, metadata: CheckpointMetadata, moved_to: str | None) -> str:
    """Where the base of an adapter is now: named by the caller, beside it, or as recorded."""
    if moved_to is not None:
        return moved_to
    beside = folder / BASE_FOLDER
    return str(beside) if (beside / "config.json").is_file() else metadata.base


def own_tokenizer(folder: Path, metadata: CheckpointMetadata) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a reward model.

    Raises:
        ModelError: it is not there.
    """
    return load_tokenizer(
        str(folder),
        revision=None,
        trust_remote_code=metadata.trust_remote_code,
        pad_token=metadata.pad_token,
    )


def load_network(
    folder: Path, metadata: CheckpointMetadata, *, dtype: torch.dtype, base: str | None = None
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The classifier and tokenizer of a saved reward model, its head as it was saved.

    Raises:
        ModelError: weights, base or tokenizer are missing or do not fit each other.
    """
    tokenizer = own_tokenizer(folder, metadata)
    source = str(folder) if metadata.kind == "full" else resolve_base(folder, metadata, base)
    request = BaseRequest(
        base=source,
        revision=None if metadata.kind == "full" else metadata.base_revision,
        dtype=dtype,
        trust_remote_code=metadata.trust_remote_code,
        outputs=() if metadata.outputs is None else metadata.outputs.names,
    )
    assert isinstance(tokenizer.pad_token_id, int)
    loaded = load_base(request, pad_id=tokenizer.pad_token_id)
    if metadata.kind == "adapter":
        return _attach_adapter(loaded.network, folder), tokenizer
    if metadata.outputs is not None and loaded.fresh_head:
        raise ModelError(
            f"{folder} has no head with the {len(metadata.outputs.names)} outputs that its"
            f" {METADATA_FILE} names; restore it from a backup."
        )
    return loaded.network, tokenizer


def _attach_adapter(network: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftModel, get_peft_model_state_dict

    if not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} has no adapter_config.json, so its adapter cannot be loaded; restore it "
            "from a backup."
        )
    stored = check_adapter_head(network, folder)
    try:
        with silence_load_messages():
            model = PeftModel.from_pretrained(network, str(folder))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"The adapter in {folder} does not fit its base ({str(error).splitlines()[0][:200]});"
            " set the base it was trained on with --base."
        ) from None
    # PEFT only warns of tensors that are not there, and they would be as good as untrained.
    absent = sorted(set(get_peft_model_state_dict(model, save_embedding_layers=False)) - stored)
    if absent:
        raise ModelError(
            f"{folder / ADAPTER_FILE} lacks {len(absent)} of the adapter's tensors (first:"
            f" {absent[0]}); restore it from a backup, or set the right base with --base."
        )
    return model


def check_adapter_head(network: nn.Module, folder: Path) -> set[str]:
    """An adapter without its head would score with a random one and say nothing.

    Returns the names of the adapter's tensors.

    Raises:
        ModelError: no adapter file, or no head in it.
    """
    path = folder / ADAPTER_FILE
    head = "score" if has_score_head(network) else "classifier"
    if not path.is_file():
        raise ModelError(f"{folder} has no {ADAPTER_FILE}; the weights were not saved.")
    keys = set(tensor_names(path))
    if not any(f".{head}." in key and "lora_" not in key for key in keys):
        raise ModelError(
            f"{path} has no {head} head, so it cannot compute rewards; save the adapter again"
            f" with modules_to_save=[{head!r}]."
        )
    return keys
