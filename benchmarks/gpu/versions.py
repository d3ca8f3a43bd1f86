"""What is here: versions, the card, signatures of the calls that plaudit makes, and its limits."""

from __future__ import annotations

import inspect
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, attention_forms, runs_liger
from benchmarks.gpu.record import Part
from plaudit.model.attention.flash import use_flash_attention_3

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "pydantic",
    "liger-kernel",
    "flash-attn",
    "trl",
    "datasets",
    "bitsandbytes",
)
HEADS, KEY_HEADS, WIDTH = 8, 2, 64


def check_versions(bench: Bench, part: Part) -> None:
    """Versions first, then what can fail."""
    part.measured("packages", **{name: _version(name) for name in PACKAGES})
    cuda = bench.device.type == "cuda"
    if cuda:
        properties = torch.cuda.get_device_properties(bench.device)
        part.measured(
            "card",
            name=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            multiprocessors=properties.multi_processor_count,
            memory_bytes=properties.total_memory,
            cuda=torch.version.cuda,
            driver=_driver(),
            published_tflops=(bench.published_flops or 0.0) / 1e12,
        )
    part.measured(
        "chosen kernels",
        flash_attn_interface=find_spec("flash_attn_interface") is not None,
        flash_attention_3=cuda and use_flash_attention_3(bench.device),
        liger=runs_liger(),
        attention_forms=", ".join(attention_forms(bench.device)),
    )
    part.attempt("varlen_attn", lambda: _signature(part))
    for name in ("_flash_attention_forward", "_flash_attention_backward"):
        part.measured(f"aten::{name}", schema=str(getattr(torch.ops.aten, name).default._schema))
    if cuda:
        part.attempt("grouped heads", lambda: _grouped_heads(bench, part))
    else:
        part.not_run("grouped heads", "needs CUDA: varlen_attn has no kernel on the CPU")
    part.attempt("limits", lambda: _limits(bench, part))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def _signature(part: Part) -> None:
    from torch.nn.attention.varlen import varlen_attn

    part.measured("varlen_attn", signature=str(inspect.signature(varlen_attn)))


def _grouped_heads(bench: Bench, part: Part) -> None:
    """Whether ``varlen_attn`` takes fewer key heads than query heads, forward and backward."""
    from torch.nn.attention.varlen import varlen_attn

    attend: Any = varlen_attn

    def heads(count: int) -> torch.Tensor:
        return torch.randn(
            64, count, WIDTH, device=bench.device, dtype=torch.bfloat16, requires_grad=True
        )

    q_THD, k_TGD, v_TGD = heads(HEADS), heads(KEY_HEADS), heads(KEY_HEADS)
    ends = torch.tensor([0, 24, 64], device=bench.device, dtype=torch.int32)
    options = {"enable_gqa": True} if "enable_gqa" in str(inspect.signature(varlen_attn)) else {}
    out = attend(q_THD, k_TGD, v_TGD, ends, ends, 40, 40, **options)
    out.float().sum().backward()
    repeats = HEADS // KEY_HEADS
    wide = attend(
        q_THD.detach(),
        k_TGD.detach().repeat_interleave(repeats, 1),
        v_TGD.detach().repeat_interleave(repeats, 1),
        *(ends, ends, 40, 40),
    )
    apart = float((out.detach() - wide).abs().max())
    part.expect(
        "grouped heads",
        apart <= 1e-2 and k_TGD.grad is not None and k_TGD.grad.shape == k_TGD.shape,
        "varlen_attn takes grouped heads and gives what repeated ones do",
        difference=apart,
    )


def _limits(bench: Bench, part: Part) -> None:
    """What plain products and copies reach here: ceilings for every number that follows."""
    side, dtype = (256, torch.float32) if bench.tiny else (8192, torch.bfloat16)
    a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    # Many at a time: an idle card's clocks are low, and rise in tens of milliseconds.
    count, product = 2 if bench.tiny else 40, torch.empty_like(a)

    def multiply() -> None:
        for _ in range(count):
            torch.mm(a, b, out=product)

    seconds = bench.seconds(multiply) / count
    source = torch.randn(1 << (16 if bench.tiny else 30), device=bench.device)
    target = torch.empty_like(source)
    copied = bench.seconds(lambda: target.copy_(source), repeats=9)
    part.measured(
        "limits",
        matmul_side=side,
        matmul_tflops=2 * side**3 / seconds / 1e12,
        copy_gb_per_second=2 * source.numel() * source.element_size() / copied / 1e9,
    )
