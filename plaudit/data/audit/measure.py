"""Every row as numbers: what the checks read. Measured in batches, by worker processes.

What other stages know (plain text, scripts, tokens, baselines) comes in as :class:`Functions`.

Shape legend: N rows, R responses of all rows end to end, W words of a text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import combinations, starmap, zip_longest
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from plaudit.data.audit.similarity import (
    PROMPT_SKETCH,
    RESPONSES_SKETCH,
    SKETCH,
    Hashes,
    HeldOutGrams,
    Sketcher,
    grams,
    shingles,
    words,
)
from plaudit.data.formats.readers import canonical
from plaudit.data.reasons import EXPLANATIONS, TIE, is_blank, learned_labels, why_untrainable
from plaudit.data.store import StoredComparisons, group_code, write_comparisons
from plaudit.data.unread import UnreadColumns, UnreadCounter
from plaudit.storage.arrow import BATCH_ROWS, MappedTable
from plaudit.storage.atomic import writing
from plaudit.storage.fork_pool import map_forked
from plaudit.types import Comparison, FloatArray, Message, Skipped, Turns

Array: TypeAlias = npt.NDArray[Any]

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Is called with a task, how many rows of it are done, and of how many (None: not known)."""

Kind: TypeAlias = Literal["data", "eval", "suite"]
"""``data`` is audited. ``eval`` is held-out data of the same task, ``suite`` a published benchmark;
neither's prompts may be in ``data``."""


# --- input ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCount:
    """Tokens of a comparison.

    ``longest`` is its longest whole conversation. ``shared`` is the longest common prefix of two
    of its conversations with different grades; 0 where no two differ.
    """

    longest: int
    shared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounter:
    """Counts tokens. ``method`` is printed beside the counts, ``exact`` is False for an estimate.

    ``renders`` is whether conversations pass a chat template while they are counted, and
    ``has_template`` whether the tokenizer has one.
    """

    count: Callable[[Sequence[Comparison]], Sequence[TokenCount | Skipped]]
    method: str
    exact: bool
    renders: bool
    has_template: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineAccuracy:
    """How often a baseline ranks a labelled pair correctly; None where there is no pair."""

    accuracy: float | None
    accuracy_ci95: tuple[float, float] | None
    accuracy_ci95_method: str | None
    ties: int
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """Functions of other stages.

    ``text`` is the plain text of a prompt or a response. ``scripts`` counts the letters of a text
    by script. ``accuracy`` takes differences (winner − loser) and the prompts of their pairs.
    ``bag_of_words`` is fitted on its first argument; it returns one difference per ordered pair
    of its second.
    """

    text: Callable[[Turns], str]
    scripts: Callable[[str], Mapping[str, int]]
    accuracy: Callable[[FloatArray, Array], BaselineAccuracy]
    bag_of_words: Callable[[Sequence[Comparison], Sequence[Comparison]], FloatArray]
    tokens: TokenCounter


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is audited or compared with: when it is read, ``rows`` rows from number ``start`` on."""

    name: str
    path: str
    kind: Kind
    format: str | None
    fingerprint: str
    start: int = 0
    rows: int = 0
    unread: UnreadColumns = field(default_factory=UnreadColumns)

    @property
    def end(self) -> int:
        return self.start + self.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPart:
    """A part with its comparisons, which are read once, and the counter of what is not read."""

    part: Part
    comparisons: Iterable[Comparison]
    counter: UnreadCounter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRows:
    """The rows of all parts in one Arrow file, those of kind ``data`` first."""

    comparisons: StoredComparisons
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return len(self.comparisons)

    def __getitem__(self, row: int) -> Comparison:
        return self.comparisons[row]

    @property
    def data(self) -> int:
        """The number of rows, from the first, that are audited."""
        return max((part.end for part in self.parts if part.kind == "data"), default=0)


def store_rows(folder: Path, opened: Sequence[OpenPart], on_progress: Progress) -> AuditRows:
    """Write every row of every part, in order.

    Raises:
        DataError: a source cannot be read, or a row has a value of the wrong type.
        OutputError: the disk.
    """
    parts: list[Part] = []
    count = 0

    def all_rows() -> Iterator[Comparison]:
        nonlocal count
        for one in sorted(opened, key=lambda one: one.part.kind != "data"):
            start = count
            for comparison in one.comparisons:
                count += 1
                if count % BATCH_ROWS == 0:
                    on_progress("reading", count, None)
                yield comparison
            unread = UnreadColumns() if one.counter is None else one.counter.total
            parts.append(replace(one.part, start=start, rows=count - start, unread=unread))

    path = folder / "rows.arrow"
    with writing(path):
        write_comparisons(path, all_rows())
    table = MappedTable(path, key="audit", record={})
    return AuditRows(comparisons=StoredComparisons([table]), parts=tuple(parts))


# --- problems of turns and texts ------------------------------------------------------------------

SPECIAL_TOKENS: Final[tuple[str, ...]] = (
    r"<\|[A-Za-z][\w.-]{1,40}\|>",  # ChatML, Llama 3, Phi, Cohere
    r"<｜[^｜\n]{1,40}｜>",  # DeepSeek
    r"\[/?INST\]",  # Llama 2, Mistral
    r"<</?SYS>>",  # Llama 2
    r"\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",  # Mistral
    r"<(?:start|end)_of_turn>",  # Gemma
    r"<(?:bos|eos)>",  # Gemma
    r"</?s>(?![\w>])",  # Llama 2, Mistral; in HTML, struck-through text
)
"""Control tokens of known chat templates. A tokenizer reads them as control, not as text."""

_SPECIAL = re.compile("|".join(SPECIAL_TOKENS))
_STRIKE = re.compile(r"(<s>[^<\n]{1,400}</s>)")

_MARKER = re.compile(
    r"(?:\A|\n)[ \t]*(?:#{2,3} )?(?:Human|Assistant|USER|ASSISTANT|### (?:Instruction|Response)"
    r"|<(?:human|bot|user|assistant)>)[ \t]*:"
)

# UTF-8 decoded as Latin-1 or Windows-1252: two or three characters in place of one.
_MOJIBAKE = re.compile("â€[\x80-\xbf™œ\x9d“”˜¢¦]|Ã[\x80-\xbf©¨¤¶¼±³¡­‰]|Â[\xa0-\xbf]|ï»¿|ï¿½")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_OVERRIDE = re.compile("[\u202a-\u202e\u2066-\u2069]")
_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_TOOLS: Final = frozenset({"tool", "function"})
_CHAT_ROLES: Final = frozenset({"system", "user", "assistant"})


def texts_of(*turns: Turns) -> Iterator[str]:
    """The texts of prompts and responses, of content parts those that have one."""
    for one in turns:
        for content in [one] if isinstance(one, str) else [message.content for message in one]:
            if isinstance(content, str):
                yield content
            elif isinstance(content, (list, tuple)):
                parts = (part.get("text") for part in content if isinstance(part, dict))
                yield from (text for text in parts if isinstance(text, str))


def role_order(comparison: Comparison) -> bool:
    """A system turn that is not the first, two turns of one side in a row, or an unknown role.

    Also a response that does not start with the assistant, and a prompt that ends with it.
    """
    if isinstance(comparison.prompt, str):
        return False
    return any(
        not _in_order((*comparison.prompt, *response), len(comparison.prompt))
        for response in comparison.responses
        if not isinstance(response, str)
    )


def _in_order(turns: tuple[Message, ...], prompt: int) -> bool:
    if prompt and prompt < len(turns) and turns[prompt].role != "assistant":
        return False
    before = ""
    for place, turn in enumerate(turns):
        role = turn.role
        if role not in _ROLES or (role in ("system", "developer") and place):
            return False
        # A call and its result may be several turns each.
        if role in ("user", "assistant") and role == before and not turn.extra:
            return False
        if role in _TOOLS and before not in ("assistant", *_TOOLS):
            return False
        before = role
    return True


def empty_turn(comparison: Comparison) -> bool:
    """A turn without text and tool call, or an empty prompt.

    Responses that are empty as a whole have their own reason.
    """
    prompt = comparison.prompt
    if isinstance(prompt, str):
        return not prompt.strip()
    parts = (prompt, *(r for r in comparison.responses if not is_blank(r)))
    return not prompt or any(
        is_blank((turn,)) for part in parts if not isinstance(part, str) for turn in part
    )


def special_tokens(comparison: Comparison) -> bool:
    """A control token of a chat template inside a text."""
    return any(map(has_special_tokens, texts_of(comparison.prompt, *comparison.responses)))


def has_special_tokens(text: str) -> bool:
    """Whether a text contains a control token; struck-through HTML is none."""
    if "<" not in text and "[" not in text:
        return False
    return _SPECIAL.search(_STRIKE.sub("", text)) is not None


def without_special_tokens(text: str) -> str:
    """The text without its control tokens; white space stays, which may mark turns."""
    if not has_special_tokens(text):
        return text
    # The capturing group keeps struck-through spans, at the odd places.
    parts = _STRIKE.split(text)
    return "".join(
        part if place % 2 else _SPECIAL.sub("", part) for place, part in enumerate(parts)
    )


def dialogue_markers(comparison: Comparison) -> bool:
    """A line that starts with ``Human:``, ``Assistant:`` or the like where turns have roles.

    In plain text such lines mark turns, so there only responses are examined.
    """
    parts = comparison.responses
    if not isinstance(comparison.prompt, str):
        parts = (comparison.prompt, *parts)
    return any(":" in text and _MARKER.search(text) for text in texts_of(*parts))


def bad_characters(comparison: Comparison) -> bool:
    """A control character, a replacement character, or UTF-8 decoded as Latin-1."""
    return any(map(_is_bad, texts_of(comparison.prompt, *comparison.responses)))


def _is_bad(text: str) -> bool:
    if _CONTROL.search(text):
        return True
    if text.isascii():
        return False
    return "\ufffd" in text or bool(_MOJIBAKE.search(text) or _OVERRIDE.search(text))


def without_control_characters(text: str) -> str:
    """The text without control characters and overrides of the writing direction."""
    text = _CONTROL.sub("", text)
    return text if text.isascii() else _OVERRIDE.sub("", text)


def more_than_text(comparison: Comparison) -> bool:
    """Tools, or a turn with fields beside its text or of a role that some templates do not know."""
    return bool(comparison.tools) or any(
        message.role not in _CHAT_ROLES or message.text_fields()
        for turns in (comparison.prompt, *comparison.responses)
        if not isinstance(turns, str)
        for message in turns
    )


PROBLEMS: Final[dict[str, Callable[[Comparison], bool]]] = {
    problem.__name__: problem
    for problem in (
        role_order,
        empty_turn,
        special_tokens,
        dialogue_markers,
        bad_characters,
        more_than_text,
    )
}
"""Problems by name, each a question to one comparison; the answers are columns of :data:`ROW`."""


# --- numbers --------------------------------------------------------------------------------------

REASONS: Final = ("", *EXPLANATIONS)
"""Reasons of ``data/reasons.py`` by number; 0 is a row that can be trained on."""

SAME_SCRIPT: Final = 0.05
"""A script belongs to a text from this share of its letters on."""

SPLIT_COLUMN: Final = "split"
"""The name of the column that says on which side of a split a row is."""

ROW: Final = np.dtype(
    [
        ("group", np.uint64),  # the prompt, roles and contents
        ("prompt_key", np.uint64),  # the prompt's text without form, case and white space; 0: none
        ("row_key", np.uint64),  # prompt, responses and labels
        ("pair_key", np.uint64),  # prompt and responses, in any order
        ("split", np.uint64),  # the value of the split column; 0 without
        ("reason", np.uint8),  # why the objective cannot learn from it
        ("ordered", np.bool_),  # responses of different grades can be learned from
        ("tied", np.bool_),  # all grades are equal, and nothing else keeps it from training
        ("rated", np.bool_),  # ratings can be learned from
        ("soft_label", np.float64),  # nan without
        ("plain", np.bool_),  # text, which no chat template renders
        ("responses", np.uint16),
        ("prompt_characters", np.uint32),
        ("prompt_script", np.uint64),  # the code of a name of `names`; 0 without letters
        ("mixed_scripts", np.bool_),  # two responses are in different scripts
        ("turns", np.uint16),
        ("longest", np.uint32),  # tokens of the longest conversation
        ("shared", np.uint32),  # longest common prefix of two differently graded conversations
        ("skipped", np.uint64),  # the code of the reason why it has no tokens; 0: it has
        ("unrendered", np.uint64),  # the code of what the chat template does not render; 0: nothing
        ("copied_from", np.int64),  # the held-out row whose prompt it contains; -1: none
        *((name, np.bool_) for name in PROBLEMS),
    ]
)
RESPONSE: Final = np.dtype(
    [
        ("digest", np.uint64),
        ("characters", np.uint32),
        ("grade", np.float64),  # nan where nothing is known
        ("script", np.uint64),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Numbers of an attribute over many responses: how many, their sum and their range."""

    count: int
    total: float
    least: float
    most: float

    def plus(self, other: Numbers) -> Numbers:
        """Both together."""
        return Numbers(
            count=self.count + other.count,
            total=self.total + other.total,
            least=min(self.least, other.least),
            most=max(self.most, other.most),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Numbers of all rows (``of_rows``, of type :data:`ROW`) and of all responses.

    ``names`` are the words behind codes (scripts, split values, reasons). ``attributes`` are those
    of the audited rows. ``sketches`` is the file of the rows' MinHash sketches, ``SKETCH`` values a
    row: responses, then prompt.
    """

    of_rows: Array
    of_responses: Array
    names: Mapping[int, str]
    attributes: Mapping[str, Numbers]
    sketches: Path

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where the responses of each row start, and where the last end."""
        return np.concatenate([[0], np.cumsum(self.of_rows["responses"], dtype=np.int64)])


def measure_columns(
    rows: AuditRows,
    folder: Path,
    functions: Functions,
    held_out: HeldOutGrams,
    loss: str,
    on_progress: Progress,
) -> Columns:
    """Measure every row; the numbers do not depend on the number of processes.

    ``loss`` is the objective that decides which rows can be trained on.

    Raises:
        DataError: a worker process was killed.
        OutputError: the disk.
    """
    names: dict[int, str] = {}
    attributes: dict[str, Numbers] = {}
    done = 0
    # Through files: parts in memory and what they are joined to would take twice the memory.
    paths = [folder / name for name in ("rows", "responses", "sketches")]
    with writing(folder), ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for batch, found, numbers_of in map_forked(
            _Measurer(rows, functions, held_out, loss),
            range(0, len(rows), BATCH_ROWS),
            rows=len(rows),
            doing="a process that measures rows",
        ):
            for file, numbers in zip(files, batch, strict=True):
                file.write(numbers.tobytes())
            names |= found
            for name, these in numbers_of.items():
                attributes[name] = attributes[name].plus(these) if name in attributes else these
            done += len(batch[0])
            on_progress("measuring", done, len(rows))
    return Columns(
        of_rows=np.fromfile(paths[0], ROW),
        of_responses=np.fromfile(paths[1], RESPONSE),
        names=names,
        attributes=attributes,
        sketches=paths[2],
    )


class _Measurer:
    """One batch as numbers (of its rows, its responses, its sketches), the names of codes, and its
    attributes.
    """

    def __init__(
        self, rows: AuditRows, functions: Functions, held_out: HeldOutGrams, loss: str
    ) -> None:
        self.rows = rows
        self.functions = functions
        self.held_out = held_out
        self.learns_from = learned_labels(loss)
        self.sketch_prompt = Sketcher(PROMPT_SKETCH)
        self.sketch_responses = Sketcher(RESPONSES_SKETCH)

    def __call__(
        self, start: int
    ) -> tuple[tuple[Array, Array, Hashes], dict[int, str], dict[str, Numbers]]:
        numbers = range(start, min(start + BATCH_ROWS, len(self.rows)))
        comparisons = [self.rows[number] for number in numbers]
        rows = np.zeros(len(comparisons), ROW)
        responses: list[tuple[Any, ...]] = []
        sketches = np.empty((len(comparisons), SKETCH), np.uint32)
        names: dict[int, str] = {}
        counts = self.functions.tokens.count(comparisons)
        for place, (comparison, tokens) in enumerate(zip(comparisons, counts, strict=True)):
            row = rows[place]
            audited = numbers[place] < self.rows.data
            responses += self._measure(comparison, audited, row, sketches[place], names)
            if isinstance(tokens, Skipped):
                row["skipped"] = _code_of(tokens.reason, names)
                row["unrendered"] = _code_of(tokens.field, names) if tokens.field else 0
            else:
                row["longest"], row["shared"] = tokens.longest, tokens.shared
        audited_rows = comparisons[: max(0, self.rows.data - start)]
        return (rows, np.array(responses, RESPONSE), sketches), names, _attributes(audited_rows)

    def _measure(
        self,
        comparison: Comparison,
        audited: bool,
        row: Any,
        sketch: Hashes,
        names: dict[int, str],
    ) -> Iterator[tuple[Any, ...]]:
        """Fill in a row and its sketch; the numbers of its responses."""
        prompt = self.functions.text(comparison.prompt)
        texts = [self.functions.text(response) for response in comparison.responses]
        prompt_W = words(prompt)
        texts_W = [words(text) for text in texts]
        scripts = [self.functions.scripts(text) for text in texts]
        digests = [digest_of(response) for response in comparison.responses]
        grades = comparison.grades or (float("nan"),) * len(texts)
        split = comparison.metadata.get(SPLIT_COLUMN)
        row["group"] = group_code(comparison.group)
        row["prompt_key"] = _text_key(prompt)
        row["row_key"] = row_key(comparison)
        row["pair_key"] = _code(repr((comparison.group, sorted(digests))).encode())
        row["split"] = _code_of(split, names) if isinstance(split, str) and split else 0
        row["reason"] = REASONS.index(why_untrainable(comparison, self.learns_from) or "")
        unordered = why_untrainable(comparison)
        row["ordered"], row["tied"] = unordered is None, unordered == TIE
        row["rated"] = comparison.rated and why_untrainable(comparison, "ratings") is None
        row["soft_label"] = np.nan if comparison.soft_label is None else comparison.soft_label
        row["plain"] = isinstance(comparison.responses[0], str)
        row["responses"] = len(texts)
        row["prompt_characters"] = len(prompt)
        row["prompt_script"] = _main_script(self.functions.scripts(prompt), names)
        row["mixed_scripts"] = not all(starmap(_share_a_script, combinations(scripts, 2)))
        row["turns"] = 1 if isinstance(comparison.prompt, str) else len(comparison.prompt)
        runs = [grams(part) for part in (prompt_W, *texts_W)] if audited else []
        row["copied_from"] = self.held_out.copied(runs)
        for name, is_there in PROBLEMS.items():
            row[name] = is_there(comparison)
        responses_S = np.unique(np.concatenate([shingles(text_W) for text_W in texts_W]))
        sketch[:RESPONSES_SKETCH] = self.sketch_responses(responses_S)
        sketch[RESPONSES_SKETCH:] = self.sketch_prompt(shingles(prompt_W))
        main = [_main_script(counts, names) for counts in scripts]
        return zip(digests, map(len, texts), grades, main, strict=True)


def _attributes(comparisons: Sequence[Comparison]) -> dict[str, Numbers]:
    """The attributes of these rows."""
    known: defaultdict[str, list[float]] = defaultdict(list)
    for comparison in comparisons:
        for name, numbers in comparison.attributes.items():
            known[name] += [number for number in numbers if number is not None]
    return {
        name: Numbers(count=len(numbers), total=sum(numbers), least=min(numbers), most=max(numbers))
        for name, numbers in known.items()
    }


def row_key(comparison: Comparison) -> int:
    """Equal for rows with the same prompt, responses, grades, soft label and attributes."""
    digests = [digest_of(response) for response in comparison.responses]
    # The default of a soft label is 1, and a missing number is as good as a missing attribute.
    soft_label = 1.0 if comparison.soft_label is None else comparison.soft_label
    named = sorted(comparison.attributes.items())
    known = [
        [(name, numbers[at]) for name, numbers in named if numbers[at] is not None]
        for at in range(len(digests))
    ]
    labelled = sorted(map(repr, zip_longest(digests, comparison.grades, known, fillvalue=None)))
    return _code(repr((comparison.group, labelled, soft_label)).encode())


def digest_of(turns: Turns) -> int:
    """A number for a text with its roles and tool calls; white space at the ends does not count."""
    if isinstance(turns, str):
        return _code(turns.strip().encode("utf-8", "surrogatepass"))
    return _code(json.dumps(canonical(turns), sort_keys=True, default=str).encode())


def _main_script(counts: Mapping[str, int], names: dict[int, str]) -> int:
    """The code of the script most letters belong to; 0 without letters."""
    if not counts:
        return 0
    return _code_of(min(counts, key=lambda name: (-counts[name], name)), names)


def _share_a_script(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether the main script of either belongs to the other: quoted code makes no language.

    A text without letters fits any.
    """
    if not one or not other:
        return True
    return any(
        theirs.get(max(ours, key=ours.__getitem__), 0) >= SAME_SCRIPT * sum(theirs.values())
        for ours, theirs in ((one, other), (other, one))
    )


def _text_key(text: str) -> int:
    plain = " ".join(text.casefold().split())
    return _code(plain.encode("utf-8", "surrogatepass")) if plain else 0


def _code(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _code_of(name: str, names: dict[int, str]) -> int:
    code = _code(name.encode("utf-8", "surrogatepass"))
    names[code] = name
    return code
