"""Steps, memory, operations and time of a run. Pure functions of sizes, lengths and the recipe."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from plaudit.errors import DataError, RecipeError, nearest
from plaudit.model.precision import choose_dtype
from plaudit.planning.microbatch import (
    Cost,
    MicroBatches,
    Shapes,
    choose,
    most_bytes,
    packed_shape,
    padded_shape,
)
from plaudit.recipe.schema import MICROBATCH_TOKENS, Recipe, Truncation
from plaudit.types import Comparison, Turns

if TYPE_CHECKING:
    from plaudit.planning.architecture import ModelSize

UTILISATION = 0.35
"""Share of a GPU's peak assumed to be reached; fine-tuning with stock kernels gets 0.3 to 0.5."""

CONTEXT_BYTES = 10**9
"""Bytes of a GPU that CUDA and its libraries take. The rule for micro-batches spares some more."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# NF4 with double quantization: 4 bits, and 8/64 + 32/(64*256) bits of constants a weight
# (Dettmers et al., 2023, arXiv:2305.14314, section 3).
FOUR_BIT_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8

# Optimizer states per trainable parameter, and bytes of each (None: those of the parameter).
OPTIMIZER_STATES: dict[str, tuple[int, int | None]] = {
    "adamw_torch": (2, None),
    "adamw_torch_fused": (2, None),
    "paged_adamw_32bit": (2, 4),
    "adamw_8bit": (2, 1),
    "adamw_bnb_8bit": (2, 1),
    "paged_adamw_8bit": (2, 1),
    "lion_32bit": (1, 4),
    "lion_8bit": (1, 1),
    "sgd": (0, None),
    "adagrad": (1, None),
    "rmsprop": (1, None),
}


@dataclass(frozen=True, slots=True)
class Split:
    """Comparisons of each part, and in all; those over length are left out of them."""

    train: int
    evaluation: int
    test: int
    over_length: int = field(default=0, kw_only=True)

    @property
    def pairs(self) -> int:
        return self.train + self.evaluation + self.test


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Optimizer steps. ``mid_2024`` is the number a Trainer of that time took in all."""

    pairs_per_step: int
    epochs: float
    per_epoch: int
    total: int
    mid_2024: int
    evaluations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens the model computes in one epoch over the training part."""

    how: str
    per_pair: float
    packed_per_epoch: int
    padded_per_epoch: int
    largest_comparison: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on each device, by part.

    ``activations`` are those of the largest micro-batch, half-precision copies of weights among
    them; None where they cannot be told. ``gpu`` is the GPU whose memory decides their size.
    """

    weights: int
    adapter_and_head: int
    gradients: int
    optimizer: int
    activations: int | None
    micro_batch_tokens: int
    checkpointed_layers: int
    layers: int
    gpu: str

    @property
    def static(self) -> int:
        return self.weights + self.adapter_and_head + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.static + (self.activations or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations of the whole run."""

    forward: float
    backward: float
    recomputation: float
    evaluation: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recomputation + self.evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """The run on some number of one GPU. ``fits`` is None where activations cannot be told.

    ``micro_batches`` is how ``plaudit train`` would split a step there, None where nothing fits.
    """

    fits: bool | None
    micro_batches: MicroBatches | None
    seconds: float
    gigabytes: float
    tflops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The GPUs to plan for by name, how many of one, and the share of its peak that is reached."""

    gpus: Mapping[str, Gpu]
    devices: int = 1
    utilisation: float = UTILISATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything ``plaudit plan`` shows."""

    base: str
    method: str
    devices: int
    utilisation: float
    model: ModelSize
    split: Split
    steps: Steps
    tokens: Tokens
    memory: Memory
    flops: Flops
    gpus: Mapping[str, OnGpu]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the totals among them."""
        record = asdict(self)
        record["split"]["pairs"] = self.split.pairs
        record["memory"]["total"] = self.memory.total
        record["flops"]["total"] = self.flops.total
        return record


def plan(
    recipe: Recipe,
    *,
    size: ModelSize,
    lengths: Lengths,
    split: Split,
    hardware: Hardware,
    packed: bool,
    costs: Costs,
) -> Plan:
    """What the recipe will take on each kind of hardware.

    ``lengths`` are those of the training part. ``packed`` is whether each prompt is computed once.
    ``costs`` tells the bytes of micro-batches of the comparisons that it is given.

    Raises:
        DataError: no comparison is within the recipe's maximum length.
        RecipeError: the recipe's training keys contradict each other.
    """
    arguments, devices = recipe.training_arguments, hardware.devices
    tokens = recipe.tokens
    layouts = summarize(
        lengths,
        max_length=tokens.max_length,
        truncation=tokens.truncation,
        batch=arguments["per_device_train_batch_size"],
    )
    steps = count_steps(arguments, split.train, devices)
    own = layouts[0 if packed else 1]
    rows = within(lengths, max_length=tokens.max_length, truncation=tokens.truncation)
    if len(rows) == 1:
        # One that stands for all.
        rows *= max(steps.pairs_per_step, _STANDS_FOR)
    static = count_memory(recipe, arguments, size, devices)
    step = StepShapes(
        Shapes.of((packed_shape if packed else padded_shape)(r.prompt, r.responses) for r in rows),
        costs(rows),
        recipe,
        steps.pairs_per_step if packed else len(rows),
    )
    choices = {name: step.choose(gpu, static) for name, gpu in hardware.gpus.items()}
    shown = _shown_gpu(hardware.gpus, choices)
    memory = step.with_activations(static, shown, choices[shown])
    flops = {
        layers: count_flops(
            arguments, size, own, split, steps, lora=recipe.lora is not None, recomputed=layers
        )
        for layers in {0.0, *map(_recomputed, [*choices.values(), memory])}
    }
    return Plan(
        base=recipe.model.base,
        method=recipe.method,
        devices=devices,
        utilisation=hardware.utilisation,
        model=size,
        split=split,
        steps=steps,
        tokens=Tokens(
            how=lengths.how,
            per_pair=layouts[0].tokens,
            packed_per_epoch=round(layouts[0].tokens * split.train),
            padded_per_epoch=round(layouts[1].tokens * split.train),
            largest_comparison=layouts[0].largest,
        ),
        memory=memory,
        flops=flops[_recomputed(memory)],
        gpus={
            name: on_gpu(gpu, memory, choices[name], flops[_recomputed(choices[name])], hardware)
            for name, gpu in hardware.gpus.items()
        },
        notes=tuple(notes(recipe, arguments, split, steps, memory, packed)),
    )


_STANDS_FOR = 1024

Costs: TypeAlias = Callable[[Sequence["Length"]], Mapping[int, Cost] | None]
"""The cost of a micro-batch of such comparisons for each number of recomputed layers, None where
it cannot be told.
"""


@dataclass(frozen=True, slots=True)
class StepShapes:
    """What decides how a step is split: the trees, their cost, the recipe, the trees of a step."""

    shapes: Shapes
    costs: Mapping[int, Cost] | None
    recipe: Recipe
    trees_per_step: int

    def choose(self, gpu: Gpu, static: Memory) -> MicroBatches | None:
        """As ``plaudit train`` would on this GPU."""
        free = gpu.gigabytes * 1e9 - CONTEXT_BYTES - static.static
        if not self._costs or free <= 0:
            return None
        tokens = self.recipe.microbatch_tokens
        return choose(
            self._costs,
            self.shapes,
            free,
            trees_per_step=self.trees_per_step,
            tokens=tokens or (MICROBATCH_TOKENS if self._is_wrapped else None),
        )

    def with_activations(self, static: Memory, gpu: str, chosen: MicroBatches | None) -> Memory:
        """The memory with the activations of the choice; of one comparison where nothing fits."""
        costs = self._costs
        if not costs:
            return replace(static, gpu=gpu)
        layers = max(costs) if chosen is None else chosen.checkpointed_layers or 0
        tokens = self.shapes.most_tokens(1) if chosen is None else chosen.tokens
        needed = most_bytes(costs[layers], self.shapes, tokens, self.trees_per_step)
        return replace(
            static,
            gpu=gpu,
            activations=round(needed),
            # No micro-batch has more tokens than a step, and no comparison is cut.
            micro_batch_tokens=max(
                self.shapes.most_tokens(1),
                min(tokens, self.shapes.most_tokens(self.trees_per_step)),
            ),
            checkpointed_layers=layers,
        )

    @property
    def _costs(self) -> Mapping[int, Cost]:
        """Those that the recipe leaves to choose from."""
        every, asked = self.costs or {}, self.recipe.checkpointing
        if not every or (asked is None and not self._is_wrapped):
            return every
        layers = max(every) if asked else 0
        return {layers: every[layers]}

    @property
    def _is_wrapped(self) -> bool:
        """Whether FSDP or DeepSpeed shares the weights: then a run does not measure."""
        return bool(self.recipe.train.get("fsdp") or self.recipe.train.get("deepspeed"))


def _shown_gpu(gpus: Mapping[str, Gpu], choices: Mapping[str, MicroBatches | None]) -> str:
    """The smallest GPU on which nothing is recomputed, or else the largest one."""
    by_memory = sorted(gpus, key=lambda name: gpus[name].gigabytes)
    plain = [name for name in by_memory if (one := choices[name]) and not one.checkpointed_layers]
    return plain[0] if plain else by_memory[-1]


def _recomputed(of: MicroBatches | Memory | None) -> float:
    """The share of the layers that is computed twice."""
    return (of.checkpointed_layers or 0) / of.layers if of is not None and of.layers else 0.0


def count_steps(arguments: Mapping[str, Any], train: int, devices: int) -> Steps:
    """Steps of the run; the last step of an epoch takes what is left over."""
    per_device = arguments["per_device_train_batch_size"]
    accumulation = arguments["gradient_accumulation_steps"]
    epochs = float(arguments["num_train_epochs"])
    batches = math.ceil(train / (per_device * devices))
    per_epoch = math.ceil(batches / accumulation)
    limit = arguments["max_steps"]
    total = limit if limit > 0 else math.ceil(epochs * per_epoch)
    # transformers 4.41: len(dataloader) // accumulation steps an epoch, at least one; the batches
    # left over went into the first step of the next epoch.
    mid_2024 = math.ceil(epochs * max(1, batches // accumulation))
    return Steps(
        pairs_per_step=per_device * devices * accumulation,
        epochs=total / per_epoch if limit > 0 else epochs,
        per_epoch=per_epoch,
        total=total,
        mid_2024=limit if limit > 0 else mid_2024,
        evaluations=_evaluations(arguments, total, epochs),
    )


def _evaluations(arguments: Mapping[str, Any], total: int, epochs: float) -> int:
    """Evaluations on schedule; the saved model is evaluated once more at the end."""
    if arguments["eval_strategy"] == "no":
        return 0
    if arguments["eval_strategy"] == "epoch":
        return math.ceil(epochs)
    every = arguments["eval_steps"] or 0.1
    return total // math.ceil(every * total if every < 1 else every)


def count_memory(
    recipe: Recipe, arguments: Mapping[str, Any], size: ModelSize, devices: int
) -> Memory:
    """Bytes per device without activations.

    Under FSDP, weights, gradients and states are shared out evenly.
    """
    lora = recipe.lora is not None
    weight_bytes = DTYPE_BYTES[body_dtype(recipe)]
    trainable_bytes = 4 if lora else weight_bytes
    weights = size.body * weight_bytes
    if recipe.model.quantize:
        rest = size.body - size.linear
        weights = round(size.linear * FOUR_BIT_BYTES) + rest * weight_bytes
    states, state_bytes = OPTIMIZER_STATES.get(arguments["optim"], (2, None))
    shards = devices if arguments.get("fsdp") else 1
    return Memory(
        weights=weights // shards,
        adapter_and_head=(size.total - size.body) * 4 // shards,
        # DDP has a second copy in its buckets.
        gradients=size.trainable * trainable_bytes * (2 if devices > shards else 1) // shards,
        optimizer=size.trainable * states * (state_bytes or trainable_bytes) // shards,
        activations=None,
        micro_batch_tokens=0,
        checkpointed_layers=0,
        layers=size.layers,
        gpu="",
    )


def body_dtype(recipe: Recipe) -> str:
    """The dtype of the body's weights on a GPU that has bf16."""
    return choose_dtype(recipe.model.dtype, device_type="cuda", bf16=True, purpose=recipe.method)


def autocasts(recipe: Recipe) -> bool:
    """Whether fp32 weights compute in half precision on a GPU."""
    asked = recipe.train.get("bf16") or recipe.train.get("fp16") or recipe.defaults_to_bf16
    return body_dtype(recipe) == "float32" and bool(asked)


def activation_dtype(recipe: Recipe) -> str:
    """The dtype of hidden states on a GPU."""
    return "bfloat16" if autocasts(recipe) else body_dtype(recipe)


def count_flops(
    arguments: Mapping[str, Any],
    size: ModelSize,
    lengths: LayoutLengths,
    split: Split,
    steps: Steps,
    *,
    lora: bool,
    recomputed: float,
) -> Flops:
    """Operations of the run: two for each weight a token meets, and the attention products.

    A full training step costs 2N forward, 2N for the gradients of activations and 2N for those of
    weights, 6N a token (Kaplan et al., 2020, arXiv:2001.08361, section 2.1). With a frozen base the
    last part is spent on the adapter alone, so LoRA costs about 4N. Attention adds 4 operations a
    layer for each attended pair and each of its channels forward and 8 backward (Chowdhery et al.,
    2022, arXiv:2204.02311, appendix B, without its assumption of full-length rows). Recomputing
    the activations of a share ``recomputed`` of the layers costs that share of a forward pass.
    """
    attention = 4 * size.attention_width * lengths.attended
    weights = size.linear + size.adapter
    updated = size.adapter if lora else size.linear
    forward = 2 * weights * lengths.tokens + attention
    backward = 2 * (weights + updated) * lengths.tokens + 2 * attention
    seen = split.train * steps.epochs
    # The saved model is evaluated once more at the end.
    evaluated = split.evaluation * (steps.evaluations + 1) + split.test
    return Flops(
        forward=forward * seen,
        backward=backward * seen,
        recomputation=recomputed * forward * seen,
        evaluation=forward * evaluated,
    )


def on_gpu(
    gpu: Gpu, memory: Memory, chosen: MicroBatches | None, flops: Flops, hardware: Hardware
) -> OnGpu:
    """Whether the run fits on each GPU, and how long it takes on all of them."""
    unknown = memory.activations is None and memory.static < gpu.gigabytes * 1e9 - CONTEXT_BYTES
    needed, free = (chosen.bytes_needed or 0, chosen.bytes_free or 0) if chosen else (1, 0)
    return OnGpu(
        fits=None if unknown else needed <= free,
        micro_batches=chosen,
        seconds=flops.total / (hardware.devices * gpu.tflops * 1e12 * hardware.utilisation),
        gigabytes=gpu.gigabytes,
        tflops=gpu.tflops,
    )


def notes(
    recipe: Recipe,
    arguments: Mapping[str, Any],
    split: Split,
    steps: Steps,
    memory: Memory,
    packed: bool,
) -> list[str]:
    """What a reader of the numbers has to know, one sentence each."""
    said = []
    if steps.mid_2024 != steps.total:
        left = split.train % steps.pairs_per_step
        said.append(
            f"A Trainer of mid-2024 (transformers 4.41) would take {steps.mid_2024:,} steps: it"
            f" carried the {left:,} left-over pairs of an epoch into the next epoch. Today's"
            f" Trainer takes an extra step for them ({steps.total:,} steps)."
        )
    if recipe.data.split_by == "prompt":
        said.append(
            "A split by prompt meets these sizes to within one group of rows with the same prompt."
        )
    if split.over_length:
        said.append(
            f"Longer than tokens.max_length, and skipped: {split.over_length:,} of the comparisons."
        )
    if memory.activations is not None:
        number = memory.checkpointed_layers
        layers = (
            f"with the activations of {number} of {memory.layers} layers recomputed"
            if number
            else "without activation checkpointing"
        )
        said.append(
            f"Activation memory is that of a micro-batch of {memory.micro_batch_tokens:,} tokens"
            f" {layers}, as plaudit train would choose on {memory.gpu}. Workspaces of kernels and"
            " Liger's kernels are not considered."
        )
    if memory.activations is None:
        said.append(
            "The activation memory of this architecture is unknown and is not in the total."
        )
    if not packed:
        said.append("Batches are padded, so the prompt is computed once per response.")
    if arguments["optim"] not in OPTIMIZER_STATES:
        said.append(f"The memory of optimizer {arguments['optim']!r} is estimated as that of Adam.")
    if arguments.get("deepspeed"):
        said.append("Offloading and sharding by DeepSpeed are not considered.")
    if body_dtype(recipe) == "float32" and not autocasts(recipe):
        said.append("Times assume bfloat16; a float32 base is several times slower.")
    return said


# ---- lengths in tokens

CHARACTERS_PER_TOKEN = 4
PADDED_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Tokens of one comparison: its shared prompt and each response's own."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def packed(self) -> int:
        """Tokens computed when the prompt is computed once."""
        return self.prompt + sum(self.responses)

    @property
    def longest(self) -> int:
        """Tokens of the longest whole conversation."""
        return self.prompt + max(self.responses)

    @property
    def attended(self) -> int:
        """Pairs of a token and one it attends to: itself, its branch before it, the prompt."""
        branches = sum(self.prompt * r + r * (r + 1) // 2 for r in self.responses)
        return self.prompt * (self.prompt + 1) // 2 + branches

    @property
    def attended_padded(self) -> int:
        """The same for separate rows, padding left out."""
        return sum((self.prompt + r) * (self.prompt + r + 1) // 2 for r in self.responses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths of a set of comparisons, or one that stands for all; ``how`` says how they came."""

    rows: tuple[Length, ...]
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutLengths:
    """Means per comparison in one layout of batches, and the tokens of the largest comparison."""

    tokens: float
    attended: float
    largest: int


def equal_lengths(prompt: int, response: int) -> Lengths:
    """Pairs that all have the same lengths."""
    return Lengths(
        rows=(Length(prompt=prompt, responses=(response, response)),), how="given lengths"
    )


def from_characters(comparisons: Iterable[Comparison]) -> Lengths:
    """Lengths estimated from the characters of prompts and responses, four to a token."""
    rows = tuple(
        Length(prompt=_tokens(item.prompt), responses=tuple(map(_tokens, item.responses)))
        for item in comparisons
    )
    return Lengths(rows=rows, how=f"estimated at {CHARACTERS_PER_TOKEN} characters per token")


def _tokens(turns: Turns) -> int:
    texts = [turns] if isinstance(turns, str) else [str(turn.content) for turn in turns]
    return max(1, math.ceil(sum(map(len, texts)) / CHARACTERS_PER_TOKEN))


def within(lengths: Lengths, *, max_length: int, truncation: Truncation) -> list[Length]:
    """The comparisons that the over-length policy keeps, shortened where it shortens."""
    shorten = _SHORTEN.get(truncation)
    rows = lengths.rows if shorten is None else [shorten(row, max_length) for row in lengths.rows]
    return [row for row in rows if row.longest <= max_length]


def summarize(
    lengths: Lengths,
    *,
    max_length: int,
    truncation: Truncation,
    batch: int,
) -> tuple[LayoutLengths, LayoutLengths]:
    """Of the comparisons that the over-length policy keeps: packed, and padded.

    Padded tokens are what batches of ``batch`` comparisons, in a shuffled order and padded to the
    longest conversation of the batch, would hold.

    Raises:
        DataError: no comparison is within ``max_length``.
    """
    rows = within(lengths, max_length=max_length, truncation=truncation)
    if not rows:
        raise DataError(
            f"every comparison is longer than tokens.max_length ({max_length}); raise it."
        )
    return (
        LayoutLengths(
            tokens=fmean(row.packed for row in rows),
            attended=fmean(row.attended for row in rows),
            largest=max(row.packed for row in rows),
        ),
        LayoutLengths(
            tokens=_padded(rows, batch),
            attended=fmean(row.attended_padded for row in rows),
            largest=max(row.longest * len(row.responses) for row in rows),
        ),
    )


def _shorten(row: Length, max_length: int) -> Length:
    excess = max(0, row.longest - max_length)
    if len(row.responses) == 1:
        # The prompt of a single response is counted with it.
        return Length(prompt=row.prompt, responses=(row.responses[0] - excess,))
    return Length(prompt=max(0, row.prompt - excess), responses=row.responses)


def _cut_in_proportion(row: Length, max_length: int) -> Length:
    """In proportion, without the rule of which part is cut first."""
    share = min(1.0, max_length / row.longest)
    return Length(
        prompt=int(share * row.prompt), responses=tuple(int(share * r) for r in row.responses)
    )


_SHORTEN: dict[str, Callable[[Length, int], Length]] = {
    "left": _shorten,
    "error": _shorten,
    "proportional": _cut_in_proportion,
}
"""What a policy makes of lengths over the limit; without a row they are left out."""


def _padded(rows: Sequence[Length], batch: int) -> float:
    order = list(rows)
    random.Random(PADDED_SEED).shuffle(order)
    total = 0
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        total += sum(len(row.responses) for row in part) * max(row.longest for row in part)
    return total / len(order)


# ---- GPUs
#
# Peak speeds and memories as their makers publish them. Where a data sheet counts structured
# sparsity, the dense rate is half of what it prints.


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU's dense bf16 rate with fp32 accumulation, and its memory.

    ``tflops`` is in 1e12 operations a second (fp16 where there is no bf16), ``gigabytes`` in 1e9
    bytes; ``source`` says where they are from.
    """

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


def find_gpus(name: str | None) -> dict[str, Gpu]:
    """The one GPU named, or all of them; ``h100``, ``RTX-4090`` and ``A100`` are understood.

    Raises:
        RecipeError: no GPU of that name.
    """
    if name is None:
        return GPUS
    plain = {key.lower().replace("-", ""): key for key in GPUS}
    asked = name.lower().replace("-", "").replace(" ", "")
    found = [asked] if asked in plain else [short for short in plain if short.startswith(asked)]
    if asked and found:
        return {plain[short]: GPUS[plain[short]] for short in found}
    close = nearest(asked, plain)
    guess = f"did you mean {plain[close]}?" if close else f"expected one of {', '.join(GPUS)}."
    raise RecipeError(f"--gpu {name}: unknown GPU; {guess}")
