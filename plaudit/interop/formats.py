"""Every format a reward model is read from: recognised by its files, opened by its own rules.

To add one, write a recogniser and an opener and name their :class:`Format` in the registry; the
first that recognises a folder opens it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from plaudit import registry
from plaudit.errors import ModelError
from plaudit.interop.records import Choices, Format, Opened, Request
from plaudit.interop.shared import Contents, look, say
from plaudit.model.checkpoint import (
    FACTS_FILE,
    RUN_FILES,
    load_network,
    own_tokenizer,
    read_facts,
    run_of,
)
from plaudit.model.load import first_line
from plaudit.storage.atomic import missing_path

OWN_CODE_HEADS = ("v_head.", "score.0.", "reward_head.")
"""Heads that only a model's own class computes: InternLM2's, Qwen2.5-Math's and the like."""
FETCHED = (
    *("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.yaml", "*.py"),
    *("README.md", "adapter_model.bin", "value_head.bin"),
)
PICKLED = ("pytorch_model*.bin",)
NOT_FETCHED = ("checkpoint*/*", "runs/*", "original/*", "plots/*", "evaluations/*")


def _is_own(contents: Contents) -> bool:
    # A checkpoint of a run is read through the run's facts.
    return (contents.folder / FACTS_FILE).is_file() or run_of(contents.folder) is not None


def _open_own(contents: Contents, request: Request) -> Opened:
    """A folder that plaudit wrote. What it says of trusted code never suffices.

    Raises:
        ModelError: it needs its own code and was not trusted, or a choice was given that it has
            made already.
    """
    facts = read_facts(contents.folder)
    if request.choices != Choices():
        raise ModelError(
            f"{request.source} is a folder of plaudit and records how it is read; leave out era, "
            "template, output, text and normalize, or import the original again."
        )
    if facts.trust_remote_code and not request.trust_remote_code:
        raise ModelError(
            f"{request.source} was trained on a base with Python code of its own; read that code, "
            "and load with trust_remote_code=True (--trust-remote-code) if you trust it."
        )

    def build(dtype: torch.dtype) -> nn.Module:
        return load_network(contents.folder, facts, dtype=dtype, base=request.base)[0]

    return Opened(facts=facts, tokenizer=own_tokenizer(contents.folder, facts), build=build)


OWN = Format(name="plaudit", recognises=_is_own, opens=_open_own)


def formats() -> tuple[Format, ...]:
    """Plaudit's own and those of other tools, in the order in which they are asked."""
    return (OWN, *registry.every("model_format").values())


def open_reward_model(
    source: str | Path,
    *,
    base: str | None = None,
    trust_remote_code: bool = False,
    choices: Choices = Choices(),
) -> Opened:
    """Recognise a reward model from its files alone; what is lossy or guessed is said aloud.

    ``source`` is a folder or a Hub id. ``base`` names the base of an adapter where it was moved.

    Raises:
        ModelError: nothing there that is a reward model, or one that cannot be read as it was made.
    """
    folder = locate(source)
    request = Request(
        folder=folder,
        source=str(source),
        base=base,
        trust_remote_code=trust_remote_code,
        choices=choices,
    )
    contents = look(folder)
    opened = recognise(contents, request).opens(contents, request)
    if opened.facts.origin is not None and not _is_own(contents):
        say(opened.facts)
    return opened


def recognise(contents: Contents, request: Request) -> Format:
    """The format of a folder.

    Raises:
        ModelError: it is of none.
    """
    own = _is_own(contents)
    if not own and any((contents.folder / name).is_file() for name in RUN_FILES):
        raise ModelError(
            f"{request.source} has no {FACTS_FILE}, so this run has not finished training; name "
            "one of its checkpoints, or finish the run with plaudit train --resume."
        )
    for row in formats():
        if row.recognises(contents):
            return row
    if contents.config is None:
        found = "holds no model"
    elif any(name.startswith(OWN_CODE_HEADS) for name in contents.names):
        found = "is a reward model whose head needs its own code, which plaudit does not read"
    else:
        found = "is a model without a reward head"
    raise ModelError(
        f"{request.source} {found} (no {FACTS_FILE}, no adapter_config.json, no value_head file "
        "and no linear head among its weights); expected a reward model: "
        f"{', '.join(row.name for row in formats())}."
    )


def is_reward_model(folder: Path) -> bool:
    """Whether a local folder is a reward model rather than a plain base."""
    if not folder.is_dir():
        return False
    contents = look(folder)
    return any(row.recognises(contents) for row in formats())


def locate(source: str | Path) -> Path:
    """A local folder as it is, a Hub id as the folder of its downloaded files.

    Raises:
        ModelError: neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    named = str(source)
    if folder.exists():
        raise ModelError(f"{source} is a file; expected the folder of a reward model or a Hub id.")
    missing = missing_path(named)
    if missing is not None:
        raise ModelError(f"{missing}; expected the folder of a reward model or a Hub id.")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                named, allow_patterns=list(patterns), ignore_patterns=list(NOT_FETCHED)
            )
        )

    try:
        fetched = fetch(FETCHED)
        # Many repositories hold the same weights twice; the pickles are the ones not needed.
        weights = [*fetched.glob("*.safetensors"), *fetched.glob("adapter_model.bin")]
        return fetched if weights else fetch((*FETCHED, *PICKLED))
    except Exception as error:
        # A proxy's refusal is httpx's own, which shares no class with the others.
        network = type(error).__module__.startswith("httpx")
        if not network and not isinstance(error, (OSError, ValueError, HfHubHTTPError)):
            raise
        raise ModelError(
            f"No reward model at {source}: it is no folder, and not on the Hub or not to be "
            f"reached ({first_line(error)})."
        ) from None
