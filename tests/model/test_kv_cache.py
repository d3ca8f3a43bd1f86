"""Kept beginnings: what is found is what was computed, and memory stays within its limit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plaudit.model.attention.kv_cache import CachedPrefix, Layers, PassKV, PrefixCache
from plaudit.types import IntArray

LAYERS = 2
TOKEN_BYTES = LAYERS * 2 * 4
conversations = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=25
)


def states_of(ids: IntArray, start: int = 0) -> Layers:
    """States that depend on a token and all before it, as a causal model's do: ``[1, 1, S, 1]``."""
    read = [float(int("1" + "".join(map(str, ids[: i + 1].tolist())))) for i in range(len(ids))]
    keys = torch.tensor(read[start:])[None, None, :, None]
    return [(keys + number, -keys - number) for number in range(LAYERS)]


def layers_of(cached: CachedPrefix) -> Layers:
    found: Layers = []
    for number in range(LAYERS):
        pieces = list(cached.layer(number))
        keys = [keys for keys, _ in pieces] or [torch.zeros(1, 1, 0, 1)]
        values = [values for _, values in pieces] or [torch.zeros(1, 1, 0, 1)]
        found.append((torch.cat(keys, dim=2), torch.cat(values, dim=2)))
    return found


def assert_states(cached: CachedPrefix, ids: IntArray) -> None:
    for (keys, values), (k, v) in zip(
        layers_of(cached), states_of(ids[: cached.tokens]), strict=True
    ):
        torch.testing.assert_close(keys, k, rtol=0, atol=0)
        torch.testing.assert_close(values, v, rtol=0, atol=0)


def ids_of(tokens: list[int]) -> IntArray:
    return np.asarray(tokens, dtype=np.int32)


@given(conversations)
def test_the_longest_common_beginning_is_found_with_its_states(given_: list[list[int]]) -> None:
    states = PrefixCache(1 << 20)
    added: list[IntArray] = []
    for tokens in given_:
        ids = ids_of(tokens)
        cached = states.find(ids)
        common = [
            next(
                (i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b),
                min(len(ids), len(other)),
            )
            for other in added
        ]
        assert cached.tokens == max(common, default=0)
        assert_states(cached, ids)
        states.add(ids, cached.tokens, states_of(ids, cached.tokens))
        added.append(ids)
        assert states.find(ids).tokens == len(ids)
    distinct = {tuple(ids[: i + 1].tolist()) for ids in added for i in range(len(ids))}
    assert states.bytes == len(distinct) * TOKEN_BYTES


@settings(max_examples=50)
@given(conversations, st.integers(0, 30))
def test_memory_stays_within_the_limit(given_: list[list[int]], most: int) -> None:
    states = PrefixCache(most * TOKEN_BYTES)
    for tokens in given_:
        ids = ids_of(tokens)
        before = states.find(ids)
        states.add(ids, before.tokens, states_of(ids, before.tokens))
        assert states.bytes <= most * TOKEN_BYTES
        # Runs that were dropped or cut meanwhile are whole for a pass that still reads them.
        assert_states(before, ids)
        assert_states(states.find(ids), ids)


def test_what_was_needed_longest_ago_goes_first() -> None:
    states = PrefixCache(25 * TOKEN_BYTES)
    first, second, third = (ids_of([n] * 10) for n in (1, 2, 3))
    states.add(first, 0, states_of(first))
    states.add(second, 0, states_of(second))
    assert states.find(first).tokens == 10
    states.add(third, 0, states_of(third))
    assert [states.find(ids).tokens for ids in (first, second, third)] == [10, 0, 10]


def test_states_behind_tokens_that_were_dropped_are_not_kept() -> None:
    states = PrefixCache(1 << 20)
    ids = ids_of([1, 2, 3, 4])
    states.add(ids, 2, states_of(ids, 2))
    assert states.bytes == 0


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """What is freed is freed because nothing holds it."""
    gc.disable()
    yield
    gc.enable()


def branched(states: PrefixCache) -> list[weakref.ref[Tensor]]:
    """Fill a store with three conversations of one beginning; all of its keys."""
    for end in range(3):
        ids = ids_of([1, 2, 3, end])
        cached = states.find(ids).tokens
        states.add(ids, cached, states_of(ids, cached))
    found = states.find(ids_of([1, 2, 3, 0]))
    assert len(found.runs) == 2
    return [weakref.ref(keys) for run in found.runs for keys, _ in run.layers]


@pytest.mark.usefixtures("no_garbage_collection")
def test_clearing_gives_all_memory_back() -> None:
    states = PrefixCache(1 << 20)
    kept = branched(states)
    assert all(reference() is not None for reference in kept)
    assert states.clear()
    assert states.bytes == 0
    assert all(reference() is None for reference in kept)
    assert not states.clear()


@pytest.mark.usefixtures("no_garbage_collection")
def test_a_store_that_nobody_has_any_more_is_gone() -> None:
    states = PrefixCache(1 << 20)
    kept = branched(states)
    del states
    assert all(reference() is None for reference in kept)


def test_one_conversation_as_large_as_the_store_is_kept() -> None:
    states = PrefixCache(100 * TOKEN_BYTES)
    for start in range(10):
        ids = ids_of([start] * 10)
        states.add(ids, 0, states_of(ids))
    large = ids_of([11, *range(99)])
    for _ in range(3):
        cached = states.find(large).tokens
        states.add(large, cached, states_of(large, cached))
        assert states.find(large).tokens == 100
        assert states.bytes == 100 * TOKEN_BYTES


@torch.no_grad()
def test_a_pass_reads_held_prompts_and_records_parts_of_its_row() -> None:
    ids = ids_of([1, 2, 0, 1])
    states = PrefixCache(1 << 20)
    states.add(ids, 0, states_of(ids))
    row = torch.arange(6.0)[None, None, :, None]
    states_of_pass = PassKV([states.find(ids[:3]), CachedPrefix(0, ())], [slice(0, 2), slice(4, 6)])
    for number in range(LAYERS):
        keys, values = states_of_pass.extend(row, -row)
        held_keys, held_values = states_of(ids[:3])[number]
        assert torch.equal(keys, torch.cat([row, held_keys], dim=2))
        assert torch.equal(values, torch.cat([-row, held_values], dim=2))
    assert [keys.flatten().tolist() for keys, _ in states_of_pass.found[0]] == [[0.0, 1.0]] * LAYERS
    assert [keys.flatten().tolist() for keys, _ in states_of_pass.found[1]] == [[4.0, 5.0]] * LAYERS
