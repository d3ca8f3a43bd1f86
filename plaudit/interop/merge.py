"""``plaudit merge``: the weighted average of runs or checkpoints of one base, rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from plaudit import __version__
from plaudit.errors import ModelError
from plaudit.interop.parity import (
    CheckOptions,
    Parity,
    check_difference,
    check_rows,
    compare_scores,
)
from plaudit.interop.sequence_classifier.write import (
    PREFIX,
    fold_scale,
    is_adapter,
    merged,
    save_adapter,
)
from plaudit.model.checkpoint import (
    BASE_FOLDER,
    CheckpointMetadata,
    copy_base,
    load_network,
    read_metadata,
    resolve_base,
    run_of,
    save_tokenizer,
    save_weights,
    write_metadata,
)
from plaudit.model.load import dropouts_off, is_soft_capped
from plaudit.model.module import as_reward_module
from plaudit.model.scoring import score_trees
from plaudit.report.card import DerivedCard, write_derived_card
from plaudit.reward_model import load
from plaudit.storage.atomic import new_folder, write_json, writing
from plaudit.storage.manifest import checksum
from plaudit.tokens.batch import make_batchers
from plaudit.types import Outputs, RewardTransform, TrainedObjective

MERGE_FILE = "merge.json"

# What must be equal for one text to mean the same to all models.
_SAME = {
    "kind": "are not both adapters or both whole models",
    "chat_template": "have different chat templates",
    "chat_template_kwargs": "have different template variables",
    "text": "were trained on different kinds of text (conversations or plain text)",
    "pad_token": "have different padding tokens",
    "rendering": "have different tokenization rules",
    "scored_token": "score different tokens",
    "output": "have different reward outputs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """How models are averaged: ``weights`` add up to 1, and are equal where None.

    ``base`` is the path or Hub id of the base model of adapters. A merged model without a ``check``
    says so.
    """

    weights: Sequence[float] | None = None
    base: str | None = None
    check: CheckOptions | None = CheckOptions()  # noqa: RUF009


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What was averaged, how, and how it was checked; ``parity`` is None where it was not.

    ``method`` is ``adapter`` (ranks end to end) or ``full`` (tensors averaged).
    """

    sources: tuple[str, ...]
    weights: tuple[float, ...]
    method: Literal["adapter", "full"]
    parity: Parity | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A model to be averaged. ``run`` has its metadata: itself, or the run a checkpoint is of."""

    folder: Path
    run: Path
    metadata: CheckpointMetadata
    weight: float
    base: str


def merge(
    models: Sequence[str | Path], out: str | Path, options: MergeOptions = MergeOptions()
) -> MergeResult:
    """Write the average of ``models`` (runs, their checkpoints, exports) into the folder ``out``.

    Adapters give an adapter whose rank is the sum of theirs, whole models a whole model. The
    temperature and the reward statistics are not inherited: they are measured on a model, and this
    is another one.

    Raises:
        ModelError: fewer than two models, weights that do not fit, or models that differ in base,
            tokenizer, template or form.
        DataError: the rows of the check cannot be used.
        OutputError: ``out`` exists, or cannot be written.
        ParityError: the written model gives other scores than the average in memory.
    """
    members = _members(models, options)
    _check_same(members)
    folder, check = Path(out), options.check
    with new_folder(folder) as temporary:
        metadata, average, notes = _write(members, temporary, folder, check=check is not None)
        parity = None
        if check is not None:
            parity = _parity(temporary, members, average, metadata, check)
            check_difference(parity, "The merged model")
        result = MergeResult(
            sources=tuple(member.folder.name for member in members),
            weights=tuple(member.weight for member in members),
            method=metadata.kind,
            parity=parity,
            notes=notes,
        )
        record: dict[str, Any] = {
            "format": 1,
            "plaudit_version": __version__,
            **asdict(result),
            "checked": parity is not None,
        }
        write_json(temporary / MERGE_FILE, record)
        shares = ", ".join(f"{member.weight:.4g} of {member.folder.name}" for member in members)
        card = DerivedCard(
            name=folder.name,
            made=f"The average of the weights of {len(members)} reward models ({shares})",
            model=metadata,
            tags=("weight-averaging",),
            parity=record["parity"],
            notes=notes,
        )
        write_derived_card(temporary, card)
    return result


# ---- which models --------------------------------------------------------------------------------


def _members(models: Sequence[str | Path], options: MergeOptions) -> list[_Member]:
    if len(models) < 2:
        raise ModelError("Cannot average a single model; name two or more.")
    weights = options.weights
    shares = [1.0 / len(models)] * len(models) if weights is None else list(weights)
    if len(shares) != len(models):
        raise ModelError(
            f"--weights has {len(shares)} numbers for {len(models)} models; expected one number"
            " per model."
        )
    if any(not math.isfinite(s) or s < 0 for s in shares) or abs(sum(shares) - 1.0) > 1e-6:
        raise ModelError(
            f"--weights are {', '.join(f'{s:g}' for s in shares)}; expected numbers of at least 0"
            " that add up to 1."
        )
    members = []
    for path, share in zip(models, shares, strict=True):
        folder = Path(path)
        run = run_of(folder) or folder
        metadata = read_metadata(folder)
        if metadata.trust_remote_code:
            raise ModelError(f"{folder} needs custom Python code, which a merge does not include.")
        members.append(
            _Member(
                folder=folder,
                run=run,
                metadata=metadata,
                weight=share,
                base=resolve_base(run, metadata, options.base),
            )
        )
    return members


def _check_same(members: Sequence[_Member]) -> None:
    first = members[0]
    for other in members[1:]:
        for name, words in _SAME.items():
            if getattr(other.metadata, name) != getattr(first.metadata, name):
                raise ModelError(
                    f"{first.folder} and {other.folder} {words}, so they cannot be averaged."
                )
        if not _same_base(first, other):
            raise ModelError(
                f"{first.folder} has the base {first.metadata.base} and {other.folder} has"
                f" {other.metadata.base}; expected models with the same base."
            )


def _same_base(one: _Member, other: _Member) -> bool:
    if one.metadata.base_revision != other.metadata.base_revision:
        return False
    if one.base == other.base:
        return True
    folders = [Path(member.base) for member in (one, other)]
    # Copies of one base (each run on the embedded one has its own) are one base.
    return all(map(Path.is_dir, folders)) and _checksums(folders[0]) == _checksums(folders[1])


def _checksums(base: Path) -> dict[str, str]:
    patterns = ("config.json", "*.safetensors", "*.bin")
    return {path.name: checksum(path) for pattern in patterns for path in base.glob(pattern)}


# ---- writing and checking ------------------------------------------------------------------------


def _write(
    members: Sequence[_Member], temporary: Path, folder: Path, *, check: bool
) -> tuple[CheckpointMetadata, Any, tuple[str, ...]]:
    """Metadata, the average in memory where it is made (``check``), and notes."""
    adapter = AdapterAverage() if members[0].metadata.kind == "adapter" else None
    whole: Any = None
    total = WeightedSum()
    tokenizer: PreTrainedTokenizerBase | None = None
    for member in members:
        network, own = load_network(
            member.folder, member.metadata, dtype=torch.float32, base=member.base
        )
        tokenizer = tokenizer or own
        first, other = (
            (each.get_vocab(), each.special_tokens_map, each.chat_template)
            for each in (tokenizer, own)
        )
        if first != other:
            raise ModelError(
                f"{members[0].folder} and {member.folder} have different tokenizers, so they"
                " cannot be averaged."
            )
        dropouts_off(network, keep_lora=False)
        # Heads can be averaged once their scales are in them.
        fold_scale(network, member.metadata.reward_transform.scale)
        if adapter is not None:
            adapter.add(network, member.weight, member.folder)
        if check or adapter is None:
            # Adapters are merged into their base: the independent answer that theirs is checked by.
            network = merged(network) if is_adapter(network) else network
            total.add(network.state_dict(), member.weight, member.folder)
            whole = network if whole is None else whole
    assert tokenizer is not None
    if whole is not None:
        whole.load_state_dict(total.tensors)
    metadata, notes = _metadata(members, folder)
    with writing(folder):
        if adapter is not None:
            tensors, config = adapter.finish()
            save_adapter(temporary, tensors, {**config, "base_model_name_or_path": metadata.base})
            if _base_beside(members[0]):
                copy_base(members[0].base, temporary)
        else:
            save_weights(whole, temporary)
        save_tokenizer(tokenizer, temporary)
    write_metadata(temporary, metadata)
    return metadata, whole, notes


def _base_beside(member: _Member) -> bool:
    return Path(member.base) == member.run / BASE_FOLDER


def _mean_objective(members: Sequence[_Member]) -> TrainedObjective | None:
    """The objective of all members with the mean of what it learned; None where they differ."""
    first = members[0].metadata.objective
    learned: list[float] = [0.0] * (0 if first is None else len(first.learned))
    for member in members:
        own = member.metadata.objective
        if first is None or own is None or replace(own, learned=first.learned) != first:
            return None
        if len(own.learned) != len(learned):
            return None
        learned = [
            so_far + member.weight * number
            for so_far, number in zip(learned, own.learned, strict=True)
        ]
    assert first is not None
    return replace(first, learned=tuple(learned))


def _mean_outputs(members: Sequence[_Member]) -> Outputs | None:
    """The outputs of all members, with the mean of their weights and offsets.

    Raises:
        ModelError: the members have different ones.
    """
    every = [member.metadata.outputs for member in members]
    first = every[0]
    for member, own in zip(members, every, strict=True):
        if (own and own.names) != (first and first.names):
            raise ModelError(
                f"{members[0].folder} and {member.folder} have different outputs, so they cannot"
                " be averaged."
            )
    known = [own for own in every if own is not None]
    if first is None or len(known) < len(every):
        return None
    share_M = [member.weight for member in members]
    weights_O = np.asarray(share_M) @ np.asarray([own.weights for own in known])
    offsets_O = np.asarray(share_M) @ np.asarray([own.offsets for own in known])
    return replace(first, weights=tuple(weights_O.tolist()), offsets=tuple(offsets_O.tolist()))


def _metadata(
    members: Sequence[_Member], folder: Path
) -> tuple[CheckpointMetadata, tuple[str, ...]]:
    """``plaudit.json`` of the average: what was measured on a member is not known of it."""
    first = members[0]
    lengths = {member.metadata.max_length for member in members}
    offset = sum(member.weight * member.metadata.reward_transform.offset for member in members)
    outputs = _mean_outputs(members)
    fingerprints = [f for m in members if (f := m.metadata.data_fingerprint) is not None]
    beside = first.metadata.kind == "adapter" and _base_beside(first)
    metadata = replace(
        first.metadata,
        base=str((folder / BASE_FOLDER).resolve()) if beside else first.metadata.base,
        max_length=min(lengths),
        reward_transform=RewardTransform(offset=offset),
        outputs=outputs,
        temperature=None,
        temperature_fit=None,
        reward_mean=None,
        reward_std=None,
        data_fingerprint="+".join(dict.fromkeys(fingerprints)) or None,
        objective=_mean_objective(members),
        plaudit_version=__version__,
    )
    notes = ["Temperature and reward statistics are not carried over; run plaudit eval."]
    if len(lengths) > 1:
        notes.append(
            f"The models read up to {', '.join(map(str, sorted(lengths)))} tokens; the merged"
            f" model reads up to {min(lengths)}."
        )
    return metadata, tuple(notes)


def _parity(
    temporary: Path,
    members: Sequence[_Member],
    network: Any,
    metadata: CheckpointMetadata,
    check: CheckOptions,
) -> Parity:
    """The written folder, loaded as any reward model, against averaged whole weights in memory."""
    base = members[0].base if metadata.kind == "adapter" else None
    written = load(temporary, base=base, device="cpu", dtype="float32")
    rows = check_rows(written, members[0].run, check.rows)
    scores_R = np.concatenate(written.score_trees(rows.trees))
    sdpa = network._supports_sdpa and not is_soft_capped(network.config)
    network.set_attn_implementation("sdpa" if sdpa else "eager")
    module = as_reward_module(network, metadata.reward_transform, metadata.outputs).eval()
    assert isinstance(written.tokenizer.pad_token_id, int)
    plain = make_batchers("auto", torch.device("cpu"), written.tokenizer.pad_token_id)["padded"]
    wanted_R = np.concatenate(score_trees(module, plain, rows.trees))
    return compare_scores(rows, scores_R, wanted_R, check.tolerance)


A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"


class WeightedSum:
    """A weighted sum of the tensors of models, in double precision, one in memory at a time."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] | None = None

    @torch.no_grad()
    def add(self, state: Mapping[str, Tensor], weight: float, folder: Path) -> None:
        """Add the tensors of one model.

        Raises:
            ModelError: they are not those of the models before it.
        """
        if self.tensors is None:
            self.tensors = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in state.items()}
        shapes, own = ({(k, v.shape) for k, v in each.items()} for each in (self.tensors, state))
        if shapes != own:
            raise ModelError(
                f"{folder} has other tensors than the first models (for example"
                f" {min(shapes ^ own)[0]}); merge models of one base that were trained with the"
                " same modules_to_save."
            )
        for key, tensor in state.items():
            self.tensors[key].add_(tensor.double(), alpha=weight)


class AdapterAverage:
    """One adapter that adds exactly the weighted average: ranks end to end, all scales in B."""

    def __init__(self) -> None:
        self._lora: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._rest = WeightedSum()
        self._config: dict[str, Any] = {}

    @torch.no_grad()
    def add(self, network: Any, weight: float, folder: Path) -> None:
        """Add a loaded adapter: ``(A_RI, B_OR)`` of each module, and all other tensors.

        Raises:
            ModelError: something in it is not linear in its tensors (DoRA), or it saves other
                modules whole.
        """
        from peft import get_peft_model_state_dict

        config = network.peft_config["default"].to_dict()
        state = get_peft_model_state_dict(network, save_embedding_layers=False)
        convolutions = False
        for key in [key for key in state if key.endswith(A_SUFFIX)]:
            module = key.removesuffix(A_SUFFIX)
            A_RI, B_OR = state.pop(key).float(), state.pop(f"{module}{B_SUFFIX}").float()
            convolutions |= A_RI.dim() != 2
            B_OR = weight * network.get_submodule(module).scaling["default"] * B_OR
            self._lora.setdefault(module.removeprefix(PREFIX), []).append((A_RI, B_OR))
        strange = sorted(key for key in state if "lora_" in key)
        if strange or convolutions:
            what = "DoRA" if config.get("use_dora") else strange[0] if strange else "convolutions"
            raise ModelError(
                f"{folder} uses {what}, which cannot be averaged as an adapter; export each model"
                " with plaudit export --to merged, and merge those."
            )
        self._rest.add(state, weight, folder)
        self._config = self._config or config

    def finish(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and config. Alpha equals the rank everywhere, so that every scale is 1."""
        tensors = {name: total.float() for name, total in (self._rest.tensors or {}).items()}
        ranks = {}
        for module, pairs in self._lora.items():
            A_RI = torch.cat([A_RI for A_RI, _ in pairs], dim=0)
            tensors[f"{PREFIX}{module}{A_SUFFIX}"] = A_RI
            tensors[f"{PREFIX}{module}{B_SUFFIX}"] = torch.cat([B_OR for _, B_OR in pairs], dim=1)
            ranks[module] = A_RI.shape[0]
        usual = Counter(ranks.values()).most_common(1)[0][0]
        others = {module: rank for module, rank in ranks.items() if rank != usual}
        return tensors, {
            **self._config,
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
