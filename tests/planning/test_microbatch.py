"""Memory of a micro-batch: measured on real activations, fitted, and a split that fits it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from plaudit.model.attention.interface import PACKED_ATTENTION
from plaudit.model.load import add_lora
from plaudit.model.module import DecoderRewardModule
from plaudit.planning.measure import (
    StorageMeter,
    as_in_a_step,
    fit_cost,
    measure_costs,
    pass_bytes,
)
from plaudit.planning.microbatch import (
    ENOUGH_TOKENS,
    SPARE,
    Cost,
    MicroBatches,
    Shapes,
    by_layers,
    choose,
    densest_trees,
    most_bytes,
    token_limit,
)
from plaudit.tokens.batch import PackedBatcher, PaddedBatcher, TokenBatcher
from plaudit.types import TokenTree
from tests.models import make_trees, tiny_classifier, tree_shape

CPU = torch.device("cpu")
LAYERS = 6


def adapted() -> DecoderRewardModule:
    network = tiny_classifier("llama", num_hidden_layers=LAYERS, intermediate_size=128)
    network.set_attn_implementation(PACKED_ATTENTION)
    return DecoderRewardModule(add_lora(network, {"target_modules": "all-linear"}))


@pytest.fixture(scope="module")
def module() -> DecoderRewardModule:
    return adapted()


def corpus(seed: int = 0) -> list[TokenTree]:
    """Pairs of many lengths, a few wide trees, one with a long prompt."""
    generator = np.random.default_rng(seed)
    shapes = [
        (int(generator.integers(5, 120)), tuple(generator.integers(4, 60, 2).tolist()))
        for _ in range(30)
    ]
    shapes += [(60, (9,) * 16), (20, (5,) * 24), (300, (10, 12, 8))]
    return make_trees(shapes, seed=seed)


def shapes_of(trees: list[TokenTree], *, packed: bool) -> Shapes:
    return Shapes.of(tree_shape(tree, packed=packed) for tree in trees)


def batcher_of(layout: str, tokens: int = 10**9) -> TokenBatcher:
    if layout == "packed":
        return PackedBatcher(max_tokens=tokens, device=CPU)
    return PaddedBatcher(max_tokens=tokens, pad_id=2, device=CPU)


@pytest.fixture(scope="module", params=["packed", "padded"])
def measured(
    request: pytest.FixtureRequest, module: DecoderRewardModule
) -> Iterator[tuple[str, list[TokenTree], Shapes, dict[int, Cost]]]:
    layout: str = request.param
    trees = corpus()
    shapes = shapes_of(trees, packed=layout == "packed")
    network = module.network.get_base_model()
    network.set_attn_implementation(PACKED_ATTENTION if layout == "packed" else "sdpa")
    with StorageMeter() as meter, as_in_a_step(module):
        costs = measure_costs(
            module,
            batcher_of(layout),
            (trees, shapes),
            meter,
            trees_per_step=len(trees),
            autocast=None,
        )
        yield layout, trees, shapes, costs


def test_the_fit_predicts_micro_batches_that_were_not_measured(
    module: DecoderRewardModule,
    measured: tuple[str, list[TokenTree], Shapes, dict[int, Cost]],
) -> None:
    """Near what the activations of a real pass take, at no and at all layers."""
    layout, trees, shapes, costs = measured
    batcher = batcher_of(layout)
    batches = [[0, 3, 5, 9, 11, 12], [30, 31, 7], [32, 30, 1, 2], list(range(20)), [14]]
    with StorageMeter() as meter:
        for layers in (0, LAYERS):
            module.checkpoint_layers(layers)
            for members in batches:
                batch = [trees[i] for i in members]
                found = pass_bytes(module, batcher, batch, meter, None)
                cost = costs[layers]
                predicted = cost.fixed + cost.token * batcher.size(batch)
                predicted += (cost.key * shapes.keys_N + cost.span * shapes.spans_N)[members].sum()
                assert found is not None
                # A padded batch has a mask besides, which grows with the square of its length.
                least, most = (0.95, 1.12) if layout == "packed" else (0.85, 1.7)
                assert least * found < predicted < most * found, (layers, members)
    module.checkpoint_layers(0)


@pytest.mark.parametrize("free_share", [0.2, 0.35, 0.6])
def test_what_is_chosen_fits_whatever_a_step_draws(
    free_share: float,
    module: DecoderRewardModule,
    measured: tuple[str, list[TokenTree], Shapes, dict[int, Cost]],
) -> None:
    """Every micro-batch that the batcher splits off stays within the bytes that were free."""
    layout, trees, shapes, costs = measured
    # Only tokens bound what is padded, as in a run.
    per_step = 16 if layout == "packed" else len(trees)
    whole = costs[0].fixed + costs[0].of(shapes).sum()
    free = free_share * whole
    chosen = choose(costs, shapes, free, trees_per_step=per_step)
    assert chosen is not None
    module.checkpoint_layers(chosen.checkpointed_layers)
    batcher = batcher_of(layout, chosen.tokens)
    generator = np.random.default_rng(1)
    most = 0
    with StorageMeter() as meter:
        for _ in range(4):
            step = [trees[i] for i in generator.permutation(len(trees))[:16]]
            for members in batcher.split(step):
                found = pass_bytes(module, batcher, [step[i] for i in members], meter, None)
                assert found is not None
                most = max(most, found)
        if layout == "packed":
            worst = densest_trees(costs[chosen.checkpointed_layers], shapes, chosen.tokens, 16)
            found = pass_bytes(module, batcher, [trees[i] for i in worst], meter, None)
            most = max(most, found or 0)
            assert most > 0.4 * free, "memory is left unused"
    module.checkpoint_layers(0)
    assert chosen.bytes_needed <= (1 - SPARE) * free
    # The spared share is for what the fit misses.
    assert most <= free


def test_some_layers_lie_between_none_and_all_and_keep_the_gradient(
    module: DecoderRewardModule,
    measured: tuple[str, list[TokenTree], Shapes, dict[int, Cost]],
) -> None:
    layout, trees, shapes, costs = measured
    batch, members = [trees[i] for i in range(8)], list(range(8))
    sizes, gradients = [], []
    with StorageMeter() as meter:
        for layers in (0, 2, 4, LAYERS):
            module.checkpoint_layers(layers)
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            sizes.append(pass_bytes(module, batcher_of(layout), batch, meter, None))
            gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
            if layout == "packed":
                cost = costs[layers]
                assert sizes[-1] <= 1.05 * (cost.fixed + cost.of(shapes)[members].sum())
    module.checkpoint_layers(0)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.5 * sizes[0]
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


def test_layers_that_recompute_no_more_cost_what_they_did() -> None:
    """The input of the first layer needs no gradient, under an adapter, and gets none."""
    module, sizes = adapted(), []
    with StorageMeter() as meter, as_in_a_step(module):
        for layers in (0, 0, LAYERS, 0):
            module.checkpoint_layers(layers)
            sizes.append(pass_bytes(module, batcher_of("packed"), corpus()[:8], meter, None))
    # The first pass is longer: what comes into being in it stays.
    assert sizes[2] < sizes[1] == sizes[3]


# ---- the rule, on given costs


PAIRS = Shapes.of([(1000, 600, 2)] * 400 + [(4000, 3500, 2), (2000, 9000, 16)])
KEPT = Cost(fixed=1e8, token=1e6, key=1e4, span=1e5)
RECOMPUTED = Cost(fixed=2e8, token=1e5, key=1e3, span=1e5)
COSTS = by_layers(KEPT, RECOMPUTED, 32)


def test_nothing_is_recomputed_where_enough_tokens_fit() -> None:
    chosen = choose(COSTS, PAIRS, 80e9, trees_per_step=64)
    assert chosen is not None
    assert chosen.checkpointed_layers == 0
    assert chosen.tokens > ENOUGH_TOKENS
    assert chosen.bytes_needed <= chosen.bytes_free == round((1 - SPARE) * 80e9)


@pytest.mark.parametrize("free", [1.5e9, 2.5e9, 4e9])
def test_as_few_layers_are_recomputed_as_leave_enough_tokens(free: float) -> None:
    chosen = choose(COSTS, PAIRS, free, trees_per_step=64)
    assert chosen is not None
    n = chosen.checkpointed_layers
    assert 0 < n < 32
    assert chosen.tokens >= ENOUGH_TOKENS
    fewer = token_limit(COSTS[n - 1], PAIRS, (1 - SPARE) * free, 64)
    assert fewer is None or fewer < ENOUGH_TOKENS


def test_a_whole_step_is_enough() -> None:
    """Two small pairs a step: no micro-batch can have 2,048 tokens."""
    shapes = Shapes.of([(300, 100, 2)] * 50)
    chosen = choose(COSTS, shapes, 1e9, trees_per_step=2)
    assert chosen is not None
    assert chosen.checkpointed_layers == 0
    assert chosen.bytes_needed < 0.8e9


def test_the_largest_tree_decides_whether_anything_fits() -> None:
    assert choose(COSTS, PAIRS, 0.3e9, trees_per_step=64) is None
    wide = choose(COSTS, PAIRS, 0.8e9, trees_per_step=64)
    assert wide is not None
    n = wide.checkpointed_layers
    assert n > 24
    assert wide.bytes_needed >= COSTS[n].fixed + COSTS[n].of(PAIRS).max()


def test_a_limit_of_the_user_is_kept_and_decides_how_many_layers() -> None:
    small, large = (choose(COSTS, PAIRS, 4e9, trees_per_step=64, tokens=n) for n in (500, 8000))
    assert small is not None
    assert large is not None
    assert (small.tokens, large.tokens) == (500, 8000)
    assert small.checkpointed_layers < large.checkpointed_layers


def test_the_choice_is_a_sentence() -> None:
    chosen = MicroBatches(
        tokens=16_384,
        checkpointed_layers=1,
        layers=2,
        bytes_needed=3 * 10**9,
        bytes_free=4 * 10**9,
        reason="the most that fit",
    )
    assert chosen.sentence() == (
        "at most 16,384 tokens, activation checkpointing of 1 of 2 layers, 3.00 of 4.00 GB at most"
        " (the most that fit)"
    )


def test_the_bound_holds_for_every_draw_and_is_nearly_reached() -> None:
    generator = np.random.default_rng(3)
    shapes = Shapes.of(
        (int(t), int(k), int(s))
        for t, k, s in zip(
            generator.integers(100, 3000, 200),
            generator.integers(0, 9000, 200),
            generator.integers(1, 40, 200),
            strict=True,
        )
    )
    cost = Cost(fixed=3e7, token=2e5, key=5e4, span=1e5)
    bound = most_bytes(cost, shapes, 12_000, 16)
    added = cost.of(shapes)
    for _ in range(300):
        order = generator.permutation(200)[:16]
        kept = order[np.cumsum(shapes.tokens_N[order]) <= 12_000]
        assert cost.fixed + added[kept].sum() <= bound
    worst = densest_trees(cost, shapes, 12_000, 16)
    assert 0.8 * bound < cost.fixed + added[worst].sum() <= bound


def test_the_fit_is_never_below_a_measurement() -> None:
    measured = [
        ((100, 0, 2), 1000),
        ((200, 300, 2), 2900),
        ((400, 100, 9), 4700),
        ((50, 0, 1), 900),
    ]
    cost = fit_cost(measured)
    assert min(cost.fixed, cost.token, cost.key, cost.span) >= 0
    for (tokens, keys, spans), size in measured:
        assert cost.fixed + cost.token * tokens + cost.key * keys + cost.span * spans >= size - 1


def test_measuring_leaves_no_trace(
    module: DecoderRewardModule, caplog: pytest.LogCaptureFixture
) -> None:
    trees = corpus()[:6]
    module.network.get_base_model().set_attn_implementation("sdpa")
    module.eval()
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING), StorageMeter() as meter, as_in_a_step(module):
        measure_costs(
            module,
            batcher_of("padded"),
            (trees, shapes_of(trees, packed=False)),
            meter,
            trees_per_step=4,
            autocast=None,
        )
    assert not module.training
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())
    assert not caplog.records
