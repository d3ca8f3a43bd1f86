"""What all ways to compute attention share: a layer's settings, and what layers of a pass reuse."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from plaudit.types import PackedLayout

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a layer asks of its attention: scale, window in tokens (itself included), soft-cap."""

    scale: float
    window: int | None
    softcap: float | None


def once_a_layout(
    derive: Callable[[PackedLayout, *Arguments], Result],
) -> Callable[[PackedLayout, *Arguments], Result]:
    """Keep what is derived from a layout in its memo, one result for each set of arguments.

    All layers of a pass, and its recomputation under activation checkpointing, then share it.
    """

    @functools.wraps(derive)
    def kept(layout: PackedLayout, *arguments: *Arguments) -> Result:
        key = (derive, *arguments)
        if key not in layout.memo:
            layout.memo[key] = derive(layout, *arguments)
        result: Result = layout.memo[key]
        return result

    return kept
