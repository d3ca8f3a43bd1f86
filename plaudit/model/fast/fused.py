"""Layers of a loaded model with fewer passes over memory, and other libraries' kernels for them.

There is one mechanism: a module runs as a subclass of its own class, whose ``forward`` uses a fused
kernel and falls back to the class's own code (:class:`PatchedModule`). State, names and all other
methods are inherited, and no other model of the process changes. Three layers are patched: RMSNorm,
attention (for its rotary positions) and PEFT's LoRA. A norm or an attention is patched only where a
trial on random numbers shows that both codes agree, so Gemma's ``1 + weight`` and GLM's interleaved
positions keep their own. :data:`KERNELS` says on which device and in which precision a fused kernel
exists; elsewhere, and under autocast, the class's own code runs.

Shapes: D width of a norm or a head, the last dimension everywhere. T tokens (rows of the flattened
input), I inputs, O outputs, r rank of a LoRA.
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
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plaudit.errors import ModelError
from plaudit.model.module import classifier

KERNELS: frozenset[tuple[str, torch.dtype]] = frozenset({("cpu", torch.float32)})
"""Device type and precision in which RMSNorm and RoPE are fused."""


def has_kernels(*tensors: Tensor) -> bool:
    """Whether fused kernels exist for these tensors, outside autocast."""
    return all(
        (tensor.device.type, tensor.dtype) in KERNELS
        and not torch.is_autocast_enabled(tensor.device.type)
        for tensor in tensors
    )


class PatchedModule(nn.Module):
    """Mixed in before a module's own class.

    The class has the name of the module's own, under which pickle would find that one; so a copy is
    made by making the class again. Its bases are the mixin and the module's own class.
    """

    @classmethod
    def of(cls, kind: type) -> type:
        """The class that runs a module of class ``kind``."""
        return type(kind.__name__, (cls, kind), {"__module__": kind.__module__})

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty, type(self).__bases__, vars(self)


def _empty(mixin: type[PatchedModule], kind: type) -> nn.Module:
    module: nn.Module = object.__new__(mixin.of(kind))
    return module


def fuse_norms_and_rope(network: nn.Module) -> None:
    """Patch a network's norms and attentions, in place, where the trial allows."""
    patches: dict[Any, _Patch | None] = {}
    for module in list(network.modules()):
        # A forward of an instance, such as Liger's kernel or a hook of accelerate, hides the
        # class's. Without a kernel for the weights there is nothing to try.
        if isinstance(module, PatchedModule) or "forward" in vars(module):
            continue
        if not has_kernels(*module.parameters()):
            continue
        # Layers of one class may differ by such settings: windows, positions in some layers only.
        settings = [
            (name, value)
            for name, value in vars(module).items()
            if isinstance(value, (int, float, str)) and name != "layer_idx"
        ]
        key = type(module), tuple(settings)
        if key not in patches:
            patches[key] = _patch_of(module)
        patch = patches[key]
        if patch is not None:
            module.__class__ = patch.kind
            vars(module).update(patch.attributes)


@dataclass(frozen=True, slots=True)
class _Patch:
    """The class to run a module as, and the attributes that this class reads."""

    kind: type
    attributes: Mapping[str, Any] = field(default_factory=dict)


def _patch_of(module: nn.Module) -> _Patch | None:
    if _is_rms_norm(module):
        return _Patch(FusedRMSNorm.of(type(module)))
    settings = _common_attention(module)
    if settings is not None:
        return _Patch(FusedAttention.of(type(module)), {"interface_settings": settings})
    return None


# ---- RMSNorm


class FusedRMSNorm(PatchedModule):
    """A norm whose code is Llama's: ``weight * x / rms(x)``."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if has_kernels(hidden_states, self.weight):
            return rms_norm(hidden_states, self.weight, self.variance_epsilon)
        own: Tensor = super().forward(hidden_states)
        return own


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * x / sqrt(mean(x ** 2) + eps)`` over the last dimension."""
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467); keeps its input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        out: Tensor = (x * inverse).mul_(weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * x).mul_(inverse).flatten(0, -2).sum(0)
        grad_x = grad * weight
        inner = torch.linalg.vecdot(grad_x, x).unsqueeze(-1)
        inner.mul_(inverse.pow(3)).div_(-x.shape[-1])
        return grad_x.mul_(inverse).addcmul_(x, inner), grad_weight, None


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether a module computes what :class:`_RMSNorm` does, found by trying."""
    parameters = dict(module.named_parameters())
    if set(parameters) != {"weight"} or not isinstance(vars(module).get("variance_epsilon"), float):
        return False
    if len(inspect.signature(module.forward).parameters) != 1:
        # Norms of hybrid models take a gate beside their input.
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *parameters["weight"].shape[:1], generator=generator)
    weight = torch.randn(x.shape[-1], generator=generator)
    own = torch.func.functional_call(module, {"weight": weight}, (x,))
    fused = rms_norm(x, weight, vars(module)["variance_epsilon"])
    return isinstance(own, Tensor) and torch.allclose(own, fused, rtol=1e-5, atol=1e-6)


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
            or not has_kernels(hidden_states, *position_embeddings)
        ):
            return super().forward(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        q = rotate(self._heads(self.q_proj(hidden_states), "q_norm"), *position_embeddings)
        k = rotate(self._heads(self.k_proj(hidden_states), "k_norm"), *position_embeddings)
        v = self._heads(self.v_proj(hidden_states), None)
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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Llama's RoPE: ``x`` is ``[B, H, T, D]``, ``cos`` and ``sin`` are ``[B, T, D]``."""
    out: Tensor = _Rotate.apply(x, cos.unsqueeze(1), sin.unsqueeze(1))  # type: ignore[no-untyped-call]
    return out


class _Rotate(torch.autograd.Function):
    """``x * cos + rotate_half(x) * sin`` (Su et al. 2021, arXiv:2104.09864, in Llama's order)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        low, high = torch.split(x, half, dim=-1)
        sin_low, sin_high = torch.split(sin, half, dim=-1)
        out = torch.mul(x, cos, out=torch.empty_like(x))
        out[..., :half].addcmul_(high, sin_low, value=-1)
        out[..., half:].addcmul_(low, sin_high)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        low, high = torch.split(grad, half, dim=-1)
        sin_low, sin_high = torch.split(sin, half, dim=-1)
        grad_x = torch.mul(grad, cos, out=torch.empty_like(grad))
        grad_x[..., :half].addcmul_(high, sin_high)
        grad_x[..., half:].addcmul_(low, sin_low, value=-1)
        return grad_x, None, None


_TRIAL = "plaudit_trial"
_COMMON_PARTS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_COMMON_SETTINGS = frozenset({"config", "head_dim", "attention_dropout"})


def _common_attention(module: nn.Module) -> Mapping[str, float] | None:
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
    hidden = torch.randn(1, 3, trial.q_proj.in_features, generator=generator)
    tables = tuple(torch.randn(1, 3, trial.head_dim, generator=generator) for _ in range(2))
    try:
        with torch.no_grad():
            own, (own_qkv, settings) = trial(hidden, tables, attention_mask=None)
            trial.__class__ = FusedAttention.of(type(module))
            trial.interface_settings = settings
            fused, (fused_qkv, _) = trial(hidden, tables, attention_mask=None)
    except (TypeError, ValueError, RuntimeError):
        return None
    plain = all(isinstance(value, (int, float)) for value in settings.values())
    same = all(_agree(a, b) for a, b in zip((own, *own_qkv), (fused, *fused_qkv), strict=True))
    return settings if plain and same else None


def _agree(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def _record(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Any]:
    """An attention interface that returns what it is given; the queries stand for the output."""
    named = {k: v for k, v in settings.items() if v is not None and k != "dropout"}
    return q.transpose(1, 2), ((q, k, v), named)


AttentionInterface.register(_TRIAL, _record)


# ---- LoRA


class FusedLoRA(PatchedModule):
    """PEFT's LoRA of a linear layer; for anything beyond plain LoRA, PEFT's own forward.

    PEFT adds ``lora_B(lora_A(x)) * scaling`` to the base layer's output: a product, a scaled copy
    and a sum, each as large as the output, and the same again backwards. Here one of two forms is
    taken, whichever writes less. For few tokens the thin product is added to the output in place.
    For many the adapter is added to a passing copy of the weight, so that the layer is one product,
    as it is once an adapter is merged.
    """

    # PEFT's layer, which mypy knows in no class that may be mixed in before it.
    active_adapters: Any
    base_layer: Any
    lora_A: Any
    lora_B: Any
    lora_dropout: Any
    lora_variant: Any
    scaling: Any
    merged: Any
    disable_adapters: Any

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        if args or kwargs or name is None or not self._is_plain(name):
            forwarded: Tensor = super().forward(x, *args, **kwargs)
            return forwarded
        base = self.base_layer
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        assert isinstance(base, nn.Linear)
        dtype = base.weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            # The adapter's fp32 weights are small; the activations are not, and stay as they are.
            out: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
                x.to(dtype),
                base.weight.to(dtype),
                None if base.bias is None else base.bias.to(dtype),
                down.to(dtype),
                up.to(dtype),
                self.scaling[name],
            )
        return out

    def _is_plain(self, name: str) -> bool:
        """One adapter on a frozen dense layer, no dropout, no variant (DoRA and others).

        A base bias that trains (``lora.bias``) would get no gradient here. Thin layers that are no
        plain ones hold their weights elsewhere: FSDP gathers them when it is called.
        """
        if self.disable_adapters or self.merged or name not in self.lora_A or self.lora_variant:
            return False
        base, dropout = self.base_layer, self.lora_dropout[name]
        return (
            type(base) is nn.Linear
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
            and type(self.lora_A[name]) is nn.Linear
            and type(self.lora_B[name]) is nn.Linear
            and self.lora_B[name].bias is None
            and (not self.training or not isinstance(dropout, nn.Dropout) or dropout.p == 0.0)
            # ZeRO-3 gathers a layer's weights when that layer is called, and here it is not.
            and not hasattr(base.weight, "ds_id")
        )


class _LoraLinear(torch.autograd.Function):
    """``x @ W.T + b + scaling * (x @ A.T) @ B.T``, W and b frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        x_TI = x.flatten(0, -2)
        if _pays(len(x_TI), x.shape[-1], weight):
            out = F.linear(x, torch.addmm(weight, b, a, alpha=scaling), bias)
        else:
            out = F.linear(x, weight, bias)
            # A view, never a copy: what is added must arrive in `out`.
            out.view(-1, out.shape[-1]).addmm_(x_TI @ a.T, b.T, alpha=scaling)
        ctx.save_for_backward(x_TI, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight, a, b = ctx.saved_tensors
        grad_TO = grad.flatten(0, -2)
        low_Tr = x_TI @ a.T
        # Both products read the gradient along its rows; across them they take twice as long.
        grad_low_Tr = (grad_TO @ b.T.contiguous().T).mul_(ctx.scaling)
        grad_b = (low_Tr.T @ grad_TO).T.mul(ctx.scaling)
        grad_a = grad_low_Tr.T @ x_TI
        grad_x = None
        if ctx.needs_input_grad[0]:
            if _pays(len(x_TI), len(weight), weight):
                grad_x = grad_TO @ torch.addmm(weight, b, a, alpha=ctx.scaling)
            else:
                grad_x = (grad_TO @ weight).addmm_(grad_low_Tr, a)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


def _pays(tokens: int, width: int, weight: Tensor) -> bool:
    """Whether an adapted copy of the weight costs less than adding to the product it would give.

    For each column of the product the copy writes ``width`` values, the addition one per token; the
    quarter is measured. In half precision the copy would round the adapter away.
    """
    return weight.dtype == torch.float32 and 4 * tokens > 5 * width


def fuse_lora(network: nn.Module) -> None:
    """Patch PEFT's plain LoRA layers, in place.

    PEFT's hook for layer classes (``LoraConfig._register_custom_module``) would also catch the
    subclasses that stand for quantized layers.
    """
    # Imported here: a model without an adapter does not need PEFT.
    from peft.tuners.lora.layer import Linear

    patched = FusedLoRA.of(Linear)
    for module in network.modules():
        if type(module) is Linear:
            module.__class__ = patched


# ---- kernels of other libraries, on request


# Liger's fused cross entropy replaces a model's forward by one that computes vocabulary logits.
_NOT_OURS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def apply_liger(network: nn.Module, options: Mapping[str, Any], device: torch.device) -> None:
    """Liger's kernels in a body's norms, rotary positions and MLPs (``train.use_liger_kernel``).

    The Trainer's own switch passes over anything but a ``PreTrainedModel``, with a warning that
    nobody reads. Applied before the self-check, so that it checks what will run.

    Raises:
        ModelError: no CUDA device, no liger-kernel, or none for this architecture.
    """
    if device.type != "cuda":
        raise ModelError(
            f"train.use_liger_kernel needs a CUDA device, but this run uses {device.type}; remove"
            " it."
        )
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError:
        raise ModelError(
            "train.use_liger_kernel needs liger-kernel; install it with pip install "
            "'plaudit[gpu]', or remove it."
        ) from None
    model = classifier(network)
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ModelError(
            f"train.use_liger_kernel is on, but Liger has no kernels for {model.config.model_type};"
            " remove it."
        )
    _apply_liger_kernel_to_instance(model=model, **{**_NOT_OURS, **options})


def compile_layers(network: nn.Module, *, backend: str | None, mode: str | None) -> None:
    """Compile each layer of the body in place (``train.torch_compile``).

    Layer by layer, since one compiled layer serves all of them: compiling takes a minute or so
    at any depth. Lengths are dynamic; attention over the packed layout stays outside.

    Raises:
        ModelError: the body has no list of layers.
    """
    layers = getattr(classifier(network).base_model, "layers", None)
    if layers is None:
        raise ModelError(
            "train.torch_compile compiles the layers of a decoder, which"
            f" {type(network).__name__} does not have; remove it."
        )
    for layer in layers:
        layer.compile(dynamic=True, backend=backend or "inductor", mode=mode)
