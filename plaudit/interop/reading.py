"""What readers of several formats share: base, tokenizer, scored token, metadata, head.

Shapes: L outputs of a head, D hidden width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from plaudit.errors import ModelError
from plaudit.interop.formats import Contents, Request, read_json
from plaudit.model.checkpoint import ArtefactFacts, Origin, Output
from plaudit.model.load import (
    BaseRequest,
    LoadedBase,
    choose_pad_token,
    company_dependent_length,
    load_base,
    load_config,
    output_layer,
    read_tokenizer,
)
from plaudit.tokens.rendering import renderer_of
from plaudit.types import Affine, Reading, Rendering

logger = logging.getLogger("plaudit")

UNSPOKEN_LENGTH = 8192
"""The longest conversation where neither the files nor the positions of a model set one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the body of a model is: its own folder, or the base of an adapter."""

    path: str
    revision: str | None
    kind: Literal["adapter", "full"]

    def request(self, trust_remote_code: bool, dtype: torch.dtype) -> BaseRequest:
        return BaseRequest(
            base=self.path,
            revision=self.revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            foreign_head=True,
        )


def place_of(contents: Contents, request: Request) -> Place:
    """The body's place; the base of an adapter may be named anew, or lie beside it.

    Raises:
        ModelError: an adapter that names no base, and none was named for it.
    """
    if contents.adapter is None:
        return Place(path=str(contents.folder), revision=None, kind="full")
    revision = contents.adapter.get("revision")
    beside = contents.folder / "base"
    if request.base is not None:
        return Place(path=request.base, revision=None, kind="adapter")
    if (beside / "config.json").is_file():
        return Place(path=str(beside), revision=None, kind="adapter")
    named = contents.adapter.get("base_model_name_or_path")
    if not named:
        raise ModelError(
            f"{contents.folder / 'adapter_config.json'} names no base; name the model it was "
            "trained on with --base."
        )
    return Place(path=str(named), revision=revision, kind="adapter")


def checked_config(place: Place, request: Request) -> Any:
    """The body's configuration.

    Raises:
        ModelError: there is none; for an adapter with the advice to say where its base is.
    """
    named = (read_json(Path(place.path) / "config.json") or {}).get("auto_map") or {}
    if "AutoConfig" in named and not request.trust_remote_code:
        raise ModelError(
            f"{request.source} needs Python code of its own; read that code, and load with "
            "trust_remote_code=True (--trust-remote-code) if you trust it."
        )
    try:
        return load_config(place.request(request.trust_remote_code, torch.float32))
    except ModelError as error:
        if place.kind == "full":
            raise
        raise ModelError(
            f"The base of the adapter in {request.source} cannot be loaded ({error}) Say where it "
            "is now with --base."
        ) from None


def own_tokenizer(contents: Contents, place: Place, request: Request) -> PreTrainedTokenizerBase:
    """The tokenizer saved with the model, else its base's, as the files have it."""
    beside = any(
        (contents.folder / name).is_file()
        for name in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
    )
    return read_tokenizer(
        str(contents.folder) if beside else place.path,
        revision=None if beside else place.revision,
        trust_remote_code=request.trust_remote_code,
    )


def spare_pad(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Give the tokenizer a padding token of its own; the scored token goes by the model's rule."""
    tokenizer.pad_token = choose_pad_token(tokenizer, None, source)


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
            f"{version!r} is not a version; give the one that trained the model, like 0.8.2."
        ) from None


def classifier_reading(
    tokenizer: PreTrainedTokenizerBase, pad_id: int | None, version: str | None
) -> tuple[Reading, list[str]]:
    """Which token transformers' sequence classifiers score, and what to say of it.

    They find it by the padding token, so it matters where a conversation holds that token: up to
    4.48 they took the one before its first occurrence, since then the last other one.
    """
    if pad_id is None or pad_id < 0:
        # The first Llama configurations say -1 where there is none.
        return Reading(), []
    pad = str(tokenizer.convert_ids_to_tokens(pad_id))
    template = tokenizer.chat_template
    written = isinstance(template, str) and pad in template
    if pad_id != tokenizer.eos_token_id and not written:
        return Reading(), []
    old = version is not None and release(version) < release("4.49.0")
    rule: Literal["first_pad", "before_trailing_pad"] = (
        "first_pad" if old else "before_trailing_pad"
    )
    place = "the token before its first occurrence" if old else "the last token that is another"
    note = (
        f"its padding token {pad} also ends texts, so {place} is scored, as in transformers "
        f"{version or '4.49 and later (its version is not recorded; --era names another)'}"
    )
    return Reading(rule=rule, pad_id=pad_id), [note]


def make_facts(
    contents: Contents,
    request: Request,
    place: Place,
    tokenizer: PreTrainedTokenizerBase,
    *,
    origin: str,
    era: str | None,
    notes: Sequence[str],
    rendering: Rendering = Rendering(),
    reading: Reading = Reading(),
    affine: Affine = Affine(),
    output: Output | None = None,
) -> ArtefactFacts:
    """The facts of an imported model; what its files do not say stays unknown, or is said."""
    config = checked_config(place, request)
    template = tokenizer.chat_template
    own_template = not renderer_of(rendering).needs_chat_template
    rendered = own_template or bool(template)
    text = request.choices.text or ("chat" if rendered else "text")
    said = [*notes]
    if rendered and not own_template and request.choices.text is None:
        said.append(
            "its files do not say whether it was trained on conversations or plain text; plain "
            "text is read as one user and one assistant turn through its chat template (--text "
            "text changes that)"
        )
    longest, turning = _longest(config, tokenizer), company_dependent_length(config)
    if turning is not None and turning < longest:
        longest = turning
        said.append(
            f"beyond {turning} tokens its rotary positions change with the longest text of a "
            "batch, so longer conversations are not scored"
        )
    assert isinstance(tokenizer.pad_token, str)
    return ArtefactFacts(
        kind=place.kind,
        base=_absolute(place.path),
        base_revision=place.revision,
        max_length=longest,
        text=text,
        chat_template=template if isinstance(template, str) else None,
        pad_token=tokenizer.pad_token,
        attention="auto",
        attention_note=None,
        head={"name": "score", "init": f"the {origin} model's own", "dtype": "float32"},
        trust_remote_code=request.trust_remote_code and _has_code(config),
        rendering=rendering,
        reading=reading,
        affine=affine,
        output=output,
        origin=Origin(format=origin, source=request.source, era=era, notes=tuple(said)),
    )


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def _longest(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens the positions reach, and the tokenizer's own limit where it is one."""
    reach = getattr(config, "max_position_embeddings", None) or UNSPOKEN_LENGTH
    return int(min(reach, tokenizer.model_max_length))


def choose_output(
    rows: int, labels: Mapping[str, Any], request: Request
) -> tuple[int, Output | None]:
    """Which row of a head is the reward.

    Raises:
        ModelError: several, and none chosen, or one that is not there.
    """
    asked = request.choices.output
    names = {number: str(labels.get(str(number), f"output {number}")) for number in range(rows)}
    listed = ", ".join(f"{number} ({name})" for number, name in names.items())
    if asked is not None and not 0 <= asked < rows:
        raise ModelError(f"--output {asked} is not an output of {request.source}; it has {listed}.")
    if rows == 1:
        return 0, None
    if asked is None:
        raise ModelError(
            f"{request.source} has {rows} outputs: {listed}; choose the one that is the reward "
            "with plaudit import and --output."
        )
    return asked, Output(index=asked, of=rows, name=names[asked])


def build_classifier(
    place: Place,
    request: Request,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    weight_1D: Tensor | None,
) -> LoadedBase:
    """The body as a one-output classifier whose head is ``weight_1D``; None leaves the head alone.

    Raises:
        ModelError: the body cannot be loaded, or the head is of another width.
    """
    assert isinstance(tokenizer.pad_token_id, int)
    try:
        loaded = load_base(
            place.request(request.trust_remote_code, dtype), pad_id=tokenizer.pad_token_id
        )
    except ModelError as error:
        if place.kind == "full":
            raise
        raise ModelError(f"{error} The base of an adapter is named with --base.") from None
    forget_extras(loaded.network, keeps_code=request.trust_remote_code)
    return loaded if weight_1D is None else with_head(loaded, weight_1D, request.source)


def with_head(loaded: LoadedBase, weight_1D: Tensor, source: str) -> LoadedBase:
    """The classifier with the weights of its head put in place.

    Raises:
        ModelError: the width is not the body's.
    """
    name, head = output_layer(loaded.network)
    if head.weight.shape != weight_1D.shape:
        raise ModelError(
            f"The head of {source} is {_shape(weight_1D)}, but its body needs {_shape(head.weight)}"
            "; the two do not belong together: name the right base with --base."
        )
    with torch.no_grad():
        head.weight.copy_(weight_1D.float())
    return replace(loaded, fresh_head=False, missing=loaded.missing - {f"{name}.weight"})


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape)


def _has_code(config: Any) -> bool:
    """Whether the model's folder names Python of its own."""
    return bool(getattr(config, "auto_map", None))


def forget_extras(network: Any, *, keeps_code: bool) -> None:
    """Drop configuration keys by which another tool would read the saved classifier its own way."""
    code = () if keeps_code else ("auto_map",)
    for name in (*code, "value_head_prefix", "mean", "std", "normalize_reward"):
        if hasattr(network.config, name) and name not in type(network.config)().to_dict():
            delattr(network.config, name)
