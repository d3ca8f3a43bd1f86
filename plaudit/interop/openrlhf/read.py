"""OpenRLHF's reward models: a body and ``<value_head_prefix>.weight``, mean and std in config.json.

Left padding does not matter: each conversation is scored at its own last token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from plaudit.errors import ModelError
from plaudit.interop.records import Format, Opened, Request
from plaudit.interop.sequence_classifier.adapters import one_row, read_adapter
from plaudit.interop.sequence_classifier.read import open_adapter, why_no_head
from plaudit.interop.shared import (
    WEIGHTS,
    Contents,
    build_classifier,
    choose_output,
    make_facts,
    own_tokenizer,
    place_of,
    read_tensors,
    spare_pad,
)
from plaudit.model.checkpoint import ArtefactFacts, Output
from plaudit.tokens.rendering import Rendered, Renderer, Voice, conversation_text
from plaudit.types import Affine, Comparison, Rendering, Turns

PREFIXES = ("value_head", "score")
"""The head's name until 0.5.2 and since; config.json names it only since."""
SMALLEST_STD = 1e-8


def is_openrlhf(contents: Contents) -> bool:
    """Its own key in config.json, or the head's first name among the weights."""
    named = "value_head_prefix" in (contents.config or {})
    return named or "value_head.weight" in contents.names


def open_openrlhf(contents: Contents, request: Request) -> Opened:
    """Read a whole model; an adapter is one only where its head was not lost.

    Raises:
        ModelError: no head under any of its names.
    """
    assert contents.config is not None
    if contents.adapter is not None:
        adapter = read_adapter(contents)
        if adapter.head_LD is None:
            raise ModelError(why_no_head(request, adapter))
        opened = open_adapter(contents, request)
        # Its base and head are any adapter's; text, scored token and normalisation are not.
        facts = _facts(contents, request, opened.tokenizer, opened.facts.output, adapter.notes)
        return replace(opened, facts=facts)
    prefixes = (str(contents.config.get("value_head_prefix", "")), *PREFIXES)
    name = next((f"{p}.weight" for p in prefixes if f"{p}.weight" in contents.names), None)
    if name is None:
        raise ModelError(
            f"{request.source} holds no head ({' or '.join(PREFIXES)}.weight), so its rewards are "
            "lost; fetch all its files."
        )
    head_LD = read_tensors(contents.folder, WEIGHTS, name)[name]
    row, output = choose_output(head_LD.shape[0], {}, request)
    place = place_of(contents, request)
    tokenizer = own_tokenizer(contents, place, request)
    spare_pad(tokenizer, request.source)
    facts = _facts(contents, request, tokenizer, output, ())

    def build(dtype: torch.dtype) -> nn.Module:
        return build_classifier(place, request, tokenizer, dtype, one_row(head_LD, row)).network

    return Opened(facts=facts, tokenizer=tokenizer, build=build)


def _facts(
    contents: Contents,
    request: Request,
    tokenizer: PreTrainedTokenizerBase,
    output: Output | None,
    notes: Sequence[str],
) -> ArtefactFacts:
    affine, said = _normalisation(contents, request)
    said.append(
        "texts end as OpenRLHF's reward data do: newlines at the end are cut, and the end token "
        "follows a space unless it is there"
    )
    return make_facts(
        contents,
        request,
        place_of(contents, request),
        tokenizer,
        origin="OpenRLHF",
        era=None,
        notes=[*notes, *said],
        rendering=Rendering(kind="openrlhf"),
        affine=affine,
        output=output,
    )


def _normalisation(contents: Contents, request: Request) -> tuple[Affine, list[str]]:
    """``(raw - mean) / std`` where config.json has both: they are in no weights file."""
    assert contents.config is not None
    mean, std = contents.config.get("mean"), contents.config.get("std")
    if not isinstance(mean, (int, float)) or not isinstance(std, (int, float)):
        return Affine(), []
    if not request.choices.normalize:
        return Affine(), [f"its mean {mean:.6g} and std {std:.6g} are left out, as asked"]
    if not math.isfinite(mean) or not math.isfinite(std):
        return Affine(), [f"its mean {mean} and std {std} are no numbers and are left out"]
    std = max(float(std), SMALLEST_STD)
    note = (
        f"rewards are normalised by the mean {mean:.6g} and std {std:.6g} of config.json "
        "(--no-normalize leaves that out)"
    )
    return Affine(scale=1.0 / std, offset=-float(mean) / std), [note]


def by_openrlhf(voice: Voice, comparison: Comparison, response: Turns) -> Rendered:
    """No newline at the end, then the end token unless it is there, a space before it.

    The rule of OpenRLHF's reward data (``openrlhf/datasets/reward_dataset.py``); it adds no other
    special token.
    """
    text = conversation_text(voice, comparison, response).rstrip("\n")
    end = voice.tokenizer.eos_token
    closed = end is None or text.endswith(str(end))
    return Rendered(pieces=(text if closed else f"{text} {end}",), ending="exact")


RENDERER = Renderer(render=by_openrlhf, closes_text=True)
FORMAT = Format(name="OpenRLHF", recognises=is_openrlhf, opens=open_openrlhf)
