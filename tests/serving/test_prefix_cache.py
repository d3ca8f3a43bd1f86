"""Trees that go on where an earlier pass ended: what is computed, and what a micro-batch holds."""

from __future__ import annotations

import numpy as np
import torch

from plaudit.model.attention.kv_cache import PrefixCache
from plaudit.serving.served_model import CACHED_PER_COMPUTED, PrefixCacheBatcher, with_cached_prefix
from plaudit.tokens.batch import PackedBatcher
from plaudit.types import IntArray, TokenTree

PROMPT = np.arange(400, dtype=np.int32)


def kept(*conversations: IntArray) -> PrefixCache:
    states = PrefixCache(1 << 20)
    for ids in conversations:
        states.add(ids, 0, [(torch.zeros(1, 1, len(ids), 1), torch.zeros(1, 1, len(ids), 1))])
    return states


def tree(index: int, prefix: IntArray, *lengths: int) -> TokenTree:
    branches = tuple(np.full(n, 1000 + n + k, np.int32) for k, n in enumerate(lengths))
    return TokenTree(index=index, prefix=prefix, branches=branches)


def test_a_kept_prompt_is_left_out() -> None:
    found = with_cached_prefix(tree(0, PROMPT, 3, 5), kept(PROMPT))
    assert (found.cached.tokens, found.computed) == (400, 8)


def test_a_part_of_a_prompt_serves_where_that_computes_less() -> None:
    """What is behind the part is computed in every branch."""
    nearly, half = kept(PROMPT[:390]), kept(PROMPT[:150])
    assert with_cached_prefix(tree(0, PROMPT, 3, 5), nearly).computed == 2 * 10 + 8
    assert with_cached_prefix(tree(0, PROMPT, 3, 5), half).cached.tokens == 0
    assert with_cached_prefix(tree(0, PROMPT, 3), half).computed == 250 + 3


def test_the_scored_token_is_always_computed() -> None:
    whole = TokenTree(index=0, prefix=PROMPT[:0], branches=(PROMPT,))
    assert with_cached_prefix(whole, kept(PROMPT)).computed == 1


def test_a_micro_batch_is_bounded_in_what_it_reads_again() -> None:
    """A layer copies the keys of every cached prompt, one that two trees share twice."""
    states = kept(PROMPT)
    resumed = [with_cached_prefix(tree(i, PROMPT, 2), states) for i in range(9)]
    batcher = PrefixCacheBatcher(
        PackedBatcher(max_tokens=320, device=torch.device("cpu")), states, resumed
    )
    cuts = batcher.split([one.tree for one in resumed])
    assert sorted(i for cut in cuts for i in cut) == list(range(9))
    assert 400 // CACHED_PER_COMPUTED + 2 == 102
    assert [len(cut) for cut in cuts] == [3, 3, 3]
