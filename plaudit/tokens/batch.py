"""Token trees as batches: packed (each token once, no padding) or padded (one row per response).

Trees of one prompt are joined first, so that the prompt is computed once for all of them.

Shapes: T tokens of a row, R responses of the batch (all trees together, in order).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
import torch

from plaudit.recipe.schema import MICROBATCH_TOKENS
from plaudit.tokens.encode import common_prefix
from plaudit.types import (
    FloatArray,
    IntArray,
    PackedBatch,
    PackedLayout,
    PaddedBatch,
    PrefixKV,
    TokenTree,
    arrays_to_device,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatcher:
    """Trees end to end in one row. ``max_tokens`` bounds the tokens of a micro-batch."""

    max_tokens: int
    device: torch.device

    def size(self, trees: Sequence[TokenTree]) -> int:
        """What ``max_tokens`` bounds, of these trees as one micro-batch."""
        return sum(tree.tokens for tree in trees)

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

    def size(self, trees: Sequence[TokenTree]) -> int:
        """What ``max_tokens`` bounds, of these trees as one micro-batch."""
        return sum(len(tree.branches) for tree in trees) * max(max(tree.lengths) for tree in trees)

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


TokenBatcher: TypeAlias = PackedBatcher | PaddedBatcher
"""A batcher whose micro-batches a number of tokens bounds."""


def make_batchers(
    max_tokens: int | Literal["auto"], device: torch.device, pad_id: int
) -> dict[str, TokenBatcher]:
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
    ids_T, positions_T, ends_R = _long(
        device, np.concatenate(ids), np.concatenate(positions), np.asarray(ends)
    )
    return PackedBatch(
        ids_1T=ids_T[None],
        positions_1T=positions_T[None],
        ends_R=ends_R,
        layout=layout,
        trees=tuple(trees),
    )


def pad(trees: Sequence[TokenTree], pad_id: int, device: torch.device) -> PaddedBatch:
    """Every response as its own whole conversation, padded on the right."""
    rows = [ids for tree in trees for ids in conversations(tree)]
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = row
        mask[r, : len(row)] = 1
    ends = np.asarray([r * width + len(row) - 1 for r, row in enumerate(rows)])
    ids_RT, mask_RT, ends_R = _long(device, ids, mask, ends)
    return PaddedBatch(ids_RT=ids_RT, mask_RT=mask_RT, ends_R=ends_R, trees=tuple(trees))


def _long(device: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    return arrays_to_device([array.astype(np.int64) for array in arrays], device)


# ---- rows of one prompt as one tree ----


@dataclass(frozen=True, slots=True)
class SharedTrees:
    """Trees that stand for others.

    ``members[t]`` are the numbers of the given trees whose branches ``trees[t]`` holds, in order;
    every given tree is a member of exactly one.
    """

    trees: tuple[TokenTree, ...]
    members: tuple[tuple[int, ...], ...]
    branches: tuple[int, ...]

    def separate(self, scores: Sequence[FloatArray]) -> list[FloatArray]:
        """Scores of ``trees`` as ``scores_K`` of each given tree, in the order given."""
        found: list[FloatArray] = [np.zeros(0)] * len(self.branches)
        for scores_R, members in zip(scores, self.members, strict=True):
            start = 0
            for member in members:
                found[member] = scores_R[start : start + self.branches[member]]
                start += self.branches[member]
        return found


def share_prompts(
    trees: Sequence[TokenTree], prompts: Sequence[Hashable], max_tokens: int
) -> SharedTrees:
    """Put trees of equal ``prompts`` together wherever that computes fewer tokens.

    The prefix of a joint tree is the longest common token prefix of all its conversations, so its
    scores are those of the separate trees. It has at most ``max_tokens`` tokens.
    """
    groups: list[_Group] = []
    places: dict[Hashable, int] = {}
    for number, (tree, prompt) in enumerate(zip(trees, prompts, strict=True)):
        alone = _group_of(number, tree)
        place = places.get(prompt)
        if place is not None:
            group = groups[place]
            prefix = common_prefix([group.conversations[0], *alone.conversations])
            joined = group.joined(alone, min(group.prefix, prefix), max_tokens)
            if joined is not None:
                groups[place] = joined
                continue
        places[prompt] = len(groups)
        groups.append(alone)
    return _shared(groups, trees)


LEAST_SHARED = 8
"""Shorter common prefixes are not shared: a branch costs its own attention calls."""


def share_prefixes(sequences: Sequence[IntArray], max_tokens: int) -> SharedTrees:
    """Whole conversations as trees, wherever a common beginning computes fewer tokens.

    For conversations whose prompts nobody named. In sorted order neighbours have the longest
    common prefixes; they are joined longest first while each joining saves tokens and a tree
    stays within ``max_tokens``.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">i4").tobytes())
    trees = [TokenTree(index=i, prefix=ids[:0], branches=(ids,)) for i, ids in enumerate(sequences)]
    groups = [_group_of(i, trees[i]) for i in order]
    at = list(range(len(order)))
    common = [common_prefix([sequences[a], sequences[b]]) for a, b in pairwise(order)]
    for place in sorted(range(len(common)), key=lambda i: -common[i]):
        if common[place] < LEAST_SHARED:
            break
        left, right = at[place], at[place + 1]
        joined = groups[left].joined(groups[right], common[place], max_tokens)
        if joined is None:
            continue
        groups[left] = joined
        # Members of a group are neighbours, so its right part is the run that pointed there.
        for i in range(place + 1, len(at)):
            if at[i] != right:
                break
            at[i] = left
    return _shared([groups[i] for i in dict.fromkeys(at)], trees)


@dataclass(frozen=True, slots=True)
class _Group:
    """Trees whose conversations all share ``prefix`` tokens; ``total`` is their length."""

    numbers: tuple[int, ...]
    conversations: tuple[IntArray, ...]
    prefix: int
    total: int

    @property
    def tokens(self) -> int:
        return self.total - self.prefix * (len(self.conversations) - 1)

    def joined(self, other: _Group, prefix: int, max_tokens: int) -> _Group | None:
        """Both with their common prefix; None where that saves nothing or is too large."""
        both = _Group(
            (*self.numbers, *other.numbers),
            (*self.conversations, *other.conversations),
            prefix,
            self.total + other.total,
        )
        saves = both.tokens < self.tokens + other.tokens
        return both if saves and both.tokens <= max_tokens else None


def _group_of(number: int, tree: TokenTree) -> _Group:
    # One conversation alone could share all but the token that is scored.
    prefix = len(tree.prefix) if len(tree.branches) > 1 else tree.tokens - 1
    return _Group((number,), tuple(conversations(tree)), prefix, sum(tree.lengths))


def _shared(groups: Sequence[_Group], trees: Sequence[TokenTree]) -> SharedTrees:
    """The groups as trees that stand for ``trees``; a group of one is the tree itself."""
    return SharedTrees(
        trees=tuple(
            trees[group.numbers[0]]
            if len(group.numbers) == 1
            else TokenTree(
                index=trees[group.numbers[0]].index,
                prefix=group.conversations[0][: group.prefix],
                branches=tuple(ids[group.prefix :] for ids in group.conversations),
            )
            for group in groups
        ),
        members=tuple(group.numbers for group in groups),
        branches=tuple(len(tree.branches) for tree in trees),
    )


def conversations(tree: TokenTree) -> list[IntArray]:
    """Every whole conversation of a tree."""
    return [np.concatenate([tree.prefix, branch]) for branch in tree.branches]
