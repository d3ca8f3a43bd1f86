"""The forms of packed attention: what they keep, what reaches the kernel, which one is chosen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plaudit.model.attention.interface import BACKENDS, choose_backend, forced
from plaudit.model.attention.layer import Settings
from plaudit.tokens.batch import pack
from tests import flash_kernel
from tests.flash_kernel import flash_on_cpu
from tests.models import make_trees

CPU = torch.device("cpu")
SETTINGS = Settings(scale=0.3, window=None, softcap=None)


def heads(tokens: int, count: int) -> Tensor:
    return torch.randn(1, count, tokens, 8, requires_grad=True)


@pytest.mark.parametrize("form", ["varlen", "two_calls"])
def test_flash_forms_neither_repeat_heads_nor_keep_copies(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen branches see a prompt of 50 tokens: copies of it would be 15 times the prompt."""
    layout = pack(make_trees([(50, [3] * 16)]), CPU).layout
    kept: list[int] = []
    key_heads: set[int] = set()
    own = flash_kernel.forward

    def watched(query: Tensor, key: Tensor, *others: object, **named: object) -> object:
        key_heads.add(key.shape[1])
        return own(query, key, *others, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(flash_kernel, "forward", watched)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    q, k, v = (heads(layout.tokens, n) for n in (6, 2, 2))
    with (
        flash_on_cpu(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        out = BACKENDS[form].attend(q, k, v, layout, SETTINGS)
        out.sum().backward()
    assert key_heads == {2}
    assert max(kept) == layout.tokens * 6 * 8
    # Queries and output, keys and values, a log-sum-exp: each once, and the grouped heads.
    assert sum(kept) <= layout.tokens * 8 * (6 + 6 + 2 + 2 + 1)


def test_a_forced_form_gives_way_where_it_lacks_something() -> None:
    query = heads(4, 2)
    window, softcap = Settings(0.3, 2, None), Settings(0.3, None, 5.0)
    with forced("two_calls"):
        found = [choose_backend(query, one) for one in (SETTINGS, window, softcap)]
    assert found == ["two_calls", "sdpa", "explicit"]
    assert choose_backend(query, SETTINGS) == "cpu"
