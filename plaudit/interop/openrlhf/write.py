"""OpenRLHF's layout: body and head in one model, the head's name and the mean in its config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from plaudit.interop.records import Exportable, Exporter, Ids, Options, Scorer, Written
from plaudit.interop.sequence_classifier.write import padded, rendered, write_whole
from plaudit.model.checkpoint import ArtefactFacts
from plaudit.types import Affine, Comparison

# OpenRLHF's own name since 0.5.3, and transformers', so that both load the folder.
HEAD = "score"


def write(source: Exportable, folder: Path, options: Options) -> Written:
    """A merged model; ``mean`` and ``std`` where known, the bias then being part of the mean."""
    facts, notes = source.facts, []
    mean, std = -source.offset, 1.0
    if facts.reward_mean is not None and facts.reward_std:
        mean, std = facts.reward_mean - source.offset, facts.reward_std
        notes.append(
            "OpenRLHF scores as (reward - mean) / std of the evaluation rewards where its reward "
            "normalisation is on, else as the raw reward."
        )
    settings: dict[str, Any] = {"problem_type": "regression", "value_head_prefix": HEAD}
    known = (mean, std) != (0.0, 1.0)
    if known:
        settings |= {"mean": mean, "std": std}
    if source.offset:
        notes.append(
            f"The head's bias ({source.offset:.6g}) is part of the mean: without reward "
            "normalisation every score is lower by it. Order and differences are the same."
        )
    write_whole(source, folder, options, settings)
    # (raw - mean) / std, where reward = raw + offset.
    gives = Affine(scale=1.0 / std, offset=-(mean + source.offset) / std) if known else Affine()
    return Written(gives=gives, notes=tuple(notes))


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

    def score(ids_R: Sequence[Ids]) -> list[float]:
        scores: list[float] = []
        for ids_RT, mask_RT in padded(ids_R, config.pad_token_id, side="left"):
            positions_RT = (mask_RT.cumsum(-1) - 1).masked_fill(mask_RT == 0, 1)
            with torch.no_grad():
                hidden_RTD = getattr(network, network.base_model_prefix)(
                    ids_RT, attention_mask=mask_RT, position_ids=positions_RT
                ).last_hidden_state
                values_R = head(hidden_RTD[:, -1]).squeeze(-1)
            scores += ((values_R.double() - mean) / std).tolist()
        return scores

    return score


def encode(
    tokenizer: PreTrainedTokenizerBase, facts: ArtefactFacts, comparison: Comparison
) -> list[list[int]]:
    """Its reward data: trailing newlines off, the end token behind a space unless it is there."""
    end = tokenizer.eos_token or ""
    rows = []
    for text in rendered(tokenizer, facts, comparison):
        stripped = text.rstrip("\n")
        closed = stripped if stripped.endswith(end) else f"{stripped} {end}"
        ids = [int(i) for i in tokenizer(closed, add_special_tokens=False).input_ids]
        rows.append([*ids[:-1], int(tokenizer.eos_token_id or 0)] if end else ids)
    return rows


EXPORTER = Exporter(
    usage=(
        "As OpenRLHF's reward model, give it this folder; `value_head_prefix` is in `config.json`. "
        "Plain transformers loads it too:"
    ),
    help="a whole model with its head's name and normalisation for OpenRLHF",
    layout="whole",
    write=write,
    read=read,
    encode=encode,
    exact_text=False,
    decoders_only=True,
)
