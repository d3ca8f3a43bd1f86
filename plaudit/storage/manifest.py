"""Manifests: the size and checksum of every file of a checkpoint or a model folder.

``manifest.json`` is written after the files it lists, so a folder that has one is complete. The
checksum is XXH3 (128 bits): it notices damage, not a deliberate change. It reads 22 GB/s on one
core from memory (CRC-32 5.8, SHA-256 1.9, BLAKE2b 1.4), so a manifest costs what reading the files
costs: nothing to speak of for an adapter; for a checkpoint of all weights of an 8B model in fp32
with AdamW, 96 GB read once after it is written and once before it is resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import xxhash

from plaudit.errors import ModelError
from plaudit.storage.atomic import json_text, write_atomically, write_text, writing

MANIFEST_FILE = "manifest.json"
TRAINING_FILE = "training.json"
"""How a run's training ended, listed with its model; it is there until the run is evaluated."""
COUNTERS = "counters-"
"""What names of files start with that every checkpoint holds, and no other model folder."""
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "plaudit.json",
)
"""Names of the files of a model folder that decide its rewards. A card is none of them."""

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileSum:
    """What a file held when it was listed: its size in bytes and its checksum."""

    size: int
    xxh3_128: str


def is_model_file(name: str) -> bool:
    """Whether a file of a model folder decides its rewards."""
    return any(fnmatch(name, pattern) for pattern in MODEL_FILES)


def checksum(path: Path) -> str:
    """XXH3 of a file's bytes, in hexadecimal."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def checksum_of(record: Mapping[str, Any]) -> str:
    """XXH3 of a JSON mapping, the same for any order of its keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(record, sort_keys=True).encode())


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """List these files of the folder, atomically; all must be written completely.

    Raises:
        OutputError: a file cannot be read, or the manifest cannot be written.
    """
    with writing(folder):
        listed = {name: _file_sum(folder / name) for name in names}
    write_text(folder / MANIFEST_FILE, _manifest_text(listed))


def write_model_manifest(folder: Path, more: Iterable[str] = ()) -> None:
    """List the model files of a folder, and those named in ``more``. Raises OutputError."""
    files = (path.name for path in folder.iterdir() if path.is_file())
    write_manifest(folder, [*filter(is_model_file, files), *more])


def rewrite_listed(folder: Path, name: str, text: str) -> None:
    """Replace the text of a model file, and bring its line of the manifest up to date.

    The other files keep their lines; they are not read. A folder without a manifest gets one. A
    kill before the end leaves none, and the folder loads.

    Raises:
        OutputError: the file or the manifest cannot be written. A folder that had a manifest is
            left as it was.
        ValueError: the manifest was damaged before.
    """
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        write_text(folder / name, text)
        write_model_manifest(folder)
        return
    listed = read_manifest(folder)

    def write_both(new_manifest: Path) -> None:
        def write(new_file: Path) -> None:
            new_file.write_text(text, encoding="utf-8")
            sums = {**listed, name: _file_sum(new_file)}
            new_manifest.write_text(_manifest_text(sums), encoding="utf-8")
            # Only renames follow, which need no room on the disk.
            manifest.unlink()

        write_atomically(folder / name, write)

    write_atomically(manifest, write_both)


def read_manifest(folder: Path) -> Mapping[str, FileSum]:
    """The listed files.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: it is damaged.
    """
    record = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.pop("xxh3_128", None) != checksum_of(record):
        raise ValueError("wrong checksum")
    if record["format"] != _FORMAT:
        raise ValueError(f"format {record['format']!r}, written by a newer plaudit")
    return {name: FileSum(**sums) for name, sums in record["files"].items()}


def find_damage(folder: Path, concerns: Callable[[str], bool] = lambda _: True) -> str | None:
    """The first listed file that is not as it was written, and what is wrong; None if all are.

    ``concerns`` selects files by name. Sizes are compared before any byte is read. A folder without
    a manifest is damaged.
    """
    try:
        listed = read_manifest(folder)
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except (OSError, ValueError) as error:
        return f"{MANIFEST_FILE} is damaged ({error})"
    selected = {name: sums for name, sums in listed.items() if concerns(name)}
    for problem in (_wrong_size, _wrong_bytes):
        for name, sums in selected.items():
            try:
                wrong = problem(folder / name, sums)
            except OSError as error:
                wrong = f"cannot be read ({error.strerror or error})"
            if wrong is not None:
                return f"{name} {wrong}"
    return None


def check_model(folder: Path) -> None:
    """Every model file is as it was written, as far as the folder has a manifest.

    Models of other tools and of plaudit 0.1.0 have none.

    Raises:
        ModelError: a file is missing or damaged.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return
    damage = find_damage(folder, is_model_file)
    if damage is None:
        return
    if any(folder.glob(f"{COUNTERS}*")):
        # Without its manifest, neither a command nor --resume would use a checkpoint.
        raise ModelError(
            f"{folder}/{damage}: the checkpoint is damaged. Restore that file from a backup, or"
            " choose another checkpoint of the run."
        )
    raise ModelError(
        f"{folder}/{damage}: the model is damaged. Restore that file from a backup. If you"
        f" changed it yourself, delete {folder / MANIFEST_FILE}."
    )


def _manifest_text(listed: Mapping[str, FileSum]) -> str:
    record = {"format": _FORMAT, "files": {name: asdict(listed[name]) for name in sorted(listed)}}
    return json_text({**record, "xxh3_128": checksum_of(record)})


def _file_sum(path: Path) -> FileSum:
    return FileSum(size=path.stat().st_size, xxh3_128=checksum(path))


def _wrong_size(path: Path, sums: FileSum) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    return None if size == sums.size else f"has {size:,} bytes instead of {sums.size:,}"


def _wrong_bytes(path: Path, sums: FileSum) -> str | None:
    return None if checksum(path) == sums.xxh3_128 else "has a wrong checksum"
