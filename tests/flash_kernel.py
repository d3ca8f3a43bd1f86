"""What flash attention's operators document, written out, so that a CPU can run their callers.

PyTorch has the operators on CUDA alone. Registered for the CPU under their own names, these get
exactly the arguments that the CUDA kernels would get.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def _segments(
    q_QHD: Tensor, k_SGD: Tensor, q_offsets: Tensor, k_offsets: Tensor, longest: tuple[int, int]
) -> Iterator[tuple[slice, slice]]:
    assert q_offsets.dtype == k_offsets.dtype == torch.int32
    assert [int(q_offsets[0]), int(q_offsets[-1])] == [0, len(q_QHD)]
    assert [int(k_offsets[0]), int(k_offsets[-1])] == [0, len(k_SGD)]
    for i in range(len(q_offsets) - 1):
        queries = slice(int(q_offsets[i]), int(q_offsets[i + 1]))
        keys = slice(int(k_offsets[i]), int(k_offsets[i + 1]))
        assert queries.start < queries.stop, "an empty segment is not documented"
        assert keys.start < keys.stop, "an empty segment is not documented"
        assert queries.stop - queries.start <= longest[0]
        assert keys.stop - keys.start <= longest[1]
        yield queries, keys


def _logits(
    q_QHD: Tensor, k_SGD: Tensor, causal: bool, scale: float, left: int, right: int
) -> Tensor:
    """``[H, Q, S]`` of one segment; causal and window count from the lower right corner."""
    repeats = q_QHD.shape[1] // k_SGD.shape[1]
    keys = k_SGD.repeat_interleave(repeats, dim=1)
    logits = torch.einsum("qhd,shd->hqs", q_QHD, keys) * scale
    queries, length = logits.shape[1:]
    at_Q1 = torch.arange(queries)[:, None] + length - queries
    at_1S = torch.arange(length)[None]
    if causal:
        right = 0
    hidden = torch.zeros(queries, length, dtype=torch.bool)
    if right >= 0:
        hidden |= at_1S > at_Q1 + right
    if left >= 0:
        hidden |= at_1S < at_Q1 - left
    return logits.masked_fill(hidden, -torch.inf)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
    **others: object,
) -> tuple[Tensor, ...]:
    assert dropout_p == 0.0
    assert not return_debug_mask
    assert not any(others.values()), others
    # Inside, half precision is multiplied as it is and summed up in fp32.
    dtype, (query, key, value) = query.dtype, (t.float() for t in (query, key, value))
    out = torch.empty_like(query)
    sums = torch.empty(query.shape[1], len(query), dtype=torch.float32)
    repeats = query.shape[1] // key.shape[1]
    for queries, keys in _segments(query, key, cum_seq_q, cum_seq_k, (max_q, max_k)):
        logits = _logits(
            query[queries], key[keys], is_causal, scale, window_size_left, window_size_right
        )
        values = value[keys].repeat_interleave(repeats, dim=1)
        out[queries] = torch.einsum("hqs,shd->qhd", logits.softmax(-1), values)
        sums[:, queries] = logits.logsumexp(-1)
    unused = torch.empty(2, dtype=torch.uint64), torch.empty(0), torch.empty(0)
    return out.to(dtype), sums, *unused


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """By the formulas of the paper's algorithm 4: probabilities come from ``logsumexp`` alone."""
    assert dropout_p == 0.0
    dtype = query.dtype
    grad_out, query, key, value, out = (t.float() for t in (grad_out, query, key, value, out))
    grads = [torch.zeros_like(tensor) for tensor in (query, key, value)]
    groups = key.shape[1]
    repeats = query.shape[1] // groups
    for queries, keys in _segments(query, key, cum_seq_q, cum_seq_k, (max_q, max_k)):
        q, grad = query[queries], grad_out[queries]
        k, v = (t[keys].repeat_interleave(repeats, dim=1) for t in (key, value))
        logits = _logits(q, key[keys], is_causal, scale, window_size_left, window_size_right)
        weights = torch.exp(logits - logsumexp[:, queries, None])
        inner = (grad * out[queries]).sum(-1).T[..., None]
        grad_logits = weights * (torch.einsum("qhd,shd->hqs", grad, v) - inner) * scale
        grads[0][queries] = torch.einsum("hqs,shd->qhd", grad_logits, k)
        for whole, weight, rows in ((grads[1], grad_logits, q), (grads[2], weights, grad)):
            by_head = torch.einsum("hqs,qhd->shd", weight, rows)
            whole[keys] = by_head.unflatten(1, (groups, repeats)).sum(2)
    return grads[0].to(dtype), grads[1].to(dtype), grads[2].to(dtype)


@contextlib.contextmanager
def flash_on_cpu() -> Iterator[None]:
    """Have the operators on the CPU, where PyTorch has none."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield
