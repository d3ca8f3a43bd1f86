"""The forms of packed attention: what they keep, what reaches the kernel, which one is chosen."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import restore_flash_attention_impl
from torch.utils._python_dispatch import TorchDispatchMode

from plaudit.losses.loss import Loss
from plaudit.model.attention import flash, flex
from plaudit.model.attention.interface import (
    BACKENDS,
    PACKED_ATTENTION,
    choose_backend,
    forced,
)
from plaudit.model.attention.layer import Settings
from plaudit.model.fast import last_layer
from plaudit.model.fast.fused import fuse_layers
from plaudit.model.fast.lora import fuse_lora
from plaudit.model.load import add_lora
from plaudit.model.module import DecoderRewardModule, classifier
from plaudit.model.scoring import micro_batches, one_ahead
from plaudit.recipe.schema import LossSection
from plaudit.tokens.batch import PackedBatcher, pack
from plaudit.types import arrays_to_device
from tests import flash_kernel
from tests.flash_kernel import flash_on_cpu
from tests.models import make_trees, tiny_classifier

CPU = torch.device("cpu")
SETTINGS = Settings(scale=0.3, window=None, softcap=None)


def heads(tokens: int, count: int) -> Tensor:
    return torch.randn(1, count, tokens, 8, requires_grad=True)


@pytest.mark.parametrize("form", ["varlen", "two_calls"])
def test_flash_forms_neither_repeat_heads_nor_keep_copies(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen branches see a prompt of 50 tokens: copies of it would be 15 times the prompt."""
    layout = pack(make_trees([(50, [3] * 16)]), CPU).layout
    kept: list[int] = []
    key_heads: set[int] = set()
    own = flash_kernel.forward

    def watched(query: Tensor, key: Tensor, *others: object, **named: object) -> object:
        key_heads.add(key.shape[1])
        return own(query, key, *others, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(flash_kernel, "forward", watched)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    q, k, v = (heads(layout.tokens, n) for n in (6, 2, 2))
    with (
        flash_on_cpu(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        out = BACKENDS[form].attend(q, k, v, layout, SETTINGS)
        out.sum().backward()
    assert key_heads == {2}
    assert max(kept) == layout.tokens * 6 * 8
    # Queries and output, keys and values, a log-sum-exp: each once, and the grouped heads.
    assert sum(kept) <= layout.tokens * 8 * (6 + 6 + 2 + 2 + 1)


BLOCKY = {
    "several blocks a span": [(300, [40, 130, 7])],
    "several spans a block": [(50, [3] * 16), (0, [5, 200]), (1, [1, 1, 260])],
    "spans that end with blocks": [(128, [128, 128, 256]), (256, [128])],
    "less than a block": [(7, [3, 4])],
}


@pytest.mark.parametrize("window", [None, 20, 150])
@pytest.mark.parametrize("shapes", BLOCKY.values(), ids=BLOCKY.keys())
def test_flex_blocks_are_those_of_the_mask(
    shapes: list[tuple[int, list[int]]], window: int | None
) -> None:
    """FlexAttention skips blocks that are not listed and does not look into full ones."""
    layout = pack(make_trees(shapes), CPU).layout
    block_mask = flex.block_mask(layout, window, CPU)
    tokens = layout.tokens
    at = torch.arange(tokens)
    sees_TS = torch.vmap(
        torch.vmap(block_mask.mask_mod, in_dims=(None, None, None, 0)),
        in_dims=(None, None, 0, None),
    )(torch.tensor(0), torch.tensor(0), at, at)
    blocks = -(-tokens // flex.BLOCK)
    edge = blocks * flex.BLOCK - tokens
    some_MN = torch.nn.functional.pad(sees_TS, (0, edge, 0, edge)).unflatten(0, (blocks, -1))
    some_MN = some_MN.unflatten(2, (blocks, -1)).any(3).any(1)
    # Queries behind the row's end do not count; keys behind it must not be seen.
    all_MN = torch.nn.functional.pad(sees_TS, (0, edge)).unflatten(1, (blocks, -1)).all(2)
    all_MN = torch.nn.functional.pad(all_MN, (0, 0, 0, edge), value=True)
    all_MN = all_MN.unflatten(0, (blocks, -1)).all(1)
    full_MN = listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    part_MN = listed(block_mask.kv_num_blocks, block_mask.kv_indices)
    assert torch.equal(full_MN | part_MN, some_MN)
    assert torch.equal(full_MN, all_MN)
    assert not (full_MN & part_MN).any()


def listed(counts: Tensor | None, order: Tensor | None) -> Tensor:
    """``[M, N]``: whether a block is among the first ``counts`` of its row's ``order``."""
    assert counts is not None
    assert order is not None
    found = torch.zeros(order.shape[2:], dtype=torch.bool)
    for row, (count, places) in enumerate(zip(counts[0, 0], order[0, 0], strict=True)):
        found[row, places[: int(count)].long()] = True
    return found


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of PyTorch needs one for C++")
def test_flex_is_compiled_for_rows_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, inside a function that is not to be compiled; the CPU's kernel is another."""
    compiled = flex._compiled()
    monkeypatch.setattr(flex, "flex_attention", compiled)
    settings = Settings(scale=0.3, window=150, softcap=5.0)
    attend = torch.compiler.disable(BACKENDS["flex"].attend)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for shapes in ([(600, [100, 100])], [(70, [30] * 16), (100, [128, 257])], [(900, [80])]):
            layout = pack(make_trees(shapes), CPU).layout
            q, k, v = (torch.randn(1, n, layout.tokens, 16) for n in (4, 2, 2))
            torch.testing.assert_close(
                attend(q, k, v, layout, settings),
                BACKENDS["explicit"].attend(q, k, v, layout, settings),
                rtol=1e-4,
                atol=1e-5,
            )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_forced_form_gives_way_where_it_lacks_something() -> None:
    query = heads(4, 2)
    window, softcap = Settings(0.3, 2, None), Settings(0.3, None, 5.0)
    with forced("two_calls"):
        found = [choose_backend(query, one) for one in (SETTINGS, window, softcap)]
    assert found == ["two_calls", "sdpa", "explicit"]
    assert choose_backend(query, SETTINGS) == "cpu"


def test_joining_two_calls_rounds_once() -> None:
    """In bf16, halves that are joined err hardly more than one call does."""
    layout = pack(make_trees([(50, (30, 20, 40)), (13, (9, 14))]), CPU).layout
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, n, layout.tokens, 32, generator=generator).bfloat16() for n in (4, 2, 2)
    )
    exact = BACKENDS["explicit"].attend(q.float(), k.float(), v.float(), layout, SETTINGS)
    with flash_on_cpu():
        one, two = (
            BACKENDS[form].attend(q, k, v, layout, SETTINGS) for form in ("varlen", "two_calls")
        )
    assert (two - exact).square().mean() < 1.25**2 * (one - exact).square().mean()


@pytest.mark.parametrize("form", ["varlen", "two_calls"])
def test_a_prepared_batch_leaves_nothing_to_copy(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers of a pass derive nothing from the layout that was prepared with the batch."""
    network = tiny_classifier("llama")
    network.set_attn_implementation(PACKED_ATTENTION)
    last_layer.narrow_last_layer(network.base_model)
    module = DecoderRewardModule(network)
    trees = make_trees([(9, (4, 6)), (5, (7, 2)), (3, (8,))])
    batcher = PackedBatcher(max_tokens=25, device=CPU)
    batches = micro_batches(batcher, trees, batcher.split(trees), 2)
    with flash_on_cpu(), forced(form):
        expected_R = module(pack(trees, CPU))
        found = []
        for members, batch in batches:
            with monkeypatch.context() as patch:
                for derives in (flash, last_layer):
                    patch.delattr(derives, "arrays_to_device")
                found.append((members, module(batch)))
    by_index = {
        tree.index: scores_K
        for members, scores_R in found
        for tree, scores_K in zip(
            members, scores_R.split([len(t.branches) for t in members]), strict=True
        )
    }
    torch.testing.assert_close(torch.cat([by_index[i] for i in range(3)]), expected_R)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes a host wait for a GPU: numbers and sizes that depend on results."""

    WAITS = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero"}
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        assert name not in self.WAITS, name
        assert func is not torch.ops.aten.repeat_interleave.Tensor or kwargs["output_size"]
        if name in ("index", "index_put", "index_put_", "_unsafe_index_put"):
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["varlen", "two_calls"])
def test_a_step_never_waits_for_the_device(form: str) -> None:
    network = add_lora(tiny_classifier("llama"), {"r": 2, "target_modules": "all-linear"})
    base = classifier(network)
    base.set_attn_implementation(PACKED_ATTENTION)
    fuse_lora(network)
    fuse_layers(base.base_model)
    last_layer.narrow_last_layer(base.base_model)
    module = DecoderRewardModule(network)
    trees = [
        replace(tree, grades=(1.0, 0.0)) for tree in make_trees([(9, (4, 6)), (0, (7, 2))] * 2)
    ]
    with flash_on_cpu(), forced(form), NoWaiting():
        scores_R = module(pack(trees, CPU))
        loss = Loss(options=LossSection())
        loss(scores_R, loss.labels(trees, CPU), torch.zeros(0)).total.backward()
        flex.block_mask(pack(trees, CPU).layout, None, CPU)
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_one_is_made_while_its_predecessor_is_in_use() -> None:
    started = [threading.Event() for _ in range(3)]
    begun: list[str] = []

    def make(number: int) -> int:
        started[number].set()
        if number == 2:
            raise ValueError("the third")
        return number * 10

    made: Iterator[int] = one_ahead(make, range(3), begin=lambda: begun.append("thread"))
    assert next(made) == 0
    assert started[1].wait(5)
    assert next(made) == 10
    assert started[2].wait(5)
    with pytest.raises(ValueError, match="the third"):
        next(made)
    assert begun == ["thread"]


def test_arrays_go_to_a_device_as_one() -> None:
    """A device that keeps no numbers tells shapes, types and that all lie in one piece."""
    arrays = (np.arange(5, dtype=np.int32), np.ones((2, 3), bool), np.zeros(0), np.arange(3))
    found = arrays_to_device(arrays, torch.device("meta"))
    assert [tuple(one.shape) for one in found] == [(5,), (2, 3), (0,), (3,)]
    assert [one.dtype for one in found] == [torch.int32, torch.bool, torch.float64, torch.int64]
    assert len({one.untyped_storage()._cdata for one in found}) == 1


INTERFACE = """
import torch

# What the module's extension registers.
OPS = torch.library.Library("flash_attn_3", "DEF")
OPS.define("fwd(Tensor q) -> Tensor")
OPS.define("bwd(Tensor q) -> Tensor")
"""


@pytest.mark.parametrize("source", [INTERFACE, "raise ImportError('undefined symbol')"])
def test_flash_attention_3_is_used_where_it_works(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """PyTorch itself puts the module's operators behind those that plaudit calls."""
    works = source == INTERFACE
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert not flash.use_flash_attention_3(device)
    (tmp_path / "flash_attn_interface.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert flash.use_flash_attention_3(device) == works
        dump = torch._C._dispatch_dump("aten::_flash_attention_backward")
        assert ("_fa3.py" in dump) == works
        assert ("does not work" in caplog.text) != works
    finally:
        restore_flash_attention_impl(_raise_warn=False)
        sys.modules.pop("flash_attn_interface", None)
    assert not flash.use_flash_attention_3(CPU)
