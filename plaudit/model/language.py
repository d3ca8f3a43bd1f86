"""The next-token loss of a base's language-model head, which a reward model leaves out.

The head stays as the base has it. The logits of a few tokens exist at one time, so that memory does
not grow with the vocabulary times the tokens.

Shapes: L predicted tokens of a batch, U rows of it that are read, V tokens of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from plaudit.errors import ModelError
from plaudit.types import Batch, PackedBatch, TokenTree, arrays_to_device

CHUNK: Final = 1024
"""Tokens whose logits exist at one time."""

_SCALED: Final = ("logit_scale", "logits_scaling", "output_multiplier_scale", "lm_head_multiplier")
"""Keys of a config that scale logits in ways that are not known here."""


@dataclass(frozen=True, slots=True)
class NextTokens:
    """Tokens to predict in a batch, and where its scored rows are.

    ``read`` are the rows of the flattened batch that are read, ascending: the scored ones and those
    that a token is predicted from. ``score_R`` and ``from_L`` are places in it.
    """

    read: tuple[int, ...]
    score_R: Tensor
    from_L: Tensor
    ids_L: Tensor
    weight_L: Tensor


def next_tokens_of(trees: Sequence[TokenTree], batch: Batch, device: torch.device) -> NextTokens:
    """The tokens of each best response, where one is better than another.

    A response begins where the conversations of a tree differ. The tokens of a tree share its
    weight.
    """
    ends: list[int] = []
    rows: list[int] = []
    ids: list[int] = []
    weights: list[float] = []
    # Packed, a tree is its prefix and then every branch; padded, it is a row for each branch.
    width = None if isinstance(batch, PackedBatch) else batch.ids_RT.shape[1]
    start = 0
    for tree in trees:
        best, prefix = _best(tree), len(tree.prefix)
        at = start + prefix
        for number, branch in enumerate(tree.branches):
            if number == best:
                # The first token of a conversation is predicted from nothing.
                unknown = prefix == 0
                before = (start if width is None else at - prefix) + prefix - 1
                froms = [before, *range(at, at + len(branch) - 1)][unknown:]
                rows += froms
                ids += branch[unknown:].tolist()
                weights += [tree.weight / max(len(froms), 1)] * len(froms)
            ends.append(at + len(branch) - 1)
            at += len(branch) if width is None else width
        start = at if width is None else at - prefix
    read_U = np.union1d(np.asarray(ends, np.int64), np.asarray(rows, np.int64))
    score_R, from_L, ids_L, weight_L = arrays_to_device(
        [
            np.searchsorted(read_U, ends).astype(np.int64),
            np.searchsorted(read_U, rows).astype(np.int64),
            np.asarray(ids, np.int64),
            np.asarray(weights, np.float32),
        ],
        device,
    )
    return NextTokens(tuple(read_U.tolist()), score_R, from_L, ids_L, weight_L)


def _best(tree: TokenTree) -> int | None:
    """The number of the best response; None where no response is better than another."""
    known = [grade for grade in tree.grades if grade == grade]
    return tree.grades.index(max(known)) if len(set(known)) > 1 else None


def next_token_loss(
    hidden_LD: Tensor, weight_VD: Tensor, tokens: NextTokens, softcap: float | None = None
) -> Tensor:
    """The sum of ``weight_L`` times the negative log-likelihood of each token; fp32.

    The logits of a chunk are computed again in the backward pass.
    """

    def loss(hidden_CD: Tensor, ids_C: Tensor, weight_C: Tensor) -> Tensor:
        logits_CV = F.linear(hidden_CD.to(weight_VD.dtype), weight_VD).float()
        if softcap is not None:
            logits_CV = softcap * torch.tanh(logits_CV / softcap)
        nll_C = F.cross_entropy(logits_CV, ids_C, reduction="none")
        return (weight_C * nll_C).sum()

    total = hidden_LD.new_zeros((), dtype=torch.float32)
    for begin in range(0, len(hidden_LD), CHUNK):
        part = slice(begin, begin + CHUNK)
        total = total + checkpoint(
            loss, hidden_LD[part], tokens.ids_L[part], tokens.weight_L[part], use_reentrant=False
        )
    return total


@dataclass(frozen=True, slots=True)
class LanguageHead:
    """The frozen language-model head of a base: its own matrix, or None for its embeddings.

    It is no module, so that nothing wraps, shards, saves or sends it.
    """

    weight_VD: Tensor | None
    softcap: float | None

    def loss(self, hidden_LD: Tensor, tokens: NextTokens, embeddings: nn.Module) -> Tensor:
        """:func:`next_token_loss`; ``embeddings`` are those of the network."""
        own: Any = embeddings.weight if self.weight_VD is None else self.weight_VD
        return next_token_loss(hidden_LD, own.detach(), tokens, self.softcap)


def read_language_head(
    config: Any, base: str, revision: str | None, device: torch.device
) -> LanguageHead:
    """The head of the language model that ``base`` is, on ``device``; ``config`` is transformers'.

    Raises:
        ModelError: it has none, or one whose logits are scaled.
    """
    config = config.get_text_config()
    scaled = [name for name in _SCALED if getattr(config, name, 1.0) not in (None, 1.0)]
    if scaled:
        raise ModelError(
            f"loss.language_model: {base} scales its logits ({scaled[0]}), which plaudit does not"
            " know for this loss; remove it, or choose another base."
        )
    tied = config.tie_word_embeddings
    weight_VD = None if tied else _tensor(base, revision, "lm_head.weight").to(device)
    return LanguageHead(weight_VD, getattr(config, "final_logit_softcapping", None))


def _tensor(base: str, revision: str | None, name: str) -> Tensor:
    """One tensor of a base's files.

    Raises:
        ModelError: no safetensors file of the base has it.
    """

    def find(file: str) -> str | None:
        return cached_file(
            base, file, revision=revision, _raise_exceptions_for_missing_entries=False
        )

    file = SAFE_WEIGHTS_NAME
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        file = shards.get(name, file)
    path = find(file)
    if path is not None:
        with safe_open(path, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118
                found: Tensor = tensors.get_tensor(name)
                return found
    raise ModelError(
        f"loss.language_model: the files of {base} have no {name}, so it is no language model;"
        " remove it, or choose another base."
    )
