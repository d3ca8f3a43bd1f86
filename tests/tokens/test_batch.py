"""Trees to micro-batches: every tree once, within the budget; tokens where they belong."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plaudit.recipe.schema import MICROBATCH_TOKENS
from plaudit.tokens.batch import PackedBatcher, PaddedBatcher, fill, pack, pad
from plaudit.tokens.batch import make_batchers as make
from plaudit.types import TokenTree

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
PAD = 99


@st.composite
def trees(draw: st.DrawFn, least: int = 0) -> list[TokenTree]:
    shapes = draw(
        st.lists(
            st.tuples(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)),
            min_size=least,
            max_size=8,
        )
    )
    ids = iter(range(10**6))

    def some(count: int) -> np.ndarray:
        return np.asarray([next(ids) for _ in range(count)], dtype=np.int32)

    return [
        TokenTree(index=i, prefix=some(prefix), branches=tuple(some(b) for b in branches))
        for i, (prefix, branches) in enumerate(shapes)
    ]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_fill(sizes: list[int], limit: int) -> None:
    groups = fill(sizes, limit)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    for group in groups:
        assert sum(sizes[i] for i in group) <= limit or len(group) == 1
    assert groups == fill(sizes, limit)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 60))
def test_fill_is_first_fit_decreasing(sizes: list[int], limit: int) -> None:
    groups: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = (g for g in groups if sum(sizes[j] for j in g) + sizes[i] <= limit)
        found = next(fitting, None)
        if found is None:
            groups.append(found := [])
        found.append(i)
    assert fill(sizes, limit) == [sorted(group) for group in groups]


def test_fill_takes_about_linear_time() -> None:
    """100,000 sizes of which no two fit together, the worst case of a search from the start."""
    started = time.perf_counter()
    assert len(fill([6] * 100_000, 10)) == 100_000
    assert time.perf_counter() - started < 10


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(50, 200))
def test_fill_wastes_less_than_half(sizes: list[int], limit: int) -> None:
    """First fit never leaves two groups at most half full."""
    half_empty = [g for g in fill(sizes, limit) if sum(sizes[i] for i in g) * 2 <= limit]
    assert len(half_empty) <= 1


def padded_tokens(members: list[TokenTree]) -> int:
    return sum(len(t.branches) for t in members) * max(max(t.lengths) for t in members)


@given(trees(), st.integers(1, 120), st.booleans())
def test_cut(items: list[TokenTree], limit: int, packed: bool) -> None:
    batcher: Any = (
        PackedBatcher(max_tokens=limit, device=CPU)
        if packed
        else PaddedBatcher(max_tokens=limit, pad_id=PAD, device=CPU)
    )
    cuts = batcher.split(items)
    assert sorted(i for cut in cuts for i in cut) == list(range(len(items)))
    assert cuts == batcher.split(items)
    for cut in cuts:
        members = [items[i] for i in cut]
        computed = sum(t.tokens for t in members) if packed else padded_tokens(members)
        assert computed <= limit or len(cut) == 1
        assert batcher.collate(members).trees == tuple(members)


def conversations(items: list[TokenTree]) -> list[list[int]]:
    return [[*tree.prefix, *branch] for tree in items for branch in tree.branches]


@given(trees(least=1))
def test_pack(items: list[TokenTree]) -> None:
    batch = pack(items, CPU)
    ids, positions = batch.ids_1T[0].tolist(), batch.positions_1T[0].tolist()
    assert len(ids) == len(positions) == sum(tree.tokens for tree in items)
    # Ids are all different here, so an id says which token stands where.
    place = {token: (tree, position) for tree in items for token, position in places(tree)}
    for token, position in zip(ids, positions, strict=True):
        assert position == place[token][1]
    ends = [ids[end] for end in batch.ends_R.tolist()]
    assert ends == [conversation[-1] for conversation in conversations(items)]
    starts = [ids.index((*t.prefix, *t.branches[0])[0]) for t in items]
    assert list(batch.layout.starts) == starts
    assert batch.layout.prefixes == tuple(len(t.prefix) for t in items)
    assert batch.layout.branches == tuple(tuple(map(len, t.branches)) for t in items)


def places(tree: TokenTree) -> list[tuple[int, int]]:
    inside = [(int(token), at) for at, token in enumerate(tree.prefix)]
    for branch in tree.branches:
        inside += [(int(token), len(tree.prefix) + at) for at, token in enumerate(branch)]
    return inside


@given(trees(least=1))
def test_pad(items: list[TokenTree]) -> None:
    batch = pad(items, 10**7, CPU)
    expected = conversations(items)
    width = max(map(len, expected))
    assert batch.ids_RT.shape == batch.mask_RT.shape == (len(expected), width)
    for ids, mask, conversation in zip(
        batch.ids_RT.tolist(), batch.mask_RT.tolist(), expected, strict=True
    ):
        assert ids[: len(conversation)] == conversation
        assert set(ids[len(conversation) :]) <= {10**7}
        assert mask == [1] * len(conversation) + [0] * (width - len(conversation))
    flat = batch.ids_RT.flatten()[batch.ends_R].tolist()
    assert flat == [conversation[-1] for conversation in expected]


def test_auto_is_a_number_of_tokens() -> None:
    batchers = make("auto", CPU, PAD)
    tree = TokenTree(
        index=0,
        prefix=np.zeros(0, np.int32),
        branches=(np.zeros(MICROBATCH_TOKENS // 2, np.int32),),
    )
    for batcher in batchers.values():
        assert [len(cut) for cut in batcher.split([tree] * 5)] == [2, 2, 1]
