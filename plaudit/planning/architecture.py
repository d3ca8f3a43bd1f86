"""A base model's configuration and sizes, without its weights.

``architectures.json`` holds, for each architecture, the values of its published ``config.json`` on
which sizes depend, and the Hub ids that share them: common models need no Hub. What only matters
when the model runs (rotary frequencies, token ids) is left out. Sizes are counted on the model
itself, built without storage (meta device).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit import embedded
from plaudit.errors import ModelError
from plaudit.storage.atomic import missing_path

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig


@cache
def architectures() -> dict[str, dict[str, Any]]:
    """Configuration values by architecture, each with the ``names`` of its Hub ids."""
    text = files("plaudit.planning").joinpath("architectures.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


def find_architecture(base: str) -> dict[str, Any] | None:
    """The configuration values of a Hub id in the table; upper and lower case do not matter."""
    for facts in architectures().values():
        if base.lower() in (name.lower() for name in facts["names"]):
            return {key: value for key, value in facts.items() if key != "names"}
    return None


def read_config(
    base: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The transformers configuration of a base with one label: local folder, table, then the Hub.

    Raises:
        ModelError: no such folder or table entry, and the Hub and its cache do not have it.
    """
    from transformers import AutoConfig

    base = str(embedded.base_path()) if base == embedded.NAME else base
    values = None if Path(base).exists() else find_architecture(base)
    if values is not None:
        config: PreTrainedConfig = AutoConfig.for_model(num_labels=1, **values)
        return config
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(
            base, revision=revision, trust_remote_code=trust_remote_code, num_labels=1
        )
        return found
    except (OSError, ValueError, KeyError) as error:
        if Path(base).is_dir():
            raise ModelError(
                f"{base} has no config.json that transformers can read; model.base must be a model "
                "folder or a Hub id."
            ) from error
        missing = missing_path(base)
        if missing is not None:
            raise ModelError(
                f"{missing}; model.base must be a model folder or a Hub id."
            ) from error
        raise ModelError(
            f"{base} does not exist on this machine, is not in plaudit's table of "
            f"{len(architectures())} architectures, and was not found on the Hub; check the name "
            "or the connection, or give a folder with the model's config.json."
        ) from error


# ---- sizes

SAMPLE_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Counts, not bytes, except ``saved_bytes_per_token``.

    ``linear``: weights of the body's linear layers, the ones a token is multiplied with.
    ``adapter``: LoRA weights. ``attention_width``: heads times head size, summed over layers.
    ``saved_bytes_per_token``: what one token's forward pass keeps for the backward pass, all layers
    together; None where the architecture cannot run without weights.
    """

    architecture: str
    layers: int
    hidden: int
    attention_width: int
    total: int
    trainable: int
    body: int
    linear: int
    adapter: int
    saved_bytes_per_token: float | None


def measure(
    config: PreTrainedConfig, lora: Mapping[str, Any] | None, *, activations: str
) -> ModelSize:
    """Build the classifier (and its LoRA) without storage and count.

    ``activations`` is the dtype hidden states have while training (``bfloat16``, ``float32``).

    Raises:
        ModelError: transformers has no sequence classifier for the architecture, or PEFT refuses
            the LoRA options.
    """
    network = _build(config, lora, activations)
    body = _body_of(network)
    layers = int(config.num_hidden_layers)
    heads = int(config.num_attention_heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    counts = _count(network)
    return ModelSize(
        architecture=str(config.model_type),
        layers=layers,
        hidden=int(config.hidden_size),
        attention_width=layers * heads * head_size,
        body=counts["total"] - counts["adapter"] - counts["head"],
        total=counts["total"],
        trainable=counts["trainable"],
        linear=_linear_weights(body),
        adapter=counts["adapter"],
        saved_bytes_per_token=_saved_bytes_per_token(network, body),
    )


def _build(config: PreTrainedConfig, lora: Mapping[str, Any] | None, dtype: str) -> nn.Module:
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            network: nn.Module = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
                config, dtype=getattr(torch, dtype)
            )
    except ValueError as error:
        raise ModelError(
            f"transformers has no sequence classifier for architecture {config.model_type!r}; "
            "choose another model.base."
        ) from error
    return network if lora is None else _with_lora(network, lora)


def _with_lora(network: nn.Module, lora: Mapping[str, Any]) -> nn.Module:
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    head = "score" if hasattr(network, "score") else "classifier"
    extra = [name for name in lora.get("modules_to_save") or () if name != head]
    # How the adapter starts does not change its size, and some starts need the base's weights.
    options = {**lora, "modules_to_save": [head, *extra], "init_lora_weights": True}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # peft asks transformers in words that transformers has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(network, LoraConfig(task_type=TaskType.SEQ_CLS, **options))
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"lora: PEFT refuses these settings ({reason}).") from error


def _classifier(network: nn.Module) -> Any:
    from peft import PeftModel

    return network.get_base_model() if isinstance(network, PeftModel) else network


def _body_of(network: nn.Module) -> nn.Module:
    classifier = _classifier(network)
    body: nn.Module = classifier.get_submodule(classifier.base_model_prefix)
    return body


def _count(network: nn.Module) -> dict[str, int]:
    """Parameters: all, trainable, in adapters, in the head; PEFT's frozen head copy left out."""
    counts = dict.fromkeys(("total", "trainable", "adapter", "head"), 0)
    for name, parameter in network.named_parameters():
        if ".original_module." in name:
            continue
        size = parameter.numel()
        counts["total"] += size
        counts["trainable"] += size if parameter.requires_grad else 0
        counts["adapter"] += size if ".lora_" in name else 0
        counts["head"] += size if ".score." in f".{name}" or ".classifier." in f".{name}" else 0
    return counts


def _linear_weights(body: nn.Module) -> int:
    from torch import nn

    return sum(
        layer.weight.numel()
        for name, layer in body.named_modules()
        if isinstance(layer, nn.Linear) and ".lora_" not in f".{name}"
    )


def _saved_bytes_per_token(network: nn.Module, body: nn.Module) -> float | None:
    """Bytes that autograd keeps for a backward pass, per token, measured on the meta device.

    Attention keeps queries, keys, values and its output, as the fused kernels do (Dao et al.,
    2022, arXiv:2205.14135), so the amount is linear in tokens.
    """
    import torch

    owned = {_storage(parameter) for parameter in network.parameters()}
    owned |= {_storage(buffer) for buffer in network.buffers()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in owned:
            kept[_storage(tensor)] = tensor
        return tensor

    ids_1T = torch.zeros((1, SAMPLE_TOKENS), dtype=torch.long, device="meta")
    network.train()
    try:
        with (
            _fused_attention(_classifier(network)),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            body(input_ids=ids_1T, position_ids=torch.zeros_like(ids_1T), use_cache=False)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        # Architectures whose forward pass looks at values cannot run without any.
        return None
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / SAMPLE_TOKENS


def _storage(tensor: torch.Tensor) -> int:
    """Identity of the memory behind a tensor; meta tensors have no address to go by."""
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _fused_attention(classifier: Any) -> Iterator[None]:
    """Attention that keeps for backward what fused kernels keep, while the block runs."""
    from transformers import AttentionInterface

    before = classifier.config._attn_implementation
    AttentionInterface.register("plaudit_plan", _attend)
    try:
        classifier.set_attn_implementation("plaudit_plan")
        yield
    finally:
        classifier.set_attn_implementation(before)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The shapes of attention: (batch, heads, T, size) to (batch, T, heads, size)."""
    import torch

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            out = query.new_empty((*query.shape[:-1], value.shape[-1]))
            ctx.save_for_backward(query, key, value, out)
            return out

    out: torch.Tensor = Fused.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None
