"""Degradations: perturbations that make an answer worse, so that its reward should fall."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from plaudit.data.perturb.text import (
    NUMBER,
    SENTENCE_END,
    Context,
    alike,
    different,
    joined,
    like,
    names_in,
    other_number,
    pieces_of,
    sentences_of,
    spaced_sentences,
)

# --- another answer -------------------------------------------------------------------------------


def other_text(text: str, generator: Random, context: Context) -> str | None:
    """A right answer to another question, of about the same length."""
    others = context.others
    at = bisect_left(others, (len(text), text), key=lambda other: (len(other), other))
    # Forty neighbours by length: near enough to hide the length, enough of them to vary.
    near = others[max(at - 20, 0) : at + 20]
    candidates = [other for other in near if other not in context.own and not alike(other, text)]
    return different(generator.choice(candidates), text) if candidates else None


def other_language(text: str, generator: Random, context: Context) -> str | None:
    """Two to four sentences that say nothing, in a language that is not the text's.

    German, French, Spanish, Italian, Portuguese and Dutch; the sentences are fixed.
    """
    words = [word.strip(".,;:!?").lower() for word in text.split()]
    if not words:
        return None
    foreign = [
        language
        for language in _LANGUAGES
        if language.code != context.language
        and sum(word in language.common for word in words) <= 0.15 * len(words)
    ]
    if not foreign:
        return None
    language = generator.choice(foreign)
    said = generator.sample(language.sentences, generator.randint(2, len(language.sentences)))
    return different(" ".join(said), text)


@dataclass(frozen=True, slots=True)
class _Language:
    """Words by which a text is known to be of the language, and sentences that say nothing."""

    code: str
    common: frozenset[str]
    sentences: tuple[str, ...]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LANGUAGES: Final = (
    _Language(
        "de",
        _words("der die das und ist nicht ein eine zu den mit von für auf sich wird"),
        (
            "Dazu lässt sich im Allgemeinen Folgendes sagen.",
            "Es kommt immer auf den Zusammenhang an.",
            "Man sollte die Einzelheiten in jedem Fall genau prüfen.",
            "Weitere Auskunft gibt die Anleitung.",
        ),
    ),
    _Language(
        "fr",
        _words("le la les des et est une un que pour dans pas sur avec du ce"),
        (
            "On peut dire en général ce qui suit.",
            "Tout dépend du contexte.",
            "Il convient de vérifier les détails dans chaque cas.",
            "Vous trouverez plus de renseignements dans le manuel.",
        ),
    ),
    _Language(
        "es",
        _words("el los las y es una un que para por con no del se lo"),
        (
            "En general se puede decir lo siguiente.",
            "Todo depende del contexto.",
            "Conviene comprobar los detalles en cada caso.",
            "Encontrará más información en el manual.",
        ),
    ),
    _Language(
        "it",
        _words("il lo gli e è una un che per con non del di si sono"),
        (
            "In generale si può dire quanto segue.",
            "Tutto dipende dal contesto.",
            "Conviene verificare i dettagli caso per caso.",
            "Ulteriori informazioni si trovano nel manuale.",
        ),
    ),
    _Language(
        "pt",
        _words("o os as e é uma um que para com não do da se em"),
        (
            "Em geral, pode dizer-se o seguinte.",
            "Tudo depende do contexto.",
            "Convém verificar os pormenores em cada caso.",
            "O manual contém mais informações.",
        ),
    ),
    _Language(
        "nl",
        _words("de het een en van is niet dat op te voor met zijn er wordt"),
        (
            "In het algemeen kan het volgende worden gezegd.",
            "Het hangt altijd van de context af.",
            "Controleer in elk geval de details.",
            "Meer informatie staat in de handleiding.",
        ),
    ),
)


# --- what it says ---------------------------------------------------------------------------------


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
    return re.sub(whole, lambda match: replacements[match.group()], text)


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
    sites = [(match, match["unit"]) for match in _MEASURE.finditer(text)]
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
    for match in _ENTITY.finditer(text):
        if match.group() not in _NO_ENTITIES:
            yield match.group()


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


# --- how it is built ------------------------------------------------------------------------------


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


# --- how it reads ---------------------------------------------------------------------------------


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
    places = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
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


# --- opposites ------------------------------------------------------------------------------------


_BOTH_WAYS: Final[tuple[tuple[str, str], ...]] = (
    ("true", "false"), ("all", "none of the"), ("always", "never"), ("before", "after"),
    ("first", "last"), ("next", "previous"), ("start", "end"), ("begin", "finish"),
    ("beginning", "end of"), ("add", "remove"), ("added", "removed"), ("open", "close"),
    ("opened", "closed"), ("read", "write"), ("reads", "writes"), ("reading", "writing"),
    ("encode", "decode"), ("encoding", "decoding"), ("encoded", "decoded"),
    ("maximum", "minimum"), ("max", "min"), ("greater", "less"), ("larger", "smaller"),
    ("higher", "lower"), ("longer", "shorter"), ("largest", "smallest"), ("upper", "lower"),
    ("increase", "decrease"), ("enable", "disable"), ("enabled", "disabled"),
    ("include", "exclude"), ("includes", "excludes"), ("including", "excluding"),
    ("included", "excluded"), ("left", "right"), ("input", "output"), ("parent", "child"),
    ("optional", "required"), ("mutable", "immutable"), ("success", "failure"),
    ("successful", "failed"), ("succeeds", "fails"), ("ascending", "descending"),
    ("valid", "invalid"), ("local", "remote"), ("absolute", "relative"), ("more", "less"),
    ("same", "opposite"), ("equal", "unequal"), ("public", "private"), ("import", "export"),
    ("lock", "unlock"), ("acquire", "release"), ("push", "pop"), ("load", "save"),
    ("connect", "disconnect"), ("register", "unregister"), ("compress", "decompress"),
    ("present", "absent"), ("supported", "unsupported"), ("known", "unknown"),
    ("ignore", "respect"), ("ignored", "respected"), ("allow", "forbid"),
    ("allowed", "forbidden"), ("allows", "forbids"), ("must", "must not"), ("can", "cannot"),
    ("should", "should not"), ("will", "will not"), ("may", "may not"), ("is", "is not"),
    ("are", "are not"), ("was", "was not"), ("has", "lacks"), ("contains", "lacks"),
    ("empty", "non-empty"), ("new", "old"), ("old", "new"), ("client", "server"),
    ("source", "destination"), ("both", "neither of"), ("only", "not only"), ("single", "double"),
    ("sorted", "unsorted"), ("signed", "unsigned"), ("synchronous", "asynchronous"),
    ("explicitly", "implicitly"), ("explicit", "implicit"), ("default", "unusual"),
    ("existing", "missing"), ("temporary", "permanent"), ("forward", "backward"),
    ("outside", "inside"), ("above", "below"), ("long", "short"), ("high", "low"),
    ("safe", "unsafe"), ("unique", "duplicate"), ("running", "stopped"), ("on", "off"),
)  # fmt: skip


_ONE_WAY: Final[dict[str, str]] = {
    "cannot": "can", "can't": "can", "can not": "can", "is not": "is", "isn't": "is",
    "are not": "are", "aren't": "are", "does not": "does", "doesn't": "does", "do not": "do",
    "don't": "do", "must not": "must", "should not": "should", "will not": "will",
    "won't": "will", "may not": "may", "was not": "was", "has no": "has a", "without": "with",
    "if": "unless", "unless": "if", "otherwise": "likewise", "any": "no", "every": "no",
    "none": "all", "nothing": "everything", "non-empty": "empty", "lacks": "has",
    "returned": "discarded", "raised": "suppressed", "ignoring": "respecting",
}  # fmt: skip


def _opposites() -> dict[str, str]:
    """Word or phrase to its opposite. "On" is no site: it is rarely the opposite of "off"."""
    table = {second: first for first, second in reversed(_BOTH_WAYS)}
    table |= dict(_BOTH_WAYS)
    table |= _ONE_WAY
    return {word: opposite for word, opposite in table.items() if word != "on"}


OPPOSITES: Final = _opposites()


OPPOSITE: Final = re.compile(
    # Longest first, so that "is not" is one site; not inside names, options or quotes.
    r"(?<![\w.\-'\"`*])(?:"
    + "|".join(
        re.escape(word).replace(r"\ ", r"\s+")
        for word in sorted(OPPOSITES, key=lambda word: (-len(word), word))
    )
    + r")(?![\w(='\"`*]|[.\-]\w)",
    re.IGNORECASE,
)


LEADING_VERB: Final = re.compile(
    r"(?:return|create|get|set|convert|construct|print|copy|format|parse|run|make|find|check|"
    r"process|send|test|generate|handle|produce|initialize|raise|extract|compute|call|retrieve|"
    r"override|split|delete|clear|replace|list|guess|wait|perform|build|define|determine|display|"
    r"execute|give|implement|insert|install|iterate|join|look|move|provide|represent|reset|"
    r"search|show|store|update|use|apply|calculate|decide|describe|emit|fetch|yield)s?\b",
    re.IGNORECASE,
)
