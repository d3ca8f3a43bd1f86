"""Steps of the large model under LoRA, through plaudit's own trainer: speed, memory, waits, parts.

A step is all that ``Trainer.train()`` does between two optimizer steps. Prompts and responses are
random ids; the first response of each prompt is the chosen one.
"""

from __future__ import annotations

import statistics
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback

from benchmarks.common.flops import LORA_STEP, work
from benchmarks.common.models import linear_weights
from benchmarks.common.sides import Groups, Prepared, plaudit_trainer
from benchmarks.gpu.bench import (
    Bench,
    Clock,
    Layers,
    Shape,
    attention_counts,
    attention_forms,
    forced_attention,
    layer_kernels,
    patched_modules,
    runs_liger,
    sharing,
    trainable,
)
from benchmarks.gpu.record import Part
from plaudit.planning.measure import CudaMeter, StorageMeter
from plaudit.planning.microbatch import MicroBatches
from plaudit.tokens.store import StoredTrees
from plaudit.training.budget import BudgetRequest, decide_micro_batches
from plaudit.training.prepare import checkpointing_options
from plaudit.types import TokenTree


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a step is computed. ``form`` None is the default attention.

    ``chosen``: micro-batches and recomputed layers are those that ``plaudit train`` chooses. The
    other settings have the same budget of tokens, which is halved where it does not fit.
    """

    chosen: bool = False
    form: str | None = None
    checkpointing: bool = False
    layers: Layers = "chosen"

    @property
    def name(self) -> str:
        parts = ["as plaudit train chooses"] * self.chosen
        parts += [self.form or "default attention"]
        parts += ["checkpointing"] * self.checkpointing
        names = {
            "chosen": [],
            "pytorch": ["PyTorch's kernels"],
            "own": ["transformers' own layers"],
        }
        parts += names[self.layers]
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of each timed step and loss of every step.

    ``peak_bytes`` is the most memory allocated in timed steps, None on a CPU. ``budget`` are the
    tokens of a micro-batch at the end, None for sides that have none.
    """

    seconds: list[float]
    losses: list[float]
    peak_bytes: int | None
    budget: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


# ---- parts


def measure_steps(bench: Bench, part: Part) -> None:
    """Every shape by default; then checkpointing, layers and attention forms, one at a time."""
    others = [
        Setting(checkpointing=True),
        Setting(layers="own"),
        *([Setting(layers="pytorch")] if runs_liger() else []),
        *(Setting(form=form) for form in attention_forms(bench.device)[1:]),
    ]
    first, *more = bench.sizes.training
    for settings, shapes in (
        ([Setting()], bench.sizes.training),
        (others, [first]),
        ([Setting(chosen=True)], bench.sizes.training),
        (others, more),
    ):
        for setting in settings:
            for shape in shapes:
                name = f"{shape.name}, {setting.name}"
                with layer_kernels(setting.layers):
                    part.attempt(name, partial(_measure_setting, bench, part, shape, setting))


def _measure_setting(bench: Bench, part: Part, shape: Shape, setting: Setting) -> None:
    trees = shape.trees(bench.vocabulary, bench.seed)
    groups = [trees] * (bench.sizes.warm_up + bench.sizes.timed)
    side = large_side(bench, setting, bench.sizes.budget)
    choice: dict[str, int | None] = {}
    if setting.chosen:
        side, chosen = choose_budget(bench, side, trees)
        choice = {
            "checkpointed_layers": chosen.checkpointed_layers,
            "micro_batch_bytes_needed": chosen.bytes_needed,
            "micro_batch_bytes_free": chosen.bytes_free,
        }
    fused = patched_modules(side.run.built.model.module)
    attention_counts()
    with forced_attention(setting.form):
        timing = timed(bench, side, groups)
    forms = attention_counts()
    computed = sum(tree.tokens for tree in trees)
    operations = work(bench.base, trees, LORA_STEP)
    numbers = utilisation(bench, computed, timing.median, sum(operations.values()))
    # The budget where the trainer found the first one too large.
    tokens = timing.budget or bench.sizes.budget
    part.measured(
        f"{shape.name}, {setting.name}",
        seconds=timing.median,
        step_seconds=timing.seconds,
        tokens=computed,
        micro_batch_tokens=tokens,
        pairs_per_second=len(trees) / timing.median,
        **numbers,
        **choice,
        peak_bytes=timing.peak_bytes,
        losses=timing.losses,
        attention=forms,
        fused_modules=fused,
    )


def utilisation(
    bench: Bench, tokens: int, seconds: float, operations: float
) -> dict[str, float | None]:
    """Tokens/s and shares of the card's published rate.

    ``mfu_4n`` and ``mfu_6n`` count 4 and 6 operations for each linear weight and token and nothing
    for attention: what a LoRA step needs, and what a step with recomputation or of all weights
    computes. ``mfu`` counts what the step needs with attention and without what the last layer
    leaves out (benchmarks/common/flops.py).
    """
    rate, weights = bench.published_flops, linear_weights(bench.base)

    def share(count: float) -> float | None:
        return None if rate is None else count / seconds / rate

    return {
        "tokens_per_second": tokens / seconds,
        "tflops": operations / seconds / 1e12,
        "mfu": share(operations),
        "mfu_4n": share(4.0 * weights * tokens),
        "mfu_6n": share(6.0 * weights * tokens),
    }


def check_sync(bench: Bench, part: Part) -> None:
    """A step that asks the device for a number waits for all that it still computes."""
    shape = bench.sizes.training[0]
    groups = [shape.trees(bench.vocabulary, bench.seed)] * 4
    watch = _Watch(bench.device)
    with training(large_side(bench, Setting(), bench.sizes.budget), groups) as trainer:
        trainer.add_callback(watch)
        try:
            trainer.train()
        except RuntimeError as error:
            if SYNCHRONIZING not in str(error):
                raise
            watch.error = traceback.format_exc(limit=-8)
        finally:
            watch.close()
    if bench.device.type == "cuda":
        part.expect(
            "no wait in a step",
            not watch.waits,
            "torch.cuda.set_sync_debug_mode reports no synchronising call in a whole step",
            places=dict(watch.waits),
        )
        part.expect("no wait under mode error", not watch.error, watch.error or "the step ran")
    else:
        part.not_run("no wait in a step", "needs CUDA: set_sync_debug_mode")
    part.measured("launches", **watch.launches)


def profile_step(bench: Bench, part: Part) -> None:
    """The device time of one step by kernel, in profile.txt, and by kind of work."""
    shape = bench.sizes.training[0]
    groups = [shape.trees(bench.vocabulary, bench.seed)] * 3
    tokens = bench.sizes.budget // 2
    profiled = _Profile(bench.device, step=2)
    with training(large_side(bench, Setting(), tokens), groups) as trainer:
        trainer.add_callback(profiled)
        trainer.train()
    part.text("profile.txt", profiled.table())
    seconds = profiled.by_kind()
    whole = sum(seconds.values())
    part.measured(
        f"{shape.name}, one step of {tokens} tokens a micro-batch",
        device_seconds=whole,
        **{f"{kind}_share": value / whole for kind, value in seconds.items()},
    )


# ---- plaudit's side


def large_side(
    bench: Bench, setting: Setting, tokens: int, base: nn.Module | None = None
) -> Prepared:
    """The large model, or ``base``, as plaudit trains it, in place of the small run's."""
    plain = bench.base if base is None else base
    run = bench.borrowed.run
    model = bench.plaudit_side(plain, lora=True)
    if setting.checkpointing:
        model.module.activation_checkpointing_enable(**checkpointing_options(run.args))
    built = replace(run.built, model=model, batcher=bench.packed(tokens))
    return replace(
        bench.borrowed,
        run=replace(run, built=built),
        start=trainable(model.module.network),
        classifier=lambda: sharing(plain),
    )


def choose_budget(
    bench: Bench, side: Prepared, trees: Sequence[TokenTree]
) -> tuple[Prepared, MicroBatches]:
    """The side with the micro-batches that ``plaudit train`` chooses for it on this device."""
    run = side.run
    request = BudgetRequest(
        tokens=None,
        checkpointing=None,
        trees_per_step=len(trees),
        optimizer=str(getattr(run.args.optim, "value", run.args.optim)),
        autocast=None,
    )
    choose = partial(
        decide_micro_batches,
        run.built.model.module,
        bench.packed(bench.sizes.budget),
        cast(StoredTrees, ShapedTrees(trees)),
        request,
    )
    if bench.device.type == "cuda":
        chosen = choose(CudaMeter(bench.device))
    else:
        with StorageMeter(1 << 30) as meter:
            chosen = choose(meter)
    built = replace(run.built, batcher=bench.packed(chosen.tokens), micro_batches=chosen)
    return replace(side, run=replace(run, built=built)), chosen


class ShapedTrees(tuple[TokenTree, ...]):
    """Trees that tell their sizes as stored ones do."""

    def lengths(self, name: str) -> np.ndarray:
        assert name == "branches"
        return np.array([len(tree.branches) for tree in self])

    def column(self, name: str) -> np.ndarray:
        sizes = {"packed": lambda tree: tree.tokens, "separate": lambda tree: sum(tree.lengths)}
        return np.array([sizes[name](tree) for tree in self])


@contextmanager
def training(
    side: Prepared,
    groups: Groups,
    make: Callable[[Prepared, Groups], Trainer] = plaudit_trainer,
) -> Iterator[Trainer]:
    """A trainer over ``groups``, whose model is freed at the end."""
    trainer: Any = make(side, groups)
    try:
        yield trainer
    finally:
        # Trainer, optimizer and callbacks refer to each other.
        trainer.optimizer = trainer.model = trainer.model_wrapped = None
        trainer.callback_handler.optimizer = trainer.callback_handler.model = None
        trainer.accelerator.free_memory()


def timed(
    bench: Bench,
    side: Prepared,
    groups: Groups,
    make: Callable[[Prepared, Groups], Trainer] = plaudit_trainer,
) -> Timing:
    """Train on ``groups``, the first of which warm up.

    Of one group there is a loss and no time.
    """
    with training(side, groups, make) as trainer:
        clock, losses = _StepClock(bench), _losses_of(trainer)
        trainer.add_callback(clock)
        trainer.train()
        micro = len(losses) // len(groups)
        batcher = getattr(trainer, "batcher", None)
        return Timing(
            seconds=clock.clock.seconds(),
            losses=[
                float(sum(float(loss) for loss in losses[i : i + micro]))
                for i in range(0, len(losses), micro)
            ],
            peak_bytes=bench.peak_bytes(),
            budget=None if batcher is None else batcher.max_tokens,
        )


def _losses_of(trainer: Any) -> list[torch.Tensor]:
    """What ``training_step`` returns: the Trainer itself rounds the losses it logs."""
    taken, losses = trainer.training_step, []

    def training_step(*arguments: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = taken(*arguments, **options)
        losses.append(loss.detach())
        return loss

    trainer.training_step = training_step
    return losses


class _StepClock(TrainerCallback):
    """Starts at the end of the last step that warms up, where a peak of memory starts too."""

    def __init__(self, bench: Bench) -> None:
        self.clock = Clock(bench.device)
        self._bench = bench

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._bench.sizes.warm_up:
            self._bench.reset_peak()
        if state.global_step >= self._bench.sizes.warm_up:
            self.clock.tick()


# ---- waits and launches

SYNCHRONIZING = "called a synchronizing CUDA operation"
"""What PyTorch says at a wait; of switching this on it also says "synchronizing", once."""


class _Watch(TrainerCallback):
    """The second step counts waits, the third launches, the fourth stops at a wait."""

    def __init__(self, device: torch.device) -> None:
        self.waits: Counter[str] = Counter()
        self.launches: dict[str, int] = {}
        self.error = ""
        self._cuda = device.type == "cuda"
        self._stack = ExitStack()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step + 1
        if step == 2 and self._cuda:
            self._caught = self._stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        elif step == 3:
            self._profile = self._stack.enter_context(profile(activities=_activities(self._cuda)))
        elif step == 4 and self._cuda:
            torch.cuda.set_sync_debug_mode("error")

    def close(self) -> None:
        """Waits are allowed again."""
        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
        self._stack.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
        if step == 2 and self._cuda:
            self.waits.update(
                f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"
                for warning in self._caught
                if SYNCHRONIZING in str(warning.message)
            )
        self._stack.close()
        if step == 3:
            names = Counter(event.name for event in self._profile.events() or ())
            self.launches = {
                "kernels": sum(n for name, n in names.items() if "LaunchKernel" in name),
                "operators": sum(n for name, n in names.items() if name.startswith("aten::")),
                "numbers_asked_for": names["aten::_local_scalar_dense"],
            }


def _activities(cuda: bool) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]


# ---- where the time of a step goes

KINDS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("attention", ("flash", "fmha", "attention", "attn")),
    ("matmul", ("gemm", "nvjet", "cutlass", "cublas", "::mm", "addmm", "bmm", "matmul")),
    ("copies", ("memcpy", "memset", "copy", "gather", "index", "cat")),
)
"""Kinds of work, by parts of kernels' names, the first that fits; what is left is elementwise."""


class _Profile(TrainerCallback):
    def __init__(self, device: torch.device, *, step: int) -> None:
        self._cuda = device.type == "cuda"
        self._step = step
        self._stack = ExitStack()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self._step:
            self._profile = self._stack.enter_context(profile(activities=_activities(self._cuda)))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self._stack.close()

    def table(self) -> str:
        order = "self_device_time_total" if self._cuda else "self_cpu_time_total"
        return str(self._profile.key_averages().table(sort_by=order, row_limit=40))

    def by_kind(self) -> dict[str, float]:
        """Seconds of device time, on a CPU of operators' own time."""
        seconds = dict.fromkeys([*(kind for kind, _ in KINDS), "elementwise"], 0.0)
        for event in self._profile.key_averages():
            own = event.self_device_time_total if self._cuda else event.self_cpu_time_total
            on_device = str(event.device_type).endswith("CUDA")
            # An operator's own device time is that of its kernels, which are listed too; that of an
            # annotated region, such as the optimizer's step, is that of all kernels in it.
            if own > 0 and on_device == self._cuda and not event.is_user_annotation:
                seconds[_kind(event.key)] += own / 1e6
        return seconds


def _kind(name: str) -> str:
    low = name.lower()
    fitting = (kind for kind, parts in KINDS if any(part in low for part in parts))
    return next(fitting, "elementwise")
