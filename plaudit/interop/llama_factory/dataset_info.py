"""Entries of LLaMA-Factory's ``dataset_info.json`` as sources.

The rules are those of ``llamafactory/data/parser.py`` and ``converter.py``: where an entry has
``columns`` (or ``tags``), every name that it does not list is not read at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from plaudit.data.formats.columns import KEY_TAGS, ROLE_TAGS
from plaudit.errors import DataError, did_you_mean
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import existing_path

FILE_NAME: Final = "dataset_info.json"

_COLUMNS: Final = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "conversations",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
}
"""LLaMA-Factory's name of a column, and what the reader calls it."""

_MEDIA: Final = ("images", "videos", "audios")
_ELSEWHERE: Final = {
    "script_url": "a loading script, which is not run here",
    "cloud_file_name": "a file in a cloud store",
    "ms_hub_url": "ModelScope",
    "om_hub_url": "Modelers",
}


def is_dataset_info(source: Source) -> bool:
    """Whether a source is an entry of such a file: the path names it, ``subset`` the entry.

    On command lines ``dataset_info.json:ENTRY`` names both.
    """
    return Path(source.path).name.partition(":")[0] == FILE_NAME


def _entry_apart(source: Source) -> Source:
    path, colon, entry = source.path.rpartition(":")
    if not colon or Path(path).name != FILE_NAME:
        return source
    return source.model_copy(update={"path": path, "subset": entry})


def resolve(source: Source) -> Source:
    """The source that an entry stands for; any other source as it is.

    What the source says itself (name, weight, rows, …) holds; the entry's ``num_samples`` becomes
    ``rows``.

    Raises:
        DataError: the file, the entry or what it asks for cannot be used here.
    """
    if not is_dataset_info(source):
        return source
    source = _entry_apart(source)
    entry = _entry(source)
    where = f"{source.path}: {source.subset}"
    _refuse_unusable(entry, where)
    fields = source.model_dump(exclude_unset=True) | _place(entry, source, where)
    shape = _shape(entry, where)
    fields |= {"name": source.name or source.subset, **shape}
    fields["columns"] = {**shape["columns"], **source.columns}
    if entry.get("num_samples") is not None and source.weight == 1 and not source.share:
        fields.setdefault("rows", entry["num_samples"])
    return Source(**fields)


def _entry(source: Source) -> Mapping[str, Any]:
    path = existing_path(source.path) or Path(source.path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{source.path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source.path}: broken JSON ({error}).") from error
    if not isinstance(entries, dict):
        raise DataError(f"{source.path} holds no entries; expected an object of data sets by name.")
    if source.subset is None:
        raise DataError(
            f"{source.path} describes {', '.join(entries) or 'nothing'}; choose an entry with"
            f" `subset`, on a command line as {FILE_NAME}:ENTRY."
        )
    if source.subset not in entries:
        hint = did_you_mean(source.subset, entries, f"it has {', '.join(entries) or 'none'}.")
        raise DataError(f"{source.path} has no entry {source.subset}; {hint}")
    entry = entries[source.subset]
    if not isinstance(entry, dict):
        raise DataError(f"{source.path}: {source.subset} is no object; expected its description.")
    return entry


def _refuse_unusable(entry: Mapping[str, Any], where: str) -> None:
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    for name, given in (("columns", columns), ("tags", tags)):
        if not isinstance(given, dict) or not all(
            value is None or isinstance(value, str) for value in given.values()
        ):
            raise DataError(f"{where}: {name} is no object of names; expected texts by name.")
    if columns.get("kto_tag"):
        raise DataError(f"{where} has labels of single answers (kto_tag), and no pairs to compare.")
    if not entry.get("ranking"):
        raise DataError(
            f"{where} is no ranking, so it has no pairs to compare; set its `ranking` to true if it"
            " has chosen and rejected answers."
        )
    media = [name for name in _MEDIA if columns.get(name)]
    if media:
        raise DataError(f"{where} has {' and '.join(media)}, but text alone is read.")
    samples = entry.get("num_samples")
    if samples is not None and (not isinstance(samples, int) or samples < 1):
        raise DataError(f"{where}: num_samples is {samples!r}; expected a number of rows.")


def _place(entry: Mapping[str, Any], source: Source, where: str) -> dict[str, Any]:
    """Path and parts: the Hub where the entry names it, else a file beside the description."""
    if entry.get("hf_hub_url"):
        parts = {name: entry.get(name) for name in ("subset", "folder")}
        return {"path": entry["hf_hub_url"], "split": entry.get("split", "train"), **parts}
    elsewhere = [what for key, what in _ELSEWHERE.items() if entry.get(key)]
    if elsewhere:
        raise DataError(f"{where} is on {elsewhere[0]}; download it and give it a file_name.")
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise DataError(f"{where} has no file_name and no hf_hub_url; expected one of them.")
    folder = Path(source.path).expanduser().parent
    # A file is always streamed, so asking for it is no mistake here.
    parts = dict.fromkeys(("split", "subset", "folder"))
    return {"path": str(folder / name), "stream": False, **parts}


def _shape(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Format, columns and tags."""
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise DataError(f"{where}: formatting is {formatting!r}; expected alpaca or sharegpt.")
    given = entry.get("columns")
    reader = "sharegpt" if formatting != "alpaca" else None
    columns: dict[str, str | None] = {}
    if given is not None:
        if reader is None:
            reader = "alpaca" if given.get("chosen") else "alpaca_output"
        columns = {ours: given.get(theirs) for theirs, ours in _COLUMNS.items()}
        # A column that the reader does not know needs no hiding.
        unread = {"alpaca": ("output", "conversations"), "alpaca_output": ("conversations",)}
        unread["sharegpt"] = ("instruction", "input", "output", "history")
        unread["alpaca_output"] += ("chosen", "rejected")
        columns = {name: value for name, value in columns.items() if name not in unread[reader]}
    tags = {}
    if reader == "sharegpt" and entry.get("tags") is not None:
        tags = {tag: entry["tags"].get(tag) for tag in (*KEY_TAGS, *ROLE_TAGS)}
    return {"format": reader, "columns": columns, "tags": tags}
