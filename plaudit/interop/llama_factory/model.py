"""Reward models of LLaMA-Factory's ``stage: rm``: adapter or whole model, and a value head beside.

The value head is a linear layer with a bias over the last hidden state, which a sequence
classifier's head without bias reproduces, the bias added to every reward.

Shapes: D hidden width.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from plaudit.errors import ModelError
from plaudit.interop.formats import (
    VALUE_HEAD,
    Contents,
    Exportable,
    Exporter,
    Format,
    OpenedModel,
    Scorer,
    WriteOptions,
    WriteResult,
    read_tensors,
)
from plaudit.interop.llama_factory.templates import (
    KIND,
    NAMES,
    RULE_VERSIONS,
    as_trained,
    rule_version,
    template_of,
    writes_alike,
)
from plaudit.interop.reading import (
    build_classifier,
    imported_metadata,
    open_body,
    release,
)
from plaudit.interop.sequence_classifier.read import attach, read_adapter
from plaudit.interop.sequence_classifier.write import (
    is_adapter,
    reload,
    scorer,
    write_peft,
    write_whole,
)
from plaudit.model.load import output_layer
from plaudit.model.module import classifier
from plaudit.storage.atomic import write_text
from plaudit.types import Rendering, RewardTransform, ScoredTokenRule

WEIGHT = "v_head.summary.weight"
BIAS = "v_head.summary.bias"

RULES_OF = "# trained by the rules of LLaMA-Factory "
"""The line by which an export of plaudit's names the release, in its settings file."""

_RULES_LINE = re.compile(rf"^{RULES_OF}([\d.]+)$", re.MULTILINE)
_TEMPLATE_KEY = re.compile(r"^template:\s*([\w.-]+)\s*$", re.MULTILINE)

VALUE_HEAD_FILE = "value_head.safetensors"
SETTINGS_FILE = "llamafactory.yaml"


def open_llamafactory(contents: Contents) -> OpenedModel:
    """Read adapter or model, head, template and the release whose rules it was trained by.

    Raises:
        ModelError: the head is not a value head, or template or release cannot be told and matter.
    """
    weight_1D, bias = _head(contents)
    adapter = None if contents.adapter is None else read_adapter(contents)
    body = open_body(contents)
    tokenizer = body.tokenizer
    version, version_note = _version(contents)
    possible = RULE_VERSIONS if version is None else [version]
    name, template_note = _template(contents, tokenizer, version)
    rows = [template_of(name, known) for known in possible]
    template = rows[-1]
    as_trained(tokenizer, template)
    readings = {_reading(tokenizer, known) for known in possible}
    if version is None and (len(readings) > 1 or len({str(row.strings()) for row in rows}) > 1):
        raise ModelError(
            f"The files of {contents.source} do not record the LLaMA-Factory release, and the"
            f" template {name} changed its text or its scored token between releases; pass the"
            " release to plaudit import with --source-version (0.8.2 for mid-2024 and before)."
        )
    scored_token = readings.pop()
    notes = [version_note, template_note]
    if scored_token.rule != "last":
        notes.append(
            f"its padding token is its end token {tokenizer.pad_token}, so the token before it is"
            f" scored, as in LLaMA-Factory {version}"
        )
    if bias:
        notes.append(f"its value head has a bias ({bias:.6g}), which is added to every reward")
    if adapter is not None:
        notes += adapter.notes
    rendering = Rendering(kind=KIND, template=template.name, strings=template.strings())
    metadata = replace(
        imported_metadata(body, "LLaMA-Factory", version, notes, rendering),
        scored_token=scored_token,
        reward_transform=RewardTransform(offset=bias),
    )

    def build(dtype: torch.dtype) -> nn.Module:
        loaded = build_classifier(body, dtype, weight_1D)
        return loaded.network if adapter is None else attach(loaded, adapter, contents.source)

    return OpenedModel(metadata=metadata, tokenizer=tokenizer, build=build)


def _head(contents: Contents) -> tuple[Tensor, float]:
    tensors = read_tensors(contents.folder, VALUE_HEAD)
    if WEIGHT not in tensors or tensors[WEIGHT].ndim != 2 or tensors[WEIGHT].shape[0] != 1:
        raise ModelError(
            f"{contents.value_head} holds {', '.join(sorted(tensors)) or 'nothing'}; expected"
            f" {WEIGHT} with one row and {BIAS}, as LLaMA-Factory writes them."
        )
    bias = tensors.get(BIAS)
    return tensors[WEIGHT].float(), 0.0 if bias is None else float(bias.reshape(-1)[0])


def _version(contents: Contents) -> tuple[str | None, str]:
    """The release whose rules hold, None where nothing tells it, and how it is known."""
    stated = _stated(contents.options.source_version, contents, _RULES_LINE)
    if stated is not None:
        version, where = stated
        return rule_version(version), f"scored by the rules of LLaMA-Factory {version}, {where}"
    peft, transformers = contents.versions.get("peft"), contents.versions.get("transformers")
    inferred = None
    if peft is not None:
        inferred = infer_version(release(peft), release(transformers) if transformers else None)
    elif "exclude_modules" in (contents.adapter or {}):
        inferred = "0.9.3"
    if inferred is None:
        return (
            None,
            "its files do not record the LLaMA-Factory release, which makes no difference here",
        )
    versions = ", ".join(
        f"{n} {v}" for n, v in (("PEFT", peft), ("Transformers", transformers)) if v
    )
    return inferred, (
        f"scored by the rules of LLaMA-Factory {inferred}, inferred from"
        f" {versions or 'its PEFT settings'} (--source-version sets another release)"
    )


def infer_version(peft: tuple[int, ...], transformers: tuple[int, ...] | None) -> str | None:
    """The release that the versions which LLaMA-Factory's releases require leave.

    0.8.2 took Transformers from 4.41.2 with PEFT 0.11; 0.9.1 up to Transformers 4.46.1, 0.9.2 up to
    4.49.0, both with PEFT 0.11 and 0.12; 0.9.3 PEFT 0.14 and 0.15; 0.9.4 and later PEFT from 0.16.
    """
    if peft >= (0, 16):
        return "0.9.4"
    if peft >= (0, 13):
        return "0.9.3"
    if peft < (0, 11):
        return "0.8.2"
    if transformers is None:
        return None
    if transformers < (4, 42):
        return "0.8.2" if peft < (0, 12) else "0.8.3"
    return "0.8.3" if transformers < (4, 47) else "0.9.2"


def _template(
    contents: Contents, tokenizer: PreTrainedTokenizerBase, version: str | None
) -> tuple[str, str]:
    """The template's name and how it is known: an option, in a settings file, or written alike.

    Raises:
        ModelError: none of these tells it.
    """
    stated = _stated(contents.options.template, contents, _TEMPLATE_KEY)
    if stated is not None:
        name, where = stated
        return name, f"template {name}, {where}"
    alike = [name for name in NAMES if writes_alike(name, version or RULE_VERSIONS[-1], tokenizer)]
    if not alike:
        raise ModelError(
            f"The files of {contents.source} do not name the template; pass it to plaudit import"
            f" with --template, one of {', '.join(NAMES)}."
        )
    return alike[0], (
        f"template {alike[0]}, inferred from the chat template of its tokenizer (--template sets"
        " another)"
    )


def _stated(
    option: str | None, contents: Contents, pattern: re.Pattern[str]
) -> tuple[str, str] | None:
    """An option, else what a pattern captures in a YAML file beside the weights; where it is."""
    if option is not None:
        return option, "as requested"
    for path in sorted([*contents.folder.glob("*.yaml"), *contents.folder.glob("*.yml")]):
        match = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
        if match is not None:
            return match[1], f"from {path.name}"
    return None


def _reading(tokenizer: PreTrainedTokenizerBase, version: str) -> ScoredTokenRule:
    """Until 0.8.2 the last token that is not padding; since then the last one."""
    if release(version) >= release("0.8.3") or tokenizer.pad_token_id != tokenizer.eos_token_id:
        return ScoredTokenRule()
    assert isinstance(tokenizer.pad_token_id, int)
    return ScoredTokenRule(rule="before_trailing_pad", pad_id=tokenizer.pad_token_id)


FORMAT = Format(
    name="LLaMA-Factory",
    # Beside an adapter or a whole model.
    recognises=lambda contents: contents.value_head is not None,
    open=open_llamafactory,
)


# ---- writing ------------------------------------------------------------------------------------


def write(source: Exportable, folder: Path, options: WriteOptions) -> WriteResult:
    """Adapter (or causal model) and ``value_head.safetensors``; its bias holds every constant."""
    notes = _name_template(source, folder)
    if is_adapter(source.network):
        write_peft(source, folder, options, task_type="CAUSAL_LM", with_head=False)
    else:
        settings = {"architectures": [_causal_class(source.network)], "tie_word_embeddings": True}
        write_whole(source, folder, options, settings, with_head=False)
        notes.append(
            "A reward model has no language-model head. config.json ties it to the embeddings,"
            " so that loading needs no tensor for it. Do not generate text with this folder."
        )
    transform = RewardTransform()
    if options.normalize:
        mean, std = source.metadata.reward_mean, source.metadata.reward_std
        assert mean is not None
        assert std
        transform = RewardTransform(scale=1.0 / std, offset=-mean / std)
    _, head = output_layer(classifier(source.network))
    weight_1D = head.weight.detach().float() * transform.scale
    bias = source.offset * transform.scale + transform.offset
    tensors = {WEIGHT: weight_1D.cpu().contiguous(), BIAS: torch.tensor([bias])}
    save_file(tensors, folder / VALUE_HEAD_FILE, metadata={"format": "pt"})
    return WriteResult(transform=transform, notes=tuple(notes))


def _name_template(source: Exportable, folder: Path) -> list[str]:
    """Where the model came from LLaMA-Factory, the setting that its own YAML needs again.

    Names the release whose rules it was trained by, where later ones have others: the files of an
    export are of today's libraries, and do not tell it.
    """
    metadata, name = source.metadata, source.metadata.rendering.template
    if name is None:
        note = (
            "LLaMA-Factory uses the template named in its own YAML, so the chat template is not"
            " exported: name the template that renders the same text."
        )
        return [note]
    version = None if metadata.origin is None else metadata.origin.source_version
    old = "" if version is None or version == RULE_VERSIONS[-1] else f"{RULES_OF}{version}\n"
    write_text(folder / SETTINGS_FILE, f"{old}template: {name}\n")
    if metadata.scored_token.pad_id is not None:
        # Those releases, and plaudit by their rules, find the scored token by it.
        source.tokenizer.pad_token = source.tokenizer.convert_ids_to_tokens(
            metadata.scored_token.pad_id
        )
    if template_of(name, RULE_VERSIONS[-1]).strings() == metadata.rendering.strings:
        return []
    note = (
        f"LLaMA-Factory changed its template {name} after this model was trained, so current"
        f" releases render and score other text; use a release with the rules of {version}."
    )
    return [note]


def _causal_class(network: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(network.config), None)
    if causal is None:
        raise ModelError(
            f"transformers has no causal language model of type {network.config.model_type},"
            " which LLaMA-Factory needs; export it with --to merged."
        )
    return str(causal.__name__)


def read(folder: Path, base: str) -> Scorer:
    """As its current versions score: the last hidden state at ``attention_mask.sum() - 1``."""
    network = reload(AutoModelForCausalLM, folder, base)
    head = load_file(folder / VALUE_HEAD_FILE)
    pad_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    assert isinstance(pad_id, int)

    def values(ids_RT: Tensor, mask_RT: Tensor) -> Tensor:
        output = network(input_ids=ids_RT, attention_mask=mask_RT, output_hidden_states=True)
        last_R = mask_RT.sum(-1) - 1
        hidden_RD: Tensor = output.hidden_states[-1][torch.arange(len(last_R)), last_R]
        return (hidden_RD.float() @ head[WEIGHT].float().T + head[BIAS].float())[:, 0]

    return scorer(values, pad_id)


EXPORTER = Exporter(
    usage=(
        "In the YAML of LLaMA-Factory's PPO stage, with the template that renders the same text"
        " as in training:\n\n"
        "```yaml\nreward_model: path/to/this/folder\nreward_model_type: KIND\n```"
    ),
    plain=False,
    help="an adapter or model with value_head.safetensors for LLaMA-Factory",
    layout="either",
    write=write,
    read=read,
    encode=None,
    decoders_only=True,
)
