"""Tiny random bases of every packed family, and a real byte-level tokenizer trained in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from plaudit.model.checkpoint import CheckpointMetadata, save_checkpoint
from plaudit.model.load import HEADS, BaseRequest, add_lora, load_base
from plaudit.planning.microbatch import packed_shape, padded_shape
from plaudit.types import Outputs, TokenTree

CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
SPECIAL = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]
VOCABULARY = 400

WINDOW = 11
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    # transformers' default of 0.02 gives hidden states so alike that a wrong mask hardly shows.
    "initializer_range": 0.3,
}
SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
# What a family's configuration needs beyond TINY; windows are shorter than the tests' rows.
ARCHITECTURE_OPTIONS: dict[str, dict[str, Any]] = {
    "gemma": {},
    "gemma2": {**SLIDING, "query_pre_attn_scalar": 8},
    "gemma3_text": {**SLIDING, "query_pre_attn_scalar": 8},
    "glm": {},
    "glm4": {},
    "gpt_neox": {},
    "helium": {},
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"sliding_window": WINDOW, "num_local_experts": 4},
    "olmo": {},
    "olmo2": {},
    "olmo3": SLIDING,
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen2_moe": EXPERTS,
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3_moe": EXPERTS,
    "smollm3": {},
    "starcoder2": {"sliding_window": WINDOW},
}


def tiny_classifier(family: str = "llama", **options: Any) -> PreTrainedModel:
    """A random classifier in fp32, of one label by default, whose head is not zero."""
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        **{"num_labels": 1, **TINY, **ARCHITECTURE_OPTIONS.get(family, {}), **options},
    )
    torch.manual_seed(0)
    # Before 5.23 transformers ran soft-capped models in SDPA, which leaves the soft-cap out.
    chosen = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=chosen)
    (head,) = (module for name, module in model.named_modules() if name in HEADS)
    torch.nn.init.normal_(head.weight, std=0.3)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def tiny_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE with its own BOS, EOS and pad, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sentences = [
        "the quick brown fox jumps over the lazy dog",
        "what is the answer to this question? it is forty two, because we counted twice.",
        "no, that is not right; yes, this is better and shorter.",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = chat_template
    return fast


def build_base(folder: Path, family: str = "llama", **options: Any) -> Path:
    """A base folder as a user has it: a causal language model's body, tokenizer, chat template."""
    model = tiny_classifier(family, **options)
    # A base has no reward head: its files hold the body alone.
    state = {k: v for k, v in model.state_dict().items() if k.partition(".")[0] not in HEADS}
    model.save_pretrained(folder, state_dict=state)
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def make_trees(shapes: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> list[TokenTree]:
    generator = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return generator.integers(3, VOCABULARY, length, dtype=np.int32)

    return [
        TokenTree(index=i, prefix=ids(prefix), branches=tuple(ids(n) for n in branches))
        for i, (prefix, branches) in enumerate(shapes)
    ]


def tree_shape(tree: TokenTree, *, packed: bool) -> tuple[int, int, int]:
    """Tokens, gathered keys and spans of a tree."""
    shape = packed_shape if packed else padded_shape
    return shape(len(tree.prefix), map(len, tree.branches))


THREE = Outputs(names=("helpful", "true", "short"), weights=(0.6, 0.5, -0.1), offsets=(2.0, 3.0, 1))
FIVE_HEADS = Outputs(
    names=tuple(f"head_{number}" for number in range(5)),
    weights=(0.2,) * 5,
    offsets=(1.0,) * 5,
    ensemble=True,
)


def saved_with_outputs(folder: Path, base: Path, *, lora: bool, outputs: Outputs = THREE) -> Path:
    """A reward model with random weights in its head."""
    request = BaseRequest(base=str(base), head_init="normal", outputs=outputs.names)
    network = load_base(request, pad_id=2).network
    if lora:
        network = add_lora(network, {"r": 2, "target_modules": "all-linear"})
    metadata = CheckpointMetadata(
        kind="adapter" if lora else "full",
        base=str(base),
        base_revision=None,
        max_length=256,
        text="chat",
        chat_template=None,
        pad_token="<pad>",
        attention="packed",
        attention_note=None,
        head={"name": "score", "init": "normal", "dtype": "float32"},
        outputs=outputs,
    )
    save_checkpoint(folder, network, tiny_tokenizer(), metadata)
    return folder
