"""``plaudit export``: write a reward model for a tool, reload it by the tool's rules, compare.

Shapes: R responses, all comparisons together, in order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from plaudit import __version__, registry
from plaudit.errors import ModelError
from plaudit.interop.formats import Exportable, Exporter, WriteOptions, locate
from plaudit.interop.parity import (
    CheckOptions,
    Parity,
    ParityError,
    check_difference,
    check_rows,
    compare_scores,
    largest_difference,
    order_changes,
)
from plaudit.interop.sequence_classifier.write import (
    belongs_to_head,
    fold_outputs,
    fold_scale,
    is_adapter,
    merged,
)
from plaudit.model.checkpoint import (
    BASE_FOLDER,
    CheckpointMetadata,
    copy_base,
    resolve_base,
    save_tokenizer,
    write_metadata,
)
from plaudit.model.load import output_layer
from plaudit.model.module import as_reward_module, classifier, has_score_head
from plaudit.model.scoring import score_trees
from plaudit.report.card import DerivedCard, write_derived_card
from plaudit.reward_model import LoadOptions, RewardModel, load_model
from plaudit.storage.atomic import new_folder, write_json, writing
from plaudit.tokens.rendering import renderer_of
from plaudit.types import RewardTransform

EXPORT_FILE = "export.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions(WriteOptions):
    """How a model is loaded, written and checked; it is always loaded in fp32.

    An export without a ``check`` says so.
    """

    load: LoadOptions = LoadOptions()  # noqa: RUF009
    check: CheckOptions | None = CheckOptions()  # noqa: RUF009


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was written, and how it was checked; ``parity`` is None where it was not.

    ``notes`` say what the layout could not hold, ``serving`` what a server must be told.
    """

    target: str
    dtype: str
    parity: Parity | None
    notes: tuple[str, ...]
    serving: Mapping[str, Any]


def export(
    model: str | Path, to: str, out: str | Path, options: ExportOptions = ExportOptions()
) -> ExportResult:
    """Write ``model`` into the folder ``out`` in the layout of the exporter named ``to``.

    The folder appears when its check has passed. Weights are merged in fp32 and rounded once to
    the dtype; the head stays fp32.

    Raises:
        ModelError: the model cannot be loaded, or has no such form.
        DataError: the rows of the check cannot be used.
        OutputError: ``out`` exists, or cannot be written.
        ParityError: the reloaded export gives other scores than the model.
    """
    exporter: Exporter = registry.find("exporter", to)
    folder, check = Path(out), options.check
    # A Hub id's files, its base among them where it carries one, lie in the cache.
    here = locate(model)
    reward_model = load_model(model, replace(options.load, dtype="float32"))
    _check_exportable(to, exporter, reward_model, options)
    rows = None if check is None else check_rows(reward_model, here, check.rows)
    base = resolve_base(here, reward_model.metadata, options.load.base)
    beside = Path(base).resolve() == (here / BASE_FOLDER).resolve()
    # A copy of the base beside the adapter is found where the folder is.
    base_named = str((folder / BASE_FOLDER).resolve()) if beside else base
    with new_folder(folder) as temporary:
        before = [] if rows is None else reward_model.score_trees(rows.trees)
        source = _prepare(reward_model, exporter, options, base=base, base_named=base_named)
        after = before
        if options.dtype != "float32" and rows is not None:
            # What the stored weights are worth, so that the reloaded file is compared to the digit.
            module = as_reward_module(source.network, RewardTransform(offset=source.offset)).eval()
            after = score_trees(module, reward_model.batcher, rows.trees)
        with writing(folder):
            written = exporter.write(source, temporary, options)
            metadata, notes = _metadata(source, exporter)
            _write_around(temporary, source, exporter, metadata)
        # Two copies of a large model need not fit: the reloaded one takes this one's place.
        del source, reward_model
        parity, notes = None, (*written.notes, *notes)
        if check is not None and rows is not None:
            rewards_R = np.concatenate(after)
            expected_R = written.transform.scale * rewards_R + written.transform.offset
            score = exporter.read(temporary, base)
            sequences = rows.sequences()
            parity = compare_scores(rows, score(sequences), expected_R, check.tolerance)
            if options.dtype != "float32":
                parity = replace(
                    parity,
                    rounding=largest_difference(rewards_R, np.concatenate(before)),
                    order_changes=order_changes(before, after),
                )
            if exporter.encode is not None:
                tokenizer = AutoTokenizer.from_pretrained(temporary)
                encoded = [
                    ids
                    for comparison in rows.comparisons
                    for ids in exporter.encode(tokenizer, metadata, comparison)
                ]
                # What the tool makes of the same text is scored where it is other tokens.
                differs = [i for i, ids in enumerate(encoded) if ids != sequences[i]]
                scores_R = score([encoded[i] for i in differs])
                parity = replace(
                    parity,
                    text_differs=len(differs),
                    text_difference=largest_difference(scores_R, expected_R[differs]),
                )
            check_difference(parity, f"The {to} export")
            notes = (*notes, *_text_notes(to, exporter, metadata, parity))
        result = ExportResult(
            target=to, dtype=options.dtype, parity=parity, notes=notes, serving=written.serving
        )
        write_json(temporary / EXPORT_FILE, _record(result, metadata, Path(model)))
        write_derived_card(temporary, _card(result, exporter, metadata, Path(model), folder.name))
    return result


def _check_exportable(
    name: str, exporter: Exporter, model: RewardModel, options: WriteOptions
) -> None:
    """Check model and options against the layout, before anything is written.

    Raises:
        ModelError: the model has no such form, or an option means nothing for it.
    """
    network, metadata = model.module.network, model.metadata
    if metadata.trust_remote_code:
        raise ModelError(
            f"{metadata.base} needs custom Python code, which an export does not include; use the"
            " model without exporting it."
        )
    if exporter.decoders_only and not has_score_head(network):
        raise ModelError(
            f"{type(classifier(network)).__name__} is an encoder, and --to {name} supports only"
            " decoders with a linear head; export it with --to merged."
        )
    if exporter.layout == "adapter" and not is_adapter(network):
        raise ModelError(
            f"The model has no LoRA adapter, and --to {name} exports only adapters; export it"
            " with --to merged."
        )
    if options.peft_config is not None and (exporter.layout == "whole" or not is_adapter(network)):
        raise ModelError(
            f"--peft-config changes adapter_config.json, but --to {name} writes a whole model;"
            " remove --peft-config."
        )
    if options.normalize and (metadata.reward_mean is None or not metadata.reward_std):
        raise ModelError(
            "--normalize needs the mean and standard deviation of the evaluation rewards, which"
            " this model's plaudit.json does not have; remove --normalize, or train with"
            " evaluation data."
        )


@torch.no_grad()
def _prepare(
    model: RewardModel, exporter: Exporter, options: WriteOptions, *, base: str, base_named: str
) -> Exportable:
    """Fold, merge and round in place; the model's network is not what it was afterwards.

    Raises:
        ModelError: merging gives weights that are not finite, or the dtype cannot hold them.
    """
    network, metadata = model.module.network, model.metadata
    if exporter.layout == "whole" and is_adapter(network):
        network = merged(network)
    fold_scale(network, metadata.reward_transform.scale)
    offset, outputs = metadata.reward_transform.offset, metadata.outputs
    if outputs is not None:
        offset = sum(outputs.weights) * offset + fold_outputs(network, outputs)
    bias = output_layer(classifier(network))[1].bias
    if bias is not None:
        bias.add_(offset)
        offset = 0.0
    _round_weights(network, options.torch_dtype)
    return Exportable(
        network=network,
        tokenizer=model.tokenizer,
        metadata=metadata,
        base=base,
        base_named=base_named,
        offset=offset,
    )


def _round_weights(network: Any, dtype: torch.dtype) -> None:
    """Every written weight but the head's to a value that ``dtype`` holds, kept in fp32.

    Raises:
        ModelError: a weight is over what ``dtype`` reaches.
    """
    # What an adapter's files do not hold (the base) stays as it is.
    part = "lora_" if is_adapter(network) else ""
    for name, tensor in network.state_dict().items():
        written = part in name or ".modules_to_save." in name
        if not written or not tensor.is_floating_point() or belongs_to_head(network, name):
            continue
        rounded = tensor.to(dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise ModelError(
                f"{name} has a value too large for {str(dtype).removeprefix('torch.')}; use"
                " --dtype bfloat16 or float32."
            )
        tensor.copy_(rounded)


def _metadata(source: Exportable, exporter: Exporter) -> tuple[CheckpointMetadata, tuple[str, ...]]:
    """``plaudit.json`` of the export, the same model in another form, and what to say of it.

    Gives the tokenizer the chat template of an imported model that has it elsewhere.
    """
    metadata, tokenizer, notes = source.metadata, source.tokenizer, []
    as_jinja = renderer_of(metadata.rendering).as_jinja
    if as_jinja is not None and exporter.encode is not None:
        template = as_jinja(metadata.rendering, metadata.scored_token, tokenizer)
        if template is not None:
            tokenizer.chat_template = template
            notes.append(
                f"The chat template is {metadata.rendering.template} written as Jinja; the model"
                " was trained with it."
            )
    if metadata.scored_token.rule != "last" and exporter.encode is None:
        notes.append(
            "This model scores the token before the end token, and the tool scores the last"
            " token: send text without the end token."
        )
    if metadata.outputs is not None:
        named = zip(metadata.outputs.names, metadata.outputs.weights, strict=True)
        summed = " + ".join(f"{weight:.3g} * {name}" for name, weight in named)
        notes.append(f"The head has one output, the reward of the model: {summed}.")
    whole = exporter.layout == "whole"
    changed = replace(
        metadata,
        outputs=None,
        kind="full" if whole else metadata.kind,
        base=metadata.base if whole else source.base_named,
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        reward_transform=RewardTransform(offset=source.offset),
        plaudit_version=__version__,
    )
    return changed, tuple(notes)


def _write_around(
    folder: Path, source: Exportable, exporter: Exporter, metadata: CheckpointMetadata
) -> None:
    """Tokenizer, metadata, and the base where an adapter carries its own."""
    save_tokenizer(source.tokenizer, folder)
    # transformers 5 writes ``TokenizersBackend``, and tools that run on 4 then load no tokenizer.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        write_json(path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    if exporter.plain:
        write_metadata(folder, metadata)
    if metadata.kind == "adapter" and source.base_named != source.base:
        copy_base(source.base, folder)


def _text_notes(
    to: str, exporter: Exporter, metadata: CheckpointMetadata, parity: Parity
) -> tuple[str, ...]:
    """What the tool's own way of making tokens changes.

    Raises:
        ParityError: it should change nothing.
    """
    if not parity.text_differs:
        return ()
    plain = metadata.rendering.kind == "chat_template" and metadata.scored_token.rule == "last"
    if exporter.exact_text and plain:
        raise ParityError(
            f"The tokenizer of the {to} export gives other token ids than the model for"
            f" {parity.text_differs} of {parity.responses} responses ({parity.rows}). Nothing was"
            " written. Please report this with the model's plaudit.json."
        )
    note = (
        f"For messages or text, {to} gives other token ids than this model for"
        f" {parity.text_differs} of {parity.responses} responses; the scores differ by up to"
        f" {parity.text_difference:.3g}. Send token ids, or text that ends as the model expects."
    )
    return (note,)


def _record(result: ExportResult, metadata: CheckpointMetadata, source: Path) -> dict[str, Any]:
    """``export.json``: what this folder is, and how far it was checked."""
    return {
        "format": 1,
        "plaudit_version": __version__,
        "source": source.name,
        **asdict(result),
        "checked": result.parity is not None,
        "base": metadata.base,
        "base_revision": metadata.base_revision,
        "text": metadata.text,
        "max_length": metadata.max_length,
    }


def _card(
    result: ExportResult, exporter: Exporter, metadata: CheckpointMetadata, source: Path, name: str
) -> DerivedCard:
    kind = "lora" if metadata.kind == "adapter" else "full"
    return DerivedCard(
        name=name,
        made=f"Exported from the reward model {source.name} as {exporter.help}, in {result.dtype}"
        + ("" if result.dtype == "float32" else " with the head in float32"),
        model=metadata,
        tags=(result.target,),
        parity=None if result.parity is None else asdict(result.parity),
        notes=result.notes,
        serving=result.serving,
        results_of=source,
        usage=exporter.usage.replace("KIND", kind) or None,
        plain=exporter.plain,
        served=exporter.served,
    )
