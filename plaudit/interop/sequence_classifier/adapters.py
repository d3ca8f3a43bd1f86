"""PEFT adapters of any release on a sequence classifier's body, their head made the classifier's.

Shapes: L outputs of a head, D hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from plaudit.errors import ModelError
from plaudit.interop.shared import ADAPTER, Contents, read_tensors
from plaudit.model.load import (
    LIBRARY_ERRORS,
    LoadedBase,
    first_line,
    head_modules,
    silence_load_messages,
)

PREFIX = "base_model.model."
LINEAR_HEADS = ("score", "value_head")
"""Names under which decoders keep a head of one linear layer: transformers', OpenRLHF's first."""
VOCABULARY_LAYERS = ("lm_head", "embed_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter apart from its head. ``head_LD`` is None where the file holds none.

    ``head_change_LD`` is what LoRA adds to the head. An encoder's head has layers and biases: those
    are ``layers``, by name.
    """

    config: Mapping[str, Any]
    body: Mapping[str, Tensor]
    layers: Mapping[str, Tensor]
    head_LD: Tensor | None
    head_change_LD: Tensor | None
    notes: tuple[str, ...] = ()


def read_adapter(contents: Contents) -> Adapter:
    """Read an adapter's tensors and tell body and head apart.

    Raises:
        ModelError: no tensors, or a head adapted in a way that cannot be worked out.
    """
    assert contents.adapter is not None
    tensors = read_tensors(contents.folder, ADAPTER)
    if not tensors:
        raise ModelError(
            f"{contents.folder} has an adapter_config.json but no adapter_model.safetensors or "
            ".bin; the weights were not saved."
        )
    named = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    body: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    layers: dict[str, Tensor] = {}
    unread = 0
    for name, tensor in named.items():
        first, _, rest = name.partition(".")
        if first in LINEAR_HEADS:
            head[rest] = tensor
        elif first == "classifier":
            layers[name] = tensor
        elif first in VOCABULARY_LAYERS:
            unread += 1
        else:
            body[name] = tensor
    notes = []
    if unread:
        notes.append(f"{unread} tensors of the vocabulary layer are not used: no reward reads it")
    if "base_layer.weight" in head:
        notes.append(
            "PEFT wrapped its saved head in LoRA (0.11 with all-linear); the head is the saved "
            "weights plus that LoRA's change"
        )
    return Adapter(
        config=contents.adapter,
        body=body,
        layers=layers,
        head_LD=head.get("base_layer.weight", head.get("weight")),
        head_change_LD=_change(contents, head),
        notes=tuple(notes),
    )


def _change(contents: Contents, head: Mapping[str, Tensor]) -> Tensor | None:
    """``scaling * B @ A`` of a LoRA over the head.

    PEFT 0.11 with SEQ_CLS and all-linear saves the trained copy of the wrapped head twice, as
    ``lora_A`` and ``modules_to_save.lora_A``; ``original_module`` is the untrained one.
    """
    assert contents.adapter is not None
    if "lora_A.weight" not in head or "lora_B.weight" not in head:
        return None
    config = contents.adapter
    if config.get("use_dora"):
        raise ModelError(
            f"The head in {contents.folder} is adapted with DoRA, which cannot be worked out "
            "without the head it started from; merge the adapter with the tool that made it."
        )
    rank = head["lora_A.weight"].shape[0]
    alpha = float(_of_head(config.get("alpha_pattern"), config.get("lora_alpha", 8)))
    scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    return scaling * (head["lora_B.weight"].float() @ head["lora_A.weight"].float())


def _of_head(pattern: Mapping[str, Any] | None, default: Any) -> Any:
    """PEFT's per-layer value for the head, by its own rule of matching names."""
    for key, value in (pattern or {}).items():
        if any(re.match(rf"(.*\.)?({key})$", name) for name in LINEAR_HEADS):
            return value
    return default


def attach(loaded: LoadedBase, adapter: Adapter, source: str) -> nn.Module:
    """The classifier with the adapter on it, the head among what is trained and saved whole.

    The classifier already has the effective head of a decoder. The adapter of a language model
    fits a classifier's body: the names of their layers are the same.

    Raises:
        ModelError: the adapter does not fit the base, or needs a newer PEFT.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    network = loaded.network
    heads = tuple(f"{PREFIX}{name}." for name in head_modules(network))
    random = {f"{PREFIX}{name}" for name in loaded.missing}
    try:
        with silence_load_messages():
            model = get_peft_model(network, _config(network, adapter, source))
        current = get_peft_model_state_dict(model, save_embedding_layers=False)
        given = {f"{PREFIX}{name}": tensor for name, tensor in adapter.body.items()}
        given |= {f"{PREFIX}{name}": tensor for name, tensor in adapter.layers.items()}
        # A head is there already, unless it is one that no file held.
        left = set(current) - set(given)
        absent = sorted(n for n in left if not n.startswith(heads) or n in random)
        extra = sorted(set(given) - set(current))
        if absent or extra:
            problem = f"lacks {absent[0]}" if absent else f"holds {extra[0]}, which has no place"
            raise ModelError(
                f"The adapter in {source} does not fit its base: it {problem} "
                f"({len(absent)} missing, {len(extra)} too many); name its own base with --base."
            )
        set_peft_model_state_dict(model, {**current, **given})
    except LIBRARY_ERRORS as error:
        raise ModelError(
            f"The adapter in {source} does not fit its base ({first_line(error)}); name the base "
            "it was trained on with --base."
        ) from None
    assert isinstance(model, nn.Module)
    return model


def _config(network: nn.Module, adapter: Adapter, source: str) -> Any:
    """The adapter's settings for the installed PEFT, on a classifier.

    Older releases lack keys, newer ones have more; one that is set and not known is refused.
    """
    from peft import TaskType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = str(adapter.config.get("peft_type", "LORA"))
    try:
        config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind]  # type: ignore[index]
    except KeyError:
        raise ModelError(
            f"{source} is an adapter of the kind {kind}, which the installed PEFT does not know; "
            "upgrade peft."
        ) from None
    known = {field.name for field in fields(config_class)}
    unknown = sorted(k for k, v in adapter.config.items() if k not in known and v)
    if unknown:
        raise ModelError(
            f"{source} was written by another PEFT and sets {', '.join(unknown)}, which the "
            "installed one does not know; upgrade peft."
        )
    heads = head_modules(network)
    outside = {*heads, *LINEAR_HEADS, *VOCABULARY_LAYERS, "classifier"}
    given = {k: v for k, v in adapter.config.items() if k in known and k != "auto_mapping"}
    saved = [name for name in given.get("modules_to_save") or () if name not in outside]
    embeddings = {n.rpartition(".")[0].rpartition(".")[2] for n in adapter.body if _whole(n)}
    targets = given.get("target_modules")
    if isinstance(targets, (list, tuple)):
        targets = [n for n in targets if n.rpartition(".")[2] not in outside and n not in outside]
    return config_class(
        **{
            **given,
            "task_type": TaskType.SEQ_CLS,
            "inference_mode": False,
            # Where the base is now; PEFT warns of any other name.
            "base_model_name_or_path": network.name_or_path,
            "target_modules": targets,
            "modules_to_save": list(dict.fromkeys([*heads, *saved, *sorted(embeddings)])),
        }
    )


def _whole(name: str) -> bool:
    """Whether these are embeddings that PEFT saved whole, as it does when a vocabulary grew."""
    return name.endswith((".embed_tokens.weight", ".wte.weight", ".embed_in.weight"))


def effective_head(adapter: Adapter, own_LD: Tensor | None) -> Tensor | None:
    """The head as it scored: saved whole, or the base's own, plus what LoRA adds."""
    head_LD = adapter.head_LD if adapter.head_LD is not None else own_LD
    if head_LD is None or adapter.head_change_LD is None:
        return head_LD
    return head_LD.float() + adapter.head_change_LD


def one_row(head_LD: Tensor, row: int) -> Tensor:
    """``weight_1D`` of one output."""
    return head_LD[row : row + 1].detach().to(torch.float32).clone()
