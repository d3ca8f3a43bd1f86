"""The table of readers: what rows of preference data look like, and how each becomes a comparison.

A reader is one function ``row -> Parsed`` and one row of :data:`READERS`. Everything formats have
in common (margins, tools, ids, metadata, the prompt group) is added by :func:`to_comparison`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from plaudit.data import values
from plaudit.data.values import Row
from plaudit.errors import DataError
from plaudit.types import Comparison, Message, Turns

SHARED_COLUMNS: Final = frozenset(
    {"margin", "weight", "tools", "chat_template_kwargs", "id", "source"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a reader takes out of a row. ``grades``: higher is better, empty when unknown."""

    prompt: Turns
    responses: tuple[Turns, ...]
    grades: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One format of rows.

    ``columns`` must be there and ``optional`` may be; neither goes to ``metadata``.
    ``recognises`` looks at the types of the values of a row that has all ``columns``; for any row
    at most one reader should say yes. ``parse`` raises a DataError that names the column; where
    the row stands is added for it.
    """

    name: str
    description: str
    columns: tuple[str, ...]
    recognises: Callable[[Row], bool]
    parse: Callable[[Row], Parsed]
    optional: tuple[str, ...] = ()


def choose_reader(row: Row, *, where: str, name: str | None = None) -> Reader:
    """The reader called ``name``, else the one that recognises ``row``, the first of its source.

    Raises:
        DataError: there is no such reader, or not exactly one recognises the row.
    """
    if name is not None:
        return _named(name)
    having = [reader for reader in READERS.values() if set(reader.columns) <= set(row)]
    matches = [reader for reader in having if reader.recognises(row)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " and ".join(reader.name for reader in matches)
        raise DataError(
            f"{where}: the columns {values.listed(row)} fit {names}; choose one with"
            f" `format: {matches[0].name}`."
        )
    raise DataError(f"{where}: {_misfit(row, having)}")


def to_comparison(reader: Reader, row: Row, *, number: int, where: str, source: str) -> Comparison:
    """The comparison of one row; ``number`` (from 1) and ``source`` name it when it has no id.

    Judges only types, never usefulness: see :func:`plaudit.data.reasons.why_untrainable`.

    Raises:
        DataError: a column is missing or holds a value of the wrong type; it starts with ``where``.
    """
    parsed = _parse(reader, row, where)
    own = {*reader.columns, *reader.optional, *SHARED_COLUMNS}
    try:
        return Comparison(
            id=values.name(row, "id") or f"{source}:{number}",
            prompt=parsed.prompt,
            responses=parsed.responses,
            grades=parsed.grades,
            group=_group(parsed),
            source=values.name(row, "source") or source,
            where=where,
            margin=values.optional_number(row, "margin"),
            weight=values.weight(row),
            tools=values.tools(row),
            chat_template_kwargs=values.from_json(row, "chat_template_kwargs", dict) or {},
            metadata={
                name: value
                for name, value in row.items()
                if name not in own and isinstance(value, (str, int, float, bool))
            },
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _parse(reader: Reader, row: Row, where: str) -> Parsed:
    try:
        return reader.parse(row)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _named(name: str) -> Reader:
    if name in READERS:
        return READERS[name]
    near = difflib.get_close_matches(name, READERS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(READERS)}."
    raise DataError(f"there is no format {name!r}; {hint}")


def _misfit(row: Row, having: list[Reader]) -> str:
    """Why no format fits: with the right columns it is a value's type, else it is the columns."""
    most = max((len(reader.columns) for reader in having), default=0)
    reasons = []
    for reader in having:
        if len(reader.columns) == most:
            try:
                reader.parse(row)
            except DataError as error:
                reasons.append(f"as {reader.name}, {str(error).rstrip('.')}")
    if reasons:
        return f"no format fits: {'; '.join(reasons)}."
    expected = "; ".join(
        f"{reader.name}: {', '.join(reader.columns)}" for reader in READERS.values()
    )
    return (
        f"no format has the columns {values.listed(row)}; expected ({expected}); rename the"
        " columns, or name the format with `format:`."
    )


# --- the formats --------------------------------------------------------------------------------


def explicit_text(row: Row) -> Parsed:
    """Plain texts, the prompt in its own column (TRL, "standard" with explicit prompt)."""
    return _pair(
        values.text(row, "prompt"), values.text(row, "chosen"), values.text(row, "rejected")
    )


def explicit_conversational(row: Row) -> Parsed:
    """Messages, the prompt in its own column. A text response is one assistant message."""
    prompt = values.messages(row, "prompt")
    return _pair(prompt, values.reply(row, "chosen", prompt), values.reply(row, "rejected", prompt))


def implicit_text(row: Row) -> Parsed:
    """Two whole texts. What they share in front, up to a white space, is the prompt.

    The cut goes back to a white space because two answers often begin with the same letters
    ("Paris", "Panama"): a cut inside a word would make the prompt, and so the group of the row,
    depend on the spelling of its answers. Each response keeps at least one word of its text.
    """
    chosen, rejected = values.text(row, "chosen"), values.text(row, "rejected")
    cut = _shared_length(chosen.rstrip()[:-1], rejected.rstrip()[:-1])
    while cut and not chosen[cut - 1].isspace():
        cut -= 1
    return _pair(chosen[:cut], chosen[cut:], rejected[cut:])


def implicit_conversational(row: Row) -> Parsed:
    """Two whole conversations. The leading messages they share are the prompt.

    At least one message stays in each response, so identical conversations keep their last turn.
    """
    chosen, rejected = values.messages(row, "chosen"), values.messages(row, "rejected")
    shared = 0
    for ours, theirs in zip(chosen[:-1], rejected[:-1], strict=False):
        if ours != theirs:
            break
        shared += 1
    return _pair(chosen[:shared], chosen[shared:], rejected[shared:])


def hh_rlhf(row: Row) -> Parsed:
    r"""Two dialogues whose turns open with ``\n\nHuman:`` and ``\n\nAssistant:`` (HH-RLHF).

    The last assistant turn is the response, all before it the prompt. Where the two prompts
    differ there is none in common: the prompt is empty and each response is a whole dialogue,
    which :func:`plaudit.data.reasons.why_untrainable` names ``prompt_mismatch``. Format:
    https://huggingface.co/datasets/Anthropic/hh-rlhf
    """
    dialogues = [values.text(row, column) for column in ("chosen", "rejected")]
    heads, responses = [], []
    for column, dialogue in zip(("chosen", "rejected"), dialogues, strict=True):
        if not dialogue.startswith(_HUMAN):
            raise DataError(f"{column} does not start with {_HUMAN!r}; is this HH-RLHF text?")
        head, _, answer = dialogue.rpartition(_ASSISTANT)
        heads.append(head or dialogue)
        responses.append((Message(role="assistant", content=answer.strip() if head else ""),))
    if heads[0] == heads[1]:
        return _pair(_hh_turns(heads[0]), *responses)
    whole = [_hh_turns(head) + reply for head, reply in zip(heads, responses, strict=True)]
    return _pair((), *whole)


def ranked(row: Row) -> Parsed:
    """One prompt, K responses, and their grades if known (numbers, higher is better)."""
    prompt = values.turns(row, "prompt")
    answers = values.items(row, "responses")
    if not answers:
        raise DataError("responses is an empty list; expected at least one response.")
    responses = tuple(
        values.as_reply(value, f"responses[{index}]", prompt) for index, value in enumerate(answers)
    )
    return Parsed(prompt=prompt, responses=responses, grades=values.grades(row, len(responses)))


def unpaired(row: Row) -> Parsed:
    """One prompt, one completion, and its label if known (a number, or true for a good one)."""
    prompt = values.turns(row, "prompt")
    label = values.optional_number(row, "label", truth=True)
    return Parsed(
        prompt=prompt,
        responses=(values.reply(row, "completion", prompt),),
        grades=() if label is None else (label,),
    )


def _shared_length(one: str, other: str) -> int:
    """Characters two texts share in front, by bisection: whole-slice comparisons are fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _pair(prompt: Turns, chosen: Turns, rejected: Turns) -> Parsed:
    return Parsed(prompt=prompt, responses=(chosen, rejected), grades=(1.0, 0.0))


_HUMAN: Final = "\n\nHuman:"
_ASSISTANT: Final = "\n\nAssistant:"
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def _hh_turns(text: str) -> tuple[Message, ...]:
    """The turns of a dialogue. Turns of one role in a row become one: templates refuse them."""
    turns: list[tuple[str, str]] = []
    _, *pieces = _HH_TURN.split(text)
    for speaker, words in zip(pieces[::2], pieces[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{words.strip()}".strip())
        else:
            turns.append((role, words.strip()))
    return tuple(Message(role=role, content=content) for role, content in turns)


# --- what a first row looks like ----------------------------------------------------------------


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(turn, dict) for turn in value)


def _all_text(row: Row, *columns: str) -> bool:
    return all(isinstance(row[column], str) for column in columns)


def _all_messages(row: Row, *columns: str) -> bool:
    return all(_is_messages(row[column]) for column in columns)


def _looks_explicit_conversational(row: Row) -> bool:
    replies = (row["chosen"], row["rejected"])
    return _is_messages(row["prompt"]) and all(
        isinstance(reply, str) or _is_messages(reply) for reply in replies
    )


def _looks_implicit_text(row: Row) -> bool:
    return "prompt" not in row and _all_text(row, "chosen", "rejected") and not _looks_hh_rlhf(row)


def _looks_implicit_conversational(row: Row) -> bool:
    """Also with a text ``prompt`` that repeats the first user turn, as UltraFeedback has it."""
    if not _all_messages(row, "chosen", "rejected"):
        return False
    opening = row["chosen"][0].get("role") if row["chosen"] else None
    return "prompt" not in row or (isinstance(row["prompt"], str) and opening != "assistant")


def _looks_hh_rlhf(row: Row) -> bool:
    return (
        "prompt" not in row
        and _all_text(row, "chosen", "rejected")
        and all(row[column].startswith(_HUMAN) for column in ("chosen", "rejected"))
    )


def _looks_ranked(row: Row) -> bool:
    return isinstance(row["prompt"], (str, list)) and isinstance(row["responses"], list)


def _looks_unpaired(row: Row) -> bool:
    return isinstance(row["prompt"], (str, list)) and isinstance(row["completion"], (str, list))


def _group(parsed: Parsed) -> str:
    """Names the prompt: 16 hexadecimal digits of the SHA-256 of its roles and contents.

    White space around a text does not make another prompt. Without any prompt in common, the set
    of responses stands in for it, so that such rows do not all fall into one group.
    """
    known = _canonical(parsed.prompt)
    if not known:
        known = ["no prompt", *sorted(_as_json(_canonical(turns)) for turns in parsed.responses)]
    return hashlib.sha256(_as_json(known).encode()).hexdigest()[:16]


def _as_json(value: Any) -> str:
    # Arrow tables can hold what JSON cannot (dates); their text tells them apart well enough.
    return json.dumps(value, sort_keys=True, default=str)


def _canonical(turns: Turns) -> Any:
    if isinstance(turns, str):
        return turns.strip()
    return [
        [turn.role, turn.content.strip() if isinstance(turn.content, str) else turn.content]
        + ([dict(turn.extra)] if turn.extra else [])
        for turn in turns
    ]


READERS: Final[dict[str, Reader]] = {
    reader.name: reader
    for reader in (
        Reader(
            name="explicit_text",
            description="prompt, chosen and rejected are texts",
            columns=("prompt", "chosen", "rejected"),
            recognises=lambda row: _all_text(row, "prompt", "chosen", "rejected"),
            parse=explicit_text,
        ),
        Reader(
            name="explicit_conversational",
            description="prompt, chosen and rejected are lists of messages",
            columns=("prompt", "chosen", "rejected"),
            recognises=_looks_explicit_conversational,
            parse=explicit_conversational,
        ),
        Reader(
            name="implicit_text",
            description="chosen and rejected are texts that begin with the prompt",
            columns=("chosen", "rejected"),
            recognises=_looks_implicit_text,
            parse=implicit_text,
        ),
        Reader(
            name="implicit_conversational",
            description="chosen and rejected are whole conversations",
            columns=("chosen", "rejected"),
            optional=("prompt",),
            recognises=_looks_implicit_conversational,
            parse=implicit_conversational,
        ),
        Reader(
            name="hh_rlhf",
            description="chosen and rejected are HH-RLHF dialogues (Human:, Assistant:)",
            columns=("chosen", "rejected"),
            recognises=_looks_hh_rlhf,
            parse=hh_rlhf,
        ),
        Reader(
            name="ranked",
            description="a prompt, a list of responses, and grades for them if known",
            columns=("prompt", "responses"),
            optional=("grades",),
            recognises=_looks_ranked,
            parse=ranked,
        ),
        Reader(
            name="unpaired",
            description="a prompt, one completion, and a label for it if known",
            columns=("prompt", "completion"),
            optional=("label",),
            recognises=_looks_unpaired,
            parse=unpaired,
        ),
    )
}
"""Name of a format to its reader; a recipe chooses one with ``format:``."""
