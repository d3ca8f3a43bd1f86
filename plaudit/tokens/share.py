"""Rows of one prompt as one tree: the prompt is computed once for all of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from plaudit.tokens.encode import common_prefix
from plaudit.types import FloatArray, IntArray, TokenTree


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
    open_groups: dict[Hashable, _Group] = {}
    groups: list[_Group] = []
    for number, (tree, prompt) in enumerate(zip(trees, prompts, strict=True)):
        group = open_groups.get(prompt)
        if group is None or not group.take(number, tree, max_tokens):
            groups.append(_Group(number, tree))
            open_groups[prompt] = groups[-1]
    return SharedTrees(
        trees=tuple(group.tree() for group in groups),
        members=tuple(tuple(group.numbers) for group in groups),
        branches=tuple(len(tree.branches) for tree in trees),
    )


LEAST_SHARED = 8
"""Shorter common beginnings stay apart: a branch costs attention calls of its own."""


def share_prefixes(sequences: Sequence[IntArray], max_tokens: int) -> SharedTrees:
    """Whole conversations as trees, wherever a common beginning computes fewer tokens.

    For conversations whose prompts nobody named. In sorted order neighbours have the longest
    common beginnings; they are joined longest first while each joining saves tokens and a tree
    stays within ``max_tokens``.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">i4").tobytes())
    clusters = [_Cluster([i], len(sequences[i]) - 1, len(sequences[i])) for i in order]
    at = list(range(len(order)))
    common = [common_prefix([sequences[a], sequences[b]]) for a, b in pairwise(order)]
    for place in sorted(range(len(common)), key=lambda i: -common[i]):
        if common[place] < LEAST_SHARED:
            break
        left, right = at[place], at[place + 1]
        joined = clusters[left].joined(clusters[right], common[place])
        apart = clusters[left].tokens + clusters[right].tokens
        if joined.tokens >= apart or joined.tokens > max_tokens:
            continue
        clusters[left] = joined
        # Members of a cluster are neighbours, so its right part is the run that pointed there.
        for i in range(place + 1, len(at)):
            if at[i] != right:
                break
            at[i] = left
    kept = [clusters[i] for i in dict.fromkeys(at)]
    return SharedTrees(
        trees=tuple(cluster.tree(sequences) for cluster in kept),
        members=tuple(tuple(cluster.numbers) for cluster in kept),
        branches=(1,) * len(sequences),
    )


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Conversations that begin with the same ``prefix`` tokens; ``total`` is their length."""

    numbers: list[int]
    prefix: int
    total: int

    @property
    def tokens(self) -> int:
        return self.total - self.prefix * (len(self.numbers) - 1)

    def joined(self, other: _Cluster, prefix: int) -> _Cluster:
        numbers = [*self.numbers, *other.numbers]
        return _Cluster(numbers, prefix, self.total + other.total)

    def tree(self, sequences: Sequence[IntArray]) -> TokenTree:
        prefix = self.prefix if len(self.numbers) > 1 else 0
        return TokenTree(
            index=self.numbers[0],
            prefix=sequences[self.numbers[0]][:prefix],
            branches=tuple(sequences[i][prefix:] for i in self.numbers),
        )


class _Group:
    """Trees of one prompt, and the prefix that all their conversations share."""

    def __init__(self, number: int, tree: TokenTree) -> None:
        self.numbers = [number]
        self.first = tree
        self.conversations = _conversations(tree)
        # One conversation alone could share all but the token that is scored.
        self.prefix = len(tree.prefix) if len(tree.branches) > 1 else tree.tokens - 1
        self.total = sum(map(len, self.conversations))

    @property
    def tokens(self) -> int:
        return self.total - self.prefix * (len(self.conversations) - 1)

    def take(self, number: int, tree: TokenTree, max_tokens: int) -> bool:
        """Add a tree, unless that saves nothing or makes the joint tree too large."""
        added = _conversations(tree)
        prefix = min(self.prefix, common_prefix([self.conversations[0], *added]))
        total = self.total + sum(map(len, added))
        tokens = total - prefix * (len(self.conversations) + len(added) - 1)
        if tokens >= self.tokens + tree.tokens or tokens > max_tokens:
            return False
        self.numbers.append(number)
        self.conversations += added
        self.prefix, self.total = prefix, total
        return True

    def tree(self) -> TokenTree:
        if len(self.numbers) == 1:
            return self.first
        return TokenTree(
            index=self.first.index,
            prefix=self.conversations[0][: self.prefix],
            branches=tuple(ids[self.prefix :] for ids in self.conversations),
        )


def _conversations(tree: TokenTree) -> list[IntArray]:
    return [np.concatenate([tree.prefix, branch]) for branch in tree.branches]
