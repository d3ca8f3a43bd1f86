"""A narrowed last layer gives what the whole layer gives, wherever a packed row is read."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from plaudit.model.attention.interface import PACKED_ATTENTION
from plaudit.model.fast import last_layer
from plaudit.model.fast.fused import FusedAttention, FusedRMSNorm, fuse_layers
from plaudit.model.fast.last_layer import is_narrowed, narrow_last_layer
from plaudit.model.fast.lora import fuse_lora
from plaudit.model.load import add_lora
from plaudit.model.module import DecoderRewardModule, classifier
from plaudit.tokens.batch import pack
from tests.models import WINDOW, make_trees, tiny_classifier

CPU = torch.device("cpu")
TREES = make_trees([(WINDOW + 5, (4, 9, 4)), (0, (6, 1)), (3, (WINDOW + 2,))])


def packed(family: str) -> DecoderRewardModule:
    network = tiny_classifier(family)
    network.set_attn_implementation(PACKED_ATTENTION)
    return DecoderRewardModule(network)


def narrowed(module: DecoderRewardModule) -> DecoderRewardModule:
    narrow_last_layer(classifier(module.network).base_model)
    assert is_narrowed(classifier(module.network).base_model)
    return module


def scored_rows_of_mlp(module: DecoderRewardModule) -> list[int]:
    seen: list[int] = []
    layer = classifier(module.network).base_model.layers[-1]
    layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    module(pack(TREES, CPU))
    return seen


def test_the_last_layer_computes_scored_rows_alone() -> None:
    assert scored_rows_of_mlp(narrowed(packed("llama"))) == [6]


@pytest.mark.parametrize("most", [last_layer.MOST_SCORED, 0])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "phi", "gpt_neox"])
def test_any_token_can_be_read(family: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt tokens and the middles of branches too, under windows and soft-caps.

    Where many are read, no attention is written out: the backends compute it.
    """
    monkeypatch.setattr(last_layer, "MOST_SCORED", most)
    module = packed(family)
    batch = pack(TREES, CPU)
    every = batch.read_at(range(batch.ids_1T.shape[1]))
    some = batch.read_at([0, 2, 17, 22, 25, 33, 40, 41, 55])
    expected_T = module(every)
    narrowed(module)
    torch.testing.assert_close(module(every), expected_T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module(some), expected_T[some.ends_R], rtol=1e-5, atol=1e-5)


def test_reading_every_token_of_a_long_text_is_not_written_out() -> None:
    batch = pack(make_trees([(10, (300,))]), CPU)
    assert last_layer.few_scored(batch.layout)
    assert not last_layer.few_scored(batch.read_at(range(10, 310)).layout)
    pairs = pack(make_trees([(10, (300, 280)), (0, (5, 7)), (40, (9,))]), CPU)
    assert last_layer.few_scored(pairs.layout)


def test_a_padded_call_is_the_layers_own() -> None:
    network = tiny_classifier("llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = network(input_ids=ids).logits
    narrow_last_layer(network.base_model)
    assert torch.equal(network(input_ids=ids).logits, expected)


def test_an_adapter_merged_afterwards_leaves_it_working() -> None:
    network = add_lora(tiny_classifier("llama"), {"r": 2, "target_modules": "all-linear"}).eval()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    fuse_lora(network)
    network.base_model.set_attn_implementation(PACKED_ATTENTION)  # type: ignore[operator, union-attr]
    expected_R = narrowed(DecoderRewardModule(network))(pack(TREES, CPU))
    merged = DecoderRewardModule(network.merge_and_unload())  # type: ignore[operator]
    torch.testing.assert_close(merged(pack(TREES, CPU)), expected_R, rtol=1e-4, atol=1e-4)


def test_a_model_can_be_pickled() -> None:
    """As for another process; all kinds of patched modules but LoRA's."""
    module = packed("llama")
    fuse_layers(module.network)
    narrowed(module)
    expected_R = module(pack(TREES, CPU))
    sent = pickle.loads(pickle.dumps(module))
    assert is_narrowed(sent.network.base_model)
    layer = sent.network.base_model.layers[0]
    assert isinstance(layer.input_layernorm, FusedRMSNorm)
    assert isinstance(layer.self_attn, FusedAttention)
    torch.testing.assert_close(sent(pack(TREES, CPU)), expected_R)


def test_copies_and_threads_do_not_meet() -> None:
    module = narrowed(packed("llama"))
    copied = copy.deepcopy(module)
    batches = [pack([tree], CPU) for tree in TREES] * 8
    expected = [module(batch) for batch in batches]

    def score(number: int) -> Tensor:
        with torch.no_grad():
            return (module if number % 2 else copied)(batches[number])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(score, range(len(batches))))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_names_and_weights_stay() -> None:
    network = tiny_classifier("llama")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    narrow_last_layer(network.base_model)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
