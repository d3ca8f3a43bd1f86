"""Peak speeds and memories of GPUs, as their makers publish them.

``tflops`` is the dense tensor-core rate in bf16 with fp32 accumulation (fp16 where there is no
bf16), without structured sparsity: half of what data sheets print where they count sparsity.
``gigabytes`` is the memory the maker names, in units of 1e9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from plaudit.errors import RecipeError, nearest


@dataclass(frozen=True, slots=True)
class Gpu:
    """``tflops`` in 1e12 operations a second, ``gigabytes`` in 1e9 bytes, and where from."""

    tflops: float
    gigabytes: float
    source: str


GPUS: dict[str, Gpu] = {
    "T4": Gpu(65, 16, "NVIDIA T4 data sheet: FP16 65 TFLOPS (no bf16)"),
    "L4": Gpu(121, 24, "NVIDIA L4 data sheet: BF16 242 TFLOPS with sparsity"),
    "A10G": Gpu(70, 24, "NVIDIA A10G data sheet: BF16 70 TFLOPS, 140 with sparsity"),
    "RTX4090": Gpu(165.2, 24, "NVIDIA Ada GPU Architecture paper, appendix A: BF16 165.2 TFLOPS"),
    "L40S": Gpu(362, 48, "NVIDIA L40S data sheet: BF16 362.05 TFLOPS, 733 with sparsity"),
    "A100-40GB": Gpu(312, 40, "NVIDIA A100 data sheet: BF16 312 TFLOPS"),
    "A100-80GB": Gpu(312, 80, "NVIDIA A100 data sheet: BF16 312 TFLOPS"),
    "H100": Gpu(989.5, 80, "NVIDIA H100 SXM data sheet: BF16 1,979 TFLOPS with sparsity"),
    "H200": Gpu(989.5, 141, "NVIDIA H200 SXM data sheet: BF16 1,979 TFLOPS with sparsity"),
    "B200": Gpu(2250, 180, "NVIDIA HGX B200 data sheet: BF16 4.5 PFLOPS with sparsity"),
}


def choose(name: str | None) -> dict[str, Gpu]:
    """The one GPU named, or all of them; ``h100``, ``RTX-4090`` and ``A100`` are understood.

    Raises:
        RecipeError: no GPU of that name.
    """
    if name is None:
        return GPUS
    plain = {key.lower().replace("-", ""): key for key in GPUS}
    asked = name.lower().replace("-", "").replace(" ", "")
    found = [key for short, key in plain.items() if short == asked or short == f"{asked}gb"]
    found = found or [key for short, key in plain.items() if short.startswith(asked)]
    if asked and found:
        return {key: GPUS[key] for key in found}
    close = nearest(asked, plain)
    guess = f"did you mean {plain[close]}?" if close else f"it knows {', '.join(GPUS)}."
    raise RecipeError(f"--gpu {name}: plaudit knows no GPU of that name; {guess}")
