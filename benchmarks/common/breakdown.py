"""Where a pass spends its time: torch.profiler's operators by the part of the model they serve.

Forward operators stand in labelled ranges that module hooks open. A backward operator belongs where
the forward operator of the same autograd node does. Products are the base's or the adapter's by
their shapes: only the adapter's have a side of the rank.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "attention"
LINEAR = "linear layers"
LORA = "LoRA"
ELEMENTWISE = "norms, rotary, activations, sums"
HEAD = "head and loss"
OPTIMIZER = "optimizer and clipping"
HOST = "host"
PARTS = (LINEAR, ATTENTION, LORA, ELEMENTWISE, HEAD, OPTIMIZER, HOST)

_LABEL = "part: "
_BACKWARD = "autograd::engine::evaluate_function"
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "mkldnn", "mkl")


@contextlib.contextmanager
def labelled(module: nn.Module, network: Any) -> Iterator[None]:
    """Open a range for every part while the block runs; ``module`` is what is called."""
    undo: list[Any] = []
    for name, child in module.named_modules():
        label = _label(name, child)
        if label is not None:
            undo += _open_around(child, label)
    undo += _open_around(module, HEAD)
    body = network.get_base_model() if hasattr(network, "get_base_model") else network
    undo += _open_around(body.base_model, ELEMENTWISE)
    kind = body.config._attn_implementation
    plain = ALL_ATTENTION_FUNCTIONS[kind]

    def attention(*arguments: Any, **options: Any) -> Any:
        with record_function(_LABEL + ATTENTION):
            return plain(*arguments, **options)

    ALL_ATTENTION_FUNCTIONS[kind] = attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[kind] = plain
        for handle in undo:
            handle.remove()


def _label(name: str, child: nn.Module) -> str | None:
    if isinstance(child, LoraLayer):
        return LORA
    if isinstance(child, nn.Linear) and "lora_" not in name:
        return HEAD if "score" in name else LINEAR
    return None


def _open_around(module: nn.Module, label: str) -> list[Any]:
    ranges: list[Any] = []

    def enter(*_: Any) -> None:
        opened = record_function(_LABEL + label)
        opened.__enter__()
        ranges.append(opened)

    def leave(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]


def profiler() -> profile:
    """CPU operators with their shapes."""
    return profile(activities=[ProfilerActivity.CPU], record_shapes=True)


def parts(profiled: profile, seconds: float, rank: int) -> dict[str, float]:
    """Seconds of each part; what no operator accounts for is the host's."""
    events = [e for e in profiled.events() or () if e.device_type.name == "CPU"]
    label_of_node: dict[int, str] = {}
    for event in sorted(events, key=lambda e: e.time_range.start):
        if event.sequence_nr >= 0 and _ancestor(event, _BACKWARD) is None:
            label_of_node[event.sequence_nr] = _forward_label(event)
    taken: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if not _computes(event.name):
            continue
        backward = _ancestor(event, _BACKWARD)
        label = (
            _forward_label(event)
            if backward is None
            else label_of_node.get(backward.sequence_nr, LORA)
        )
        taken[_refined(event, label, rank)] += event.self_cpu_time_total / 1e6
    taken[HOST] = max(0.0, seconds - sum(taken.values()))
    return {part: taken.get(part, 0.0) for part in PARTS}


def _computes(name: str) -> bool:
    return name.startswith(("aten::", "mkldnn", "mkl", "plaudit::"))


def _forward_label(event: Any) -> str:
    at = event
    while at is not None:
        if at.name.startswith(_LABEL):
            return str(at.name.removeprefix(_LABEL))
        if at.name.startswith("Optimizer."):
            return OPTIMIZER
        at = at.cpu_parent
    return OPTIMIZER if "_foreach_" in event.name else HEAD


def _refined(event: Any, label: str, rank: int) -> str:
    """A product inside an adapted layer is the adapter's if one of its sides is the rank."""
    if label not in (LORA, LINEAR) or not event.name.startswith(_PRODUCTS):
        return label
    sides = [side for shape in event.input_shapes for side in shape if isinstance(side, int)]
    return LORA if rank in sides else LINEAR


def _ancestor(event: Any, name: str) -> Any:
    at = event
    while at is not None:
        if at.name.startswith(name):
            return at
        at = at.cpu_parent
    return None
