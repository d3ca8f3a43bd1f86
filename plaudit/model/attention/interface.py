"""Attention over packed trees: each branch sees its own prompt and itself, and nothing else.

Registered with transformers under :data:`PACKED_ATTENTION`; the layout arrives as the extra
keyword argument ``packed_layout`` of the model call. No mask function is registered under that
name, so transformers builds no mask and does not guess packed positions.

Shapes: H query heads, G key/value heads (a divisor of H), T tokens of the row, D head width.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from plaudit.errors import ModelError
from plaudit.model.attention import cpu
from plaudit.model.attention.layer import Settings, once_a_layout
from plaudit.model.fast.last_layer import attend_scored, few_scored
from plaudit.types import PackedLayout, to_device

PACKED_ATTENTION = "plaudit_packed"

# Arguments transformers hands to every attention function that do not change what is computed
# here: the layout says who sees whom, and positions are already rotated into queries and keys.
_HARMLESS = frozenset({"position_ids", "use_cache", "output_attentions", "output_hidden_states"})


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
    if scored_only and few_scored(packed_layout):
        out_1HTD = attend_scored(query_1HTD, key_1GTD, value_1GTD, packed_layout, settings)
        return out_1HTD.transpose(1, 2), None
    backend = BACKENDS[choose_backend(query_1HTD, settings)]
    out_1HTD = backend(query_1HTD, key_1GTD, value_1GTD, packed_layout, settings)
    return out_1HTD.transpose(1, 2).contiguous(), None


@once_a_layout
def _longest(layout: PackedLayout) -> int:
    """Tokens of the longest conversation."""
    return max(tree.visible + max(tree.branches) for tree in layout.placed())


def choose_backend(query: Tensor, settings: Settings) -> str:
    """The fastest that computes what is asked; ``sdpa`` runs anywhere but has no soft-capping."""
    if settings.softcap is not None:
        return "explicit"
    if query.device.type == "cpu" and settings.window is None and cpu.available():
        return "cpu"
    if query.is_cuda and _varlen_call() is not None and _varlen_takes(query):
        return "varlen"
    return "sdpa"


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


def varlen(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, settings: Settings) -> Tensor:
    """One fused call for the whole row (CUDA, half precision).

    The spans' queries already lie end to end; keys and values are gathered so that each span's
    prompt stands in front of its own tokens. Causality is lower-right there.
    """
    plan = varlen_plan(layout, q.device)
    q_THD, k_SGD, v_SGD = (
        q[0].transpose(0, 1),
        k[0].transpose(0, 1)[plan.keys_S],
        v[0].transpose(0, 1)[plan.keys_S],
    )
    call = _varlen_call()
    assert call is not None, "choose_backend asks for it"
    if not call.has_gqa and q_THD.shape[1] != k_SGD.shape[1]:
        repeats = q_THD.shape[1] // k_SGD.shape[1]
        k_SGD = k_SGD.repeat_interleave(repeats, dim=1)
        v_SGD = v_SGD.repeat_interleave(repeats, dim=1)
    arguments: dict[str, Any] = {"scale": settings.scale}
    if call.has_gqa:
        arguments["enable_gqa"] = q_THD.shape[1] != k_SGD.shape[1]
    if call.has_window:
        # transformers' window counts the token itself, the kernel's counts those before it.
        arguments["window_size"] = (-1 if settings.window is None else settings.window - 1, 0)
    else:
        arguments["is_causal"] = True
    out_THD = call.function(
        q_THD.contiguous(),
        k_SGD.contiguous(),
        v_SGD.contiguous(),
        plan.queries_cumulative,
        plan.keys_cumulative,
        plan.longest_query,
        plan.longest_key,
        **arguments,
    )
    return out_THD.transpose(0, 1)[None]  # type: ignore[no-any-return]


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, PackedLayout, Settings], Tensor]] = {
    "sdpa": sdpa,
    "explicit": explicit,
    "varlen": varlen,
    "cpu": cpu.attend,
}


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


@dataclass(frozen=True, slots=True)
class VarlenPlan:
    """Offsets of the fused call: S gathered keys, cumulative lengths, longest spans."""

    keys_S: Tensor
    queries_cumulative: Tensor
    keys_cumulative: Tensor
    longest_query: int
    longest_key: int


@once_a_layout
def varlen_plan(layout: PackedLayout, device: torch.device) -> VarlenPlan:
    """The fused call's offsets."""
    calls = list(spans(layout))
    queries = [span.stop - span.start for span in calls]
    keys = [span.shared + span.stop - span.start for span in calls]
    pieces = (
        torch.arange(start, stop)
        for span in calls
        for start, stop in ((span.prefix, span.prefix + span.shared), (span.start, span.stop))
    )
    return VarlenPlan(
        keys_S=to_device(torch.cat(list(pieces)), device),
        queries_cumulative=_cumulative(queries, device),
        keys_cumulative=_cumulative(keys, device),
        longest_query=max(queries),
        longest_key=max(keys),
    )


def _cumulative(lengths: Iterable[int], device: torch.device) -> Tensor:
    return to_device(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)


@dataclass(frozen=True, slots=True)
class VarlenCall:
    """The installed torch's ``varlen_attn`` and what its signature has.

    ``window_size`` replaced ``is_causal`` and ``enable_gqa`` came later, so the signature is
    asked instead of a version number.
    """

    function: Callable[..., Any]
    has_window: bool
    has_gqa: bool


def _varlen_takes(query: Tensor) -> bool:
    """Whether flash attention, which is behind the call, has a kernel for such heads on this GPU.

    It needs half precision, Ampere or newer, and heads whose width is a multiple of 8 up to 256.
    """
    width = query.shape[-1]
    return (
        query.dtype in (torch.float16, torch.bfloat16)
        and width % 8 == 0
        and width <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@functools.cache
def _varlen_call() -> VarlenCall | None:
    """The call, None where the installed torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    return VarlenCall(
        function=varlen_attn,
        has_window="window_size" in parameters,
        has_gqa="enable_gqa" in parameters,
    )


# A layout is different in every batch, and a compiled call would be compiled anew for each.
AttentionInterface.register(
    PACKED_ATTENTION,
    torch.compiler.disable(packed_attention),  # type: ignore[no-untyped-call]
)
