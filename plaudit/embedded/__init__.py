"""Package data: the documentation corpus and the small base model pretrained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

NAME: Final = "embedded"
"""What ``model.base`` says for the base that comes with the package."""


def base_path() -> Path:
    """The folder of the embedded base model, as ``from_pretrained`` takes it."""
    return Path(__file__).resolve().parent / "base"


def quickstart_path() -> Path:
    """The recipe that ``plaudit quickstart`` runs."""
    return Path(__file__).resolve().parent / "quickstart.yaml"


def documentation_path() -> Path:
    """The compressed documentation corpus, read by :mod:`plaudit.data.sources.documentation`."""
    return Path(__file__).resolve().parent / "documentation.jsonl.xz"
