"""Keys and values of tokens that a model has read, kept for conversations that begin with them.

A causal model's keys and values at a token depend on that token and those before it alone, so a
conversation that begins as an earlier one did needs them computed once. They are kept as a tree of
token runs, the least recently used leaves dropped first (as in SGLang's RadixAttention, Zheng et
al. 2024, arXiv 2312.07104).

Shapes: G key/value heads, T tokens of a row, S tokens of a run, D head width.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from plaudit.tokens.encode import equal_beginning
from plaudit.types import IntArray

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values ``[1, G, S, D]`` of each layer, in the order in which layers run."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class Run:
    """Tokens that follow one another, their states, and the runs that follow them.

    ``used`` is the store's clock when a pass last needed it. Runs do not know what they follow, so
    that dropped ones are gone at once and not when Python next looks for cycles.
    """

    ids: IntArray
    layers: Layers
    used: int
    children: dict[int, Run] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(
            tensor.numel() * tensor.element_size() for pair in self.layers for tensor in pair
        )


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """The first ``tokens`` of a conversation as runs; of the last one maybe only its beginning."""

    tokens: int
    runs: tuple[Run, ...]

    def layer(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of one layer, run after run."""
        left = self.tokens
        for run in self.runs:
            keys, values = run.layers[number]
            yield keys[:, :, :left], values[:, :, :left]
            left -= len(run.ids)


class PrefixCache:
    """A tree of runs within ``limit`` bytes. Used by the one thread that owns the model.

    ``token_bytes`` are those of one token where they are known before the first is kept.
    """

    def __init__(self, limit: int, *, token_bytes: int = 0) -> None:
        self.limit = limit
        self.token_bytes = token_bytes
        self.bytes = 0
        self._root = Run(np.zeros(0, np.int32), [], 0)
        self._clock = 0

    @property
    def room(self) -> int:
        """Tokens that the whole store can hold, as far as it has seen how large one is."""
        return self.limit // self.token_bytes if self.token_bytes else sys.maxsize

    def find(self, ids: IntArray) -> CachedPrefix:
        """As much of the beginning of ``ids`` as is kept."""
        self._clock += 1
        runs: list[Run] = []
        run, tokens = self._root, 0
        while tokens < len(ids):
            child = run.children.get(int(ids[tokens]))
            if child is None:
                break
            child.used = self._clock
            runs.append(child)
            same = equal_beginning(child.ids, ids[tokens:])
            tokens += same
            if same < len(child.ids):
                break
            run = child
        return CachedPrefix(tokens, tuple(runs))

    def add(self, ids: IntArray, cached: int, layers: Layers) -> None:
        """Add the keys and values that a pass computed for ``ids[cached:]``.

        Tokens that are cached already are not added again, nor are tokens whose prefix was dropped
        meanwhile.
        """
        found = self.find(ids)
        if not cached <= found.tokens < len(ids):
            return
        before = self._cut_behind(found)
        # What is kept must not hold on to what is not.
        known = found.tokens - cached
        rest = _cloned(layers, known, len(ids) - cached) if known else layers
        run = Run(ids[found.tokens :].copy(), rest, self._clock)
        before.children[int(run.ids[0])] = run
        self.bytes += run.bytes
        self.token_bytes = max(1, run.bytes // len(run.ids))
        self._drop()

    def clear(self) -> bool:
        """Give all memory back; whether there was any."""
        there = self.bytes > 0
        self._root.children.clear()
        self.bytes = 0
        return there

    def _cut_behind(self, found: CachedPrefix) -> Run:
        """The run that ends with the last found token, made by cutting one in two if need be.

        The run that is cut stays as it was for a pass that still reads it.
        """
        if not found.runs:
            return self._root
        *before, whole = found.runs
        size = found.tokens - sum(len(run.ids) for run in before)
        if size == len(whole.ids):
            return whole
        second = Run(
            whole.ids[size:],
            _cloned(whole.layers, size, len(whole.ids)),
            whole.used,
            whole.children,
        )
        first = Run(whole.ids[:size], _cloned(whole.layers, 0, size), whole.used)
        first.children[int(second.ids[0])] = second
        (before[-1] if before else self._root).children[int(first.ids[0])] = first
        return first

    def _drop(self) -> None:
        """Over the limit, drop the ends that were needed longest ago, a tenth more than needed.

        Looking through all of them is then rare. What was needed just now stays while it fits.
        """
        if self.bytes <= self.limit:
            return
        follows = {id(run): before for before, run in self._pairs()}
        ends = [run for _, run in self._pairs() if not run.children]
        waiting = [(run.used, number, run) for number, run in enumerate(ends)]
        heapq.heapify(waiting)
        while waiting and self.bytes > 0.9 * self.limit:
            used, number, run = heapq.heappop(waiting)
            if used == self._clock and self.bytes <= self.limit:
                break
            before = follows[id(run)]
            del before.children[int(run.ids[0])]
            self.bytes -= run.bytes
            if not before.children and before is not self._root:
                heapq.heappush(waiting, (before.used, number, before))

    def _pairs(self) -> Iterator[tuple[Run, Run]]:
        """Every run behind the one it follows."""
        waiting = [self._root]
        while waiting:
            before = waiting.pop()
            for run in before.children.values():
                yield before, run
                waiting.append(run)


def _cloned(layers: Layers, start: int, stop: int) -> Layers:
    """A part of a run's states that does not hold on to the rest."""
    return [(k[:, :, start:stop].clone(), v[:, :, start:stop].clone()) for k, v in layers]


class PassKV:
    """What one pass over a packed row reads of cached prompts, and what of it is to be kept.

    ``kept`` are parts of the row; :attr:`found` has the states of each when the pass is over.
    """

    def __init__(self, cached: Sequence[CachedPrefix], kept: Sequence[slice]) -> None:
        self._cached = [one for one in cached if one.tokens]
        self.kept = tuple(kept)
        self._layer = 0
        self.found: list[Layers] = [[] for _ in kept]

    def extend(self, key_1GTD: Tensor, value_1GTD: Tensor) -> tuple[Tensor, Tensor]:
        """Of one layer, the row's keys and values with those of the cached prompts behind them."""
        assert not torch.is_grad_enabled(), "kept states have no gradients"
        for layers, part in zip(self.found, self.kept, strict=True):
            layers.append((key_1GTD[:, :, part].clone(), value_1GTD[:, :, part].clone()))
        pieces = [pair for cached in self._cached for pair in cached.layer(self._layer)]
        self._layer += 1
        if not pieces:
            return key_1GTD, value_1GTD
        keys, values = zip(*pieces, strict=True)
        return torch.cat([key_1GTD, *keys], dim=2), torch.cat([value_1GTD, *values], dim=2)
