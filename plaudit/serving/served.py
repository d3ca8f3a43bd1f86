"""A loaded model as the server holds it: encoding of what requests ask, rewards of recent texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.errors import DataError, ModelError
from plaudit.model.attention.kv_cache import PromptStates
from plaudit.reward_model import RewardModel, ScoreCache, load
from plaudit.serving.prompts import open_states
from plaudit.serving.protocols.records import Ask, Dialogue, Ids, Part, Written
from plaudit.serving.rejection import RefusalError
from plaudit.serving.settings import ModelSource, Settings
from plaudit.tokens.batch import PackedBatcher
from plaudit.tokens.encode import NOT_RENDERED, OVER_LENGTH
from plaudit.tokens.preformatted import Habits, encode_written, habits_of
from plaudit.types import MEDIA, IntArray, Refused, TokenTree


@dataclass(eq=False, slots=True, kw_only=True)
class Served:
    """One version of a model. Requests keep the version they were encoded for until answered."""

    name: str
    source: str
    model: RewardModel
    habits: Habits
    cache: ScoreCache
    states: PromptStates | None
    version: int
    complete_texts: bool
    loaded: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def shares_prompts(self) -> bool:
        """Whether the model runs packed, so that a common beginning is computed once."""
        return isinstance(self.model.batcher, PackedBatcher)

    def encode(self, ask: Ask) -> list[list[IntArray]]:
        """Per part of the request the token ids of its conversations, each up to its scored token.

        Raises:
            RefusalError: a conversation over the model's length, without tokens, with something
                that the model cannot read, or one that its chat template refuses.
        """
        written = [part.text for part in ask.parts if isinstance(part, Written)]
        texts = iter(self._written(written))
        model = self.model if ask.keep_last is None else _of_any_length(self.model)
        encoded = [
            [next(texts)] if isinstance(part, Written) else _encode_part(model, part)
            for part in ask.parts
        ]
        if ask.keep_last is not None:
            keep = self.model.facts.max_length if ask.keep_last == -1 else ask.keep_last
            encoded = [[ids[-keep:] for ids in part] for part in encoded]
        limit = min(self.model.facts.max_length, ask.limit or self.model.facts.max_length)
        for part in encoded:
            for ids in part:
                _refuse_unscorable(ids, limit)
        return encoded

    def _written(self, texts: Sequence[str]) -> list[IntArray]:
        return encode_written(self.model.encoder, self.habits, texts, complete=self.complete_texts)


def _encode_part(model: RewardModel, part: Part) -> list[IntArray]:
    if isinstance(part, Ids):
        return [_known(model, part.ids)]
    assert isinstance(part, Dialogue)
    if not part.responses:
        return []
    try:
        comparison = model.comparison(part.prompt, part.responses, tools=part.tools)
    except DataError as error:
        raise RefusalError("invalid_request", str(error)) from None
    try:
        (tree,) = model.encode([replace(comparison, chat_template_kwargs=part.template_kwargs)])
    except (DataError, ModelError) as error:
        raise RefusalError("bad_request", str(error)) from None
    if isinstance(tree, Refused):
        length = f"; the model reads conversations of at most {model.facts.max_length} tokens"
        raise RefusalError(
            _KINDS.get(tree.reason, "bad_request"),
            f"{tree.detail}{length if tree.reason == OVER_LENGTH else ''}.",
        )
    return conversations(tree)


_KINDS = {
    OVER_LENGTH: "over_length",
    MEDIA: "invalid_request",
    NOT_RENDERED: "invalid_request",
}
"""Kinds of refusals by the reason why a conversation has no tokens."""


def _known(model: RewardModel, ids: Sequence[int]) -> IntArray:
    known = model.module.config.get_text_config().vocab_size
    if any(not 0 <= token < known for token in ids):
        raise RefusalError("bad_request", f"A token id is not among the model's 0 to {known - 1}.")
    return np.asarray(ids, dtype=np.int32)


def _of_any_length(model: RewardModel) -> RewardModel:
    """The model where the caller cuts what it encodes."""
    return replace(model, encoder=replace(model.encoder, max_length=sys.maxsize))


def conversations(tree: TokenTree) -> list[IntArray]:
    """Every whole conversation of a tree."""
    return [np.concatenate([tree.prefix, branch]) for branch in tree.branches]


def _refuse_unscorable(ids: IntArray, limit: int) -> None:
    if len(ids) == 0:
        raise RefusalError(
            "bad_request", "A conversation has no tokens, so there is nothing to score."
        )
    if len(ids) > limit:
        raise RefusalError(
            "over_length",
            f"A conversation has {len(ids)} tokens, over the {limit} that are read here; shorten "
            "it. Its end is what is scored, so nothing is cut silently.",
        )


def open_served(source: ModelSource, settings: Settings, *, version: int = 1) -> Served:
    """Load a model, and score once with it before it answers anybody.

    Raises:
        ModelError: it cannot be loaded, or its rewards are not finite.
    """
    model = load(
        source.path,
        base=settings.base,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )
    served = Served(
        name=source.name,
        source=source.path,
        model=model,
        habits=habits_of(model.encoder, model.facts.text),
        cache=ScoreCache(settings.cached_scores),
        states=open_states(model, settings.prefix_cache_bytes),
        version=version,
        complete_texts=settings.complete_texts,
    )
    ids = model.tokenizer("plaudit", add_special_tokens=True)["input_ids"]
    probe = np.asarray(ids or [0], dtype=np.int32)
    (rewards,) = model.score_trees([TokenTree(index=0, prefix=probe[:0], branches=(probe, probe))])
    if not np.isfinite(rewards).all():
        raise ModelError(f"{source.path} gives rewards that are not finite; train it again.")
    return served


def facts_of(served: Served) -> dict[str, Any]:
    """What is known of a model: its facts, and what evaluation measured where that is there."""
    facts = served.model.facts
    metrics = _metrics(Path(served.source))
    return {
        "id": served.name,
        "object": "model",
        "created": int(datetime.fromisoformat(served.loaded).timestamp()),
        "owned_by": "plaudit",
        "version": served.version,
        "loaded": served.loaded,
        "kind": facts.kind,
        "base": Path(facts.base).name if Path(facts.base).is_absolute() else facts.base,
        "text": facts.text,
        "max_length": facts.max_length,
        "temperature": facts.temperature,
        "reward_mean": facts.reward_mean,
        "reward_std": facts.reward_std,
        "layout": "packed" if served.shares_prompts else "padded",
        "plaudit_version": facts.plaudit_version,
        "origin": None if facts.origin is None else facts.origin.format,
        "evaluation": metrics if facts.temperature_fit is None else _without_stored(metrics),
        "card": (Path(served.source) / "README.md").is_file(),
        "report": (Path(served.source) / "report.html").is_file(),
    }


_MEASURED = ("dataset", "pairs", "accuracy", "accuracy_ci95", "loss", "ece", "ece_stored")


def _without_stored(metrics: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Without what was measured at the temperature that ``plaudit calibrate`` replaced."""
    return metrics and {**metrics, "ece_stored": None}


def _metrics(folder: Path) -> Mapping[str, Any] | None:
    """The test set's results if there is one, else the evaluation's; None without a record."""
    try:
        recorded = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    block = recorded.get("test") or recorded.get("eval")
    if not isinstance(block, dict):
        return None
    chose = block.get("chose_checkpoint")
    return {**{name: block.get(name) for name in _MEASURED}, "chose_checkpoint": chose}
