"""How many tokens a GPU holds at once: tried out, not estimated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from plaudit.model.module import RewardModule
from plaudit.types import Batcher, TokenTree

LEAST, MOST = 1024, 262_144
# Left free: fragmentation grows during a run, and rows are not all alike.
SPARE = 0.08
# AdamW's two moments in fp32 come into being at the first step, after this was measured.
OPTIMIZER_BYTES = 8


def largest_budget(
    module: RewardModule, batcher: Batcher, *, longest: int, autocast: bool, device: torch.device
) -> int:
    """The largest power of two of tokens whose forward and backward pass fit the GPU.

    ``longest`` is the longest conversation that may come. What the optimizer and fragmentation
    will need is held back while trying. Random numbers and gradients are left as they were found.
    """
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    _, total = torch.cuda.mem_get_info(device)
    held = torch.empty(
        int(OPTIMIZER_BYTES * trainable + SPARE * total), dtype=torch.uint8, device=device
    )
    with torch.random.fork_rng(devices=[device]):
        found = largest_fitting(
            lambda tokens: fits(
                module, batcher, tokens, longest=longest, autocast=autocast, device=device
            )
        )
    del held
    torch.cuda.empty_cache()
    return found


def largest_fitting(fitting: Callable[[int], bool], *, least: int = LEAST, most: int = MOST) -> int:
    """The largest of ``least``, twice that and so on up to ``most`` that fits."""
    tokens = least
    while tokens * 2 <= most and fitting(tokens * 2):
        tokens *= 2
    return tokens


def fits(
    module: RewardModule,
    batcher: Batcher,
    tokens: int,
    *,
    longest: int,
    autocast: bool,
    device: torch.device,
) -> bool:
    """Whether a micro-batch of ``tokens`` in pairs of ``longest`` runs forward and backward."""
    training = module.training
    module.train()
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            scores_R = module(batcher.collate(pairs_of(tokens, longest)))
        scores_R.sum().backward()
    except torch.OutOfMemoryError:
        return False
    finally:
        module.train(training)
        module.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def pairs_of(tokens: int, longest: int) -> list[TokenTree]:
    """Pairs of equal length, half prompt, that hold ``tokens`` together; token 0 throughout."""
    prompt = longest // 2
    branch = longest - prompt
    ids = np.zeros(longest, np.int32)
    tree = TokenTree(index=0, prefix=ids[:prompt], branches=(ids[:branch], ids[:branch]))
    return [tree] * max(1, tokens // tree.tokens)
