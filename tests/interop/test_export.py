"""Every exporter of the table: the reloaded folder gives the model's scores, or nothing is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from plaudit import registry
from plaudit.errors import ModelError, OutputError
from plaudit.interop.export import ExportOptions, export
from plaudit.interop.formats import Ids, Scorer
from plaudit.interop.parity import CheckOptions, ParityError, check_rows
from plaudit.interop.sequence_classifier import write
from plaudit.recipe.schema import Source
from plaudit.reward_model import RewardModel, load
from tests.conftest import pair_rows, recipe_of, set_metadata, write_jsonl

pytestmark = pytest.mark.heavy
ROWS = pair_rows(6, seed=11)


@pytest.fixture(scope="module")
def full_run(tiny_base: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from plaudit.training.run import train

    folder = tmp_path_factory.mktemp("runs") / "full"
    train({**recipe_of(tiny_base, pairs_file, num_train_epochs=1), "lora": None}, folder)
    return folder


@pytest.fixture(scope="module")
def with_bias(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as an import leaves it: a scale and an offset on top of its head."""
    folder = tmp_path_factory.mktemp("imported") / "biased"
    shutil.copytree(finished_run, folder)
    set_metadata(folder, reward_transform={"scale": -1.75, "offset": 0.625})
    return folder


@pytest.fixture(scope="module")
def sources(finished_run: Path, full_run: Path, with_bias: Path) -> dict[str, Path]:
    return {"adapter": finished_run, "full": full_run, "bias": with_bias}


CASES = [
    (source, target)
    for source in ("adapter", "full", "bias")
    for target in registry.names("exporter")
    if not (source == "full" and target == "adapter")
]


def scores(model: RewardModel, rows: Sequence[dict[str, Any]] = ROWS) -> list[float]:
    return [
        reward
        for row in rows
        for reward in model.score(row["prompt"], [row["chosen"], row["rejected"]])
    ]


def close(found: Sequence[float], expected: Sequence[float], tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("source", "target"), CASES)
def test_every_export_gives_the_models_scores(
    source: str, target: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    done = export(sources[source], target, tmp_path / "out")
    assert done.parity is not None
    # The tolerance is 1e-4 of the largest reward, or of 1 where that is more.
    assert done.parity.largest_difference <= done.parity.tolerance / 10
    assert done.parity.responses == 32
    assert done.parity.rows == "the run's held-out rows"
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["checked"]
    assert record["parity"]["largest_difference"] == done.parity.largest_difference
    assert not list((tmp_path / "out").rglob("*.bin"))
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    # transformers 4 does not know the name that 5 writes.
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    if registry.find("exporter", target).plain:
        close(scores(load(tmp_path / "out")), scores(load(sources[source])))


def test_the_bias_is_kept_where_there_is_a_place_and_said_where_not(
    with_bias: Path, tmp_path: Path
) -> None:
    for target in registry.names("exporter"):
        done = export(with_bias, target, tmp_path / target)
        assert any("0.625" in note for note in done.notes) == (target != "llamafactory")
    head = load_file(tmp_path / "llamafactory" / "value_head.safetensors")
    assert head["v_head.summary.bias"].item() == pytest.approx(0.625)
    merged = export(with_bias, "merged", tmp_path / "again")
    # What vLLM subtracts gives the bias back.
    assert merged.serving == {"logit_mean": -0.625, "logit_sigma": 1.0}
    model = load(with_bias)
    rows = check_rows(model, with_bias, None)
    raw = write.read(tmp_path / "merged", "")(rows.sequences())
    rewards = np.concatenate(model.score_trees(rows.trees))
    close(list(np.asarray(raw) + 0.625), rewards.tolist())


def test_normalisation_is_carried_as_each_tool_has_it(finished_run: Path, tmp_path: Path) -> None:
    model = load(finished_run)
    mean, std = model.metadata.reward_mean, model.metadata.reward_std
    rows = check_rows(model, finished_run, None)
    rewards = np.concatenate(model.score_trees(rows.trees))
    wanted = ((rewards - mean) / std).tolist()
    merged = export(finished_run, "merged", tmp_path / "merged", ExportOptions(normalize=True))
    assert merged.serving == {"logit_mean": mean, "logit_sigma": std}
    close(write.read(tmp_path / "merged", "")(rows.sequences()), rewards.tolist())
    for target in ("llamafactory", "openrlhf"):
        export(finished_run, target, tmp_path / target, ExportOptions(normalize=True))
        read = registry.find("exporter", target).read(tmp_path / target, model.metadata.base)
        close(read(rows.sequences()), wanted, 1e-4)
    config = json.loads((tmp_path / "openrlhf" / "config.json").read_text())
    assert config["value_head_prefix"] == "score"
    assert (config["mean"], config["std"]) == (mean, std)
    adapter = export(finished_run, "adapter", tmp_path / "adapter", ExportOptions(normalize=True))
    assert any("cannot store a normalization" in note for note in adapter.notes)


def test_a_base_beside_the_adapter_goes_with_it(
    finished_run: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """As a run on the embedded base has it: the folder then loads wherever it is moved."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.copytree(tiny_base, run / "base")
    set_metadata(run, base=str(run / "base"))
    for target in ("adapter", "llamafactory"):
        out = tmp_path / target
        export(run, target, out)
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(out / "base")
        assert (out / "base" / "config.json").is_file()
    (tmp_path / "adapter").rename(tmp_path / "moved")
    shutil.rmtree(run)
    close(scores(load(tmp_path / "moved")), scores(load(finished_run)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_the_head_in_fp32(
    dtype: Literal["bfloat16", "float16"], finished_run: Path, tmp_path: Path
) -> None:
    done = export(
        finished_run, "merged", tmp_path / "out", ExportOptions(dtype=dtype, max_shard_size="40KB")
    )
    assert done.parity is not None
    assert done.parity.largest_difference <= 1e-5
    assert done.parity.rounding is not None
    assert 1e-5 < done.parity.rounding < 0.5
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    expected = {"bfloat16": "BF16", "float16": "F16"}[dtype]
    found: dict[str, str] = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as tensors:
            found |= {k: tensors.get_slice(k).get_dtype() for k in tensors.keys()}  # noqa: SIM118
    assert found.pop("score.weight") == "F32"
    assert set(found.values()) == {expected}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype
    # The file alone, read in fp32, scores like the model up to the rounding that was reported.
    apart = np.abs(np.subtract(scores(load(tmp_path / "out")), scores(load(finished_run))))
    assert apart.max() < 3 * done.parity.rounding


@pytest.mark.parametrize("target", ["adapter", "llamafactory"])
def test_an_adapter_in_half_precision(target: str, finished_run: Path, tmp_path: Path) -> None:
    done = export(finished_run, target, tmp_path / "out", ExportOptions(dtype="bfloat16"))
    assert done.parity is not None
    assert done.parity.largest_difference <= 1e-5
    dtypes = {
        k: v.dtype for k, v in load_file(tmp_path / "out" / "adapter_model.safetensors").items()
    }
    heads = {k: v for k, v in dtypes.items() if "lora_" not in k}
    assert set(heads) == ({"base_model.model.score.weight"} if target == "adapter" else set())
    assert set(heads.values()) <= {torch.float32}
    assert {v for k, v in dtypes.items() if "lora_" in k} == {torch.bfloat16}


def test_the_pipeline_gives_the_raw_score(finished_run: Path, tmp_path: Path) -> None:
    """transformers puts a sigmoid on one label unless the config says regression."""
    from transformers import AutoTokenizer, pipeline

    export(finished_run, "merged", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    judge: Any = pipeline("text-classification", model=str(tmp_path / "out"), tokenizer=tokenizer)
    texts = [
        tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
        for row in ROWS
        for side in ("chosen", "rejected")
    ]
    found = [result["score"] for result in judge(texts, add_special_tokens=False)]
    close(found, scores(load(finished_run)))


def test_an_old_peft_can_read_the_config(finished_run: Path, tmp_path: Path) -> None:
    known = json.loads(write.OLD_PEFT["0.11"].read_text())["keys"]
    for target in ("adapter", "llamafactory"):
        export(finished_run, target, tmp_path / target, ExportOptions(peft_config="0.11"))
        config = json.loads((tmp_path / target / "adapter_config.json").read_text())
        assert set(config) <= set(known)
        assert config["task_type"] == {"adapter": "SEQ_CLS", "llamafactory": "CAUSAL_LM"}[target]
        assert config["modules_to_save"] == {"adapter": ["score"], "llamafactory": None}[target]
    with pytest.raises(ModelError, match="adapter_config"):
        export(finished_run, "merged", tmp_path / "merged", ExportOptions(peft_config="0.11"))


def test_what_an_old_peft_cannot_do_is_refused(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "trainable_token_indices": [5]}))
    written = {**config, "trainable_token_indices": [5]}
    with pytest.raises(ModelError, match=r"trainable_token_indices, which PEFT 0\.11"):
        write._for_old_peft(written, "0.11")


def test_what_a_model_cannot_become_is_said(
    full_run: Path, finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="has no LoRA adapter"):
        export(full_run, "adapter", tmp_path / "out")
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    set_metadata(folder, reward_std=None)
    with pytest.raises(ModelError, match="--normalize needs"):
        export(folder, "merged", tmp_path / "out", ExportOptions(normalize=True))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(OutputError, match="already exists"):
        export(finished_run, "merged", tmp_path / "full")
    assert not (tmp_path / "out").exists()


def test_an_encoder_exports_whole(pairs_file: Path, tmp_path: Path, tiny_encoder_run: Path) -> None:
    done = export(tiny_encoder_run, "merged", tmp_path / "out")
    assert done.parity is not None
    assert done.parity.largest_difference <= 1e-5
    close(scores(load(tmp_path / "out")), scores(load(tiny_encoder_run)))
    export(tiny_encoder_run, "adapter", tmp_path / "adapter")
    for target in ("llamafactory", "openrlhf"):
        with pytest.raises(ModelError, match="is an encoder"):
            export(tiny_encoder_run, target, tmp_path / target)


@pytest.fixture(scope="module")
def tiny_encoder_run(pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from plaudit.training.run import train
    from tests.models import TINY, VOCABULARY, tiny_tokenizer

    base = tmp_path_factory.mktemp("encoder")
    config = AutoConfig.for_model("roberta", vocab_size=VOCABULARY, num_labels=1, **TINY)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(base)
    tiny_tokenizer().save_pretrained(str(base))
    folder = tmp_path_factory.mktemp("runs") / "encoder"
    train(recipe_of(base, pairs_file, num_train_epochs=1), folder)
    return folder


# ---- a check that can fail -----------------------------------------------------------------------


def broken(read: Any) -> Any:
    """The same reader, of a folder whose head lost a digit on the way."""

    def reader(folder: Path, base: str) -> Scorer:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["score.weight"] = tensors["score.weight"] * 1.01
        save_file(tensors, path, metadata={"format": "pt"})
        scorer: Scorer = read(folder, base)
        return scorer

    return reader


def test_other_scores_leave_nothing_behind(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = replace(write.MERGED_EXPORTER, read=broken(write.MERGED_EXPORTER.read))
    monkeypatch.setattr(write, "MERGED_EXPORTER", damaged)
    with pytest.raises(ParityError, match="gives different scores"):
        export(finished_run, "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_lost_chat_template_is_found(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path, base: str) -> Scorer:
        template = folder / "chat_template.jinja"
        template.write_text(template.read_text().replace("bos_token", "''"))
        return write.read(folder, base)

    monkeypatch.setattr(write, "MERGED_EXPORTER", replace(write.MERGED_EXPORTER, read=read))
    with pytest.raises(ParityError, match="gives other token ids than the model for 32 of 32"):
        export(finished_run, "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_not_numbers_fail(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path, base: str) -> Scorer:
        def score(ids_R: Sequence[Ids]) -> list[float]:
            return [float("nan")] * len(ids_R)

        return score

    monkeypatch.setattr(write, "MERGED_EXPORTER", replace(write.MERGED_EXPORTER, read=read))
    with pytest.raises(ParityError, match="inf apart"):
        export(finished_run, "merged", tmp_path / "out")


def test_rows_to_check_with(finished_run: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "mine.jsonl", ROWS)
    done = export(
        finished_run,
        "merged",
        tmp_path / "a",
        ExportOptions(check=CheckOptions(rows=Source(path=str(data)))),
    )
    assert done.parity is not None
    assert done.parity.comparisons == len(ROWS)
    # A run whose data moved away is checked with the rows that come with plaudit.
    moved = tmp_path / "moved"
    shutil.copytree(finished_run, moved)
    (moved / "recipe.yaml").unlink()
    done = export(moved, "merged", tmp_path / "b")
    assert done.parity is not None
    assert done.parity.rows == "embedded rows"
    done = export(moved, "merged", tmp_path / "c", ExportOptions(check=None))
    assert done.parity is None
    assert json.loads((tmp_path / "c" / "export.json").read_text())["checked"] is False
    assert "was not checked" in (tmp_path / "c" / "README.md").read_text()


def test_openrlhfs_own_text_rule_is_compared(finished_run: Path, tmp_path: Path) -> None:
    """A template that ends in a newline: OpenRLHF reads the token before it."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    template = folder / "chat_template.jinja"
    changed = template.read_text() + "{{- '\\n' }}"
    template.write_text(changed)
    (folder / "manifest.json").unlink()
    done = export(folder, "openrlhf", tmp_path / "out")
    assert done.parity is not None
    assert done.parity.text_differs == done.parity.responses
    assert done.parity.text_difference is not None
    assert done.parity.text_difference > 1e-3
    assert any("gives other token ids than this model for 32 of 32" in note for note in done.notes)
    same = export(finished_run, "openrlhf", tmp_path / "same")
    assert same.parity is not None
    assert same.parity.text_differs == 0
