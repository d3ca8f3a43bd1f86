"""Other ways to train the same weights with the same adapter, each at its best micro-batch.

Losses: in two layers, on one step, each side in bf16 against padded batches in fp32. Speed: steps
of the large model. All sides are whole ``Trainer.train()`` loops.

    plaudit            as ``plaudit train``
    padded             transformers' classifier, PEFT, sdpa, right padding to the longest of a batch
    grouped            the same, pairs of similar length in one batch
    packed             transformers' classifier, PEFT, each conversation once in one row, attention
                       by one variable-length call; no prompt is shared
    trl                TRL's RewardTrainer as released, where it imports
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, Trainer

from benchmarks.common.sides import (
    Groups,
    Prepared,
    conversations,
    padded_trainer,
    plaudit_trainer,
    trl_trainer,
)
from benchmarks.gpu.bench import Bench, Shape
from benchmarks.gpu.record import Part, free_memory
from benchmarks.gpu.training import Setting, Timing, large_side, timed
from plaudit.model.module import classifier
from plaudit.types import TokenTree

PLAIN_PACKED = "check_packed"
LOSS_TOLERANCE = 0.1
"""Between bf16 and fp32: scores are about 6 in size, and a side that computes them in bf16 rounds
them to 0.03. Other tokens or another pairing change the loss by about 1.
"""


@dataclass(frozen=True, slots=True)
class Side:
    """A trainer of a number of pairs in a micro-batch, or of tokens where it splits by those."""

    make: Callable[[Prepared, Groups, int], Trainer]
    by_tokens: bool = False


def measure_peers(bench: Bench, part: Part) -> None:
    """Losses first, then pairs of one length, then of many."""
    sides = available(part)
    part.attempt("losses, two layers", partial(compare_losses, bench, part, sides))
    # Every side takes its adapter and its arguments from this one.
    prepared = large_side(bench, Setting(), bench.sizes.budget)
    shape = bench.sizes.training[0]
    equal = shape.trees(bench.vocabulary, bench.seed)
    mixed = spread(shape, bench.vocabulary, bench.seed)
    # A step's pairs in the order of their length put similar ones in one micro-batch.
    sorted_ = sorted(mixed, key=lambda tree: max(tree.lengths))
    best: dict[str, int] = {}
    for name, side in sides.items():
        run = Run(f"{name}, {shape.name}", side, equal)
        sizes = (bench.sizes.budget,) if side.by_tokens else bench.sizes.micro_batches

        def sweep(name: str = name, run: Run = run, sizes: Sequence[int] = sizes) -> None:
            best[name] = _measure(bench, part, prepared, run, sizes)

        part.attempt(run.name, sweep)
    for name, trees in (
        *((name, mixed) for name in ("plaudit", "padded", "packed")),
        ("grouped", sorted_),
    ):
        of = "padded" if name == "grouped" else name
        run = Run(f"{name}, lengths around {shape.name}", sides[of], trees)
        largest = best.get(of, max(bench.sizes.micro_batches))
        # The longest pairs may not fit at the size that was the fastest for those of one length.
        smaller = [size for size in bench.sizes.micro_batches if size <= largest]
        tried = [best.get(of, bench.sizes.budget)] if run.side.by_tokens else sorted(smaller)[::-1]
        part.attempt(run.name, partial(_measure, bench, part, prepared, run, tried))


@dataclass(frozen=True, slots=True)
class Run:
    """A side over the pairs of a step."""

    name: str
    side: Side
    trees: Sequence[TokenTree]


def available(part: Part) -> dict[str, Side]:
    """The sides that can run here."""
    sides = {
        "plaudit": Side(lambda side, groups, _: plaudit_trainer(side, groups), by_tokens=True),
        "padded": Side(padded_trainer),
        "packed": Side(packed_trainer),
    }
    if find_spec("trl") is None:
        part.not_run("trl", "trl is not installed")
    else:
        sides["trl"] = Side(trl_trainer)
    return sides


def spread(shape: Shape, vocabulary: int, seed: int) -> list[TokenTree]:
    """Pairs whose lengths are spread around a shape's, as those of dialogues are (log-normal)."""
    draw = np.random.default_rng((seed, 1))

    def ids(mean: int) -> np.ndarray:
        count = max(2, round(mean * draw.lognormal(-0.18, 0.6)))
        return draw.integers(10, vocabulary, count, dtype=np.int32)

    return [
        TokenTree(
            index=i,
            prefix=ids(shape.prompt),
            branches=(ids(shape.response), ids(shape.response)),
            grades=(2.0, 1.0),
        )
        for i in range(shape.prompts)
    ]


def compare_losses(bench: Bench, part: Part, sides: dict[str, Side]) -> None:
    """The first loss of each side in two layers, against fp32."""
    trees = spread(bench.sizes.training[0], bench.vocabulary, bench.seed)
    exact = _shallow_side(bench, torch.float32)
    truth = _first_loss(bench, exact, sides["padded"], trees)
    part.measured("loss in fp32, two layers", loss=truth)
    prepared = exact if bench.tiny else _shallow_side(bench, torch.bfloat16)
    limit = 1e-4 if bench.tiny else LOSS_TOLERANCE

    def compare(name: str, side: Side) -> None:
        loss = _first_loss(bench, prepared, side, trees)
        apart = abs(loss - truth)
        part.expect(name, apart <= limit, f"within {limit} of fp32", loss=loss, difference=apart)

    for name, side in sides.items():
        what = f"loss of {name}, two layers"
        part.attempt(what, partial(compare, what, side))


def _first_loss(bench: Bench, prepared: Prepared, side: Side, trees: Sequence[TokenTree]) -> float:
    """In the smallest micro-batches: long pairs in fp32 need the most memory of all."""
    make = partial(_make, side, min(bench.sizes.micro_batches))
    return timed(bench, prepared, [trees], make).losses[0]


def _make(side: Side, size: int, prepared: Prepared, groups: Groups) -> Trainer:
    return side.make(prepared, groups, size)


def _measure(bench: Bench, part: Part, prepared: Prepared, run: Run, sizes: Sequence[int]) -> int:
    """The fastest of the micro-batches that fit, in tokens or pairs."""
    best: tuple[int, Timing] | None = None
    groups = [run.trees] * (bench.sizes.warm_up + bench.sizes.timed)
    for size in sizes:
        if best is not None and size < best[0]:
            # A smaller one is for sides that nothing larger fits.
            continue
        timing: Timing | None = None
        with suppress(torch.OutOfMemoryError):
            timing = timed(bench, prepared, groups, partial(_make, run.side, size))
        # A failed step is alive until the block is left.
        free_memory()
        if timing is not None and (best is None or timing.median < best[1].median):
            best = size, timing
    if best is None:
        part.not_run(run.name, f"no micro-batch of {', '.join(map(str, sizes))} fits the memory")
        return min(sizes)
    size, timing = best
    # plaudit halves a budget that is too large by itself.
    size = timing.budget or size
    part.measured(
        run.name,
        seconds=timing.median,
        pairs_per_second=len(run.trees) / timing.median,
        **{"micro_batch_tokens" if run.side.by_tokens else "micro_batch_pairs": size},
        step_seconds=timing.seconds,
        peak_bytes=timing.peak_bytes,
        losses=timing.losses,
    )
    return size


def _shallow_side(bench: Bench, dtype: torch.dtype) -> Prepared:
    return large_side(bench, Setting(), bench.sizes.budget, base=bench.shallow(dtype))


# ---- packed without prefix sharing


def packed_trainer(prepared: Prepared, groups: Groups, rows: int | None = None) -> Trainer:
    """The padded side's settings over packed rows."""
    trainer: Any = padded_trainer(prepared, groups, rows)
    network = trainer.model
    AttentionInterface.register(PLAIN_PACKED, attend_segments)
    classifier(network).set_attn_implementation(PLAIN_PACKED)
    trainer.data_collator = pack_pairs
    trainer.compute_loss = packed_loss
    return trainer  # type: ignore[no-any-return]


def pack_pairs(trees: Sequence[TokenTree]) -> dict[str, Any]:
    """Conversations end to end in one row, chosen ones first; positions restart at each."""
    pairs = [conversations(tree) for tree in trees]
    rows = [torch.tensor(ids) for side in (0, 1) for ids in (pair[side] for pair in pairs)]
    offsets = F.pad(torch.tensor([len(row) for row in rows]).cumsum(0), (1, 0))
    return {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
        "offsets": offsets.to(torch.int32),
        "lengths": [len(row) for row in rows],
    }


def packed_loss(model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
    """The pairwise loss on a classifier's body over a packed row."""
    own, ids_1T = classifier(model), inputs["input_ids"]
    half = own.dtype == torch.bfloat16
    # accelerate puts the forward pass of the whole model under autocast, which is not called here.
    with torch.autocast(ids_1T.device.type, torch.bfloat16, enabled=half):
        hidden_1TD = own.base_model(
            input_ids=ids_1T,
            position_ids=inputs["position_ids"],
            use_cache=False,
            offsets=inputs["offsets"],
            lengths=inputs["lengths"],
        ).last_hidden_state
        scores_R = own.score(hidden_1TD[0, inputs["offsets"][1:] - 1]).squeeze(-1)
    chosen_P, rejected_P = scores_R.chunk(2)
    return -F.logsigmoid(chosen_P.float() - rejected_P.float()).mean()


def attend_segments(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    *,
    offsets: Tensor,
    lengths: list[int],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each segment; one call on CUDA, one for each segment on a CPU."""
    given = [x.to(value_1GTD.dtype) for x in (query_1HTD, key_1GTD, value_1GTD)]
    if query_1HTD.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        attend: Any = varlen_attn
        q_THD, k_TGD, v_TGD = (x[0].transpose(0, 1) for x in given)
        grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters
        out_THD: Tensor = attend(
            *(q_THD, k_TGD, v_TGD, offsets, offsets, max(lengths), max(lengths)),
            scale=scaling,
            window_size=(-1, 0),
            **({"enable_gqa": True} if grouped else {}),
        )
        return out_THD[None], None
    segments = zip(*(x.split(lengths, dim=2) for x in given), strict=True)
    outs = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in segments
    ]
    return torch.cat(outs, dim=2).transpose(1, 2), None
