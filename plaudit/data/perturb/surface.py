"""Damage to how a text reads: typing mistakes, stray marks, filler."""

from __future__ import annotations

import re
from random import Random
from typing import Final

from plaudit.data.perturb.text import (
    SENTENCE_END,
    Context,
    different,
    joined,
    like,
    pieces_of,
)


def misspelling(text: str, generator: Random, context: Context) -> str | None:
    """A typing mistake in one word of eight, at least one, in words of four letters or more."""
    sites = list(re.finditer(r"[A-Za-z]{4,}", text))
    if not sites:
        return None
    chosen = generator.sample(sites, max(1, len(sites) // 8))
    for site in sorted(chosen, key=lambda site: -site.start()):
        text = text[: site.start()] + _mistyped(site.group(), generator) + text[site.end() :]
    return text


def _mistyped(word: str, generator: Random) -> str:
    """The word with two letters swapped, one missing, one doubled or one of its neighbours."""
    at = generator.randrange(len(word) - 1)
    kind = generator.randrange(4)
    if kind == 0 and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    neighbour = generator.choice(_KEYBOARD[word[at].lower()])
    return word[:at] + like(word[at], neighbour) + word[at + 1 :]


_KEYBOARD: Final[dict[str, str]] = {
    letter: "".join(
        row[near] for near in (at - 1, at + 1) if 0 <= near < len(row)
    )
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for at, letter in enumerate(row)
}  # fmt: skip


def verbose_filler(text: str, generator: Random, context: Context) -> str | None:
    """One to three sentences that say nothing, between the sentences or around them."""
    text = text.strip()
    if not text:
        return None
    places = [0, *(found.end() for found in SENTENCE_END.finditer(text)), len(text)]
    fillers = generator.sample(_FILLERS, generator.randint(1, 3))
    at = sorted((generator.choice(places), filler) for filler in fillers)
    for place, filler in reversed(at):
        before, after = text[:place].rstrip(), text[place:]
        space = text[len(before) : place] or " "
        stop = "" if not before or before.endswith((".", "!", "?")) else "."
        text = f"{before}{stop}{space}{filler} {after}".strip()
    return text


_FILLERS: Final = (
    "It is worth noting that this is something to keep in mind.",
    "As the name suggests, it does what one would expect of it.",
    "Needless to say, there are many things that could be said about this.",
    "This is an important part of the whole, as will be clear to everyone.",
    "In other words, this is what it comes down to in the end.",
    "There is of course more to it, but that is how it is in general.",
    "Generally speaking, this can be seen as quite useful in many situations.",
    "At the end of the day, it all depends on what one wants to do.",
    "Let us take a moment to think about what this means.",
    "As mentioned, this is how it works, and that is how it works.",
    "This is a question that many people have asked themselves.",
    "I hope that this helps to make things a little clearer.",
    "It goes without saying that details matter here, as they do elsewhere.",
    "To put it simply, it is as simple as that.",
    "Of course, this may or may not be what is needed in a given case.",
    "All things considered, that is more or less what there is to say.",
    "One could say a lot about this, and much has been said already.",
    "This being said, it is best to look at it in its context.",
    "First of all, it is good to know what we are talking about.",
    "As everybody knows, such things are found in many programs.",
)


def formatting_noise(text: str, generator: Random, context: Context) -> str | None:
    """One stray piece of markup in ten words, at least two, opened and never closed."""
    pieces = pieces_of(text)
    if not pieces:
        return None
    for _ in range(max(2, len(pieces) // 10)):
        at = generator.randrange(len(pieces))
        word, space = pieces[at]
        mark = generator.choice(_MARKS)
        pieces[at] = (mark + word if generator.random() < 0.5 else f"{word} {mark}", space)
    return different(joined(pieces), text)


_MARKS: Final = (
    "**", "__", "~~", "```", "###", "<br>", "<b>", "</p>", "&nbsp;", "&amp;", r"\n", "||", "[](",
    "{{", "$$",
)  # fmt: skip


def empty_politeness(text: str, generator: Random, context: Context) -> str | None:
    """Thanks and good wishes before and behind the answer."""
    if not text.strip():
        return None
    return f"{generator.choice(_THANKS)} {text.strip()} {generator.choice(_WISHES)}"


_THANKS: Final = (
    "Thank you very much for reaching out with your question.",
    "Good day, and thank you for the opportunity to be of service.",
    "First of all, let me thank you for taking the time to write.",
    "I hope that this message finds you well, and I am grateful for your interest.",
    "It is a pleasure to hear from you, and I will gladly do my best.",
)
_WISHES: Final = (
    "Please do not hesitate to get in touch if there is anything else at all.",
    "I wish you a wonderful day and every success with what you have in mind.",
    "It has been an honour to be of help, and I remain at your disposal.",
    "Thank you once more for your patience and understanding.",
    "Should you have any further wishes, I will be happy to hear of them.",
)
