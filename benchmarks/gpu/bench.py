"""What the parts share: sizes, the large model built once, clocks, and which code computed what.

Two sizes: what a GPU is measured with, and what ``--tiny`` puts in its place on a CPU.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaConfig

from benchmarks.common.models import HEAD_STD, LLAMAS, LORA
from benchmarks.common.saved import write_pairs
from benchmarks.common.sides import Prepared as SidePrepared
from benchmarks.common.sides import prepare_run
from plaudit.embedded import base_path
from plaudit.model.attention.interface import BACKENDS, forced, ran
from plaudit.model.attention.layer import Settings
from plaudit.model.fast import kernels
from plaudit.model.fast.patched import PatchedModule
from plaudit.model.load import add_lora, dropouts_off
from plaudit.model.packing import Prepared, choose_layout, patch_modules
from plaudit.planning.architecture import read_config
from plaudit.planning.estimate import GPUS
from plaudit.tokens.batch import PackedBatcher, make_batchers
from plaudit.types import TokenTree

BASE = "meta-llama/Meta-Llama-3-8B"
PAD = 2
ROWS = 64
"""Of the small corpus whose run lends its arguments and its loop; no shape has more prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Tokens of a prompt and of each response, and how many prompts make a step."""

    prompt: int
    response: int
    prompts: int
    responses: int = 2

    @property
    def name(self) -> str:
        many = "" if self.responses == 2 else f" ×{self.responses}"
        return f"{self.prompt}+{self.response}{many}"

    def trees(self, vocabulary: int, seed: int) -> list[TokenTree]:
        """Random ids; the first response is the chosen one."""
        draw = np.random.default_rng((seed, self.prompt, self.response))

        def ids(count: int) -> np.ndarray:
            return draw.integers(10, vocabulary, count, dtype=np.int32)

        return [
            TokenTree(
                index=i,
                prefix=ids(self.prompt),
                branches=tuple(ids(self.response) for _ in range(self.responses)),
                grades=tuple(float(self.responses - k) for k in range(self.responses)),
            )
            for i in range(self.prompts)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """``training``: shapes of steps. ``budget``: tokens of a micro-batch, which plaudit halves
    where they do not fit; ``micro_batches``: pairs of it that other sides try, in this order.

    ``wide`` are best-of-K prompts to score, ``many`` short pairs for the small model, scored at
    ``row_tokens`` a batch. ``warm_up`` and ``timed`` are steps.
    """

    training: tuple[Shape, ...]
    budget: int
    micro_batches: tuple[int, ...]
    wide: tuple[Shape, ...]
    many: Shape
    row_tokens: tuple[int, ...]
    warm_up: int = 1
    timed: int = 3


FULL = Sizes(
    training=(
        Shape(prompt=1024, response=512, prompts=8),
        Shape(prompt=512, response=128, prompts=16),
        Shape(prompt=2048, response=256, prompts=8),
    ),
    budget=16384,
    micro_batches=(2, 4, 1),
    wide=(
        Shape(prompt=512, response=32, prompts=4, responses=16),
        Shape(prompt=4096, response=32, prompts=1, responses=16),
    ),
    many=Shape(prompt=256, response=128, prompts=512),
    row_tokens=(8192, 65536),
)
TINY = Sizes(
    training=(Shape(prompt=24, response=8, prompts=4),),
    budget=96,
    micro_batches=(2,),
    wide=(Shape(prompt=24, response=4, prompts=2, responses=16),),
    many=Shape(prompt=12, response=6, prompts=8),
    row_tokens=(48, 96),
    timed=2,
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The device, the sizes, and the large model, which is built when a part first needs it."""

    tiny: bool
    device: torch.device
    sizes: Sizes
    work: Path
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.tiny else torch.bfloat16

    @property
    def lora(self) -> dict[str, Any]:
        return dict(LORA)

    @property
    def vocabulary(self) -> int:
        """Ids that both the large model and the small runs know."""
        return 1000

    @cached_property
    def base(self) -> nn.Module:
        """An 8B Llama with random weights, in plain transformers; parts take copies of it."""
        if self.tiny:
            return self.build(LlamaConfig(vocab_size=1000, **LLAMAS["tiny"]), self.dtype)
        return self.build(read_config(BASE), self.dtype)

    @cached_property
    def borrowed(self) -> SidePrepared:
        """A small run on the embedded base, for its arguments, corpus and loop."""
        return prepare_run(
            base_path(),
            write_pairs(self.work / "borrowed.jsonl", ROWS),
            self.work / "borrowed",
            batch=ROWS,
            seed=self.seed,
            options={"gradient_checkpointing": False},
            max_tokens=1024,
        )

    def drop_base(self) -> None:
        """Free the large model."""
        vars(self).pop("base", None)

    def shallow(self, dtype: torch.dtype) -> nn.Module:
        """The large model's first two layers, with weights that bf16 holds, in a precision."""
        config = LlamaConfig(vocab_size=1000, **LLAMAS["tiny"]) if self.tiny else read_config(BASE)
        config.num_hidden_layers = 2
        return self.build(config, torch.bfloat16).to(dtype)

    def build(self, config: Any, dtype: torch.dtype) -> nn.Module:
        """A one-label classifier made on the device, its weights random, its head not zero."""
        config.num_labels, config.pad_token_id = 1, PAD
        torch.manual_seed(self.seed)
        with torch.device(self.device):
            network: nn.Module = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
            nn.init.normal_(network.score.weight, std=HEAD_STD)  # type: ignore[arg-type, union-attr]
        dropouts_off(network, keep_lora=False)
        return network.eval()

    def plaudit_side(self, network: nn.Module, *, lora: bool) -> Prepared:
        """A copy of ``network`` as plaudit trains (``lora``) or scores it."""
        own = sharing(network)
        # A module of its own: the precision of a shared tensor would change everywhere.
        own.score = copy.deepcopy(own.score).float()
        if lora:
            # PEFT draws the adapter; that of every side is the same.
            torch.manual_seed(self.seed)
            own = add_lora(own, self.lora)
            spread_adapter(own, self.seed)
        return self.prepare(own)

    def prepare(self, network: nn.Module) -> Prepared:
        """The network patched, and found to score packed as it does alone."""
        batchers = make_batchers(1024, self.device, PAD)
        module = patch_modules(network)
        return choose_layout(module, "packed", packed=batchers["packed"], padded=batchers["padded"])

    def packed(self, tokens: int) -> PackedBatcher:
        return PackedBatcher(max_tokens=tokens, device=self.device)

    def seconds(self, run: Callable[[], object], *, repeats: int = 3) -> float:
        """Median seconds of a call after one to warm up, on the device's own clock."""
        run()
        return statistics.median(self._once(run) for _ in range(repeats))

    def _once(self, run: Callable[[], object]) -> float:
        clock = Clock(self.device)
        clock.tick()
        run()
        clock.tick()
        (seconds,) = clock.seconds()
        return seconds

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        """The most memory allocated since :meth:`reset_peak`; None on a CPU."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    @cached_property
    def gpu(self) -> str | None:
        """The card's name in ``plaudit plan``'s table; None for a CPU and for unknown cards."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name().replace(" ", "").replace("-", "").upper()
        known = (key for key in GPUS if key.replace("-", "").removesuffix("GB") in name)
        return next(known, None)

    @property
    def published_flops(self) -> float | None:
        """The card's published dense bf16 rate, None where it is not in the table."""
        return None if self.gpu is None else GPUS[self.gpu].tflops * 1e12


def sharing(network: nn.Module) -> nn.Module:
    """A copy whose tensors are those of ``network``: patching its modules leaves those alone."""
    tensors = chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def spread_adapter(network: nn.Module, seed: int) -> None:
    """LoRA starts at zero, where an error in it would show nowhere."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=draw)
            with torch.no_grad():
                parameter.copy_(noise * 0.02)


def trainable(network: nn.Module) -> dict[str, Tensor]:
    """Copies of what is trained, by name."""
    return {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}


class Clock:
    """Moments on the device's own clock: CUDA events, so that reading it waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._moments: list[Any] = []

    def tick(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._moments.append(event)
        else:
            self._moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each moment and the next."""
        pairs = zip(self._moments, self._moments[1:], strict=False)
        if not self._cuda:
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


# ---- which code computes


def attention_forms(device: torch.device, *, window: bool = False) -> list[str]:
    """Forms that suit the large model here, first the one that plaudit chooses; with ``window``,
    those that can narrow what is seen.

    The written-out form is a reference, and no candidate on a GPU.
    """
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    query_1HTD = torch.empty(1, 4, 8, 64, device=device, dtype=dtype)
    asked = Settings(scale=1.0, window=4 if window else None, softcap=None)
    return [
        name
        for name, form in BACKENDS.items()
        if form.suits(query_1HTD) and form.computes(asked) and not (cuda and name == "explicit")
    ]


def forced_attention(form: str | None) -> AbstractContextManager[None]:
    """Packed layers compute attention in one form where it can; None leaves the choice."""
    return nullcontext() if form is None else forced(form)


def attention_counts() -> dict[str, int]:
    """How often each form ran since this was last asked."""
    counts = dict(ran)
    ran.clear()
    return counts


Layers = Literal["chosen", "pytorch", "own"]
"""Which code norms, rotary positions and gates run: what plaudit chooses on this device, PyTorch's
kernels where it would choose Liger's, or transformers' own layers.
"""


@contextmanager
def layer_kernels(layers: Layers) -> Iterator[None]:
    """Models that are built and run in the block have these kernels."""
    before = dict(kernels.KERNELS)
    if layers == "pytorch":
        kernels.KERNELS.update({kind: lambda: kernels.TORCH for kind in before if kind[0] != "cpu"})
    elif layers == "own":
        kernels.KERNELS.clear()
    try:
        yield
    finally:
        kernels.KERNELS.update(before)


def runs_liger() -> bool:
    """Whether plaudit's fused layers are Liger's on this machine."""
    return torch.cuda.is_available() and kernels.on_cuda() is not kernels.TORCH


def patched_modules(network: nn.Module) -> dict[str, int]:
    """How many modules run fused code, by kind."""
    kinds = Counter(
        kind.__name__
        for module in network.modules()
        for kind in type(module).__mro__
        if PatchedModule in kind.__bases__ and kind.__name__ != type(module).__name__
    )
    return dict(kinds)
