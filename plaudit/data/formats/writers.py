"""The table of writers: how a comparison is laid out as a row of another tool's format.

A writer is one function ``comparison -> row`` and one row of :data:`WRITERS`. What formats have in
common (pairs out of many responses, ties, plain text as turns, margins, tools, metadata) is done
by :func:`write_comparison`, which counts what a format cannot hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from plaudit import registry
from plaudit.data.formats import records
from plaudit.data.formats.readers import READERS, SHARED_COLUMNS, renamed_row
from plaudit.data.formats.records import (
    UnfitError,
    Writer,
    answer_of,
    attributes_at,
    dialogue_of,
    explicit,
    plain,
)
from plaudit.data.load import open_source
from plaudit.data.reasons import SINGLE_RESPONSE, TIE, UNLABELLED
from plaudit.data.sources.files import Row, row_file_ending, write_rows
from plaudit.data.sources.read import resolve
from plaudit.errors import DataError, OutputError
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import check_new_file
from plaudit.types import Comparison, Turns, as_turns

Pairs: TypeAlias = Literal["all", "best-worst", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """Rows of one comparison, what they lost, and why there are none where there are none."""

    rows: tuple[Row, ...] = ()
    losses: tuple[str, ...] = ()
    skipped: str | None = None


@dataclass(slots=True)
class WriteCounts:
    """What became of comparisons: ``read == used + sum(skipped.values())``; ``written`` rows."""

    read: int = 0
    used: int = 0
    written: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: WriteResult) -> None:
        """Add a comparison."""
        self.read += 1
        self.losses.update(outcome.losses)
        if outcome.skipped is not None:
            self.skipped[outcome.skipped] += 1
        else:
            self.used += 1
            self.written += len(outcome.rows)


def choose_writer(name: str) -> Writer:
    """The writer called ``name``. Raises DataError where there is none."""
    if name not in WRITERS:
        raise DataError(f"--to: unknown format {name!r}; expected one of {', '.join(WRITERS)}.")
    return WRITERS[name]


def write_comparison(
    writer: Writer,
    comparison: Comparison,
    *,
    pairs: Pairs = "all",
    named: bool = True,
    others: Mapping[str, Any] | None = None,
) -> WriteResult:
    """The rows of a comparison, or why there are none; nothing is lost unsaid.

    ``pairs`` says what becomes of more than two responses in a format of pairs. ``others`` are
    columns to keep beside the comparison's own, its metadata if not given. ``id`` and ``source``
    are written if ``named``, and an id wherever a comparison becomes several rows.
    """
    losses: list[str] = []
    if comparison.unusable is not None:
        return WriteResult(skipped=comparison.unusable)
    try:
        if isinstance(comparison.prompt, str) and writer.turns == "chat":
            comparison = as_turns(comparison)
            losses.append(records.TEXT_AS_TURNS)
        elif not isinstance(comparison.prompt, str) and writer.turns == "text":
            raise UnfitError(records.MESSAGES)
        pieces = list(_pieces(writer, comparison, pairs, losses))
        rows = tuple(
            _row(writer, piece, losses, named or len(pieces) > 1, others) for piece in pieces
        )
    except UnfitError as unfit:
        return WriteResult(skipped=str(unfit))
    losses += [f"{name}_not_read" for name in _shared(pieces[0]) if name not in writer.reads]
    if writer.strips and _has_outer_space(comparison):
        losses.append(records.OUTER_SPACE)
    return WriteResult(rows=rows, losses=tuple(dict.fromkeys(losses)))


# --- what formats have in common ----------------------------------------------------------------


def _pieces(
    writer: Writer, comparison: Comparison, pairs: Pairs, losses: list[str]
) -> Iterator[Comparison]:
    """The comparisons that are laid out, each of as many responses as the format holds."""
    if writer.holds == "one":
        return _ones(comparison, losses)
    if not comparison.grades and (writer.holds == "pair" or writer.ordered):
        raise UnfitError(UNLABELLED if len(comparison.responses) > 1 else SINGLE_RESPONSE)
    if writer.holds == "pair":
        return _pairs(comparison, pairs, losses)
    # Where neighbouring grades differ by one, ranks say all that they say of the order, but only
    # labels of good and bad are clear without the number itself.
    places = sorted(set(comparison.grades))
    uneven = any(higher - lower != 1 for lower, higher in pairwise(places))
    if writer.ordered and (uneven or (comparison.rated and places != [0.0, 1.0])):
        losses.append(records.GRADES_AS_ORDER)
    return iter([comparison])


def _ones(comparison: Comparison, losses: list[str]) -> Iterator[Comparison]:
    if len(comparison.responses) == 1:
        yield comparison
        return
    losses.append(records.CUT_TO_ONES)
    if comparison.soft_label is not None:
        losses.append(records.SOFT_LABEL_DROPPED)
    for at, response in enumerate(comparison.responses):
        grades = comparison.grades[at : at + 1]
        yield replace(
            comparison,
            id=f"{comparison.id}-{at}",
            responses=(response,),
            grades=grades,
            soft_label=None,
            attributes=attributes_at(comparison.attributes, [at]),
        )


def _pairs(comparison: Comparison, pairs: Pairs, losses: list[str]) -> Iterator[Comparison]:
    """Pairs, the better response first."""
    grades, count = comparison.grades, len(comparison.responses)
    if count == 1:
        raise UnfitError(SINGLE_RESPONSE)
    if len(set(grades)) == 1:
        raise UnfitError(TIE)
    if count > 2 and pairs == "none":
        raise UnfitError(records.SEVERAL_RESPONSES)
    if pairs == "best-worst":
        places = [(grades.index(max(grades)), grades.index(min(grades)))]
    else:
        ordered = sorted(range(count), key=lambda at: -grades[at])
        places = [(i, j) for i, j in combinations(ordered, 2) if grades[i] > grades[j]]
        if len(places) < count * (count - 1) // 2:
            losses.append(records.TIED_PAIRS)
    if count > 2:
        losses.append(records.CUT_TO_PAIRS)
    for better, worse in places:
        graded = (grades[better], grades[worse])
        scores = {}
        if graded != (1.0, 0.0):
            losses.append(records.GRADES_AS_ORDER)
            scores = {"score_chosen": graded[0], "score_rejected": graded[1]}
        yield replace(
            comparison,
            id=comparison.id if count == 2 else f"{comparison.id}-{better}-{worse}",
            responses=(comparison.responses[better], comparison.responses[worse]),
            grades=(1.0, 0.0),
            attributes=attributes_at(comparison.attributes, [better, worse]),
            metadata={**comparison.metadata, **scores},
        )


def _row(
    writer: Writer,
    piece: Comparison,
    losses: list[str],
    named: bool,
    others: Mapping[str, Any] | None,
) -> Row:
    row = writer.lay_out(piece)
    row |= {"id": piece.id, "source": piece.source} if named else {}
    row |= _shared(piece)
    own = {*READERS[writer.reader].optional, *writer.reserved}
    taken = {*row, *own, *_SHARED, "id", "source"}
    kept = {**(others or {}), **piece.metadata}
    for name, value in kept.items():
        if name not in taken:
            row[name] = value
        elif row.get(name) != value:
            losses.append(records.COLUMN_TAKEN)
    return row


_SHARED: Final = (
    *("margin", "weight", "soft_label", "attributes"),
    *("tools", "chat_template_kwargs"),
)


def _shared(comparison: Comparison) -> Row:
    """The columns that every reader of plaudit's reads, where they say something."""
    columns: Row = {
        "margin": comparison.margin,
        "weight": None if comparison.weight == 1.0 else comparison.weight,
        "soft_label": comparison.soft_label,
        "attributes": {name: list(some) for name, some in comparison.attributes.items()},
        "tools": [dict(tool) for tool in comparison.tools or ()],
        "chat_template_kwargs": dict(comparison.chat_template_kwargs),
    }
    return {name: value for name, value in columns.items() if value not in (None, [], {})}


def _has_outer_space(comparison: Comparison) -> bool:
    turns = [comparison.prompt, *comparison.responses]
    contents = [m.content for one in turns if not isinstance(one, str) for m in one]
    return any(isinstance(text, str) and text != text.strip() for text in contents)


# --- the formats --------------------------------------------------------------------------------


def implicit(pair: Comparison) -> Row:
    """Two whole texts or conversations (TRL, RLHFlow)."""
    chosen, rejected = (plain(_whole(pair.prompt, response)) for response in pair.responses)
    return {"chosen": chosen, "rejected": rejected}


def _whole(prompt: Turns, response: Turns) -> Turns:
    return prompt + response  # type: ignore[operator]  # both are text, or both are messages


def unpaired(one: Comparison) -> Row:
    """One completion with its label: true and false for grades of 1 and 0 (TRL)."""
    row: Row = {"prompt": plain(one.prompt), "completion": plain(one.responses[0])}
    if one.grades:
        (grade,) = one.grades
        row["label"] = bool(grade) if grade in (0.0, 1.0) else grade
    return row


def ranked(many: Comparison) -> Row:
    """All responses and their grades: the one format that holds everything."""
    row = {"prompt": plain(many.prompt), "responses": list(map(plain, many.responses))}
    return row | ({"grades": list(many.grades)} if many.grades else {})


def hh_rlhf(pair: Comparison) -> Row:
    """HH-RLHF's dialogues. Format: https://huggingface.co/datasets/Anthropic/hh-rlhf"""
    head = _hh_dialogue(pair.prompt)
    chosen, rejected = (head + _hh_text(answer_of(response)) for response in pair.responses)
    return {"chosen": chosen, "rejected": rejected}


def _hh_dialogue(prompt: Turns) -> str:
    """The dialogue up to the marker of the assistant's next turn, a space behind it."""
    system, turns = dialogue_of(prompt)
    if system:
        raise UnfitError(records.ROLES)
    marks = ("\n\nHuman: ", "\n\nAssistant: ")
    return "".join(marks[at % 2] + _hh_text(text) for at, text in enumerate(turns)) + marks[1]


def _hh_text(text: str) -> str:
    if "\n\nHuman:" in text or "\n\nAssistant:" in text:
        raise UnfitError(records.MARKERS)
    return text


def ms_swift(pair: Comparison) -> Row:
    """ms-swift: the good conversation, and the text of the rejected answer."""
    better, worse = pair.responses
    answer_of(better)
    return {"messages": plain(_whole(pair.prompt, better)), "rejected_response": answer_of(worse)}


def nectar(many: Comparison) -> Row:
    """Nectar: a dialogue and its answers, rank 1 the best; equal grades have equal ranks."""
    answers = [
        {"answer": answer_of(response), "rank": rank + 1.0}
        for response, rank in zip(many.responses, _ranks(many.grades), strict=True)
    ]
    return {"prompt": _hh_dialogue(many.prompt), "answers": answers}


def nemo(many: Comparison) -> Row:
    """NeMo-RL: a context and its completions, rank 0 the best; equal grades have equal ranks."""
    completions = [
        {"rank": rank, "completion": plain(response)}
        for response, rank in zip(many.responses, _ranks(many.grades), strict=True)
    ]
    return {"context": plain(many.prompt), "completions": completions}


def _ranks(grades: Sequence[float]) -> list[int]:
    places = sorted(set(grades), reverse=True)
    return [places.index(grade) for grade in grades]


def rewardbench(pair: Comparison) -> Row:
    """RewardBench: one question, two texts, and where they are from."""
    system, turns = dialogue_of(pair.prompt)
    if system or len(turns) > 1:
        raise UnfitError(records.SEVERAL_TURNS)
    better, worse = (answer_of(response) for response in pair.responses)
    return {
        "prompt": turns[0],
        "chosen": better,
        "chosen_model": pair.metadata.get("chosen_model", "unknown"),
        "rejected": worse,
        "rejected_model": pair.metadata.get("rejected_model", "unknown"),
        "subset": pair.metadata.get("subset", pair.source),
    }


_trl = partial(Writer, reads=frozenset({"margin", "tools", "chat_template_kwargs"}))

WRITERS: Final[dict[str, Writer]] = {
    writer.name: writer
    for writer in (
        _trl(
            name="explicit_conversational",
            description="TRL: prompt, chosen and rejected as messages",
            lay_out=explicit,
        ),
        _trl(
            name="explicit_text",
            description="TRL: prompt, chosen and rejected as plain text",
            lay_out=explicit,
            turns="text",
        ),
        _trl(
            name="implicit_conversational",
            description="TRL: chosen and rejected as whole conversations",
            lay_out=implicit,
        ),
        _trl(
            name="implicit_text",
            description="TRL: chosen and rejected as whole conversations in plain text",
            lay_out=implicit,
            turns="text",
            reserved=frozenset({"prompt"}),
        ),
        _trl(
            name="unpaired",
            description="TRL: prompt, completion and label (unpaired)",
            lay_out=unpaired,
            holds="one",
            turns="either",
            ordered=False,
        ),
        Writer(
            name="ranked",
            description="plaudit: a prompt, all responses and their grades",
            lay_out=ranked,
            holds="many",
            turns="either",
            reads=frozenset(_SHARED),
            ordered=False,
        ),
        Writer(
            name="hh_rlhf",
            description="HH-RLHF: chosen and rejected as dialogues (Human:, Assistant:)",
            lay_out=hh_rlhf,
            reserved=frozenset({"prompt"}),
            strips=True,
        ),
        *registry.every("row_writer").values(),
        Writer(
            name="ms_swift",
            description="ms-swift: messages with the preferred response, and rejected_response",
            lay_out=ms_swift,
            flat=False,
        ),
        Writer(
            name="rlhflow",
            description="RLHFlow: chosen and rejected as whole conversations",
            reader_name="implicit_conversational",
            lay_out=implicit,
        ),
        Writer(
            name="nectar",
            description="Nectar: a dialogue and its ranked answers, 1 is best",
            lay_out=nectar,
            holds="many",
            strips=True,
            flat=False,
        ),
        Writer(
            name="nemo",
            description="NeMo-RL: a context and its ranked completions, 0 is best",
            lay_out=nemo,
            holds="many",
            flat=False,
        ),
        Writer(
            name="rewardbench",
            description="RewardBench: a prompt, two texts, their models and the subset",
            lay_out=rewardbench,
        ),
    )
}
"""Name of a format to its writer; ``plaudit data convert --to`` takes these."""


# --- a source in another format -----------------------------------------------------------------


def convert(source: Source, out: Path, writer: Writer, *, pairs: Pairs = "all") -> WriteCounts:
    """Write every row of ``source`` to ``out`` as ``writer`` lays it out; columns are kept.

    Raises:
        DataError: a row cannot be read, or no row can be written.
        OutputError: ``out`` is there already, is of a kind that cannot hold the format, or cannot
            be written.
    """
    check_out(out, writer)
    source = resolve(source)
    return write_file(out, writer, _outcomes(source, writer, pairs))


def check_out(out: Path, writer: Writer) -> None:
    """Raises OutputError where ``out`` cannot take rows of this format."""
    check_new_file(out)
    if row_file_ending(out) == ".csv" and not writer.flat:
        raise OutputError(
            f"--out {out}: CSV cannot hold the lists of the format {writer.name}; choose a name "
            "that ends in .jsonl."
        )
    if writer.check_out is not None:
        writer.check_out(out)


def write_file(out: Path, writer: Writer, outcomes: Iterable[WriteResult]) -> WriteCounts:
    """Write the rows of all outcomes to a file that :func:`check_out` let pass.

    Raises:
        DataError: there is not one row.
        OutputError: it cannot be written.
    """
    counts = WriteCounts()

    def rows() -> Iterator[Row]:
        for outcome in outcomes:
            counts.count(outcome)
            yield from outcome.rows
        if not counts.written:
            reasons = "; ".join(
                f"{count} {reason} ({records.SKIP_REASONS.get(reason, reason)})"
                for reason, count in counts.skipped.items()
            )
            raise DataError(
                f"none of the {counts.read} rows can be written: {reasons or 'no rows'}."
            )

    write_rows(out, rows())
    if writer.describe is not None:
        writer.describe(out)
    return counts


def _outcomes(source: Source, writer: Writer, pairs: Pairs) -> Iterator[WriteResult]:
    opened = open_source(source)
    own = {*opened.reader.columns, *opened.reader.optional, *SHARED_COLUMNS}
    for _, _, row, comparison in opened.rows:
        others = {
            name: value
            for name, value in renamed_row(source, row).items()
            if name not in own and value is not None
        }
        # An id that the file does not have would be one more column to explain.
        named = row.get("id") is not None or row.get("source") is not None
        yield write_comparison(writer, comparison, pairs=pairs, named=named, others=others)
