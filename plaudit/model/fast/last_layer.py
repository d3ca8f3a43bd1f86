"""The last decoder layer computes the scored tokens alone; what it makes of others, nobody reads.

Its keys and values come from every token. Everything else it does is token by token: queries, the
output projection, the feed-forward part, norms and sums. A packed call therefore hands the layer's
own code the scored rows, and hooks on its attention put the missing ones back where they are
needed: the attention reads all rows, its query projection computes the scored ones, and its output
projection gets the scored ones. Numbers and gradients are those of the whole layer.

The layer is patched in place (:class:`plaudit.model.fast.patched.PatchedModule`): state, names and
every other method are inherited, and a call without a packed layout is the class's own.

Shapes: T tokens of the row, S of one tree, R scored tokens of the row, K of one tree, H query
heads, G key/value heads (a divisor of H), D head width.
"""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plaudit.model.attention.layer import Settings, once_a_layout
from plaudit.model.fast.patched import PatchedModule
from plaudit.types import PackedLayout, PlacedTree, arrays_to_device


class _Pass(threading.local):
    """What the hooks need while a last layer runs; each thread has its own."""

    whole_1TD: Tensor | None = None
    rows_R: Tensor | None = None

    @contextlib.contextmanager
    def of(self, whole_1TD: Tensor, rows_R: Tensor) -> Iterator[None]:
        self.whole_1TD, self.rows_R = whole_1TD, rows_R
        try:
            yield
        finally:
            self.whole_1TD = self.rows_R = None


_PASS = _Pass()


class ScoredRows(PatchedModule):
    """Mixed in before a decoder layer's class: a packed row's scored tokens alone come out."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        layout = kwargs.get("packed_layout")
        if layout is None:
            return super().forward(hidden_states, *args, **kwargs)
        # An adapter that was merged since has left other modules in its place.
        _hook(self)
        rows_R = scored_rows(layout, hidden_states.device)
        norm = _child(self, "input_layernorm")
        whole_1TD = hidden_states if norm is None else norm(hidden_states)
        with _PASS.of(whole_1TD, rows_R):
            return super().forward(
                hidden_states.index_select(1, rows_R), *args, scored_only=True, **kwargs
            )


def narrow_last_layer(body: Any) -> None:
    """Let the last layer of a decoder compute scored rows only, where its parts have known names.

    A layer whose instance has a ``forward`` of its own stays as it is: its class cannot change it.
    """
    layer = next(reversed(getattr(body, "layers", None) or [None]))
    if layer is None or isinstance(layer, ScoredRows):
        return
    if "forward" in vars(layer) or not _hook(layer):
        return
    layer.__class__ = ScoredRows.of(type(layer))


def is_narrowed(body: Any) -> bool:
    """Whether a packed pass of this body returns its scored rows alone."""
    return any(isinstance(layer, ScoredRows) for layer in getattr(body, "layers", ()))


def is_compiled(body: Any) -> bool:
    """Whether ``torch.compile`` runs a body's layers: it has fused, for shapes of its own."""
    layers = getattr(body, "layers", None) or ()
    return any(layer._compiled_call_impl is not None for layer in layers)


def _hook(layer: nn.Module) -> bool:
    """Put the hooks on a layer's attention where they are missing; False where none would fit."""
    attention = _child(layer, "self_attn", "attention")
    output = None if attention is None else _child(attention, "o_proj", "dense")
    if attention is None or output is None:
        return False
    if _all_rows not in attention._forward_pre_hooks.values():
        attention.register_forward_pre_hook(_all_rows, with_kwargs=True)
    if _chosen not in output._forward_pre_hooks.values():
        output.register_forward_pre_hook(_chosen)
    query = _child(attention, "q_proj")
    if query is not None and _chosen not in query._forward_pre_hooks.values():
        query.register_forward_pre_hook(_chosen)
        query.register_forward_hook(_spread)
    return True


def _child(module: nn.Module, *names: str) -> nn.Module | None:
    children = dict(module.named_children())
    return next((children[name] for name in names if name in children), None)


def _all_rows(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The attention gets the whole row in place of the layer's chosen ones."""
    if _PASS.whole_1TD is None:
        return None
    if args:
        return (_PASS.whole_1TD, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": _PASS.whole_1TD}


def _chosen(module: nn.Module, args: tuple[Any, ...]) -> Any:
    return None if _PASS.rows_R is None else (args[0].index_select(1, _PASS.rows_R),)


def _spread(module: nn.Module, args: tuple[Any, ...], out_1RD: Tensor) -> Any:
    """Chosen rows back to their places in a row as long as the attention expects."""
    if _PASS.rows_R is None or _PASS.whole_1TD is None:
        return None
    return spread(out_1RD, _PASS.rows_R, _PASS.whole_1TD.shape[1])


def spread(some_1RD: Tensor, rows_R: Tensor, tokens: int) -> Tensor:
    """``[1, T, ...]`` with these rows at their places and zeros elsewhere."""
    row = some_1RD.new_zeros(1, tokens, *some_1RD.shape[2:])
    return row.index_copy(1, rows_R, some_1RD)


@once_a_layout
def scored_rows(layout: PackedLayout, device: torch.device) -> Tensor:
    """The layout's scored tokens as an index, one copy for all that ask."""
    (rows_R,) = arrays_to_device([np.asarray(layout.ends, np.int64)], device)
    return rows_R


MOST_SCORED = 64
"""Scored tokens of a tree, on average over tokens, up to which their attention is written out: its
weights then take about the room of one activation."""


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Per tree its tokens, its scored tokens, and which of the former each of the latter sees.

    ``keys_S`` brings the keys into the order of the trees where prompts are cached, behind the row.
    """

    tokens: list[int]
    scored: list[int]
    masks_KS: list[Tensor]
    keys_S: Tensor | None


@once_a_layout
def few_scored(layout: PackedLayout) -> bool:
    """Whether writing the scored tokens' attention out takes little memory.

    It holds a weight for each scored token and each token of its tree: little for the ends of
    responses, but the square of the length where a reward is read at every token.
    """
    weights = sum(tree.tokens * _scored(layout, tree) for tree in layout.placed())
    return weights <= MOST_SCORED * sum(tree.tokens for tree in layout.placed())


def _scored(layout: PackedLayout, tree: PlacedTree) -> int:
    """How many of a tree's tokens are scored."""
    return bisect_left(layout.ends, tree.stop) - bisect_left(layout.ends, tree.start)


def attend_scored(
    q_1HTD: Tensor,
    k_1GTD: Tensor,
    v_1GTD: Tensor,
    layout: PackedLayout,
    settings: Settings,
) -> Tensor:
    """Attention of the scored tokens to what each sees, written out; zeros for all others.

    A few queries for each tree make a small product, in fp32 in any precision of the body, so
    that one form serves every device, window and soft-cap. Returns ``[1, H, T, D]``.
    """
    plan = _row_plan(layout, settings.window, q_1HTD.device)
    rows_R = scored_rows(layout, q_1HTD.device)
    if plan.keys_S is not None:
        k_1GTD, v_1GTD = k_1GTD.index_select(2, plan.keys_S), v_1GTD.index_select(2, plan.keys_S)
    queries_1HRD = q_1HTD.index_select(2, rows_R)
    pieces = zip(
        torch.split(queries_1HRD, plan.scored, dim=2),
        torch.split(k_1GTD, plan.tokens, dim=2),
        torch.split(v_1GTD, plan.tokens, dim=2),
        plan.masks_KS,
        strict=True,
    )
    with torch.autocast(q_1HTD.device.type, enabled=False):
        found = [_product(q, k, v, mask, settings) for q, k, v, mask in pieces]
    out_1RHD = torch.cat(found, dim=1).transpose(0, 1)[None].to(v_1GTD.dtype)
    return spread(out_1RHD, rows_R, q_1HTD.shape[2]).transpose(1, 2)


def _product(
    q_1HKD: Tensor,
    k_1GSD: Tensor,
    v_1GSD: Tensor,
    mask_KS: Tensor,
    settings: Settings,
) -> Tensor:
    """``[H, K, D]``; queries of heads that share keys are rows of one product."""
    _, heads, scored, width = q_1HKD.shape
    groups = k_1GSD.shape[1]
    q_GMD = q_1HKD.float().reshape(groups, -1, width)
    logits_GMS = q_GMD @ k_1GSD[0].float().transpose(1, 2) * settings.scale
    if settings.softcap is not None:
        logits_GMS = torch.tanh(logits_GMS / settings.softcap) * settings.softcap
    logits_GqKS = logits_GMS.view(groups, heads // groups, scored, -1)
    weights = logits_GqKS.masked_fill(~mask_KS, -torch.inf).softmax(-1)
    out_GMD = weights.view_as(logits_GMS) @ v_1GSD[0].float()
    return out_GMD.view(heads, scored, width)


@once_a_layout
def _row_plan(layout: PackedLayout, window: int | None, device: torch.device) -> RowPlan:
    tokens: list[int] = []
    scored: list[int] = []
    masks: list[npt.NDArray[np.bool_]] = []
    keys: list[npt.NDArray[np.int64]] = []
    ends = np.asarray(layout.ends)
    for tree in layout.placed():
        prompt, lengths = tree.visible, tree.branches
        # Counted from the prompt's first token, whether that is in the row or not.
        own_K = ends[(ends >= tree.start) & (ends < tree.stop)] - tree.start + tree.cached
        # The prompt is branch -1, which every branch sees.
        branch_S = np.repeat(np.arange(-1, len(lengths)), [prompt, *lengths])
        at_S = np.concatenate([np.arange(prompt), *(prompt + np.arange(n) for n in lengths)])
        sees_KS = (branch_S == -1) | (branch_S == branch_S[own_K, None])
        sees_KS &= at_S <= at_S[own_K, None]
        if window is not None:
            sees_KS &= at_S > at_S[own_K, None] - window
        tokens.append(tree.tokens)
        scored.append(len(own_K))
        masks.append(sees_KS)
        keys.append(np.arange(tree.prompt.start, tree.prompt.stop))
        keys.append(np.arange(tree.start + tree.prefix, tree.stop))
    keys_S, *masks_KS = arrays_to_device([np.concatenate(keys), *masks], device)
    return RowPlan(tokens, scored, masks_KS, keys_S if layout.cached else None)
