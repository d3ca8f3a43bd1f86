"""Damage to how a text is built: words and sentences lost, moved or said again."""

from __future__ import annotations

from random import Random

from plaudit.data.perturb.text import (
    Context,
    different,
    joined,
    pieces_of,
    spaced_sentences,
)


def dropped_words(text: str, generator: Random, context: Context) -> str | None:
    """A fifth of the words gone, at least one, from random places."""
    pieces = pieces_of(text)
    if len(pieces) < 4:
        return None
    gone = set(generator.sample(range(len(pieces)), max(1, len(pieces) // 5)))
    return different(joined([piece for at, piece in enumerate(pieces) if at not in gone]), text)


def shuffled_words(text: str, generator: Random, context: Context) -> str | None:
    """The words of one half of the text, wherever it begins, in another order."""
    pieces = pieces_of(text)
    size = max(3, len(pieces) // 2)
    if len(pieces) < size:
        return None
    start = generator.randrange(len(pieces) - size + 1)
    words = [word for word, _ in pieces[start : start + size]]
    shuffled = list(words)
    for _ in range(8):
        generator.shuffle(shuffled)
        if shuffled != words:
            break
    middle = [(word, pieces[start + at][1]) for at, word in enumerate(shuffled)]
    return different(joined([*pieces[:start], *middle, *pieces[start + size :]]), text)


def repeated_phrase(text: str, generator: Random, context: Context) -> str | None:
    """A phrase of two to six words said twice or three times in a row."""
    pieces = pieces_of(text)
    if len(pieces) < 2:
        return None
    size = generator.randint(2, min(6, len(pieces)))
    end = generator.randint(size, len(pieces))
    phrase = [(word, space or " ") for word, space in pieces[end - size : end]]
    times = generator.choice((1, 1, 2))
    return different(joined([*pieces[: end - size], *phrase * times, *pieces[end - size :]]), text)


def truncation(text: str, generator: Random, context: Context) -> str | None:
    """The text broken off inside a sentence, after a third to four fifths of its words."""
    pieces = pieces_of(text)
    if len(pieces) < 4:
        return None
    keep = max(2, round(len(pieces) * generator.uniform(0.33, 0.8)))
    while keep > 1 and pieces[keep - 1][0][-1] in ".!?":
        keep -= 1
    return different(joined(pieces[:keep]), text)


def dropped_sentence(text: str, generator: Random, context: Context) -> str | None:
    """A third of the sentences gone, at least one, never all."""
    sentences = spaced_sentences(text)
    if len(sentences) < 2:
        return None
    gone = set(generator.sample(range(len(sentences)), max(1, len(sentences) // 3)))
    return different(joined([one for at, one in enumerate(sentences) if at not in gone]), text)


def shuffled_sentences(text: str, generator: Random, context: Context) -> str | None:
    """The same sentences in another order."""
    sentences = spaced_sentences(text)
    said = [sentence for sentence, _ in sentences]
    if len(set(said)) < 2:
        return None
    shuffled = list(said)
    while shuffled == said:
        generator.shuffle(shuffled)
    spaces = [space for _, space in sentences]
    return different(joined(list(zip(shuffled, spaces, strict=True))), text)
