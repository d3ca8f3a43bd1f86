"""Exports of other architectures: other names of bodies, tied weights, experts, odd layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from plaudit import registry
from plaudit.interop.export import export
from plaudit.model.checkpoint import CheckpointMetadata, save_checkpoint
from plaudit.model.load import BaseRequest, add_lora, load_base
from plaudit.reward_model import load
from tests.models import CHAT_TEMPLATE, build_base, tiny_tokenizer

pytestmark = pytest.mark.heavy
FAMILIES = ("gpt_neox", "gemma2", "mixtral", "phi3")


@pytest.fixture(scope="module", params=FAMILIES)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA model of the family whose adapter and head are not zero."""
    base = build_base(tmp_path_factory.mktemp("base"), request.param)
    tokenizer = tiny_tokenizer()
    network = load_base(BaseRequest(base=str(base), head_init="normal"), pad_id=2).network
    network = add_lora(network, {"r": 4, "target_modules": "all-linear"})
    torch.manual_seed(3)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("model") / request.param
    facts = CheckpointMetadata(
        kind="adapter",
        base=str(base),
        base_revision=None,
        max_length=256,
        text="chat",
        chat_template=CHAT_TEMPLATE,
        pad_token="<pad>",
        attention="auto",
        attention_note=None,
        head={"name": "score", "init": "normal", "dtype": "float32"},
    )
    save_checkpoint(folder, network, tokenizer, facts)
    return folder


@pytest.mark.parametrize("target", registry.names("exporter"))
def test_every_family_keeps_its_scores(target: str, adapter: Path, tmp_path: Path) -> None:
    done = export(adapter, target, tmp_path / "out")
    assert done.parity is not None
    assert done.parity.largest_difference <= 2e-5
    if target == "merged":
        question, answers = "which one?", ["this right", "that wrong and longer"]
        found = load(tmp_path / "out").score(question, answers)
        np.testing.assert_allclose(found, load(adapter).score(question, answers), atol=2e-5)
        # From the whole model too, which has no adapter any more.
        again = export(tmp_path / "out", "llamafactory", tmp_path / "whole")
        assert again.parity is not None
        assert again.parity.largest_difference <= 2e-5
