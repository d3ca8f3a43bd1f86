"""Trees through the model, each from where it parts from what the model has read lately."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from plaudit.model.attention.kv_cache import Held, PromptStates, StatesOfPass
from plaudit.model.load import company_dependent_length
from plaudit.model.module import classifier
from plaudit.model.scoring import score_distinct
from plaudit.reward_model import RewardModel
from plaudit.tokens.batch import PackedBatcher, fill, pack
from plaudit.tokens.share import LEAST_SHARED
from plaudit.types import FloatArray, IntArray, PackedBatch, TokenTree

logger = logging.getLogger("plaudit")

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far apart a reward may be with and without kept states, per unit of its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A tree whose prefix is ``held`` from earlier passes, or no part of it is.

    ``beginning`` are the tokens whose states shall be kept when it has run: the prompt that its
    branches share, or all of a lone conversation.
    """

    tree: TokenTree
    held: Held
    beginning: IntArray

    @property
    def computed(self) -> int:
        """Tokens of it in the row."""
        return self.tree.tokens - self.held.tokens


NOTHING = Held(0, ())

HELD_PER_COMPUTED = 4
"""Held tokens that count as one computed token where a micro-batch is bounded: each layer copies
their keys and values, but computes nothing for them."""


def resume(tree: TokenTree, states: PromptStates) -> Resumed:
    """The same conversations, of which the model computes fewer tokens where states are kept."""
    alone = len(tree.branches) == 1
    # The scored token itself must be computed.
    whole = np.concatenate([tree.prefix, *(branch[:-1] for branch in tree.branches[:1])])
    beginning = whole if alone else tree.prefix
    held = states.find(beginning)
    # Tokens of the prompt behind the held ones are computed in every branch.
    behind = len(tree.prefix) - held.tokens
    if held.tokens < LEAST_SHARED or (not alone and behind * len(tree.branches) > len(tree.prefix)):
        return Resumed(tree=tree, held=NOTHING, beginning=beginning)
    whole_branches = [np.concatenate([tree.prefix, branch]) for branch in tree.branches]
    parted = replace(
        tree,
        prefix=beginning[: held.tokens],
        branches=tuple(ids[held.tokens :] for ids in whole_branches),
    )
    return Resumed(tree=parted, held=held, beginning=beginning)


class ResumingBatcher:
    """Packed batches of resumed trees; after each pass its new states are kept."""

    def __init__(
        self, plain: PackedBatcher, states: PromptStates, resumed: Sequence[Resumed]
    ) -> None:
        self._plain = plain
        self._states = states
        self._resumed = {one.tree.index: one for one in resumed}
        self._pass: StatesOfPass | None = None

    def cut(self, trees: Sequence[TokenTree]) -> list[list[int]]:
        """By what is computed and, of each layer's keys, a part of what is read again."""
        members = [self._resumed[tree.index] for tree in trees]
        sizes = [one.computed + one.held.tokens // HELD_PER_COMPUTED for one in members]
        return fill(sizes, self._plain.max_tokens)

    def collate(self, trees: Sequence[TokenTree]) -> PackedBatch:
        members = [self._resumed[tree.index] for tree in trees]
        kept: list[slice] = []
        start, room = 0, self._states.room
        for one in members:
            # More than the store holds would only be dropped again.
            left = max(0, room - one.held.tokens)
            fresh = min(len(one.beginning) - one.held.tokens, left)
            kept.append(slice(start, start + fresh))
            start += one.computed
            room = max(0, room - fresh)
        self._pass = StatesOfPass([one.held for one in members], kept)
        held = [one.held.tokens > 0 for one in members]
        return pack(trees, self._plain.device, held=held, states=self._pass)

    def keep(self, trees: Sequence[TokenTree]) -> None:
        """Keep the states that the pass over these trees found."""
        assert self._pass is not None
        for tree, part, layers in zip(trees, self._pass.kept, self._pass.found, strict=True):
            one = self._resumed[tree.index]
            held = one.held.tokens
            self._states.add(one.beginning[: held + part.stop - part.start], held, layers)


def score_resumed(
    model: RewardModel, states: PromptStates, trees: Sequence[TokenTree]
) -> tuple[list[FloatArray], list[Resumed]]:
    """``rewards_K`` of each tree, and what of each was computed; no conversation stands twice."""
    assert isinstance(model.batcher, PackedBatcher)
    resumed = [resume(tree, states) for tree in trees]
    batcher = ResumingBatcher(model.batcher, states, resumed)
    scores = score_distinct(
        model.module, batcher, [one.tree for one in resumed], on_batch=batcher.keep
    )
    states.reused += sum(one.held.tokens for one in resumed)
    return scores, resumed


def open_states(model: RewardModel, limit: int) -> PromptStates | None:
    """An empty store of ``limit`` bytes; None where states cannot or shall not be kept.

    A conversation is scored with and without them first: a model whose rewards then differ by more
    than rounding goes without, aloud.
    """
    if limit <= 0 or not isinstance(model.batcher, PackedBatcher):
        return None
    tried = PromptStates(sys.maxsize)
    why = _why_not_kept(model, tried)
    if why is not None:
        logger.warning("%s keeps nothing of what it has read: %s.", model.source, why)
        return None
    return PromptStates(limit, token_bytes=tried.token_bytes)


def _why_not_kept(model: RewardModel, states: PromptStates) -> str | None:
    """Why nothing may be kept; None where scoring with ``states`` is as good as without."""
    turning = company_dependent_length(classifier(model.module.network).config)
    if turning is not None and model.facts.max_length > turning:
        return f"beyond {turning} tokens its rotary positions depend on the longest text of a batch"
    known = classifier(model.module.network).config.get_text_config().vocab_size
    ids_KT = np.random.default_rng(0).integers(0, known, (2, 4 * LEAST_SHARED)).astype(np.int32)
    ids_KT[:, : 2 * LEAST_SHARED] = ids_KT[0, : 2 * LEAST_SHARED]
    first, second = (TokenTree(index=0, prefix=ids[:0], branches=(ids,)) for ids in ids_KT)
    (plain,) = model.score_trees([second])
    score_resumed(model, states, [first])
    (again,), (resumed,) = score_resumed(model, states, [second])
    if resumed.held.tokens < 2 * LEAST_SHARED:
        return "its attention hands over no keys"
    affine = model.module.affine
    size = max(1.0, float(np.abs((plain - affine.offset) / affine.scale).max()))
    apart = float(np.abs(plain - again).max()) / abs(affine.scale)
    if not apart <= _tolerance(model) * size:
        return f"a reward was {apart:.2g} apart with and without"
    return None


def _tolerance(model: RewardModel) -> float:
    """That of the coarsest precision among the weights."""
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.module.network.parameters()}
    return max(TOLERANCE.get(dtype, TOLERANCE["bfloat16"]) for dtype in dtypes)
