"""Floating-point operations of packed rows, and what plain matmuls of a layer's shapes reach.

Counted (Kaplan et al., 2020, arXiv:2001.08361, section 2.1; Chowdhery et al., 2022,
arXiv:2204.02311, appendix B, without its assumption of full-length rows), for N weights in the
body's linear layers, T tokens and A pairs of a token and one it attends to:

- scoring: ``2 N T + 4 W A``
- a LoRA training step: ``4 N T + 12 W A``: forward, and the gradients of activations (the base's
  weights are frozen, so theirs are not computed)

``W`` is heads times head size, summed over layers. Of the last layer only keys and values are
needed for every token; its other layers count for the scored tokens alone, its attention for the
pairs that those are in: skipping the rest is less work, not speed. The adapter's own products,
norms, rotary positions, activations and the optimizer are counted as nothing: they are cost, not
work.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.models import linear_weights
from benchmarks.common.results import median
from plaudit.types import TokenTree

FORWARD = {"linear": 2, "attention": 4}
LORA_STEP = {"linear": 4, "attention": 12}


def attended(tree: TokenTree) -> int:
    """Pairs of a token and one it attends to: its prompt, its branch before it, itself."""
    prompt = len(tree.prefix)
    branches = (len(branch) for branch in tree.branches)
    return prompt * (prompt + 1) // 2 + sum(prompt * r + r * (r + 1) // 2 for r in branches)


def attention_width(config: Any) -> int:
    """Heads times head size, of one layer."""
    heads = int(config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return heads * head


def scored_weights(network: Any) -> int:
    """Weights of the last layer that only scored tokens need: all but those of keys and values."""
    last = f".{int(network.config.num_hidden_layers) - 1}."
    return sum(
        layer.weight.numel()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
        and f"layers{last}" in name
        and "lora_" not in name
        and "k_proj" not in name
        and "v_proj" not in name
    )


def work(network: Any, trees: Iterable[TokenTree], per: dict[str, int]) -> dict[str, float]:
    """Operations that trees computed packed need: in linear layers, and in attention."""
    own = list(trees)
    tokens = sum(tree.tokens for tree in own)
    scored = sum(len(tree.branches) for tree in own)
    above, whole = scored_weights(network), int(network.config.num_hidden_layers) - 1
    pairs = whole * sum(attended(tree) for tree in own) + sum(sum(tree.lengths) for tree in own)
    return {
        "linear": float(per["linear"])
        * ((linear_weights(network) - above) * tokens + above * scored),
        "attention": float(per["attention"]) * attention_width(network.config) * pairs,
    }


def layer_shapes(network: Any) -> Counter[tuple[int, int]]:
    """How many linear layers of each (out, in) the body has."""
    return Counter(
        (layer.out_features, layer.in_features)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and "lora_" not in name and "score" not in name
    )


class Ceiling:
    """Plain matmuls of every linear layer's shape at a row length, into memory that exists.

    :meth:`seconds` is what a row of that length takes at the least: per layer its forward product
    and, with ``backward``, the gradient of its input.
    """

    def __init__(self, network: Any, *, backward: bool, repeats: int = 3) -> None:
        self.shapes = layer_shapes(network)
        self.backward = backward
        self.repeats = repeats

    def seconds(self, tokens: int) -> float:
        total = 0.0
        for (out, into), count in self.shapes.items():
            weight = torch.randn(out, into)
            x, y = torch.randn(tokens, into), torch.empty(tokens, out)
            gradient = torch.empty(tokens, into)
            # The forward pass multiplies with the transposed weight, as nn.Linear does.
            total += count * _timed(x, weight.t(), y, self.repeats)
            if self.backward:
                total += count * _timed(y, weight, gradient, self.repeats)
        return total

    def flops(self, tokens: int) -> float:
        passes = 2 if self.backward else 1
        weights = sum(out * into * count for (out, into), count in self.shapes.items())
        return 2.0 * passes * weights * tokens


def _timed(a: Tensor, b: Tensor, out: Tensor, repeats: int) -> float:
    taken: list[float] = []
    for number in range(repeats + 1):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        if number:
            taken.append(time.perf_counter() - began)
    return median(taken)
