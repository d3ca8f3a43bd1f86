"""plaudit: reward models from preference comparisons, each prompt computed once.

``load`` opens a reward model for scoring, ``train`` runs a recipe, ``evaluate`` measures a model on
data. They load torch when first used; importing plaudit loads nothing heavy.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plaudit.evaluate_model import evaluate as evaluate
    from plaudit.reward_model import load as load
    from plaudit.training.run import train as train

__version__ = "0.1.0"
# PEFT imports bitsandbytes, which says then that it lacks a kernel for CPUs (0.50). plaudit never
# calls that kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__ = ["__version__", "evaluate", "load", "train"]

_FUNCTIONS = {
    "evaluate": "plaudit.evaluate_model",
    "load": "plaudit.reward_model",
    "train": "plaudit.training.run",
}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
