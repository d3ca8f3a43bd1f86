"""Rows to comparisons: the table of readers, and what all formats have in common.

A reader is one function ``row -> ParsedRow`` and one row of :data:`READERS`. Everything formats
have in common (margins, tools, ids, metadata, the prompt group) is added by :func:`to_comparison`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from plaudit import registry
from plaudit.data.formats import published, values
from plaudit.data.formats.published import ASSISTANT, HUMAN, hh_turns, pair_by_lead
from plaudit.data.formats.records import (
    ParsedRow,
    Reader,
    assistant_turn,
    attributes_at,
    pair,
    pair_of_conversations,
    reader_of,
    user_turn,
    with_system_turn,
)
from plaudit.data.formats.values import Row
from plaudit.data.reasons import TIE
from plaudit.errors import DataError, did_you_mean
from plaudit.recipe.schema import Source
from plaudit.types import MEDIA, MEDIA_COLUMNS, Comparison, Turns, has_media, media_columns

SHARED_COLUMNS: Final = MEDIA_COLUMNS | frozenset(
    {
        *("margin", "weight", "soft_label", "attributes"),
        *("tools", "chat_template_kwargs", "id", "source"),
    }
)
"""Columns that any format may have."""

PROMPT_COLUMNS: Final = frozenset({"prompt", "instruction", "question", "input"})
"""Columns beside two texts from which another format reads the prompt."""

StrengthUse: TypeAlias = Literal["ignore", "margin", "weight", "soft_label"]


def choose_reader(row: Row, *, where: str, name: str | None = None) -> Reader:
    """The reader called ``name``, else the one that recognises ``row``, the first of its source.

    Raises:
        DataError: there is no such reader, or not exactly one recognises the row.
    """
    if name in READERS:
        return READERS[name]
    if name is not None:
        hint = did_you_mean(name, READERS, f"expected one of {', '.join(READERS)}.")
        raise DataError(f"unknown format {name!r}; {hint}")
    having = [reader for reader in READERS.values() if set(reader.columns) <= set(row)]
    matches = [reader for reader in having if reader.recognises(row)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " and ".join(reader.name for reader in matches)
        raise DataError(
            f"{where}: the columns {values.listed(row)} match several formats: {names}; choose "
            f"one, for example `format: {matches[0].name}`."
        )
    raise DataError(f"{where}: {_misfit(row, having)}")


def check_same_format(reader: Reader, row: Row, *, where: str) -> None:
    """Whether a later row is still one of ``reader``'s, which the first row chose.

    Some rows of another format can be read, but as something else: a prompt in a column of its own
    would become metadata.

    Raises:
        DataError: it is not, and another format recognises it.
    """
    if reader.recognises(row):
        return
    other = next((one for one in READERS.values() if one.recognises(row)), None)
    if other is not None:
        raise DataError(
            f"{where}: this row has the format {other.name}, but the first row has "
            f"{reader.name}; use one file per format, or set `format` for all rows."
        )


def to_comparison(
    reader: Reader,
    row: Row,
    *,
    number: int,
    where: str,
    source: str,
    strength_use: StrengthUse = "ignore",
) -> Comparison:
    """The comparison of one row; ``number`` (from 1) and ``source`` name it when it has no id.

    ``strength_use`` says what the strength of the preference (:func:`strength_of`) becomes: the
    margin, where the row has none of its own, or a factor of its weight; a row that would weigh
    nothing is a tie. ``soft_label`` takes the share of annotators who agree in place of the
    strength, where the row has no soft label of its own. Attributes of the row's own column go
    before those of its format. Checks only types, never usefulness: see
    :func:`plaudit.data.reasons.why_untrainable`.

    Raises:
        DataError: a column is missing or holds a value of the wrong type; it starts with ``where``.
    """
    own = {*reader.columns, *reader.optional, *SHARED_COLUMNS}
    try:
        parsed = reader.parse(row)
        strength = strength_of(parsed, row)
        margin = values.optional_number(row, "margin")
        weight = values.weight(row)
        soft_label = values.soft_label(row, len(parsed.responses))
        attributes = {**parsed.attributes, **values.attributes(row, len(parsed.responses))}
        if strength_use != "ignore" and len(parsed.responses) > 2:
            raise DataError(
                f"the row has {len(parsed.responses)} responses, but `preference_strength: "
                f"{strength_use}` needs pairs; set preference_strength to ignore."
            )
        if strength_use == "margin" and margin is None:
            margin = strength
        if strength_use == "soft_label" and soft_label is None:
            soft_label = parsed.agreement
        unusable = TIE if strength_use == "weight" and strength == 0 else parsed.unusable
        if strength_use == "weight" and strength:
            weight *= strength
        # The one reason that scoring asks for too goes before the others.
        if media_columns(row) or has_media(parsed.prompt, *parsed.responses):
            unusable = MEDIA
        return Comparison(
            id=values.name(row, "id") or f"{source}:{number}",
            prompt=parsed.prompt,
            responses=parsed.responses,
            grades=parsed.grades,
            group=_group(parsed),
            source=values.name(row, "source") or source,
            where=where,
            margin=margin,
            weight=weight,
            soft_label=soft_label,
            rated=parsed.rated,
            attributes=attributes_at(attributes, range(len(parsed.responses))),
            tools=values.tools(row),
            chat_template_kwargs=values.from_json(row, "chat_template_kwargs", dict) or {},
            metadata={
                name: value
                for name, value in row.items()
                if name not in own and isinstance(value, (str, int, float, bool))
            }
            | dict(parsed.metadata),
            unusable=unusable,
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def with_system(reader: Reader) -> Reader:
    """The reader, which also reads column ``system`` as the first message of the prompt."""

    def parse(row: Row) -> ParsedRow:
        parsed = reader.parse(row)
        system = values.optional_text(row, "system")
        if system is None:
            return parsed
        if isinstance(parsed.prompt, str):
            raise DataError(
                "the column system holds a system message, but the prompt is plain text; read "
                "the prompt as a user turn with `columns: {question: prompt}`, or ignore the "
                "column with `columns: {system: null}`."
            )
        if parsed.prompt and parsed.prompt[0].role == "system":
            raise DataError(
                "the column system holds a system message, but the prompt already starts with "
                "one; ignore the column with `columns: {system: null}`."
            )
        return replace(parsed, prompt=with_system_turn(system, parsed.prompt))

    return replace(reader, optional=(*reader.optional, "system"), parse=parse)


def strength_of(parsed: ParsedRow, row: Row) -> float | None:
    """How clear the preference is: the format's own measure, else how far two scores lie apart.

    ``score_chosen`` and ``score_rejected`` are the columns of binarised data sets. Scores that
    speak against the label make nothing clear: 0.
    """
    if parsed.strength is not None:
        return parsed.strength
    scores = [row.get(column) for column in ("score_chosen", "score_rejected")]
    if any(isinstance(score, bool) or not isinstance(score, (int, float)) for score in scores):
        return None
    chosen, rejected = (values.as_number(score, "score_chosen") for score in scores)
    return max(chosen - rejected, 0.0)


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
        return f"no format matches: {'; '.join(reasons)}."
    near = sorted(READERS.values(), key=lambda reader: -len(row.keys() & set(reader.columns)))
    expected = "; ".join(f"{reader.name}: {', '.join(reader.columns)}" for reader in near[:_NEAR])
    others = ", ".join(reader.name for reader in near[_NEAR:])
    return (
        f"no format has the columns {values.listed(row)}; expected ({expected}; or {others}); "
        "map the columns with `columns:`, or set `format:`."
    )


_NEAR: Final = 4
"""Formats whose columns a message spells out: those that have most of the row's."""


# --- the prompt group ---------------------------------------------------------------------------


def _group(parsed: ParsedRow) -> str:
    """Names the prompt: 16 hexadecimal digits of the SHA-256 of its roles and contents.

    White space around a text does not make another prompt. Without any prompt in common, the set
    of responses stands in for it, so that such rows do not all fall into one group.
    """
    known = canonical(parsed.prompt)
    if not known:
        known = ["no prompt", *sorted(_as_json(canonical(turns)) for turns in parsed.responses)]
    return hashlib.sha256(_as_json(known).encode()).hexdigest()[:16]


def _as_json(value: Any) -> str:
    # Arrow tables can hold what JSON cannot (dates); their text tells them apart well enough.
    return json.dumps(value, sort_keys=True, default=str)


def canonical(turns: Turns) -> Any:
    """A text with its roles and tool calls, as JSON has them, without white space at the ends."""
    if isinstance(turns, str):
        return turns.strip()
    return [
        [turn.role, turn.content.strip() if isinstance(turn.content, str) else turn.content]
        + ([dict(turn.extra)] if turn.extra else [])
        for turn in turns
    ]


# --- columns and tags under other names ---------------------------------------------------------


def check_names(source: Source) -> None:
    """Whether the source's columns and tags are names that some reader knows.

    Any column may be set to null, which leaves it out.

    Raises:
        DataError: one is not.
    """
    named = READERS.get(source.format or "")
    known = _known_columns(READERS.values() if named is None else [named])
    where = f"`columns` of {source.path}"
    what = "a column of any format" if named is None else f"a column of the format {named.name}"
    read = {ours: theirs for ours, theirs in source.columns.items() if theirs is not None}
    _check_known(read, known, where, what)
    tags = {tag for reader in READERS.values() for tag in reader.tags}
    _check_known(source.tags, tags, f"`tags` of {source.path}", "a tag")


def _known_columns(readers: Iterable[Reader]) -> set[str]:
    known = {*SHARED_COLUMNS, "score_chosen", "score_rejected", "system"}
    for reader in readers:
        known |= {*reader.columns, *reader.optional}
    return known


def mapped_columns(source: Source) -> set[str]:
    """The columns that ``columns`` names and some row must have.

    A column that some format reads may be set to null whether it is there or not.
    """
    known = _known_columns(READERS.values())
    return {
        ours if theirs is None else theirs
        for ours, theirs in source.columns.items()
        if theirs is not None or ours not in known
    }


def renamed_row(source: Source, row: dict[str, Any]) -> dict[str, Any]:
    """One row under the readers' names; what ``columns`` sets to null is left out."""
    if not source.columns and not source.tags:
        return row
    moved = {*source.columns.values(), *source.columns}
    named = {name: value for name, value in row.items() if name not in moved}
    for ours, theirs in source.columns.items():
        if theirs is not None and theirs in row:
            named[ours] = row[theirs]
    for reader in READERS.values() if source.tags else ():
        if reader.rename_tags is not None:
            named = reader.rename_tags(named, source.tags)
    return named


def _check_known(names: Mapping[str, Any], known: set[str], where: str, what: str) -> None:
    for name in names:
        if name not in known:
            hint = did_you_mean(name, sorted(known), f"expected one of {', '.join(sorted(known))}.")
            raise DataError(f"{where}: {name} is not {what}; {hint}")


# --- the formats --------------------------------------------------------------------------------


def explicit_text(row: Row) -> ParsedRow:
    """Plain texts, the prompt in its own column (TRL, "standard" with explicit prompt)."""
    return pair(
        values.text(row, "prompt"), values.text(row, "chosen"), values.text(row, "rejected")
    )


def explicit_conversational(row: Row) -> ParsedRow:
    """Messages, the prompt in its own column. A text response is one assistant message."""
    prompt = values.messages(row, "prompt")
    return pair(prompt, values.reply(row, "chosen", prompt), values.reply(row, "rejected", prompt))


def implicit_text(row: Row) -> ParsedRow:
    """Two whole texts. What they share in front, up to a white space, is the prompt.

    The cut goes back to a white space because two answers often begin with the same letters
    ("Paris", "Panama"): a cut inside a word would make the prompt, and so the group of the row,
    depend on the spelling of its answers. Each response keeps at least one word of its text.
    """
    chosen, rejected = values.text(row, "chosen"), values.text(row, "rejected")
    cut = _shared_length(chosen.rstrip()[:-1], rejected.rstrip()[:-1])
    while cut and not chosen[cut - 1].isspace():
        cut -= 1
    return pair(chosen[:cut], chosen[cut:], rejected[cut:])


def implicit_conversational(row: Row) -> ParsedRow:
    """Two whole conversations. The leading messages they share are the prompt."""
    return pair_of_conversations(values.messages(row, "chosen"), values.messages(row, "rejected"))


def hh_rlhf(row: Row) -> ParsedRow:
    r"""Two dialogues whose turns open with ``\n\nHuman:`` and ``\n\nAssistant:`` (HH-RLHF).

    The last assistant turn is the response, all before it the prompt. Where the two prompts
    differ there is none in common: the prompt is empty and each response is a whole dialogue,
    which :func:`plaudit.data.reasons.why_untrainable` names ``prompt_mismatch``. Format:
    https://huggingface.co/datasets/Anthropic/hh-rlhf
    """
    heads, responses = [], []
    for column in _ANSWERS:
        dialogue = values.text(row, column)
        if not dialogue.startswith(HUMAN):
            raise DataError(
                f"{column} does not start with {HUMAN!r}; expected a dialogue in the HH-RLHF "
                "format."
            )
        head, _, answer = dialogue.rpartition(ASSISTANT)
        heads.append(head or dialogue)
        responses.append(assistant_turn(answer.strip() if head else ""))
    if heads[0] == heads[1]:
        return pair(hh_turns(heads[0]), *responses)
    whole = [hh_turns(head) + reply for head, reply in zip(heads, responses, strict=True)]
    return pair((), *whole)


def ranked(row: Row) -> ParsedRow:
    """One prompt, K responses, and their grades if known (numbers, higher is better)."""
    prompt = values.turns(row, "prompt")
    answers = values.items(row, "responses")
    if not answers:
        raise DataError("responses is an empty list; expected at least one response.")
    responses = tuple(
        values.as_reply(value, f"responses[{index}]", prompt) for index, value in enumerate(answers)
    )
    grades = values.grades(row, len(responses))
    strength = abs(grades[0] - grades[1]) if len(grades) == 2 else None
    return ParsedRow(
        prompt=prompt, responses=responses, grades=grades, rated=True, strength=strength
    )


def unpaired(row: Row) -> ParsedRow:
    """One prompt, one completion, and its label if known (a number, or true for a good one)."""
    prompt = values.turns(row, "prompt")
    label = values.optional_number(row, "label", truth=True)
    return ParsedRow(
        prompt=prompt,
        responses=(values.reply(row, "completion", prompt),),
        grades=() if label is None else (label,),
        rated=True,
    )


def _shared_length(one: str, other: str) -> int:
    """Characters two texts share in front, by bisection: whole-slice comparisons are fast."""
    lengths = range(1, min(len(one), len(other)) + 1)
    return bisect_left(lengths, True, key=lambda length: one[:length] != other[:length])


def ms_swift(row: Row) -> ParsedRow:
    """ms-swift: a conversation with its good answer, and the answer that was rejected.

    A rejected text stands against the last turn. A list of messages stands against all turns after
    the last question, or is a whole conversation if it opens with one.
    """
    whole = values.messages(row, "messages")
    if not whole or whole[-1].role != "assistant":
        raise DataError(
            "messages does not end with an assistant turn; expected the preferred response as "
            "the last message."
        )
    rejected = values.value_of(row, "rejected_response")
    if isinstance(rejected, str):
        return pair(whole[:-1], whole[-1:], assistant_turn(rejected))
    other = values.messages(row, "rejected_response")
    if other and other[0].role in ("system", "user"):
        return pair_of_conversations(whole, other)
    cut = max((n for n, turn in enumerate(whole, 1) if turn.role == "user"), default=0)
    return pair(whole[:cut], whole[cut:], other)


def ms_swift_messages(row: Row) -> ParsedRow:
    """ms-swift: two whole conversations, the good one under ``messages``."""
    return pair_of_conversations(
        values.messages(row, "messages"), values.messages(row, "rejected_messages")
    )


def question(row: Row) -> ParsedRow:
    """A question (or input), perhaps under a system text, and two texts, as in the Orca pairs."""
    column = "question" if "question" in row else "input"
    asked = user_turn(values.text(row, column))
    prompt = with_system_turn(values.optional_text(row, "system"), asked)
    return pair_by_lead(row, prompt, _ANSWERS, 1)


# --- what a first row looks like ----------------------------------------------------------------


def _without_prompt_column(row: Row) -> bool:
    """Where another format reads a column beside two texts as the prompt, it is that format."""
    return not PROMPT_COLUMNS & row.keys()


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(HUMAN)


def _repeats_no_answer(row: Row) -> bool:
    """Also with a text ``prompt`` that repeats the first user turn, as UltraFeedback has it."""
    opening = row["chosen"][0].get("role") if row["chosen"] else None
    return "prompt" not in row or (isinstance(row["prompt"], str) and opening != "assistant")


def _asks_in_question(row: Row) -> bool:
    asks = [row[column] for column in ("question", "input") if column in row]
    return (
        bool(asks)
        and isinstance(asks[0], str)
        and "prompt" not in row
        and "instruction" not in row
        and not row["chosen"].startswith(HUMAN)
    )


_ANSWERS: Final = ("chosen", "rejected")

_text = partial(values.all_of, values.is_text)
_messages = partial(values.all_of, values.is_messages)
_text_or_list = partial(values.all_of, values.is_text_or_list)

READERS: Final[dict[str, Reader]] = {
    one.name: one
    for one in (
        reader_of(
            explicit_text,
            _text("prompt", *_ANSWERS),
            when=lambda row: not published.is_rewardbench(row),
        ),
        reader_of(
            explicit_conversational,
            _messages("prompt") | values.all_of(values.is_turns, *_ANSWERS),
        ),
        reader_of(
            implicit_text,
            _text(*_ANSWERS),
            when=lambda row: (
                _without_prompt_column(row) and not all(_is_dialogue(row[c]) for c in _ANSWERS)
            ),
        ),
        reader_of(
            implicit_conversational,
            _messages(*_ANSWERS),
            when=_repeats_no_answer,
            optional=("prompt",),
        ),
        reader_of(hh_rlhf, values.all_of(_is_dialogue, *_ANSWERS), when=_without_prompt_column),
        reader_of(
            ranked,
            _text_or_list("prompt") | values.all_of(values.is_list, "responses"),
            optional=("grades",),
        ),
        reader_of(unpaired, _text_or_list("prompt", "completion"), optional=("label",)),
        *registry.every("row_format").values(),
        reader_of(ms_swift, _messages("messages") | _text_or_list("rejected_response")),
        reader_of(ms_swift_messages, _messages("messages", "rejected_messages")),
        reader_of(
            question,
            _text(*_ANSWERS),
            when=_asks_in_question,
            optional=("question", "input", "system"),
        ),
        *published.READERS,
    )
}
"""Name of a format to its reader; a recipe chooses one with ``format:``."""
