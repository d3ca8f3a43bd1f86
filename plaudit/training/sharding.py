"""FSDP2: the model is shared among the processes before its self-check, and gathered to be saved.

Left to itself, accelerate shards a model when training starts. Each process would by then hold all
of it on its device, since the self-check and the token budget run there before. Here the base stays
in host memory until one layer after the other goes to the device and is shared out, so that a
device never holds more than its share and one layer. accelerate leaves such a model as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    str_to_bool,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from plaudit.errors import ModelError, RecipeError
from plaudit.model.attention.flash import use_flash_attention_3
from plaudit.model.fast.fused import fuse_layers
from plaudit.model.load import head_modules
from plaudit.model.module import RewardModule, classifier
from plaudit.recipe.schema import Recipe

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""``train.optim`` under FSDP: others may not know sharded tensors."""


def fsdp_version(args: TrainingArguments) -> int | None:
    """The version that ``train.fsdp`` or accelerate's launcher asks for; None without FSDP."""
    if args.fsdp_plugin_args is not None:
        return int(args.fsdp_plugin_args["fsdp_version"])
    if str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        return int(os.environ.get("FSDP_VERSION", "1"))
    return None


def fsdp_settings(args: TrainingArguments) -> FullyShardedDataParallelPlugin | None:
    """What ``train.fsdp`` or accelerate's launcher sets; None without FSDP."""
    if fsdp_version(args) is None:
        return None
    # Otherwise transformers leaves the weights of all processes but one empty.
    options = {**(args.fsdp_plugin_args or {}), "cpu_ram_efficient_loading": False}
    return FullyShardedDataParallelPlugin(**options)


def check_sharding(recipe: Recipe, args: TrainingArguments) -> None:
    """Whether the weights may be shared among processes as the recipe and the launcher ask for.

    Raises:
        RecipeError: a way that gives wrong weights, or one that was never run.
    """
    problems = [*_fsdp_problems(recipe, args), *_deepspeed_problems(recipe, args)]
    if problems:
        raise RecipeError(*problems)


def _fsdp_problems(recipe: Recipe, args: TrainingArguments) -> Iterator[str]:
    version = fsdp_version(args)
    if version is None:
        if args.fsdp:
            yield "train.fsdp_config: plaudit does not support XLA; remove xla."
        return
    if version == 1:
        yield (
            "FSDP1 cannot shard frozen weights in bf16 beside trained ones in fp32; set version: 2"
            " in train.fsdp_config (accelerate launch: --fsdp_version 2)."
        )
        return
    settings = fsdp_settings(args)
    assert settings is not None
    processes = args.distributed_state.distributed_type
    if processes == DistributedType.NO:
        yield (
            "train.fsdp shares a model among processes, but this run has one; start it with"
            " torchrun, or remove train.fsdp."
        )
    elif processes == DistributedType.MULTI_CPU:
        # accelerate ignores FSDP there and trains with DDP.
        yield "train.fsdp needs GPUs, but this run uses CPUs; remove it."
    if isinstance(settings.cpu_offload, CPUOffloadPolicy):
        yield "plaudit does not support FSDP's offload to the CPU; remove it."
    if settings.activation_checkpointing:
        yield (
            "plaudit does not support FSDP's own activation checkpointing; set"
            " train.activation_checkpointing: true instead."
        )
    unsupported = {
        "model.quantize": recipe.model.quantize is not None,
        "train.fp16": args.fp16,
        "train.torch_compile": bool(recipe.train.get("torch_compile")),
    }
    for key in (key for key, wanted in unsupported.items() if wanted):
        yield f"plaudit does not support {key} under FSDP; remove one of the two."
    optimizer = OptimizerNames(args.optim).value
    if optimizer not in OPTIMIZERS:
        yield (
            f"train.optim is {optimizer}, but under FSDP plaudit supports only"
            f" {', '.join(OPTIMIZERS)}; choose one of them."
        )


def _deepspeed_problems(recipe: Recipe, args: TrainingArguments) -> Iterator[str]:
    plugin = args.deepspeed_plugin
    if plugin is None:
        return
    config = plugin.hf_ds_config
    if plugin.zero_stage == 3:
        yield (
            "plaudit does not support DeepSpeed's ZeRO-3, which would save empty weights; use"
            " ZeRO-2, or FSDP (train.fsdp: full_shard)."
        )
    if config.is_true("bf16.enabled") or config.is_true("fp16.enabled"):
        yield (
            "DeepSpeed's bf16 and fp16 would round the head and the adapter, which are in fp32; set"
            " train.bf16: false (LoRA on a GPU keeps its bf16 base), or use FSDP (train.fsdp:"
            " full_shard)."
        )
    if config.get_value("gradient_clipping") is None and args.max_grad_norm > 0:
        yield (
            f"train.max_grad_norm is {args.max_grad_norm:g}, but train.deepspeed has no"
            " gradient_clipping, so DeepSpeed would not clip; set gradient_clipping: auto there."
        )
    if recipe.model.head_learning_rate is not None and config.get_value("optimizer") is not None:
        yield (
            "model.head_learning_rate is set, but train.deepspeed has an optimizer of its own,"
            " which has one learning rate; remove one of the two."
        )
    # transformers would list them when training starts.
    different = [line.strip("- ") for line in getattr(config, "mismatches", ())]
    if different:
        yield (
            f"train.deepspeed contradicts the recipe ({'; '.join(different)}); set these keys to"
            " auto there. plaudit hands DeepSpeed a whole optimizer step as one batch."
        )


def shard(
    module: RewardModule,
    settings: FullyShardedDataParallelPlugin,
    args: TrainingArguments,
    autocast: torch.dtype | None,
) -> None:
    """Share a module's weights among the processes, in place; each layer is gathered as it runs.

    Layers are computed in ``autocast``, as without FSDP, and are gathered in it: autograd would
    keep a narrowed copy of each whole weight until the backward pass. Head, embeddings and final
    norm are gathered as they are. Gradients are added up in fp32.

    Raises:
        ModelError: none of the classes that hold a layer is in the network.
    """
    mesh = init_device_mesh(args.device.type, (args.world_size,))
    # The body was on the CPU when its modules were patched.
    use_flash_attention_3(args.device)
    classes = settings.transformer_cls_names_to_wrap or module._no_split_modules
    # Outer ones come first, and inner ones have to be sharded first.
    layers = [child for child in module.modules() if type(child).__name__ in classes][::-1]
    if not layers:
        raise ModelError(
            f"The model has no layers of class {', '.join(classes)}, which FSDP would shard; set"
            " transformer_layer_cls_to_wrap in train.fsdp_config to the class of its layers."
        )
    after_forward = bool(settings.reshard_after_forward)
    narrowed = MixedPrecisionPolicy(
        param_dtype=autocast, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in layers:
        # Kernels are for a device, so this is the moment for those that a CPU does not have.
        fuse_layers(layer.to(args.device))
        fully_shard(layer, mesh=mesh, reshard_after_forward=after_forward, mp_policy=narrowed)
    network = classifier(module.network)
    # A group of parameters trains in one precision, and the head keeps its own.
    for part in (module.get_input_embeddings(), *map(network.get_submodule, head_modules(network))):
        # An encoder's embeddings are a part of what it names beside its layers.
        if not any(isinstance(parameter, DTensor) for parameter in part.parameters()):
            fully_shard(part, mesh=mesh, reshard_after_forward=after_forward)
    fully_shard(module, mesh=mesh)
    # For accelerate: the layers are wrapped.
    args.fsdp_plugin_args = {
        "fsdp_version": 2,
        "auto_wrap_policy": "NO_WRAP",
        "reshard_after_forward": after_forward,
        "state_dict_type": settings.state_dict_type.name,
        "cpu_ram_efficient_loading": False,
    }


def reshard(module: nn.Module) -> None:
    """Give up what a forward pass without a backward pass has left gathered.

    The root's weights are, and would stay what they were when others are loaded.
    """
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def gather(network: nn.Module) -> dict[str, Tensor]:
    """A sharded network's tensors to save, whole, on the main process; elsewhere an empty mapping.

    Every process must call it. An adapter's frozen base is left out.
    """
    options = StateDictOptions(
        full_state_dict=True,
        cpu_offload=True,
        ignore_frozen_params=hasattr(network, "peft_config"),
    )
    state: dict[str, Any] = get_model_state_dict(network, options=options)
    return state


def fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into those of the same names, or a process's part into a sharded one."""
    with torch.no_grad():
        for name, value in values.items():
            target: Any = targets[name]
            if isinstance(target, DTensor):
                # Every process has the whole tensor, so none needs to send it.
                value = distribute_tensor(
                    value.to(target.device),
                    target.device_mesh,
                    target.placements,
                    src_data_rank=None,
                )
            target.copy_(value)
