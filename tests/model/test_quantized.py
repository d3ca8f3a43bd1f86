"""QLoRA on a CPU, with bitsandbytes' own layers: what stays fp32, what is bf16, what moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from plaudit.errors import RecipeError
from plaudit.model.load import BaseRequest, add_lora, load_base, trainable_parameters
from plaudit.model.module import as_reward_module, classifier
from plaudit.reward_model import load
from plaudit.tokens.batch import make_batchers
from plaudit.training.run import train
from tests.conftest import recipe_of
from tests.models import make_trees

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.heavy

PAD = 2
LORA = {"r": 2, "target_modules": "all-linear"}
BATCHERS = make_batchers(4096, torch.device("cpu"), PAD)
TREES = make_trees([(19, (7, 23)), (6, (40, 5))])


@pytest.fixture(scope="module")
def stored_quantized(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model saved in 4 bits, which names its own head alone as left whole."""
    folder = tmp_path_factory.mktemp("stored") / "base"
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head"]
    )
    model = AutoModelForCausalLM.from_pretrained(
        tiny_base, quantization_config=settings, dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


def network_of(base: Path, quantize: Any, lora: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    request = BaseRequest(
        base=str(base), quantize=quantize, dtype=torch.bfloat16, head_init="normal"
    )
    return add_lora(load_base(request, pad_id=PAD).network, lora)


def four_bit(network: nn.Module) -> set[str]:
    """Names of the layers in 4 bits, in the classifier."""
    layers = classifier(network).named_modules()
    kind = bitsandbytes.nn.Linear4bit
    return {name.removesuffix(".base_layer") for name, child in layers if isinstance(child, kind)}


def step(network: Any, *, checkpointing: bool = False) -> dict[str, Tensor]:
    """Gradients of the first forward and backward pass."""
    module = as_reward_module(network).train()
    if checkpointing:
        module.activation_checkpointing_enable()
    scores_R = module(BATCHERS["padded"].collate(TREES))
    assert scores_R.dtype == torch.float32
    scores_R.square().sum().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["quantized here", "stored quantized"])
def test_a_body_in_4_bits_keeps_bf16_activations_and_an_fp32_head(
    kind: str, tiny_base: Path, stored_quantized: Path
) -> None:
    here = kind == "quantized here"
    base, quantize = (tiny_base, "4bit") if here else (stored_quantized, None)
    network = network_of(base, quantize, LORA)
    quantized = four_bit(network)
    assert len(quantized) == 7 * classifier(network).config.num_hidden_layers
    assert not any("score" in name for name in quantized)
    named = dict(network.named_parameters())
    trained = {n: p for n, p in named.items() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("score.modules_to_save" in name for name in trained)
    rest = [p for n, p in named.items() if n not in trained and "score" not in n]
    assert {p.dtype for p in rest} == {torch.uint8, torch.bfloat16}
    seen: set[torch.dtype] = set()
    for layer in classifier(network).model.layers:
        layer.register_forward_hook(lambda _, inputs, out: seen.add(out.dtype))
        layer.self_attn.o_proj.register_forward_hook(lambda _, inputs, out: seen.add(out.dtype))
    gradients = step(network)
    assert seen == {torch.bfloat16}
    assert set(gradients) == set(trained)
    assert trainable_parameters(network)[0] == sum(p.numel() for p in trained.values())


def test_gradients_after_an_evaluation_are_those_before(tiny_base: Path) -> None:
    """bitsandbytes' CPU kernel repacks weights at the first pass without gradients, for good."""
    network = network_of(tiny_base, "4bit", LORA)
    before = step(network)
    network.zero_grad()
    with torch.no_grad():
        as_reward_module(network).eval()(BATCHERS["padded"].collate(TREES))
    torch.testing.assert_close(step(network), before)


def test_checkpointing_gives_the_same_gradients(tiny_base: Path) -> None:
    plain = step(network_of(tiny_base, "4bit", LORA))
    saving = step(network_of(tiny_base, "4bit", LORA), checkpointing=True)
    assert any(grad.abs().max() > 0 for name, grad in plain.items() if "lora_B" in name)
    torch.testing.assert_close(saving, plain)


def test_doras_magnitudes_stay_fp32_and_move(tiny_base: Path) -> None:
    """In bf16 an update below 1/256 of a magnitude is rounded away."""
    lora = {**LORA, "use_dora": True}
    network = network_of(tiny_base, "4bit", lora)
    magnitudes = {n: p for n, p in network.named_parameters() if "magnitude" in n}
    assert len(magnitudes) == len(four_bit(network))
    before = {name: p.detach().clone() for name, p in magnitudes.items()}
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], lr=1e-4, weight_decay=0
    )
    gradients = step(network)
    optimizer.step()
    assert {p.dtype for p in magnitudes.values()} == {torch.float32}
    for name, parameter in magnitudes.items():
        moved = (parameter - before[name]).abs()
        has_gradient = gradients[name] != 0
        assert has_gradient.any(), name
        assert (moved[has_gradient] > 5e-5).all(), name


def test_a_run_in_4_bits_trains_saves_and_scores(
    tiny_base: Path, stored_quantized: Path, pairs_file: Path, tmp_path: Path
) -> None:
    for base, quantize in ((tiny_base, "4bit"), (stored_quantized, None)):
        recipe = recipe_of(base, pairs_file, num_train_epochs=1)
        recipe["model"] |= {"quantize": quantize, "dtype": "bfloat16"}
        folder = tmp_path / f"run-{quantize}"
        run = train(recipe, folder).metrics.run
        assert (run.attention, run.dtype) == ("packed", "bfloat16")
        assert run.method == ("qlora" if quantize else "lora")
        model = load(folder, dtype="bfloat16")
        rewards = model.score("A question?", ["One answer.", "Another, longer answer."])
        assert rewards[0] != rewards[1]
        stored = json.loads((folder / "adapter_config.json").read_text())
        assert "score" in stored["modules_to_save"]


def test_weights_that_are_stored_quantized_are_not_trained_whole(
    stored_quantized: Path, pairs_file: Path, tmp_path: Path
) -> None:
    recipe = {**recipe_of(stored_quantized, pairs_file), "lora": None}
    with pytest.raises(RecipeError, match="are stored quantized and cannot be trained"):
        train(recipe, tmp_path / "run")
