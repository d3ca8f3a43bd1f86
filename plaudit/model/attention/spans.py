"""Packed attention as one call per span, on any device: by SDPA, or written out.

Shapes: H query heads, G key/value heads (a divisor of H), T tokens of the row, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.model.attention.layer import Settings, once_a_layout
from plaudit.types import PackedLayout


@dataclass(frozen=True, slots=True)
class Span:
    """One attention call: queries ``[start, stop)`` after ``shared`` prompt keys at ``prefix``.

    The keys of a cached prompt lie behind the row's.
    """

    prefix: int
    shared: int
    start: int
    stop: int


def spans(layout: PackedLayout) -> Iterator[Span]:
    """The calls that cover a layout: prompt + first branch in one, then each further branch.

    Where the prompt is cached, every branch is a call of its own. The query ranges lie end to end
    and cover every token once.
    """
    for tree in layout.placed():
        begin = tree.start
        lengths = tree.branches
        if not tree.cached:
            begin += tree.prefix + lengths[0]
            lengths = lengths[1:]
            yield Span(prefix=tree.start, shared=0, start=tree.start, stop=begin)
        for length in lengths:
            yield Span(
                prefix=tree.prompt.start, shared=tree.visible, start=begin, stop=begin + length
            )
            begin += length


def sdpa(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, settings: Settings) -> Tensor:
    """One ``scaled_dot_product_attention`` call per span. Runs anywhere, in any precision."""
    out: list[Tensor] = []
    grouped = q.shape[1] != k.shape[1]
    for span, queries, keys, values in _pieces(q, k, v, layout):
        mask = visible(layout, span, settings.window, q.device)
        out.append(
            F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None and span.shared == 0,
                scale=settings.scale,
                enable_gqa=grouped,
            )
        )
    return torch.cat(out, dim=2)


def explicit(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, settings: Settings) -> Tensor:
    """The written-out product, for soft-capped logits (Gemma 2), which SDPA cannot express."""
    out: list[Tensor] = []
    repeats = q.shape[1] // k.shape[1]
    for span, queries, keys, values in _pieces(q, k, v, layout):
        keys = keys.repeat_interleave(repeats, dim=1)
        values = values.repeat_interleave(repeats, dim=1)
        logits = queries @ keys.transpose(2, 3) * settings.scale
        if settings.softcap is not None:
            logits = torch.tanh(logits / settings.softcap) * settings.softcap
        mask = lower_right(layout, queries.shape[2], span.shared, settings.window, q.device)
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype)
        out.append(weights @ values)
    return torch.cat(out, dim=2)


def _pieces(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout
) -> Iterator[tuple[Span, Tensor, Tensor, Tensor]]:
    """Each span with its queries, and the keys and values it sees: its prompt, then its own.

    The row is split once: the gradient of a split is one concatenation, where a slice for every
    span would fill a whole row with zeros for each of them.
    """
    calls = list(spans(layout))
    sizes = [span.stop - span.start for span in calls]
    row = layout.tokens
    own_k, own_v = (k, v) if k.shape[2] == row else (k[:, :, :row], v[:, :, :row])
    prompt = k[:, :, :0], v[:, :, :0]
    for number, (span, queries, keys, values) in enumerate(
        zip(
            calls, *(torch.split(tensor, sizes, dim=2) for tensor in (q, own_k, own_v)), strict=True
        )
    ):
        if span.shared:
            if span.prefix >= row:
                cached = slice(span.prefix, span.prefix + span.shared)
                prompt = k[:, :, cached], v[:, :, cached]
            yield (
                span,
                queries,
                torch.cat([prompt[0], keys], dim=2),
                torch.cat([prompt[1], values], dim=2),
            )
            continue
        yield span, queries, keys, values
        following = calls[number + 1].shared if number + 1 < len(calls) else 0
        prompt = keys[:, :, :following], values[:, :, :following]


def visible(
    layout: PackedLayout, span: Span, window: int | None, device: torch.device
) -> Tensor | None:
    """The mask a span needs, None where a causal flag (or nothing, for one query) serves.

    SDPA's own causal flag is upper-left when queries and keys differ in number, so a branch
    behind a prompt needs its mask written out.
    """
    queries = span.stop - span.start
    reaches = window is not None and queries + span.shared > window
    if not reaches and (span.shared == 0 or queries == 1):
        return None
    return lower_right(layout, queries, span.shared, window, device)


@once_a_layout
def lower_right(
    layout: PackedLayout, queries: int, shared: int, window: int | None, device: torch.device
) -> Tensor:
    """Boolean ``[queries, keys]``: causal from the lower right corner, within the window.

    Spans of one shape share their mask.
    """
    at_Q1 = torch.arange(shared, shared + queries, device=device)[:, None]
    at_1K = torch.arange(shared + queries, device=device)[None]
    mask = at_1K <= at_Q1
    if window is not None:
        mask &= at_1K > at_Q1 - window
    return mask
