"""Each token's own share of the text, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_CONTEXT = 4
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def pieces(
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
    found: list[str] = []
    for end in range(len(context) + 1, len(known) + 1):
        old = _decode(tokenizer, known[start:read])
        new = _decode(tokenizer, known[start:end])
        if new.endswith(_INCOMPLETE) and end < len(known):
            found.append("")
            continue
        found.append(new[len(old) :])
        start, read = max(read - _CONTEXT, start), end
    return found


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
