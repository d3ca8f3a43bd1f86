"""Token trees to batches: packed (each token once, no padding) or padded (one row per response).

Shapes: T tokens of a row, R responses of the batch (all trees together, in order).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from plaudit.types import (
    Batcher,
    PackedBatch,
    PackedLayout,
    PaddedBatch,
    PrefixKV,
    TokenTree,
    to_device,
)

MICROBATCH_TOKENS = 8192
"""``tokens.max_tokens_per_microbatch: auto``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatcher:
    """Trees end to end in one row. ``max_tokens`` bounds the tokens of a micro-batch."""

    max_tokens: int
    device: torch.device

    def split(self, trees: Sequence[TokenTree]) -> list[list[int]]:
        return fill([tree.tokens for tree in trees], self.max_tokens)

    def collate(self, trees: Sequence[TokenTree]) -> PackedBatch:
        return pack(trees, self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatcher:
    """One right-padded row per response, for models that cannot run packed.

    ``max_tokens`` bounds rows times the longest row, padding included.
    """

    max_tokens: int
    pad_id: int
    device: torch.device

    def split(self, trees: Sequence[TokenTree]) -> list[list[int]]:
        order = sorted(range(len(trees)), key=lambda i: max(trees[i].lengths))
        batches: list[list[int]] = []
        rows = 0
        for i in order:
            k = len(trees[i].branches)
            if batches and (rows + k) * max(trees[i].lengths) <= self.max_tokens:
                batches[-1].append(i)
                rows += k
            else:
                batches.append([i])
                rows = k
        return batches

    def collate(self, trees: Sequence[TokenTree]) -> PaddedBatch:
        return pad(trees, self.pad_id, self.device)


def make_batchers(
    max_tokens: int | Literal["auto"], device: torch.device, pad_id: int
) -> dict[str, Batcher]:
    """The batcher of each layout; the model decides which one is used."""
    limit = MICROBATCH_TOKENS if max_tokens == "auto" else max_tokens
    return {
        "packed": PackedBatcher(max_tokens=limit, device=device),
        "padded": PaddedBatcher(max_tokens=limit, pad_id=pad_id, device=device),
    }


def fill(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """First-fit decreasing: positions grouped so that each group's sizes sum to at most ``limit``.

    A size over the limit stands alone. The same sizes always give the same groups. The first group
    with room is found by descending a tree of the largest room, so the time grows as n log n.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    alone = sum(size > limit for size in sizes)
    groups = [[i] for i in order[:alone]]
    rest = order[alone:]
    # Any two neighbouring groups together are over the limit, which bounds their number.
    most = min(len(rest), 2 * sum(sizes[i] for i in rest) // max(limit, 1) + 1)
    leaves = 1 << max(most - 1, 0).bit_length()
    # room[1] is the root; the children of room[g] are room[2g] and room[2g + 1].
    room = [limit] * (2 * leaves)
    for i in rest:
        size, node = sizes[i], 1
        while node < leaves:
            node *= 2
            node += room[node] < size
        if node - leaves == len(groups) - alone:
            groups.append([])
        groups[node - leaves + alone].append(i)
        room[node] -= size
        while node > 1:
            node //= 2
            largest = max(room[2 * node], room[2 * node + 1])
            if room[node] == largest:
                break
            room[node] = largest
    return [sorted(group) for group in groups]


def pack(
    trees: Sequence[TokenTree],
    device: torch.device,
    *,
    cached: Sequence[bool] = (),
    prefix_kv: PrefixKV | None = None,
) -> PackedBatch:
    """Prefix, branch 0, branch 1, …, next tree; positions restart after the prefix.

    The prefix of a tree that is ``cached`` is left out of the row: ``prefix_kv`` has it.
    """
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    ends: list[int] = []
    starts: list[int] = []
    total = 0
    in_row: list[int] = []
    for tree, left_out in zip(trees, cached or (False,) * len(trees), strict=True):
        starts.append(total)
        prefix = len(tree.prefix)
        in_row.append(0 if left_out else prefix)
        if not left_out:
            ids.append(tree.prefix)
            positions.append(np.arange(prefix))
            total += prefix
        for branch in tree.branches:
            ids.append(branch)
            positions.append(np.arange(prefix, prefix + len(branch)))
            total += len(branch)
            ends.append(total - 1)
    outside = tuple(len(tree.prefix) - n for tree, n in zip(trees, in_row, strict=True))
    layout = PackedLayout(
        starts=tuple(starts),
        prefixes=tuple(in_row),
        branches=tuple(tuple(len(b) for b in tree.branches) for tree in trees),
        ends=tuple(ends),
        cached=outside if any(outside) else (),
        prefix_kv=prefix_kv,
    )
    return PackedBatch(
        ids_1T=_long(np.concatenate(ids), device)[None],
        positions_1T=_long(np.concatenate(positions), device)[None],
        ends_R=_long(np.asarray(ends), device),
        layout=layout,
        trees=tuple(trees),
    )


def pad(trees: Sequence[TokenTree], pad_id: int, device: torch.device) -> PaddedBatch:
    """Every response as its own whole conversation, padded on the right."""
    rows = [np.concatenate([tree.prefix, branch]) for tree in trees for branch in tree.branches]
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = row
        mask[r, : len(row)] = 1
    ends = np.asarray([r * width + len(row) - 1 for r, row in enumerate(rows)])
    return PaddedBatch(
        ids_RT=_long(ids, device),
        mask_RT=_long(mask, device),
        ends_R=_long(ends, device),
        trees=tuple(trees),
    )


def _long(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return to_device(torch.from_numpy(array.astype(np.int64)), device)
