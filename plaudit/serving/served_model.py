"""A loaded model: it encodes requests and scores trees with a prefix cache."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from plaudit.errors import DataError, ModelError
from plaudit.model.attention.kv_cache import CachedPrefix, PassKV, PrefixCache
from plaudit.model.load import batch_independent_length
from plaudit.model.module import classifier
from plaudit.model.scoring import score_distinct
from plaudit.reward_model import RewardModel, ScoreCache, load
from plaudit.serving.errors import RejectionError
from plaudit.serving.protocols.records import Dialogue, ScoreRequest
from plaudit.serving.settings import ModelSource, ServerSettings
from plaudit.tokens.batch import LEAST_SHARED, PackedBatcher, conversations, fill, pack
from plaudit.tokens.encode import NOT_RENDERED, OVER_LENGTH
from plaudit.tokens.preformatted import SpecialTokens, encode_preformatted, special_tokens_of
from plaudit.types import MEDIA, FloatArray, IntArray, PackedBatch, Skipped, TokenTree


@dataclass(eq=False, slots=True, kw_only=True)
class ServedModel:
    """One version of a model. Requests keep the version they were encoded for until answered."""

    name: str
    source: str
    model: RewardModel
    special_tokens: SpecialTokens
    cache: ScoreCache
    prefix_cache: PrefixCache | None
    version: int
    complete_texts: bool
    loaded: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def created(self) -> int:
        """When it was loaded, in seconds since 1970."""
        return int(datetime.fromisoformat(self.loaded).timestamp())

    def encode(self, request: ScoreRequest) -> list[IntArray]:
        """The token ids of all conversations of a request, each up to its scored token.

        Raises:
            RejectionError: a conversation over the model's length, without tokens, with something
                that the model cannot read, or one that its chat template rejects.
        """
        written = [part for part in request.parts if isinstance(part, str)]
        texts = iter(
            encode_preformatted(
                self.model.encoder, self.special_tokens, written, complete=self.complete_texts
            )
        )
        model = self.model
        if request.keep_last is not None:
            # What is encoded is truncated here.
            model = replace(model, encoder=replace(model.encoder, max_length=sys.maxsize))
        encoded: list[IntArray] = []
        for part in request.parts:
            encoded += [next(texts)] if isinstance(part, str) else _encode_part(model, part)
        if request.keep_last is not None:
            keep = self.model.metadata.max_length if request.keep_last == -1 else request.keep_last
            encoded = [ids[-keep:] for ids in encoded]
        limit = min(self.model.metadata.max_length, request.limit or self.model.metadata.max_length)
        for ids in encoded:
            _check_scorable(ids, limit)
        return encoded


def _encode_part(model: RewardModel, part: Dialogue | Sequence[int]) -> list[IntArray]:
    if not isinstance(part, Dialogue):
        known = model.module.config.get_text_config().vocab_size
        if any(not 0 <= token < known for token in part):
            raise RejectionError(
                "bad_request", f"A token id is out of range; expected 0 to {known - 1}."
            )
        return [np.asarray(part, dtype=np.int32)]
    if not part.responses:
        return []
    try:
        comparison = model.comparison(part.prompt, part.responses, tools=part.tools)
    except DataError as error:
        raise RejectionError("invalid_request", str(error)) from None
    try:
        (tree,) = model.encode([replace(comparison, chat_template_kwargs=part.template_kwargs)])
    except (DataError, ModelError) as error:
        raise RejectionError("bad_request", str(error)) from None
    if isinstance(tree, Skipped):
        length = f"; the model reads conversations of at most {model.metadata.max_length} tokens"
        raise RejectionError(
            _KINDS.get(tree.reason, "bad_request"),
            f"{tree.detail}{length if tree.reason == OVER_LENGTH else ''}.",
        )
    return conversations(tree)


_KINDS = {
    OVER_LENGTH: "over_length",
    MEDIA: "invalid_request",
    NOT_RENDERED: "invalid_request",
}
"""Kinds of rejections by the reason why a conversation has no tokens."""


def _check_scorable(ids: IntArray, limit: int) -> None:
    if len(ids) == 0:
        raise RejectionError("bad_request", "A conversation has no tokens; send text.")
    if len(ids) > limit:
        raise RejectionError(
            "over_length",
            f"A conversation has {len(ids)} tokens; the limit is {limit}. Shorten it:"
            " conversations are not truncated, because the score is at their end.",
        )


def open_served(source: ModelSource, settings: ServerSettings, *, version: int = 1) -> ServedModel:
    """Load a model, and score once with it before it answers anybody.

    Raises:
        ModelError: it cannot be loaded, or its rewards are not finite.
    """
    model = load(
        source.path,
        base=settings.base,
        device=settings.device,
        dtype=settings.dtype,
        reward=settings.reward,
        lower_bound_k=settings.lower_bound_k,
        trust_remote_code=settings.trust_remote_code,
    )
    served = ServedModel(
        name=source.name,
        source=source.path,
        model=model,
        special_tokens=special_tokens_of(model.encoder, model.metadata.text),
        cache=ScoreCache(settings.cached_scores),
        prefix_cache=open_prefix_cache(model, settings.prefix_cache_bytes),
        version=version,
        complete_texts=settings.complete_texts,
    )
    ids = model.tokenizer("plaudit", add_special_tokens=True)["input_ids"]
    probe = np.asarray(ids or [0], dtype=np.int32)
    (outputs,) = model.output_trees([TokenTree(index=0, prefix=probe[:0], branches=(probe, probe))])
    if not np.isfinite(outputs).all():
        raise ModelError(f"{source.path} gives NaN or infinite rewards; train it again.")
    return served


class ModelCard(BaseModel):
    """A model, in the format of OpenAI's API."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "plaudit"


class ModelMetadata(ModelCard):
    """Metadata of a model; ``evaluation`` is from its metrics.json, null without one.

    ``outputs`` are the weights of a head's outputs by name, null for a head with one. ``reward``
    (``mean`` or ``lower_bound``) and ``lower_bound_k`` are null without an ensemble of heads.
    """

    version: int
    loaded: str
    kind: str
    base: str
    text: str
    max_length: int
    temperature: float | None
    reward_mean: float | None
    reward_std: float | None
    outputs: dict[str, float] | None
    reward: str | None
    lower_bound_k: float | None
    layout: str
    dtype: str
    plaudit_version: str
    origin: str | None
    evaluation: Mapping[str, Any] | None
    card: bool
    report: bool


def metadata_of(served: ServedModel) -> ModelMetadata:
    """Metadata of a served model, with the metrics of its evaluation where they are recorded."""
    metadata, folder = served.model.metadata, Path(served.source)
    outputs = metadata.outputs
    ensemble = outputs is not None and outputs.ensemble
    return ModelMetadata(
        id=served.name,
        created=served.created,
        version=served.version,
        loaded=served.loaded,
        kind=metadata.kind,
        base=Path(metadata.base).name if Path(metadata.base).is_absolute() else metadata.base,
        text=metadata.text,
        max_length=metadata.max_length,
        temperature=metadata.temperature,
        reward_mean=metadata.reward_mean,
        reward_std=metadata.reward_std,
        outputs=None if outputs is None else dict(zip(outputs.names, outputs.weights, strict=True)),
        reward=served.model.reward if ensemble else None,
        lower_bound_k=served.model.lower_bound_k if ensemble else None,
        layout="packed" if isinstance(served.model.batcher, PackedBatcher) else "padded",
        dtype=served.model.dtype,
        plaudit_version=metadata.plaudit_version,
        origin=None if metadata.origin is None else metadata.origin.format,
        evaluation=_metrics(folder, calibrated_later=metadata.temperature_fit is not None),
        card=(folder / "README.md").is_file(),
        report=(folder / "report.html").is_file(),
    )


_MEASURED = (
    "dataset",
    "pairs",
    "accuracy",
    "accuracy_ci95",
    "loss",
    "ece",
    "ece_stored",
    "chose_checkpoint",
)


def _metrics(folder: Path, *, calibrated_later: bool) -> Mapping[str, Any] | None:
    """The test set's results if there is one, else the evaluation's; None without a record.

    ``calibrated_later``: ``plaudit calibrate`` replaced the temperature that they were measured at.
    """
    try:
        recorded = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    block = recorded.get("test") or recorded.get("eval")
    if not isinstance(block, dict):
        return None
    measured = {name: block.get(name) for name in _MEASURED}
    if calibrated_later:
        measured["ece_stored"] = None
    return measured


logger = logging.getLogger("plaudit")

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far apart a reward may be with and without kept states, per unit of its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedTree:
    """A tree whose prefix is ``cached`` by earlier passes, or no part of it is.

    ``cacheable`` are the tokens whose states shall be kept when it has run: the prompt that its
    branches share, or all of a lone conversation.
    """

    tree: TokenTree
    cached: CachedPrefix
    cacheable: IntArray

    @property
    def computed(self) -> int:
        """Tokens of it in the row."""
        return self.tree.tokens - self.cached.tokens


NOTHING = CachedPrefix(0, ())

CACHED_PER_COMPUTED = 4
"""Cached tokens that count as one computed token where a micro-batch is bounded: each layer copies
their keys and values, but computes nothing for them."""


def with_cached_prefix(tree: TokenTree, prefix_cache: PrefixCache) -> CachedTree:
    """The same conversations, of which the model computes fewer tokens where states are kept."""
    alone = len(tree.branches) == 1
    # The scored token itself must be computed.
    beginning = conversations(tree)[0][:-1] if alone else tree.prefix
    cached = prefix_cache.find(beginning)
    # Tokens of the prompt behind the cached ones are computed in every branch.
    behind = len(tree.prefix) - cached.tokens
    if cached.tokens < LEAST_SHARED or (
        not alone and behind * len(tree.branches) > len(tree.prefix)
    ):
        return CachedTree(tree=tree, cached=NOTHING, cacheable=beginning)
    parted = replace(
        tree,
        prefix=beginning[: cached.tokens],
        branches=tuple(ids[cached.tokens :] for ids in conversations(tree)),
    )
    return CachedTree(tree=parted, cached=cached, cacheable=beginning)


class PrefixCacheBatcher:
    """Packed batches of resumed trees; after each pass its new states are kept."""

    def __init__(
        self, plain: PackedBatcher, prefix_cache: PrefixCache, resumed: Sequence[CachedTree]
    ) -> None:
        self._plain = plain
        self._prefix_cache = prefix_cache
        self._resumed = {one.tree.index: one for one in resumed}
        self._pass: PassKV | None = None

    def split(self, trees: Sequence[TokenTree]) -> list[list[int]]:
        """By what is computed and, of each layer's keys, a part of what is read again."""
        members = [self._resumed[tree.index] for tree in trees]
        sizes = [one.computed + one.cached.tokens // CACHED_PER_COMPUTED for one in members]
        return fill(sizes, self._plain.max_tokens)

    def collate(self, trees: Sequence[TokenTree]) -> PackedBatch:
        members = [self._resumed[tree.index] for tree in trees]
        kept: list[slice] = []
        start, room = 0, self._prefix_cache.room
        for one in members:
            # More than the store holds would only be dropped again.
            left = max(0, room - one.cached.tokens)
            fresh = min(len(one.cacheable) - one.cached.tokens, left)
            kept.append(slice(start, start + fresh))
            start += one.computed
            room = max(0, room - fresh)
        self._pass = PassKV([one.cached for one in members], kept)
        cached = [one.cached.tokens > 0 for one in members]
        return pack(trees, self._plain.device, cached=cached, prefix_kv=self._pass)

    def keep(self, trees: Sequence[TokenTree]) -> None:
        """Keep the states that the pass over these trees found."""
        assert self._pass is not None
        for tree, part, layers in zip(trees, self._pass.kept, self._pass.found, strict=True):
            one = self._resumed[tree.index]
            cached = one.cached.tokens
            self._prefix_cache.add(one.cacheable[: cached + part.stop - part.start], cached, layers)


def score_with_prefix_cache(
    model: RewardModel, prefix_cache: PrefixCache, trees: Sequence[TokenTree]
) -> tuple[list[FloatArray], list[CachedTree]]:
    """``outputs_KO`` of each tree, and the tree with its cached prefix.

    No conversation may be there twice.
    """
    assert isinstance(model.batcher, PackedBatcher)
    resumed = [with_cached_prefix(tree, prefix_cache) for tree in trees]
    batcher = PrefixCacheBatcher(model.batcher, prefix_cache, resumed)
    outputs = score_distinct(
        model.forward, batcher, [one.tree for one in resumed], on_batch=batcher.keep
    )
    return outputs, resumed


def open_prefix_cache(model: RewardModel, limit: int) -> PrefixCache | None:
    """An empty store of ``limit`` bytes; None where states cannot or shall not be kept.

    A conversation is scored with and without them first: a model whose rewards then differ by more
    than rounding goes without, aloud.
    """
    if limit <= 0 or not isinstance(model.batcher, PackedBatcher):
        return None
    tried = PrefixCache(sys.maxsize)
    why = _why_no_prefix_cache(model, tried)
    if why is not None:
        logger.warning("%s runs without a prefix cache: %s.", model.source, why)
        return None
    return PrefixCache(limit, token_bytes=tried.token_bytes)


def _why_no_prefix_cache(model: RewardModel, prefix_cache: PrefixCache) -> str | None:
    """Why nothing may be kept; None where scoring with ``prefix_cache`` is as good as without."""
    turning = batch_independent_length(classifier(model.module.network).config)
    if turning is not None and model.metadata.max_length > turning:
        return (
            f"beyond {turning} tokens its rotary embeddings depend on the longest sequence of a"
            " batch"
        )
    known = classifier(model.module.network).config.get_text_config().vocab_size
    ids_KT = np.random.default_rng(0).integers(0, known, (2, 4 * LEAST_SHARED)).astype(np.int32)
    ids_KT[:, : 2 * LEAST_SHARED] = ids_KT[0, : 2 * LEAST_SHARED]
    first, second = (TokenTree(index=0, prefix=ids[:0], branches=(ids,)) for ids in ids_KT)
    (plain,) = model.output_trees([second])
    score_with_prefix_cache(model, prefix_cache, [first])
    (again,), (resumed,) = score_with_prefix_cache(model, prefix_cache, [second])
    if resumed.cached.tokens < 2 * LEAST_SHARED:
        return "its attention returns no key-value cache"
    transform, outputs = model.module.reward_transform, model.metadata.outputs
    raw = plain - transform.offset - (0.0 if outputs is None else np.asarray(outputs.offsets))
    size = max(1.0, float(np.abs(raw / transform.scale).max()))
    apart = float(np.abs(plain - again).max()) / abs(transform.scale)
    # That of the body, which is no finer than head and adapter.
    tolerance = TOLERANCE.get(model.dtype, TOLERANCE["bfloat16"])
    if not apart <= tolerance * size:
        return f"rewards with and without the cache differ by {apart:.2g}"
    return None
