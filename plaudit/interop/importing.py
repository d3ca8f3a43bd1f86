"""``plaudit import``: another tool's reward model as a plaudit folder that scores the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData

from plaudit.errors import ModelError
from plaudit.interop.formats import ReadOptions, locate
from plaudit.model.checkpoint import CheckpointMetadata, save_checkpoint
from plaudit.reward_model import open_frozen
from plaudit.storage.atomic import check_new_folder, new_folder, write_text, writing
from plaudit.storage.model_files import read_json


def import_model(
    source: str | Path, out: Path, options: ReadOptions = ReadOptions()
) -> CheckpointMetadata:
    """Write weights, tokenizer, ``plaudit.json`` and a card, all or nothing.

    An adapter stays an adapter, a whole model keeps its precision, its head in fp32.

    Raises:
        ModelError: the source cannot be read, or is plaudit's own already.
        OutputError: ``out`` exists or cannot be written.
    """
    check_new_folder(out)
    opened = open_frozen(source, options)
    if opened.metadata.origin is None:
        raise ModelError(
            f"{source} is already a plaudit model; use it directly, without plaudit import."
        )
    if opened.metadata.trust_remote_code and opened.metadata.kind == "full":
        raise ModelError(
            f"{source} needs custom Python code, which an import does not copy; use it directly"
            " with --trust-remote-code."
        )
    network = opened.build(_stored_dtype(locate(source), opened.metadata))
    metadata = opened.metadata
    with new_folder(out) as temporary, writing(out):
        save_checkpoint(temporary, network, opened.tokenizer, metadata)
        write_text(temporary / "README.md", card(metadata, out.name))
    return metadata


def _stored_dtype(folder: Path, metadata: CheckpointMetadata) -> torch.dtype:
    """The precision of a whole model's weights; an adapter's own tensors are kept in fp32."""
    config = read_json(folder / "config.json") or {}
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtype: Any = getattr(torch, named.removeprefix("torch."), torch.float32)
    return dtype if metadata.kind == "full" and isinstance(dtype, torch.dtype) else torch.float32


def card(metadata: CheckpointMetadata, name: str) -> str:
    """What the model is, how it is read, and what nobody recorded."""
    assert metadata.origin is not None
    hub_base = metadata.kind == "adapter" and not Path(metadata.base).exists()
    header = ModelCardData(
        library_name="peft" if metadata.kind == "adapter" else "transformers",
        pipeline_tag="text-classification",
        tags=["reward-model"],
        base_model=metadata.base if hub_base else None,
    ).to_yaml()
    notes = [*metadata.origin.notes, f"it reads at most {metadata.max_length} tokens"]
    rules = "".join(f"- {note[0].upper()}{note[1:]}.\n" for note in notes)
    return (
        f"---\n{header}\n---\n\n# {name}\n\n"
        f"A reward model that another tool trained ({metadata.origin.format}), imported by"
        " plaudit. It gives the same scores as in that tool. A higher score is better. Scores are"
        " comparable only among responses to the same prompt.\n\n"
        f"## How it is scored\n\n{rules}\n"
        "## What is not known\n\n"
        "The imported files do not record the training data, the evaluation or the calibration."
        " Run `plaudit eval` to measure the model on your data.\n"
    )
