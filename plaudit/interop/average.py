"""Weight averaging of reward models of one base (WARM, Ramé et al. 2024, arXiv 2401.12187).

The average of LoRA models is the average of what they add to the base, sum of w_i s_i B_i A_i.
Averaging the A and the B apart gives something else, because a product is not linear in both. So
ranks are put end to end: [A_1; A_2; …] and [w_1 s_1 B_1, w_2 s_2 B_2, …] multiply to exactly that
sum, and the base is neither touched nor stored again.

Shapes: R ranks, I the width that goes in (``A_RI``), O the width that comes out (``B_OR``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import ModelError
from plaudit.interop.prepare import merged
from plaudit.model.load import output_layer
from plaudit.model.module import classifier

PREFIX = "base_model.model."
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterParts:
    """An adapter taken apart: ``(A_RI, B_OR)`` by module, the scale in B, and all other tensors."""

    lora: Mapping[str, tuple[Tensor, Tensor]]
    rest: Mapping[str, Tensor]
    config: Mapping[str, Any]


@torch.no_grad()
def fold_scale(network: Any, scale: float) -> None:
    """An imported model's scale into its head, so that heads can be averaged."""
    head: Any = output_layer(classifier(network))[1]
    head.weight.mul_(scale)
    if head.bias is not None:
        head.bias.mul_(scale)


@torch.no_grad()
def adapter_parts(network: Any, name: str) -> AdapterParts:
    """The parts of a loaded adapter.

    Raises:
        ModelError: something in it is not linear in its tensors (DoRA), or has no such parts.
    """
    from peft import get_peft_model_state_dict

    config = network.peft_config["default"].to_dict()
    state = get_peft_model_state_dict(network, save_embedding_layers=False)
    lora = {}
    for key in [key for key in state if key.endswith(A_SUFFIX)]:
        module = key.removesuffix(A_SUFFIX)
        layer = network.get_submodule(module)
        A_RI, B_OR = state.pop(key).float(), state.pop(f"{module}{B_SUFFIX}").float()
        lora[module.removeprefix(PREFIX)] = (A_RI.clone(), B_OR * layer.scaling["default"])
    strange = sorted(key for key in state if "lora_" in key)
    if strange or any(A_RI.dim() != 2 for A_RI, _ in lora.values()):
        what = "DoRA" if config.get("use_dora") else strange[0] if strange else "convolutions"
        raise ModelError(
            f"{name} has {what}, which cannot be averaged as an adapter; write each model with "
            "plaudit export --to merged, and merge those."
        )
    return AdapterParts(
        lora=lora, rest={k: v.float().clone() for k, v in state.items()}, config=config
    )


@torch.no_grad()
def average_adapters(
    parts: Sequence[AdapterParts], weights: Sequence[float], names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config of one adapter that adds exactly the weighted average.

    Raises:
        ModelError: the adapters save other modules whole.
    """
    first = parts[0]
    for other, name in zip(parts[1:], names[1:], strict=True):
        if other.rest.keys() != first.rest.keys():
            one = sorted(other.rest.keys() ^ first.rest.keys())[0]
            raise ModelError(
                f"{names[0]} and {name} save different modules beside LoRA (one is {one}); merge "
                "models trained with the same modules_to_save."
            )
    tensors = {key: sum_weighted([part.rest[key] for part in parts], weights) for key in first.rest}
    ranks = {}
    for module in dict.fromkeys(name for part in parts for name in part.lora):
        having = [
            (p.lora[module], w) for p, w in zip(parts, weights, strict=True) if module in p.lora
        ]
        A_RI = torch.cat([A_RI for (A_RI, _), _ in having], dim=0)
        tensors[f"{PREFIX}{module}{A_SUFFIX}"] = A_RI
        tensors[f"{PREFIX}{module}{B_SUFFIX}"] = torch.cat(
            [weight * B_OR for (_, B_OR), weight in having], dim=1
        )
        ranks[module] = A_RI.shape[0]
    return tensors, {**first.config, **_lora_settings(ranks)}


def _lora_settings(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Alpha equals the rank everywhere: every scale is 1, since B holds them."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "use_rslora": False,
        "lora_dropout": 0.0,
        # Names in full: those of one source need not be those of another.
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def sum_weighted(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum, added up in double precision."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.double(), alpha=weight)
    return total.to(tensors[0].dtype)


class FullAverage:
    """The weighted average of whole models, one model in memory at a time.

    Adapters are merged into their base first, so this is also the independent answer that an
    averaged adapter is compared with.
    """

    def __init__(self) -> None:
        self.network: Any = None
        self._total: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, network: Any, weight: float, name: str) -> None:
        """Add one model; ``network`` is not what it was afterwards.

        Raises:
            ModelError: its tensors are not those of the models before it.
        """
        whole = merged(network) if hasattr(network, "peft_config") else network
        state = whole.state_dict()
        if self.network is None:
            self.network = whole
            self._total = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in state.items()}
        shapes = {k: v.shape for k, v in self._total.items()}
        if {k: v.shape for k, v in state.items()} != shapes:
            raise ModelError(
                f"{name} has other tensors than the models before it; merge models of one base."
            )
        for key, tensor in state.items():
            self._total[key].add_(tensor.double(), alpha=weight)

    @torch.no_grad()
    def finish(self) -> Any:
        """The classifier with the averaged weights."""
        for key, tensor in self.network.state_dict().items():
            tensor.copy_(self._total[key].to(tensor.dtype))
        return self.network
