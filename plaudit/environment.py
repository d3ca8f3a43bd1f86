"""What a run ran on: versions and machine, for ``environment.json`` and the card."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from plaudit import __version__

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "scikit-learn",
)


def describe_environment(device: str) -> dict[str, str]:
    """Versions by package name, Python, the platform and the device computed on."""
    found = {"plaudit": __version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "platform": platform.platform(), "device": device}
