"""Sequence classifiers as transformers, TRL, vLLM and SGLang load them: adapter or merged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from plaudit.errors import ModelError
from plaudit.interop.formats import Exportable, Exporter, Ids, Scorer, WriteOptions, WriteResult
from plaudit.interop.reading import FOREIGN_SETTINGS
from plaudit.model.checkpoint import ADAPTER_FILE, CheckpointMetadata
from plaudit.model.load import first_line, head_modules, output_layer, silence_load_messages
from plaudit.model.module import classifier, has_score_head
from plaudit.storage.atomic import write_json
from plaudit.tokens.rendering import ChatFormatter, conversation_text
from plaudit.types import Comparison, Outputs, Rendering, RewardTransform

ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before the names of a classifier's tensors."""
OLD_PEFT = {"0.11": Path(__file__).with_name("peft_0_11.json")}
"""PEFT releases that a config can be written for, with the keys they know."""

SCORED_AT_ONCE = 8

# Keys that a newer PEFT writes and that change nothing when a finished adapter is loaded: who wrote
# it, and which modules training left alone (they have no tensors in the file).
_WITHOUT_EFFECT = {"peft_version", "exclude_modules"}


def write_adapter(source: Exportable, folder: Path, options: WriteOptions) -> WriteResult:
    """A SEQ_CLS adapter of PEFT with its head, for ``AutoPeftModelForSequenceClassification``."""
    write_peft(source, folder, options, task_type="SEQ_CLS", with_head=True)
    notes = _lost(source)
    if options.normalize:
        notes = (*notes, "An adapter cannot store a normalization, so its scores are raw.")
    return WriteResult(transform=RewardTransform(offset=-source.offset), notes=notes)


def write_merged(source: Exportable, folder: Path, options: WriteOptions) -> WriteResult:
    """A whole classifier of one label.

    ``problem_type: regression`` is what makes vLLM and transformers' pipeline return the raw score
    where they would put a sigmoid on one label.
    """
    write_whole(source, folder, options, {"problem_type": "regression"})
    transform = RewardTransform(offset=-source.offset)
    return WriteResult(transform=transform, notes=_lost(source), serving=_pooler(source, options))


def _lost(source: Exportable) -> tuple[str, ...]:
    note = (
        f"A sequence classifier cannot store the bias of the head ({source.offset:.6g}), so every"
        " score there is lower by it. Order and differences stay the same, and plaudit adds it"
        " back."
    )
    return (note,) if source.offset else ()


def _pooler(source: Exportable, options: WriteOptions) -> dict[str, Any]:
    """Options of vLLM for (logit - mean) / sigma, where the plain logit is not what is wanted."""
    if options.normalize:
        mean, sigma = source.metadata.reward_mean, source.metadata.reward_std
        assert mean is not None
        return {"logit_mean": mean - source.offset, "logit_sigma": sigma}
    return {"logit_mean": -source.offset, "logit_sigma": 1.0} if source.offset else {}


def write_peft(
    source: Exportable, folder: Path, options: WriteOptions, *, task_type: str, with_head: bool
) -> None:
    """``adapter_model.safetensors`` and its config, the head inside it or left out."""
    from peft import get_peft_model_state_dict

    network = source.network
    state = get_peft_model_state_dict(network, save_embedding_layers=False)
    if has_score_head(network):
        # An imported head may lie beside the adapter instead of in its modules_to_save.
        state[f"{PREFIX}score.weight"] = output_layer(classifier(network))[1].weight
    config = network.peft_config["default"]
    heads = head_modules(classifier(network))
    # PEFT itself puts both names of heads into the config of a SEQ_CLS adapter.
    others = [n for n in config.modules_to_save or () if n not in (*heads, "score", "classifier")]
    written = {
        **config.to_dict(),
        "task_type": task_type,
        "auto_mapping": None,
        "base_model_name_or_path": source.base_named,
        "revision": source.metadata.base_revision,
        "modules_to_save": ([*heads, *others] if with_head else others) or None,
    }
    if options.peft_config is not None:
        written = _for_old_peft(written, options.peft_config)
    save_adapter(folder, _stored(network, state, options, with_head=with_head), written)


def save_adapter(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """The two files of a PEFT adapter."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    together = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(together, folder / ADAPTER_FILE, metadata={"format": "pt"})
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    write_json(folder / ADAPTER_CONFIG, dict(sorted({**plain, "inference_mode": True}.items())))


def _for_old_peft(written: Mapping[str, Any], release: str) -> dict[str, Any]:
    """The config without keys that an old release cannot read.

    Raises:
        ModelError: one of them says something that the old release cannot do.
    """
    from peft import LoraConfig

    known = set(json.loads(OLD_PEFT[release].read_text(encoding="utf-8"))["keys"])
    defaults = asdict(LoraConfig())
    for key in sorted(written.keys() - known - _WITHOUT_EFFECT):
        if written[key] != defaults.get(key) and written[key]:
            raise ModelError(
                f"The adapter uses {key}, which PEFT {release} does not support; export it with"
                " --to merged, or remove --peft-config."
            )
    return {key: value for key, value in written.items() if key in known}


def write_whole(
    source: Exportable,
    folder: Path,
    options: WriteOptions,
    settings: Mapping[str, Any],
    *,
    with_head: bool = True,
) -> None:
    """The classifier's tensors as safetensors shards, and ``config.json`` with ``settings``."""
    network = source.network
    network.save_pretrained(
        str(folder),
        state_dict=_stored(network, network.state_dict(), options, with_head=with_head),
        max_shard_size=options.max_shard_size,
    )
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in FOREIGN_SETTINGS:
        config.pop(name, None)
    config |= {"dtype": str(options.torch_dtype).removeprefix("torch."), **settings}
    write_json(path, config)


def is_adapter(network: Any) -> bool:
    """Whether PEFT wraps the classifier."""
    return hasattr(network, "peft_config")


def merged(network: Any) -> Any:
    """The classifier with LoRA added into its weights, in their precision.

    Raises:
        ModelError: the sum is not finite.
    """
    try:
        return network.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(
            f"The adapter cannot be merged ({first_line(error)}); export it with --to adapter."
        ) from None


@torch.no_grad()
def fold_scale(network: Any, scale: float) -> None:
    """Multiply the head, and with it every reward, by ``scale``."""
    head: Any = output_layer(classifier(network))[1]
    head.weight.mul_(scale)
    if head.bias is not None:
        head.bias.mul_(scale)


@torch.no_grad()
def fold_outputs(network: Any, outputs: Outputs) -> float:
    """Make one row of a head of several outputs, which gives their reward; returns its offset.

    The reward is a weighted sum of the outputs, so that a head with the weighted sum of their rows
    gives it.
    """
    head: Any = output_layer(classifier(network))[1]
    weights_1O = torch.tensor([outputs.weights], dtype=head.weight.dtype)
    head.weight = torch.nn.Parameter(weights_1O @ head.weight)
    if head.bias is not None:
        head.bias = torch.nn.Parameter(weights_1O[0] @ head.bias[:, None])
    head.out_features = 1
    classifier(network).config.num_labels = 1
    return float(outputs.rewards(np.asarray(outputs.offsets)))


def _stored(
    network: Any, state: Mapping[str, Tensor], options: WriteOptions, *, with_head: bool
) -> dict[str, Tensor]:
    """Tensors as they go to disk, those of the head as they are (fp32) or left out."""
    stored = {}
    for name, tensor in state.items():
        head = belongs_to_head(network, name)
        if with_head or not head:
            rounded = tensor.is_floating_point() and not head
            stored[name] = tensor.detach().to(options.torch_dtype if rounded else tensor.dtype)
    return stored


def belongs_to_head(network: Any, name: str) -> bool:
    """Whether a tensor's name, PEFT's prefix or not, is the head's or the pooler's."""
    bare = name.removeprefix(PREFIX)
    return any(bare.startswith(f"{head}.") for head in head_modules(classifier(network)))


# ---- read as transformers reads ------------------------------------------------------------------


def read(folder: Path, base: str) -> Scorer:
    """A whole classifier by its own ``config.json``; an adapter as PEFT's auto class loads it."""
    network = reload(AutoModelForSequenceClassification, folder, base, num_labels=1)
    config = network.config.get_text_config()
    if is_adapter(network):
        config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    network.config.pad_token_id = config.pad_token_id
    return scorer(
        lambda ids_RT, mask_RT: network(input_ids=ids_RT, attention_mask=mask_RT).logits[:, 0],
        config.pad_token_id,
    )


def reload(auto_class: Any, folder: Path, base: str, **settings: Any) -> Any:
    """A whole model as it is, an adapter on ``base``, which is loaded with ``settings``."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return auto_class.from_pretrained(folder, dtype=torch.float32).eval()
    from peft import PeftModel

    # On the Hub it is the commit that the adapter names, as PEFT's auto classes take it.
    config = json.loads(path.read_text(encoding="utf-8"))
    revision = None if Path(base).is_dir() else config.get("revision")
    with silence_load_messages():
        network = auto_class.from_pretrained(
            base, revision=revision, dtype=torch.float32, **settings
        )
        return PeftModel.from_pretrained(network, str(folder)).eval()


def scorer(
    values: Callable[[Tensor, Tensor], Tensor],
    pad_id: int,
    side: Literal["left", "right"] = "right",
) -> Scorer:
    """Scores ``values(ids_RT, mask_RT)`` of a few rows at a time, padded on ``side``."""

    @torch.no_grad()
    def score(ids_R: Sequence[Ids]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(ids_R), SCORED_AT_ONCE):
            rows = [torch.tensor(list(ids)) for ids in ids_R[start : start + SCORED_AT_ONCE]]
            ids_RT, mask_RT = (
                pad_sequence(tensors, batch_first=True, padding_value=padding, padding_side=side)
                for tensors, padding in ((rows, pad_id), (list(map(torch.ones_like, rows)), 0))
            )
            scores += values(ids_RT, mask_RT).double().tolist()
        return scores

    return score


def encode(
    tokenizer: PreTrainedTokenizerBase, metadata: CheckpointMetadata, comparison: Comparison
) -> list[list[int]]:
    """As the model card says: the tokenizer's template, or text and the end token once."""
    texts = rendered(tokenizer, metadata, comparison)
    if not isinstance(comparison.responses[0], str):
        return [list(map(int, ids)) for ids in tokenizer(texts, add_special_tokens=False).input_ids]
    end = tokenizer.eos_token_id
    ends = (end, tokenizer.sep_token_id)
    rows = [list(map(int, ids)) for ids in tokenizer(texts).input_ids]
    return [ids if end is None or (ids and ids[-1] in ends) else [*ids, end] for ids in rows]


def rendered(
    tokenizer: PreTrainedTokenizerBase, metadata: CheckpointMetadata, comparison: Comparison
) -> list[str]:
    """Each whole conversation as text: by the tokenizer's template, or end to end."""
    formatter = ChatFormatter(
        tokenizer=tokenizer,
        chat_template_kwargs=metadata.chat_template_kwargs,
        rendering=Rendering(),
    )
    return [conversation_text(formatter, comparison, response) for response in comparison.responses]


ADAPTER_EXPORTER = Exporter(
    help="a sequence classification adapter for PEFT",
    layout="adapter",
    write=write_adapter,
    read=read,
    encode=encode,
)


MERGED_EXPORTER = Exporter(
    served=True,
    help="a whole sequence classifier for transformers, TRL, vLLM and SGLang",
    layout="whole",
    write=write_merged,
    read=read,
    encode=encode,
)
