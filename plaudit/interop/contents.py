"""What lies in a model folder: configurations, names of tensors, tensors, versions of libraries.

Reads safetensors, and pickles through ``torch.load(weights_only=True)`` alone.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plaudit.errors import ModelError
from plaudit.model.load import LIBRARY_ERRORS, first_line

WEIGHTS = ("model", "pytorch_model")
ADAPTER = ("adapter_model",)
VALUE_HEAD = ("value_head",)

_VERSION = re.compile(r"^- (PEFT|Transformers|TRL):? ([0-9][\w.]*)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A model folder as recognisers see it. ``None`` stands for a file that is not there."""

    folder: Path
    config: Mapping[str, Any] | None
    adapter: Mapping[str, Any] | None
    names: frozenset[str]
    adapter_names: frozenset[str]
    value_head: Path | None
    versions: Mapping[str, str]


def look(folder: Path) -> Contents:
    """Look into a model folder; no weights are read but the names of its tensors.

    Raises:
        ModelError: a file is damaged.
    """
    return Contents(
        folder=folder,
        config=read_json(folder / "config.json"),
        adapter=read_json(folder / "adapter_config.json"),
        names=frozenset(_where(folder, WEIGHTS)),
        adapter_names=frozenset(_where(folder, ADAPTER)),
        value_head=next(iter(_files(folder, VALUE_HEAD)), None),
        versions=_versions(folder),
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, None where there is no file.

    Raises:
        ModelError: something else is in it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({error}); restore it or fetch it again."
        ) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no mapping; restore it or fetch it again.")
    return value


def read_tensors(folder: Path, stems: tuple[str, ...], wanted: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with ``wanted``, from whichever layout is there."""
    places = {name: path for name, path in _where(folder, stems).items() if name.startswith(wanted)}
    tensors: dict[str, Tensor] = {}
    for path in dict.fromkeys(places.values()):
        inside = [name for name, place in places.items() if place == path]
        tensors.update(_read(path, inside))
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
                        f"{path} has no weight_map, so it names no shards; restore it or fetch it "
                        "again."
                    )
                return sorted({folder / str(name) for name in shards.values()})
            if (folder / f"{stem}{suffix}").is_file():
                return [folder / f"{stem}{suffix}"]
    return []


def _where(folder: Path, stems: tuple[str, ...]) -> dict[str, Path]:
    """In which file each tensor lies."""
    places: dict[str, Path] = {}
    for path in _files(folder, stems):
        if path.suffix == ".safetensors":
            places.update(dict.fromkeys(_opened(path), path))
        else:
            places.update(dict.fromkeys(_unpickled(path), path))
    return places


def _opened(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} is damaged and cannot be loaded ({error}); restore it or fetch it again."
        ) from None


def _read(path: Path, names: list[str]) -> dict[str, Tensor]:
    if path.suffix == ".bin":
        stored = _unpickled(path)
        return {name: stored[name] for name in names}
    with safe_open(path, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in names}


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
            f"{path} cannot be read as weights alone ({first_line(error)[:120]}); plaudit "
            "never runs a pickle: fetch it again, or save it as safetensors."
        ) from None
    if not isinstance(stored, dict) or not all(torch.is_tensor(t) for t in stored.values()):
        raise ModelError(f"{path} holds more than tensors; save its weights as safetensors.")
    return stored


def _versions(folder: Path) -> dict[str, str]:
    """Versions of the libraries that wrote the folder, by lower-case name.

    The Trainer lists them at the end of its card; PEFT and transformers note their own.
    """
    found: dict[str, str] = {}
    readme = folder / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8", errors="replace")
        found.update({name.lower(): version for name, version in _VERSION.findall(text)})
    config = read_json(folder / "config.json") or {}
    adapter = read_json(folder / "adapter_config.json") or {}
    if isinstance(config.get("transformers_version"), str):
        found.setdefault("transformers", config["transformers_version"])
    if isinstance(adapter.get("peft_version"), str):
        found.setdefault("peft", adapter["peft_version"])
    return found
