"""Scoring with the large model and a small one: packed, against padded batches of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from benchmarks.common.flops import FORWARD, work
from benchmarks.common.models import LLAMAS
from benchmarks.gpu.bench import PAD, Bench, Shape, attention_counts, sharing
from benchmarks.gpu.laws import relative
from benchmarks.gpu.record import Part
from benchmarks.gpu.training import utilisation
from plaudit.model.module import RewardModule
from plaudit.model.scoring import score_distinct
from plaudit.tokens.batch import PaddedBatcher
from plaudit.types import Batcher, TokenTree

PADDED_TOKENS = (8192, 32768)
"""Of padded batches, tried while they are faster."""


def measure_scoring(bench: Bench, part: Part) -> None:
    """Pairs, then many responses to a prompt, then short pairs by a small model."""
    for shape in (bench.sizes.training[0], *bench.sizes.wide):
        part.attempt(shape.name, partial(_measure_large, bench, part, shape))
    name = "tiny" if bench.tiny else "110m"
    config = LlamaConfig(vocab_size=1000, **LLAMAS[name])
    small = bench.plaudit_side(bench.build(config, bench.dtype), lora=False).module.eval()
    for tokens in bench.sizes.row_tokens:
        what = f"{name} model, {tokens} tokens a batch"
        part.attempt(what, partial(_measure_small, bench, part, small, tokens, what))
    part.attempt("noise", partial(_measure_noise, bench, part, small))


def _measure_large(bench: Bench, part: Part, shape: Shape) -> None:
    """Both ways, and the packed scores against the padded ones."""
    trees = shape.trees(bench.vocabulary, bench.seed)
    module = bench.plaudit_side(bench.base, lora=False).module.eval()
    tokens = bench.sizes.budget
    attention_counts()
    packed = bench.seconds(lambda: scores(module, bench.packed(tokens), trees), repeats=2)
    forms = attention_counts()
    plain = PlainClassifier(sharing(bench.base))
    padded, padded_tokens = _fastest_padded(bench, plain, trees)
    responses = len(trees) * shape.responses
    operations = sum(work(bench.base, trees, FORWARD).values())
    one = scores(module, bench.packed(tokens), trees)
    two = scores(plain, _padded(bench, padded_tokens), trees)
    part.measured(
        f"{shape.name}, {len(trees)} prompts",
        packed_seconds=packed,
        padded_seconds=padded,
        speedup=padded / packed,
        responses_per_second=responses / packed,
        micro_batch_tokens=tokens,
        padded_batch_tokens=padded_tokens,
        difference_from_padded=relative(torch.from_numpy(one), torch.from_numpy(two)),
        attention=forms,
        **utilisation(bench, sum(tree.tokens for tree in trees), packed, operations),
    )


def _measure_small(bench: Bench, part: Part, module: RewardModule, tokens: int, what: str) -> None:
    trees = bench.sizes.many.trees(bench.vocabulary, bench.seed)
    computed = sum(tree.tokens for tree in trees)
    seconds = bench.seconds(lambda: scores(module, bench.packed(tokens), trees))
    operations = sum(work(module.network, trees, FORWARD).values())
    part.measured(
        what,
        seconds=seconds,
        tokens_per_second=computed / seconds,
        responses_per_second=2 * len(trees) / seconds,
        tflops=operations / seconds / 1e12,
    )


def _measure_noise(bench: Bench, part: Part, module: RewardModule) -> None:
    """How far a score depends on its batch: alone, in a small batch, in a large one."""
    trees = bench.sizes.many.trees(bench.vocabulary, bench.seed)[:64]
    found = [scores(module, bench.packed(tokens), trees) for tokens in (1, *bench.sizes.row_tokens)]
    spread = np.max(found, axis=0) - np.min(found, axis=0)
    size = float(np.abs(found[0]).mean())
    again = scores(module, bench.packed(1), trees)
    # In bf16 a hidden state is off by a hundredth, of many scores one by several times that.
    limit = 1e-5 if module.network.dtype == torch.float32 else 1e-1
    part.expect(
        "scores in batches of any size",
        bool(spread.max() <= limit * max(1.0, size)),
        f"within {limit:g} of a unit of reward, or of the mean size of rewards",
        largest_difference=float(spread.max()),
        mean_difference=float(spread.mean()),
        mean_size=size,
        repeated_call_difference=float(np.abs(again - found[0]).max()),
    )


class PlainClassifier(nn.Module):
    """Transformers' own classifier over padded batches: its layers, sdpa, its head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: object) -> Tensor:
        logits_R1: Tensor = self.network(**batch.body_inputs(), use_cache=False).logits  # type: ignore[attr-defined]
        return logits_R1.squeeze(-1).float()


def scores(module: nn.Module, batcher: Batcher, trees: Sequence[TokenTree]) -> np.ndarray:
    return np.concatenate(score_distinct(module, batcher, trees))


def _padded(bench: Bench, tokens: int) -> PaddedBatcher:
    return PaddedBatcher(max_tokens=tokens, pad_id=PAD, device=bench.device)


def _fastest_padded(
    bench: Bench, plain: nn.Module, trees: Sequence[TokenTree]
) -> tuple[float, int]:
    """Seconds and the tokens of a batch."""
    alone = [
        TokenTree(index=0, prefix=tree.prefix, branches=(branch,))
        for tree in trees
        for branch in tree.branches
    ]
    best: tuple[float, int] | None = None
    for tokens in PADDED_TOKENS[: 1 if bench.tiny else None]:
        try:
            seconds = bench.seconds(
                lambda batcher=_padded(bench, tokens): score_distinct(  # type: ignore[misc]
                    plain, batcher, alone, batches=len(batcher.split(alone))
                ),
                repeats=2,
            )
        except torch.OutOfMemoryError:
            break
        if best is not None and seconds >= best[0]:
            break
        best = seconds, tokens
    assert best is not None, "no padded batch fits the memory"
    return best
