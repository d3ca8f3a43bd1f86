"""Layers of a loaded model with fewer passes over memory.

Three kinds of layers run as subclasses of their own class (:class:`PatchedModule`): RMSNorm,
attention, and gated feed-forward layers. Attention and feed-forward also compute LoRA's small
products of layers with a common input together. A module is patched only where a trial on random
numbers shows that both codes agree, so Gemma's ``1 + weight`` and GLM's interleaved positions keep
their own. Where there are no kernels for a device and precision
(:data:`plaudit.model.fast.kernels.KERNELS`), and under autocast to another, the class's own code
runs.

Shapes: B rows, T tokens, H heads, D width of a norm or a head, the last dimension everywhere.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plaudit.model.fast.kernels import Kernels, kernels_for
from plaudit.model.fast.lora import project
from plaudit.model.fast.patched import PatchedModule


def fuse_layers(network: nn.Module) -> None:
    """Patch a network's norms, attentions and feed-forward layers, in place, where they agree."""
    patches: dict[Any, _Patch | None] = {}
    for module in list(network.modules()):
        # A forward of an instance, such as Liger's kernel or a hook of accelerate, hides the
        # class's. Without kernels for its precision there is nothing to try.
        if isinstance(module, PatchedModule) or "forward" in vars(module):
            continue
        sample = _sample(module)
        kernels = None if sample is None else kernels_for(sample)
        if sample is None or kernels is None:
            continue
        # Layers of one class may differ by such settings: windows, positions in some layers only.
        settings = [
            (name, value)
            for name, value in vars(module).items()
            if isinstance(value, (int, float, str)) and name != "layer_idx"
        ]
        key = type(module), tuple(settings)
        if key not in patches:
            patches[key] = _patch_of(module, sample, kernels)
        patch = patches[key]
        if patch is not None:
            module.__class__ = patch.kind
            vars(module).update(patch.attributes)


@dataclass(frozen=True, slots=True)
class _Patch:
    """The class to run a module as, and the attributes that this class reads."""

    kind: type
    attributes: Mapping[str, Any] = field(default_factory=dict)


def _sample(module: nn.Module) -> Tensor | None:
    """A number as the module's input has it: on its device, in its precision; None without weights.

    An adapter is in fp32 whatever its base is in, and a 4-bit base tells no precision.
    """
    parameters = list(module.parameters())
    if not parameters:
        return None
    kinds = {p.dtype if p.is_floating_point() else torch.bfloat16 for p in parameters}
    half = kinds - {torch.float32}
    return torch.empty((), dtype=half.pop() if half else torch.float32, device=parameters[0].device)


def _random(like: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    """Random numbers that are the same on every device, as ``like`` is."""
    return torch.randn(shape, generator=generator).to(like)


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether rounding explains the difference."""
    if found.shape != expected.shape:
        return False
    tolerance = max(4 * torch.finfo(expected.dtype).eps, 1e-5)
    difference, largest = (found - expected).abs().max(), expected.abs().max()
    return bool(difference <= tolerance * largest.clamp_min(1.0))


def _patch_of(module: nn.Module, sample: Tensor, kernels: Kernels) -> _Patch | None:
    if _is_rms_norm(module, sample, kernels):
        return _Patch(FusedRMSNorm.of(type(module)))
    if _is_gated(module, sample):
        return _Patch(FusedGated.of(type(module)), {"is_swiglu": _is_silu(module.act_fn, sample)})
    settings = _common_attention(module, sample)
    if settings is not None:
        return _Patch(FusedAttention.of(type(module)), {"interface_settings": settings})
    return None


# ---- RMSNorm


class FusedRMSNorm(PatchedModule):
    """A norm whose code is Llama's: ``weight * x / rms(x)``."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        kernels = kernels_for(hidden_states, self.weight)
        if kernels is not None:
            return kernels.rms_norm(hidden_states, self.weight, self.variance_epsilon)
        own: Tensor = super().forward(hidden_states)
        return own


def _is_rms_norm(module: nn.Module, sample: Tensor, kernels: Kernels) -> bool:
    """Whether a module computes ``weight * x / rms(x)``, found by trying."""
    parameters = dict(module.named_parameters())
    if set(parameters) != {"weight"} or not isinstance(vars(module).get("variance_epsilon"), float):
        return False
    if len(inspect.signature(module.forward).parameters) != 1:
        # Norms of hybrid models take a gate beside their input.
        return False
    generator = torch.Generator().manual_seed(0)
    width = len(parameters["weight"])
    x, weight = (_random(sample, generator, *shape) for shape in ((2, 3, width), (width,)))
    own = torch.func.functional_call(module, {"weight": weight}, (x,))
    fused = kernels.rms_norm(x, weight, vars(module)["variance_epsilon"])
    return isinstance(own, Tensor) and _agree(fused, own)


# ---- gated feed-forward


class FusedGated(PatchedModule):
    """A feed-forward layer in the form ``down_proj(act_fn(gate_proj(x)) * up_proj(x))``."""

    is_swiglu: bool
    act_fn: Any
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project((self.gate_proj, self.up_proj), x)
        kernels = kernels_for(gate, up) if self.is_swiglu else None
        inner = self.act_fn(gate) * up if kernels is None else kernels.swiglu(gate, up)
        out: Tensor = self.down_proj(inner)
        return out


_GATED_PARTS = frozenset({"gate_proj", "up_proj", "down_proj"})


def _is_gated(module: nn.Module, sample: Tensor) -> bool:
    """Whether :class:`FusedGated` can run a module, found by trying."""
    parts = dict(module.named_children())
    if not parts.keys() >= _GATED_PARTS or not callable(getattr(module, "act_fn", None)):
        return False
    if len(inspect.signature(module.forward).parameters) != 1:
        return False
    trial: Any = copy.copy(module)
    trial.training = False
    x = _random(sample, torch.Generator().manual_seed(0), 1, 3, trial.gate_proj.in_features)
    try:
        with torch.no_grad():
            own = trial(x)
            trial.__class__ = FusedGated.of(type(module))
            trial.is_swiglu = _is_silu(trial.act_fn, sample)
            fused = trial(x)
    except (TypeError, ValueError, RuntimeError):
        return False
    return isinstance(own, Tensor) and _agree(fused, own)


def _is_silu(activation: Any, sample: Tensor) -> bool:
    x = torch.linspace(-4, 4, 9, device=sample.device)
    return _agree(activation(x), F.silu(x))


# ---- attention with rotary positions


class FusedAttention(PatchedModule):
    """An attention in the form that most decoders of transformers share.

    Separate projections, norms of queries and keys where there are any, Llama's rotation over the
    whole width of a head, the attention interface, an output projection. ``interface_settings`` are
    what the class's own code hands to the interface beside tensors: scale, window, soft-cap.
    """

    config: Any
    head_dim: int
    attention_dropout: float
    interface_settings: Mapping[str, float]
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        interface = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation)
        if (
            interface is None
            or past_key_values is not None
            or position_embeddings is None
            # Nemotron turns as much of a head as its tables are wide.
            or position_embeddings[0].shape[-1] != self.head_dim
            or (kernels := kernels_for(hidden_states, *position_embeddings)) is None
        ):
            return super().forward(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        parts = project((self.q_proj, self.k_proj, self.v_proj), hidden_states)
        norms = ("q_norm", "k_norm", None)
        q, k, v = (self._heads(part, norm) for part, norm in zip(parts, norms, strict=True))
        q, k = kernels.rotate(q, k, *position_embeddings)
        dropout = self.attention_dropout if self.training else 0.0
        settings = {**self.interface_settings, "dropout": dropout}
        out, weights = interface(self, q, k, v, attention_mask, **settings, **kwargs)
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights

    def _heads(self, states: Tensor, norm_name: str | None) -> Tensor:
        """``[B, T, H * D]`` as ``[B, H, T, D]``, normed over a head or over all heads together."""
        norm = self._modules.get(norm_name) if norm_name else None
        by_head = (*states.shape[:-1], -1, self.head_dim)
        if norm is None:
            return states.view(by_head).transpose(1, 2)
        weight = norm.weight
        assert isinstance(weight, Tensor)
        if weight.numel() == self.head_dim:
            heads: Tensor = norm(states.view(by_head))
            return heads.transpose(1, 2)
        whole: Tensor = norm(states)
        return whole.view(by_head).transpose(1, 2)


_TRIAL = "plaudit_trial"
_COMMON_PARTS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_COMMON_SETTINGS = frozenset({"config", "head_dim", "attention_dropout"})


def _common_attention(module: nn.Module, sample: Tensor) -> Mapping[str, float] | None:
    """The settings of an attention that :class:`FusedAttention` can run, found by trying.

    The trial compares what reaches the attention interface, and the output; None where they differ.
    """
    parts = dict(module.named_children())
    if not parts.keys() >= _COMMON_PARTS or not vars(module).keys() >= _COMMON_SETTINGS:
        return None
    trial: Any = copy.copy(module)
    trial.training = False
    trial.config = copy.copy(trial.config)
    trial.config._attn_implementation = _TRIAL
    generator = torch.Generator().manual_seed(0)
    hidden = _random(sample, generator, 1, 3, trial.q_proj.in_features)
    # Both halves are equal in Llama's tables, and Liger's kernel reads the first alone.
    halves = (_random(sample, generator, 1, 3, trial.head_dim // 2) for _ in range(2))
    tables = tuple(torch.cat([half, half], dim=-1) for half in halves)
    try:
        with torch.no_grad():
            own, (own_qkv, settings) = trial(hidden, tables, attention_mask=None)
            trial.__class__ = FusedAttention.of(type(module))
            trial.interface_settings = settings
            fused, (fused_qkv, _) = trial(hidden, tables, attention_mask=None)
    except (TypeError, ValueError, RuntimeError):
        return None
    plain = all(isinstance(value, (int, float)) for value in settings.values())
    same = all(_agree(a, b) for a, b in zip((fused, *fused_qkv), (own, *own_qkv), strict=True))
    return settings if plain and same else None


def _record(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Any]:
    """An attention interface that returns what it is given; the queries stand for the output."""
    named = {k: v for k, v in settings.items() if v is not None and k != "dropout"}
    return q.transpose(1, 2), ((q, k, v), named)


AttentionInterface.register(_TRIAL, _record)
