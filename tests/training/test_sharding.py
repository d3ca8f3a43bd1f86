"""FSDP2 on two CPU processes: the run of one process, files that others load, and its resumption.

accelerate engages FSDP for GPUs alone, so ``tests/rank_command.py`` has it take CPUs for GPUs, and
the first test reads what was engaged.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from pyarrow.parquet import read_table
from transformers import AutoModelForSequenceClassification

from plaudit.cli.main import main
from plaudit.errors import RecipeError
from plaudit.evaluation.schema import read_metrics
from plaudit.recipe.load import parse_recipe
from plaudit.training.folder import RunFolder
from plaudit.training.prepare import step_arguments
from plaudit.training.run import train
from plaudit.training.sharding import check_sharding
from tests.conftest import pair_rows, recipe_of, write_jsonl
from tests.models import build_base
from tests.ranks import run_on_two_ranks, weights

RUNS: dict[str, dict[str, Any]] = {
    # Adam divides by its second moment, which amplifies rounding unless epsilon is large.
    "lora": {"train": {"optim": "adamw_torch", "adam_epsilon": 0.1, "learning_rate": 0.1}},
    "full": {
        "lora": None,
        "train": {
            "optim": "adamw_torch_fused",
            "learning_rate": 3e-3,
            "max_grad_norm": 0.1,
            "activation_checkpointing": True,
            "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"},
        },
    },
    "half": {"model": {"dtype": "bfloat16"}, "train": {"optim": "sgd", "learning_rate": 0.3}},
    "autocast": {"lora": None, "train": {"optim": "sgd", "learning_rate": 0.05, "bf16": True}},
    "experts": {"lora": None, "train": {"optim": "sgd", "learning_rate": 0.05}},
    "encoder": {"train": {"optim": "sgd", "learning_rate": 0.05}},
}
"""Recipes, laid over :func:`recipe_of`: LoRA and full training, in fp32 and in bf16."""
FAMILIES: dict[str, dict[str, Any]] = {
    "experts": {"family": "mixtral"},
    "encoder": {
        "family": "bert",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}
"""Bases other than the Llama of most tests."""
RESUMED = ("lora", "full")
DECODER_PARTS = ["", "embed_tokens", "layers.0", "layers.1", "layers.2", "score"]
ENCODER_PARTS = [
    "",
    "embeddings",
    *(f"encoder.layer.{n}" for n in range(3)),
    "pooler",
    "classifier",
]


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of :data:`RUNS` on one process (``one-NAME``) and on two with FSDP2 (``two-NAME``).

    43 pairs leave a last step that only one rank has rows for. Of those in :data:`RESUMED`, the
    second half is trained once more, from a checkpoint (``resumed-NAME``).
    """
    folder = tmp_path_factory.mktemp("sharded")
    data = write_jsonl(folder / "pairs.jsonl", pair_rows(43, seed=1))
    held_out = write_jsonl(folder / "held_out.jsonl", pair_rows(13, seed=2))

    bases = {name: build_base(folder / name, **options) for name, options in FAMILIES.items()}

    def recipe(name: str, batch: int, **train: Any) -> dict[str, Any]:
        base = bases.get(name, tiny_base)
        one = recipe_of(base, data, num_train_epochs=1, eval_steps=4, save_total_limit=5)
        one["data"] = {"train": str(data), "eval": str(held_out)}
        one["tokens"]["max_tokens_per_microbatch"] = 50
        one["report"] = {"plots": False, "html": False}
        one["train"] |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 1}
        for section, values in RUNS[name].items():
            one[section] = {**one.get(section, {}), **values} if values is not None else None
        one["train"] |= train
        return one

    commands = []
    for name in RUNS:
        alone = recipe(name, 6)
        alone["train"].pop("fsdp_config", None)
        train(alone, folder / f"one-{name}")
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe(name, 3, fsdp="full_shard")))
        commands.append([str(path), str(folder / f"two-{name}")])
    commands += [
        [str(folder / f"two-{name}" / "recipe.yaml"), str(folder / f"resumed-{name}"), "--resume"]
        for name in RESUMED
    ]
    run_on_two_ranks("fsdp", folder, *" then ".join(map(" ".join, commands)).split())
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_fsdp2_is_engaged(name: str, runs: Path) -> None:
    """Layers, embeddings and head are shared, and each rank optimizes its part of all that trains.

    The head has one row, so that the second rank's part of it is empty.
    """
    for rank in (0, 1):
        facts = json.loads((runs / f"two-{name}-rank-{rank}.json").read_text())
        assert facts["type"] == "FSDP"
        assert facts["whole_parameters"] == []
        parts = [
            re.sub(r"^((network|base_model|model|bert)(\.|$))*", "", path)
            for path in facts["sharded_modules"]
        ]
        assert parts == (ENCODER_PARTS if name == "encoder" else DECODER_PARTS)
        assert facts["optimized"] == facts["trained"] > 0
        mixed = ["torch.bfloat16", "torch.float32"]
        assert facts["dtypes"] == (mixed if name == "half" else ["torch.float32"])


@pytest.mark.parametrize("name", ["lora", "full", "experts", "encoder"])
def test_two_ranks_train_what_one_does(name: str, runs: Path) -> None:
    for step in (4, 8):
        alone, together = (
            weights(runs / f"{ranks}-{name}" / "checkpoints" / f"checkpoint-{step}")
            for ranks in ("one", "two")
        )
        assert alone.keys() == together.keys()
        for key, tensor in alone.items():
            torch.testing.assert_close(together[key], tensor, atol=1e-5, rtol=1e-3)
    one, two = (read_metrics(runs / f"{ranks}-{name}") for ranks in ("one", "two"))
    assert two.train.steps == one.train.steps == 8
    assert two.eval.pairs == 13
    assert two.eval.loss == pytest.approx(one.eval.loss, abs=1e-5)
    for a, b in zip(one.training_curve, two.training_curve, strict=True):
        assert b.loss == pytest.approx(a.loss, abs=1e-5)


@pytest.mark.parametrize("name", ["half", "autocast"])
def test_bf16_is_that_of_one_process(name: str, runs: Path) -> None:
    """Frozen bf16 weights beside trained fp32 ones, and autocast; the head is in fp32 in both."""
    one, two = (read_metrics(runs / f"{ranks}-{name}") for ranks in ("one", "two"))
    for a, b in zip(one.training_curve, two.training_curve, strict=True):
        assert b.loss == pytest.approx(a.loss, abs=5e-3)
    saved = weights(runs / f"two-{name}")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    rewards = torch.tensor(rewards_of(runs / f"two-{name}"))
    assert not torch.equal(rewards.bfloat16().float(), rewards), "rounded to bf16"


def rewards_of(run: Path) -> list[float]:
    rewards: list[float] = read_table(run / "predictions.parquet")["reward"].to_pylist()
    return rewards


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_is_uninterrupted(name: str, runs: Path) -> None:
    """Bit for bit, with the optimizer's state gathered (LoRA) and in a file of each rank (full)."""
    last = Path("checkpoints") / "checkpoint-8"
    whole, resumed = (weights(runs / f"{kind}-{name}" / last) for kind in ("two", "resumed"))
    assert whole.keys() == resumed.keys()
    for key, tensor in whole.items():
        assert torch.equal(resumed[key], tensor), key
    one, two = (read_metrics(runs / f"{kind}-{name}") for kind in ("two", "resumed"))
    assert one.training_curve == two.training_curve
    assert one.eval == two.eval


def test_checkpoints_hold_no_frozen_base(runs: Path) -> None:
    checkpoint = runs / "two-lora" / "checkpoints" / "checkpoint-4"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_model.safetensors", "optimizer.bin", "scheduler.pt"} <= names
    assert not {name for name in names if "fsdp" in name}
    moments = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    assert len(moments) == len(weights(checkpoint))


@pytest.mark.parametrize("name", RESUMED)
def test_others_load_what_is_saved(name: str, runs: Path, tiny_base: Path) -> None:
    """Plain transformers and PEFT, in one process, give the scores of the run on one process."""
    ids = torch.arange(3, 40)[None]
    scores = []
    for ranks in ("one", "two"):
        run = runs / f"{ranks}-{name}"
        source = run if name == "full" else tiny_base
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=1, pad_token_id=2
        )
        if name == "lora":
            model = PeftModel.from_pretrained(model, str(run))
        with torch.no_grad():
            scores.append(model.eval()(ids).logits)
    assert scores[0].abs().max() > 1e-3
    torch.testing.assert_close(scores[1], scores[0], atol=1e-5, rtol=1e-4)


# ---- what is not supported


def problems_of(tmp_path: Path, base: Path, data: Path, **changes: Any) -> str:
    recipe = parse_recipe({**recipe_of(base, data), **changes}, "recipe")
    with pytest.raises(RecipeError) as caught:
        check_sharding(recipe, step_arguments(recipe, RunFolder(tmp_path / "run")))
    return str(caught.value)


def test_one_process_does_not_shard(
    tiny_base: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_of(tiny_base, pairs_file, fsdp="full_shard")))
    assert main(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    sentence = " ".join(capsys.readouterr().err.split())
    assert "train.fsdp shares a model among processes, but this run has one" in sentence
    assert not (tmp_path / "run").exists()


def test_what_was_never_run_is_an_error(tiny_base: Path, pairs_file: Path, tmp_path: Path) -> None:
    train_keys = recipe_of(tiny_base, pairs_file)["train"]

    def problems(**train: Any) -> str:
        return problems_of(
            tmp_path, tiny_base, pairs_file, train={**train_keys, "fsdp": "full_shard", **train}
        )

    assert "FSDP1 cannot shard frozen weights in bf16" in problems(fsdp_config={"version": 1})
    assert "offload to the CPU" in problems(fsdp_config={"cpu_offload": True})
    assert "train.activation_checkpointing: true instead" in problems(
        fsdp_config={"activation_checkpointing": True}
    )
    assert "train.optim is adafactor" in problems(optim="adafactor")
    assert "train.torch_compile under FSDP" in problems(torch_compile=True)


def test_fsdp_of_the_launcher_is_seen(
    tiny_base: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``accelerate launch --use_fsdp`` sets variables, and FSDP1 is its default."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert "FSDP1 cannot shard" in problems_of(tmp_path, tiny_base, pairs_file)
