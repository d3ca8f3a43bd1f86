"""Which architectures may run packed. A family joins by a row here and a tiny config in the tests.

Anything else runs padded: a hybrid model packs without an error and scores wrongly, so the list
names what was compared with plain transformers, not what happens to run.
"""

from __future__ import annotations

from typing import Any

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
        return f"architecture {config.model_type} is not among those proven to run packed"
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - PACKED_LAYER_TYPES)
    if unknown:
        return f"it has layers of type {', '.join(unknown)}"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    if getattr(config, "is_causal", True) is False:
        return "its attention is not causal"
    return None
