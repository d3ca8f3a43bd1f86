"""The documentation corpus that ships with plaudit, and the data sets that are built of it.

The text is CPython's: docstrings and language-reference topics (see ``plaudit/embedded/NOTICE``).
Modules and topics are parted whole into three parts that share no text and no near copy:
``pretraining`` (all that the embedded base has read), ``training`` (comparisons to train on) and
``heldout`` (comparisons to evaluate on).

As a source of a recipe, ``documentation:training:24004`` is pairs of a passage and a perturbation
of it (``heldout`` from modules that neither the embedded base nor the training part has seen); a
fourth field is the seed. ``documentation:ranked:300`` is held-out passages with 16 answers of known
quality each, for best-of-N.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, TypeAlias, cast

from plaudit.data.perturb.text import Context, make_context
from plaudit.embedded import documentation_path
from plaudit.errors import DataError
from plaudit.recipe.schema import Source

Kind: TypeAlias = Literal["docstring", "topic", "comment"]
Part: TypeAlias = Literal["pretraining", "training", "heldout"]

SHORTEST: Final = 40
LONGEST: Final = 400
"""Characters of an answer: shorter ones say nothing to perturb, longer ones only cost time."""

QUESTIONS: Final[tuple[str, ...]] = (
    "What does `{name}` do?",
    "What is `{name}` for?",
    "Describe `{name}`.",
    "Explain `{name}` in a few words.",
)
FURTHER_QUESTIONS: Final[tuple[str, ...]] = (
    "What else should one know about `{name}`?",
    "Tell me more about `{name}`.",
    "What is documented about `{name}`?",
)
TOPIC_QUESTIONS: Final[tuple[str, ...]] = (
    "What does the Python language reference say about `{name}`?",
    "What are the rules of Python for `{name}`?",
)

_WORD = re.compile(r"[A-Za-z]+")
_NOT_PROSE = re.compile(r"::=|>>>|^\s{2,}|^\s*[-*+|=~^#\d]|\.\. ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Documentation:
    """One documented thing: dotted ``name``, ``module`` (for a topic, the topic) and its text.

    Paragraphs of ``text`` are separated by one empty line. An answer is a passage of prose out of
    it, on one line, and ``index`` counts these.
    """

    name: str
    module: str
    kind: Kind
    part: Part
    text: str
    index: int = 0


def read_documentation(path: Path | None = None) -> tuple[Documentation, ...]:
    """Every record of the shipped corpus, in its order (or of another file of the same form).

    Raises:
        DataError: the file is missing or damaged.
    """
    path = documentation_path() if path is None else path
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return tuple(Documentation(**json.loads(line)) for line in file)
    except (OSError, EOFError, ValueError, TypeError, lzma.LZMAError) as error:
        wrong = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
        raise DataError(
            f"the documentation corpus at {path} is {wrong}; reinstall plaudit, or build the "
            "corpus with scripts/extract_documentation.py."
        ) from error


def answers(record: Documentation) -> Iterator[Documentation]:
    """Passages of :data:`SHORTEST` to :data:`LONGEST` characters: runs of whole prose paragraphs.

    Paragraphs follow each other in a passage as long as they fit; anything that is not prose
    (code, tables, grammar, lists), or that only announces such a thing, ends it.
    """
    passages: list[str] = []
    current = ""
    for paragraph in (*record.text.split("\n\n"), ""):
        prose = unwrap(paragraph) if is_prose(paragraph) else ""
        joined = f"{current} {prose}".strip()
        if prose and len(joined) <= LONGEST:
            current = joined
        else:
            passages.append(current)
            current = prose
    usable = (text for text in passages if SHORTEST <= len(text) <= LONGEST)
    for index, text in enumerate(usable):
        yield replace(record, text=text, index=index)


def questions(answer: Documentation) -> tuple[str, ...]:
    """Every phrasing of the question that ``answer`` answers."""
    phrasings = QUESTIONS if answer.index == 0 else FURTHER_QUESTIONS
    if answer.kind == "topic":
        phrasings = TOPIC_QUESTIONS
    return tuple(phrasing.format(name=answer.name) for phrasing in phrasings)


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is running text and complete: no code, list, table, rule or heading."""
    if _NOT_PROSE.search(paragraph) or paragraph.rstrip().endswith(":"):
        return False
    words = _WORD.findall(paragraph)
    letters = sum(map(len, words))
    visible = sum(not character.isspace() for character in paragraph)
    return len(words) >= 5 and letters >= 0.8 * visible


def unwrap(paragraph: str) -> str:
    """The paragraph on one line, words separated by single spaces."""
    return " ".join(paragraph.split())


# --- a source of a recipe -------------------------------------------------------------------------


SCHEME = "documentation:"
DEFAULT_SEED = 42


Rows: TypeAlias = Literal["training", "heldout", "ranked"]


def is_documentation(source: Source) -> bool:
    """Whether a source names the embedded documentation set."""
    return source.path.startswith(SCHEME)


def parse(path: str) -> tuple[Rows, int, int]:
    """Part, number and seed of ``documentation:<part>:<count>[:<seed>]``.

    Raises:
        DataError: it is not of that form.
    """
    match = re.fullmatch(rf"{SCHEME}(training|heldout|ranked):(\d+)(?::(\d*))?", path)
    if match is None:
        raise DataError(
            f"unknown documentation set {path}; expected documentation:training:PAIRS, "
            "documentation:heldout:PAIRS or documentation:ranked:PROMPTS, optionally followed "
            "by :SEED."
        )
    return cast(Rows, match[1]), int(match[2]), int(match[3] or DEFAULT_SEED)


def read_rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """The set's rows, built as they are read; the same for the same path, always.

    Raises:
        DataError: the path is not of the form above, or more pairs are asked for than are built.
    """
    part, count, seed = parse(source.path)
    rows = build_ranked(count, seed) if part == "ranked" else build_pairs(count, seed, part)
    for number, row in enumerate(rows, start=1):
        yield f"{source.path}:row {number}", row


def fingerprint(source: Source) -> str:
    """The corpus's SHA-256 and the set built from it."""
    corpus = documentation_path()
    # Reading says what a missing corpus means.
    digest = hashlib.sha256(corpus.read_bytes() if corpus.is_file() else b"").hexdigest()
    part, count, seed = parse(source.path)
    return f"sha256:{digest}/{part}/{count}/{seed}"


# --- pairs ----------------------------------------------------------------------------------------


Row: TypeAlias = dict[str, Any]

MOST_PAIRS: Final = 24_004
"""The size of the published reference's preference set, and the most that is built."""

SOURCE: Final = "python-documentation"

MIX: Final = (
    "other_text", "reversed_meaning", "changed_value", "dropped_words", "shuffled_words",
    "repeated_phrase", "truncation", "misspelling", "contradiction", "verbose_filler",
)  # fmt: skip
"""The ten perturbations of the pairs, in the order in which they take turns. The pairs of a seed
are the same in every version, so this does not follow the table."""


def build_pairs(
    count: int, seed: int, part: Literal["training", "heldout"] = "training"
) -> list[Row]:
    """Explicit conversational rows: a question, its documentation, a perturbation of that.

    The ten perturbations have equal shares, to within one row, in every leading run of the rows,
    and a smaller set is the beginning of a larger one of the same seed. Each goes through all
    passages that it can perturb before it takes one again with another draw. A thing is asked about
    in one phrasing, so that a split by prompt parts what is asked about.

    Columns: ``id``, ``prompt``, ``chosen``, ``rejected`` (lists of messages), ``subset`` (the
    perturbation), ``source`` and ``name`` (what the question is about).

    Raises:
        DataError: ``count`` is not between 1 and :data:`MOST_PAIRS`, or more than the part can
            give, or the part is not one to build from.
    """
    if not 1 <= count <= MOST_PAIRS:
        raise DataError(f"{count} pairs requested; expected 1 to {MOST_PAIRS}.")
    if part not in ("training", "heldout"):
        raise DataError(f"unknown part {part!r}; expected training or heldout.")
    seen: set[str] = set()
    streams = [_perturbation_rows(name, seed, part, seen) for name in MIX]
    rows = (next(streams[at % len(streams)]) for at in range(count))
    return [{"id": f"{part}-{seed}-{at:05d}", **row} for at, row in enumerate(rows)]


def _perturbation_rows(name: str, seed: int, part: str, seen: set[str]) -> Iterator[Row]:
    """Rows of one perturbation without end; ``seen`` holds all pairs so far."""
    # Imported where it is used: compiling the tables takes time that other data need not spend.
    from plaudit.data.perturb.table import PERTURBATIONS

    passages, context, own = material(part)
    turn = 0
    while True:
        order = list(range(len(passages)))
        Random(f"{seed}/{part}/{name}/{turn}").shuffle(order)
        before = len(seen)
        for at in order:
            answer = passages[at]
            generator = Random(f"{seed}/{part}/{name}/{turn}/{at}")
            around = replace(context, own=own[answer.name])
            rejected = PERTURBATIONS[name].apply(answer.text, generator, around)
            question = question_of(answer, seed)
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
                f"the {part} documentation has no more pairs for the perturbation {name} after "
                f"{turn} rounds; request fewer pairs."
            )
        turn += 1


def question_of(answer: Documentation, seed: int) -> str:
    """The one phrasing in which its thing is asked about (another for further passages)."""
    generator = Random(f"{seed}/{answer.name}/{answer.index > 0}")
    return generator.choice(questions(answer))


@cache
def material(part: str) -> tuple[tuple[Documentation, ...], Context, dict[str, frozenset[str]]]:
    """A part's passages, what perturbations borrow from, and the right answers by name."""
    passages = tuple(
        answer
        for record in read_documentation()
        if record.part == part
        for answer in answers(record)
    )
    own: dict[str, frozenset[str]] = {}
    for answer in passages:
        own[answer.name] = own.get(answer.name, frozenset()) | {answer.text}
    return passages, make_context([answer.text for answer in passages]), own


# --- ranked answers -------------------------------------------------------------------------------


RESPONSES: Final = 16
MAX_DEGRADATIONS: Final = 5
_TRIES: Final = 40

# Another thing's text is wholly wrong however much it is degraded after that.
_LADDER: Final = tuple(name for name in MIX if name != "other_text")


def build_ranked(count: int, seed: int) -> list[dict[str, Any]]:
    """Ranked rows of held-out passages: the right answer, and 15 with one to five degradations.

    Columns: ``id``, ``prompt`` (messages), ``responses``, ``grades``, ``source``, ``name``. A
    smaller set is the beginning of a larger one of the same seed.

    Raises:
        DataError: ``count`` is below 1, or more than the held-out passages give.
    """
    passages, context, _ = material("heldout")
    order = list(range(len(passages)))
    Random(f"{seed}/ranked").shuffle(order)
    rows: list[dict[str, Any]] = []
    for at in order:
        if len(rows) == count:
            break
        generator = Random(f"{seed}/ranked/{at}")
        answers = degraded(passages[at].text, generator, context)
        if answers is None:
            continue
        generator.shuffle(answers)
        rows.append(
            {
                "id": f"ranked-{seed}-{len(rows):05d}",
                "prompt": [{"role": "user", "content": question_of(passages[at], seed)}],
                "responses": [text for text, _ in answers],
                "grades": [-count for _, count in answers],
                "source": SOURCE,
                "name": passages[at].name,
            }
        )
    if not 1 <= count <= len(rows):
        raise DataError(
            f"{count} ranked prompts requested; the held-out documentation has 1 to {len(rows)}."
        )
    return rows


def degraded(text: str, generator: Random, context: Context) -> list[tuple[str, int]] | None:
    """:data:`RESPONSES` different texts with their numbers of degradations; None if too few."""
    degradations: dict[str, int] = {text: 0}
    for number in range(RESPONSES - 1):
        wanted = 1 + number % MAX_DEGRADATIONS
        for _ in range(_TRIES):
            worse = _apply(text, wanted, generator, context)
            if worse is not None and worse not in degradations:
                degradations[worse] = wanted
                break
        else:
            return None
    return list(degradations.items())


def _apply(text: str, wanted: int, generator: Random, context: Context) -> str | None:
    """The text after ``wanted`` different degradations, None where so many do not apply."""
    from plaudit.data.perturb.table import PERTURBATIONS

    done = 0
    for name in generator.sample(_LADDER, len(_LADDER)):
        worse = PERTURBATIONS[name].apply(text, generator, context)
        if worse is not None:
            text, done = worse, done + 1
        if done == wanted:
            return text
    return None
