"""Sequence classifiers of transformers, whole and as PEFT adapters: TRL, RLHFlow, Skywork, NeMo.

Adapters may be of any PEFT release; their head becomes the classifier's.

Shapes: L outputs of a head, D hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from plaudit.errors import ModelError
from plaudit.interop.formats import (
    ADAPTER,
    WEIGHTS,
    Contents,
    Format,
    OpenedModel,
    read_tensors,
)
from plaudit.interop.reading import (
    Body,
    build_classifier,
    choose_output,
    classifier_reading,
    imported_metadata,
    open_body,
    with_head,
)
from plaudit.interop.sequence_classifier.write import PREFIX
from plaudit.model.load import (
    LIBRARY_ERRORS,
    LoadedBase,
    first_line,
    head_modules,
    output_layer,
    silence_load_messages,
)
from plaudit.types import RewardTransform

LINEAR_HEADS = ("score", "value_head")
"""Names under which decoders keep a head of one linear layer: transformers', OpenRLHF's first."""
VOCABULARY_LAYERS = ("lm_head", "embed_out")
HEADS = ("score.weight", "regression_layer.weight")
"""A decoder's head: transformers', and that of ArmoRM's many objectives, read without its code."""


# ---- adapters -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter apart from its head. ``head_LD`` is None where the file holds none.

    ``head_change_LD`` is what LoRA adds to the head. An encoder's head has layers and biases, and
    is in ``body``.
    """

    config: Mapping[str, Any]
    body: Mapping[str, Tensor]
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
            f"{contents.folder} has adapter_config.json but neither adapter_model.safetensors nor"
            " adapter_model.bin; the weights were not saved."
        )
    body: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    unread = 0
    for prefixed, tensor in tensors.items():
        name = prefixed.removeprefix(PREFIX)
        first, _, rest = name.partition(".")
        if first in LINEAR_HEADS:
            head[rest] = tensor
        elif first in VOCABULARY_LAYERS:
            unread += 1
        else:
            body[name] = tensor
    notes = []
    if unread:
        notes.append(
            f"{unread} tensors of the language-model head are ignored, because rewards do not"
            " depend on them"
        )
    if "base_layer.weight" in head:
        notes.append(
            "PEFT added LoRA to the saved head (0.11 with all-linear); the head is the saved"
            " weights plus this LoRA update"
        )
    return Adapter(
        config=contents.adapter,
        body=body,
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
            f"The head in {contents.folder} has a DoRA adapter, which cannot be computed without"
            " the initial head; merge the adapter with the tool that made it."
        )
    rank = head["lora_A.weight"].shape[0]
    # PEFT's own rule of matching names.
    for_head = (
        value
        for key, value in (config.get("alpha_pattern") or {}).items()
        if any(re.match(rf"(.*\.)?({key})$", name) for name in LINEAR_HEADS)
    )
    alpha = float(next(for_head, config.get("lora_alpha", 8)))
    scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    return scaling * (head["lora_B.weight"].float() @ head["lora_A.weight"].float())


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
        tensors = {f"{PREFIX}{name}": tensor for name, tensor in adapter.body.items()}
        # A head is there already, unless it is one that no file held.
        rest = set(current) - set(tensors)
        absent = sorted(n for n in rest if not n.startswith(heads) or n in random)
        extra = sorted(set(tensors) - set(current))
        if absent or extra:
            problem = f"lacks {absent[0]}" if absent else f"has the unexpected tensor {extra[0]}"
            raise ModelError(
                f"The adapter in {source} does not fit its base: it {problem} ({len(absent)}"
                f" missing, {len(extra)} unexpected); set the right base with --base."
            )
        set_peft_model_state_dict(model, {**current, **tensors})
    except LIBRARY_ERRORS as error:
        raise ModelError(
            f"The adapter in {source} does not fit its base ({first_line(error)}); set the base"
            " it was trained on with --base."
        ) from None
    assert isinstance(model, nn.Module)
    return model


def _config(network: nn.Module, adapter: Adapter, source: str) -> Any:
    """The adapter's settings for the installed PEFT, on a classifier.

    Older releases lack keys, newer ones have more; one that is set and not known is an error.
    """
    from peft import TaskType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = str(adapter.config.get("peft_type", "LORA"))
    config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)  # type: ignore[call-overload]
    if config_class is None:
        raise ModelError(
            f"{source} is an adapter of the type {kind}, which the installed PEFT does not"
            " support; upgrade peft."
        )
    known = {field.name for field in fields(config_class)}
    unknown = sorted(k for k, v in adapter.config.items() if k not in known and v)
    if unknown:
        raise ModelError(
            f"{source} was written by another release of PEFT and sets {', '.join(unknown)},"
            " which the installed release does not support; upgrade peft."
        )
    heads = head_modules(network)
    outside = {*heads, *LINEAR_HEADS, *VOCABULARY_LAYERS, "classifier"}
    settings = {k: v for k, v in adapter.config.items() if k in known and k != "auto_mapping"}
    saved = [name for name in settings.get("modules_to_save") or () if name not in outside]
    # PEFT saves embeddings whole when a vocabulary grew.
    whole = (".embed_tokens.weight", ".wte.weight", ".embed_in.weight")
    embeddings = {n.split(".")[-2] for n in adapter.body if n.endswith(whole)}
    targets = settings.get("target_modules")
    if isinstance(targets, (list, tuple)):
        targets = [n for n in targets if n.rpartition(".")[2] not in outside and n not in outside]
    return config_class(
        **{
            **settings,
            "task_type": TaskType.SEQ_CLS,
            "inference_mode": False,
            # Where the base is now; PEFT warns of any other name.
            "base_model_name_or_path": network.name_or_path,
            "target_modules": targets,
            "modules_to_save": list(dict.fromkeys([*heads, *saved, *sorted(embeddings)])),
        }
    )


def one_row(head_LD: Tensor, row: int) -> Tensor:
    """``weight_1D`` of one output."""
    return head_LD[row : row + 1].detach().to(torch.float32).clone()


def is_whole(contents: Contents) -> bool:
    """A model with a head among its weights, for any architecture in its configuration."""
    encoder = any(name.startswith("classifier.") for name in contents.names)
    return contents.config is not None and (encoder or any(n in contents.names for n in HEADS))


def open_adapter(contents: Contents) -> OpenedModel:
    """A PEFT adapter on a sequence classifier, of any task type and release."""
    adapter = read_adapter(contents)
    body = open_body(contents)
    tokenizer = body.tokenizer
    # TRL gives the model its tokenizer's padding token, the end token where there is none.
    known = (tokenizer.pad_token_id, body.config.pad_token_id, tokenizer.eos_token_id)
    pad_id = next((number for number in known if isinstance(number, int)), None)
    version = contents.options.source_version or contents.versions.get("transformers")
    scored_token, notes = classifier_reading(tokenizer, pad_id, version)
    # The matrices of an encoder's head, the last of which gives the reward.
    encoder_head = [
        tensor
        for name, tensor in adapter.body.items()
        if name.startswith("classifier.") and tensor.ndim == 2
    ]
    heads = [adapter.head_LD, adapter.head_change_LD, *encoder_head[-1:]]
    rows = next((int(head.shape[0]) for head in heads if head is not None), 1)
    row, output = choose_output(rows, contents)
    metadata = imported_metadata(
        body, "sequence classifier adapter", version, [*notes, *adapter.notes]
    )

    def build(dtype: torch.dtype) -> nn.Module:
        loaded = build_classifier(body, dtype, None)
        name, layer = output_layer(loaded.network)
        if name == "score" or not encoder_head:
            # Saved whole, or the base's own, plus what LoRA adds.
            head_LD = adapter.head_LD
            if head_LD is None and not loaded.fresh_head:
                head_LD = layer.weight.detach()
            if head_LD is None:
                raise ModelError(why_no_head(contents, adapter))
            if adapter.head_change_LD is not None:
                head_LD = head_LD.float() + adapter.head_change_LD
            loaded = with_head(loaded, one_row(head_LD, row), contents.source)
        return attach(loaded, adapter, contents.source)

    metadata = replace(metadata, scored_token=scored_token, output=output)
    return OpenedModel(metadata=metadata, tokenizer=tokenizer, build=build)


def why_no_head(contents: Contents, adapter: Adapter) -> str:
    """Why an adapter without a head cannot score, by what its files show."""
    if adapter.head_change_LD is not None:
        return (
            f"{contents.source} has LoRA weights for the reward head but not the head itself,"
            " whose random initial values were not saved (OpenRLHF saves LoRA this way). The"
            " rewards cannot be recovered: train again, and merge before saving."
        )
    return (
        f"{contents.source} has no reward head, and neither has its base: it was saved without"
        " modules_to_save=['score'], or LLaMA-Factory's value_head file is missing. Save it"
        " again, or download all of its files."
    )


def open_whole(contents: Contents) -> OpenedModel:
    """A whole sequence classifier; its configuration need not say that it is one (NeMo's does not).

    A head with several outputs keeps the chosen one.
    """
    assert contents.config is not None
    body = open_body(contents)
    name = next((name for name in HEADS if name in contents.names), None)
    version = contents.options.source_version or contents.versions.get("transformers")
    scored_token, notes = classifier_reading(body.tokenizer, body.config.pad_token_id, version)
    named = contents.config.get("architectures")
    architectures = named if isinstance(named, list) else []
    if not any("SequenceClassification" in str(a) for a in architectures):
        notes.append(
            f"config.json names {', '.join(map(str, architectures)) or 'no architecture'}; it is"
            f" loaded as a sequence classifier because its weights have {name or 'a classifier'}"
        )
    if name is None:
        return _open_encoder(body, version, notes)
    head_LD = read_tensors(contents.folder, WEIGHTS, name)[name]
    row, output = choose_output(head_LD.shape[0], contents)
    notes += _unread(contents, body.config, name)
    bias = _bias(contents, name, row)
    if bias:
        notes.append(f"its head has a bias ({bias:.6g}), which is added to every reward")
    metadata = replace(
        imported_metadata(body, "sequence classifier", version, notes),
        scored_token=scored_token,
        reward_transform=RewardTransform(offset=bias),
        output=output,
    )
    return OpenedModel(
        metadata=metadata,
        tokenizer=body.tokenizer,
        build=lambda dtype: build_classifier(body, dtype, one_row(head_LD, row)).network,
    )


def _unread(contents: Contents, config: Any, head: str) -> list[str]:
    """What lies beside body and head, such as the gate of ArmoRM's objectives, is counted."""
    network: Any = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    if network is None:
        return []
    read = {network.base_model_prefix, head.partition(".")[0]}
    tops = [name.partition(".")[0] for name in contents.names]
    extra = sorted(set(tops) - read)
    if network.base_model_prefix not in tops or not extra:
        return []
    count = sum(top in extra for top in tops)
    return [f"{count} tensors beside base and head are ignored ({', '.join(extra)})"]


def _bias(contents: Contents, name: str, row: int) -> float:
    bias_name = f"{name.removesuffix('weight')}bias"
    if bias_name not in contents.names:
        return 0.0
    return float(read_tensors(contents.folder, WEIGHTS, bias_name)[bias_name][row])


def _open_encoder(body: Body, version: str | None, notes: Sequence[str]) -> OpenedModel:
    """An encoder with its own classification head. It reads its first token, not its last."""
    contents = body.contents
    heads = read_tensors(contents.folder, WEIGHTS, "classifier.")
    weights = [name for name, tensor in heads.items() if tensor.ndim == 2]
    # The head's last linear layer is the matrix with the fewest rows.
    weight = min(weights, key=lambda name: heads[name].shape[0])
    last = [weight, *(n for n in heads if n == f"{weight.removesuffix('weight')}bias")]
    row, output = choose_output(heads[last[0]].shape[0], contents)
    metadata = replace(
        imported_metadata(body, "sequence classifier", version, notes), output=output
    )

    def build(dtype: torch.dtype) -> nn.Module:
        loaded = build_classifier(body, dtype, None)
        name, layer = output_layer(loaded.network)
        absent = sorted(loaded.missing - {f"{name}.weight", f"{name}.bias"})
        if absent:
            raise ModelError(
                f"{contents.source} has no {absent[0]}, which a sequence classifier needs for its"
                " reward; download all of its files, or load it as another kind of model."
            )
        with torch.no_grad():
            for name, parameter in zip(last, (layer.weight, layer.bias), strict=False):
                parameter.copy_(heads[name][row : row + 1].float())
        return loaded.network

    return OpenedModel(metadata=metadata, tokenizer=body.tokenizer, build=build)


ADAPTER_FORMAT = Format(
    name="sequence classifier adapter",
    # Any PEFT adapter that no other row claims: it must hold a head, or its base must.
    recognises=lambda contents: contents.adapter is not None,
    open=open_adapter,
)
WHOLE_FORMAT = Format(name="sequence classifier", recognises=is_whole, open=open_whole)
