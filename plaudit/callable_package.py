"""Let a package be called: ``plaudit.train`` is a folder of the code and a function of the API.

Importing ``plaudit.training.run`` anywhere binds the folder to the name ``train`` of ``plaudit``, so a
function of that name would be there or gone depending on what was imported before. A package that
can be called means both at any time.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(package: str, function: str) -> None:
    """Calling the package named ``package`` calls ``function`` of its ``run`` module."""

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(f"{package}.run"), function)(*args, **kwargs)

    sys.modules[package].__class__ = CallablePackage
