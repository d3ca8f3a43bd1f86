"""Conversations that somebody else has rendered: one text each, read as the model's own are.

Clients of other tools decode token ids or apply a template themselves and send text. It is encoded
as it stands. Three things are fixed, since clients differ in them and a score would follow: the
start token stands there once if the model's own conversations begin with it, the end token once,
and padding never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from plaudit.errors import ModelError
from plaudit.tokens.encode import Encoder, encode_rendered, up_to_scored_token
from plaudit.tokens.rendering import RENDER_ERRORS, Rendered, render, renderer_of
from plaudit.types import Comparison, IntArray, Message

_CONTENT = "plaudit"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """How a model's own conversations begin and end.

    ``begins_with_start``: with the start token. ``tail``: what stands behind the last answer.
    ``text`` is what the model was trained on.
    """

    text: Literal["chat", "text", "mixed"]
    begins_with_start: bool
    tail: str


def special_tokens_of(encoder: Encoder, text: Literal["chat", "text", "mixed"]) -> SpecialTokens:
    """Look at one rendered conversation; a template that rejects it leaves both unknown."""
    sample = Comparison(
        id="",
        prompt=(Message(role="user", content=_CONTENT),),
        responses=((Message(role="assistant", content=_CONTENT),),),
        grades=(),
        group="",
        source="",
        where="a sample",
    )
    tokenizer = encoder.tokenizer
    try:
        rendered = render(encoder, sample, sample.responses[0])
    except (*RENDER_ERRORS, ModelError):
        return SpecialTokens(text=text, begins_with_start=False, tail="")
    (ids,) = encode_rendered(tokenizer, [rendered])
    bos = tokenizer.bos_token_id
    pieces = [p if isinstance(p, str) else str(tokenizer.decode([p])) for p in rendered.pieces]
    _, found, tail = "".join(pieces).rpartition(_CONTENT)
    return SpecialTokens(
        text=text,
        begins_with_start=bos is not None and len(ids) > 0 and int(ids[0]) == bos,
        tail=tail if found else "",
    )


def encode_preformatted(
    encoder: Encoder,
    special_tokens: SpecialTokens,
    texts: Sequence[str],
    *,
    complete: bool = False,
) -> list[IntArray]:
    """Ids of each text up to its scored token.

    ``complete`` adds the rest of the template's tail where a text ends inside it: policies stop at
    ``<|im_end|>``, and templates write a newline behind it.
    """
    tokenizer = encoder.tokenizer
    rendered = [
        _rendered(encoder, special_tokens, without_padding(tokenizer, text)) for text in texts
    ]
    if complete:
        rendered = [_completed(item, special_tokens.tail) for item in rendered]
    encoded = encode_rendered(tokenizer, rendered)
    started = [
        _with_start(tokenizer, special_tokens, item, ids)
        for item, ids in zip(rendered, encoded, strict=True)
    ]
    return [up_to_scored_token(encoder.scored_token, ids) for ids in started]


def without_padding(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text without padding on either side, and its end token at most once.

    Policies decode whole rows of a padded batch; some pad with their end token.
    """
    pad, end, start = (
        str(token) if token else None
        for token in (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token)
    )
    if pad and pad not in (end, start):
        while text.startswith(pad):
            text = text.removeprefix(pad)
        while text.endswith(pad):
            text = text.removesuffix(pad)
    if end and end != start:
        while text.startswith(end):
            text = text.removeprefix(end)
        while text.endswith(end + end):
            text = text.removesuffix(end)
    return text


def _rendered(encoder: Encoder, special_tokens: SpecialTokens, text: str) -> Rendered:
    if renderer_of(encoder.rendering).closes_text:
        whole = Comparison(
            id="", prompt=text, responses=("",), grades=(), group="", source="", where="the text"
        )
        return render(encoder, whole, "")
    marked = special_tokens.tail.strip() != "" and special_tokens.tail.strip() in text
    is_rendered = special_tokens.text == "chat" or (special_tokens.text == "mixed" and marked)
    return Rendered(pieces=(text,), ending="chat" if is_rendered else "plain")


def _completed(item: Rendered, tail: str) -> Rendered:
    (text,) = item.pieces
    assert isinstance(text, str)
    if item.ending != "chat" or text.endswith(tail):
        return item
    ends = next((n for n in range(len(tail) - 1, 0, -1) if text.endswith(tail[:n])), None)
    rest = "" if ends is None else tail[ends:]
    return Rendered(pieces=(text + rest,), ending=item.ending)


def _with_start(
    tokenizer: PreTrainedTokenizerBase,
    special_tokens: SpecialTokens,
    item: Rendered,
    ids: IntArray,
) -> IntArray:
    bos = tokenizer.bos_token_id
    begins = len(ids) > 0 and int(ids[0]) == bos
    if item.ending != "chat" or not special_tokens.begins_with_start or begins or len(ids) == 0:
        return ids
    return np.concatenate([np.asarray([bos], np.int32), ids])
