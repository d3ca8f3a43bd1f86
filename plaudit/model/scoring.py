"""Trees through a module in token-bounded batches, back in order, and the largest such batch.

A score depends in its last bits on the shape of its batch, so that equal conversations computed in
two places differ by about 1e-8, and their order then decides a tie. Each is computed once.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plaudit.errors import ModelError
from plaudit.model.attention.interface import prepare
from plaudit.tokens.batch import PackedBatcher, PaddedBatcher
from plaudit.types import (
    Batch,
    Batcher,
    FloatArray,
    PackedBatch,
    TokenTree,
    conversation_digests,
)

Made = TypeVar("Made")

logger = logging.getLogger("plaudit")

DUMMY_TREE = TokenTree(index=-1, prefix=np.zeros(0, np.int32), branches=(np.zeros(1, np.int32),))
"""A one-token tree that keeps a rank in step when its own trees have run out."""


def score_trees(
    forward: Callable[[Batch], Tensor],
    batcher: Batcher,
    trees: Sequence[TokenTree],
    *,
    on_batch: Callable[[Sequence[TokenTree]], None] | None = None,
) -> list[FloatArray]:
    """Scores of each tree's responses, in the order of ``trees``.

    ``forward`` gives ``scores_R``, or ``outputs_RO``; each result then has a row per response.
    Equal token sequences, in one tree or in several, are computed once and have one score.
    """
    distinct = distinct_trees(trees)
    return distinct.restore(score_distinct(forward, batcher, distinct.trees, on_batch=on_batch))


def score_distinct(
    forward: Callable[[Batch], Tensor],
    batcher: Batcher,
    trees: Sequence[TokenTree],
    *,
    batches: int | None = None,
    on_batch: Callable[[Sequence[TokenTree]], None] | None = None,
) -> list[FloatArray]:
    """:func:`score_trees` for trees whose conversations are known to differ.

    ``forward`` must be the object accelerate wrapped where there is one. ``batches`` is the number
    that every rank runs: FSDP and DDP's buffers communicate in every forward pass, so a rank that
    ran fewer would hang the others. Without ``batches``, a batch that does not fit in memory is
    halved.

    Raises:
        ModelError: a tree alone does not fit in memory.
    """
    cuts = batcher.split(trees)
    gathered: list[Tensor] = []
    within_memory = _WithinMemory(forward, batcher)
    with torch.no_grad():
        rounds = micro_batches(batcher, trees, cuts, len(cuts) if batches is None else batches)
        for number, (members, batch) in enumerate(rounds):
            scored: Iterable[tuple[Sequence[TokenTree], Tensor]]
            if batches is None:
                scored = within_memory.scored(members, batch)
            else:
                scored = [(members, forward(batch))]
            for part, scores_R in scored if number < len(cuts) else ():
                gathered.append(scores_R)
                if on_batch is not None:
                    on_batch(part)
    results: list[FloatArray] = [np.zeros(0)] * len(trees)
    if not gathered:
        return results
    # One copy to the host at the end: a copy per batch would make the device wait each time.
    flat = torch.cat(gathered).double().cpu().numpy()
    row = 0
    for cut in cuts:
        for i in cut:
            k = len(trees[i].branches)
            results[i] = flat[row : row + k]
            row += k
    return results


class _WithinMemory:
    """Passes over batches that fit in memory: one that does not is computed in halves.

    A later batch of that size or more is halved before it is tried.
    """

    def __init__(self, forward: Callable[[Batch], Tensor], batcher: Batcher) -> None:
        self.forward, self.batcher = forward, batcher
        self.too_many: int | None = None

    def scored(
        self, trees: Sequence[TokenTree], batch: Batch
    ) -> Iterator[tuple[Sequence[TokenTree], Tensor]]:
        """A batch of trees in as few parts as fit, each with its ``scores_R``, in order."""
        tokens = sum(tree.tokens for tree in trees)
        if len(trees) == 1 or self.too_many is None or tokens < self.too_many:
            try:
                scores_R = self.forward(batch)
            except RuntimeError as error:
                # The failed pass is alive until this block is left.
                if not is_out_of_memory(error):
                    raise
            else:
                yield trees, scores_R
                return
            free_memory()
            self._remember(trees, tokens)
        half = len(trees) // 2
        for part in (trees[:half], trees[half:]):
            yield from self.scored(part, self.batcher.collate(part))

    def _remember(self, trees: Sequence[TokenTree], tokens: int) -> None:
        if len(trees) == 1:
            raise ModelError(
                f"A comparison of {tokens:,} tokens ({len(trees[0].branches)} responses) does not"
                " fit in the memory of the device; score fewer responses at once, lower the"
                " maximum length, or use a device with more memory."
            )
        if self.too_many is None:
            logger.warning(
                "A batch of %s tokens did not fit in the memory of the device; such batches are"
                " computed in halves. Lower max_tokens_per_microbatch to avoid the failed attempt.",
                f"{tokens:,}",
            )
        self.too_many = tokens


_NO_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a pass failed because the device has no memory left.

    ``torch.OutOfMemoryError`` is that of PyTorch's allocator. What CUDA allocates beside it, such
    as the code of a kernel at its first call, fails as a plain RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(sign in str(error) for sign in _NO_MEMORY)


def free_memory() -> None:
    """Return what nobody refers to any more to the device, after a pass that ran out of memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def micro_batches(
    batcher: Batcher, trees: Sequence[TokenTree], cuts: Sequence[Sequence[int]], count: int
) -> Iterator[tuple[list[TokenTree], Batch]]:
    """``count`` micro-batches, each with its trees; one dummy tree where ``cuts`` have run out.

    On a GPU a thread lays each out while the one before it is computed. A batcher whose batches
    depend on earlier ones is asked only when its next batch is due.
    """

    def lay_out(number: int) -> tuple[list[TokenTree], Batch]:
        members = [trees[i] for i in cuts[number]] if number < len(cuts) else [DUMMY_TREE]
        batch = batcher.collate(members)
        if isinstance(batch, PackedBatch):
            prepare(batch.layout, batch.ends_R.device)
        return members, batch

    if not isinstance(batcher, (PackedBatcher, PaddedBatcher)) or batcher.device.type != "cuda":
        yield from map(lay_out, range(count))
        return
    stream = torch.cuda.current_stream(batcher.device)
    # A thread begins on the first GPU; setting a stream selects its device too.
    yield from one_ahead(lay_out, range(count), begin=partial(torch.cuda.set_stream, stream))


def one_ahead(
    make: Callable[[int], Made], items: Iterable[int], *, begin: Callable[[], None]
) -> Iterator[Made]:
    """``map(make, items)``, where a thread makes each while its predecessor is in use.

    The thread calls ``begin`` first.
    """
    with ThreadPoolExecutor(1, initializer=begin) as thread:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(thread.submit(make, item))
            if len(waiting) == 2:
                yield waiting.popleft().result()
        for last in waiting:
            yield last.result()


@dataclass(frozen=True, slots=True)
class DistinctTrees:
    """Trees that hold each conversation of some original trees once.

    ``place_R`` is, for each response of the original trees, the place of its conversation among
    those of ``trees``; ``branches`` counts the responses of each original tree.
    """

    trees: Sequence[TokenTree]
    place_R: npt.NDArray[np.int64]
    branches: tuple[int, ...]

    def restore(self, scores: Sequence[FloatArray]) -> list[FloatArray]:
        """Scores of ``trees`` as ``scores_K`` of each original tree: equal ones for equal ids."""
        if not self.branches:
            return []
        scores_R = np.concatenate(list(scores))[self.place_R]
        return np.split(scores_R, list(accumulate(self.branches))[:-1])


def distinct_trees(trees: Sequence[TokenTree]) -> DistinctTrees:
    """Leave out every conversation whose token ids already occurred, in any of the trees.

    Trees without repeats stay the object that they are. A conversation is known by a 128-bit
    digest of its ids.
    """
    digests: list[bytes] = []
    branches: list[int] = []
    for tree in trees:
        branches.append(len(tree.branches))
        digests += conversation_digests(tree.branches, tree.prefix)
    keys_R = np.frombuffer(b"".join(digests), dtype="V16")
    _, first_U, inverse_R = np.unique(keys_R, return_index=True, return_inverse=True)
    first_R = first_U[inverse_R]
    kept_R = first_R == np.arange(len(keys_R))
    return DistinctTrees(
        trees=trees if kept_R.all() else _KeptBranches(trees, branches, kept_R),
        place_R=(np.cumsum(kept_R) - 1)[first_R],
        branches=tuple(branches),
    )


class _KeptBranches(Sequence[TokenTree]):
    """Trees with only the branches to keep, made when asked for; a tree without any is left out."""

    def __init__(
        self, trees: Sequence[TokenTree], branches: Sequence[int], kept_R: npt.NDArray[np.bool_]
    ) -> None:
        kept = np.split(kept_R, list(accumulate(branches))[:-1])
        self._trees = trees
        self._rows = [(row, kept_K) for row, kept_K in enumerate(kept) if kept_K.any()]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> TokenTree: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenTree]: ...

    def __getitem__(self, index: int | slice) -> TokenTree | list[TokenTree]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        row, kept_K = self._rows[index]
        tree = self._trees[row]
        if kept_K.all():
            return tree
        return replace(
            tree, branches=tuple(tree.branches[k] for k in np.flatnonzero(kept_K)), grades=()
        )
