"""Packed attention by FlexAttention (Dong et al. 2024, arXiv 2412.05496): soft-caps and windows.

What a token sees are two ranges of keys: its own span up to itself, and the prompt in front of the
span if that lies elsewhere. So three numbers a token make the mask, and the blocks of the kernel
that are empty, full or neither follow from the ends of the spans. No ``T * T`` mask is evaluated.

On CUDA the kernel is compiled when it is first needed. On a CPU, where PyTorch has no compiled
backward pass, it runs written out.

Shapes: H query heads, G key/value heads (a divisor of H), T tokens of the row, S keys of the row
and behind it, D head width, M and N blocks of queries and of keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from plaudit.model.attention.layer import Settings, once_a_layout
from plaudit.model.attention.spans import Span, spans
from plaudit.types import PackedLayout, arrays_to_device

Query: TypeAlias = Any
"""A query's place in the row, or an array of them."""

BLOCK = 128
"""Queries, and keys, of a block: FlexAttention's default."""


def suits(query: Tensor) -> bool:
    """Whether the compiled kernel takes such heads on this GPU, in half precision.

    It needs a width of 16 or more. In fp32 the written-out form computes soft-caps, as on a CPU.
    """
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and 16 <= query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def attend(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, settings: Settings) -> Tensor:
    """Attention of every token to its prompt and its own branch; ``[1, H, T, D]``."""
    call: Any = _compiled() if q.is_cuda else flex_attention
    cap = settings.softcap
    out: Tensor = call(
        q,
        k,
        v,
        score_mod=None if cap is None else _soft_cap(cap, q.shape[1], q.device),
        block_mask=block_mask(layout, settings.window, q.device),
        scale=settings.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """One kernel for rows of any length; the layout reaches it as tensors."""
    # Rows of one token, of one block and of more are kernels of their own, with and without
    # gradients and cached prompts, for each model of the process. Beyond the limit (8) PyTorch
    # would go on with the written-out form, which evaluates T * T logits.
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 64)
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


@functools.cache
def _soft_cap(cap: float, heads: int, device: torch.device) -> Callable[..., Tensor]:
    # A tensor, as FlexAttention's own examples have per head: of a number, the compiler with
    # dynamic shapes makes an input that the kernel does not take (torch 2.13).
    cap_H = torch.full((heads,), cap, device=device)

    def capped(logit: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.tanh(logit / cap_H[head]) * cap_H[head]

    return capped


@once_a_layout
def block_mask(layout: PackedLayout, window: int | None, device: torch.device) -> BlockMask:
    """The layout as FlexAttention reads it; its arrays go to the device in one copy."""
    seen = [_Seen.of(span, window) for span in spans(layout)]
    some_MN, full_MN = _blocks(seen, layout.tokens, layout.tokens + sum(layout.cached))
    ranges = [np.concatenate(part) for part in zip(*(one.ranges() for one in seen), strict=True)]
    lists = (*_lists(some_MN & ~full_MN), *_lists(full_MN))
    moved = arrays_to_device([*ranges, *lists], device)
    own_T, first_T, stop_T, counts, order, full_counts, full_order = moved

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= own_T[query]) & (key <= query)
        return own | ((key >= first_T[query]) & (key < stop_T[query]))

    return BlockMask.from_kv_blocks(
        counts,
        order,
        full_counts,
        full_order,
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(layout.tokens, layout.tokens + sum(layout.cached)),
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the queries of one span see, within a window of ``reach`` tokens."""

    span: Span
    reach: int

    @classmethod
    def of(cls, span: Span, window: int | None) -> Self:
        return cls(span, span.shared + span.stop - span.start if window is None else window)

    @property
    def prompt_stop(self) -> int:
        return self.span.prefix + self.span.shared

    def own(self, query: Query) -> Query:
        """The first key of its own span that a query sees; the last is itself."""
        return np.maximum(self.span.start, query - self.reach + 1)

    def prompt(self, query: Query) -> Query:
        """The first key of the prompt that a query sees; all behind it are seen too."""
        first = self.prompt_stop + query - self.span.start - self.reach + 1
        return np.clip(first, self.span.prefix, self.prompt_stop)

    def ranges(self) -> tuple[npt.NDArray[np.int32], ...]:
        """For each query its first own key, its prompt's first and the end of that."""
        query_Q = np.arange(self.span.start, self.span.stop, dtype=np.int32)
        stop_Q = np.full_like(query_Q, self.prompt_stop)
        return self.own(query_Q).astype(np.int32), self.prompt(query_Q).astype(np.int32), stop_Q


def _blocks(
    seen: Sequence[_Seen], queries: int, keys: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """``[M, N]``: blocks of which some query sees some key, and those where all see all."""
    some_MN = np.zeros((-(-queries // BLOCK), -(-keys // BLOCK)), dtype=bool)
    full_MN = np.ones_like(some_MN)
    for one in seen:
        for row in range(one.span.start // BLOCK, -(-one.span.stop // BLOCK)):
            first = max(one.span.start, row * BLOCK)
            last = min(one.span.stop, (row + 1) * BLOCK) - 1
            whole_N = np.zeros(some_MN.shape[1], dtype=bool)
            # Ranges move on with the query: the first and the last bound what all and any see.
            for least, most, stop, end in (
                (one.own(first), one.own(last), first + 1, last + 1),
                (one.prompt(first), one.prompt(last), one.prompt_stop, one.prompt_stop),
            ):
                if least < end:
                    some_MN[row, least // BLOCK : -(-end // BLOCK)] = True
                whole_N[-(-most // BLOCK) : stop // BLOCK] = True
            full_MN[row] &= whole_N
    return some_MN, full_MN


def _lists(blocks_MN: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], ...]:
    """How many blocks of each row are set, and which, those first."""
    counts_M = blocks_MN.sum(1)
    order_MN = np.argsort(~blocks_MN, axis=1, kind="stable")
    return counts_M.astype(np.int32)[None, None], order_MN.astype(np.int32)[None, None]
