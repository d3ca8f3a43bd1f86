"""How many tokens a micro-batch may have, and how many layers recompute their activations.

One rule for ``plaudit train``, which measures on the device (:mod:`plaudit.planning.measure`), and
for ``plaudit plan``, which traces without one. A micro-batch needs

    fixed + token * tokens + key * gathered keys + span * spans

bytes beside weights, gradients and optimizer states. Gathered keys are those of the prompt, again
for each branch behind the first: attention reads them, and tokens do not count them. Loads no
torch.

Shapes: N trees of a corpus, L lines of a bound.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plaudit.recipe.schema import MICROBATCH_TOKENS
from plaudit.types import FloatArray

ENOUGH_TOKENS = 2048
"""Tokens of a micro-batch from which on a GPU gains nothing worth a recomputed layer.

A product of 2,048 rows with a 4,096 wide layer has 256 tiles of 128 by 256 for an H100's 132
multiprocessors and reads each weight for 2,048 multiplications, seven times what hides the read.
A recomputed layer costs its forward pass again: half of a LoRA step that it belongs to (6N
operations for 4N), a third of a full one (8N for 6N).
"""

MOST_TOKENS = 65_536
"""A larger micro-batch is no faster, and leaves less room for fragmentation."""

SPARE = 0.08
"""Share of the free memory that is not counted on: fragmentation grows during a run."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """Tokens, gathered keys and spans of trees, as the layout of their batches counts them."""

    tokens_N: npt.NDArray[np.int64]
    keys_N: npt.NDArray[np.int64]
    spans_N: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, int]]) -> Shapes:
        """From ``(tokens, keys, spans)`` of each tree."""
        table_N3 = np.asarray(list(rows), np.int64).reshape(-1, 3)
        return cls(table_N3[:, 0], table_N3[:, 1], table_N3[:, 2])

    def __len__(self) -> int:
        return len(self.tokens_N)

    def most_tokens(self, trees: int) -> int:
        """Tokens of the ``trees`` largest trees."""
        return int(np.sort(self.tokens_N)[::-1][:trees].sum())

    def spread(self) -> list[int]:
        """Trees that bound a fit: the most of each count and of keys to a token, and between them.

        What lies between is every quarter of the trees by tokens.
        """
        columns = (self.tokens_N, self.keys_N, self.spans_N, self.keys_N / self.tokens_N)
        # Of equal ones the longest.
        most = [int(np.lexsort((self.tokens_N, column))[-1]) for column in columns]
        order_N = np.argsort(self.tokens_N, kind="stable")
        quarters = order_N[np.linspace(0, len(self) - 1, 5).round().astype(int)].tolist()
        return list(dict.fromkeys([*most, *quarters]))


def packed_shape(prompt: int, branches: Iterable[int]) -> tuple[int, int, int]:
    """Tokens, gathered keys and spans of a tree in a packed row."""
    lengths = list(branches)
    return prompt + sum(lengths), prompt * (len(lengths) - 1), len(lengths)


def padded_shape(prompt: int, branches: Iterable[int]) -> tuple[int, int, int]:
    """The same where each response is a row as long as the longest of its tree."""
    lengths = list(branches)
    return (prompt + max(lengths)) * len(lengths), 0, len(lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Bytes of a micro-batch's forward and backward pass, by what they grow with."""

    fixed: float
    token: float
    key: float
    span: float

    def of(self, shapes: Shapes) -> FloatArray:
        """Bytes that each tree adds to a micro-batch."""
        added_N: FloatArray = (
            self.token * shapes.tokens_N + self.key * shapes.keys_N + self.span * shapes.spans_N
        )
        return added_N

    def times(self, factor: float) -> Cost:
        return Cost(
            fixed=factor * self.fixed,
            token=factor * self.token,
            key=factor * self.key,
            span=factor * self.span,
        )

    def towards(self, other: Cost, share: float) -> Cost:
        """``share`` of the way to ``other``."""
        return Cost(
            fixed=self.fixed + share * (other.fixed - self.fixed),
            token=self.token + share * (other.token - self.token),
            key=self.key + share * (other.key - self.key),
            span=self.span + share * (other.span - self.span),
        )


def by_layers(kept: Cost, recomputed: Cost, layers: int) -> dict[int, Cost]:
    """The cost with the first 0, 1, … all layers recomputed, from the two ends.

    The backward pass frees the activations of the last layers before it recomputes the first ones,
    so ``n`` layers need ``n`` inputs and the activations of the others: a straight line, and that
    of all layers lies one layer's activations above it. The line between the ends is never below.
    """
    return {n: kept.towards(recomputed, n / layers if layers else 0.0) for n in range(layers + 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """How a step is computed, what that needs, and why.

    ``checkpointed_layers`` of ``layers`` recompute their activations; None where the recipe sets
    ``train.activation_checkpointing``. ``bytes_needed`` is the most that a micro-batch can need
    beside weights, gradients and optimizer states, and ``bytes_free`` what those leave, less a
    spare share; None where nothing was measured. ``asked`` is the size that the recipe sets, None
    for auto.
    """

    tokens: int
    checkpointed_layers: int | None = None
    layers: int = 0
    bytes_needed: int | None = None
    bytes_free: int | None = None
    reason: str = ""
    asked: int | None = None

    def sentence(self) -> str:
        """The choice in words, for the terminal."""
        parts = [f"at most {self.tokens:,} tokens"]
        if self.checkpointed_layers is not None:
            number = self.checkpointed_layers
            how_many = "all" if number == self.layers else f"{number} of {self.layers}"
            layers = f"activation checkpointing of {how_many} layers"
            parts.append(layers if number else "no activation checkpointing")
        if self.bytes_needed is not None and self.bytes_free is not None:
            needed, free = self.bytes_needed / 1e9, self.bytes_free / 1e9
            parts.append(f"{needed:,.2f} of {free:,.2f} GB at most")
        return ", ".join(parts) + (f" ({self.reason})" if self.reason else "")


def choose(
    costs: Mapping[int, Cost],
    shapes: Shapes,
    free: float,
    *,
    trees_per_step: int,
    tokens: int | None = None,
) -> MicroBatches | None:
    """The fastest way to compute a step that fits: as few recomputed layers as leave enough tokens.

    ``costs`` has the cost for each number of recomputed layers, ascending. ``tokens`` is the limit
    that the user set. With it, "enough" is that limit; otherwise it is :data:`ENOUGH_TOKENS`, or a
    whole step where that has fewer.

    Returns:
        None where the largest tree alone does not fit.
    """
    usable = (1 - SPARE) * free
    whole = shapes.most_tokens(trees_per_step)
    enough = min(whole, ENOUGH_TOKENS if tokens is None else tokens)
    numbers = sorted(costs)
    if not numbers:
        return None

    def limit_at(number: int) -> int:
        return token_limit(costs[number], shapes, usable, trees_per_step) or 0

    # More layers never leave fewer tokens.
    place = bisect_left(numbers, enough, key=limit_at)
    number = numbers[min(place, len(numbers) - 1)]
    limit = limit_at(number)
    if not limit:
        return None
    if limit >= whole:
        # Evaluation takes the same micro-batches and keeps no activations.
        limit = max(limit, MICROBATCH_TOKENS)
    own = min(limit, MOST_TOKENS) if tokens is None else tokens
    return MicroBatches(
        tokens=own,
        checkpointed_layers=number,
        layers=numbers[-1],
        bytes_needed=round(most_bytes(costs[number], shapes, own, trees_per_step)),
        bytes_free=round(usable),
        reason=_reason(limit, whole, tokens),
        asked=tokens,
    )


def _reason(limit: int, whole: int, tokens: int | None) -> str:
    if tokens is not None:
        return "the limit that the recipe sets"
    if limit >= whole:
        return "a whole step fits"
    if limit > MOST_TOKENS:
        return "more tokens at once are no faster"
    return "the most that fit"


def token_limit(cost: Cost, shapes: Shapes, free: float, trees: int) -> int | None:
    """The most tokens such that every micro-batch within them fits ``free`` bytes.

    ``trees`` is the number of trees in a step. None where one tree alone does not fit.
    """
    room = free - cost.fixed
    if not len(shapes) or cost.of(shapes).max() > room:
        return None
    rate_L, rest_L = _bounds(cost, shapes, trees)
    if rest_L[0] <= room:
        return shapes.most_tokens(trees)
    # A tree above the limit is a micro-batch of its own, and each fits.
    return max(2, int(((room - rest_L[1:]) / rate_L[1:]).max()))


def most_bytes(cost: Cost, shapes: Shapes, tokens: int, trees: int) -> float:
    """The most that a micro-batch of at most ``tokens`` tokens, or one larger tree, can need."""
    rate_L, rest_L = _bounds(cost, shapes, trees)
    together = float((rate_L * tokens + rest_L).min())
    return cost.fixed + max(float(cost.of(shapes).max()), together)


def _bounds(cost: Cost, shapes: Shapes, trees: int) -> tuple[FloatArray, FloatArray]:
    """Lines above the bytes of any ``trees`` trees: ``rate * tokens + rest``, by rising rate.

    The dual of the knapsack that a micro-batch is: for any price of a token, the trees are worth
    no more than the tokens cost and the ``trees`` best of them are worth above their price. The
    first price is zero, which limits the number of trees alone.
    """
    added_N = cost.of(shapes)
    dense_N = added_N / shapes.tokens_N
    rate_L = np.concatenate([[0.0], np.quantile(dense_N, np.linspace(0, 1, 16))])
    rest_L = []
    for rate in rate_L:
        above_N = np.clip(added_N - rate * shapes.tokens_N, 0, None)
        taken = min(trees, len(above_N))
        rest_L.append(np.partition(above_N, -taken)[-taken:].sum())
    return rate_L, np.asarray(rest_L)


def densest_trees(cost: Cost, shapes: Shapes, tokens: int, trees: int) -> list[int]:
    """The trees of about the largest micro-batch that a step may be split into, by bytes."""
    rate_L, rest_L = _bounds(cost, shapes, trees)
    rate = rate_L[np.argmin(rate_L * tokens + rest_L)]
    chosen: list[int] = []
    room = tokens
    order_N = np.argsort(rate * shapes.tokens_N - cost.of(shapes), kind="stable")
    for i in order_N.tolist():
        if shapes.tokens_N[i] <= room and len(chosen) < trees:
            chosen.append(i)
            room -= int(shapes.tokens_N[i])
    return chosen or [int(np.argmax(cost.of(shapes)))]


def samples(shapes: Shapes, trees_per_step: int) -> Iterator[list[int]]:
    """Micro-batches to measure, ascending: single trees of all kinds, and a few together."""
    order = np.random.default_rng(0).permutation(len(shapes)).tolist()
    groups = [order[:n] for n in (2, 4, 8) if n <= min(len(order), trees_per_step)]
    found = [[i] for i in shapes.spread()] + groups
    yield from sorted(found, key=lambda members: int(shapes.tokens_N[members].sum()))
