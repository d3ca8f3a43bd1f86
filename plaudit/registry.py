"""What other tools bring, found by kind and name: dotted names, imported on first use.

The core looks a name up and never imports ``interop``; a worker process that looks one up imports
what it needs and no registration has to run before. One line per tool and kind: adding or deleting
a tool touches its folder and its lines here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

TABLE: Final[Mapping[str, Mapping[str, str]]] = {
    # plaudit.data.formats.records.Reader
    "row_format": {
        "alpaca": "plaudit.interop.llama_factory.data:ALPACA",
        "alpaca_output": "plaudit.interop.llama_factory.data:ALPACA_OUTPUT",
        "sharegpt": "plaudit.interop.llama_factory.data:SHAREGPT",
        "alpaca_kto": "plaudit.interop.llama_factory.data:ALPACA_KTO",
        "sharegpt_kto": "plaudit.interop.llama_factory.data:SHAREGPT_KTO",
    },
    # plaudit.data.formats.records.Writer
    "row_writer": {
        "alpaca": "plaudit.interop.llama_factory.data:ALPACA_WRITER",
        "sharegpt": "plaudit.interop.llama_factory.data:SHAREGPT_WRITER",
        "openrlhf": "plaudit.interop.openrlhf.rows:MESSAGES_WRITER",
    },
    # plaudit.interop.formats.Format
    "model_format": {
        "llama_factory": "plaudit.interop.llama_factory.model:FORMAT",
        "openrlhf": "plaudit.interop.openrlhf.model:FORMAT",
        "adapter": "plaudit.interop.sequence_classifier.read:ADAPTER_FORMAT",
        "classifier": "plaudit.interop.sequence_classifier.read:WHOLE_FORMAT",
    },
    # plaudit.interop.formats.Exporter
    "exporter": {
        "adapter": "plaudit.interop.sequence_classifier.write:ADAPTER_EXPORTER",
        "merged": "plaudit.interop.sequence_classifier.write:MERGED_EXPORTER",
        "llamafactory": "plaudit.interop.llama_factory.model:EXPORTER",
        "openrlhf": "plaudit.interop.openrlhf.model:EXPORTER",
    },
    # plaudit.tokens.rendering.Renderer
    "renderer": {
        "llamafactory": "plaudit.interop.llama_factory.templates:RENDERER",
        "openrlhf": "plaudit.interop.openrlhf.model:RENDERER",
    },
    # plaudit.serving.protocols.records.Protocol
    "protocol": {
        "get_reward": "plaudit.interop.openrlhf.protocol:GET_REWARD",
        "score_evaluation": "plaudit.interop.llama_factory.protocol:SCORE_EVALUATION",
    },
    # A function (path, …) -> the mapping of a recipe, with notes.
    "recipe_source": {
        "llamafactory": "plaudit.interop.llama_factory.recipe:translate",
    },
    # The name of a file that describes data sets, to a function Source -> Source.
    "data_source": {
        "dataset_info.json": "plaudit.interop.llama_factory.data:resolve",
    },
}
"""Kind to name to ``module:attribute``. The order within a kind is the order of lookup."""


def names(kind: str) -> tuple[str, ...]:
    """The names of a kind. Imports nothing."""
    return tuple(TABLE[kind])


def find(kind: str, name: str) -> Any:
    """What a name stands for; the caller knows the type that its kind has.

    Raises:
        KeyError: no such kind or name.
    """
    return resolve_name(TABLE[kind][name])


def every(kind: str) -> dict[str, Any]:
    """All of a kind by name, in the order of the table."""
    return {name: find(kind, name) for name in TABLE[kind]}


def source_file(kind: str, name: str) -> Path:
    """The file that defines it, for keys of caches. Imports the packages above it alone."""
    spec = find_spec(TABLE[kind][name].partition(":")[0])
    assert spec is not None, f"{kind} {name} is in no module"
    assert spec.origin is not None, f"{kind} {name} has no source file"
    return Path(spec.origin)
