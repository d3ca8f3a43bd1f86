"""Bytes of a micro-batch of a base, traced on tensors without storage.

A training pass runs forward and backward through plaudit's own layers: fused LoRA, RMSNorm, RoPE
and SwiGLU as on CUDA, the last layer narrowed to scored tokens. Attention stands for the flash call
with keys gathered for each branch: it keeps queries, keys, values, its output and a log-sum-exp
(Dao et al., 2022, arXiv:2205.14135), and copies gathered keys while it runs. Two shallow models
tell what a layer adds.

Not counted: workspaces of cuBLAS and kernels, Liger's in-place gradients, and the passing weight
that a 4-bit layer computes with.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AutoModelForSequenceClassification

from plaudit.model.fast.fused import fuse_layers
from plaudit.model.fast.kernels import KERNELS, Kernels, rms_norm, rotate, swiglu
from plaudit.model.fast.last_layer import narrow_last_layer
from plaudit.model.fast.lora import fuse_lora
from plaudit.model.fast.patched import PatchedModule
from plaudit.model.module import RewardModule, as_reward_module, classifier
from plaudit.planning.architecture import build
from plaudit.planning.measure import StorageMeter, as_in_a_step, fit_cost, pass_bytes
from plaudit.planning.microbatch import (
    Cost,
    Shapes,
    by_layers,
    packed_shape,
    padded_shape,
    samples,
)
from plaudit.tokens.batch import PackedBatcher, PaddedBatcher, TokenBatcher
from plaudit.types import PackedLayout, TokenTree

logger = logging.getLogger("plaudit")

Item = TypeVar("Item")

ATTENTION = "plaudit_plan"
_SHALLOW = 2
_UNTRACEABLE = (RuntimeError, TypeError, ValueError, AttributeError)
"""What a model's own code raises on tensors without storage, or on a configuration with gaps."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """A base to trace: its configuration, adapter, precisions and layout of batches.

    ``dtype`` is that of the body's weights, ``autocast`` that of computation where it differs.
    """

    config: Any
    lora: dict[str, Any] | None
    dtype: str
    autocast: torch.dtype | None
    packed: bool
    quantized: bool = False


def trace_costs(
    request: TraceRequest, rows: Sequence[tuple[int, tuple[int, ...]]]
) -> dict[int, Cost] | None:
    """The cost for each number of recomputed layers, for trees of these prompts and branches.

    None where a pass looks at values, which tensors without storage do not have.
    """
    shape = packed_shape if request.packed else padded_shape
    shapes = Shapes.of(shape(prompt, branches) for prompt, branches in rows)
    batcher: TokenBatcher = (
        PackedBatcher(max_tokens=1, device=_CPU)
        if request.packed
        else PaddedBatcher(max_tokens=1, pad_id=0, device=_CPU)
    )
    # Nothing is lost to fragmentation here, so two trees tell what more of them add, and of alike
    # batches one tells all. They ascend by tokens.
    batches: dict[tuple[int, int, int], list[TokenTree]] = {}
    for members in samples(shapes, 2):
        trees = [_zeros(*rows[i]) for i in members]
        counts = [shape(len(tree.prefix), map(len, tree.branches)) for tree in trees]
        keys, spans = (sum(count[i] for count in counts) for i in (1, 2))
        batches.setdefault((batcher.size(trees), keys, spans), trees)
    every = list(batches.values())
    outer = _first_and_last(every)
    try:
        shallow = _pass_sizes(_shallow(request, _SHALLOW), batcher, every, request.autocast)
        deeper = _pass_sizes(_shallow(request, _SHALLOW + 1), batcher, outer, request.autocast)
    except _UNTRACEABLE as error:
        logger.debug(
            "%s cannot be traced (%s: %s)", request.config.model_type, type(error).__name__, error
        )
        return None
    layers = int(request.config.num_hidden_layers)
    tokens = [size for size, _, _ in batches]
    ends = []
    for few, more in zip(shallow, deeper, strict=True):
        # All layers are alike: a third adds what each further one does, which is a line in tokens.
        added = np.subtract(more, _first_and_last(few))
        each_N = np.interp(tokens, [batcher.size(trees) for trees in outer], added)
        sizes_N = np.maximum(
            np.add(few, (layers - _SHALLOW) * each_N), _embedding_gradient(request)
        )
        ends.append(fit_cost(zip(batches, sizes_N.round().astype(int).tolist(), strict=True)))
    return by_layers(ends[0], ends[1], layers)


def _first_and_last(items: list[Item]) -> list[Item]:
    """Both ends, or the only one."""
    return items[:: len(items) - 1] if len(items) > 1 else items


def _embedding_gradient(request: TraceRequest) -> int:
    """Bytes of the gradient of trained embeddings, which the backward pass makes at its end."""
    if request.lora is not None:
        return 0
    config = request.config
    return int(config.vocab_size * config.hidden_size * getattr(torch, request.dtype).itemsize)


def _zeros(prompt: int, branches: Sequence[int]) -> TokenTree:
    return TokenTree(
        index=0,
        prefix=np.zeros(prompt, np.int32),
        branches=tuple(np.zeros(length, np.int32) for length in branches),
    )


def _pass_sizes(
    traced: tuple[RewardModule, FakeTensorMode],
    batcher: TokenBatcher,
    batches: Sequence[Sequence[TokenTree]],
    autocast: torch.dtype | None,
) -> tuple[list[int], list[int]]:
    """Bytes of each batch, without and with all layers recomputed."""
    module, mode = traced
    sizes: tuple[list[int], list[int]] = ([], [])
    with mode, StorageMeter() as meter, as_in_a_step(module), _kernels_of_cuda():
        for count, found in zip((0, module.checkpointable_layers), sizes, strict=True):
            module.checkpoint_layers(count)
            for trees in batches:
                found.append(pass_bytes(module, batcher, trees, meter, autocast) or 0)
    return sizes


def _shallow(request: TraceRequest, depth: int) -> tuple[RewardModule, FakeTensorMode]:
    """The base with ``depth`` layers as plaudit trains it, on fake tensors."""
    config = _truncated(request.config, depth)
    network = build(config, request.lora, request.dtype)
    body = classifier(network).base_model
    fused = dict(_fused_modules(config))
    for name, module in body.named_modules():
        # Names inside PEFT's wrappers differ, but only below the modules that are patched.
        kind, attributes = fused.get(name, (None, {}))
        if kind is not None:
            module.__class__ = kind
            vars(module).update(attributes)
    if request.lora is not None and not request.quantized:
        fuse_lora(network)
    narrow_last_layer(body)
    classifier(network).set_attn_implementation(ATTENTION)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        _make_fake(network)
    return as_reward_module(network), mode


def _make_fake(network: nn.Module) -> None:
    """Put fake tensors of a CPU in the place of those of the meta device, which has no autocast."""
    made: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad)
                module._parameters[name] = made[id(tensor)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _truncated(config: Any, depth: int) -> Any:
    """The configuration of the base's first ``depth`` layers, with few embeddings.

    The gradient of all embeddings would hide what a layer adds: few layers need less than it.
    """
    shallow = copy.deepcopy(config)
    shallow.vocab_size, shallow.pad_token_id = 16, 0
    layers = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == layers:
            setattr(shallow, name, value[:depth])
    shallow.num_hidden_layers = depth
    return shallow


def _fused_modules(config: Any) -> Iterator[tuple[str, tuple[type, dict[str, Any]]]]:
    """The patched class of each module of the body, with the attributes that it reads.

    Whether a layer can be fused is tried on its numbers, so a small base with some is made.
    """
    small = copy.deepcopy(config)
    heads = config.num_attention_heads
    small.hidden_size = 2 * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    small.num_attention_heads, small.intermediate_size = 2, 16
    small.vocab_size, small.pad_token_id = 16, 0
    if hasattr(small, "num_key_value_heads"):
        small.num_key_value_heads = 2
    try:
        network = AutoModelForSequenceClassification.from_config(small, dtype=torch.float32)  # type: ignore[no-untyped-call]
        plain = {name: set(vars(module)) for name, module in network.base_model.named_modules()}
        fuse_layers(network)
    except _UNTRACEABLE as error:
        # Its own code is traced instead, which keeps more.
        logger.debug("%s cannot be fused (%s: %s)", config.model_type, type(error).__name__, error)
        return
    for name, module in network.base_model.named_modules():
        if isinstance(module, PatchedModule):
            own = {key: value for key, value in vars(module).items() if key not in plain[name]}
            yield name, (type(module), own)


@contextmanager
def _kernels_of_cuda() -> Iterator[None]:
    """Fused kernels for the fake tensors: they keep what those on CUDA do without Liger."""
    traced = Kernels(rms_norm=rms_norm, rotate=rotate, swiglu=swiglu)
    kinds = [("cpu", torch.bfloat16), ("cpu", torch.float16)]
    KERNELS.update(dict.fromkeys(kinds, lambda: traced))
    try:
        yield
    finally:
        for kind in kinds:
            del KERNELS[kind]


class _Kept(torch.autograd.Function):
    """What a fused attention call keeps for the backward pass, and copies while it runs."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, gathered: int) -> Tensor:
        copies = _copies(k, gathered), _copies(v, gathered)
        batch, heads, tokens, _ = q.shape
        # Each token in one piece, as the flash call writes it.
        out = q.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
        sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        del copies
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.gathered = gathered
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        copies = [_copies(tensor, ctx.gathered) for tensor in (k, v, k, v)]
        grads = tuple(torch.empty_like(tensor) for tensor in (q, k, v))
        del copies
        return (*grads, None)


def _copies(keys_BGTD: Tensor, gathered: int) -> Tensor | None:
    """All keys of the call, in the order of its segments; None where they lie so."""
    if not gathered:
        return None
    batch, groups, tokens, width = keys_BGTD.shape
    return keys_BGTD.new_empty(batch, groups, tokens + gathered, width)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The shapes of attention: (batch, heads, T, size) to (batch, T, heads, size)."""
    gathered = 0
    if packed_layout is not None:
        gathered = sum(tree.prefix * (len(tree.branches) - 1) for tree in packed_layout.placed())
    out: Tensor = _Kept.apply(query, key.to(value.dtype), value, gathered)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attend)
