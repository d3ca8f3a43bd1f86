"""What plan traces without weights is what plaudit's own layers allocate on real ones."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from plaudit.model.attention.interface import PACKED_ATTENTION
from plaudit.model.fast.kernels import KERNELS
from plaudit.model.fast.patched import PatchedModule
from plaudit.model.load import add_lora
from plaudit.model.module import RewardModule, classifier
from plaudit.model.packing import PACKED_ARCHITECTURES, patch_modules
from plaudit.planning.architecture import read_config
from plaudit.planning.measure import StorageMeter, as_in_a_step, pass_bytes
from plaudit.planning.microbatch import Cost, Shapes, packed_shape
from plaudit.planning.trace import ATTENTION, TraceRequest, _pass_sizes, _shallow, trace_costs
from plaudit.recipe.schema import LORA_DEFAULTS
from plaudit.tokens.batch import PackedBatcher
from tests.models import VOCABULARY, make_trees, tiny_classifier

pytestmark = pytest.mark.heavy

LAYERS = 7
ROWS = [(40, (30, 25)), (120, (40, 60)), (200, (9,) * 12), (30, (20,)), (64, (33, 31))]
BATCHES = [[ROWS[0], ROWS[4]], [ROWS[1]], ROWS, [ROWS[2], ROWS[0], ROWS[1]]]


def tiny_config(**options: Any) -> Any:
    return AutoConfig.for_model(
        "llama",
        **{
            "hidden_size": 64,
            "intermediate_size": 176,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "num_labels": 1,
            **options,
        },
    )


@pytest.mark.parametrize("lora", [LORA_DEFAULTS, None])
def test_the_trace_is_what_real_passes_allocate(lora: dict[str, Any] | None) -> None:
    """Forward and backward at their peak, with no layer and all of them recomputed.

    Real layers of a real model, on attention that keeps and copies what the flash call does.
    """
    config = tiny_config()
    request = TraceRequest(config=config, lora=lora, dtype="float32", autocast=None, packed=True)
    module, batcher = real_module(config, lora, ATTENTION)
    batches = [make_trees(rows, seed=1) for rows in BATCHES]
    traced = _pass_sizes(_shallow(request, LAYERS), batcher, batches, None)
    costs = trace_costs(request, ROWS)
    assert costs is not None
    with StorageMeter() as meter, as_in_a_step(module):
        for layers, sizes in zip((0, LAYERS), traced, strict=True):
            module.checkpoint_layers(layers)
            for rows, trees, size in zip(BATCHES, batches, sizes, strict=True):
                real = pass_bytes(module, batcher, trees, meter, None)
                assert size == pytest.approx(real, rel=1e-3)
                # From two shallow models and a few batches.
                assert real is not None
                most = 1.08 if layers == 0 else 1.2
                assert 0.97 * real < predicted(costs[layers], rows) < most * real, (layers, rows)


def test_the_packed_attention_of_a_cpu_keeps_what_the_trace_does() -> None:
    """It gathers no keys, so it needs no more."""
    config = tiny_config()
    request = TraceRequest(config=config, lora=None, dtype="float32", autocast=None, packed=True)
    costs = trace_costs(request, ROWS)
    assert costs is not None
    module, batcher = real_module(config, None, PACKED_ATTENTION)
    with StorageMeter() as meter, as_in_a_step(module):
        for rows in BATCHES:
            real = pass_bytes(module, batcher, make_trees(rows, seed=1), meter, None)
            assert real is not None
            assert 0.97 * real < predicted(costs[0], rows) < 1.17 * real, rows


def real_module(
    config: Any, lora: dict[str, Any] | None, attention: str
) -> tuple[RewardModule, PackedBatcher]:
    network: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    if lora is not None:
        network = add_lora(network, lora)
    module = patch_modules(network)
    classifier(network).set_attn_implementation(attention)
    return module, PackedBatcher(max_tokens=10**6, device=torch.device("cpu"))


def predicted(cost: Cost, rows: list[tuple[int, tuple[int, ...]]]) -> float:
    return cost.fixed + float(cost.of(Shapes.of(packed_shape(*row) for row in rows)).sum())


def test_gathered_keys_are_counted() -> None:
    """64 branches of 16 tokens behind a prompt of 2,048: mostly copies of the prompt's keys."""
    config = tiny_config()
    request = TraceRequest(config=config, lora=None, dtype="bfloat16", autocast=None, packed=True)
    costs = trace_costs(request, [(2048, (16,) * 64), (1536, (768, 768)), (512, (40, 50))])
    assert costs is not None
    wide, plain = Shapes.of([packed_shape(2048, (16,) * 64)]), Shapes.of([(3072, 1536, 2)])
    keys = 2048 * 63 * 2 * 64 * 2
    for cost in (costs[0], costs[LAYERS]):
        assert cost.of(wide)[0] - cost.of(plain)[0] > 0.9 * 2 * keys


def test_the_last_layer_and_fused_layers_are_plaudits_own() -> None:
    config = read_config("Qwen/Qwen3-0.6B")
    request = TraceRequest(
        config=config, lora=LORA_DEFAULTS, dtype="bfloat16", autocast=None, packed=True
    )
    module, _ = _shallow(request, 2)
    patched = {type(m).__name__ for m in module.modules() if isinstance(m, PatchedModule)}
    assert patched == {
        "Linear",
        "Qwen3Attention",
        "Qwen3DecoderLayer",
        "Qwen3MLP",
        "Qwen3RMSNorm",
    }
    costs = trace_costs(request, [(300, (200, 200)), (100, (150, 160))])
    assert costs is not None
    assert ("cpu", torch.bfloat16) not in KERNELS
    # Per token and layer, in numbers of two bytes: two norms' inputs and outputs, queries and keys
    # before and after their norm, values, attention's output; gate, silu, up and their product.
    kept = 4 * 1024 + 3 * 2048 + 3 * 1024 + 4 * 3072
    assert costs[0].token == pytest.approx(28 * 2 * kept, rel=0.05)
    assert costs[28].token < 0.15 * costs[0].token


@pytest.mark.parametrize("architecture", sorted(PACKED_ARCHITECTURES))
def test_every_packed_architecture_can_be_traced(architecture: str) -> None:
    config = tiny_classifier(architecture).config
    request = TraceRequest(
        config=config, lora=LORA_DEFAULTS, dtype="bfloat16", autocast=None, packed=True
    )
    costs = trace_costs(request, [(300, (200, 200))] * 2)
    assert costs is not None
    assert 0 < costs[max(costs)].token < costs[0].token


@pytest.mark.parametrize(
    ("architecture", "options", "error"),
    [
        ("flaubert", {"emb_dim": 32, "n_layers": 3, "n_heads": 4, "n_words": 50}, "DataDependent"),
        ("deepseek_v2", {"num_hidden_layers": 3, "hidden_size": 32, "vocab_size": 50}, "TypeError"),
    ],
)
def test_why_an_architecture_cannot_be_traced_is_logged(
    architecture: str,
    options: dict[str, Any],
    error: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pass that looks at values: FlauBERT's counts the tokens of each row. And one that computes
    with a value that its configuration leaves open: DeepSeek V2's experts per token.
    """
    monkeypatch.setattr(logging.getLogger("plaudit"), "propagate", True)
    config = AutoConfig.for_model(architecture, **options)
    request = TraceRequest(config=config, lora=None, dtype="float32", autocast=None, packed=False)
    with caplog.at_level(logging.DEBUG, "plaudit"):
        assert trace_costs(request, [(30, (20, 20))]) is None
    said = f"{architecture} cannot be traced ({error}"
    assert any(said in line for line in caplog.messages), caplog.messages


def test_trained_embeddings_do_not_hide_the_layers() -> None:
    """Their gradient is larger than what two or three layers keep, and not than what all keep."""
    rows: list[tuple[int, tuple[int, ...]]] = [(800, (300, 250)), (600, (600, 500))]
    deep = {"num_hidden_layers": 28}
    shared: dict[str, Any] = {"lora": None, "dtype": "float32", "autocast": None, "packed": True}
    few, many = (
        trace_costs(TraceRequest(config=tiny_config(vocab_size=size, **deep), **shared), rows)
        for size in (VOCABULARY, 200_000)
    )
    assert few is not None
    assert many is not None
    assert predicted(many[0], rows) == pytest.approx(predicted(few[0], rows), rel=0.05)
    # With all layers recomputed the gradient needs more than they do.
    gradient = 200_000 * 64 * 4
    assert predicted(few[28], rows[:1]) < gradient
    assert predicted(many[28], rows[:1]) > 0.99 * gradient


def test_full_fine_tuning_counts_half_precision_copies_of_its_weights() -> None:
    config = tiny_config()
    shared: dict[str, Any] = {"config": config, "lora": None, "packed": True, "dtype": "float32"}
    rows = [(40, (30, 25)), (20, (20, 22))]
    plain = trace_costs(TraceRequest(**shared, autocast=None), rows)
    mixed = trace_costs(TraceRequest(**shared, autocast=torch.bfloat16), rows)
    assert plain is not None
    assert mixed is not None
    weights = LAYERS * (4 * 64 * 64 + 3 * 64 * 176)
    assert mixed[0].fixed - plain[0].fixed > 0.8 * 2 * weights


def test_plan_loads_no_torch_for_its_help() -> None:
    code = "import plaudit.cli.plan, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
