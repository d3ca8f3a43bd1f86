"""The language-model loss beside the reward: one pass, few logits at a time, the head frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from plaudit.errors import ModelError
from plaudit.model import language
from plaudit.model.attention.interface import PACKED_ATTENTION
from plaudit.model.language import LanguageHead, next_tokens_of, read_language_head
from plaudit.model.load import BaseRequest, load_base
from plaudit.model.module import DecoderRewardModule
from plaudit.model.packing import patch_modules
from plaudit.tokens.batch import make_batchers
from plaudit.types import TokenTree
from tests.models import TINY, VOCABULARY, make_trees, tiny_classifier

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
PAD = 2


def labelled(trees: list[TokenTree]) -> list[TokenTree]:
    """The second response is the best one; the last tree says nothing of an order."""
    return [
        replace(
            tree,
            grades=tuple(float(k == 1) for k in range(len(tree.branches))),
            weight=1.0 + tree.index,
        )
        for tree in trees
    ]


TREES = labelled(make_trees([(9, (4, 11)), (0, (6, 3)), (14, (5, 1, 8)), (7, (9,))], seed=2))


def test_the_loss_is_that_of_the_language_model(tmp_path: Path) -> None:
    """A base with a head of its own, read from its files, against transformers' full logits."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=False, **TINY)
    causal = AutoModelForCausalLM.from_config(config).eval()
    causal.save_pretrained(tmp_path)
    network: Any = load_base(BaseRequest(base=str(tmp_path)), pad_id=PAD).network
    network.set_attn_implementation(PACKED_ATTENTION)
    module = patch_modules(network).eval()
    assert isinstance(module, DecoderRewardModule)
    module.language_head = read_language_head(network.config, str(tmp_path), None, CPU)
    batch = make_batchers(10**6, CPU, PAD)["packed"].collate(TREES)
    with torch.no_grad():
        outputs_RO, found = module(batch, next_tokens=next_tokens_of(TREES, batch, CPU))
        plain_RO = module(batch, every_output=True)
    torch.testing.assert_close(outputs_RO, plain_RO)
    expected = 0.0
    for tree in TREES[:3]:
        ids = torch.from_numpy(np.concatenate([tree.prefix, tree.branches[1]])[None]).long()
        with torch.no_grad():
            log_TV = causal(ids).logits[0].double().log_softmax(-1)
        start = max(len(tree.prefix), 1)
        nll = [-float(log_TV[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])]
        expected += tree.weight * sum(nll) / len(nll)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 1024])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_layout_chunks_and_cuts_change_nothing(
    layout: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradient(which: str, budget: int) -> dict[str, torch.Tensor]:
        network = tiny_classifier("llama")
        network.set_attn_implementation(PACKED_ATTENTION if which == "packed" else "sdpa")
        module = DecoderRewardModule(network)
        module.language_head = LanguageHead(None, softcap=3.0)
        batcher = make_batchers(budget, CPU, PAD)[which]
        for cut in batcher.split(TREES):
            members = [TREES[i] for i in cut]
            batch = batcher.collate(members)
            _, loss = module(batch, next_tokens=next_tokens_of(members, batch, CPU))
            if loss.requires_grad:
                loss.backward()
        return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}

    whole = gradient("packed", 10**6)
    monkeypatch.setattr(language, "CHUNK", chunk)
    cut = gradient(layout, 30)
    assert whole.keys() == cut.keys()
    assert any("q_proj" in name for name in whole)
    # The head is frozen: of the embeddings, only those of tokens that were read get a gradient.
    read = np.unique(np.concatenate([np.concatenate([t.prefix, *t.branches]) for t in TREES]))
    embedded = whole["model.embed_tokens.weight"]
    unread = np.setdiff1d(np.arange(VOCABULARY), read)
    assert float(embedded[unread].abs().sum()) == 0.0
    for name, one in whole.items():
        torch.testing.assert_close(cut[name], one, atol=2e-5, rtol=1e-4)


def test_a_base_without_a_language_head_is_an_error(tmp_path: Path) -> None:
    network = tiny_classifier("llama", tie_word_embeddings=False)
    network.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"have no lm_head\.weight"):
        read_language_head(network.config, str(tmp_path), None, CPU)
    scaled = tiny_classifier("llama")
    scaled.config.logit_scale = 0.5
    with pytest.raises(ModelError, match="scales its logits"):
        read_language_head(scaled.config, str(tmp_path), None, CPU)
