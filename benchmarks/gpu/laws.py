"""Law 1 on the device: packed scores and gradients are those of separate sequences.

The truth is plain transformers in fp32, one conversation at a time, on weights that bf16 holds
exactly. Packed fp32 must equal it to rounding. Packed bf16 may be off by 1.5 times what padded bf16
is off, so two results in bf16 are never compared with each other. The error of scores is a mean
over all responses, which a router that chooses another expert moves little; that of gradients is
the norm of the difference over the norm of the truth. Errors in bf16 are geometric means over
several draws of trees, since one draw's ratio is noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import geometric_mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.bench import (
    PAD,
    Bench,
    Shape,
    attention_counts,
    attention_forms,
    forced_attention,
    patched_modules,
    sharing,
    spread_adapter,
)
from benchmarks.gpu.record import Part
from plaudit.model.attention.kv_cache import PassKV, PrefixCache
from plaudit.model.fast.kernels import KERNELS
from plaudit.model.load import add_lora, dropouts_off
from plaudit.model.module import RewardModule, as_reward_module, classifier
from plaudit.tokens.batch import pack, pad
from plaudit.types import TokenTree
from tests.models import ARCHITECTURE_OPTIONS, WINDOW, make_trees, tiny_classifier

LORA = {"r": 4, "target_modules": "all-linear"}
SCORE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
BF16_RATIO = 1.5
DRAWS = 6
FLOOR = 1e-3
"""Errors in bf16 below this share of the truth are rounding of the last layer, on either side."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Scores and gradients of one way to compute, in fp32."""

    scores_R: Tensor
    gradients: dict[str, Tensor]

    def errors(self, truth: Outcome) -> Errors:
        """How far this is from the truth."""
        assert self.gradients.keys() == truth.gradients.keys(), "other parameters have gradients"
        apart = [self.gradients[name] - expected for name, expected in truth.gradients.items()]
        return Errors(
            scores=relative(self.scores_R, truth.scores_R),
            gradients=norm(apart) / norm(truth.gradients.values()),
        )


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one draw, relative to the size of scores and gradients."""

    scores: float
    gradients: float


def pooled(draws: Sequence[Errors]) -> tuple[float, float]:
    """The errors of scores and gradients over all draws."""
    tiny = 1e-12
    return (
        geometric_mean(max(one.scores, tiny) for one in draws),
        geometric_mean(max(one.gradients, tiny) for one in draws),
    )


def norm(tensors: Iterable[Tensor]) -> float:
    """Of all together."""
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())


def relative(scores_R: Tensor, truth_R: Tensor) -> float:
    """Mean absolute error over mean absolute score."""
    return float((scores_R - truth_R).abs().mean() / truth_R.abs().mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """A network in fp32 whose weights bf16 holds, draws of trees, and how packed batches run.

    fp32 takes the first draw alone.
    """

    name: str
    network: nn.Module
    draws: Sequence[Sequence[TokenTree]]
    lora: bool = False
    form: str | None = None
    checkpointing: bool = False
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)

    @property
    def compiles(self) -> bool:
        """Whether its attention is compiled on a GPU, which can take longer than all the others."""
        return self.form == "flex" or self.name.startswith("gemma2")


def check_laws(bench: Bench, part: Part) -> None:
    """Every architecture; then what only some layers, lengths or forms of attention meet."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        laws = [*architectures(bench), *special_laws(bench)]
        for law in sorted(laws, key=lambda law: law.compiles):
            part.attempt(law.name, partial(check_law, bench, part, law))
        for name in ("llama", "mistral", "gemma3_text"):
            part.attempt(f"{name} cached prefixes", partial(check_cached, bench, part, name))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def architectures(bench: Bench) -> Iterator[Law]:
    """Each supported architecture, whole and with LoRA; tiny sizes check less on most of them."""
    draws = ragged_draws(bench)
    for name in sorted(ARCHITECTURE_OPTIONS):
        short = bench.tiny and name not in ("llama", "gemma2")
        for lora in (True,) if short else (False, True):
            yield Law(
                name=f"{name}{' LoRA' * lora}",
                network=tiny(name),
                draws=draws,
                lora=lora,
                dtypes=(torch.float32,) if short else BOTH,
            )


def special_laws(bench: Bench) -> Iterator[Law]:
    """K to 64, checkpointing, every form of attention, and the large model's own heads."""
    lengths = [(WINDOW + 9, tuple(1 + k % 7 for k in range(64)))]
    wide = [make_trees(lengths, seed=seed) for seed in range(DRAWS)]
    draws = ragged_draws(bench)
    exact, half = (torch.float32,), (torch.bfloat16,)
    for name in ("llama",) if bench.tiny else ("llama", "mistral", "gemma2"):
        dtypes = exact if bench.tiny else BOTH
        yield Law(name=f"{name} K=64", network=tiny(name), draws=wide, dtypes=dtypes)
    for name in ("llama", "gemma3_text"):
        yield Law(
            name=f"{name} checkpointing",
            network=tiny(name),
            draws=draws,
            checkpointing=True,
            dtypes=exact if bench.tiny else BOTH,
        )
    for form in attention_forms(bench.device):
        # Flash attention is for half precision alone; written-out logits are rounded in it.
        dtypes = half if form in HALF_PRECISION_FORMS else exact if bench.tiny else BOTH
        windowed = form in attention_forms(bench.device, window=True)
        names = ("llama", "gemma3_text", *(() if bench.tiny else ("qwen3", "mistral")))
        for name in names if windowed else names[:3]:
            yield Law(
                name=f"{name} {form}", network=tiny(name), draws=draws, form=form, dtypes=dtypes
            )
    if bench.tiny:
        return
    # Heads of 128, four query heads to a key head, lengths at which kernels split their work.
    shape = Shape(prompt=700, response=300, prompts=2, responses=4)
    network = bench.shallow(torch.float32)
    for form in attention_forms(bench.device):
        yield Law(
            name=f"large layers {form}",
            network=network,
            draws=[shape.trees(128000, 0)],
            lora=True,
            form=form,
            dtypes=half,
        )


BOTH = (torch.float32, torch.bfloat16)
HALF_PRECISION_FORMS = ("varlen", "two_calls")


def tiny(name: str) -> nn.Module:
    """A tiny random classifier in fp32, its weights rounded to bf16."""
    network: nn.Module = tiny_classifier(name)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16().float())
    dropouts_off(network, keep_lora=False)
    return network


def ragged_draws(bench: Bench) -> list[list[TokenTree]]:
    """The first of more responses."""
    count = DRAWS - 2 if bench.tiny else DRAWS
    return [ragged_trees(seed, few=bench.tiny or seed > 0) for seed in range(count)]


def ragged_trees(seed: int, *, few: bool) -> list[TokenTree]:
    """K from 1 to 8 beyond the window, no prompt, one token, a response that begins another."""
    most = 4 if few else 8
    shapes = [(WINDOW + 4, (5 + 3 * k, *range(1, k))) for k in range(1, most + 1)]
    (tree,) = make_trees([(8, (9,))], seed=10 * seed + 3)
    (long,) = tree.branches
    return [
        *make_trees(shapes, seed=10 * seed),
        *make_trees([(0, (4, 17)), (0, (21,)), (1, (1, 1))], seed=10 * seed + 1),
        TokenTree(index=0, prefix=tree.prefix, branches=(long[:4], long)),
    ]


def check_law(bench: Bench, part: Part, law: Law) -> None:
    """One case for each precision."""
    network = sharing(law.network).to(bench.device)
    if law.lora:
        network = add_lora(network, LORA)
        spread_adapter(network, bench.seed)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "lora_" in name:
                    larger = parameter * (10 if "lora_B" in name else 1)
                    parameter.copy_(larger.bfloat16())
    needed = law.draws if torch.bfloat16 in law.dtypes else law.draws[:1]
    truths = [separate(network, trees) for trees in needed]
    for dtype in law.dtypes:
        own = in_precision(network, dtype)
        count = 1 if dtype == torch.float32 else len(needed)
        draws = list(zip(needed[:count], truths[:count], strict=True))
        module, fused = packed_module(bench, own, law)
        attention_counts()
        with forced_attention(law.form):
            errors = [
                outcome(module.network, module(pack(trees, bench.device))).errors(truth)
                for trees, truth in draws
            ]
        forms = attention_counts()
        score_error, gradient_error = pooled(errors)
        numbers: dict[str, Any] = {
            "score_error": score_error,
            "gradient_error": gradient_error,
            "attention": forms,
            "fused_modules": fused,
        }
        if dtype == torch.float32:
            holds = score_error <= SCORE_TOLERANCE and gradient_error <= GRADIENT_TOLERANCE
            note = f"scores to {SCORE_TOLERANCE:g}, gradients to {GRADIENT_TOLERANCE:g}"
        else:
            padded = [
                padded_outcome(bench, own, trees, law.lora).errors(truth) for trees, truth in draws
            ]
            numbers["padded_score_error"], numbers["padded_gradient_error"] = pooled(padded)
            holds = all(
                numbers[name] <= max(BF16_RATIO * numbers[f"padded_{name}"], FLOOR)
                for name in ("score_error", "gradient_error")
            )
            note = f"errors at most {BF16_RATIO} times those of padded batches in bf16"
        if law.form is not None:
            holds &= any(name.startswith(law.form) for name in forms)
            note += f"; by attention {law.form}"
        elif bench.device.type == "cuda" and dtype == torch.bfloat16:
            holds &= any(name.startswith(FUSED_FORMS) for name in forms)
            note += f"; by attention {' or '.join(FUSED_FORMS)}"
        if law.name.startswith("llama") and (bench.device.type, dtype) in KERNELS:
            holds &= fused.keys() >= FUSED_LAYERS
            note += f"; with {', '.join(sorted(FUSED_LAYERS))}"
        short = str(dtype).removeprefix("torch.")
        part.expect(f"{law.name} {short}", holds, note, **numbers)


FUSED_FORMS = ("varlen", "two_calls", "flex")
FUSED_LAYERS = frozenset({"FusedRMSNorm", "FusedAttention", "FusedGated"})
"""What a Llama runs where there are kernels for its precision."""


def in_precision(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose body is in a precision; adapter and head stay in fp32, as plaudit loads them."""
    own = sharing(network)
    for name, child in own.named_modules():
        if any(part in name for part in ("lora_", "score")):
            continue
        for key, parameter in list(child._parameters.items()):
            if parameter is not None:
                cast = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
                child._parameters[key] = cast
    classifier(own).config.dtype = dtype
    return own


def separate(network: nn.Module, trees: Sequence[TokenTree]) -> Outcome:
    """Plain transformers on each whole conversation alone."""
    return outcome(network, separate_scores(network, trees))


def packed_module(
    bench: Bench, network: nn.Module, law: Law
) -> tuple[RewardModule, dict[str, int]]:
    """The network as plaudit trains it, and how many of its modules run fused."""
    own = sharing(network)
    prepared = bench.prepare(own)
    if law.checkpointing:
        prepared.module.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    prepared.module.train()
    return prepared.module, patched_modules(own)


def padded_outcome(
    bench: Bench, network: nn.Module, trees: Sequence[TokenTree], lora: bool
) -> Outcome:
    """One right-padded row for each conversation in transformers' and PEFT's own layers.

    An adapter is in fp32 and runs under autocast, as in transformers' Trainer.
    """
    own = sharing(network)
    with torch.autocast(bench.device.type, torch.bfloat16, enabled=lora):
        scores_R = as_reward_module(own)(pad(trees, PAD, bench.device))
    return outcome(own, scores_R)


def outcome(network: nn.Module, scores_R: Tensor) -> Outcome:
    """Scores, and gradients of a weighted sum of them, so that no two responses cancel."""
    for parameter in network.parameters():
        parameter.grad = None
    weights_R = torch.linspace(-1.0, 2.0, len(scores_R), device=scores_R.device)
    (scores_R.float() * weights_R).sum().backward()
    gradients = {
        name: parameter.grad.detach().float()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    for parameter in network.parameters():
        parameter.grad = None
    return Outcome(scores_R.detach().float(), gradients)


# ---- prompts whose keys and values an earlier pass computed


@torch.no_grad()
def check_cached(bench: Bench, part: Part, name: str) -> None:
    """Score branches behind cached prompts, in fp32 and in bf16."""
    trees = make_trees([(WINDOW + 9, (3, 7, 5)), (40, (6, 2)), (3, (9, 1, 4, 4))] * DRAWS, seed=7)
    network = tiny(name).to(bench.device)
    truth_R = separate_scores(network, trees)
    for dtype in BOTH:
        own = in_precision(network, dtype)
        padded_R = as_reward_module(sharing(own))(pad(trees, PAD, bench.device))
        module = bench.prepare(sharing(own)).module
        cache = PrefixCache(1 << 30)
        prompts = [TokenTree(index=0, prefix=t.prefix[:0], branches=(t.prefix,)) for t in trees]
        ends = np.cumsum([0, *(len(tree.prefix) for tree in trees)])
        first = PassKV([], [slice(a, b) for a, b in pairwise(ends)])
        module(pack(prompts, bench.device, cached=[False] * len(prompts), prefix_kv=first))
        for tree, layers in zip(trees, first.found, strict=True):
            cache.add(tree.prefix, 0, layers)
        second = PassKV([cache.find(tree.prefix) for tree in trees], [])
        attention_counts()
        scores_R = module(pack(trees, bench.device, cached=[True] * len(trees), prefix_kv=second))
        error, off = relative(scores_R, truth_R), relative(padded_R, truth_R)
        exact = dtype == torch.float32
        part.expect(
            f"{name} cached prefixes {str(dtype).removeprefix('torch.')}",
            error <= (SCORE_TOLERANCE if exact else max(BF16_RATIO * off, FLOOR)),
            f"scores to {SCORE_TOLERANCE:g}" if exact else f"{BF16_RATIO} times padded batches",
            score_error=error,
            padded_score_error=off,
            attention=attention_counts(),
        )


def separate_scores(network: nn.Module, trees: Sequence[TokenTree]) -> Tensor:
    """Plain transformers, one conversation at a time."""
    device = next(network.parameters()).device
    rows = [np.concatenate([tree.prefix, branch]) for tree in trees for branch in tree.branches]
    ids = [torch.from_numpy(row.astype(np.int64)).to(device)[None] for row in rows]
    return torch.cat([network(input_ids=row, use_cache=False).logits[:, 0] for row in ids])
