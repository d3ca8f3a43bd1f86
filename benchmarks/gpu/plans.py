"""What ``plaudit plan`` says of the steps that were measured.

It traces the model without a device, which takes seconds on one core: so plans are made side by
side, once the device's work is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from benchmarks.common.models import LORA
from benchmarks.gpu.bench import BASE, Bench, Shape
from benchmarks.gpu.record import Case, Part
from benchmarks.gpu.training import Setting
from plaudit.embedded import base_path
from plaudit.planning.estimate import Hardware, Memory, equal_lengths, find_gpus
from plaudit.recipe.load import parse_recipe
from plaudit.training.plan import plan_run

PROCESSES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A step to plan. ``tokens`` are those of its micro-batches; None where the plan chooses."""

    base: str
    gpu: str
    shape: Shape
    checkpointing: bool | None
    tokens: int | None


def check_plans(bench: Bench, part: Part) -> None:
    """Planned over measured bytes, of steps whose kernels are the default ones.

    Neither the form of attention nor the kernels of layers are known to a plan.
    """
    questions = list(_questions(bench, part.earlier("steps")))
    if not questions:
        part.not_run("plans", "no step was measured")
        return
    if bench.tiny:
        for case, question in questions:
            _compare(part, case, answer(question))
        return
    pool = ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"))
    try:
        waiting = [(case, pool.submit(answer, question)) for case, question in questions]
        for case, planned in waiting:
            part.attempt(case.name, lambda c=case, p=planned: _compare(part, c, p.result()))  # type: ignore[misc]
    finally:
        # Out of time, nobody waits for the rest.
        pool.shutdown(wait=False, cancel_futures=True)


def answer(question: Question) -> Memory:
    """The memory that ``plaudit plan`` states."""
    recipe = parse_recipe(
        {
            "model": {"base": question.base},
            "lora": dict(LORA),
            "data": {"train": "pairs.jsonl"},
            "tokens": {
                "max_length": 8192,
                "max_tokens_per_microbatch": question.tokens or "auto",
            },
            "train": {
                "per_device_train_batch_size": question.shape.prompts,
                "gradient_checkpointing": question.checkpointing,
            },
        },
        "check",
    )
    lengths = equal_lengths(question.shape.prompt, question.shape.response)
    hardware = Hardware(gpus=find_gpus(question.gpu))
    return plan_run(recipe, hardware, (1000, lengths)).memory


def _questions(bench: Bench, measured: dict[str, Case]) -> Iterator[tuple[Case, Question]]:
    # Of tiny steps one is enough to see that it runs.
    settings = (Setting(chosen=True), *([] if bench.tiny else [_PLAIN, _SAVING]))
    for setting in settings:
        for shape in bench.sizes.training:
            case = measured.get(f"{shape.name}, {setting.name}")
            if case is None:
                continue
            tokens = case.numbers["micro_batch_tokens"]
            assert isinstance(tokens, int)
            yield (
                case,
                Question(
                    base=str(base_path()) if bench.tiny else BASE,
                    gpu=bench.gpu or "H100",
                    shape=shape,
                    checkpointing=None if setting.chosen else setting.checkpointing,
                    tokens=None if setting.chosen else tokens,
                ),
            )


_PLAIN, _SAVING = Setting(), Setting(checkpointing=True)


def _compare(part: Part, case: Case, planned: Memory) -> None:
    peak = case.numbers["peak_bytes"]
    part.measured(
        case.name,
        peak_bytes=peak,
        predicted_bytes=planned.total,
        predicted_over_peak=planned.total / peak if isinstance(peak, int) else None,
        micro_batch_tokens=case.numbers["micro_batch_tokens"],
        predicted_micro_batch_tokens=planned.micro_batch_tokens,
        checkpointed_layers=case.numbers.get("checkpointed_layers"),
        predicted_checkpointed_layers=planned.checkpointed_layers,
    )
