"""A head with several outputs: their weighted sum is the reward, also after a reload."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import plaudit
from plaudit.errors import ModelError
from plaudit.model.module import as_reward_module, classifier
from plaudit.model.scoring import score_trees
from plaudit.tokens.batch import make_batchers
from plaudit.types import RewardTransform
from tests.models import THREE, build_base, make_trees, saved_with_outputs, tiny_classifier

pytestmark = pytest.mark.heavy

PAD = 2
SHAPES = [(5, (3, 8)), (0, (4,)), (7, (1, 6, 2))]


def test_the_reward_is_the_weighted_sum_of_the_outputs() -> None:
    network = tiny_classifier(num_labels=3)
    module = as_reward_module(network, RewardTransform(), THREE).eval()
    batch = make_batchers(200, torch.device("cpu"), PAD)["padded"].collate(make_trees(SHAPES))
    with torch.no_grad():
        outputs_RO = module(batch, every_output=True)
        logits_RO = module.raw(batch)
        scores_R = module(batch)
    assert outputs_RO.shape == (6, 3)
    torch.testing.assert_close(outputs_RO, logits_RO + torch.tensor([2.0, 3.0, 1.0]))
    torch.testing.assert_close(scores_R, outputs_RO @ torch.tensor([0.6, 0.5, -0.1]))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_outputs_come_back_with_the_model_and_in_transformers(tmp_path: Path, lora: bool) -> None:
    base = build_base(tmp_path / "base")
    folder = saved_with_outputs(tmp_path / "model", base, lora=lora)
    model = plaudit.load(folder)
    assert model.metadata.outputs == THREE
    assert model.module.config.id2label == {0: "helpful", 1: "true", 2: "short"}
    trees = make_trees(SHAPES)
    outputs, rewards = model.output_trees(trees), model.score_trees(trees)
    for outputs_KO, rewards_K in zip(outputs, rewards, strict=True):
        np.testing.assert_allclose(outputs_KO @ THREE.weights, rewards_K, atol=1e-12)
    direct = score_trees(model.module, model.batcher, trees)
    np.testing.assert_allclose(np.concatenate(direct), np.concatenate(rewards), atol=1e-5)
    if lora:
        return
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert plain.config.id2label == {0: "helpful", 1: "true", 2: "short"}
    tree = trees[0]
    ids = torch.tensor(np.concatenate([tree.prefix, tree.branches[1]])[None]).long()
    with torch.no_grad():
        logits_O = plain(ids).logits[0].double().numpy()
    np.testing.assert_allclose(logits_O + THREE.offsets, outputs[0][1], atol=1e-5)


def test_packed_outputs_are_those_of_padded_rows(tmp_path: Path) -> None:
    model = plaudit.load(
        saved_with_outputs(tmp_path / "model", build_base(tmp_path / "base"), lora=True)
    )
    packed = model.output_trees(make_trees(SHAPES))
    classifier(model.module.network).set_attn_implementation("sdpa")
    padded = make_batchers(200, torch.device("cpu"), PAD)["padded"]
    separate = replace(model, batcher=padded).output_trees(make_trees(SHAPES))
    np.testing.assert_allclose(np.concatenate(packed), np.concatenate(separate), atol=1e-5)


def test_a_head_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    folder = saved_with_outputs(tmp_path / "model", build_base(tmp_path / "base"), lora=False)
    path = folder / "plaudit.json"
    metadata = json.loads(path.read_text())
    metadata["outputs"] = {
        "names": ["a", "b"],
        "weights": [0.5, 0.5],
        "offsets": [0.0, 0.0],
        "ensemble": True,
    }
    path.write_text(json.dumps(metadata))
    (folder / "manifest.json").unlink()
    with pytest.raises(ModelError, match="no head with the 2 outputs"):
        plaudit.load(folder)
    metadata["outputs"]["weights"] = [1.0, float("nan")]
    path.write_text(json.dumps(metadata))
    with pytest.raises(ModelError, match="no finite number"):
        plaudit.load(folder)
    metadata["outputs"]["weights"] = [1.0]
    path.write_text(json.dumps(metadata))
    with pytest.raises(ModelError, match="outputs need one name, weight and offset each"):
        plaudit.load(folder)


def test_spread_is_the_standard_deviation_over_outputs() -> None:
    outputs_KO = np.array([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
    np.testing.assert_allclose(THREE.spreads(outputs_KO), [1.0, 0.0])
    np.testing.assert_allclose(THREE.rewards(outputs_KO), [1.3, 4.0])
