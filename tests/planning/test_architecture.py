"""Sizes that plan counts are those of the real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plaudit.errors import ModelError
from plaudit.planning.architecture import architectures, measure, read_config
from plaudit.recipe.schema import LORA_DEFAULTS

pytestmark = pytest.mark.heavy

# Parameters of the published causal language models, as the Hub counts them in their safetensors.
PUBLISHED = {
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "mistral-7b-v0.3": 7_248_023_552,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini-4k": 3_821_079_552,
    "olmo-2-7b": 7_298_617_344,
    "pythia-410m": 405_334_016,
}


def test_every_architecture_has_its_published_size() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    counted = {}
    for name, facts in architectures().items():
        values: dict[str, Any] = {key: facts[key] for key in facts if key != "names"}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
        counted[name] = sum(parameter.numel() for parameter in model.parameters())
    assert counted == PUBLISHED


def test_llama_3_8b_with_the_reference_adapter() -> None:
    config = read_config("meta-llama/Meta-Llama-3-8B")
    size = measure(config, LORA_DEFAULTS, activations="bfloat16")
    assert (size.trainable, size.total) == (20_975_616, 7_525_900_288)
    assert size.adapter + 4096 == size.trainable
    assert size.body == 7_504_924_672


def test_recomputation_and_lora_change_what_is_kept() -> None:
    config = read_config("Qwen/Qwen3-0.6B")
    full = measure(config, None, activations="bfloat16")
    lora = measure(config, LORA_DEFAULTS, activations="bfloat16")
    assert full.trainable == full.total == full.body + 1024
    assert full.adapter == 0
    assert lora.total - full.total == lora.adapter
    assert lora.linear == full.linear


def test_a_folder_with_only_a_config_is_enough(tmp_path: Path) -> None:
    read_config("EleutherAI/pythia-410m").save_pretrained(tmp_path)
    config = read_config(str(tmp_path))
    assert measure(config, None, activations="float32").architecture == "gpt_neox"


def test_a_base_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="was not found on the Hub"):
        read_config("nobody/no-such-model")
    with pytest.raises(ModelError, match=r"no usable config\.json"):
        read_config(str(tmp_path))


def test_lora_settings_that_peft_refuses() -> None:
    config = read_config("EleutherAI/pythia-410m")
    with pytest.raises(ModelError, match="nowhere matches no module"):
        measure(config, {"r": 8, "target_modules": ["nowhere"]}, activations="float32")
    with pytest.raises(ModelError, match="PEFT rejected"):
        measure(config, {**LORA_DEFAULTS, "r": 0}, activations="float32")
