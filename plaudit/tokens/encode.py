"""Comparisons to token trees: one render and one encode per conversation, prefix shared by tokens.

The shared prefix is the longest common **token** prefix of the fully encoded conversations, at
most one token shorter than the shortest of them, so that every branch keeps a token to score. A
prompt encoded on its own would differ at the boundary: byte-pair merges reach across it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from plaudit.errors import DataError, ModelError
from plaudit.types import Comparison, IntArray, Message, TokenTree, Turns

Overlong = Literal["drop", "truncate_prompt", "error"]

OVER_LENGTH = "over_length"
TEMPLATE_REFUSED = "template_refused"
IDENTICAL_TOKENS = "identical_tokens"
NO_TOKENS = "no_tokens"

_RENDERING_ARGUMENTS = frozenset(
    inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
) - {"self", "kwargs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A comparison that cannot become tokens: a reason to count, and a sentence for people."""

    index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Everything that decides how text becomes ids. Built once per run or loaded model.

    ``text_as_turns`` reads a plain text prompt as one user turn and a plain text response as one
    assistant turn, for models trained on conversations alone.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    overlong: Overlong = "drop"
    text_as_turns: bool = False
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def encode(
    encoder: Encoder, comparisons: Sequence[Comparison], *, batch: int = 256
) -> list[TokenTree | Refused]:
    """One outcome per comparison, in order: its token tree, or why there is none.

    Raises:
        DataError: ``overlong`` is ``error`` and a conversation is over ``max_length``.
        ModelError: messages, and a tokenizer without a chat template.
    """
    if encoder.text_as_turns:
        comparisons = [as_turns(comparison) for comparison in comparisons]
    outcomes: list[TokenTree | Refused] = []
    for start in range(0, len(comparisons), batch):
        outcomes.extend(_encode_batch(encoder, comparisons[start : start + batch], start))
    return outcomes


def _encode_batch(
    encoder: Encoder, comparisons: Sequence[Comparison], start: int
) -> Iterable[TokenTree | Refused]:
    rendered: list[list[str] | Refused] = []
    for offset, comparison in enumerate(comparisons):
        try:
            rendered.append([render(encoder, comparison, r) for r in comparison.responses])
        except (TemplateError, TypeError, LookupError, ValueError, AttributeError) as error:
            rendered.append(
                Refused(
                    index=start + offset,
                    reason=TEMPLATE_REFUSED,
                    detail=f"{comparison.where}: the chat template refused it ({error})",
                )
            )
    texts: dict[bool, list[str]] = {True: [], False: []}
    for comparison, item in zip(comparisons, rendered, strict=True):
        if not isinstance(item, Refused):
            texts[is_chat(comparison)].extend(item)
    ids = {
        True: iter(_encode_chat_texts(encoder.tokenizer, texts[True])),
        False: iter(_encode_plain_texts(encoder.tokenizer, texts[False])),
    }
    for offset, (comparison, item) in enumerate(zip(comparisons, rendered, strict=True)):
        if isinstance(item, Refused):
            yield item
        else:
            sequences = [next(ids[is_chat(comparison)]) for _ in item]
            yield grow_tree(encoder, comparison, sequences, start + offset)


def as_turns(comparison: Comparison) -> Comparison:
    """A comparison of plain texts as one user turn and one assistant turn each."""

    def turn(text: Turns, role: str) -> Turns:
        return (Message(role=role, content=text),) if isinstance(text, str) else text

    return replace(
        comparison,
        prompt=turn(comparison.prompt, "user"),
        responses=tuple(turn(response, "assistant") for response in comparison.responses),
    )


def is_chat(comparison: Comparison) -> bool:
    """Whether the chat template renders this comparison (else its text stands as it is)."""
    return not isinstance(comparison.responses[0], str)


def render(encoder: Encoder, comparison: Comparison, response: Turns) -> str:
    """The whole conversation with ``response`` as text, before encoding.

    Raises:
        ModelError: messages, and a tokenizer without a chat template.
        jinja2.TemplateError: the template refuses these messages.
    """
    if isinstance(comparison.prompt, str) and isinstance(response, str):
        return comparison.prompt + response
    if isinstance(comparison.prompt, str) or isinstance(response, str):
        raise TypeError("prompt and response must both be text or both be messages")
    if not encoder.tokenizer.chat_template:
        raise ModelError(
            f"{comparison.where} holds messages, but the base's tokenizer has no chat template; "
            "set tokens.chat_template to a jinja file, or give the data as plain text."
        )
    messages = [message.as_dict() for message in (*comparison.prompt, *response)]
    text = encoder.tokenizer.apply_chat_template(
        messages,
        tools=None if comparison.tools is None else [dict(tool) for tool in comparison.tools],
        tokenize=False,
        add_generation_prompt=False,
        **template_variables({**encoder.chat_template_kwargs, **comparison.chat_template_kwargs}),
    )
    assert isinstance(text, str)
    return text


def template_variables(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Variables for the template; what steers the rendering itself is not data's to set.

    Raises:
        ValueError: one of them is an argument of ``apply_chat_template``.
    """
    refused = sorted(given.keys() & _RENDERING_ARGUMENTS)
    if refused:
        raise ValueError(f"chat_template_kwargs may not set {', '.join(refused)}")
    return given


def _encode_chat_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[IntArray]:
    """Ids of rendered conversations. The template wrote the special tokens, so none are added."""
    return [_one_bos(tokenizer, ids) for ids in _ids(tokenizer, texts, add_special_tokens=False)]


def _encode_plain_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[IntArray]:
    """Ids of plain texts: the tokenizer's own special tokens, and the end token exactly once."""
    return [
        _one_end(tokenizer, _one_bos(tokenizer, ids))
        for ids in _ids(tokenizer, texts, add_special_tokens=True)
    ]


def _one_bos(tokenizer: PreTrainedTokenizerBase, ids: IntArray) -> IntArray:
    """The start token once, where template, text and tokenizer each wrote their own."""
    bos = tokenizer.bos_token_id
    while bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]:
        ids = ids[1:]
    return ids


def _one_end(tokenizer: PreTrainedTokenizerBase, ids: IntArray) -> IntArray:
    """The end token once, whether the text, the tokenizer, both or neither wrote it."""
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    while len(ids) > 1 and ids[-1] == ids[-2] and int(ids[-1]) in ends:
        ids = ids[:-1]
    if tokenizer.eos_token_id is None or (len(ids) > 0 and int(ids[-1]) in ends):
        return ids
    return np.append(ids, np.int32(tokenizer.eos_token_id)).astype(np.int32)


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, add_special_tokens: bool
) -> list[IntArray]:
    if not texts:
        return []
    # verbose=False: length is our own policy, and the tokenizer's warning would name its own limit.
    encoded = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]


def grow_tree(
    encoder: Encoder, comparison: Comparison, sequences: Sequence[IntArray], index: int
) -> TokenTree | Refused:
    """Share the longest common token prefix, under the over-length policy."""
    if any(len(ids) == 0 for ids in sequences):
        return Refused(
            index=index, reason=NO_TOKENS, detail=f"{comparison.where}: a response has no tokens"
        )
    shared = common_prefix(sequences)
    longest = max(len(ids) for ids in sequences)
    excess = longest - encoder.max_length
    prefix = sequences[0][:shared]
    if excess > 0:
        kept = _shorten_prefix(encoder, comparison, prefix, excess)
        if encoder.overlong == "error":
            raise DataError(
                f"{comparison.where}: a conversation has {longest} tokens, over tokens.max_length "
                f"{encoder.max_length}; raise max_length or set tokens.overlong to drop or "
                "truncate_prompt."
            )
        if kept is None:
            return Refused(
                index=index,
                reason=OVER_LENGTH,
                detail=f"{comparison.where}: {longest} tokens, over {encoder.max_length}",
            )
        prefix = kept
    return TokenTree(
        index=index,
        prefix=prefix,
        branches=tuple(ids[shared:] for ids in sequences),
        grades=comparison.grades,
        margin=comparison.margin or 0.0,
        weight=comparison.weight,
        truncated=shared - len(prefix),
    )


def common_prefix(sequences: Sequence[IntArray]) -> int:
    """Length of the longest common prefix, at most one less than the shortest sequence.

    A single sequence shares nothing: its prefix length is 0.
    """
    if len(sequences) == 1:
        return 0
    limit = min(len(ids) for ids in sequences) - 1
    first = sequences[0][:limit]
    for ids in sequences[1:]:
        differs = np.flatnonzero(first != ids[: len(first)])
        if differs.size:
            first = first[: differs[0]]
    return len(first)


def _shorten_prefix(
    encoder: Encoder, comparison: Comparison, prefix: IntArray, excess: int
) -> IntArray | None:
    """The prefix without its ``excess`` oldest tokens after BOS; None where that is not allowed.

    Responses and the end token stay whole, also where all responses begin alike and so share more
    than the prompt; one token of the prompt stays.
    """
    if encoder.overlong != "truncate_prompt":
        return None
    bos = encoder.tokenizer.bos_token_id
    keep = 1 if bos is not None and len(prefix) > 0 and prefix[0] == bos else 0
    if excess > _prompt_tokens(encoder, comparison, prefix) - keep - 1:
        return None
    return np.concatenate([prefix[:keep], prefix[keep + excess :]])


def _prompt_tokens(encoder: Encoder, comparison: Comparison, prefix: IntArray) -> int:
    """How many tokens of the prefix are the prompt's: those that the prompt alone encodes to."""
    try:
        text = render(encoder, comparison, () if is_chat(comparison) else "")
    except (TemplateError, TypeError, LookupError, ValueError, AttributeError):
        # A template may refuse a conversation without an answer; nothing is cut on a guess.
        return 0
    encode_texts = _encode_chat_texts if is_chat(comparison) else _encode_plain_texts
    (alone,) = encode_texts(encoder.tokenizer, [text])
    shortest = min(len(alone), len(prefix))
    differs = np.flatnonzero(alone[:shortest] != prefix[:shortest])
    return int(differs[0]) if differs.size else shortest


def why_untrainable(tree: TokenTree) -> str | None:
    """A reason to count where training would learn nothing from the tree, else None."""
    first, *rest = tree.branches
    if all(len(first) == len(other) and bool(np.all(first == other)) for other in rest):
        return IDENTICAL_TOKENS
    return None
