"""Bytes of a micro-batch's forward and backward pass, measured and fitted.

The module may be on a device, on a CPU, or without storage (fake tensors): the meter tells what is
allocated there.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import nnls
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plaudit.model.module import RewardModule
from plaudit.model.scoring import free_memory, is_out_of_memory
from plaudit.planning.microbatch import Cost, Shapes, by_layers, samples
from plaudit.tokens.batch import TokenBatcher
from plaudit.types import TokenTree


class Meter(Protocol):
    """Counts the bytes that are allocated on a device."""

    def reset(self) -> None:
        """Measure from here on."""

    def peak(self) -> int:
        """The most bytes since :meth:`reset`, above those at it."""

    def free(self) -> int:
        """Bytes that can still be allocated."""


class CudaMeter:
    """The statistics of PyTorch's allocator on a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)
        self._before = torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return int(torch.cuda.max_memory_allocated(self.device) - self._before)

    def free(self) -> int:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        reserved = torch.cuda.memory_reserved(self.device)
        share = torch.cuda.get_per_process_memory_fraction(self.device)
        # What the allocator holds and nobody uses is free too.
        unused = reserved - torch.cuda.memory_allocated(self.device)
        return int(min(free, share * total - reserved) + unused)


class StorageMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operators make, on any device, while the mode is entered.

    Storages that a library allocates by other means than PyTorch's operators are not seen.
    """

    def __init__(self, total: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = total
        self._live = self._most = self._before = 0
        self._known: set[int] = set()

    def reset(self) -> None:
        self._before = self._most = self._live

    def peak(self) -> int:
        return self._most - self._before

    def free(self) -> int:
        return self.total - self._live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # What an operator is given and did not make was there before, such as a weight.
        self._see((args, kwargs), counted=False)
        result = func(*args, **(kwargs or {}))
        self._see(result, counted=True)
        return result

    def _see(self, values: Any, *, counted: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            # Storages without memory have no address to go by.
            key = int(storage._cdata)
            if key in self._known:
                continue
            size = storage.nbytes() if counted else 0
            self._known.add(key)
            weakref.finalize(storage, self._forget, key, size)
            self._live += size
            self._most = max(self._most, self._live)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


@contextmanager
def as_in_a_step(module: RewardModule) -> Iterator[None]:
    """The module in training mode with its gradients allocated, as from a second micro-batch on.

    Afterwards there are no gradients; random numbers and the mode are what they were.
    """
    training = module.training
    trainable = [p for p in module.parameters() if p.requires_grad]
    on_cuda = [p.device for p in trainable[:1] if p.device.type == "cuda"]
    module.train()
    with torch.random.fork_rng(devices=on_cuda):
        for parameter in trainable:
            parameter.grad = torch.zeros_like(parameter)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.grad = None
            module.train(training)


def pass_bytes(
    module: RewardModule,
    batcher: TokenBatcher,
    trees: Sequence[TokenTree],
    meter: Meter,
    autocast: torch.dtype | None,
) -> int | None:
    """Bytes of a forward and backward pass at its peak; None where it runs out of memory."""
    try:
        batch = batcher.collate(trees)
        meter.reset()
        with torch.autocast(batch.ends_R.device.type, autocast, enabled=autocast is not None):
            scores_R = module(batch)
        scores_R.sum().backward()
        return meter.peak()
    except RuntimeError as error:
        # The failed pass is alive until this block is left.
        if not is_out_of_memory(error):
            raise
    free_memory()
    return None


def measure_costs(
    module: RewardModule,
    batcher: TokenBatcher,
    corpus: tuple[Sequence[TokenTree], Shapes],
    meter: Meter,
    *,
    trees_per_step: int,
    autocast: torch.dtype | None,
) -> dict[int, Cost]:
    """The cost for each number of recomputed layers, from passes over trees of the corpus.

    The module is :func:`as_in_a_step`. It is left with no layer recomputed.
    """
    layers = module.checkpointable_layers
    ends: list[Cost | None] = []
    for count in (0, layers) if layers else (0,):
        module.checkpoint_layers(count)
        ends.append(measure_cost(module, batcher, corpus, meter, trees_per_step, autocast))
    module.checkpoint_layers(0)
    kept, recomputed = ends[0], ends[-1]
    if recomputed is None:
        return {}
    return {layers: recomputed} if kept is None else by_layers(kept, recomputed, layers)


def measure_cost(
    module: RewardModule,
    batcher: TokenBatcher,
    corpus: tuple[Sequence[TokenTree], Shapes],
    meter: Meter,
    trees_per_step: int,
    autocast: torch.dtype | None,
) -> Cost | None:
    """The cost of a micro-batch as the module stands; None where the smallest does not fit."""
    trees, shapes = corpus
    found: list[tuple[Sequence[int], int]] = []
    for number, members in enumerate(samples(shapes, trees_per_step)):
        batch = [trees[i] for i in members]
        if number == 0:
            # Workspaces of libraries and compiled kernels come into being in the first pass.
            pass_bytes(module, batcher, batch, meter, autocast)
        size = pass_bytes(module, batcher, batch, meter, autocast)
        if size is None:
            break
        found.append((members, size))
    if not found:
        return None
    return fit_cost(
        (
            (
                batcher.size([trees[i] for i in members]),
                int(shapes.keys_N[members].sum()),
                int(shapes.spans_N[members].sum()),
            ),
            size,
        )
        for members, size in found
    )


FIT_ERROR = 0.02
"""Relative error of a fit that is good enough to leave out further terms."""


def fit_cost(measured: Iterable[tuple[Sequence[int], int]]) -> Cost:
    """The cost from ``((tokens, keys, spans), bytes)`` of passes, at least that of every one.

    Non-negative least squares of relative errors. Keys and spans are taken into the fit only where
    the terms before them leave an error, since few passes cannot tell all of them apart.
    """
    rows, sizes = zip(*measured, strict=True)
    design_M4 = np.column_stack([np.ones(len(rows)), np.asarray(rows, np.float64)])
    scale_4 = np.maximum(design_M4.max(0), 1.0)
    size_M = np.maximum(np.asarray(sizes, np.float64), 1.0)
    coefficient_4, ratio_M = np.zeros(4), np.zeros(len(rows))
    for terms in (2, 3, 4):
        relative_M = (design_M4 / scale_4)[:, :terms] / size_M[:, None]
        coefficient_4[:terms], _ = nnls(relative_M, np.ones(len(rows)))
        ratio_M = relative_M @ coefficient_4[:terms]
        if np.abs(ratio_M - 1).max() < FIT_ERROR:
            break
    fixed, token, key, span = (coefficient_4 / scale_4).tolist()
    short = float(1 / max(ratio_M.min(), 1e-9))
    return Cost(fixed=fixed, token=token, key=key, span=span).times(max(1.0, short))
