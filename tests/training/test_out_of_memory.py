"""A micro-batch that does not fit: the step is computed again in smaller ones, law 2 holding."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from plaudit.errors import ModelError, TrainingError
from plaudit.model.attention.interface import PACKED_ATTENTION
from plaudit.model.module import DecoderRewardModule
from plaudit.model.scoring import score_trees
from plaudit.tokens.batch import PackedBatcher, PaddedBatcher
from plaudit.training.folder import RunFolder
from plaudit.training.run import train
from plaudit.types import Batch
from tests.conftest import pair_rows, recipe_of, write_jsonl
from tests.models import make_trees, tiny_classifier
from tests.ranks import torchrun
from tests.warm import environment_of_a_user

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
Memory = Callable[[int, str], None]
# PyTorch's allocator has an error of its own; what CUDA allocates beside it fails in other ways.
NO_MEMORY = {
    "forward": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "backward": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "library": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "kernel": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at"),
}


def tokens_of(batch: Batch) -> int:
    return sum(tree.tokens for tree in batch.trees)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A device that holds so many tokens in training, and is out of memory in that pass."""
    raw = DecoderRewardModule.raw

    def limit(tokens: int, where: str) -> None:
        def fail(_: Any = None) -> None:
            raise NO_MEMORY[where]

        def limited(module: DecoderRewardModule, batch: Batch) -> Tensor:
            scores_R = raw(module, batch)
            if module.training and tokens_of(batch) > tokens:
                if where != "backward":
                    fail()
                scores_R.register_hook(fail)
            return scores_R

        monkeypatch.setattr(DecoderRewardModule, "raw", limited)

    return limit


def dropping_recipe(base: Path, data: Path, max_tokens: int) -> dict[str, Any]:
    recipe = recipe_of(base, data, num_train_epochs=1, logging_steps=1)
    recipe["lora"] = {"lora_dropout": 0.3}
    recipe["tokens"] = {"max_length": 256, "max_tokens_per_microbatch": max_tokens}
    recipe["evaluate"] = {"perturbation_tests": 0}
    return recipe


def budgets(folder: Path) -> list[tuple[int, int]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").open()]
    key = "max_tokens_per_microbatch"
    return [(event["step"], event[key]) for event in events if key in event]


def logged_metrics(folder: Path) -> list[tuple[float, ...]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").open()]
    names = ("loss", "accuracy", "margin", "grad_norm")
    return [tuple(event[name] for name in names) for event in events if "margin" in event]


RUNS = ("replayed", "whole")


@pytest.mark.parametrize("where", NO_MEMORY)
def test_a_replayed_step_is_the_step_of_the_smaller_budget(
    where: str,
    tiny_base: Path,
    tmp_path: Path,
    memory: Memory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Bit for bit, dropout included: gradients, random numbers and metrics are those of one try."""
    data = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(24, seed=3))
    start = dropping_recipe(tiny_base, data, 100_000)
    memory(100, where)
    train(start, tmp_path / "replayed")
    ((step, budget),) = budgets(tmp_path / "replayed")
    assert step == 0
    assert budget <= 100
    recorded = RunFolder(tmp_path / "replayed").recorded_micro_batches()
    assert recorded is not None
    assert recorded.tokens == budget
    assert "running out of memory" in recorded.reason
    (warning,) = [r.message for r in caplog.records if "did not fit" in r.message]
    assert "step 1 is computed again" in warning
    assert f"at most {budget} tokens" in warning

    train(dropping_recipe(tiny_base, data, budget), tmp_path / "whole")
    logged = [logged_metrics(tmp_path / name) for name in RUNS]
    assert logged[0] == logged[1]
    assert len(logged[1]) > 2
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in RUNS]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_resumed_run_keeps_the_lowered_budget(
    tiny_base: Path, tmp_path: Path, memory: Memory
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(24, seed=3))
    folder = tmp_path / "run"
    memory(100, "forward")
    recipe = dropping_recipe(tiny_base, data, 100_000)
    recipe["train"]["eval_steps"] = 2
    train(recipe, folder)
    assert len(budgets(folder)) == 1
    # Back to the middle: the steps after it are trained again.
    (folder / "metrics.json").unlink()
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name[11:]))
    shutil.rmtree(newest)
    train(recipe, folder, resume=True)
    assert len(budgets(folder)) == 1, "the resumed run ran out of memory again"


def test_one_comparison_that_does_not_fit_stops_the_run(
    tiny_base: Path, tmp_path: Path, memory: Memory
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(24, seed=3))
    memory(20, "backward")
    with pytest.raises(TrainingError, match=r"A comparison of \d+ tokens \(.*pairs.jsonl.*\) does"):
        train(dropping_recipe(tiny_base, data, 100_000), tmp_path / "run")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_scoring_halves_what_does_not_fit(layout: str, caplog: pytest.LogCaptureFixture) -> None:
    network = tiny_classifier("llama")
    network.set_attn_implementation(PACKED_ATTENTION if layout == "packed" else "sdpa")
    module = DecoderRewardModule(network).eval()
    batcher = (
        PackedBatcher(max_tokens=110, device=CPU)
        if layout == "packed"
        else PaddedBatcher(max_tokens=200, pad_id=2, device=CPU)
    )
    shapes = [(9, (4, 11)), (0, (6, 3)), (14, (5, 5, 8)), (2, (20, 1))]
    trees = [tree for seed in (2, 3) for tree in make_trees(shapes, seed=seed)]
    reported: list[int] = []
    failed: list[int] = []

    def limited(batch: Batch) -> Tensor:
        if tokens_of(batch) > 40:
            failed.append(tokens_of(batch))
            raise NO_MEMORY["kernel"]
        return module(batch)

    with caplog.at_level(logging.WARNING):
        found = score_trees(
            limited, batcher, trees, on_batch=lambda part: reported.append(len(part))
        )
    for one, two in zip(found, score_trees(module, batcher, trees), strict=True):
        assert one == pytest.approx(two, abs=1e-5)
    assert sum(reported) == len(trees)
    assert len(reported) > 1
    assert caplog.text.count("did not fit") == 1
    # A later batch as large as one that failed is halved without an attempt.
    assert failed == sorted(set(failed), reverse=True)
    assert len(batcher.split(trees)) > 1
    with pytest.raises(ModelError, match="A comparison of 24 tokens"):
        score_trees(limited_to(module, 20), batcher, trees)


def test_another_error_of_the_device_is_no_lack_of_memory() -> None:
    def fails(batch: Batch) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        score_trees(fails, PackedBatcher(max_tokens=110, device=CPU), make_trees([(9, (4, 11))]))


def limited_to(module: DecoderRewardModule, tokens: int) -> Callable[[Batch], Tensor]:
    def forward(batch: Batch) -> Tensor:
        if tokens_of(batch) > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return module(batch)

    return forward


ON_TWO_RANKS = """
import os, runpy, sys
import torch
from torch import distributed
from plaudit.model.module import DecoderRewardModule
from plaudit.planning.microbatch import MicroBatches
from plaudit.training.budget import _agreed

rank, module = int(os.environ["RANK"]), torch.nn.Linear(1, 1)
# A store of its own: training meets in the launcher's.
own_store = f"file://{os.path.abspath(__file__)}.store"
distributed.init_process_group("gloo", init_method=own_store, rank=rank, world_size=2)
own = MicroBatches(tokens=(900, 700)[rank], checkpointed_layers=(1, 0)[rank], layers=4)
agreed = _agreed(own, module, 2)
assert (agreed.tokens, agreed.checkpointed_layers) == (700, 1), agreed
assert _agreed((own, None)[rank], module, 2) is None
distributed.destroy_process_group()

raw = DecoderRewardModule.raw

def limited(module, batch):
    if module.training and rank == 1 and sum(tree.tokens for tree in batch.trees) > 60:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return raw(module, batch)

DecoderRewardModule.raw = limited
runpy.run_module("plaudit", run_name="__main__")
"""


def test_ranks_agree_on_a_size_and_stop_where_one_runs_out_of_memory(
    tiny_base: Path, tmp_path: Path, write_recipe: Callable[[Mapping[str, Any]], Path]
) -> None:
    """One rank alone cannot split further: the others wait for it in a collective call."""
    data = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(24, seed=3))
    recipe = write_recipe(dropping_recipe(tiny_base, data, 100_000))
    script = tmp_path / "two_ranks.py"
    script.write_text(ON_TWO_RANKS)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*torchrun(), str(script), "train", *arguments],
            check=False,
            capture_output=True,
            text=True,
            env={**environment_of_a_user(), "CUDA_VISIBLE_DEVICES": ""},
            timeout=300,
        )

    folder = tmp_path / "run"
    stopped = run(str(recipe), "--out", str(folder))
    assert stopped.returncode != 0
    shown = " ".join(stopped.stderr.split())
    assert "does not fit in the memory of the device; to resume in smaller ones: torchrun" in shown
    assert "AssertionError" not in shown
    _, _, command = shown.partition("-m plaudit train ")
    advice = command.partition(". ")[0].split()
    assert advice[:2] == [str(folder), "--resume"]

    # Half the size is still too much for this device.
    resumed = run(str(folder), "--resume", "--set", "tokens.max_tokens_per_microbatch=60")
    assert resumed.returncode == 0, resumed.stderr
    assert "changed on resuming: tokens.max_tokens_per_microbatch: 100000 → 60" in resumed.stderr
    recorded = RunFolder(folder).recorded_micro_batches()
    assert (recorded.tokens, recorded.asked) == (60, 60)
    assert (folder / "metrics.json").is_file()
