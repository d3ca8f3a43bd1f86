"""The one module that training, evaluation and serving call: a batch in, fp32 scores out.

Call it always through the object accelerate wrapped. Calling the backbone inside bypasses DDP,
and two ranks then differ without an error.

Shapes: B rows, T tokens, D hidden width, R responses, O outputs of the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from plaudit.model.language import LanguageHead, NextTokens
from plaudit.types import Batch, Outputs, RewardTransform


class RewardModule(nn.Module):
    """A sequence classifier as a reward model: one label, or several outputs that make the reward.

    ``network`` is what ``AutoModelForSequenceClassification`` built, or PEFT's wrapper of it; it
    keeps its own names, so what is saved from it loads in plain transformers.
    """

    # A PreTrainedModel or PEFT's wrapper of one: they share these methods, but no type.
    network: Any
    weights_O: Tensor
    offsets_O: Tensor

    def __init__(
        self,
        network: nn.Module,
        reward_transform: RewardTransform = RewardTransform(),
        outputs: Outputs | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.reward_transform = reward_transform
        self.outputs = outputs
        if outputs is not None:
            for name in ("weights", "offsets"):
                device = next(network.parameters()).device
                numbers_O = torch.tensor(getattr(outputs, name), dtype=torch.float32, device=device)
                self.register_buffer(f"{name}_O", numbers_O, persistent=False)

    @property
    def config(self) -> Any:
        return self.network.config

    @property
    def _no_split_modules(self) -> list[str]:
        """Transformers' name for the classes of the network's layers."""
        return list(classifier(self.network)._no_split_modules or ())

    def get_input_embeddings(self) -> nn.Module:
        """The network's token embeddings."""
        embeddings: nn.Module = classifier(self.network).get_input_embeddings()
        return embeddings

    def forward(self, batch: Batch, *, every_output: bool = False) -> Tensor:
        """``scores_R`` in fp32, one per response of the batch, in order.

        An imported model's bias or normalisation enters here and nowhere else. With
        ``every_output``, ``outputs_RO`` instead: all that the reward is made of, which is the
        reward itself where the head has one output.
        """
        outputs_RO = self._transformed(self.raw(batch))
        return outputs_RO if every_output else self.gate(outputs_RO)

    def _transformed(self, raw_RO: Tensor) -> Tensor:
        outputs_RO = raw_RO * self.reward_transform.scale + self.reward_transform.offset
        return outputs_RO if self.outputs is None else outputs_RO + self.offsets_O

    def gate(self, outputs_RO: Tensor) -> Tensor:
        """``scores_R``: the reward that the outputs of each response make."""
        return outputs_RO.squeeze(-1) if self.outputs is None else outputs_RO @ self.weights_O

    def raw(self, batch: Batch) -> Tensor:
        """``outputs_RO`` in fp32 as the head alone gives them."""
        raise NotImplementedError

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Trade recomputation for activation memory; the arguments are transformers' own."""
        details = dict(options.pop("activation_checkpointing_kwargs", None) or {})
        details |= options.pop("gradient_checkpointing_kwargs", None) or {}
        details.setdefault("use_reentrant", False)
        if details["use_reentrant"]:
            # A frozen embedding gives activations without gradients, and the reentrant form would
            # then cut the graph before the first adapter.
            self.network.enable_input_require_grads()
        if hasattr(self.network, "activation_checkpointing_enable"):
            self.network.activation_checkpointing_enable(
                activation_checkpointing_kwargs=details, **options
            )
        else:
            # transformers < 5.20 has only the former name.
            self.network.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=details, **options
            )
        if not details["use_reentrant"]:
            # transformers does it in either form, and a first layer with an adapter would compute
            # the gradient of its input for nobody.
            self.network.disable_input_require_grads()

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Transformers' former name of :meth:`activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(**options)

    @property
    def checkpointable_layers(self) -> int:
        """How many layers can recompute their activations."""
        return len(self._layers())

    def checkpoint_layers(self, count: int) -> None:
        """Let the first ``count`` layers recompute their activations, and no others."""
        if count:
            self.activation_checkpointing_enable()
        for number, layer in enumerate(self._layers()):
            layer.gradient_checkpointing = number < count

    def _layers(self) -> list[GradientCheckpointingLayer]:
        modules = self.network.modules()
        return [module for module in modules if isinstance(module, GradientCheckpointingLayer)]


class DecoderRewardModule(RewardModule):
    """A decoder: the hidden state of each scored token through the ``score`` head.

    The body alone is called, so no vocabulary logits exist, and the scored position comes with
    the batch instead of being guessed from padding (huggingface/transformers issue 35352 and
    others). The head runs in fp32 outside autocast: in bf16 scores near 16 are multiples of 0.125.
    """

    language_head: LanguageHead | None = None
    """That of the base, where a run trains with a language-model loss."""

    def forward(  # type: ignore[override]
        self, batch: Batch, *, every_output: bool = False, next_tokens: NextTokens | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """With ``next_tokens``, their loss beside the ``outputs_RO``, of one pass."""
        if next_tokens is None:
            return super().forward(batch, every_output=every_output)
        assert self.language_head is not None
        hidden_UD = self.hidden(batch.read_at(next_tokens.read))
        outputs_RO = self._transformed(self._scored(hidden_UD[next_tokens.score_R]))
        embeddings = self.get_input_embeddings()
        loss = self.language_head.loss(hidden_UD[next_tokens.from_L], next_tokens, embeddings)
        return outputs_RO, loss

    def raw(self, batch: Batch) -> Tensor:
        return self._scored(self.hidden(batch))

    def _scored(self, hidden_RD: Tensor) -> Tensor:
        """``outputs_RO`` of the head."""
        with torch.autocast(device_type=hidden_RD.device.type, enabled=False):
            outputs_RO: Tensor = classifier(self.network).score(hidden_RD.float())
        return outputs_RO

    def hidden(self, batch: Batch) -> Tensor:
        """``hidden_RD``: the body's final state at each scored token."""
        body = classifier(self.network).base_model
        hidden_BTD = body(**batch.body_inputs(), use_cache=False).last_hidden_state
        hidden_ND: Tensor = hidden_BTD.flatten(0, 1)
        if len(hidden_ND) == len(batch.ends_R):
            # A narrowed last layer returns these alone; otherwise every token is scored.
            return hidden_ND
        return hidden_ND[batch.ends_R]


class EncoderRewardModule(RewardModule):
    """A bidirectional encoder with its own classification head; padded batches only."""

    def raw(self, batch: Batch) -> Tensor:
        logits_RO: Tensor = classifier(self.network)(**batch.body_inputs()).logits
        return logits_RO.float()


def classifier(network: Any) -> Any:
    """The ``…ForSequenceClassification`` inside PEFT's wrapper, or the network itself."""
    if hasattr(network, "get_base_model"):
        return network.get_base_model()
    return network


def has_score_head(network: nn.Module) -> bool:
    """Whether the classifier is a decoder with transformers' ``score`` head."""
    return hasattr(classifier(network), "score")


def as_reward_module(
    network: nn.Module,
    reward_transform: RewardTransform = RewardTransform(),
    outputs: Outputs | None = None,
) -> RewardModule:
    """The module that fits a classifier: decoder with a ``score`` head, or encoder."""
    kind = DecoderRewardModule if has_score_head(network) else EncoderRewardModule
    return kind(network, reward_transform, outputs)
