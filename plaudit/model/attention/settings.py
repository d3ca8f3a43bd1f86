"""What a layer asks of its attention, whichever code computes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Scale, window in tokens (the token itself included), soft-cap."""

    scale: float
    window: int | None
    softcap: float | None
