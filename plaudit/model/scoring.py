"""Trees through a module in token-bounded batches, back in order. One loop for every caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from plaudit.types import Batch, Batcher, FloatArray, TokenTree

FILLER = TokenTree(index=-1, prefix=np.zeros(0, np.int32), branches=(np.zeros(1, np.int32),))
"""A one-token tree that keeps a rank in step when its own trees have run out."""


def score_trees(
    forward: Callable[[Batch], Tensor],
    batcher: Batcher,
    trees: Sequence[TokenTree],
    *,
    batches: int | None = None,
    on_batch: Callable[[Sequence[TokenTree]], None] | None = None,
) -> list[FloatArray]:
    """Scores of each tree's responses, in the order of ``trees``.

    ``forward`` must be the object accelerate wrapped where there is one. ``batches`` is
    the number that every rank runs: FSDP, ZeRO-3 and DDP's buffers communicate in every forward
    pass, so a rank that ran fewer would hang the others.
    """
    cuts = batcher.cut(trees)
    gathered: list[Tensor] = []
    with torch.no_grad():
        for number in range(len(cuts) if batches is None else batches):
            members = [trees[i] for i in cuts[number]] if number < len(cuts) else [FILLER]
            scores_R = forward(batcher.collate(members))
            if number < len(cuts):
                gathered.append(scores_R)
                if on_batch is not None:
                    on_batch(members)
    results: list[FloatArray] = [np.zeros(0)] * len(trees)
    if not gathered:
        return results
    # One copy to the host at the end: a copy per batch would make the device wait each time.
    flat = torch.cat(gathered).double().cpu().numpy()
    row = 0
    for cut in cuts:
        for i in cut:
            k = len(trees[i].branches)
            results[i] = flat[row : row + k]
            row += k
    return results
