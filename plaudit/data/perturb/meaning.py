"""Damage to what a text says: opposites, values, entities, units, contradictions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from random import Random
from typing import Final

from plaudit.data.perturb.opposites import LEADING_VERB, OPPOSITE, OPPOSITES
from plaudit.data.perturb.text import (
    NUMBER,
    Context,
    different,
    like,
    names_in,
    other_number,
    sentences_of,
)


def reversed_meaning(text: str, generator: Random, context: Context) -> str | None:
    """One word or phrase turned into its opposite; failing that, the leading verb negated."""
    # "ı" and "ſ" count as i and s where case does not, and stand in no word of the table.
    sites = [site for site in OPPOSITE.finditer(text) if _plain(site.group()) in OPPOSITES]
    if sites:
        site = generator.choice(sites)
        opposite = like(site.group(), OPPOSITES[_plain(site.group())])
        return different(text[: site.start()] + opposite + text[site.end() :], text)
    verb = LEADING_VERB.match(text)
    if verb is None:
        return None
    word = verb.group().lower()
    negated = f"Does not {word[:-1]}" if word.endswith("s") and word != "process" else ""
    return different((negated or f"Do not {word}") + text[verb.end() :], text)


def _plain(phrase: str) -> str:
    return " ".join(phrase.lower().split())


def changed_value(text: str, generator: Random, context: Context) -> str | None:
    """One number or name replaced, wherever it stands, by another of the same shape."""
    sites: dict[str, list[str]] = {}
    for shape, name in dict.fromkeys(names_in(text)):
        sites.setdefault(shape, []).append(name)
    for number in dict.fromkeys(NUMBER.findall(text)):
        sites.setdefault("number", []).append(number)
    shapes = sorted(sites)
    generator.shuffle(shapes)
    for shape in shapes:
        old = generator.choice(sites[shape])
        new = _other_value(shape, old, text, generator, context)
        if new is not None:
            return different(_everywhere(text, {old: new}), text)
    return None


def _everywhere(text: str, replacements: Mapping[str, str]) -> str:
    """Whole words replaced wherever they stand, all at once."""
    olds = sorted(replacements, key=lambda old: (-len(old), old))
    whole = rf"(?<!\w)(?:{'|'.join(map(re.escape, olds))})(?!\w)"
    return re.sub(whole, lambda found: replacements[found.group()], text)


def _other_value(
    shape: str, old: str, text: str, generator: Random, context: Context
) -> str | None:
    if shape == "number":
        return other_number(old, generator)
    known = [name for name in context.names[shape] if name not in text]
    return generator.choice(known) if known else None


def contradiction(text: str, generator: Random, context: Context) -> str | None:
    """One of its sentences said again in reverse, at the end."""
    sentences = sentences_of(text)
    for sentence in generator.sample(sentences, len(sentences)):
        opposite = reversed_meaning(sentence, generator, context)
        if opposite is None:
            continue
        opening = generator.choice(_OPENINGS)
        if opening and re.match(r"[A-Z][a-z]+\b", opposite):
            opposite = opposite[0].lower() + opposite[1:]
        stop = "" if text.rstrip().endswith((".", "!", "?")) else "."
        end = "" if opposite.endswith((".", "!", "?")) else "."
        return f"{text.rstrip()}{stop} {opening}{opposite}{end}"
    return None


_OPENINGS: Final = (
    "However, ", "In fact, ", "Actually, ", "On the other hand, ", "At the same time, ",
    "Strictly speaking, ", "To be precise, ", "", "",
)  # fmt: skip


def changed_number(text: str, generator: Random, context: Context) -> str | None:
    """One number, in digits or as a word up to twelve, replaced by another wherever it stands."""
    digits = list(dict.fromkeys(NUMBER.findall(text)))
    words = list(dict.fromkeys(_NUMBER_WORD.findall(text)))
    if not digits and not words:
        return None
    old = generator.choice([*digits, *words])
    if old in digits:
        new = other_number(old, generator)
    else:
        new = like(old, generator.choice([word for word in _NUMBER_WORDS if word != old.lower()]))
    return different(_everywhere(text, {old: new}), text)


# "One" is as often a pronoun.
_NUMBER_WORDS: Final = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_NUMBER_WORDS)})\b", re.IGNORECASE)


def changed_unit(text: str, generator: Random, context: Context) -> str | None:
    """The unit behind one number replaced by another of the same quantity."""
    sites = [(found, found["unit"]) for found in _MEASURE.finditer(text)]
    if not sites:
        return None
    site, unit = generator.choice(sites)
    units, form = _UNITS[unit.lower()]
    # Where two units are written alike in a form (ms, °C), only the other ones count.
    others = [other[form] for other in units if other[form].lower() != unit.lower()]
    new = generator.choice(others)
    return different(text[: site.start("unit")] + new + text[site.end("unit") :], text)


_QUANTITIES: Final = (
    # Each unit: one of it, several of it, its sign.
    (("millimetre", "millimetres", "mm"), ("centimetre", "centimetres", "cm"),
     ("metre", "metres", "m"), ("kilometre", "kilometres", "km"), ("inch", "inches", "in"),
     ("foot", "feet", "ft"), ("yard", "yards", "yd"), ("mile", "miles", "mi")),
    (("millimeter", "millimeters", "mm"), ("centimeter", "centimeters", "cm"),
     ("meter", "meters", "m"), ("kilometer", "kilometers", "km")),
    (("milligram", "milligrams", "mg"), ("gram", "grams", "g"), ("kilogram", "kilograms", "kg"),
     ("tonne", "tonnes", "t"), ("ounce", "ounces", "oz"), ("pound", "pounds", "lb")),
    (("millilitre", "millilitres", "ml"), ("litre", "litres", "l"), ("cup", "cups", "cup"),
     ("gallon", "gallons", "gal")),
    (("microsecond", "microseconds", "µs"), ("millisecond", "milliseconds", "ms"),
     ("second", "seconds", "s"), ("minute", "minutes", "min"), ("hour", "hours", "h"),
     ("day", "days", "d"), ("week", "weeks", "wk"), ("month", "months", "mo"),
     ("year", "years", "yr")),
    (("bit", "bits", "bit"), ("byte", "bytes", "B"), ("kilobyte", "kilobytes", "KB"),
     ("megabyte", "megabytes", "MB"), ("gigabyte", "gigabytes", "GB"),
     ("terabyte", "terabytes", "TB")),
    (("degree Celsius", "degrees Celsius", "°C"),
     ("degree Fahrenheit", "degrees Fahrenheit", "°F")),
    (("dollar", "dollars", "USD"), ("euro", "euros", "EUR"), ("yen", "yen", "JPY")),
)  # fmt: skip
_UNITS: Final = {
    name.lower(): (units, form)
    for units in reversed(_QUANTITIES)
    for unit in units
    for form, name in reversed(list(enumerate(unit)))
}
"""A unit in any of its forms, in lower case, to its quantity's units and the number of the form."""
_MEASURE = re.compile(
    r"(?<![\w.])\d[\d.,]*[ -]?(?P<unit>"
    + "|".join(re.escape(unit) for unit in sorted(_UNITS, key=lambda unit: (-len(unit), unit)))
    + r")(?![\w°])",
    # With ASCII no letter but those of the table matches one of them.
    re.IGNORECASE | re.ASCII,
)


def swapped_entities(text: str, generator: Random, context: Context) -> str | None:
    """Two names change places; a month, weekday, country or city alone becomes another one.

    Names are words with a capital inside a sentence, alone or in a row, so mostly those of English.
    """
    names = list(dict.fromkeys(_entities(text)))
    pairs = [
        (first, second)
        for at, first in enumerate(names)
        for second in names[at + 1 :]
        if first not in second and second not in first
    ]
    if pairs:
        first, second = generator.choice(pairs)
        return different(_everywhere(text, {first: second, second: first}), text)
    known = [(name, kind) for kind in _KINDS for name in kind if _stands_in(name, text)]
    if not known:
        return None
    name, kind = generator.choice(known)
    new = generator.choice([other for other in kind if not _stands_in(other, text)] or [""])
    return different(_everywhere(text, {name: new}), text) if new else None


def _entities(text: str) -> Iterator[str]:
    for found in _ENTITY.finditer(text):
        if found.group() not in _NO_ENTITIES:
            yield found.group()


def _stands_in(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


_ENTITY = re.compile(r"(?<=[a-z,;:)] )[A-Z][a-z]+(?: [A-Z][a-z]+)*\b(?!['’(])")
_NO_ENTITIES: Final = frozenset({"None", "True", "False", "Note", "See", "If", "The", "This"})
_KINDS: Final = (
    ("January", "February", "March", "April", "June", "July", "August", "September", "October",
     "November", "December"),
    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ("Argentina", "Australia", "Austria", "Brazil", "Canada", "China", "Egypt", "France",
     "Germany", "Greece", "India", "Italy", "Japan", "Kenya", "Mexico", "Norway", "Peru", "Poland",
     "Portugal", "Russia", "Spain", "Sweden", "Turkey"),
    ("Amsterdam", "Athens", "Beijing", "Berlin", "Boston", "Cairo", "Chicago", "Delhi", "Dublin",
     "London", "Madrid", "Moscow", "Nairobi", "Oslo", "Paris", "Rome", "Sydney", "Tokyo", "Toronto",
     "Vienna", "Warsaw"),
)  # fmt: skip
