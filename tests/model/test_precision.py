"""Which dtype a body is loaded in, on every kind of device and for every purpose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plaudit.errors import ModelError
from plaudit.model.precision import Purpose, choose_dtype, dtype_on, has_bf16
from plaudit.reward_model import load
from plaudit.training.run import train
from plaudit.types import Dtype, WeightDtype
from tests.conftest import recipe_of

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize(
    ("device_type", "bf16", "purpose", "expected"),
    [
        ("cuda", True, "score", "bfloat16"),
        ("cuda", True, "lora", "bfloat16"),
        ("cuda", True, "qlora", "bfloat16"),
        ("cuda", True, "full", "float32"),
        ("cuda", False, "score", "float32"),
        ("cuda", False, "lora", "float32"),
        ("cpu", False, "score", "float32"),
        ("cpu", True, "score", "float32"),
        ("mps", False, "score", "float32"),
    ],
)
def test_auto_by_device_and_purpose(
    device_type: str, bf16: bool, purpose: Purpose, expected: WeightDtype
) -> None:
    chosen = choose_dtype("auto", device_type=device_type, bf16=bf16, purpose=purpose)
    assert chosen == expected


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("purpose", ["score", "full"])
def test_a_named_dtype_is_kept(name: Dtype, purpose: Purpose) -> None:
    for device_type in ("cpu", "cuda"):
        kept = choose_dtype(name, device_type=device_type, bf16=False, purpose=purpose)
        assert kept == name
    assert dtype_on(name, torch.device("cpu"), purpose) is getattr(torch, name)


def test_a_cpu_does_not_count_as_a_gpu_with_bf16() -> None:
    assert not has_bf16(torch.device("cpu"))


def test_an_fp32_adapter_on_a_bf16_body_takes_a_step(
    tiny_base: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """With checkpointing, where PEFT's layers have met tensors of two dtypes (trl issue 6089)."""
    recipe = recipe_of(tiny_base, pairs_file, num_train_epochs=1, gradient_checkpointing=True)
    recipe["model"]["dtype"] = "bfloat16"
    run = train(recipe, tmp_path / "run").metrics.run
    assert (run.attention, run.dtype) == ("packed", "bfloat16")
    stored = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    # B and the head start at zero.
    moved = {name for name, tensor in stored.items() if tensor.abs().max() > 0}
    assert moved == set(stored)
    # Finer than bf16 holds: the steps were taken in fp32.
    (head,) = (tensor for name, tensor in stored.items() if "score" in name)
    assert (head != head.bfloat16()).any()


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there_is_named(device: str, finished_run: Path) -> None:
    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match=f"device is {device}, but PyTorch finds . CUDA devices"):
        load(finished_run, device=device)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(ModelError, match="dtype is 'bf16'; expected float32, bfloat16, float16"):
        dtype_on("bf16", torch.device("cpu"), "score")  # type: ignore[arg-type]
