"""Packed attention by flash attention's kernel for variable lengths (CUDA, half precision).

A call of the kernel takes segments: queries and keys that lie end to end, each query seeing keys of
its own segment alone, all of them or causally from the lower right corner. Two plans cover a row:

- :func:`varlen` is one call. Each branch behind the first has a copy of its prompt's keys in front
  of its own. The copies live while a layer's call runs; the backward pass makes them again.
- :func:`two_calls` copies no prompt for a branch. All segments of the row meet themselves; then the
  queries of a tree's later branches meet their prompt, which they see all of. The halves of a
  softmax are joined by their log-sum-exp (Dao et al. 2022, arXiv 2205.14135, section 3.1). Those
  queries, and each prompt once, are copied to lie end to end: the backward operator knows no
  segments with gaps. A window narrows the second call differently for each branch, so layers with
  one use the other plan.

A last layer asks for its scored tokens alone: the same plans, each with one query where a segment
had many.

The joined output and log-sum-exp are all that the backward pass of each call needs: a probability
is ``exp(logit - logsumexp)`` whichever call recomputes it. ``torch.nn.attention.varlen`` drops the
gradient that would flow through its log-sum-exp, so the operators below it are called here.

No segment is empty: what kernels write for one is not documented.

Shapes: H query heads, G key/value heads (a divisor of H), T tokens of the row, S keys of the row
and behind it, D head width.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import accumulate, groupby
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

from plaudit.model.attention.layer import Settings, once_a_layout
from plaudit.model.attention.spans import Span, spans
from plaudit.model.fast.last_layer import few_scored, scored_rows, spread
from plaudit.types import PackedLayout, arrays_to_device

logger = logging.getLogger("plaudit")

Index: TypeAlias = npt.NDArray[np.int64]


# ---- plans


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the kernel: segment i has queries ``[q[i], q[i + 1])`` and keys likewise.

    ``queries_Q`` are the rows among the given queries that take part, ``keys_S`` those among the
    keys; None for all queries, and for the keys that lie in the row.
    """

    queries_Q: Tensor | None
    keys_S: Tensor | None
    query_offsets: Tensor
    key_offsets: Tensor
    longest_query: int
    longest_key: int
    causal: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls for the whole row, and those for its scored tokens where they are few.

    ``row`` is how many keys lie in the row: those of cached prompts follow.
    """

    row: int
    whole: tuple[Call, ...]
    scored: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class _Segments:
    """A :class:`Call` before it is on the device."""

    query_lengths: Sequence[int]
    key_lengths: Sequence[int]
    queries_Q: Index | None = None
    keys_S: Index | None = None
    causal: bool = True


@once_a_layout
def gathered_plan(layout: PackedLayout, device: torch.device) -> Plan:
    """One call for the row; each span's prompt stands in front of its own keys."""
    calls = list(spans(layout))
    whole = _gathered(calls, [span.stop - span.start for span in calls])
    return _on_device(layout, [whole], _gathered_scored(layout, calls), device)


@once_a_layout
def joined_plan(layout: PackedLayout, device: torch.device) -> Plan:
    """All spans with themselves, then the later branches of each tree with their prompt."""
    calls = list(spans(layout))
    whole = _joined(calls, [span.stop - span.start for span in calls])
    if [span.stop - 1 for span in calls] == list(layout.ends):
        scored = _joined(calls, [1] * len(calls))
    else:
        # A token in the middle of a span sees part of it, which is no segment of the row.
        scored = _gathered_scored(layout, calls)
    return _on_device(layout, whole, scored, device)


def _gathered(seen: Sequence[Span], query_lengths: Sequence[int]) -> _Segments:
    """The last queries of each span, in front of whose own keys its prompt's are put."""
    own = [span.stop - span.start for span in seen]
    starts = [start for span in seen for start in (span.prefix, span.start)]
    lengths = [length for span, n in zip(seen, own, strict=True) for length in (span.shared, n)]
    return _Segments(
        query_lengths=query_lengths,
        key_lengths=[span.shared + n for span, n in zip(seen, own, strict=True)],
        keys_S=_ranges(starts, lengths),
    )


def _gathered_scored(layout: PackedLayout, calls: Sequence[Span]) -> list[_Segments]:
    """A query of one token for each that is scored; no call where they are many."""
    if not few_scored(layout):
        return []
    firsts = [span.start for span in calls]
    within = [calls[bisect_right(firsts, end) - 1] for end in layout.ends]
    seen = [replace(span, stop=end + 1) for span, end in zip(within, layout.ends, strict=True)]
    return [_gathered(seen, [1] * len(seen))]


def _joined(calls: Sequence[Span], query_lengths: Sequence[int]) -> list[_Segments]:
    """The last queries of each span with its own keys; those behind a prompt also with that."""
    own = _Segments(query_lengths, [span.stop - span.start for span in calls])
    firsts = list(accumulate(query_lengths, initial=0))
    later = [(number, span) for number, span in enumerate(calls) if span.shared]
    starts, lengths, prompts = [], [], []
    for prompt, members in groupby(later, lambda one: (one[1].prefix, one[1].shared)):
        numbers = [number for number, _ in members]
        starts.append(firsts[numbers[0]])
        lengths.append(firsts[numbers[-1] + 1] - starts[-1])
        prompts.append(prompt)
    if not prompts:
        return [own]
    prompt_starts, prompt_lengths = zip(*prompts, strict=True)
    met = _Segments(
        query_lengths=lengths,
        key_lengths=prompt_lengths,
        queries_Q=_ranges(starts, lengths),
        keys_S=_ranges(prompt_starts, prompt_lengths),
        causal=False,
    )
    return [own, met]


def _ranges(starts: Sequence[int], lengths: Sequence[int]) -> Index:
    """``starts[0], starts[0] + 1, …`` for its length, then those of the next."""
    stops = np.cumsum(lengths)
    shift = np.asarray(starts) - stops + np.asarray(lengths)
    return np.repeat(shift, lengths) + np.arange(stops[-1])


def _on_device(
    layout: PackedLayout,
    whole: Sequence[_Segments],
    scored: Sequence[_Segments],
    device: torch.device,
) -> Plan:
    """The plan's arrays on the device, all in one copy."""
    arrays: list[npt.NDArray[Any]] = []
    for one in (*whole, *scored):
        arrays += [_offsets(one.query_lengths), _offsets(one.key_lengths)]
        arrays += [index for index in (one.queries_Q, one.keys_S) if index is not None]
    moved = iter(arrays_to_device(arrays, device))
    calls = [
        Call(
            query_offsets=next(moved),
            key_offsets=next(moved),
            queries_Q=None if one.queries_Q is None else next(moved),
            keys_S=None if one.keys_S is None else next(moved),
            longest_query=max(one.query_lengths),
            longest_key=max(one.key_lengths),
            causal=one.causal,
        )
        for one in (*whole, *scored)
    ]
    return Plan(layout.tokens, tuple(calls[: len(whole)]), tuple(calls[len(whole) :]))


def _offsets(lengths: Sequence[int]) -> npt.NDArray[np.int32]:
    return np.cumsum([0, *lengths], dtype=np.int32)


# ---- forms


def suits(query: Tensor) -> bool:
    """Whether flash attention has a kernel for such heads on this GPU.

    It needs half precision, Ampere or newer, and heads whose width is a multiple of 8 up to 256.
    """
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and width % 8 == 0
        and width <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and torch.backends.cuda.is_flash_attention_available()
    )


def varlen(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, settings: Settings) -> Tensor:
    """The row in one call; ``[1, H, T, D]``."""
    return _whole(q, k, v, gathered_plan(layout, q.device), settings)


def varlen_scored(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, settings: Settings
) -> Tensor:
    """The scored tokens in one call, zeros for all others; ``[1, H, T, D]``."""
    return _scored(q, k, v, layout, gathered_plan(layout, q.device), settings)


def two_calls(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, settings: Settings) -> Tensor:
    """The row in two calls, without a window; ``[1, H, T, D]``."""
    return _whole(q, k, v, joined_plan(layout, q.device), settings)


def two_calls_scored(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, settings: Settings
) -> Tensor:
    """The scored tokens in two calls, zeros for all others; ``[1, H, T, D]``."""
    return _scored(q, k, v, layout, joined_plan(layout, q.device), settings)


def _whole(q: Tensor, k: Tensor, v: Tensor, plan: Plan, settings: Settings) -> Tensor:
    q_THD, k_SGD, v_SGD = (tensor[0].transpose(0, 1).contiguous() for tensor in (q, k, v))
    out_THD: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
        q_THD, k_SGD, v_SGD, plan.whole, plan.row, settings
    )
    return out_THD.transpose(0, 1)[None]


def _scored(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, plan: Plan, settings: Settings
) -> Tensor:
    rows_R = scored_rows(layout, q.device)
    q_RHD = q[0].transpose(0, 1).index_select(0, rows_R)
    k_SGD, v_SGD = (tensor[0].transpose(0, 1).contiguous() for tensor in (k, v))
    out_RHD: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
        q_RHD, k_SGD, v_SGD, plan.scored, plan.row, settings
    )
    return spread(out_RHD[None], rows_R, q.shape[2]).transpose(1, 2)


class _Attend(torch.autograd.Function):
    """All calls of a plan as one node of the graph; keeps nothing that was gathered."""

    @staticmethod
    def forward(
        ctx: Any,
        q_QHD: Tensor,
        k_SGD: Tensor,
        v_SGD: Tensor,
        calls: tuple[Call, ...],
        row: int,
        settings: Settings,
    ) -> Tensor:
        first, *joined = calls
        keys = (_taken(tensor, first.keys_S, row) for tensor in (k_SGD, v_SGD))
        out, sums = _kernel([q_QHD, *keys], first, settings)
        for call in joined:
            rows_Q, keys_S = call.queries_Q, call.keys_S
            assert rows_Q is not None, "a second call is for some of the queries"
            chosen = [
                _taken(tensor, rows, row)
                for tensor, rows in ((q_QHD, rows_Q), (k_SGD, keys_S), (v_SGD, keys_S))
            ]
            seen, seen_sums = _kernel(chosen, call, settings)
            own, own_sums = out.index_select(0, rows_Q), sums.index_select(1, rows_Q)
            joint = torch.logaddexp(own_sums, seen_sums)
            weight = torch.exp(seen_sums - joint).T[..., None]
            # In fp32: a weight in half precision would err as much as the two halves do.
            whole = torch.lerp(own.float(), seen.float(), weight)
            out.index_copy_(0, rows_Q, whole.to(out.dtype))
            sums.index_copy_(1, rows_Q, joint)
        ctx.save_for_backward(q_QHD, k_SGD, v_SGD, out, sums)
        ctx.calls, ctx.row, ctx.settings = calls, row, settings
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        totals: list[Tensor] = []
        for call in ctx.calls:
            rows_Q, keys_S = call.queries_Q, call.keys_S
            parts = _kernel_backward(
                (
                    *(_taken(tensor, rows_Q, len(q)) for tensor in (grad, q)),
                    *(_taken(tensor, keys_S, ctx.row) for tensor in (k, v)),
                    _taken(out, rows_Q, len(q)),
                    sums if rows_Q is None else sums.index_select(1, rows_Q),
                ),
                call,
                ctx.settings,
            )
            if totals:
                for total, part, rows in zip(totals, parts, (rows_Q, keys_S, keys_S), strict=True):
                    total.index_add_(0, rows, part)
            else:
                totals = [parts[0], *(_put_back(part, keys_S, k) for part in parts[1:])]
        return (*totals, None, None, None)


def _taken(tensor: Tensor, rows: Tensor | None, row: int) -> Tensor:
    """These rows of a tensor; without any, those that lie in the row."""
    return tensor[:row] if rows is None else tensor.index_select(0, rows)


def _put_back(part: Tensor, rows: Tensor | None, like: Tensor) -> Tensor:
    """A gradient of what :func:`_taken` took. Copies of one key are added up in fp32."""
    if rows is not None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        whole = torch.zeros(like.shape, dtype=dtype, device=like.device)
        return whole.index_add_(0, rows, part.to(dtype)).to(like.dtype)
    behind = len(like) - len(part)
    return F.pad(part, (0, 0, 0, 0, 0, behind)) if behind else part


# ---- the kernel, as torch.nn.attention.varlen calls it


def use_flash_attention_3(device: torch.device) -> bool:
    """Put FlashAttention 3 behind PyTorch's operators where it is installed; whether it is there.

    It is for Hopper GPUs (Shah et al. 2024, arXiv 2407.08608). Another implementation that was
    activated in this process stays. PyTorch's own attention then uses it too.
    """
    if (
        device.type == "cuda"
        and torch.version.hip is None
        and current_flash_attention_impl() is None
        and torch.cuda.get_device_capability(device)[0] == 9
        and find_spec("flash_attn_interface") is not None
    ):
        try:
            activate_flash_attention_impl("FA3")
        except (ImportError, OSError, RuntimeError) as error:
            logger.warning(
                "flash_attn_interface is installed, but does not work with PyTorch %s (%s);"
                " FlashAttention 2 is used.",
                torch.__version__,
                error,
            )
    return current_flash_attention_impl() == "FA3"


def _kernel(given: Sequence[Tensor], call: Call, settings: Settings) -> tuple[Tensor, Tensor]:
    """Output ``[Q, H, D]`` and log-sum-exp ``[H, Q]`` in fp32 of queries, keys and values.

    The kernel takes grouped heads as they are, whatever the public function's signature says.
    """
    out, sums, *_ = torch.ops.aten._flash_attention_forward(
        *given,
        call.query_offsets,
        call.key_offsets,
        call.longest_query,
        call.longest_key,
        0.0,
        call.causal and settings.window is None,
        False,
        **_reach(call, settings),
    )
    return out, sums


def _kernel_backward(
    saved: tuple[Tensor, ...], call: Call, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values.

    ``saved`` are the output's gradient, queries, keys, values, the output and its log-sum-exp.
    """
    # The state of dropout's random numbers, of which there are none.
    state = saved[0].new_empty(2, dtype=torch.uint64), saved[0].new_empty(0)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        *saved,
        call.query_offsets,
        call.key_offsets,
        call.longest_query,
        call.longest_key,
        0.0,
        call.causal and settings.window is None,
        *state,
        **_reach(call, settings),
    )
    return found


def _reach(call: Call, settings: Settings) -> dict[str, float | int]:
    """Scale and window; transformers counts the token itself, the kernel those before it."""
    return {
        "scale": settings.scale,
        "window_size_left": -1 if settings.window is None else settings.window - 1,
        "window_size_right": 0 if call.causal else -1,
    }
