"""Law 1: packed scores and gradients are those of plain transformers, one sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention

from plaudit.errors import ModelError
from plaudit.model.attention import flash, interface
from plaudit.model.attention.interface import BACKENDS, PACKED_ATTENTION, forced, ran
from plaudit.model.attention.kv_cache import PrefixCache
from plaudit.model.attention.layer import Settings
from plaudit.model.attention.spans import spans
from plaudit.model.fast.fused import fuse_layers
from plaudit.model.fast.last_layer import is_narrowed, narrow_last_layer
from plaudit.model.fast.lora import fuse_lora
from plaudit.model.load import add_lora
from plaudit.model.module import DecoderRewardModule, classifier
from plaudit.model.packing import PACKED_ARCHITECTURES, why_not_packed
from plaudit.model.scoring import score_distinct
from plaudit.serving.served_model import CachedTree, PrefixCacheBatcher, with_cached_prefix
from plaudit.tokens.batch import PackedBatcher, pack, pad
from plaudit.types import PackedLayout, TokenTree
from tests.flash_kernel import flash_on_cpu
from tests.models import ARCHITECTURE_OPTIONS, WINDOW, make_trees, tiny_classifier

CPU = torch.device("cpu")
LORA = {"r": 4, "target_modules": "all-linear"}


def one_response_a_prefix_of_the_other() -> TokenTree:
    (tree,) = make_trees([(8, (9,))], seed=3)
    (long,) = tree.branches
    return TokenTree(index=0, prefix=tree.prefix, branches=(long[:4], long))


def hard_trees() -> list[TokenTree]:
    """K from 1 to 8, ragged and in runs of one length, no prompt, one token, beyond the window."""
    shapes = [(WINDOW + 4, (5 + 3 * k, *range(1, k))) for k in range(1, 9)]
    return [
        *make_trees(shapes),
        *make_trees([(0, (4, 17)), (0, (21,)), (1, (1, 1))], seed=1),
        *make_trees([(7, (5, 4, 4, 4, 2, 2)), (0, (3, 6, 6))], seed=2),
        one_response_a_prefix_of_the_other(),
    ]


def plain_scores(network: Any, trees: Sequence[TokenTree]) -> Tensor:
    """What transformers gives for each whole conversation alone."""
    rows = [np.concatenate([t.prefix, b]) for t in trees for b in t.branches]
    return torch.cat(
        [
            network(input_ids=torch.from_numpy(row.astype(np.int64))[None]).logits[:, 0]
            for row in rows
        ]
    )


def gradients(network: Any, scores_R: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum of scores, so that no two responses cancel."""
    network.zero_grad()
    weights = torch.linspace(-1.0, 2.0, len(scores_R))
    (scores_R * weights).sum().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        error = float((found[name] - gradient).abs().max())
        assert error <= 1e-4 * max(float(gradient.abs().max()), 1e-3 * largest), name


def compare(network: Any, trees: Sequence[TokenTree]) -> None:
    """Scores to 1e-5 and gradients to 1e-4, plain against packed, on the same weights.

    The plain side has PEFT's own LoRA layers, the packed side those that training runs.
    """
    base = classifier(network)
    plain = base.config._attn_implementation
    expected_R = plain_scores(network, trees)
    expected = gradients(network, expected_R)
    base.set_attn_implementation(PACKED_ATTENTION)
    fuse_lora(network)
    fuse_layers(base.base_model)
    narrow_last_layer(base.base_model)
    assert is_narrowed(base.base_model)
    scores_R = DecoderRewardModule(network)(pack(trees, CPU))
    found = gradients(network, scores_R)
    base.set_attn_implementation(plain)
    assert float(expected_R.detach().std()) > 0.05, "scores so alike would hide a wrong mask"
    torch.testing.assert_close(scores_R, expected_R, atol=1e-5, rtol=1e-5)
    assert_same_gradients(found, expected)


@pytest.fixture(params=sorted(PACKED_ARCHITECTURES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_packed_family_has_a_tiny_configuration() -> None:
    assert set(ARCHITECTURE_OPTIONS) == PACKED_ARCHITECTURES


def test_packed_equals_separate(family: str) -> None:
    compare(tiny_classifier(family), hard_trees())


def test_packed_equals_separate_with_lora(family: str) -> None:
    network = add_lora(tiny_classifier(family), LORA)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            # LoRA starts at zero, where it would be left out of every comparison.
            parameter.data.normal_(std=0.2, generator=generator)
    compare(network.eval(), hard_trees())


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_packed_equals_separate_under_activation_checkpointing(name: str, reentrant: bool) -> None:
    trees = hard_trees()
    network = tiny_classifier(name)
    expected_R = plain_scores(network, trees)
    expected = gradients(network, expected_R)
    network.set_attn_implementation(PACKED_ATTENTION)
    fuse_layers(network.base_model)
    narrow_last_layer(network.base_model)
    module = DecoderRewardModule(network)
    module.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    module.train()
    scores_R = module(pack(trees, CPU))
    torch.testing.assert_close(scores_R, expected_R, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients(network, scores_R), expected)


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every backend runs here; flash attention's kernels, which CUDA alone has, are emulated.

    FlexAttention's backward pass, written out, works on a CPU, but its check of devices says no.
    """
    name = str(request.param)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    with flash_on_cpu(), forced(name):
        ran.clear()
        yield name


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma3_text", "gpt_neox"])
def test_every_backend_equals_separate(name: str, backend: str) -> None:
    compare(tiny_classifier(name), hard_trees())
    # All layers of this Mistral have a window, which some backends leave to others.
    windows = BACKENDS[backend].computes(Settings(scale=1.0, window=2, softcap=None))
    assert (ran[backend] > 0) == (windows or name != "mistral")


@pytest.mark.parametrize("backend", ["explicit", "flex"], indirect=True)
def test_soft_caps(backend: str) -> None:
    compare(tiny_classifier("gemma2"), hard_trees())
    assert ran[backend] > 0


def test_every_backend_takes_64_responses(backend: str) -> None:
    shapes = [(11, [1 + k % 5 for k in range(64)]), (0, [2, 3] * 32), (1, [3] * 64)]
    compare(tiny_classifier("llama"), make_trees(shapes))
    assert ran[backend] > 0


def later(trees: Sequence[TokenTree]) -> list[TokenTree]:
    """Other conversations that begin as these do: new branches, parts of a prompt, more behind."""
    found: list[TokenTree] = []
    for tree in trees:
        whole = np.concatenate([tree.prefix, tree.branches[0]])
        tail = np.asarray([5, 9, 4, 7], dtype=np.int32)
        found += [
            replace(tree, branches=(tail, *tree.branches[1:])),
            TokenTree(index=0, prefix=whole[:0], branches=(np.concatenate([whole, tail]),)),
            TokenTree(index=0, prefix=whole[:9], branches=(tail, tail[:2])),
        ]
    return [replace(tree, index=i) for i, tree in enumerate(found)]


def compare_resumed(network: Any, *, most: int = 10_000) -> None:
    """Law 1 for beginnings whose states an earlier pass computed."""
    trees = hard_trees()
    after = later(trees)
    expected_R = plain_scores(network, after).detach()
    assert float(expected_R.std()) > 0.05, "scores so alike would hide a wrong mask"
    network.set_attn_implementation(PACKED_ATTENTION)
    fuse_layers(network.base_model)
    narrow_last_layer(network.base_model)
    states = PrefixCache(1 << 30)
    plain = PackedBatcher(max_tokens=most, device=CPU)

    def scores(given: Sequence[TokenTree]) -> tuple[Tensor, list[CachedTree]]:
        resumed = [with_cached_prefix(tree, states) for tree in given]
        batcher = PrefixCacheBatcher(plain, states, resumed)
        wanted = [one.tree for one in resumed]
        module = DecoderRewardModule(network)
        found = score_distinct(module, batcher, wanted, on_batch=batcher.keep)
        return torch.from_numpy(np.concatenate(found)).float(), resumed

    scores([replace(tree, index=i) for i, tree in enumerate(trees)])
    found_R, resumed = scores(after)
    assert sum(one.cached.tokens for one in resumed) > 0.4 * sum(t.tokens for t in after)
    torch.testing.assert_close(found_R, expected_R, atol=1e-5, rtol=1e-5)
    again_R, _ = scores(after)
    torch.testing.assert_close(again_R, expected_R, atol=1e-5, rtol=1e-5)


def test_resumed_equals_separate(family: str) -> None:
    compare_resumed(tiny_classifier(family))


def test_resumed_equals_separate_over_several_batches() -> None:
    compare_resumed(tiny_classifier("llama"), most=60)


@pytest.mark.parametrize("name", ["mistral", "qwen3", "gpt_neox"])
def test_every_backend_resumes(name: str, backend: str) -> None:
    compare_resumed(tiny_classifier(name))


def test_half_precision_error_is_that_of_padded_batches() -> None:
    """In bf16, packed errs against fp32 at most 1.5 times as much as padded does."""
    trees = make_trees([(13, (9, 14, 6)), (0, (17, 11)), (21, (8, 8))] * 12, seed=5)
    exact_R = plain_scores(tiny_classifier("llama"), trees).detach()
    network: Any = tiny_classifier("llama")
    network.to(torch.bfloat16)
    network.score.float()
    module = DecoderRewardModule(network)
    padded_R = module(pad(trees, 2, CPU)).detach()
    network.set_attn_implementation(PACKED_ATTENTION)
    fuse_layers(network.base_model)
    narrow_last_layer(network.base_model)
    module = DecoderRewardModule(network)
    packed_R = module(pack(trees, CPU)).detach()

    def error(scores_R: Tensor) -> float:
        return float((scores_R - exact_R).square().mean().sqrt())

    assert error(packed_R) <= 1.5 * error(padded_R)


ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    "form", [pytest.param(name, marks=ON_GPU) for name in BACKENDS if name != "cpu"]
)
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_half_precision_on_a_gpu(name: str, cached: bool, form: str) -> None:
    """Every form on CUDA in bf16, with fused layers and LoRA: scores, and gradients of all that
    trains, err at most 1.5 times as much as those of padded batches.
    """
    cuda = torch.device("cuda")
    wide = make_trees([(11, [1 + k % 5 for k in range(64)]), (90, (150, 40))], seed=9)
    trees = [replace(tree, index=i) for i, tree in enumerate([*hard_trees(), *wide])]

    def adapted(*, half: bool) -> Any:
        # Heads of 16, the narrowest that FlexAttention takes on CUDA.
        network = add_lora(tiny_classifier(name, head_dim=16), LORA)
        generator = torch.Generator().manual_seed(1)
        for parameter_name, parameter in network.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data.normal_(std=0.2, generator=generator)
            elif half and "lora_" not in parameter_name and "score" not in parameter_name:
                parameter.data = parameter.data.bfloat16()
        return network.eval().to(cuda)

    def outcome(network: Any, batch: Any) -> list[Tensor]:
        scores_R = DecoderRewardModule(network)(batch)
        if cached:
            return [scores_R.detach()]
        network.zero_grad()
        (scores_R * torch.linspace(-1.0, 2.0, len(scores_R), device=cuda)).sum().backward()
        trained = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        return [scores_R.detach(), torch.cat(trained)]

    exact = outcome(adapted(half=False), pad(trees, 2, cuda))
    padded = outcome(adapted(half=True), pad(trees, 2, cuda))
    network = adapted(half=True)
    base = classifier(network)
    base.set_attn_implementation(PACKED_ATTENTION)
    fuse_lora(network)
    fuse_layers(base.base_model)
    narrow_last_layer(base.base_model)
    ran.clear()
    with forced(form):
        if cached:
            prefix_cache = PrefixCache(1 << 30)
            module = DecoderRewardModule(network)
            for _ in range(2):
                resumed = [with_cached_prefix(tree, prefix_cache) for tree in trees]
                plain = PackedBatcher(max_tokens=10_000, device=cuda)
                batcher = PrefixCacheBatcher(plain, prefix_cache, resumed)
                wanted = [one.tree for one in resumed]
                found = score_distinct(module, batcher, wanted, on_batch=batcher.keep)
            assert sum(one.cached.tokens for one in resumed) > 0
            packed = [torch.from_numpy(np.concatenate(found)).to(cuda)]
        else:
            packed = outcome(network, pack(trees, cuda))
    assert ran[form] > 0 or not BACKENDS[form].computes(
        Settings(scale=1.0, window=WINDOW if name == "mistral" else None, softcap=5.0)
    )
    for one, other, expected in zip(packed, padded, exact, strict=True):
        error, allowed = ((x - expected).square().mean().sqrt() for x in (one, other))
        assert error <= 1.5 * allowed


def test_spans_cover_every_token_once_and_in_order() -> None:
    batch = pack(hard_trees(), CPU)
    covered = [t for span in spans(batch.layout) for t in range(span.start, span.stop)]
    assert covered == list(range(batch.ids_1T.shape[1]))


def test_the_gathered_plan_puts_the_prompt_before_each_later_branch() -> None:
    layout = PackedLayout(starts=(0,), prefixes=(2,), branches=((3, 2),), ends=(4, 6))
    plan = flash.gathered_plan(layout, CPU)
    (whole,), (scored,) = plan.whole, plan.scored
    assert rows(whole.keys_S) == [0, 1, 2, 3, 4, 0, 1, 5, 6]
    assert rows(whole.query_offsets) == [0, 5, 7]
    assert rows(whole.key_offsets) == [0, 5, 9]
    assert (whole.longest_query, whole.longest_key) == (5, 5)
    assert rows(scored.keys_S) == [0, 1, 2, 3, 4, 0, 1, 5, 6]
    assert rows(scored.query_offsets) == [0, 1, 2]


def test_the_joined_plan_has_a_prompt_once() -> None:
    """A tree of three branches, one without a prompt, and one whose prompt is cached."""
    layout = PackedLayout(
        starts=(0, 8, 11),
        prefixes=(2, 0, 0),
        branches=((3, 2, 1), (1, 2), (4, 2)),
        ends=(4, 6, 7, 8, 10, 14, 16),
        cached=(0, 0, 3),
    )
    plan = flash.joined_plan(layout, CPU)
    own, met = plan.whole
    assert (own.queries_Q, own.keys_S, own.causal) == (None, None, True)
    assert rows(own.query_offsets) == rows(own.key_offsets) == [0, 5, 7, 8, 9, 11, 15, 17]
    assert rows(met.queries_Q) == [5, 6, 7, 11, 12, 13, 14, 15, 16]
    assert rows(met.keys_S) == [0, 1, 17, 18, 19]
    assert (rows(met.query_offsets), rows(met.key_offsets)) == ([0, 3, 9], [0, 2, 5])
    assert not met.causal
    own, met = plan.scored
    assert rows(own.query_offsets) == list(range(8))
    assert rows(own.key_offsets) == [0, 5, 7, 8, 9, 11, 15, 17]
    assert rows(met.queries_Q) == [1, 2, 5, 6]
    assert rows(met.query_offsets) == [0, 2, 4]


def rows(index: Tensor | None) -> list[int]:
    assert index is not None
    return [int(one) for one in index]


def test_a_call_without_a_layout_is_refused() -> None:
    network = tiny_classifier("llama")
    network.set_attn_implementation(PACKED_ATTENTION)
    with pytest.raises(ModelError, match="without a layout"):
        network(input_ids=torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize(
    "extra", [{"s_aux": torch.zeros(4)}, {"dropout": 0.1}, {"is_causal": False}, {"novelty": 1}]
)
def test_an_argument_with_unknown_meaning_is_refused(extra: dict[str, Any]) -> None:
    q = torch.zeros(1, 4, 3, 8)
    layout = PackedLayout(starts=(0,), prefixes=(1,), branches=((1, 1),), ends=(1, 2))
    with pytest.raises(ModelError, match=next(iter(extra))):
        interface.packed_attention(
            torch.nn.Linear(1, 1), q, q, q, None, packed_layout=layout, **extra
        )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"family": "gpt2"}, "architecture gpt2"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"use_bidirectional_attention": True}, "bidirectional"),
    ],
)
def test_what_is_not_proven_does_not_run_packed(options: dict[str, Any], reason: str) -> None:
    from types import SimpleNamespace

    config = SimpleNamespace(model_type=options.pop("family", "llama"), **options)
    found = why_not_packed(config)
    assert found is not None
    assert reason in found
