"""Mutations: answers made worse in ten known ways, as hard negatives and as behavioural tests.

An operator takes a text, a seeded generator and a context, and gives a worse text, or ``None``
where it has nothing to take hold of. :data:`OPERATORS` names them; the name of the operator is the
``subset`` of a row, so that an evaluation tells which kind of damage a model sees.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from typing import Any, Final, Literal, TypeAlias

from plaudit.data.documentation import Answer, answers, questions, read_documentation
from plaudit.errors import DataError
from plaudit.types import Comparison, Message, Turns

Row: TypeAlias = dict[str, Any]

MOST_PAIRS: Final = 24_004
"""The size of the published reference's preference set, and the most that is built."""

SOURCE: Final = "python-documentation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What operators may borrow from: other answers, and the names that stand in them, by shape.

    ``others`` is sorted by length. ``own`` are texts that answer the same question rightly.
    """

    others: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    own: frozenset[str] = frozenset()


Operator: TypeAlias = Callable[[str, Random, Context], str | None]


def make_context(texts: Sequence[str]) -> Context:
    """A context out of a set of answers; the same for any order of them."""
    found: dict[str, set[str]] = {shape: set() for shape in _SHAPES}
    for text in texts:
        for shape, name in _names_in(text):
            found[shape].add(name)
    return Context(
        others=tuple(sorted(set(texts), key=lambda text: (len(text), text))),
        names={shape: tuple(sorted(names)) for shape, names in found.items()},
    )


# --- the operators ---------------------------------------------------------------------------


def other_text(text: str, generator: Random, context: Context) -> str | None:
    """A right answer to another question, of about the same length."""
    others = context.others
    at = bisect_left(others, (len(text), text), key=lambda other: (len(other), other))
    # Forty neighbours by length: near enough to hide the length, enough of them to vary.
    near = others[max(at - 20, 0) : at + 20]
    candidates = [other for other in near if other not in context.own and not _alike(other, text)]
    return _different(generator.choice(candidates), text) if candidates else None


def reversed_meaning(text: str, generator: Random, context: Context) -> str | None:
    """One word or phrase turned into its opposite; failing that, the leading verb negated."""
    sites = list(_OPPOSITE.finditer(text))
    if sites:
        site = generator.choice(sites)
        opposite = _like(site.group(), _OPPOSITES[" ".join(site.group().lower().split())])
        return _different(text[: site.start()] + opposite + text[site.end() :], text)
    verb = _LEADING_VERB.match(text)
    if verb is None:
        return None
    word = verb.group().lower()
    negated = f"Does not {word[:-1]}" if word.endswith("s") and word != "process" else ""
    return _different((negated or f"Do not {word}") + text[verb.end() :], text)


def changed_value(text: str, generator: Random, context: Context) -> str | None:
    """One number or name replaced, wherever it stands, by another of the same shape."""
    sites: dict[str, list[str]] = {}
    for shape, name in dict.fromkeys(_names_in(text)):
        sites.setdefault(shape, []).append(name)
    for number in dict.fromkeys(_NUMBER.findall(text)):
        sites.setdefault("number", []).append(number)
    shapes = sorted(sites)
    generator.shuffle(shapes)
    for shape in shapes:
        old = generator.choice(sites[shape])
        new = _other_value(shape, old, text, generator, context)
        if new is not None:
            whole = rf"(?<!\w){re.escape(old)}(?!\w)"
            return _different(re.sub(whole, new.replace("\\", r"\\"), text), text)
    return None


def dropped_words(text: str, generator: Random, context: Context) -> str | None:
    """A fifth of the words gone, at least one, from random places."""
    pieces = _pieces(text)
    if len(pieces) < 4:
        return None
    gone = set(generator.sample(range(len(pieces)), max(1, len(pieces) // 5)))
    return _different(_join([piece for at, piece in enumerate(pieces) if at not in gone]), text)


def shuffled_words(text: str, generator: Random, context: Context) -> str | None:
    """The words of one half of the text, wherever it begins, in another order."""
    pieces = _pieces(text)
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
    return _different(_join([*pieces[:start], *middle, *pieces[start + size :]]), text)


def repeated_phrase(text: str, generator: Random, context: Context) -> str | None:
    """A phrase of two to six words said twice or three times in a row."""
    pieces = _pieces(text)
    if len(pieces) < 2:
        return None
    size = generator.randint(2, min(6, len(pieces)))
    end = generator.randint(size, len(pieces))
    phrase = [(word, space or " ") for word, space in pieces[end - size : end]]
    times = generator.choice((1, 1, 2))
    return _different(_join([*pieces[: end - size], *phrase * times, *pieces[end - size :]]), text)


def truncation(text: str, generator: Random, context: Context) -> str | None:
    """The text broken off inside a sentence, after a third to four fifths of its words."""
    pieces = _pieces(text)
    if len(pieces) < 4:
        return None
    keep = max(2, round(len(pieces) * generator.uniform(0.33, 0.8)))
    while keep > 1 and pieces[keep - 1][0][-1] in ".!?":
        keep -= 1
    return _different(_join(pieces[:keep]), text)


def misspelling(text: str, generator: Random, context: Context) -> str | None:
    """A typing mistake in one word of eight, at least one, in words of four letters or more."""
    sites = list(re.finditer(r"[A-Za-z]{4,}", text))
    if not sites:
        return None
    chosen = generator.sample(sites, max(1, len(sites) // 8))
    for site in sorted(chosen, key=lambda site: -site.start()):
        text = text[: site.start()] + _mistyped(site.group(), generator) + text[site.end() :]
    return text


def contradiction(text: str, generator: Random, context: Context) -> str | None:
    """One of its sentences said again in reverse, at the end."""
    sentences = _sentences(text)
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


def verbose_filler(text: str, generator: Random, context: Context) -> str | None:
    """One to three sentences that say nothing, between the sentences or around them."""
    text = text.strip()
    if not text:
        return None
    places = [0, *(found.end() for found in _SENTENCE_END.finditer(text)), len(text)]
    fillers = generator.sample(_FILLERS, generator.randint(1, 3))
    at = sorted((generator.choice(places), filler) for filler in fillers)
    for place, filler in reversed(at):
        before, after = text[:place].rstrip(), text[place:]
        space = text[len(before) : place] or " "
        stop = "" if not before or before.endswith((".", "!", "?")) else "."
        text = f"{before}{stop}{space}{filler} {after}".strip()
    return text


OPERATORS: Final[dict[str, Operator]] = {
    operator.__name__: operator
    for operator in (
        other_text,
        reversed_meaning,
        changed_value,
        dropped_words,
        shuffled_words,
        repeated_phrase,
        truncation,
        misspelling,
        contradiction,
        verbose_filler,
    )
}
"""Name of an operator to its function: what ``subset`` says, and what can be asked for."""


# --- preference pairs out of the documentation -----------------------------------------------


def build_pairs(
    count: int, seed: int, part: Literal["training", "heldout"] = "training"
) -> list[Row]:
    """Explicit conversational rows: a question, its documentation, a mutation of that.

    The ten operators have equal shares, to within one row, in every leading run of the rows, and a
    smaller set is the beginning of a larger one of the same seed. Every operator goes through all
    passages that it can mutate before it takes one again, and then mutates it otherwise. A thing is
    asked about in one phrasing, so that a split by prompt parts what is asked about.

    Columns: ``id``, ``prompt``, ``chosen``, ``rejected`` (lists of messages), ``subset`` (the
    operator), ``source`` and ``name`` (what the question is about).

    Raises:
        DataError: ``count`` is not between 1 and :data:`MOST_PAIRS`, or more than the part can
            give, or the part is not one to build from.
    """
    if not 1 <= count <= MOST_PAIRS:
        raise DataError(f"{count} pairs were asked for; expected 1 to {MOST_PAIRS}.")
    if part not in ("training", "heldout"):
        raise DataError(f"there is no part {part!r} to build pairs from; use training or heldout.")
    seen: set[str] = set()
    streams = [_operator_rows(name, seed, part, seen) for name in OPERATORS]
    rows = (next(streams[at % len(streams)]) for at in range(count))
    return [{"id": f"{part}-{seed}-{at:05d}", **row} for at, row in enumerate(rows)]


def _operator_rows(name: str, seed: int, part: str, seen: set[str]) -> Iterator[Row]:
    """Rows of one operator without end; ``seen`` holds the pairs of all operators so far."""
    passages, context, own = _material(part)
    turn = 0
    while True:
        order = list(range(len(passages)))
        Random(f"{seed}/{part}/{name}/{turn}").shuffle(order)
        before = len(seen)
        for at in order:
            answer = passages[at]
            generator = Random(f"{seed}/{part}/{name}/{turn}/{at}")
            around = replace(context, own=own[answer.name])
            rejected = OPERATORS[name](answer.text, generator, around)
            question = _question(answer, seed)
            pair = f"{question}\n{answer.text}\n{rejected}"
            if rejected is None or pair in seen:
                continue
            seen.add(pair)
            yield {
                "prompt": [{"role": "user", "content": question}],
                "chosen": [{"role": "assistant", "content": answer.text}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "subset": name,
                "source": SOURCE,
                "name": answer.name,
            }
        if len(seen) == before:
            raise DataError(
                f"the {part} documentation gives no more pairs of the operator {name} after "
                f"{turn} turns; ask for fewer."
            )
        turn += 1


def _question(answer: Answer, seed: int) -> str:
    """The one phrasing in which its thing is asked about (another for further passages)."""
    generator = Random(f"{seed}/{answer.name}/{answer.index > 0}")
    return generator.choice(questions(answer))


@cache
def _material(part: str) -> tuple[tuple[Answer, ...], Context, dict[str, frozenset[str]]]:
    """A part's passages, what operators borrow from, and the right answers by name."""
    passages = tuple(
        answer
        for record in read_documentation()
        if record.part == part
        for answer in answers(record)
    )
    own: dict[str, set[str]] = {}
    for answer in passages:
        own.setdefault(answer.name, set()).add(answer.text)
    context = make_context([answer.text for answer in passages])
    return passages, context, {name: frozenset(texts) for name, texts in own.items()}


# --- preference pairs out of any comparisons -------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutated:
    """Rows made, and how many were not, by reason."""

    rows: list[Row]
    refused: Counter[str] = field(default_factory=Counter)


def mutate_rows(comparisons: Sequence[Comparison], operators: Sequence[str], seed: int) -> Mutated:
    """For each comparison and operator a pair: its best response against a mutation of that.

    The best response is the one of the highest grade (the first of equals, or where nothing is
    known). Of messages, the last one's text is mutated. A row depends on the seed, the comparison
    and the operator alone, except where it borrows from the other comparisons.

    Raises:
        DataError: an operator is not known.
    """
    for name in operators:
        if name not in OPERATORS:
            raise DataError(
                f"there is no mutation operator {name!r}; expected some of {', '.join(OPERATORS)}."
            )
    best = [best_response(comparison) for comparison in comparisons]
    own: dict[str, set[str]] = {}
    for comparison, turns in zip(comparisons, best, strict=True):
        own.setdefault(comparison.group, set()).add(last_text(turns) or "")
    context = make_context([text for texts in own.values() for text in texts if text])
    result = Mutated(rows=[])
    for comparison, turns in zip(comparisons, best, strict=True):
        text = last_text(turns)
        around = replace(context, own=frozenset(own[comparison.group]))
        for name in operators:
            generator = Random(f"{seed}/{name}/{comparison.source}/{comparison.id}")
            mutated = OPERATORS[name](text, generator, around) if text else None
            if mutated is None:
                result.refused["no text" if not text else f"{name} does not apply"] += 1
            else:
                result.rows.append(_pair(comparison, turns, mutated, name))
    return result


def best_response(comparison: Comparison) -> Turns:
    """The response of the highest grade: the first of equals, or where nothing is known."""
    grades = comparison.grades or (0.0,) * len(comparison.responses)
    return comparison.responses[grades.index(max(grades))]


def last_text(turns: Turns) -> str | None:
    """The text of a response, or of its last message; None where that holds something else."""
    if isinstance(turns, str):
        return turns
    content = turns[-1].content if turns else None
    return content if isinstance(content, str) else None


def _pair(comparison: Comparison, chosen: Turns, mutated: str, operator: str) -> Row:
    if isinstance(chosen, str):
        rejected: Turns = mutated
    else:
        last = replace(chosen[-1], content=mutated)
        rejected = (*chosen[:-1], last)
    return {
        "id": f"{comparison.id}-{operator}",
        "prompt": _plain(comparison.prompt),
        "chosen": _plain(chosen),
        "rejected": _plain(rejected),
        "subset": operator,
        "source": comparison.source,
    }


def _plain(turns: Turns) -> str | list[dict[str, Any]]:
    return turns if isinstance(turns, str) else [Message.as_dict(turn) for turn in turns]


# --- words, names, numbers and sentences -----------------------------------------------------


def _different(new: str, text: str) -> str | None:
    """``new``, or None where it says the same as ``text``, white space aside, or nothing."""
    return new if new.strip() and new.split() != text.split() else None


def _alike(first: str, second: str) -> bool:
    """Whether most words are the same: such a text may answer the other's question as well."""
    words, others = set(first.lower().split()), set(second.lower().split())
    return len(words & others) > 0.5 * min(len(words), len(others))


def _pieces(text: str) -> list[tuple[str, str]]:
    """Words, each with the white space behind it."""
    return re.findall(r"(\S+)(\s*)", text)


def _join(pieces: Sequence[tuple[str, str]]) -> str:
    return "".join(word + space for word, space in pieces).strip()


def _sentences(text: str) -> list[str]:
    return _SENTENCE_END.split(text.strip())


def _like(old: str, new: str) -> str:
    """``new`` with a capital where ``old`` has one, all in capitals where it is."""
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"*])")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")

_SHAPES: Final[dict[str, re.Pattern[str]]] = {
    "exception": re.compile(r"\b[A-Z]\w*(?:Error|Exception|Warning|Interrupt)\b"),
    "constant": re.compile(r"\b[A-Z][A-Z0-9_]{2,}\b"),
    "camel": re.compile(r"\b[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]*)+\b"),
    "compound": re.compile(r"(?<![\w.])[a-z]\w*(?:[_.]\w+)+\b"),
    "quoted": re.compile(r"(?<=['\"`*])[A-Za-z_]\w*(?=['\"`*])"),
    "type": re.compile(
        r"\b(?:string|integer|float|list|tuple|dictionary|boolean|bytes|iterator|sequence|"
        r"function|class|module|method|file|directory|thread|process)\b"
    ),
}


def _names_in(text: str) -> Iterator[tuple[str, str]]:
    for shape, pattern in _SHAPES.items():
        for found in pattern.findall(text):
            yield shape, found


def _other_value(
    shape: str, old: str, text: str, generator: Random, context: Context
) -> str | None:
    if shape == "number":
        return _other_number(old, generator)
    known = [name for name in context.names[shape] if name not in text]
    return generator.choice(known) if known else None


def _other_number(old: str, generator: Random) -> str:
    if "." in old:
        whole, _, rest = old.partition(".")
        return f"{whole}.{_other_number(rest, generator)}"
    value = int(old)
    near = {value + 1, value + 2, value + 10, value * 2, value * 10, max(value - 1, 0), value // 2}
    return generator.choice([str(number) for number in sorted(near) if number != value])


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
    return word[:at] + _like(word[at], neighbour) + word[at + 1 :]


_KEYBOARD: Final[dict[str, str]] = {
    letter: "".join(
        row[near] for near in (at - 1, at + 1) if 0 <= near < len(row)
    )
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for at, letter in enumerate(row)
}  # fmt: skip

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


_OPPOSITES: Final = _opposites()
_OPPOSITE: Final = re.compile(
    # Longest first, so that "is not" is one site; not inside names, options or quotes.
    r"(?<![\w.\-'\"`*])(?:"
    + "|".join(
        re.escape(word).replace(r"\ ", r"\s+")
        for word in sorted(_OPPOSITES, key=lambda word: (-len(word), word))
    )
    + r")(?![\w(='\"`*]|[.\-]\w)",
    re.IGNORECASE,
)
_LEADING_VERB: Final = re.compile(
    r"(?:return|create|get|set|convert|construct|print|copy|format|parse|run|make|find|check|"
    r"process|send|test|generate|handle|produce|initialize|raise|extract|compute|call|retrieve|"
    r"override|split|delete|clear|replace|list|guess|wait|perform|build|define|determine|display|"
    r"execute|give|implement|insert|install|iterate|join|look|move|provide|represent|reset|"
    r"search|show|store|update|use|apply|calculate|decide|describe|emit|fetch|yield)s?\b",
    re.IGNORECASE,
)
_OPENINGS: Final = (
    "However, ", "In fact, ", "Actually, ", "On the other hand, ", "At the same time, ",
    "Strictly speaking, ", "To be precise, ", "", "",
)  # fmt: skip
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
