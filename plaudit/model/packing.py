"""Which models run packed: supported architectures, and a self-check on the loaded weights.

Anything else runs padded: a hybrid model packs without an error and scores wrongly, so the list
names what was compared with plain transformers. An architecture joins by a row in
:data:`PACKED_ARCHITECTURES` and a tiny config in the tests.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plaudit.errors import ModelError
from plaudit.model.attention.flash import use_flash_attention_3
from plaudit.model.attention.interface import PACKED_ATTENTION
from plaudit.model.fast.fused import fuse_layers
from plaudit.model.fast.last_layer import is_compiled, narrow_last_layer
from plaudit.model.fast.lora import fuse_lora
from plaudit.model.module import DecoderRewardModule, RewardModule, as_reward_module, classifier
from plaudit.types import Batch, Batcher, Outputs, RewardTransform, TokenTree

logger = logging.getLogger("plaudit")

Layout = Literal["packed", "padded"]

PACKED_ARCHITECTURES: frozenset[str] = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "gpt_neox",
        "helium",
        "llama",
        "mistral",
        "mixtral",
        "olmo",
        "olmo2",
        "olmo3",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "starcoder2",
    }
)

PACKED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


def why_not_packed(config: Any) -> str | None:
    """Why a transformers config cannot run packed, None where it can.

    ``config`` is not ours, so its optional fields are asked for with a default.
    """
    if config.model_type not in PACKED_ARCHITECTURES:
        return f"architecture {config.model_type} is not verified for packed batches"
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - PACKED_LAYER_TYPES)
    if unknown:
        return f"it has layers of type {', '.join(unknown)}"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    if getattr(config, "is_causal", True) is False:
        return "its attention is not causal"
    return None


# ---- the layout of a loaded model ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A module ready to score. ``note`` says why batches are padded, None where they are packed."""

    module: RewardModule
    layout: Layout
    note: str | None


def patch_modules(
    network: nn.Module,
    reward_transform: RewardTransform = RewardTransform(),
    outputs: Outputs | None = None,
) -> RewardModule:
    """The classifier as a reward module, its norms, attentions, LoRA and last layer patched."""
    if classifier(network) is not network:
        fuse_lora(network)
    body = classifier(network).base_model
    use_flash_attention_3(next(body.parameters()).device)
    if not is_compiled(body):
        fuse_layers(body)
        narrow_last_layer(body)
    return as_reward_module(network, reward_transform, outputs)


def choose_layout(
    module: RewardModule,
    asked: Literal["auto", "packed", "padded"],
    *,
    packed: Batcher,
    padded: Batcher,
    autocast: torch.dtype | None = None,
) -> Prepared:
    """Packed where the architecture is supported and the self-check on the loaded weights passes.

    No model trains or scores packed before its self-check has passed; a mismatch switches to padded
    batches, aloud. ``module`` comes from :func:`patch_modules`; FSDP may have sharded it since.
    ``autocast`` is the precision that the model will run under, if any.

    Raises:
        ModelError: packed was asked for by name and is not possible.
    """
    network = module.network
    plain = classifier(network).config._attn_implementation
    note = _why_padded(module, asked, packed=packed, padded=padded, autocast=autocast)
    if note is None:
        return Prepared(module=module, layout="packed", note=None)
    if asked == "packed":
        raise ModelError(f"model.attention is packed, but {note}; set it to auto or padded.")
    if classifier(network).config._attn_implementation != plain:
        classifier(network).set_attn_implementation(plain)
    if asked == "auto":
        logger.warning(
            "Using padded batches: %s. Scores are the same, but more tokens are computed.", note
        )
    return Prepared(module=module, layout="padded", note=note)


def _why_padded(
    module: RewardModule,
    asked: str,
    *,
    packed: Batcher,
    padded: Batcher,
    autocast: torch.dtype | None,
) -> str | None:
    if asked == "padded":
        return "model.attention is padded"
    if not isinstance(module, DecoderRewardModule):
        return f"{module.config.model_type} is an encoder"
    reason = why_not_packed(classifier(module.network).config)
    if reason is not None:
        return reason
    result = self_check(module, packed, padded, autocast=autocast)
    if result.passed:
        return None
    return (
        f"in the self-check, packed and separate scores differ by {result.difference:.2g}"
        f" (tolerance {result.tolerance:.2g})"
    )


# ---- self-check ----

# Largest relative difference of hidden states that rounding explains: fp32 shows about 1e-6 over
# a few layers, half precision about its own epsilon times the depth; wrong attention shows 0.1
# and more.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 6e-2, torch.float16: 2e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheckResult:
    """``difference`` is max |packed - separate| over max |separate| of the scored hidden states."""

    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


def check_trees(vocabulary: int) -> list[TokenTree]:
    """Ragged trees of random ids: shared prefix, no prefix, one branch, a one-token branch."""
    generator = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return generator.integers(0, vocabulary, length, dtype=np.int32)

    shapes = [(19, (7, 23, 1)), (0, (9, 12)), (0, (31,)), (6, (40, 5))]
    return [
        TokenTree(index=i, prefix=ids(prefix), branches=tuple(ids(b) for b in branches))
        for i, (prefix, branches) in enumerate(shapes)
    ]


def self_check(
    module: DecoderRewardModule,
    packed: Batcher,
    padded: Batcher,
    *,
    autocast: torch.dtype | None = None,
) -> SelfCheckResult:
    """Compare packed with one-sequence-at-a-time on the loaded weights.

    ``autocast`` is the precision that training will run under, None for that of the weights: it
    decides which attention runs on a GPU.

    The model comes with the attention transformers chose for it (not every architecture has
    SDPA) and leaves with packed attention, in the mode (training or not) it came in.
    """
    network = classifier(module.network)
    trees = check_trees(network.config.get_text_config().vocab_size)
    training = module.training
    module.eval()
    try:
        alone = [
            TokenTree(index=0, prefix=tree.prefix, branches=(branch,))
            for tree in trees
            for branch in tree.branches
        ]
        separate_RD = torch.cat(
            [_hidden(module, padded.collate([tree]), autocast) for tree in alone]
        )
        network.set_attn_implementation(PACKED_ATTENTION)
        packed_RD = _hidden(module, packed.collate(trees), autocast)
    finally:
        module.train(training)
    largest = separate_RD.abs().max().clamp_min(1e-12)
    difference = float((packed_RD - separate_RD).abs().max() / largest)
    return SelfCheckResult(
        difference=difference, tolerance=_tolerance(network.base_model, autocast)
    )


def _tolerance(body: nn.Module, autocast: torch.dtype | None) -> float:
    """That of the coarsest precision in use; 4-bit weights compute in half precision.

    A body may have fp32 norms or adapters beside them, so no one tensor tells.
    """
    used = {parameter.dtype for parameter in body.parameters()}
    if autocast is not None:
        used.add(autocast)
    return max(TOLERANCE.get(dtype, 6e-2) for dtype in used)


@torch.no_grad()
def _hidden(module: DecoderRewardModule, batch: Batch, autocast: torch.dtype | None) -> Tensor:
    """``hidden_RD`` as the head gets them, in a call of the whole module: FSDP gathers in it."""
    caught: list[Tensor] = []
    head: nn.Module = classifier(module.network).score
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        with torch.autocast(batch.ends_R.device.type, dtype=autocast, enabled=autocast is not None):
            module(batch)
    finally:
        hook.remove()
    return caught[0].float()
