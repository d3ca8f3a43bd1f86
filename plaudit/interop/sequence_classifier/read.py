"""Sequence classifiers of transformers, whole and as PEFT adapters: TRL, RLHFlow, Skywork, NeMo.

Shapes: L outputs of a head, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from plaudit.errors import ModelError
from plaudit.interop.records import Format, Opened, Request
from plaudit.interop.sequence_classifier.adapters import (
    Adapter,
    attach,
    effective_head,
    one_row,
    read_adapter,
)
from plaudit.interop.shared import (
    WEIGHTS,
    Contents,
    Place,
    build_classifier,
    checked_config,
    choose_output,
    classifier_reading,
    make_facts,
    own_tokenizer,
    place_of,
    read_tensors,
    spare_pad,
    with_head,
)
from plaudit.model.load import output_layer
from plaudit.types import Affine

HEADS = ("score.weight", "regression_layer.weight")
"""A decoder's head: transformers', and that of ArmoRM's many objectives, read without its code."""


def is_adapter(contents: Contents) -> bool:
    """Any PEFT adapter that no other row claims: it must hold a head, or its base must."""
    return contents.adapter is not None


def is_whole(contents: Contents) -> bool:
    """A model with a head among its weights, whatever its configuration calls it."""
    encoder = any(name.startswith("classifier.") for name in contents.names)
    return contents.config is not None and (encoder or any(n in contents.names for n in HEADS))


def open_adapter(contents: Contents, request: Request) -> Opened:
    """A PEFT adapter on a sequence classifier, of any task type and release."""
    adapter = read_adapter(contents)
    place = place_of(contents, request)
    config = checked_config(place, request)
    tokenizer = own_tokenizer(contents, place, request)
    # TRL gives the model its tokenizer's padding token, the end token where there is none.
    pad_id = next(
        (
            number
            for number in (tokenizer.pad_token_id, config.pad_token_id, tokenizer.eos_token_id)
            if isinstance(number, int)
        ),
        None,
    )
    era = request.choices.era or contents.versions.get("transformers")
    reading, notes = classifier_reading(tokenizer, pad_id, era)
    row, output = choose_output(_rows(adapter), {}, request)
    spare_pad(tokenizer, request.source)
    facts = make_facts(
        contents,
        request,
        place,
        tokenizer,
        origin="sequence classifier adapter",
        era=era,
        notes=[*notes, *adapter.notes],
        reading=reading,
        output=output,
    )

    def build(dtype: torch.dtype) -> nn.Module:
        loaded = build_classifier(place, request, tokenizer, dtype, None)
        name, layer = output_layer(loaded.network)
        if name == "score" or not adapter.layers:
            own_LD = None if loaded.fresh_head else layer.weight.detach()
            head_LD = effective_head(adapter, own_LD)
            if head_LD is None:
                raise ModelError(why_no_head(request, adapter))
            loaded = with_head(loaded, one_row(head_LD, row), request.source)
        return attach(loaded, adapter, request.source)

    return Opened(facts=facts, tokenizer=tokenizer, build=build)


def why_no_head(request: Request, adapter: Adapter) -> str:
    """Why an adapter without a head cannot score, by what its files show."""
    if adapter.head_change_LD is not None:
        return (
            f"{request.source} holds LoRA for its head but not the head itself, which was random "
            "when training started and is lost (OpenRLHF saves LoRA this way); its rewards cannot "
            "be had back: train again, merging before saving."
        )
    return (
        f"{request.source} holds no head, and neither does its base, so its rewards are lost: it "
        "was saved without modules_to_save=['score'] (or, by LLaMA-Factory, its value_head file "
        "is not here); save it again, or fetch all its files."
    )


def _rows(adapter: Adapter) -> int:
    found = adapter.head_LD if adapter.head_LD is not None else adapter.head_change_LD
    if found is None and adapter.layers:
        weights = [tensor for tensor in adapter.layers.values() if tensor.ndim == 2]
        found = weights[-1]
    return 1 if found is None else int(found.shape[0])


def open_whole(contents: Contents, request: Request) -> Opened:
    """A whole sequence classifier; its configuration need not say that it is one (NeMo's does not).

    A head with several outputs keeps the chosen one.
    """
    assert contents.config is not None
    place = place_of(contents, request)
    config = checked_config(place, request)
    tokenizer = own_tokenizer(contents, place, request)
    name = next((name for name in HEADS if name in contents.names), None)
    labels = contents.config.get("id2label") or {}
    era = request.choices.era or contents.versions.get("transformers")
    reading, notes = classifier_reading(tokenizer, config.pad_token_id, era)
    named = contents.config.get("architectures")
    architectures = named if isinstance(named, list) else []
    if not any("SequenceClassification" in str(a) for a in architectures):
        notes.append(
            f"config.json names {', '.join(map(str, architectures)) or 'no architecture'}; it is "
            f"read as a sequence classifier because its weights hold {name or 'a classifier'}"
        )
    spare_pad(tokenizer, request.source)
    if name is None:
        return _open_encoder(contents, request, place, tokenizer, era, notes)
    head_LD = read_tensors(contents.folder, WEIGHTS, name)[name]
    row, output = choose_output(head_LD.shape[0], labels, request)
    notes += _unread(contents, config, name)
    bias = _bias(contents, name, row)
    if bias:
        notes.append(f"its head has a bias ({bias:.6g}), which is added to every reward")
    facts = make_facts(
        contents,
        request,
        place,
        tokenizer,
        origin="sequence classifier",
        era=era,
        notes=notes,
        reading=reading,
        output=output,
        affine=Affine(offset=bias),
    )

    def build(dtype: torch.dtype) -> nn.Module:
        return build_classifier(place, request, tokenizer, dtype, one_row(head_LD, row)).network

    return Opened(facts=facts, tokenizer=tokenizer, build=build)


def _unread(contents: Contents, config: Any, head: str) -> list[str]:
    """What lies beside body and head, such as the gate of ArmoRM's objectives, is counted."""
    try:
        network: Any = AutoModelForSequenceClassification._model_mapping[type(config)]
    except KeyError:
        return []
    read = {network.base_model_prefix, head.partition(".")[0]}
    tops = [name.partition(".")[0] for name in contents.names]
    extra = sorted(set(tops) - read)
    if network.base_model_prefix not in tops or not extra:
        return []
    count = sum(top in extra for top in tops)
    return [f"{count} tensors beside body and head are not used ({', '.join(extra)})"]


def _bias(contents: Contents, name: str, row: int) -> float:
    bias_name = f"{name.removesuffix('weight')}bias"
    if bias_name not in contents.names:
        return 0.0
    return float(read_tensors(contents.folder, WEIGHTS, bias_name)[bias_name][row])


def _open_encoder(
    contents: Contents,
    request: Request,
    place: Place,
    tokenizer: Any,
    era: str | None,
    notes: list[str],
) -> Opened:
    """An encoder with its own classification head. It reads its first token, not its last."""
    heads = read_tensors(contents.folder, WEIGHTS, "classifier.")
    last = list(_last_layer(heads))
    labels = (contents.config or {}).get("id2label") or {}
    row, output = choose_output(heads[last[0]].shape[0], labels, request)
    facts = make_facts(
        contents,
        request,
        place,
        tokenizer,
        origin="sequence classifier",
        era=era,
        notes=notes,
        output=output,
    )

    def build(dtype: torch.dtype) -> nn.Module:
        loaded = build_classifier(place, request, tokenizer, dtype, None)
        name, layer = output_layer(loaded.network)
        absent = sorted(loaded.missing - {f"{name}.weight", f"{name}.bias"})
        if absent:
            raise ModelError(
                f"{request.source} holds no {absent[0]}, which a sequence classifier computes its "
                "reward with; fetch all its files, or it is a model of another kind."
            )
        with torch.no_grad():
            for name, parameter in zip(last, (layer.weight, layer.bias), strict=False):
                parameter.copy_(heads[name][row : row + 1].float())
        return loaded.network

    return Opened(facts=facts, tokenizer=tokenizer, build=build)


def _last_layer(heads: Mapping[str, Tensor]) -> list[str]:
    """Weight and bias of the head's last linear layer: the matrix with the fewest rows."""
    weights = [name for name, tensor in heads.items() if tensor.ndim == 2]
    weight = min(weights, key=lambda name: heads[name].shape[0])
    return [weight, *(n for n in heads if n == f"{weight.removesuffix('weight')}bias")]


ADAPTER_FORMAT = Format(
    name="sequence classifier adapter", recognises=is_adapter, opens=open_adapter
)
WHOLE_FORMAT = Format(name="sequence classifier", recognises=is_whole, opens=open_whole)
