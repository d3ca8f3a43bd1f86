"""Rows and facts of datasets on the Hugging Face Hub, through ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from plaudit.errors import DataError
from plaudit.recipe.schema import Source

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def read_rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(where, row)``; ``where`` is like ``owner/name[subset/train]:row 17``."""
    parts = (source.subset, source.folder, source.split or "train")
    part = "/".join(name for name in parts if name)
    empty = True
    for number, row in enumerate(_dataset(source), start=1):
        empty = False
        yield f"{source.path}[{part}]:row {number}", without_filling(row)
    if empty:
        raise DataError(f"{source.path}[{part}] holds no rows; expected at least one comparison.")


def fingerprint(source: Source) -> str:
    """``revision:<commit>`` when the Hub answers, else the fingerprint of the cached table.

    Raises:
        DataError: the source is streamed and the Hub does not answer, so that nothing says whether
            it changed.
    """
    info = _info(source)
    if info is not None and info.sha:
        return f"revision:{info.sha}"
    if source.stream:
        raise DataError(
            f"{source.path} is to be streamed, but the Hub does not answer; set `stream` to false"
            " to read a copy on this disk, or go online."
        )
    return f"datasets:{_dataset(source)._fingerprint}"


def licence(source: Source) -> str | None:
    """The licence the dataset card states; ``None`` when it states none or cannot be reached."""
    info = _info(source)
    card = info.card_data if info is not None else None
    stated = card.get("license") if card is not None else None
    return ", ".join(stated) if isinstance(stated, list) else stated


def without_filling(row: dict[str, Any]) -> dict[str, Any]:
    """Drop the nulls inside nested values: Arrow gives every object of a column every key."""
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _dataset(source: Source) -> Dataset | IterableDataset:
    # Importing datasets takes seconds and is needed for Hub ids alone.
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        return load_dataset(
            source.path,
            name=source.subset,
            data_dir=source.folder,
            split=source.split or "train",
            streaming=source.stream,
        )
    except DatasetNotFoundError as error:
        raise DataError(
            f"{source.path} is neither a file here nor a dataset on the Hub that you may read;"
            " check the spelling, or log in with `hf auth login`."
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"{source.path} is no file here, and the Hub cannot be reached to look for a dataset"
            " of that name; give a local path, or go online."
        ) from error
    except ValueError as error:  # an unknown split or subset; the message lists the known ones
        raise DataError(
            f"{source.path}: {_one_line(error)}; set `split` or `subset` of this source."
        ) from error
    except (DatasetsError, RuntimeError, OSError) as error:
        raise DataError(f"{source.path} cannot be loaded: {_one_line(error)}.") from error


def _info(source: Source) -> Any:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(source.path, timeout=10)
    except Exception:  # facts for the card must never stop a run, whatever the client raises
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
