"""The models that are measured: the embedded base, and random Llamas with its tokenizer.

Speed does not depend on the values of weights, so random ones serve. Their head is not zero and
their weights are spread wider than transformers' default, so that scores differ from each other and
an error would show in the losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plaudit.embedded import base_path

# Sizes without embeddings' share: 22.5 and 106 million weights in linear layers.
LLAMAS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "25m": {
        "hidden_size": 512,
        "intermediate_size": 1152,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "110m": {
        "hidden_size": 768,
        "intermediate_size": 2816,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
}
MODELS = ("embedded", *LLAMAS)
LORA: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
}
HEAD_STD = 0.1
WEIGHT_STD = 0.06


def build_base(name: str, folder: Path, *, seed: int, vocabulary: int | None = None) -> Path:
    """A one-label classifier and a tokenizer on disk, as every side loads it.

    ``vocabulary`` adds embedding rows that no text uses, up to that many.
    """
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        LlamaConfig,
        LlamaForSequenceClassification,
    )

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    if name == "embedded":
        network = AutoModelForSequenceClassification.from_pretrained(base_path(), num_labels=1)
        if vocabulary is not None:
            network.resize_token_embeddings(vocabulary)
    else:
        config = LlamaConfig(
            vocab_size=vocabulary or len(tokenizer),
            max_position_embeddings=4096,
            # PretrainedConfig takes it by keyword.
            num_labels=1,  # type: ignore[call-arg]
            initializer_range=WEIGHT_STD,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **LLAMAS[name],
        )
        network = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(network.score.weight, std=HEAD_STD)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def linear_weights(network: Any) -> int:
    """N: weights of the body's linear layers, adapters and embeddings left out."""
    from torch import nn

    return sum(
        layer.weight.numel()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and "lora_" not in name and "score" not in name
    )
