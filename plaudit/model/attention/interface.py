"""Attention over packed trees: each branch sees its own prompt and itself, and nothing else.

Registered with transformers under :data:`PACKED_ATTENTION`; the layout arrives as the extra
keyword argument ``packed_layout`` of the model call. No mask function is registered under that
name, so transformers builds no mask and does not guess packed positions.

Shapes: H query heads, G key/value heads (a divisor of H), T tokens of the row, D head width.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from plaudit.errors import ModelError
from plaudit.model.attention import cpu, flash, flex
from plaudit.model.attention.layer import Settings, once_a_layout
from plaudit.model.attention.spans import explicit, sdpa
from plaudit.model.fast.last_layer import attend_scored, few_scored, scored_rows
from plaudit.types import PackedLayout

PACKED_ATTENTION = "plaudit_packed"

# Arguments transformers hands to every attention function that do not change what is computed
# here: the layout says who sees whom, and positions are already rotated into queries and keys.
_HARMLESS = frozenset({"position_ids", "use_cache", "output_attentions", "output_hidden_states"})


def packed_attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    scored_only: bool = False,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface over a packed row; returns ``[1, T, H, D]``.

    ``sliding_window`` counts the token itself, as transformers does: a token sees the
    ``sliding_window - 1`` tokens before it. ``scored_only``: a last layer wants the attention of
    the layout's scored tokens alone.

    Raises:
        ModelError: no layout (a padded call would attend to padding), a mask, attention dropout,
            bidirectional attention, or any argument whose meaning is not known here.
    """
    global _latest
    if packed_layout is None:
        raise ModelError(
            "Packed attention was called without a layout; call the model through plaudit, or"
            " load it with attn_implementation='sdpa'."
        )
    unsupported = {
        **{name: value is not None for name, value in others.items() if name not in _HARMLESS},
        "attention_mask": attention_mask is not None,
        "dropout": bool(dropout),
        "is_causal=False": is_causal is False,
    }
    if any(unsupported.values()):
        names = ", ".join(name for name, asked in unsupported.items() if asked)
        raise ModelError(
            f"{type(module).__name__} needs {names}, which packed attention does not support; set"
            " model.attention to padded."
        )
    if query_1HTD.dtype != value_1GTD.dtype:
        # Under autocast rotary positions widen queries and keys; transformers' fused attention
        # narrows them again, and a fused call needs one precision.
        query_1HTD, key_1GTD = query_1HTD.to(value_1GTD.dtype), key_1GTD.to(value_1GTD.dtype)
    if packed_layout.prefix_kv is not None:
        key_1GTD, value_1GTD = packed_layout.prefix_kv.extend(key_1GTD, value_1GTD)
    scale = query_1HTD.shape[-1] ** -0.5 if scaling is None else scaling
    # A window into which every conversation fits narrows nothing.
    narrows = sliding_window is not None and _longest(packed_layout) > sliding_window
    settings = Settings(scale=scale, window=sliding_window if narrows else None, softcap=softcap)
    chosen = name = choose_backend(query_1HTD, settings)
    backend = BACKENDS[chosen]
    attend = backend.attend
    if scored_only and few_scored(packed_layout):
        name, attend = "written scored", attend_scored
        if backend.scored is not None:
            name, attend = f"{chosen} scored", backend.scored
    ran[name] += 1
    _latest = chosen
    out_1HTD = attend(query_1HTD, key_1GTD, value_1GTD, packed_layout, settings)
    return out_1HTD.transpose(1, 2).contiguous(), None


@once_a_layout
def _longest(layout: PackedLayout) -> int:
    """Tokens of the longest conversation."""
    return max(tree.visible + max(tree.branches) for tree in layout.placed())


# ---- forms


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute a row's attention.

    Attributes:
        attend: Queries, keys, values, layout and settings → ``[1, H, T, D]``.
        computes: Whether it has what a layer asks: its window, its soft-cap.
        suits: Whether it is a good choice for such queries: their device, precision and width.
        scored: The same as ``attend`` for the layout's scored tokens, where they are few.
        plan: What ``attend`` derives from a layout for a device, to be prepared before it is used.
    """

    attend: Callable[[Tensor, Tensor, Tensor, PackedLayout, Settings], Tensor]
    computes: Callable[[Settings], bool]
    suits: Callable[[Tensor], bool]
    scored: Callable[[Tensor, Tensor, Tensor, PackedLayout, Settings], Tensor] | None = None
    plan: Callable[[PackedLayout, torch.device], object] | None = None


BACKENDS: dict[str, Backend] = {
    "cpu": Backend(
        attend=cpu.attend,
        computes=lambda settings: settings.window is None and settings.softcap is None,
        suits=lambda query: query.device.type == "cpu" and cpu.available(),
    ),
    "varlen": Backend(
        attend=flash.varlen,
        computes=lambda settings: settings.softcap is None,
        suits=flash.suits,
        scored=flash.varlen_scored,
        plan=flash.gathered_plan,
    ),
    "two_calls": Backend(
        attend=flash.two_calls,
        computes=lambda settings: settings.window is None and settings.softcap is None,
        suits=flash.suits,
        scored=flash.two_calls_scored,
        plan=flash.joined_plan,
    ),
    "sdpa": Backend(
        attend=sdpa,
        computes=lambda settings: settings.softcap is None,
        suits=lambda query: True,
    ),
    "flex": Backend(
        attend=flex.attend,
        computes=lambda settings: True,
        suits=flex.suits,
    ),
    "explicit": Backend(
        attend=explicit,
        computes=lambda settings: True,
        suits=lambda query: True,
    ),
}
"""In order of preference: the first that computes what a layer asks and suits its queries runs."""

ran: Counter[str] = Counter()
"""How many calls each form has served in this process; scored rows are counted by themselves."""

_forced: str | None = None
_latest: str | None = None


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Use one backend wherever it computes what a layer asks, on any device: for measurement.

    It holds for the whole process. Where the backend lacks a layer's window or soft-cap, the usual
    choice is made.
    """
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def choose_backend(query: Tensor, settings: Settings) -> str:
    """The name of the backend for a layer's queries."""
    if _forced is not None and BACKENDS[_forced].computes(settings):
        return _forced
    return next(
        name
        for name, backend in BACKENDS.items()
        if backend.computes(settings) and backend.suits(query)
    )


def prepare(layout: PackedLayout, device: torch.device) -> None:
    """Derive from a layout what a model's layers will ask of it, as the latest ones did.

    Calling it while another batch is computed takes this work out of the way of the layers.
    """
    scored_rows(layout, device)
    plan = None if _latest is None else BACKENDS[_latest].plan
    if plan is not None:
        plan(layout, device)


# A layout is different in every batch, and a compiled call would be compiled anew for each.
AttentionInterface.register(
    PACKED_ATTENTION,
    torch.compiler.disable(packed_attention),  # type: ignore[no-untyped-call]
)
