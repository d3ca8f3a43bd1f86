"""What readers of several formats share: base, tokenizer, scored token, metadata, head.

Shapes: L outputs of a head, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from plaudit.errors import ModelError
from plaudit.interop.formats import Contents
from plaudit.model.checkpoint import BASE_FOLDER, CheckpointMetadata, Origin, Output
from plaudit.model.load import (
    BaseRequest,
    LoadedBase,
    batch_independent_length,
    choose_pad_token,
    load_base,
    load_config,
    output_layer,
    read_tokenizer,
)
from plaudit.storage.model_files import read_json
from plaudit.tokens.rendering import renderer_of
from plaudit.types import Rendering, ScoredTokenRule

FOREIGN_SETTINGS = ("auto_map", "value_head_prefix", "mean", "std", "normalize_reward")
"""Keys of ``config.json`` by which a tool finds and normalises its own head."""

DEFAULT_LENGTH = 8192
"""The longest conversation where neither the files nor the positions of a model set one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The body of a model, with its configuration and its tokenizer as the files have them.

    ``place`` is where the body is loaded from: the model's own folder, or the base of an adapter.
    """

    contents: Contents
    place: BaseRequest
    config: Any
    tokenizer: PreTrainedTokenizerBase


def open_body(contents: Contents) -> Body:
    """Find the body, whose folder an option may name, and read configuration and tokenizer.

    Raises:
        ModelError: an adapter that names no base, or nothing that can be read there.
    """
    path, revision = _place(contents)
    folder, trusted = contents.folder, contents.options.trust_remote_code
    named = (read_json(Path(path) / "config.json") or {}).get("auto_map") or {}
    if "AutoConfig" in named and not trusted:
        raise ModelError(
            f"{contents.source} needs custom Python code; review that code, then load the model"
            " with trust_remote_code=True (--trust-remote-code) if you trust it."
        )
    place = BaseRequest(
        base=path,
        revision=revision,
        dtype=torch.float32,
        trust_remote_code=trusted,
        foreign_head=True,
    )
    with _naming_base(contents):
        config = load_config(place)
    tokenizer_files = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
    beside = any((folder / name).is_file() for name in tokenizer_files)
    tokenizer = read_tokenizer(
        str(folder) if beside else path,
        revision=None if beside else revision,
        trust_remote_code=trusted,
    )
    return Body(contents=contents, place=place, config=config, tokenizer=tokenizer)


def _place(contents: Contents) -> tuple[str, str | None]:
    """Path or Hub id of the body, and its revision there."""
    if contents.adapter is None:
        return str(contents.folder), None
    if contents.options.base is not None:
        return contents.options.base, None
    beside = contents.folder / BASE_FOLDER
    if (beside / "config.json").is_file():
        return str(beside), None
    named = contents.adapter.get("base_model_name_or_path")
    if not named:
        raise ModelError(
            f"{contents.folder / 'adapter_config.json'} does not name the base model; set it with"
            " --base."
        )
    return str(named), contents.adapter.get("revision")


@contextmanager
def _naming_base(contents: Contents) -> Iterator[None]:
    """An error that says how the base is named, where it is an adapter's."""
    try:
        yield
    except ModelError as error:
        if contents.adapter is None:
            raise
        raise ModelError(
            f"The base of the adapter in {contents.source} cannot be loaded ({error}) Set its"
            " path or Hub id with --base."
        ) from None


def release(version: str) -> tuple[int, ...]:
    """A version as numbers that compare.

    Raises:
        ModelError: it is none.
    """
    parts = version.removeprefix("v").split("+")[0].split(".")
    try:
        return tuple(int("".join(c for c in part if c.isdigit())) for part in parts[:3])
    except ValueError:
        raise ModelError(
            f"{version!r} is not a version; use the release that trained the model, such as 0.8.2."
        ) from None


def classifier_reading(
    tokenizer: PreTrainedTokenizerBase, pad_id: int | None, version: str | None
) -> tuple[ScoredTokenRule, list[str]]:
    """Which token transformers' sequence classifiers score, and what to say of it.

    They find it by the padding token, so it matters where a conversation holds that token: up to
    4.48 they took the one before its first occurrence, since then the last other one.
    """
    if pad_id is None or pad_id < 0:
        # The first Llama configurations say -1 where there is none.
        return ScoredTokenRule(), []
    pad = str(tokenizer.convert_ids_to_tokens(pad_id))
    template = tokenizer.chat_template
    written = isinstance(template, str) and pad in template
    if pad_id != tokenizer.eos_token_id and not written:
        return ScoredTokenRule(), []
    old = version is not None and release(version) < release("4.49.0")
    rule: Literal["first_pad", "before_trailing_pad"] = (
        "first_pad" if old else "before_trailing_pad"
    )
    place = (
        "the token before its first occurrence"
        if old
        else "the last token that is not the padding token"
    )
    note = (
        f"its padding token {pad} is also an end token, so {place} is scored, as in transformers "
        + (version or "4.49 and later (its version is not recorded; --source-version sets it)")
    )
    return ScoredTokenRule(rule=rule, pad_id=pad_id), [note]


def imported_metadata(
    body: Body,
    format_name: str,
    source_version: str | None,
    notes: Sequence[str],
    rendering: Rendering = Rendering(),
) -> CheckpointMetadata:
    """The metadata of an imported model; what its files do not say stays unknown, or has a note.

    ``source_version`` is the release of the tool whose rules hold, ``notes`` are sentences about
    what is lossy, inferred or unusual.

    Gives the tokenizer a padding token of its own: the scored token goes by the model's rule.
    """
    contents, config, tokenizer = body.contents, body.config, body.tokenizer
    tokenizer.pad_token = choose_pad_token(tokenizer, None, contents.source)
    template = tokenizer.chat_template
    own_template = not renderer_of(rendering).needs_chat_template
    rendered = own_template or bool(template)
    text = contents.options.text or ("chat" if rendered else "text")
    notes = list(notes)
    if rendered and not own_template and contents.options.text is None:
        notes.append(
            "its files do not record whether it was trained on conversations or plain text;"
            " plain text is rendered as one user and one assistant turn with its chat template"
            " (--text text changes this)"
        )
    # What the positions reach, and the tokenizer's own limit where it is one.
    reach = getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH
    longest = int(min(reach, tokenizer.model_max_length))
    turning = batch_independent_length(config)
    if turning is not None and turning < longest:
        longest = turning
        notes.append(
            f"beyond {turning} tokens its rotary embeddings depend on the longest sequence of a"
            " batch, so longer conversations are not scored"
        )
    base = body.place.base
    has_code = bool(getattr(config, "auto_map", None))
    return CheckpointMetadata(
        kind="full" if contents.adapter is None else "adapter",
        base=str(Path(base).resolve()) if Path(base).is_dir() else base,
        base_revision=body.place.revision,
        max_length=longest,
        text=text,
        chat_template=template if isinstance(template, str) else None,
        pad_token=str(tokenizer.pad_token),
        attention="auto",
        attention_note=None,
        head={"name": "score", "init": f"the {format_name} model's own", "dtype": "float32"},
        trust_remote_code=body.place.trust_remote_code and has_code,
        rendering=rendering,
        origin=Origin(
            format=format_name,
            source=contents.source,
            source_version=source_version,
            notes=tuple(notes),
        ),
    )


def choose_output(rows: int, contents: Contents) -> tuple[int, Output | None]:
    """Which row of a head is the reward.

    Raises:
        ModelError: several, and none chosen, or one that is not there.
    """
    number = contents.options.output
    labels = (contents.config or {}).get("id2label") or {}
    names = {n: str(labels.get(str(n), f"output {n}")) for n in range(rows)}
    listed = ", ".join(f"{n} ({name})" for n, name in names.items())
    if number is not None and not 0 <= number < rows:
        raise ModelError(
            f"--output {number} is not an output of {contents.source}; expected one of {listed}."
        )
    if rows == 1:
        return 0, None
    if number is None:
        raise ModelError(
            f"{contents.source} has {rows} outputs: {listed}; choose the one that is the reward"
            " with plaudit import --output."
        )
    return number, Output(index=number, of=rows, name=names[number])


def build_classifier(body: Body, dtype: torch.dtype, weight_1D: Tensor | None) -> LoadedBase:
    """The body as a one-output classifier whose head is ``weight_1D``; None leaves the head alone.

    Raises:
        ModelError: the body cannot be loaded, or the head is of another width.
    """
    pad_id = body.tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    with _naming_base(body.contents):
        loaded = load_base(replace(body.place, dtype=dtype), pad_id=pad_id)
    # By these keys another tool would read the saved classifier its own way.
    settings: Any = loaded.network.config
    for name in FOREIGN_SETTINGS:
        own = hasattr(settings, name) and name not in type(settings)().to_dict()
        if own and not (body.place.trust_remote_code and name == "auto_map"):
            delattr(settings, name)
    return loaded if weight_1D is None else with_head(loaded, weight_1D, body.contents.source)


def with_head(loaded: LoadedBase, weight_1D: Tensor, source: str) -> LoadedBase:
    """The classifier with the weights of its head put in place.

    Raises:
        ModelError: the width is not the body's.
    """
    name, head = output_layer(loaded.network)
    found, needed = ("×".join(map(str, weight.shape)) for weight in (weight_1D, head.weight))
    if found != needed:
        raise ModelError(
            f"The head of {source} is {found}, but its base needs {needed}; set the right base"
            " with --base."
        )
    with torch.no_grad():
        head.weight.copy_(weight_1D.float())
    return replace(loaded, fresh_head=False, missing=loaded.missing - {f"{name}.weight"})
