"""Packed attention on a CPU: no masks, no copies of a prompt's keys, few calls.

A tree is three kinds of calls. Its prompt and first branch are one causal call. The queries of all
further branches (of all, where the prompt is cached) meet the prompt in one call that needs no
mask, since they see all of it. Each of those branches meets itself in a causal call,
branches of one length in a row together. The two halves of a branch's softmax are then joined by
their log-sum-exp, as flash attention joins its blocks (Dao et al. 2022, arXiv 2205.14135, section
3.1).

The joined output and log-sum-exp are also all that the backward pass of each half needs: a
probability is ``exp(logit - logsumexp)`` whichever call recomputes it.

Shapes: H query heads, G key/value heads, T tokens of the row, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from plaudit.model.attention.layer import Settings, once_a_layout
from plaudit.types import PackedLayout

# The kernels behind scaled_dot_product_attention on a CPU. The public function does not return the
# log-sum-exp that joining needs; a law test compares every backend with plain transformers.
_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"


# The gradient of the output, queries, keys, values, the output and the log-sum-exp of its logits.
Saved: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def available() -> bool:
    """Whether this torch has the kernels."""
    return hasattr(torch.ops.aten, _FORWARD) and hasattr(torch.ops.aten, _BACKWARD)


@dataclass(frozen=True, slots=True)
class Tree:
    """Where one tree lies: ``[start, first)`` is causal, ``[first, stop)`` sees the prompt too.

    ``prompt`` are its keys. ``runs`` are ``(begin, branches, length)`` of further branches of one
    length, end to end.
    """

    start: int
    prompt: slice
    first: int
    stop: int
    runs: tuple[tuple[int, int, int], ...]

    @property
    def joins(self) -> bool:
        """Whether branches meet the prompt in a call of their own."""
        return bool(self.prompt.start < self.prompt.stop and self.first < self.stop)


@once_a_layout
def trees(layout: PackedLayout) -> list[Tree]:
    """The layout as calls."""
    found = []
    for tree in layout.placed():
        alone = 0 if tree.cached else 1
        first = begin = tree.start + tree.prefix + sum(tree.branches[:alone])
        runs = []
        for length, members in groupby(tree.branches[alone:]):
            branches = len(list(members))
            runs.append((begin, branches, length))
            begin += branches * length
        found.append(Tree(tree.start, tree.prompt, first, begin, tuple(runs)))
    return found


def attend(
    q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor, layout: PackedLayout, settings: Settings
) -> Tensor:
    """Attention of every token to its prompt and its own branch, without a window or a soft-cap.

    Returns ``[1, H, T, D]``.
    """
    repeats = q_1HTD.shape[1] // k_1GTD.shape[1]
    if repeats > 1:
        # The backward kernel wants as many key heads as query heads.
        k_1GTD = k_1GTD.repeat_interleave(repeats, dim=1)
        v_1GTD = v_1GTD.repeat_interleave(repeats, dim=1)
    out_1HTD: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
        q_1HTD, k_1GTD, v_1GTD, layout, settings.scale
    )
    return out_1HTD


class _Attend(torch.autograd.Function):
    """All calls of a row as one node of the graph: gradients are written where they belong."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scale: float
    ) -> Tensor:
        out = _rows_like(q)
        sums = torch.empty(q.shape[:3], dtype=torch.float32)
        for tree in trees(layout):
            own = slice(tree.start, tree.first)
            if tree.start < tree.first:
                out[:, :, own], sums[:, :, own] = _call(q, k, v, own, own, scale, causal=True)
            if tree.first < tree.stop:
                _later_branches(q, k, v, out, sums, tree, scale)
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        grads = tuple(_rows_like(tensor) for tensor in (q, k, v))
        given: Saved = (grad, q, k, v, out, sums)
        for tree in trees(ctx.layout):
            own = slice(tree.start, tree.first)
            if tree.start < tree.first:
                parts = _call_backward(given, own, own, ctx.scale, causal=True)
                for whole, part in zip(grads, parts, strict=True):
                    whole[:, :, own] = part
            for begin, branches, length in tree.runs:
                run = slice(begin, begin + branches * length)
                own_parts = [_as_batch(tensor[:, :, run], branches) for tensor in given]
                parts = _kernel_backward(own_parts, ctx.scale, causal=True)
                for whole, part in zip(grads, parts, strict=True):
                    _as_batch(whole[:, :, run], branches).copy_(part)
            if tree.joins:
                later, prompt = slice(tree.first, tree.stop), tree.prompt
                parts = _call_backward(given, later, prompt, ctx.scale, causal=False)
                for whole, part, where in zip(grads, parts, (later, prompt, prompt), strict=True):
                    whole[:, :, where] += part
        return (*grads, None, None)


def _later_branches(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, tree: Tree, scale: float
) -> None:
    """Branches after the first: each with itself, then joined with what the prompt adds."""
    for begin, branches, length in tree.runs:
        run = slice(begin, begin + branches * length)
        own_parts = [_as_batch(tensor[:, :, run], branches) for tensor in (q, k, v)]
        found, found_sums = _kernel(own_parts, scale, causal=True)
        _as_batch(out[:, :, run], branches).copy_(found)
        _as_batch(sums[:, :, run], branches).copy_(found_sums)
    if not tree.joins:
        return
    later = slice(tree.first, tree.stop)
    seen, seen_sums = _call(q, k, v, later, tree.prompt, scale, causal=False)
    own_sums = sums[:, :, later]
    joined = torch.logaddexp(own_sums, seen_sums)
    weight = torch.exp(seen_sums - joined)[..., None].to(out.dtype)
    out[:, :, later] = torch.lerp(out[:, :, later], seen, weight)
    sums[:, :, later] = joined


def _call(
    q: Tensor, k: Tensor, v: Tensor, queries: slice, keys: slice, scale: float, *, causal: bool
) -> tuple[Tensor, Tensor]:
    return _kernel((q[:, :, queries], k[:, :, keys], v[:, :, keys]), scale, causal=causal)


def _call_backward(
    given: Saved, queries: slice, keys: slice, scale: float, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad, q, k, v, out, sums = given
    of_queries, of_keys = (slice(None), slice(None), queries), (slice(None), slice(None), keys)
    part = (grad[of_queries], q[of_queries], k[of_keys], v[of_keys])
    return _kernel_backward((*part, out[of_queries], sums[of_queries]), scale, causal=causal)


def _kernel(given: Sequence[Tensor], scale: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of queries, keys and values."""
    found: tuple[Tensor, Tensor] = getattr(torch.ops.aten, _FORWARD)(
        *given, 0.0, causal, scale=scale
    )
    return found


def _kernel_backward(
    given: Sequence[Tensor], scale: float, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; ``given`` has the order of :data:`Saved`."""
    found: tuple[Tensor, Tensor, Tensor] = getattr(torch.ops.aten, _BACKWARD)(
        *given, 0.0, causal, scale=scale
    )
    return found


def _as_batch(tensor_1HTx: Tensor, branches: int) -> Tensor:
    """Branches of one length, end to end in the row, as a batch; a view."""
    parts: Tensor = tensor_1HTx.unflatten(2, (branches, -1))  # type: ignore[no-untyped-call]
    return parts[0].transpose(0, 1)


def _rows_like(tensor_1HTD: Tensor) -> Tensor:
    """Empty ``[1, H, T, D]`` with each token in one piece, as the layers around it want."""
    one, heads, tokens, width = tensor_1HTD.shape
    return tensor_1HTD.new_empty(one, tokens, heads, width).transpose(1, 2)
