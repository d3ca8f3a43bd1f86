"""LLaMA-Factory's layout: a causal model or its adapter, and the head in a file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plaudit.errors import ModelError
from plaudit.interop.llama_factory.read import RULES_OF
from plaudit.interop.llama_factory.templates import ERAS, template_of
from plaudit.interop.prepare import is_adapter
from plaudit.interop.records import Exportable, Exporter, Ids, Options, Scorer, Written
from plaudit.interop.sequence_classifier.write import (
    ADAPTER_CONFIG,
    base_revision,
    padded,
    write_peft,
    write_whole,
)
from plaudit.model.load import output_layer, silence_load_messages
from plaudit.model.module import classifier
from plaudit.storage.atomic import write_text
from plaudit.types import Affine

VALUE_HEAD_FILE = "value_head.safetensors"
SETTINGS_FILE = "llamafactory.yaml"
WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"
_TEMPLATE = (
    "LLaMA-Factory renders with the template named in its own YAML, so the chat template is not "
    "carried: name the one that renders like it."
)


def write(source: Exportable, folder: Path, options: Options) -> Written:
    """Adapter (or causal model) and ``value_head.safetensors``; its bias holds every constant."""
    notes = (
        [_TEMPLATE] if source.facts.rendering.template is None else _name_template(source, folder)
    )
    if is_adapter(source.network):
        write_peft(source, folder, options, task_type="CAUSAL_LM", with_head=False)
    else:
        settings = {"architectures": [_causal_class(source.network)], "tie_word_embeddings": True}
        write_whole(source, folder, options, settings, with_head=False)
        notes.append(
            "A reward model has no language-model head; config.json ties it to the embeddings, so "
            "that loading needs no tensor for it. Do not generate with this folder."
        )
    gives = Affine()
    if options.normalize:
        mean, std = source.facts.reward_mean, source.facts.reward_std
        assert mean is not None
        assert std
        gives = Affine(scale=1.0 / std, offset=-mean / std)
    _, head = output_layer(classifier(source.network))
    _save_head(
        folder,
        weight_1D=head.weight.detach().float() * gives.scale,
        bias=source.offset * gives.scale + gives.offset,
    )
    return Written(gives=gives, notes=tuple(notes))


def _name_template(source: Exportable, folder: Path) -> list[str]:
    """Where the model came from LLaMA-Factory, the setting that its own YAML needs again.

    Names the release whose rules it was trained by, where later ones have others: the files of an
    export are of today's libraries, and do not tell it.
    """
    facts = source.facts
    name, era = str(facts.rendering.template), None if facts.origin is None else facts.origin.era
    old = "" if era is None or era == ERAS[-1] else f"{RULES_OF}{era}\n"
    write_text(folder / SETTINGS_FILE, f"{old}template: {name}\n")
    if facts.reading.pad_id is not None:
        # Those releases, and plaudit by their rules, find the scored token by it.
        source.tokenizer.pad_token = source.tokenizer.convert_ids_to_tokens(facts.reading.pad_id)
    if template_of(name, ERAS[-1]).strings() == facts.rendering.strings:
        return []
    note = (
        f"LLaMA-Factory's template {name} has had other text since this model was trained, so "
        f"current releases score other text; use a release with the rules of {era}."
    )
    return [note]


def _save_head(folder: Path, *, weight_1D: torch.Tensor, bias: float) -> None:
    from safetensors.torch import save_file

    tensors = {WEIGHT: weight_1D.cpu().contiguous(), BIAS: torch.tensor([bias])}
    save_file(tensors, folder / VALUE_HEAD_FILE, metadata={"format": "pt"})


def _causal_class(network: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(network.config)]
        return str(causal.__name__)
    except KeyError:
        raise ModelError(
            f"transformers has no causal language model of type {network.config.model_type}, which "
            "LLaMA-Factory needs; export with --to merged."
        ) from None


def read(folder: Path, base: str) -> Scorer:
    """As its current versions score: the last hidden state at ``attention_mask.sum() - 1``."""
    from safetensors.torch import load_file

    network: Any
    if (folder / ADAPTER_CONFIG).is_file():
        from peft import PeftModel

        revision = base_revision(folder, base)
        network = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype=torch.float32)
        with silence_load_messages():
            network = PeftModel.from_pretrained(network, str(folder))
    else:
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network.eval()
    head = load_file(folder / VALUE_HEAD_FILE)
    pad_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    assert isinstance(pad_id, int)

    def score(ids_R: Sequence[Ids]) -> list[float]:
        scores: list[float] = []
        for ids_RT, mask_RT in padded(ids_R, pad_id, side="right"):
            with torch.no_grad():
                output = network(
                    input_ids=ids_RT, attention_mask=mask_RT, output_hidden_states=True
                )
            last_R = mask_RT.sum(-1) - 1
            hidden_RD = output.hidden_states[-1][torch.arange(len(last_R)), last_R]
            values_R1 = hidden_RD.float() @ head[WEIGHT].float().T + head[BIAS].float()
            scores += values_R1[:, 0].double().tolist()
        return scores

    return score


EXPORTER = Exporter(
    usage=(
        "In the YAML of LLaMA-Factory's PPO stage, with the template that renders like the one it "
        "was trained with:\n\n```yaml\nreward_model: path/to/this/folder\n"
        "reward_model_type: KIND\n```"
    ),
    plain=False,
    help="adapter or model with value_head.safetensors for LLaMA-Factory",
    layout="either",
    write=write,
    read=read,
    encode=None,
    decoders_only=True,
    own_facts=False,
)
