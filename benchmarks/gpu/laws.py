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
from torch.nn.attention import SDPBackend, sdpa_kernel

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
EXACT = {"cpu": (1e-5, 1e-4), "cuda": (5e-5, 5e-4)}
"""Errors of scores and gradients that are rounding in fp32. On a GPU attention multiplies fp32 as
three TF32 parts on tensor cores; the truth is multiplied in fp32 there too.
"""
BF16_RATIO = 1.5
DRAWS = 4
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


BOTH = (torch.float32, torch.bfloat16)
EXACTLY, HALF = BOTH[:1], BOTH[1:]
LARGE = "large layers"
"""Two layers of the large model: heads of 128, four query heads to a key head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """A model, the trees it gets, and how packed batches run. fp32 takes the first draw alone."""

    model: str
    trees: str = "ragged"
    lora: bool = False
    form: str | None = None
    checkpointing: bool = False
    dtypes: tuple[torch.dtype, ...] = BOTH

    @property
    def name(self) -> str:
        what = ["K=64"] * (self.trees == "wide") + ["LoRA"] * (self.lora and self.model != LARGE)
        what += ["checkpointing"] * self.checkpointing
        return " ".join([self.model, *what, *([] if self.form is None else [self.form])])

    @property
    def compiles(self) -> bool:
        """Whether its attention is compiled on a GPU, which takes longer than everything else."""
        return self.form == "flex" or (self.model == "gemma2" and torch.bfloat16 in self.dtypes)


def check_laws(bench: Bench, part: Part) -> None:
    """Llama by every form of attention and the large model's layers first; then every architecture;
    last what compiles its attention.
    """
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    subjects = Subjects(bench)
    try:
        laws = [*special_laws(bench), *architectures(bench)]
        for law in (law for law in laws if not law.compiles):
            part.attempt(law.name, partial(check_law, subjects, part, law))
        for name in ("llama", "mistral", "gemma3_text"):
            part.attempt(f"{name} cached prefixes", partial(check_cached, subjects, part, name))
        for law in (law for law in laws if law.compiles):
            # Compiled code of other models counts towards the limit of recompilations.
            torch.compiler.reset()
            part.attempt(law.name, partial(check_law, subjects, part, law))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def special_laws(bench: Bench) -> Iterator[Law]:
    """Every form of attention, the large model's layers, K to 64, and checkpointing."""
    some = EXACTLY if bench.tiny else BOTH
    forms, windowed = attention_forms(bench.device), attention_forms(bench.device, window=True)

    def of_form(model: str, form: str) -> Law:
        return Law(model=model, form=form, dtypes=HALF if form in HALF_PRECISION_FORMS else some)

    yield Law(model="llama")
    yield Law(model="llama", lora=True)
    yield from (of_form("llama", form) for form in forms)
    if not bench.tiny:
        # Lengths at which kernels split their work.
        for form in forms:
            yield Law(model=LARGE, trees="long", lora=True, form=form, dtypes=HALF)
    # Of gemma2's layers only soft-capping is special, which one form computes.
    yield Law(model="gemma2", lora=True)
    yield Law(model="llama", trees="wide", dtypes=some)
    yield Law(model="llama", checkpointing=True, dtypes=some)
    yield Law(model="gemma3_text", checkpointing=True, dtypes=some)
    yield from (of_form("gemma3_text", form) for form in windowed)


def architectures(bench: Bench) -> Iterator[Law]:
    """Each supported architecture with LoRA, and each kind of layer whole; few of them if tiny."""
    kinds = ("gemma2", "gemma3_text", "gpt_neox", "mixtral")
    rest = sorted(ARCHITECTURE_OPTIONS.keys() - {"llama", "gemma2"})
    for name in (name for name in rest if not bench.tiny or name in kinds):
        yield Law(model=name, lora=True, dtypes=EXACTLY if bench.tiny else BOTH)
    if not bench.tiny:
        yield from (Law(model=name) for name in ("mistral", "qwen3", *kinds))
        yield from (Law(model=name, trees="wide") for name in ("mistral", "gemma2"))


HALF_PRECISION_FORMS = ("varlen", "two_calls", "flex")
"""That a GPU runs in half precision alone."""


class Subjects:
    """Models in fp32 whose weights bf16 holds, draws of trees, and the truth about both."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._networks: dict[tuple[str, bool], nn.Module] = {}
        self._draws: dict[str, list[list[TokenTree]]] = {}
        self._truths: dict[tuple[str, bool, str], list[Outcome]] = {}

    def network(self, model: str, lora: bool) -> nn.Module:
        if (model, lora) not in self._networks:
            self._networks[model, lora] = self._build(model, lora)
        return self._networks[model, lora]

    def draws(self, law: Law) -> list[list[TokenTree]]:
        """As many as the law's precisions need."""
        if law.trees not in self._draws:
            self._draws[law.trees] = draw_trees(law.trees)
        return self._draws[law.trees][: None if torch.bfloat16 in law.dtypes else 1]

    def truths(self, law: Law) -> list[Outcome]:
        """Of each draw."""
        found = self._truths.setdefault((law.model, law.lora, law.trees), [])
        network = self.network(law.model, law.lora)
        found += [separate(network, trees) for trees in self.draws(law)[len(found) :]]
        return found

    def _build(self, model: str, lora: bool) -> nn.Module:
        plain = self.bench.shallow(torch.float32) if model == LARGE else tiny(model)
        network = plain.to(self.bench.device)
        if lora:
            network = add_lora(network, LORA)
            spread_adapter(network, self.bench.seed)
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    if "lora_" in name:
                        larger = parameter * (10 if "lora_B" in name else 1)
                        parameter.copy_(larger.bfloat16())
        return network


def tiny(name: str) -> nn.Module:
    """A tiny random classifier in fp32, its weights rounded to bf16.

    Its heads are 16 wide: FlexAttention compiles none that are narrower.
    """
    network: nn.Module = tiny_classifier(
        name, hidden_size=64, head_dim=HEAD_WIDTH, initializer_range=0.2
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16().float())
    dropouts_off(network, keep_lora=False)
    return network


HEAD_WIDTH = 16


def draw_trees(kind: str) -> list[list[TokenTree]]:
    """Several draws; the first ragged one has more responses."""
    if kind == "wide":
        lengths = [(WINDOW + 9, tuple(1 + k % 7 for k in range(64)))]
        return [make_trees(lengths, seed=seed) for seed in range(DRAWS)]
    if kind == "long":
        return [Shape(prompt=700, response=300, prompts=2, responses=4).trees(128000, 0)]
    return [ragged_trees(seed, few=seed > 0) for seed in range(DRAWS)]


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


def check_law(subjects: Subjects, part: Part, law: Law) -> None:
    """One case for each precision."""
    bench, network = subjects.bench, subjects.network(law.model, law.lora)
    needed, truths = subjects.draws(law), subjects.truths(law)
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
            score_limit, gradient_limit = EXACT[bench.device.type]
            holds = score_error <= score_limit and gradient_error <= gradient_limit
            note = f"scores to {score_limit:g}, gradients to {gradient_limit:g}"
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
        if law.model == "llama" and (bench.device.type, dtype) in KERNELS:
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
    with sdpa_kernel(SDPBackend.MATH):
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
def check_cached(subjects: Subjects, part: Part, name: str) -> None:
    """Score branches behind cached prompts, in fp32 and in bf16."""
    trees = make_trees([(WINDOW + 9, (3, 7, 5)), (40, (6, 2)), (3, (9, 1, 4, 4))] * DRAWS, seed=7)
    bench, network = subjects.bench, subjects.network(name, False)
    with sdpa_kernel(SDPBackend.MATH):
        truth_R = separate_scores(network, trees)
    score_limit, _ = EXACT[bench.device.type]
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
            error <= (score_limit if exact else max(BF16_RATIO * off, FLOOR)),
            f"scores to {score_limit:g}" if exact else f"{BF16_RATIO} times padded batches",
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
