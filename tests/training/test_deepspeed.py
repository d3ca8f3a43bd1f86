"""DeepSpeed: one optimizer step is one step of its engine.

Two ranks with a real engine run where deepspeed is installed (it has a CPU accelerator):
``DS_BUILD_OPS=0 pip install deepspeed``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.evaluation.schema import read_metrics
from plaudit.recipe.load import parse_recipe
from plaudit.training.folder import RunFolder
from plaudit.training.prepare import step_arguments
from plaudit.training.run import train
from plaudit.training.sharding import check_sharding
from tests.conftest import pair_rows, recipe_of, write_jsonl
from tests.ranks import run_on_two_ranks, weights


class CountingEngine:
    """What accelerate's wrapper calls of DeepSpeed's engine."""

    def __init__(self) -> None:
        self.micro_batches: list[bool] = []
        self.boundary = False
        self.steps = 0

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.boundary = is_boundary

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self.micro_batches.append(self.boundary)

    def step(self) -> None:
        self.steps += 1


def test_the_engine_steps_once_in_each_optimizer_step(
    tiny_base: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate's own wrapper around an engine that counts; every comparison is a micro-batch."""
    engine = CountingEngine()
    wrapper = DeepSpeedEngineWrapper(engine)

    def backward(self: Accelerator, loss: Tensor, **options: Any) -> None:
        wrapper.backward(loss, sync_gradients=self.sync_gradients, **options)

    monkeypatch.setattr(Accelerator, "backward", backward)
    recipe = recipe_of(tiny_base, pairs_file, num_train_epochs=1)
    recipe["tokens"]["max_tokens_per_microbatch"] = 2
    steps = train(recipe, tmp_path / "run").metrics.train.steps
    assert engine.steps == engine.micro_batches.count(True) == steps == 11
    # 42 comparisons, 4 a step; the last of each step is the boundary.
    assert [i + 1 for i, last in enumerate(engine.micro_batches) if last] == [*range(4, 43, 4), 42]


AUTO = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
CONFIG: dict[str, Any] = {
    **dict.fromkeys((*AUTO, "gradient_clipping"), "auto"),
    # DeepSpeed's own Adam would have to be compiled.
    "zero_force_ds_cpu_optimizer": False,
}


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize(("stage", "lora"), [(1, {"r": 4}), (2, None)])
def test_two_ranks_train_what_one_does(
    stage: int,
    lora: Mapping[str, Any] | None,
    tiny_base: Path,
    tmp_path: Path,
    write_recipe: Callable[[Mapping[str, Any]], Path],
) -> None:
    """And resume from a middle checkpoint, bit for bit."""
    data = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(43, seed=1))
    held_out = write_jsonl(tmp_path / "held_out.jsonl", pair_rows(13, seed=2))

    def recipe(batch: int, **train: Any) -> dict[str, Any]:
        one = recipe_of(tiny_base, data, per_device_train_batch_size=batch, **train)
        # Adam divides by its second moment, which amplifies rounding unless epsilon is large.
        adam = {"optim": "adamw_torch", "adam_epsilon": 0.1, "learning_rate": 0.1}
        one["train"] |= {"num_train_epochs": 1, "gradient_accumulation_steps": 1, **adam}
        one["train"] |= {"eval_steps": 4, "max_grad_norm": 0.1}
        one["data"] = {"train": str(data), "eval": str(held_out)}
        one["tokens"]["max_tokens_per_microbatch"] = 50
        one["lora"] = lora
        return one

    alone = train(recipe(6), tmp_path / "one")
    config = {**CONFIG, "zero_optimization": {"stage": stage}}
    path = write_recipe(recipe(3, deepspeed=config, use_cpu=False))
    out = tmp_path / "two"
    run_on_two_ranks("deepspeed", tmp_path, "train", str(path), "--out", str(out))
    for rank in (0, 1):
        facts = json.loads((tmp_path / f"two-rank-{rank}.json").read_text())
        assert (facts["type"], facts["wrapper"]) == ("DEEPSPEED", "DeepSpeedEngine")
    expected = weights(tmp_path / "one" / "checkpoints" / "checkpoint-8")
    whole = weights(out / "checkpoints" / "checkpoint-8")
    assert whole.keys() == expected.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-3)
    together = read_metrics(out)
    assert together.eval.loss == pytest.approx(alone.metrics.eval.loss, abs=1e-5)

    (out / "metrics.json").unlink()
    shutil.rmtree(out / "checkpoints" / "checkpoint-8")
    run_on_two_ranks("deepspeed", tmp_path, "train", str(out), "--resume")
    for name, tensor in weights(out / "checkpoints" / "checkpoint-8").items():
        assert torch.equal(tensor, whole[name]), name


# ---- what is not supported


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"zero_optimization": {"stage": 3}}, "ZeRO-3, which would save empty weights"),
        ({"bf16": {"enabled": True}}, "would round the head and the adapter"),
        ({"gradient_clipping": None}, "has no gradient_clipping"),
    ],
)
def test_what_would_be_wrong_is_an_error(
    changes: Mapping[str, Any], sentence: str, tiny_base: Path, pairs_file: Path, tmp_path: Path
) -> None:
    recipe = parse_recipe(recipe_of(tiny_base, pairs_file), "recipe")
    args = step_arguments(recipe, RunFolder(tmp_path / "run"))
    config = {**CONFIG, "zero_optimization": {"stage": 2}, **changes}
    # As TrainingArguments sets it from train.deepspeed, which needs the library.
    args.deepspeed_plugin = DeepSpeedPlugin(
        hf_ds_config={key: value for key, value in config.items() if value is not None}
    )
    with pytest.raises(RecipeError) as caught:
        check_sharding(recipe, args)
    assert sentence in str(caught.value)
