"""Weight averaging: the written model is the average of the weights, not of the LoRA factors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file

from plaudit.errors import ModelError, OutputError
from plaudit.interop import merge as merging
from plaudit.interop.export import export
from plaudit.interop.merge import MergeOptions, merge
from plaudit.interop.parity import ParityError
from plaudit.interop.sequence_classifier.write import save_adapter
from plaudit.reward_model import load
from tests.conftest import pair_rows, recipe_of, set_metadata

pytestmark = pytest.mark.heavy
ROWS = pair_rows(5, seed=23)


@pytest.fixture(scope="module")
def other_run(tiny_base: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another seed and another rank, on fewer modules."""
    from plaudit.training.run import train

    folder = tmp_path_factory.mktemp("runs") / "other"
    recipe = recipe_of(tiny_base, pairs_file, num_train_epochs=1, seed=7)
    recipe["lora"] = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]}
    train(recipe, folder)
    return folder


@pytest.fixture(scope="module")
def full_runs(
    tiny_base: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    from plaudit.training.run import train

    folders = []
    for seed in (1, 2):
        folders.append(tmp_path_factory.mktemp("runs") / f"full-{seed}")
        recipe = recipe_of(tiny_base, pairs_file, num_train_epochs=1, seed=seed)
        train({**recipe, "lora": None}, folders[-1])
    return folders


def scores(folder: Path) -> list[float]:
    model = load(folder)
    return [
        reward
        for row in ROWS
        for reward in model.score(row["prompt"], [row["chosen"], row["rejected"]])
    ]


def whole_state(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that plain PEFT merges, by its own means."""
    if not (folder / "adapter_config.json").is_file():
        return load_file(folder / "model.safetensors")
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    state: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return state


def assert_average(out: Path, sources: Sequence[Path], weights: Sequence[float]) -> None:
    found, parts = whole_state(out), [whole_state(source) for source in sources]
    for key, tensor in found.items():
        wanted = sum(weight * part[key] for weight, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(tensor, wanted, atol=2e-6, rtol=1e-5)


def test_adapters_average_as_weights(finished_run: Path, other_run: Path, tmp_path: Path) -> None:
    weights = [0.7, 0.3]
    done = merge([finished_run, other_run], tmp_path / "out", MergeOptions(weights=weights))
    assert done.method == "adapter"
    assert done.parity is not None
    assert done.parity.largest_difference <= 1e-5
    assert_average(tmp_path / "out", [finished_run, other_run], weights)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    # The modules that both have carry both ranks.
    ranks = {config["r"], *config["rank_pattern"].values()}
    assert ranks == {8, 12}
    # Averaging A and B apart is another model: that mistake would be seen.
    assert not np.allclose(scores(tmp_path / "out"), scores(finished_run), atol=1e-3)


def test_whole_models_average_as_weights(full_runs: list[Path], tmp_path: Path) -> None:
    done = merge(full_runs, tmp_path / "out")
    assert done.method == "full"
    assert done.parity is not None
    assert done.parity.largest_difference <= 1e-5
    assert done.weights == (0.5, 0.5)
    assert_average(tmp_path / "out", full_runs, [0.5, 0.5])


def test_checkpoints_of_a_run(finished_run: Path, tmp_path: Path) -> None:
    checkpoints = sorted((finished_run / "checkpoints").iterdir())[-2:]
    assert len(checkpoints) == 2
    done = merge(checkpoints, tmp_path / "out", MergeOptions(weights=[0.25, 0.75]))
    assert done.sources == tuple(path.name for path in checkpoints)
    found = whole_state(tmp_path / "out")["score.weight"]
    heads = [
        load_file(path / "adapter_model.safetensors")["base_model.model.score.weight"]
        for path in checkpoints
    ]
    torch.testing.assert_close(found, 0.25 * heads[0] + 0.75 * heads[1])


def test_a_model_with_itself_is_itself(finished_run: Path, tmp_path: Path) -> None:
    merge([finished_run, finished_run, finished_run], tmp_path / "out")
    np.testing.assert_allclose(scores(tmp_path / "out"), scores(finished_run), atol=1e-5)


def test_scale_and_offset_of_imports_are_averaged(finished_run: Path, tmp_path: Path) -> None:
    biased = tmp_path / "biased"
    shutil.copytree(finished_run, biased)
    set_metadata(biased, reward_transform={"scale": 3.0, "offset": 0.5})
    done = merge([finished_run, biased], tmp_path / "out", MergeOptions(weights=[0.5, 0.5]))
    assert done.parity is not None
    # One body and two heads: here the average of the weights is the average of the scores.
    wanted = np.mean([scores(finished_run), scores(biased)], axis=0)
    np.testing.assert_allclose(scores(tmp_path / "out"), wanted, atol=1e-5)


def test_what_is_known_of_a_member_is_not_said_of_the_average(
    finished_run: Path, other_run: Path, tmp_path: Path
) -> None:
    member = tmp_path / "lora"
    shutil.copytree(finished_run, member)
    set_metadata(member, temperature=1.5)
    done = merge([member, other_run], tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "plaudit.json").read_text())
    assert facts["temperature"] is facts["reward_mean"] is facts["reward_std"] is None
    assert any("not carried over" in note for note in done.notes)
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["checked"]
    assert record["weights"] == [0.5, 0.5]
    assert record["sources"] == ["lora", "other"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "0.5 of lora, 0.5 of other" in card
    assert "model-index" not in card
    # An average is a model like any other: it can be exported.
    exported = export(tmp_path / "out", "merged", tmp_path / "merged")
    assert exported.parity is not None
    assert exported.parity.largest_difference <= 1e-5


@pytest.mark.parametrize(
    ("fact", "value", "sentence"),
    [
        ("chat_template", "{{ messages }}", "different chat templates"),
        ("pad_token", "<s>", "different padding tokens"),
        ("text", "text", "different kinds of text"),
        ("kind", "full", "not both adapters"),
        ("base_revision", "abc", "expected models with the same base"),
        ("base", "/another/base", "expected models with the same base"),
    ],
)
def test_models_that_have_no_average(
    fact: str, value: Any, sentence: str, finished_run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    set_metadata(other, **{fact: value})
    with pytest.raises(ModelError, match=sentence):
        merge([finished_run, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_tokenizers_are_refused(finished_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"<|system|>"', '"<|tool|>"'))
    (other / "manifest.json").unlink()
    with pytest.raises(ModelError, match="different tokenizers"):
        merge([finished_run, other], tmp_path / "out")


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([0.5], "1 numbers for 2 models"),
        ([0.5, 0.6], "add up to 1"),
        ([1.5, -0.5], "of at least 0"),
        ([float("nan"), 1.0], "of at least 0"),
    ],
)
def test_weights_that_do_not_fit(
    weights: list[float], sentence: str, finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=sentence):
        merge([finished_run, finished_run], tmp_path / "out", MergeOptions(weights=weights))


def test_one_model_and_a_taken_name(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Cannot average a single model"):
        merge([finished_run], tmp_path / "out")
    with pytest.raises(OutputError, match="already exists"):
        merge([finished_run, finished_run], finished_run)


def test_a_wrong_average_leaves_nothing_behind(
    finished_run: Path, other_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = save_adapter

    def damaged(folder: Path, tensors: Any, config: Any) -> None:
        save(folder, tensors, config)
        path = folder / "adapter_model.safetensors"
        found = load_file(path)
        save_file({k: v * 1.01 for k, v in found.items()}, path, metadata={"format": "pt"})

    monkeypatch.setattr(merging, "save_adapter", damaged)
    with pytest.raises(ParityError, match="The merged model gives different scores"):
        merge([finished_run, other_run], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
