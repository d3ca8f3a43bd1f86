"""A loaded reward model made ready to be written: merged, scale in the head, weights rounded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from plaudit.errors import ModelError
from plaudit.interop.records import Exportable, Exporter, Options
from plaudit.model.checkpoint import ArtefactFacts
from plaudit.model.load import head_modules, output_layer
from plaudit.model.module import classifier, has_score_head


def is_adapter(network: Any) -> bool:
    """Whether PEFT wraps the classifier."""
    return hasattr(network, "peft_config")


def refuse_unsuitable(
    name: str, exporter: Exporter, network: Any, facts: ArtefactFacts, options: Options
) -> None:
    """What this model or these options cannot become is said before anything is written.

    Raises:
        ModelError: the model has no such form, or an option means nothing for it.
    """
    if exporter.decoders_only and not has_score_head(network):
        raise ModelError(
            f"{type(classifier(network)).__name__} is an encoder, and --to {name} holds decoders "
            "with one linear head only; export it with --to merged."
        )
    if exporter.layout == "adapter" and not is_adapter(network):
        raise ModelError(
            f"This model has no LoRA adapter, and --to {name} writes nothing else; export it with "
            "--to merged."
        )
    if options.peft_config is not None and (exporter.layout == "whole" or not is_adapter(network)):
        raise ModelError(
            f"--peft-config is about adapter_config.json, and --to {name} writes a whole model "
            "here; leave it out."
        )
    if options.normalize and (facts.reward_mean is None or not facts.reward_std):
        raise ModelError(
            "--normalize needs the mean and standard deviation of the evaluation rewards, and this "
            "model's plaudit.json has none; leave it out, or train with evaluation data."
        )


@torch.no_grad()
def prepare(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    facts: ArtefactFacts,
    *,
    exporter: Exporter,
    options: Options,
    base: str,
    base_named: str,
) -> Exportable:
    """Fold, merge and round in place; ``network`` is not what it was afterwards.

    Raises:
        ModelError: merging gives weights that are not finite, or ``dtype`` cannot hold them.
    """
    if exporter.layout == "whole" and is_adapter(network):
        network = merged(network)
    offset = _fold(network, facts)
    round_weights(network, options.dtype)
    return Exportable(
        network=network,
        tokenizer=tokenizer,
        facts=facts,
        base=base,
        base_named=base_named,
        offset=offset,
    )


def merged(network: Any) -> Any:
    """The classifier with LoRA added into its weights, in their precision.

    Raises:
        ModelError: the sum is not finite.
    """
    try:
        return network.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(
            f"The adapter cannot be merged ({str(error).splitlines()[0][:200]}); export it with "
            "--to adapter."
        ) from None


def _fold(network: Any, facts: ArtefactFacts) -> float:
    """Scale into the head, offset into its bias; returns the offset a head without bias leaves."""
    head: Any = output_layer(classifier(network))[1]
    head.weight.mul_(facts.affine.scale)
    if head.bias is None:
        return facts.affine.offset
    head.bias.mul_(facts.affine.scale).add_(facts.affine.offset)
    return 0.0


def round_weights(network: Any, dtype: torch.dtype) -> None:
    """Every weight but the head's to a value that ``dtype`` holds, kept in fp32.

    Raises:
        ModelError: a weight is over what ``dtype`` reaches.
    """
    for name, tensor in _rounded_tensors(network):
        rounded = tensor.to(dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise ModelError(
                f"{str(dtype).removeprefix('torch.')} cannot hold {name}: a value is too large; "
                "choose --dtype bf16 or fp32."
            )
        tensor.copy_(rounded)


def stored(network: Any, state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Tensors as they go to disk: ``dtype``, and fp32 for what belongs to the head."""
    return {
        name: tensor.detach().to(dtype)
        if tensor.is_floating_point() and not belongs_to_head(network, name)
        else tensor.detach()
        for name, tensor in state.items()
    }


def belongs_to_head(network: Any, name: str) -> bool:
    """Whether a tensor's name, PEFT's prefix or not, is the head's or the pooler's."""
    bare = name.removeprefix("base_model.model.")
    return any(bare.startswith(f"{head}.") for head in head_modules(classifier(network)))


def _rounded_tensors(network: Any) -> list[tuple[str, torch.Tensor]]:
    # What an adapter's files do not hold (the base) stays as it is.
    written = "lora_" if is_adapter(network) else ""
    return [
        (name, tensor)
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point()
        and (written in name or ".modules_to_save." in name)
        and not belongs_to_head(network, name)
    ]
