"""Sequence classifiers as transformers, TRL, vLLM and SGLang load them: adapter or merged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from plaudit.errors import ModelError
from plaudit.interop.formats import Exportable, Exporter, Ids, Scorer, WriteOptions, WriteResult
from plaudit.interop.reading import FOREIGN_SETTINGS
from plaudit.model.checkpoint import ADAPTER_FILE, CheckpointMetadata
from plaudit.model.load import head_modules, output_layer, silence_load_messages
from plaudit.model.module import classifier, has_score_head
from plaudit.storage.atomic import write_json
from plaudit.types import Comparison, RewardTransform

ADAPTER_CONFIG = "adapter_config.json"
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
        notes = (*notes, "An adapter has no place for a normalisation: its scores are raw.")
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
    if source.offset == 0.0:
        return ()
    note = (
        f"The head's bias ({source.offset:.6g}) has no place in a sequence classifier: every score "
        "there is lower by it. Order and differences are the same, and plaudit adds it again."
    )
    return (note,)


def _pooler(source: Exportable, options: WriteOptions) -> dict[str, Any]:
    """Options of vLLM for (logit - mean) / sigma, where the plain logit is not what is wanted."""
    if options.normalize:
        mean, sigma = source.facts.reward_mean, source.facts.reward_std
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
    if not with_head:
        state = {k: v for k, v in state.items() if not belongs_to_head(network, k)}
    elif has_score_head(network):
        # An imported head may lie beside the adapter instead of in its modules_to_save.
        state["base_model.model.score.weight"] = output_layer(classifier(network))[1].weight
    config = network.peft_config["default"]
    heads = head_modules(classifier(network))
    # PEFT itself puts both names of heads into the config of a SEQ_CLS adapter.
    others = [n for n in config.modules_to_save or () if n not in (*heads, "score", "classifier")]
    written = {
        **config.to_dict(),
        "task_type": task_type,
        "auto_mapping": None,
        "base_model_name_or_path": source.base_named,
        "revision": source.facts.base_revision,
        "modules_to_save": ([*heads, *others] if with_head else others) or None,
    }
    if options.peft_config is not None:
        written = _for_old_peft(written, options.peft_config)
    save_adapter(folder, stored(network, state, options.torch_dtype), written)


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
                f"The adapter uses {key}, which PEFT {release} does not know; export it with --to "
                "merged, or without --peft-config."
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
    state = network.state_dict()
    if not with_head:
        state = {k: v for k, v in state.items() if not belongs_to_head(network, k)}
    network.save_pretrained(
        str(folder),
        state_dict=stored(network, state, options.torch_dtype),
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
            f"The adapter cannot be merged ({str(error).splitlines()[0][:200]}); export it with "
            "--to adapter."
        ) from None


@torch.no_grad()
def fold_scale(network: Any, scale: float) -> None:
    """Multiply the head, and with it every reward, by ``scale``."""
    head: Any = output_layer(classifier(network))[1]
    head.weight.mul_(scale)
    if head.bias is not None:
        head.bias.mul_(scale)


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


# ---- read as transformers reads ------------------------------------------------------------------


def read_adapter(folder: Path, base: str) -> Scorer:
    """The adapter on its base, as PEFT's auto class loads it."""
    from peft import PeftModel

    with silence_load_messages():
        network = AutoModelForSequenceClassification.from_pretrained(
            base, revision=base_revision(folder, base), num_labels=1, dtype=torch.float32
        )
        network = PeftModel.from_pretrained(network, str(folder))
    pad_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    assert isinstance(pad_id, int)
    return _scorer(network, pad_id)


def base_revision(folder: Path, base: str) -> str | None:
    """The commit that the adapter names for a base on the Hub, as PEFT's auto classes take it."""
    if Path(base).is_dir():
        return None
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    revision = config.get("revision")
    return None if revision is None else str(revision)


def read_merged(folder: Path, base: str) -> Scorer:
    """The whole classifier, with what its own ``config.json`` says and nothing else."""
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return _scorer(network, network.config.get_text_config().pad_token_id)


def _scorer(network: Any, pad_id: int) -> Scorer:
    network.config.get_text_config().pad_token_id = pad_id
    network.config.pad_token_id = pad_id
    network.eval()

    def score(ids_R: Sequence[Ids]) -> list[float]:
        scores: list[float] = []
        for ids_RT, mask_RT in padded(ids_R, pad_id, side="right"):
            with torch.no_grad():
                logits_R1 = network(input_ids=ids_RT, attention_mask=mask_RT).logits
            scores += logits_R1[:, 0].double().tolist()
        return scores

    return score


def padded(
    ids_R: Sequence[Ids], pad_id: int, *, side: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """``(ids_RT, mask_RT)`` of a few rows at a time, padded on ``side``."""
    batches = []
    for start in range(0, len(ids_R), SCORED_AT_ONCE):
        rows = ids_R[start : start + SCORED_AT_ONCE]
        longest = max(map(len, rows))
        ids_RT = torch.full((len(rows), longest), pad_id)
        mask_RT = torch.zeros_like(ids_RT)
        for i, ids in enumerate(rows):
            place = slice(0, len(ids)) if side == "right" else slice(longest - len(ids), longest)
            ids_RT[i, place] = torch.tensor(list(ids))
            mask_RT[i, place] = 1
        batches.append((ids_RT, mask_RT))
    return batches


def encode(
    tokenizer: PreTrainedTokenizerBase, facts: CheckpointMetadata, comparison: Comparison
) -> list[list[int]]:
    """As the model card says: the tokenizer's template, or text and the end token once."""
    texts = rendered(tokenizer, facts, comparison)
    if not isinstance(comparison.responses[0], str):
        return [list(map(int, ids)) for ids in tokenizer(texts, add_special_tokens=False).input_ids]
    end = tokenizer.eos_token_id
    ends = (end, tokenizer.sep_token_id)
    rows = [list(map(int, ids)) for ids in tokenizer(texts).input_ids]
    return [ids if end is None or (ids and ids[-1] in ends) else [*ids, end] for ids in rows]


def rendered(
    tokenizer: PreTrainedTokenizerBase, facts: CheckpointMetadata, comparison: Comparison
) -> list[str]:
    """Each whole conversation as text: by the tokenizer's template, or end to end."""
    texts: list[str] = []
    for response in comparison.responses:
        if isinstance(comparison.prompt, str) or isinstance(response, str):
            texts.append(f"{comparison.prompt}{response}")
            continue
        text = tokenizer.apply_chat_template(
            [message.as_dict() for message in (*comparison.prompt, *response)],
            tools=None if comparison.tools is None else [dict(tool) for tool in comparison.tools],
            tokenize=False,
            **{**facts.chat_template_kwargs, **comparison.chat_template_kwargs},
        )
        assert isinstance(text, str)
        texts.append(text)
    return texts


ADAPTER_EXPORTER = Exporter(
    help="a sequence classification adapter for PEFT",
    layout="adapter",
    write=write_adapter,
    read=read_adapter,
    encode=encode,
)


MERGED_EXPORTER = Exporter(
    served=True,
    help="a whole sequence classifier for transformers, TRL, vLLM and SGLang",
    layout="whole",
    write=write_merged,
    read=read_merged,
    encode=encode,
)
