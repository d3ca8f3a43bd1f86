"""Files of model folders, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plaudit.errors import ModelError


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
            f"{path} cannot be read ({error}); restore it or download it again."
        ) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a mapping; restore it or download it again.")
    return value


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file, in its order.

    Raises:
        ModelError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} is damaged and cannot be loaded ({error}); restore it or download it again."
        ) from None
