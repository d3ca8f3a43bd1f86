"""OpenRLHF's reward models: a body and ``<value_head_prefix>.weight``, mean and std in config.json.

Left padding does not matter: each conversation is scored at its own last token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from plaudit.errors import ModelError
from plaudit.interop.formats import (
    WEIGHTS,
    Contents,
    Exportable,
    Exporter,
    Format,
    OpenedModel,
    Scorer,
    WriteOptions,
    WriteResult,
    read_tensors,
)
from plaudit.interop.reading import (
    Body,
    build_classifier,
    choose_output,
    imported_metadata,
    open_body,
)
from plaudit.interop.sequence_classifier.read import (
    one_row,
    open_adapter,
    read_adapter,
    why_no_head,
)
from plaudit.interop.sequence_classifier.write import rendered, scorer, write_whole
from plaudit.model.checkpoint import CheckpointMetadata, Output
from plaudit.tokens.rendering import ChatFormatter, Rendered, Renderer, conversation_text
from plaudit.types import Comparison, Rendering, RewardTransform, Turns

PREFIXES = ("value_head", "score")
"""The head's name until 0.5.2 and since; config.json names it only since."""
SMALLEST_STD = 1e-8
# OpenRLHF's own name since 0.5.3, and transformers', so that both load the folder.
HEAD = "score"


def open_openrlhf(contents: Contents) -> OpenedModel:
    """Read a whole model; an adapter is one only where its head was not lost.

    Raises:
        ModelError: no head under any of its names.
    """
    assert contents.config is not None
    if contents.adapter is not None:
        adapter = read_adapter(contents)
        if adapter.head_LD is None:
            raise ModelError(why_no_head(contents, adapter))
        model = open_adapter(contents)
        # Its base and head are any adapter's; text, scored token and normalisation are not.
        return replace(
            model, metadata=_metadata(open_body(contents), model.metadata.output, adapter.notes)
        )
    prefixes = (str(contents.config.get("value_head_prefix", "")), *PREFIXES)
    name = next((f"{p}.weight" for p in prefixes if f"{p}.weight" in contents.names), None)
    if name is None:
        raise ModelError(
            f"{contents.source} has no reward head ({' or '.join(PREFIXES)}.weight), so it cannot"
            " compute rewards; download all of its files."
        )
    head_LD = read_tensors(contents.folder, WEIGHTS, name)[name]
    row, output = choose_output(head_LD.shape[0], contents)
    body = open_body(contents)
    return OpenedModel(
        metadata=_metadata(body, output, ()),
        tokenizer=body.tokenizer,
        build=lambda dtype: build_classifier(body, dtype, one_row(head_LD, row)).network,
    )


def _metadata(body: Body, output: Output | None, notes: Sequence[str]) -> CheckpointMetadata:
    reward_transform, more = _normalisation(body.contents)
    more.append(
        "texts end as in OpenRLHF's reward data: trailing newlines are removed, and the end"
        " token is added after a space unless it is there"
    )
    metadata = imported_metadata(
        body, "OpenRLHF", None, [*notes, *more], Rendering(kind="openrlhf")
    )
    return replace(metadata, reward_transform=reward_transform, output=output)


def _normalisation(contents: Contents) -> tuple[RewardTransform, list[str]]:
    """``(raw - mean) / std`` where config.json has both: they are in no weights file."""
    assert contents.config is not None
    mean, std = contents.config.get("mean"), contents.config.get("std")
    if not isinstance(mean, (int, float)) or not isinstance(std, (int, float)):
        return RewardTransform(), []
    if not contents.options.normalize:
        return RewardTransform(), [
            f"its normalization (mean {mean:.6g}, std {std:.6g}) is off, as requested"
        ]
    if not math.isfinite(mean) or not math.isfinite(std):
        return RewardTransform(), [
            f"the mean {mean} and std {std} of its config.json are not numbers, so they are ignored"
        ]
    std = max(float(std), SMALLEST_STD)
    note = (
        f"rewards are normalized by the mean {mean:.6g} and std {std:.6g} of config.json"
        " (--no-normalize turns this off)"
    )
    return RewardTransform(scale=1.0 / std, offset=-float(mean) / std), [note]


def by_openrlhf(formatter: ChatFormatter, comparison: Comparison, response: Turns) -> Rendered:
    """No newline at the end, then the end token unless it is there, a space before it.

    The rule of OpenRLHF's reward data (``openrlhf/datasets/reward_dataset.py``); it adds no other
    special token.
    """
    text = conversation_text(formatter, comparison, response).rstrip("\n")
    end = formatter.tokenizer.eos_token
    closed = end is None or text.endswith(str(end))
    return Rendered(pieces=(text if closed else f"{text} {end}",), ending="exact")


RENDERER = Renderer(render=by_openrlhf, closes_text=True)
FORMAT = Format(
    name="OpenRLHF",
    # Its own key in config.json, or the head's first name among the weights.
    recognises=lambda contents: (
        "value_head_prefix" in (contents.config or {}) or "value_head.weight" in contents.names
    ),
    open=open_openrlhf,
)


# ---- writing ------------------------------------------------------------------------------------


def write(source: Exportable, folder: Path, options: WriteOptions) -> WriteResult:
    """A merged model; ``mean`` and ``std`` where known, the bias then being part of the mean."""
    metadata, notes = source.metadata, []
    mean, std = -source.offset, 1.0
    if metadata.reward_mean is not None and metadata.reward_std:
        mean, std = metadata.reward_mean - source.offset, metadata.reward_std
        notes.append(
            "OpenRLHF computes (reward - mean) / std with the statistics of the evaluation"
            " rewards if its reward normalization is on, else the raw reward."
        )
    settings: dict[str, Any] = {"problem_type": "regression", "value_head_prefix": HEAD}
    if (mean, std) != (0.0, 1.0):
        settings |= {"mean": mean, "std": std}
    if source.offset:
        notes.append(
            f"The bias of the head ({source.offset:.6g}) is part of the mean. Without reward"
            " normalization every score is lower by this value; order and differences stay the"
            " same."
        )
    write_whole(source, folder, options, settings)
    # (raw - mean) / std, where reward = raw + offset.
    transform = RewardTransform(scale=1.0 / std, offset=-(mean + source.offset) / std)
    return WriteResult(transform=transform, notes=tuple(notes))


def read(folder: Path, base: str) -> Scorer:
    """As OpenRLHF loads it: a class made over the body, left padding, normalisation on."""
    config = AutoConfig.from_pretrained(folder)
    body_class: Any = AutoModel._model_mapping[type(config)]

    class Reward(body_class.__base__):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            setattr(self, self.base_model_prefix, body_class(config))
            setattr(self, config.value_head_prefix, nn.Linear(config.hidden_size, 1, bias=False))
            # transformers 5 ties and initialises weights here.
            self.post_init()

    network = Reward.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    head = getattr(network, config.value_head_prefix)
    mean, std = float(getattr(config, "mean", 0.0)), float(getattr(config, "std", 1.0))

    def values(ids_RT: Tensor, mask_RT: Tensor) -> Tensor:
        positions_RT = (mask_RT.cumsum(-1) - 1).masked_fill(mask_RT == 0, 1)
        hidden_RTD = getattr(network, network.base_model_prefix)(
            ids_RT, attention_mask=mask_RT, position_ids=positions_RT
        ).last_hidden_state
        values_R: Tensor = head(hidden_RTD[:, -1]).squeeze(-1)
        return (values_R.double() - mean) / std

    return scorer(values, config.pad_token_id, side="left")


def encode(
    tokenizer: PreTrainedTokenizerBase, metadata: CheckpointMetadata, comparison: Comparison
) -> list[list[int]]:
    """Its reward data: trailing newlines off, the end token behind a space unless it is there."""
    end = tokenizer.eos_token or ""
    rows = []
    for text in rendered(tokenizer, metadata, comparison):
        stripped = text.rstrip("\n")
        closed = stripped if stripped.endswith(end) else f"{stripped} {end}"
        ids = [int(i) for i in tokenizer(closed, add_special_tokens=False).input_ids]
        rows.append([*ids[:-1], int(tokenizer.eos_token_id or 0)] if end else ids)
    return rows


EXPORTER = Exporter(
    usage=(
        "Set this folder as the reward model of OpenRLHF; `value_head_prefix` is in"
        " `config.json`. transformers loads it too:"
    ),
    help="a whole model with the head name and the normalization of OpenRLHF",
    layout="whole",
    write=write,
    read=read,
    encode=encode,
    exact_text=False,
    decoders_only=True,
)
