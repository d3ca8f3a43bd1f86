"""A base model's configuration without its weights, and for common models without the Hub.

``architectures.json`` holds, for each architecture, the values of its published ``config.json`` on
which sizes depend, and the Hub ids that share them. It is for planning: what only matters when the
model runs (rotary frequencies, token ids) is left out.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit import embedded
from plaudit.errors import ModelError
from plaudit.storage.atomic import missing_path

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@cache
def architectures() -> dict[str, dict[str, Any]]:
    """Configuration values by architecture, each with the ``names`` of its Hub ids."""
    text = files("plaudit.planning").joinpath("architectures.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


def known(base: str) -> dict[str, Any] | None:
    """The configuration values of a Hub id in the table; upper and lower case do not matter."""
    for facts in architectures().values():
        if base.lower() in (name.lower() for name in facts["names"]):
            return {key: value for key, value in facts.items() if key != "names"}
    return None


def read_config(
    base: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The transformers configuration of a base with one label: local folder, table, then the Hub.

    Raises:
        ModelError: no such folder or table entry, and the Hub and its cache do not have it.
    """
    from transformers import AutoConfig

    base = str(embedded.base_path()) if base == embedded.NAME else base
    values = None if Path(base).exists() else known(base)
    if values is not None:
        config: PreTrainedConfig = AutoConfig.for_model(num_labels=1, **values)
        return config
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(
            base, revision=revision, trust_remote_code=trust_remote_code, num_labels=1
        )
        return found
    except (OSError, ValueError, KeyError) as error:
        if Path(base).is_dir():
            raise ModelError(
                f"{base} has no config.json that transformers can read; model.base must be a model "
                "folder or a Hub id."
            ) from error
        missing = missing_path(base)
        if missing is not None:
            raise ModelError(
                f"{missing}; model.base must be a model folder or a Hub id."
            ) from error
        raise ModelError(
            f"{base} does not exist on this machine, is not in plaudit's table of "
            f"{len(architectures())} architectures, and was not found on the Hub; check the name "
            "or the connection, or give a folder with the model's config.json."
        ) from error
