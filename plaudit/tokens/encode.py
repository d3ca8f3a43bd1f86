"""Comparisons to token trees: one render and one encode per conversation, prefix shared by tokens.

The shared prefix is the longest common **token** prefix of the fully encoded conversations, at
most one token shorter than the shortest of them, so that every branch keeps a token to score. A
prompt encoded on its own would differ at the boundary: byte-pair merges reach across it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from plaudit.errors import DataError, printable
from plaudit.recipe.schema import Truncation
from plaudit.tokens.rendering import (
    RENDER_ERRORS,
    ChatFormatter,
    Piece,
    Rendered,
    is_chat,
    render,
    renderer_of,
)
from plaudit.tokens.unrendered import find_unrendered
from plaudit.types import (
    MEDIA,
    Comparison,
    IntArray,
    ScoredTokenRule,
    Skipped,
    TokenTree,
    as_turns,
)

OVER_LENGTH = "over_length"
TEMPLATE_ERROR = "template_error"
NOT_RENDERED = "not_rendered"
IDENTICAL_TOKENS = "identical_tokens"
NO_TOKENS = "no_tokens"

_ERROR_CHARACTERS = 200
"""Of a template's error in a message: templates quote what they cannot render."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder(ChatFormatter):
    """Everything that decides how text becomes ids. Built once per run or loaded model.

    ``text_as_turns`` reads a plain text prompt as one user turn and a plain text response as one
    assistant turn, for models trained on conversations alone.
    """

    max_length: int
    truncation: Truncation = "drop"
    text_as_turns: bool = False
    scored_token: ScoredTokenRule = field(default_factory=ScoredTokenRule)

    @property
    def has_template(self) -> bool:
        """Whether messages can be rendered."""
        own = not renderer_of(self.rendering).needs_chat_template
        return own or bool(self.tokenizer.chat_template)


def encode(
    encoder: Encoder, comparisons: Sequence[Comparison], *, batch: int = 256
) -> list[TokenTree | Skipped]:
    """One outcome per comparison, in order: its token tree, or why there is none.

    Raises:
        DataError: ``truncation`` is ``error`` and a conversation is over ``max_length``.
        ModelError: messages, and a tokenizer without a chat template.
    """
    if encoder.text_as_turns:
        comparisons = [as_turns(comparison) for comparison in comparisons]
    outcomes: list[TokenTree | Skipped] = []
    for start in range(0, len(comparisons), batch):
        outcomes.extend(_encode_batch(encoder, comparisons[start : start + batch], start))
    return outcomes


def _encode_batch(
    encoder: Encoder, comparisons: Sequence[Comparison], start: int
) -> Iterable[TokenTree | Skipped]:
    rendered = [
        _render(encoder, comparison, start + offset)
        for offset, comparison in enumerate(comparisons)
    ]
    kept = [one for item in rendered if not isinstance(item, Skipped) for one in item]
    sequences = iter(encode_rendered(encoder.tokenizer, kept))
    for offset, (comparison, item) in enumerate(zip(comparisons, rendered, strict=True)):
        if isinstance(item, Skipped):
            yield item
        else:
            read = [up_to_scored_token(encoder.scored_token, next(sequences)) for _ in item]
            yield grow_tree(encoder, comparison, read, start + offset)


def _render(
    formatter: ChatFormatter, comparison: Comparison, index: int
) -> list[Rendered] | Skipped:
    """The conversation with each response, if all that the comparison holds reaches the text."""
    where = comparison.where
    if comparison.unusable == MEDIA:
        detail = f"{where}: it has images, audio or video, and plaudit reads only text"
        return Skipped(index=index, reason=MEDIA, detail=detail)
    try:
        rendered = [render(formatter, comparison, response) for response in comparison.responses]
    except RENDER_ERRORS as error:
        reason = printable(str(error), _ERROR_CHARACTERS)
        detail = f"{where}: the chat template raised an error ({reason})"
        return Skipped(index=index, reason=TEMPLATE_ERROR, detail=detail)
    for response, whole in zip(comparison.responses, rendered, strict=True):
        missing = find_unrendered(formatter, comparison, response, whole)
        if missing is not None:
            return Skipped(
                index=index,
                reason=NOT_RENDERED,
                detail=f"{where}: {missing.sentence}",
                field=missing.field,
            )
    return rendered


def encode_rendered(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]
) -> list[IntArray]:
    """Ids of each conversation, every kind of text in one call of the tokenizer."""
    texts: dict[bool, list[str]] = {True: [], False: []}
    for item in rendered:
        texts[item.ending == "plain"].extend(p for p in item.pieces if isinstance(p, str))
    ids = {plain: iter(_ids(tokenizer, texts[plain], add_special_tokens=plain)) for plain in texts}
    return [
        _ended(tokenizer, item.ending, _joined(item.pieces, ids[item.ending == "plain"]))
        for item in rendered
    ]


def _joined(pieces: Sequence[Piece], encoded: Iterator[IntArray]) -> IntArray:
    parts = [next(encoded) if isinstance(p, str) else np.asarray([p], np.int32) for p in pieces]
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _ended(tokenizer: PreTrainedTokenizerBase, ending: str, ids: IntArray) -> IntArray:
    """The special tokens as the rendering wants them.

    A chat template writes them itself, so the only thing to fix is a start token written twice.
    """
    if ending == "exact":
        return ids
    once = _one_bos(tokenizer, ids)
    return _one_end(tokenizer, once) if ending == "plain" else once


def up_to_scored_token(scored_token: ScoredTokenRule, ids: IntArray) -> IntArray:
    """The conversation up to the token whose hidden state is scored.

    The models are causal: what stands behind that token does not reach its score.
    """
    if scored_token.rule == "last" or len(ids) == 0:
        return ids
    is_pad = ids == scored_token.pad_id
    if scored_token.rule == "first_pad":
        # transformers took the position before the first pad modulo the length: a conversation
        # that starts with one, or has none, is read at its end.
        first = int(np.argmax(is_pad))
        return ids[:first] if first > 0 else ids
    kept = np.flatnonzero(~is_pad)
    return ids[: kept[-1] + 1] if kept.size else ids[:1]


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
) -> TokenTree | Skipped:
    """Share the longest common token prefix, under the over-length policy."""
    if any(len(ids) == 0 for ids in sequences):
        return Skipped(
            index=index, reason=NO_TOKENS, detail=f"{comparison.where}: a response has no tokens"
        )
    cut = Cut(sequences=tuple(sequences))
    longest = max(len(ids) for ids in sequences)
    if longest > encoder.max_length:
        made = TRUNCATIONS[encoder.truncation](encoder, comparison, sequences)
        if made is None:
            return Skipped(
                index=index,
                reason=OVER_LENGTH,
                detail=f"{comparison.where}: {longest} tokens, the maximum is {encoder.max_length}",
            )
        cut = made
    shared = common_prefix(cut.sequences)
    return TokenTree(
        index=index,
        prefix=cut.sequences[0][:shared],
        branches=tuple(ids[shared:] for ids in cut.sequences),
        grades=comparison.grades,
        margin=comparison.margin or 0.0,
        weight=comparison.weight,
        soft_label=1.0 if comparison.soft_label is None else comparison.soft_label,
        rated=comparison.rated,
        attributes=comparison.attributes,
        truncated=cut.prompt_tokens,
        truncated_responses=cut.responses,
    )


def common_prefix(sequences: Sequence[IntArray]) -> int:
    """Length of the longest common prefix, at most one less than the shortest sequence.

    A single sequence shares nothing: its prefix length is 0.
    """
    if len(sequences) == 1:
        return 0
    shared = min(map(len, sequences)) - 1
    for ids in sequences[1:]:
        shared = equal_beginning(sequences[0][:shared], ids)
    return shared


def equal_beginning(a: IntArray, b: IntArray) -> int:
    """Tokens that two sequences begin with alike."""
    size = min(len(a), len(b))
    differs = np.flatnonzero(a[:size] != b[:size])
    return int(differs[0]) if differs.size else size


# --- what becomes of a conversation over the limit ----------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Conversations within the limit: how many prompt tokens and how many responses were cut."""

    sequences: tuple[IntArray, ...]
    prompt_tokens: int = 0
    responses: int = 0


Policy: TypeAlias = Callable[["Encoder", Comparison, Sequence[IntArray]], Cut | None]
"""Cuts the conversations of a comparison that is too long; None where it is to be dropped."""


def _drop(encoder: Encoder, comparison: Comparison, sequences: Sequence[IntArray]) -> None:
    return None


def _stop(encoder: Encoder, comparison: Comparison, sequences: Sequence[IntArray]) -> None:
    longest = max(len(ids) for ids in sequences)
    raise DataError(
        f"{comparison.where}: a conversation has {longest} tokens, and tokens.max_length is"
        f" {encoder.max_length}; raise max_length, or set tokens.truncation to drop or left."
    )


def _truncate_prompt(
    encoder: Encoder, comparison: Comparison, sequences: Sequence[IntArray]
) -> Cut | None:
    """Without the oldest tokens after BOS; None where those of the prompt do not suffice.

    Responses and the end token stay whole, also where all responses begin alike and so share more
    than the prompt; one token of the prompt stays.
    """
    # A single sequence has no prefix to share, but a prompt.
    shared = common_prefix(sequences) if len(sequences) > 1 else len(sequences[0]) - 1
    prefix = sequences[0][:shared]
    excess = max(len(ids) for ids in sequences) - encoder.max_length
    bos = encoder.tokenizer.bos_token_id
    keep = 1 if bos is not None and len(prefix) > 0 and prefix[0] == bos else 0
    if excess > _prompt_tokens(encoder, comparison, prefix) - keep - 1:
        return None
    return Cut(
        sequences=tuple(np.concatenate([ids[:keep], ids[keep + excess :]]) for ids in sequences),
        prompt_tokens=excess,
    )


def _proportional(
    encoder: Encoder, comparison: Comparison, sequences: Sequence[IntArray]
) -> Cut | None:
    """The heads of prompt and responses (:func:`proportional_lengths`), their ends lost.

    The prompt is what it encodes to alone, up to where the assistant is to speak.
    """
    shortest = min(sequences, key=len)
    prompt = _prompt_tokens(encoder, comparison, shortest[:-1])
    responses = [ids[prompt:] for ids in sequences]
    kept_prompt, kept = proportional_lengths(
        prompt, max(len(ids) for ids in responses), encoder.max_length
    )
    head = shortest[:kept_prompt]
    return Cut(
        sequences=tuple(np.concatenate([head, ids[:kept]]) for ids in responses),
        prompt_tokens=prompt - kept_prompt,
        responses=sum(len(ids) > kept for ids in responses),
    )


def proportional_lengths(prompt: int, response: int, cutoff: int) -> tuple[int, int]:
    """Tokens that are kept of a prompt and of its responses, by the longest of those.

    A part shorter than half the cutoff stays whole and the other gets what is left; two longer
    parts are cut in proportion.
    """
    if 2 * response < cutoff:
        room = cutoff
    elif 2 * prompt < cutoff:
        room = cutoff - prompt
    else:
        # The order of operations decides how the last token is rounded; trainers agree on it.
        room = int(cutoff * (response / (prompt + response)))
    kept = min(room, response)
    return min(max(cutoff - kept, 0), prompt), kept


TRUNCATIONS: dict[Truncation, Policy] = {
    "drop": _drop,
    "error": _stop,
    "left": _truncate_prompt,
    "proportional": _proportional,
}


def _prompt_tokens(encoder: Encoder, comparison: Comparison, prefix: IntArray) -> int:
    """How many tokens of the prefix are the prompt's: those that the prompt alone encodes to."""
    try:
        rendered = render(encoder, comparison, () if is_chat(comparison) else "")
    except RENDER_ERRORS:
        # A template may refuse a conversation without an answer; nothing is cut on a guess.
        return 0
    (alone,) = encode_rendered(encoder.tokenizer, [rendered])
    return equal_beginning(alone, prefix)


def why_untrainable(tree: TokenTree) -> str | None:
    """A reason to count where training would learn nothing from the tree, else None."""
    first, *rest = tree.branches[: len(tree.branches) - len(tree.copies)]
    if rest and all(len(first) == len(other) and bool(np.all(first == other)) for other in rest):
        return IDENTICAL_TOKENS
    return None


# --- ids back to text -----------------------------------------------------------------------------

_CONTEXT = 4
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def token_strings(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], before: Sequence[int] = ()
) -> list[str]:
    """What each of ``ids`` adds to the text; joined they are the text behind ``before``.

    A character of several tokens belongs to the last of them, and the others have none. Decoding
    one token alone would lose the spaces that some tokenizers write by the token before, so each is
    read behind its neighbours (the way of text-generation-inference and vLLM).
    """
    context = list(before[-_CONTEXT:])
    known = [*context, *ids]
    start, read = 0, len(context)
    strings: list[str] = []
    for end in range(len(context) + 1, len(known) + 1):
        old = _decode(tokenizer, known[start:read])
        new = _decode(tokenizer, known[start:end])
        if new.endswith(_INCOMPLETE) and end < len(known):
            strings.append("")
            continue
        strings.append(new[len(old) :])
        start, read = max(read - _CONTEXT, start), end
    return strings


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
