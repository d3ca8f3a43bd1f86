"""Degradations: perturbations that make an answer worse, so that its reward should fall."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from random import Random
from typing import Final

from plaudit.data.perturb.text import (
    NUMBER,
    SENTENCE_END,
    SHAPES,
    Context,
    alike,
    joined,
    like,
    other_number,
    pieces_of,
    spaced_sentences,
    word_tables,
)

_WORDS: Final = word_tables()
_PHRASES: Final[dict[str, list[str]]] = _WORDS["phrases"]

# --- another answer -------------------------------------------------------------------------------


def other_text(text: str, generator: Random, context: Context) -> str | None:
    """Replace the response with a right answer to another question, of about the same length."""
    others = context.others
    at = bisect_left(others, (len(text), text), key=lambda other: (len(other), other))
    # Forty neighbours by length: near enough to hide the length, enough of them to vary.
    near = others[max(at - 20, 0) : at + 20]
    candidates = [other for other in near if other not in context.own and not alike(other, text)]
    return generator.choice(candidates) if candidates else None


def other_language(text: str, generator: Random, context: Context) -> str | None:
    """Replace the response with two to four sentences without content in another language.

    German, French, Spanish, Italian, Portuguese and Dutch; the sentences are fixed.
    """
    words = [word.strip(".,;:!?").lower() for word in text.split()]
    if not words:
        return None
    foreign = [
        code
        for code, common in _COMMON.items()
        if code != context.language and sum(word in common for word in words) <= 0.15 * len(words)
    ]
    if not foreign:
        return None
    sentences = _IDLE[generator.choice(foreign)]
    return " ".join(generator.sample(sentences, generator.randint(2, len(sentences))))


_COMMON: Final = {code: frozenset(words.split()) for code, words in _WORDS["common"].items()}
_IDLE: Final[dict[str, list[str]]] = _WORDS["idle_sentences"]


# --- what it says ---------------------------------------------------------------------------------


def reversed_meaning(text: str, generator: Random, context: Context) -> str | None:
    """Turn one word or phrase into its opposite, or if there is none, negate the leading verb."""
    # "ı" and "ſ" count as i and s where case does not, and stand in no word of the table.
    sites = [site for site in OPPOSITE.finditer(text) if _plain(site.group()) in OPPOSITES]
    if sites:
        site = generator.choice(sites)
        opposite = like(site.group(), OPPOSITES[_plain(site.group())])
        return text[: site.start()] + opposite + text[site.end() :]
    verb = LEADING_VERB.match(text)
    if verb is None:
        return None
    word = verb.group().lower()
    negated = f"Does not {word[:-1]}" if word.endswith("s") and word != "process" else ""
    return (negated or f"Do not {word}") + text[verb.end() :]


def _plain(phrase: str) -> str:
    return " ".join(phrase.lower().split())


def changed_value(text: str, generator: Random, context: Context) -> str | None:
    """Replace one number or name, at every place, by another of the same shape."""
    patterns = {**SHAPES, "number": NUMBER}
    sites = {shape: list(dict.fromkeys(found.findall(text))) for shape, found in patterns.items()}
    shapes = sorted(shape for shape in sites if sites[shape])
    generator.shuffle(shapes)
    for shape in shapes:
        old = generator.choice(sites[shape])
        if shape == "number":
            return _everywhere(text, {old: other_number(old, generator)})
        if known := [name for name in context.names[shape] if name not in text]:
            return _everywhere(text, {old: generator.choice(known)})
    return None


def _everywhere(text: str, replacements: Mapping[str, str]) -> str:
    """Whole words replaced wherever they stand, all at once."""
    whole = rf"(?<!\w)(?:{_any_of(replacements)})(?!\w)"
    return re.sub(whole, lambda match: replacements[match.group()], text)


def _any_of(phrases: Iterable[str]) -> str:
    """A pattern for any of these phrases, the longest first."""
    return "|".join(map(re.escape, sorted(phrases, key=lambda phrase: (-len(phrase), phrase))))


def contradiction(text: str, generator: Random, context: Context) -> str | None:
    """Add the opposite of one of the sentences at the end."""
    sentences = SENTENCE_END.split(text.strip())
    for sentence in generator.sample(sentences, len(sentences)):
        opposite = reversed_meaning(sentence, generator, context)
        if opposite is None:
            continue
        opening = generator.choice(_PHRASES["openings"])
        if opening and re.match(r"[A-Z][a-z]+\b", opposite):
            opposite = opposite[0].lower() + opposite[1:]
        stop = "" if text.rstrip().endswith((".", "!", "?")) else "."
        end = "" if opposite.endswith((".", "!", "?")) else "."
        return f"{text.rstrip()}{stop} {opening}{opposite}{end}"
    return None


def changed_number(text: str, generator: Random, context: Context) -> str | None:
    """Replace one number, in digits or as a word up to twelve, by another at every place."""
    digits = list(dict.fromkeys(NUMBER.findall(text)))
    words = list(dict.fromkeys(_NUMBER_WORD.findall(text)))
    if not digits and not words:
        return None
    old = generator.choice([*digits, *words])
    if old in digits:
        new = other_number(old, generator)
    else:
        new = like(old, generator.choice([word for word in _NUMBER_WORDS if word != old.lower()]))
    return _everywhere(text, {old: new})


# "One" is as often a pronoun.
_NUMBER_WORDS: Final[list[str]] = _PHRASES["number_words"]
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_NUMBER_WORDS)})\b", re.IGNORECASE)


def changed_unit(text: str, generator: Random, context: Context) -> str | None:
    """Replace the unit of one number by another unit of the same quantity."""
    sites = list(_MEASURE.finditer(text))
    if not sites:
        return None
    site = generator.choice(sites)
    unit = site["unit"].lower()
    units, form = _UNITS[unit]
    # Where two units are written alike in a form (ms, °C), only the other ones count.
    new = generator.choice([other[form] for other in units if other[form].lower() != unit])
    return text[: site.start("unit")] + new + text[site.end("unit") :]


_QUANTITIES: Final[list[list[list[str]]]] = _WORDS["quantities"]
"""The units of each quantity, and of each unit: one of it, several of it, its sign."""

_UNITS: Final = {
    name.lower(): (units, form)
    for units in reversed(_QUANTITIES)
    for unit in units
    for form, name in reversed(list(enumerate(unit)))
}
"""A unit in any of its forms, in lower case, to its quantity's units and the number of the form."""
_MEASURE = re.compile(
    rf"(?<![\w.])\d[\d.,]*[ -]?(?P<unit>{_any_of(_UNITS)})(?![\w°])",
    # With ASCII no letter but those of the table matches one of them.
    re.IGNORECASE | re.ASCII,
)


def swapped_entities(text: str, generator: Random, context: Context) -> str | None:
    """Swap two names, or replace a single month, weekday, country or city by another.

    Names are words with a capital inside a sentence, alone or in a row, so mostly those of English.
    """
    names = dict.fromkeys(name for name in _ENTITY.findall(text) if name not in _NO_ENTITIES)
    pairs = [
        (first, second)
        for first, second in combinations(names, 2)
        if first not in second and second not in first
    ]
    if pairs:
        first, second = generator.choice(pairs)
        return _everywhere(text, {first: second, second: first})
    known = [(name, kind) for kind in _KINDS for name in kind if _stands_in(name, text)]
    if not known:
        return None
    name, kind = generator.choice(known)
    others = [other for other in kind if not _stands_in(other, text)]
    return _everywhere(text, {name: generator.choice(others)}) if others else None


def _stands_in(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


_ENTITY = re.compile(r"(?<=[a-z,;:)] )[A-Z][a-z]+(?: [A-Z][a-z]+)*\b(?!['’(])")
_NO_ENTITIES: Final = frozenset(_WORDS["no_names"])
_KINDS: Final[list[list[str]]] = _WORDS["kinds_of_names"]


# --- how it is built ------------------------------------------------------------------------------


def dropped_words(text: str, generator: Random, context: Context) -> str | None:
    """Remove a fifth of the words, at least one, at random places."""
    pieces = pieces_of(text)
    return None if len(pieces) < 4 else _some_dropped(pieces, 5, generator)


def _some_dropped(pieces: Sequence[tuple[str, str]], share: int, generator: Random) -> str:
    """The pieces but one in ``share``, and one at least."""
    gone = set(generator.sample(range(len(pieces)), max(1, len(pieces) // share)))
    return joined([piece for at, piece in enumerate(pieces) if at not in gone])


def shuffled_words(text: str, generator: Random, context: Context) -> str | None:
    """Shuffle the words of half of the text, from a random place on."""
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
    return joined([*pieces[:start], *middle, *pieces[start + size :]])


def repeated_phrase(text: str, generator: Random, context: Context) -> str | None:
    """Repeat a phrase of two to six words once or twice."""
    pieces = pieces_of(text)
    if len(pieces) < 2:
        return None
    size = generator.randint(2, min(6, len(pieces)))
    end = generator.randint(size, len(pieces))
    phrase = [(word, space or " ") for word, space in pieces[end - size : end]]
    times = generator.choice((1, 1, 2))
    return joined([*pieces[: end - size], *phrase * times, *pieces[end - size :]])


def truncation(text: str, generator: Random, context: Context) -> str | None:
    """Cut the text off inside a sentence, after a third to four fifths of its words."""
    pieces = pieces_of(text)
    if len(pieces) < 4:
        return None
    keep = max(2, round(len(pieces) * generator.uniform(0.33, 0.8)))
    while keep > 1 and pieces[keep - 1][0][-1] in ".!?":
        keep -= 1
    return joined(pieces[:keep])


def dropped_sentence(text: str, generator: Random, context: Context) -> str | None:
    """Remove a third of the sentences, at least one and never all."""
    sentences = spaced_sentences(text)
    return None if len(sentences) < 2 else _some_dropped(sentences, 3, generator)


def shuffled_sentences(text: str, generator: Random, context: Context) -> str | None:
    """Shuffle the sentences."""
    sentences = spaced_sentences(text)
    said = [sentence for sentence, _ in sentences]
    if len(set(said)) < 2:
        return None
    shuffled = list(said)
    while shuffled == said:
        generator.shuffle(shuffled)
    spaces = [space for _, space in sentences]
    return joined(list(zip(shuffled, spaces, strict=True)))


# --- how it reads ---------------------------------------------------------------------------------


def misspelling(text: str, generator: Random, context: Context) -> str | None:
    """Misspell one in eight of the words of four letters or more, at least one."""
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
    letter: row[max(at - 1, 0) : at] + row[at + 1 : at + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for at, letter in enumerate(row)
}


def verbose_filler(text: str, generator: Random, context: Context) -> str | None:
    """Add one to three sentences without content, between the others or around them."""
    text = text.strip()
    if not text:
        return None
    places = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    fillers = generator.sample(_PHRASES["fillers"], generator.randint(1, 3))
    at = sorted((generator.choice(places), filler) for filler in fillers)
    for place, filler in reversed(at):
        before, after = text[:place].rstrip(), text[place:]
        space = text[len(before) : place] or " "
        stop = "" if not before or before.endswith((".", "!", "?")) else "."
        text = f"{before}{stop}{space}{filler} {after}".strip()
    return text


def formatting_noise(text: str, generator: Random, context: Context) -> str | None:
    """Add stray markup to one in ten words, at least two."""
    pieces = pieces_of(text)
    if not pieces:
        return None
    for _ in range(max(2, len(pieces) // 10)):
        at = generator.randrange(len(pieces))
        word, space = pieces[at]
        mark = generator.choice(_PHRASES["marks"])
        pieces[at] = (mark + word if generator.random() < 0.5 else f"{word} {mark}", space)
    return joined(pieces)


def empty_politeness(text: str, generator: Random, context: Context) -> str | None:
    """Add thanks and good wishes before and after the answer."""
    if not text.strip():
        return None
    thanks, wishes = generator.choice(_PHRASES["thanks"]), generator.choice(_PHRASES["wishes"])
    return f"{thanks} {text.strip()} {wishes}"


# --- opposites ------------------------------------------------------------------------------------


_PAIRS: Final[list[list[str]]] = _WORDS["opposites"]
OPPOSITES: Final[dict[str, str]] = {
    **{second: first for first, second in reversed(_PAIRS)},
    **dict(_PAIRS),
    **_WORDS["opposites_one_way"],
}
"""Word or phrase to its opposite. "On" is no site: it is rarely the opposite of "off"."""


OPPOSITE: Final = re.compile(
    # "Is not" is one site; not inside names, options or quotes.
    r"(?<![\w.\-'\"`*])(?:"
    + _any_of(OPPOSITES).replace(r"\ ", r"\s+")
    + r")(?![\w(='\"`*]|[.\-]\w)",
    re.IGNORECASE,
)


LEADING_VERB: Final = re.compile(rf"(?:{'|'.join(_WORDS['leading_verbs'])})s?\b", re.IGNORECASE)
