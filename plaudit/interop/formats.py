"""Formats of reward models: what a reader and an exporter are, and how a folder is recognised.

To add one, write a recogniser and an opener and name their :class:`Format` in the registry; the
first that recognises a folder opens it.
"""

from __future__ import annotations

import logging
import pickle
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from plaudit import registry
from plaudit.errors import ModelError
from plaudit.model.checkpoint import (
    METADATA_FILE,
    RUN_FILES,
    CheckpointMetadata,
    load_network,
    own_tokenizer,
    read_metadata,
    run_of,
)
from plaudit.model.load import LIBRARY_ERRORS, first_line
from plaudit.model.precision import torch_dtype
from plaudit.storage.atomic import missing_path
from plaudit.storage.model_files import read_json, tensor_names
from plaudit.types import Comparison, RewardTransform, WeightDtype

logger = logging.getLogger("plaudit")

WEIGHTS = ("model", "pytorch_model")
ADAPTER = ("adapter_model",)
VALUE_HEAD = ("value_head",)

_VERSION = re.compile(r"^- (PEFT|Transformers|TRL):? ([0-9][\w.]*)", re.MULTILINE)


OWN_CODE_HEADS = ("v_head.", "score.0.", "reward_head.")
"""Heads that only a model's own class computes: InternLM2's, Qwen2.5-Math's and the like."""
FETCHED = (
    *("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.yaml", "*.py"),
    *("README.md", "adapter_model.bin", "value_head.bin"),
)
PICKLED = ("pytorch_model*.bin",)
NOT_FETCHED = ("checkpoint*/*", "runs/*", "original/*", "plots/*", "evaluations/*")


# ---- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a reward model's files are read, where they leave something open.

    ``base`` is the path or Hub id of an adapter's base model. ``trust_remote_code`` runs Python
    that comes with a model. The others are about models of other tools: ``source_version`` is the
    version that trained it (LLaMA-Factory's for its own folders, transformers' for sequence
    classifiers), ``template`` LLaMA-Factory's template, ``output`` the number of the output that is
    the reward, ``text`` what it was trained on. Without ``normalize`` a mean and a standard
    deviation beside the weights are left out.
    """

    base: str | None = None
    trust_remote_code: bool = False
    source_version: str | None = None
    template: str | None = None
    output: int | None = None
    text: Literal["chat", "text"] | None = None
    normalize: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A model folder as recognisers and readers see it; None stands for a file that is not there.

    ``source`` is the folder or Hub id as the user named it, ``options`` how it is to be read.
    """

    folder: Path
    source: str
    options: ReadOptions
    config: Mapping[str, Any] | None
    adapter: Mapping[str, Any] | None
    names: frozenset[str]
    value_head: Path | None
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A recognised reward model: metadata and tokenizer now, weights when ``build`` is called.

    ``build`` gives a transformers sequence classifier with one output, a PEFT adapter around it
    where there is one.
    """

    metadata: CheckpointMetadata
    tokenizer: PreTrainedTokenizerBase
    build: Callable[[torch.dtype], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format: its name, whether a folder has it, and how such a folder is opened."""

    name: str
    recognises: Callable[[Contents], bool]
    open: Callable[[Contents], OpenedModel]


# ---- writing ------------------------------------------------------------------------------------

Ids: TypeAlias = Sequence[int]
"""One encoded conversation, up to the token that is scored."""

Scorer: TypeAlias = Callable[[Sequence[Ids]], list[float]]
"""A reloaded model: one score per conversation, by the rules of the tool it was written for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How an export is written.

    ``dtype`` is that of every tensor but the head, which stays fp32. ``peft_config`` names the PEFT
    release that must read ``adapter_config.json``, None for the installed one. ``normalize`` asks
    for (reward - mean) / std of the evaluation rewards where the layout can say so.
    """

    dtype: WeightDtype = "float32"
    max_shard_size: str = "5GB"
    peft_config: str | None = None
    normalize: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch_dtype(self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exportable:
    """A reward model as it will be written: fp32, its values those that ``dtype`` can hold.

    ``network`` is PEFT's wrapper or the classifier alone. The scale of an imported model is folded
    into its head; ``offset`` is what its reward has on top of the head's output and its own bias.
    ``base`` is where an adapter's base is loaded from, and ``base_named`` what the written files
    call it.
    """

    network: Any
    tokenizer: PreTrainedTokenizerBase
    metadata: CheckpointMetadata
    base: str
    base_named: str
    offset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """What became of the reward: the tool's score is ``transform`` of it.

    ``notes`` are sentences about what the layout could not hold, ``serving`` options that a server
    needs for it.
    """

    transform: RewardTransform = field(default_factory=RewardTransform)
    notes: tuple[str, ...] = ()
    serving: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """An exporter, found in the registry by the name that ``--to`` takes.

    ``layout`` says whether LoRA is merged (``whole``), must be there (``adapter``) or is written as
    it comes (``either``). ``read`` reloads the folder by the tool's own rules, an
    adapter on the base that its second argument names. ``encode`` is how the tool makes tokens of a
    comparison with the written tokenizer, one conversation per response; None where its template is
    chosen elsewhere.
    ``exact_text`` holds where that must give plaudit's own tokens.
    ``usage`` says in Markdown how the tool takes the folder (``KIND`` stands for lora or full),
    ``plain`` whether transformers loads it too, and so plaudit by the ``plaudit.json`` that then
    lies beside the weights, and ``served`` whether vLLM does.
    """

    help: str
    layout: str
    write: Callable[[Exportable, Path, WriteOptions], WriteResult]
    read: Callable[[Path, str], Scorer]
    encode: (
        Callable[[PreTrainedTokenizerBase, CheckpointMetadata, Comparison], list[list[int]]] | None
    )
    exact_text: bool = True
    decoders_only: bool = False
    usage: str = ""
    plain: bool = True
    served: bool = False


# ---- recognition --------------------------------------------------------------------------------


def _is_own(contents: Contents) -> bool:
    # A checkpoint of a run is read through the run's metadata.
    return (contents.folder / METADATA_FILE).is_file() or run_of(contents.folder) is not None


def _open_own(contents: Contents) -> OpenedModel:
    """A folder that plaudit wrote. What it says of trusted code never suffices.

    Raises:
        ModelError: it needs its own code and was not trusted, or records what an option says.
    """
    metadata = read_metadata(contents.folder)
    options = contents.options
    recorded = [
        option.name
        for option in fields(ReadOptions)
        if option.name not in ("base", "trust_remote_code")
        and getattr(options, option.name) != option.default
    ]
    if recorded:
        raise ModelError(
            f"{contents.source} is a plaudit model and records these settings; remove"
            f" {', '.join(recorded)}, or import the original model again."
        )
    if metadata.trust_remote_code and not options.trust_remote_code:
        raise ModelError(
            f"{contents.source} was trained on a base model with custom Python code; review that"
            " code, then load the model with trust_remote_code=True (--trust-remote-code) if you"
            " trust it."
        )

    def build(dtype: torch.dtype) -> nn.Module:
        return load_network(contents.folder, metadata, dtype=dtype, base=options.base)[0]

    tokenizer = own_tokenizer(contents.folder, metadata)
    return OpenedModel(metadata=metadata, tokenizer=tokenizer, build=build)


OWN = Format(name="plaudit", recognises=_is_own, open=_open_own)


def formats() -> tuple[Format, ...]:
    """Plaudit's own and those of other tools, in the order of recognition."""
    return (OWN, *registry.every("model_format").values())


def open_reward_model(source: str | Path, options: ReadOptions = ReadOptions()) -> OpenedModel:
    """Recognise a reward model, a folder or a Hub id, from its files alone.

    What is lossy or inferred is logged as a warning.

    Raises:
        ModelError: nothing there that is a reward model, or one that cannot be read as it was made.
    """
    folder = locate(source)
    contents = read_contents(folder, str(source), options)
    model = recognise(contents).open(contents)
    origin = model.metadata.origin
    if origin is not None and not _is_own(contents):
        for note in origin.notes:
            logger.warning("%s (%s): %s.", origin.source, origin.format, note)
    return model


def recognise(contents: Contents) -> Format:
    """The format of a folder.

    Raises:
        ModelError: it is of none.
    """
    own = _is_own(contents)
    if not own and any((contents.folder / name).is_file() for name in RUN_FILES):
        raise ModelError(
            f"{contents.source} has no {METADATA_FILE}, so this run has not finished training;"
            " use one of its checkpoints, or finish the run with plaudit train --resume."
        )
    for row in formats():
        if row.recognises(contents):
            return row
    if contents.config is None:
        problem = "has no model"
    elif any(name.startswith(OWN_CODE_HEADS) for name in contents.names):
        problem = "is a reward model whose head needs custom code, which plaudit does not support"
    else:
        problem = "is a model without a reward head"
    raise ModelError(
        f"{contents.source} {problem} (no {METADATA_FILE}, no adapter_config.json, no value_head "
        "file and no linear head among its weights); expected a reward model: "
        f"{', '.join(row.name for row in formats())}."
    )


def is_reward_model(folder: Path) -> bool:
    """Whether a local folder is a reward model rather than a plain base."""
    if not folder.is_dir():
        return False
    contents = read_contents(folder)
    return any(row.recognises(contents) for row in formats())


def locate(source: str | Path) -> Path:
    """A local folder as it is, a Hub id as the folder of its downloaded files.

    Raises:
        ModelError: neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    named = str(source)
    if folder.exists():
        raise ModelError(f"{source} is a file; expected the folder of a reward model or a Hub id.")
    missing = missing_path(named)
    if missing is not None:
        raise ModelError(f"{missing}; expected the folder of a reward model or a Hub id.")
    import huggingface_hub

    fetch = partial(huggingface_hub.snapshot_download, named, ignore_patterns=list(NOT_FETCHED))

    try:
        fetched = Path(fetch(allow_patterns=list(FETCHED)))
        # Many repositories hold the same weights twice; the pickles are the ones not needed.
        weights = [*fetched.glob("*.safetensors"), *fetched.glob("adapter_model.bin")]
        return fetched if weights else Path(fetch(allow_patterns=[*FETCHED, *PICKLED]))
    except Exception as error:
        # An error of a proxy is httpx's own, which shares no class with the others.
        network = type(error).__module__.startswith("httpx")
        if not network and not isinstance(error, (OSError, ValueError)):
            raise
        raise ModelError(
            f"No reward model at {source}: not a local folder, and not on the Hub or the Hub is"
            f" unreachable ({first_line(error)})."
        ) from None


# ---- contents of a folder -----------------------------------------------------------------------


def read_contents(folder: Path, source: str = "", options: ReadOptions = ReadOptions()) -> Contents:
    """Look into a model folder; no weights are read but the names of its tensors.

    Raises:
        ModelError: a file is damaged.
    """
    config = read_json(folder / "config.json")
    adapter = read_json(folder / "adapter_config.json")
    return Contents(
        folder=folder,
        source=source or str(folder),
        options=options,
        config=config,
        adapter=adapter,
        names=frozenset(name for path in _files(folder, WEIGHTS) for name in _names(path)),
        value_head=next(iter(_files(folder, VALUE_HEAD)), None),
        versions=_versions(folder / "README.md", config or {}, adapter or {}),
    )


def read_tensors(folder: Path, stems: tuple[str, ...], wanted: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with ``wanted``, from whichever layout is there."""
    tensors: dict[str, Tensor] = {}
    for path in _files(folder, stems):
        if path.suffix == ".bin":
            tensors |= {k: v for k, v in _unpickled(path).items() if k.startswith(wanted)}
        else:
            names = [name for name in tensor_names(path) if name.startswith(wanted)]
            with safe_open(path, framework="pt") as stored:
                tensors |= {name: stored.get_tensor(name) for name in names}
    return tensors


def _files(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    """Weight files, safetensors before pickles; a layout that comes first hides the others."""
    for suffix in (".safetensors", ".bin"):
        for stem in stems:
            path = folder / f"{stem}{suffix}.index.json"
            index = read_json(path)
            if index is not None:
                shards = index.get("weight_map")
                if not isinstance(shards, dict):
                    raise ModelError(
                        f"{path} has no weight_map, so the names of the shards are unknown;"
                        " restore it or download it again."
                    )
                return sorted({folder / str(name) for name in shards.values()})
            if (folder / f"{stem}{suffix}").is_file():
                return [folder / f"{stem}{suffix}"]
    return []


def _names(path: Path) -> list[str]:
    """The names of the tensors in a file."""
    return list(_unpickled(path)) if path.suffix == ".bin" else tensor_names(path)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """A pickle's tensors, mapped from the disk where its format allows that.

    Raises:
        ModelError: it holds anything but tensors, or is damaged.
    """
    try:
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # The format before torch 1.6 cannot be mapped.
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except (*LIBRARY_ERRORS, EOFError, pickle.UnpicklingError, struct.error) as error:
        raise ModelError(
            f"{path} cannot be loaded with weights_only=True ({first_line(error)[:120]}); plaudit"
            " never executes pickle code. Download the file again, or save it as safetensors."
        ) from None
    if not isinstance(stored, dict) or not all(torch.is_tensor(t) for t in stored.values()):
        raise ModelError(f"{path} holds more than tensors; save the weights as safetensors.")
    return stored


def _versions(card: Path, config: Mapping[str, Any], adapter: Mapping[str, Any]) -> dict[str, str]:
    """Versions of the libraries that wrote the folder, by lower-case name.

    The Trainer lists them at the end of its card; PEFT and transformers note their own.
    """
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    versions = {name.lower(): version for name, version in _VERSION.findall(text)}
    if isinstance(config.get("transformers_version"), str):
        versions.setdefault("transformers", config["transformers_version"])
    if isinstance(adapter.get("peft_version"), str):
        versions.setdefault("peft", adapter["peft_version"])
    return versions
