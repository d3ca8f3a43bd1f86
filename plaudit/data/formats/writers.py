"""The table of writers: how a comparison is laid out as a row of another tool's format.

A writer is one function ``comparison -> row`` and one row of :data:`WRITERS`. What formats have in
common (pairs out of many responses, ties, plain text as turns, margins, tools, metadata) is done
by :func:`write_comparison`, which counts whatever a format cannot hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any, Final, Literal, TypeAlias

from plaudit.data.reasons import BROKEN_TURNS, SINGLE_RESPONSE, TIE, UNLABELLED
from plaudit.errors import DataError
from plaudit.types import MEDIA, Comparison, Message, Turns, as_turns

Row: TypeAlias = dict[str, Any]
Pairs: TypeAlias = Literal["all", "best-worst", "none"]

MESSAGES: Final = "messages"
SEVERAL_RESPONSES: Final = "several_responses"
SEVERAL_TURNS: Final = "several_turns"
ROLES: Final = "roles"
NOT_TEXT: Final = "not_text"
MARKERS: Final = "markers"

REFUSALS: Final[dict[str, str]] = {
    SINGLE_RESPONSE: "one response only, and the format holds pairs",
    UNLABELLED: "nothing is known of the order, and the format needs one",
    TIE: "all responses are equally good, and the format needs an order",
    SEVERAL_RESPONSES: "more than two responses, and --pairs none",
    MESSAGES: "a conversation, and the format holds plain text",
    SEVERAL_TURNS: "more than one question and one answer",
    ROLES: "turns that do not alternate between user and assistant, or other roles",
    NOT_TEXT: "a message with more than text: pictures, tool calls, names",
    MARKERS: "a text that holds the markers of the format",
    BROKEN_TURNS: "turns that its own format skips: not in turn, or the last asks nothing",
    MEDIA: "images, audio or video, of which only the text would be written",
}
"""Why a row is not written."""

TEXT_AS_TURNS: Final = "text_as_turns"
CUT_TO_PAIRS: Final = "cut_to_pairs"
CUT_TO_ONES: Final = "cut_to_single_responses"
TIED_PAIRS: Final = "tied_pairs"
GRADES_AS_ORDER: Final = "grades_as_order"
OUTER_SPACE: Final = "outer_space"
COLUMN_TAKEN: Final = "column_taken"

LOSSES: Final[dict[str, str]] = {
    TEXT_AS_TURNS: "plain text became one user turn and one assistant turn",
    CUT_TO_PAIRS: "more than two responses became pairs",
    CUT_TO_ONES: "the responses became rows of their own",
    TIED_PAIRS: "pairs of equally good responses were left out of the pairs of a row",
    GRADES_AS_ORDER: "of the grades the format holds the order alone",
    OUTER_SPACE: "white space around a turn is not kept by the format",
    COLUMN_TAKEN: "a column was left out, since the format uses its name",
    "margin_not_read": "the tool does not read the margin; the column is kept",
    "weight_not_read": "the tool does not read the weight; the column is kept",
    "tools_not_read": "the tool does not read the tools; the column is kept",
    "chat_template_kwargs_not_read": "the tool does not read them; the column is kept",
}
"""What a row that is written has lost."""


class UnfitError(Exception):
    """A comparison that a format cannot hold; its argument is a key of :data:`REFUSALS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """One format of rows.

    ``lay_out`` gets what ``holds`` says: a ``pair`` with the better response first, ``one``
    response or ``many``; all messages where ``turns`` is ``chat`` and all text where it is
    ``text``. ``reader`` reads the rows back. ``reserved`` are names that other columns may not
    have. ``reads`` are those of margin, weight, tools and chat_template_kwargs that the tool itself
    reads. ``ordered`` formats keep of the grades their order alone; ``strips`` ones lose white
    space around a turn. ``flat`` rows can stand in a CSV file. ``dataset_info`` is LLaMA-Factory's
    entry for such a file.
    """

    name: str
    description: str
    reader: str
    lay_out: Callable[[Comparison], Row]
    holds: Literal["pair", "one", "many"] = "pair"
    turns: Literal["text", "chat", "either"] = "chat"
    reserved: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    ordered: bool = True
    strips: bool = False
    flat: bool = True
    dataset_info: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Rows of one comparison, what they lost, and why there are none where there are none."""

    rows: tuple[Row, ...] = ()
    losses: tuple[str, ...] = ()
    refused: str | None = None


@dataclass(slots=True)
class Ledger:
    """What became of comparisons: ``read == used + sum(refused.values())``; ``written`` rows."""

    read: int = 0
    used: int = 0
    written: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: Written) -> None:
        """Add a comparison."""
        self.read += 1
        self.losses.update(outcome.losses)
        if outcome.refused is not None:
            self.refused[outcome.refused] += 1
        else:
            self.used += 1
            self.written += len(outcome.rows)


def choose_writer(name: str) -> Writer:
    """The writer called ``name``. Raises DataError where there is none."""
    if name not in WRITERS:
        raise DataError(f"--to {name} is no format; expected one of {', '.join(WRITERS)}.")
    return WRITERS[name]


def write_comparison(
    writer: Writer,
    comparison: Comparison,
    *,
    pairs: Pairs = "all",
    named: bool = True,
    others: Mapping[str, Any] | None = None,
) -> Written:
    """The rows of a comparison, or why there are none; nothing is lost unsaid.

    ``pairs`` says what becomes of more than two responses in a format of pairs. ``others`` are
    columns to keep beside the comparison's own, its metadata if not given. ``id`` and ``source``
    are written if ``named``, and an id wherever a comparison becomes several rows.
    """
    losses: list[str] = []
    if comparison.unusable is not None:
        return Written(refused=comparison.unusable)
    try:
        if isinstance(comparison.prompt, str) and writer.turns == "chat":
            comparison = as_turns(comparison)
            losses.append(TEXT_AS_TURNS)
        elif not isinstance(comparison.prompt, str) and writer.turns == "text":
            raise UnfitError(MESSAGES)
        pieces = list(_pieces(writer, comparison, pairs, losses))
        rows = tuple(
            _row(writer, piece, losses, named or len(pieces) > 1, others) for piece in pieces
        )
    except UnfitError as unfit:
        return Written(refused=str(unfit))
    losses += [f"{name}_not_read" for name in _shared(comparison) if name not in writer.reads]
    if writer.strips and _has_outer_space(comparison):
        losses.append(OUTER_SPACE)
    return Written(rows=rows, losses=tuple(dict.fromkeys(losses)))


def plain(turns: Turns) -> str | list[dict[str, Any]]:
    """Text, or messages as JSON has them."""
    return turns if isinstance(turns, str) else [turn.as_dict() for turn in turns]


# --- what formats have in common ----------------------------------------------------------------


def _pieces(
    writer: Writer, comparison: Comparison, pairs: Pairs, losses: list[str]
) -> Iterator[Comparison]:
    """The comparisons that are laid out, each of as many responses as the format holds."""
    if writer.holds == "one":
        yield from _ones(comparison, losses)
        return
    if not comparison.grades and (writer.holds == "pair" or writer.ordered):
        raise UnfitError(UNLABELLED if len(comparison.responses) > 1 else SINGLE_RESPONSE)
    if writer.holds == "many":
        if writer.ordered and not _are_places(comparison.grades):
            losses.append(GRADES_AS_ORDER)
        yield comparison
        return
    yield from _pairs(comparison, pairs, losses)


def _are_places(grades: Sequence[float]) -> bool:
    """Whether neighbouring grades differ by one, so that ranks say all that they say."""
    places = sorted(set(grades))
    return all(higher - lower == 1 for lower, higher in pairwise(places))


def _ones(comparison: Comparison, losses: list[str]) -> Iterator[Comparison]:
    if len(comparison.responses) == 1:
        yield comparison
        return
    losses.append(CUT_TO_ONES)
    for at, response in enumerate(comparison.responses):
        grades = comparison.grades[at : at + 1]
        yield replace(comparison, id=f"{comparison.id}-{at}", responses=(response,), grades=grades)


def _pairs(comparison: Comparison, pairs: Pairs, losses: list[str]) -> Iterator[Comparison]:
    """Pairs, the better response first."""
    grades, count = comparison.grades, len(comparison.responses)
    if count == 1:
        raise UnfitError(SINGLE_RESPONSE)
    if len(set(grades)) == 1:
        raise UnfitError(TIE)
    if count > 2 and pairs == "none":
        raise UnfitError(SEVERAL_RESPONSES)
    if pairs == "best-worst":
        places = [(grades.index(max(grades)), grades.index(min(grades)))]
    else:
        ordered = sorted(range(count), key=lambda at: -grades[at])
        places = [(i, j) for i, j in combinations(ordered, 2) if grades[i] > grades[j]]
        if len(places) < count * (count - 1) // 2:
            losses.append(TIED_PAIRS)
    if count > 2:
        losses.append(CUT_TO_PAIRS)
    for better, worse in places:
        graded = (grades[better], grades[worse])
        scores = {}
        if graded != (1.0, 0.0):
            losses.append(GRADES_AS_ORDER)
            scores = {"score_chosen": graded[0], "score_rejected": graded[1]}
        yield replace(
            comparison,
            id=comparison.id if count == 2 else f"{comparison.id}-{better}-{worse}",
            responses=(comparison.responses[better], comparison.responses[worse]),
            grades=(1.0, 0.0),
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
    taken = {*row, *writer.reserved, *_SHARED, "id", "source"}
    kept = {**(others or {}), **piece.metadata}
    for name, value in kept.items():
        if name not in taken:
            row[name] = value
        elif row.get(name) != value:
            losses.append(COLUMN_TAKEN)
    return row


_SHARED: Final = ("margin", "weight", "tools", "chat_template_kwargs")


def _shared(comparison: Comparison) -> Row:
    """The columns that every reader of plaudit's reads, where they say something."""
    columns: Row = {}
    if comparison.margin is not None:
        columns["margin"] = comparison.margin
    if comparison.weight != 1.0:
        columns["weight"] = comparison.weight
    if comparison.tools:
        columns["tools"] = [dict(tool) for tool in comparison.tools]
    if comparison.chat_template_kwargs:
        columns["chat_template_kwargs"] = dict(comparison.chat_template_kwargs)
    return columns


def _has_outer_space(comparison: Comparison) -> bool:
    turns = [comparison.prompt, *comparison.responses]
    contents = [m.content for one in turns if not isinstance(one, str) for m in one]
    return any(isinstance(text, str) and text != text.strip() for text in contents)


def _words(message: Message) -> str:
    """A message's text, where it is nothing else."""
    if message.extra or not isinstance(message.content, str):
        raise UnfitError(NOT_TEXT)
    return message.content


def _answer(response: Turns) -> str:
    """A response's text, where it is one assistant turn of text."""
    assert not isinstance(response, str)
    if len(response) != 1:
        raise UnfitError(SEVERAL_TURNS)
    if response[0].role != "assistant":
        raise UnfitError(ROLES)
    return _words(response[0])


def _dialogue(prompt: Turns) -> tuple[str, list[str]]:
    """The system text and the texts of the turns, user first and user last."""
    assert not isinstance(prompt, str)
    system = _words(prompt[0]) if prompt and prompt[0].role == "system" else ""
    turns = prompt[1:] if prompt and prompt[0].role == "system" else prompt
    roles = [turn.role for turn in turns]
    if len(turns) % 2 == 0 or roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise UnfitError(ROLES)
    return system, [_words(turn) for turn in turns]


# --- the formats --------------------------------------------------------------------------------


def explicit(pair: Comparison) -> Row:
    """The prompt in its own column (TRL)."""
    better, worse = pair.responses
    return {"prompt": plain(pair.prompt), "chosen": plain(better), "rejected": plain(worse)}


def implicit(pair: Comparison) -> Row:
    """Two whole texts or conversations (TRL, RLHFlow)."""
    whole = [_whole(pair.prompt, response) for response in pair.responses]
    return {"chosen": plain(whole[0]), "rejected": plain(whole[1])}


def _whole(prompt: Turns, response: Turns) -> Turns:
    if isinstance(prompt, str) and isinstance(response, str):
        return prompt + response
    assert not isinstance(prompt, str)
    assert not isinstance(response, str)
    return (*prompt, *response)


def unpaired(one: Comparison) -> Row:
    """One completion with its label: true and false for grades of 1 and 0 (TRL)."""
    row: Row = {"prompt": plain(one.prompt), "completion": plain(one.responses[0])}
    if one.grades:
        (grade,) = one.grades
        row["label"] = bool(grade) if grade in (0.0, 1.0) else grade
    return row


def ranked(many: Comparison) -> Row:
    """All responses and their grades: the one format that holds everything."""
    row: Row = {
        "prompt": plain(many.prompt),
        "responses": [plain(response) for response in many.responses],
    }
    return row | ({"grades": list(many.grades)} if many.grades else {})


def hh_rlhf(pair: Comparison) -> Row:
    """HH-RLHF's dialogues. Format: https://huggingface.co/datasets/Anthropic/hh-rlhf"""
    texts = [_hh_dialogue(pair.prompt) + _hh_text(_answer(r)) for r in pair.responses]
    return {"chosen": texts[0], "rejected": texts[1]}


def _hh_dialogue(prompt: Turns) -> str:
    """The dialogue up to the marker of the assistant's next turn, a space behind it."""
    system, turns = _dialogue(prompt)
    if system:
        raise UnfitError(ROLES)
    marks = ("\n\nHuman: ", "\n\nAssistant: ")
    return "".join(marks[at % 2] + _hh_text(text) for at, text in enumerate(turns)) + marks[1]


def _hh_text(text: str) -> str:
    if "\n\nHuman:" in text or "\n\nAssistant:" in text:
        raise UnfitError(MARKERS)
    return text


def alpaca(pair: Comparison) -> Row:
    """LLaMA-Factory's alpaca ranking (``data/README.md`` there)."""
    system, turns = _dialogue(pair.prompt)
    earlier = [[turns[at], turns[at + 1]] for at in range(0, len(turns) - 1, 2)]
    better, worse = (_answer(response) for response in pair.responses)
    return {
        "instruction": turns[-1],
        "chosen": better,
        "rejected": worse,
        "system": system,
        "history": earlier,
    }


def sharegpt(pair: Comparison) -> Row:
    """LLaMA-Factory's sharegpt ranking (``data/README.md`` there)."""
    system, turns = _dialogue(pair.prompt)
    named = [("system", system)] if system else []
    named += [(("human", "gpt")[at % 2], text) for at, text in enumerate(turns)]
    better, worse = (_answer(response) for response in pair.responses)
    return {
        "conversations": [{"from": name, "value": text} for name, text in named],
        "chosen": {"from": "gpt", "value": better},
        "rejected": {"from": "gpt", "value": worse},
    }


def ms_swift(pair: Comparison) -> Row:
    """ms-swift: the good conversation, and the text of the rejected answer."""
    better, worse = pair.responses
    _answer(better)
    return {"messages": plain(_whole(pair.prompt, better)), "rejected_response": _answer(worse)}


def nectar(many: Comparison) -> Row:
    """Nectar: a dialogue and its answers, rank 1 the best; equal grades have equal ranks."""
    answers = [
        {"answer": _answer(response), "rank": float(rank)}
        for response, rank in zip(many.responses, _ranks(many.grades, first=1), strict=True)
    ]
    return {"prompt": _hh_dialogue(many.prompt), "answers": answers}


def nemo(many: Comparison) -> Row:
    """NeMo-RL: a context and its completions, rank 0 the best; equal grades have equal ranks."""
    completions = [
        {"rank": rank, "completion": plain(response)}
        for response, rank in zip(many.responses, _ranks(many.grades, first=0), strict=True)
    ]
    return {"context": plain(many.prompt), "completions": completions}


def _ranks(grades: Sequence[float], *, first: int) -> list[int]:
    places = {grade: at for at, grade in enumerate(sorted(set(grades), reverse=True), first)}
    return [places[grade] for grade in grades]


def rewardbench(pair: Comparison) -> Row:
    """RewardBench: one question, two texts, and where they are from."""
    system, turns = _dialogue(pair.prompt)
    if system or len(turns) > 1:
        raise UnfitError(SEVERAL_TURNS)
    better, worse = (_answer(response) for response in pair.responses)
    return {
        "prompt": turns[0],
        "chosen": better,
        "chosen_model": pair.metadata.get("chosen_model", "unknown"),
        "rejected": worse,
        "rejected_model": pair.metadata.get("rejected_model", "unknown"),
        "subset": pair.metadata.get("subset", pair.source),
    }


_TRL: Final = frozenset({"margin", "tools", "chat_template_kwargs"})
_EVERYTHING: Final = frozenset(_SHARED)

WRITERS: Final[dict[str, Writer]] = {
    writer.name: writer
    for writer in (
        Writer(
            name="explicit_conversational",
            description="TRL: prompt, chosen and rejected as messages",
            reader="explicit_conversational",
            lay_out=explicit,
            reads=_TRL,
        ),
        Writer(
            name="explicit_text",
            description="TRL: prompt, chosen and rejected as plain texts",
            reader="explicit_text",
            lay_out=explicit,
            turns="text",
            reads=_TRL,
        ),
        Writer(
            name="implicit_conversational",
            description="TRL: chosen and rejected as whole conversations",
            reader="implicit_conversational",
            lay_out=implicit,
            reserved=frozenset({"prompt"}),
            reads=_TRL,
        ),
        Writer(
            name="implicit_text",
            description="TRL: chosen and rejected as whole texts",
            reader="implicit_text",
            lay_out=implicit,
            turns="text",
            reserved=frozenset({"prompt"}),
            reads=_TRL,
        ),
        Writer(
            name="unpaired",
            description="TRL: prompt, completion and its label",
            reader="unpaired",
            lay_out=unpaired,
            holds="one",
            turns="either",
            reserved=frozenset({"label"}),
            reads=_TRL,
            ordered=False,
        ),
        Writer(
            name="ranked",
            description="plaudit: a prompt, all responses and their grades",
            reader="ranked",
            lay_out=ranked,
            holds="many",
            turns="either",
            reserved=frozenset({"grades"}),
            reads=_EVERYTHING,
            ordered=False,
        ),
        Writer(
            name="hh_rlhf",
            description="HH-RLHF: chosen and rejected as dialogues (Human:, Assistant:)",
            reader="hh_rlhf",
            lay_out=hh_rlhf,
            reserved=frozenset({"prompt"}),
            strips=True,
        ),
        Writer(
            name="alpaca",
            description="LLaMA-Factory: alpaca ranking, with its entry in dataset_info.json",
            reader="alpaca",
            lay_out=alpaca,
            reserved=frozenset({"prompt", "input"}),
            flat=False,
            dataset_info={
                "ranking": True,
                "columns": {
                    "prompt": "instruction",
                    "system": "system",
                    "history": "history",
                    "chosen": "chosen",
                    "rejected": "rejected",
                },
            },
        ),
        Writer(
            name="sharegpt",
            description="LLaMA-Factory: sharegpt ranking, with its entry in dataset_info.json",
            reader="sharegpt",
            lay_out=sharegpt,
            reserved=frozenset({"system"}),
            flat=False,
            dataset_info={
                "formatting": "sharegpt",
                "ranking": True,
                "columns": {
                    "messages": "conversations",
                    "chosen": "chosen",
                    "rejected": "rejected",
                },
            },
        ),
        Writer(
            name="openrlhf",
            description="OpenRLHF: messages, read with --data.prompt_key and apply_chat_template",
            reader="explicit_conversational",
            lay_out=explicit,
            reads=frozenset({"margin"}),
        ),
        Writer(
            name="ms_swift",
            description="ms-swift: messages with the good answer, and rejected_response",
            reader="ms_swift",
            lay_out=ms_swift,
            flat=False,
        ),
        Writer(
            name="rlhflow",
            description="RLHFlow: chosen and rejected as whole conversations",
            reader="implicit_conversational",
            lay_out=implicit,
            reserved=frozenset({"prompt"}),
        ),
        Writer(
            name="nectar",
            description="Nectar: a dialogue and its answers with ranks, 1 the best",
            reader="nectar",
            lay_out=nectar,
            holds="many",
            strips=True,
            flat=False,
        ),
        Writer(
            name="nemo",
            description="NeMo-RL: a context and its completions with ranks, 0 the best",
            reader="nemo",
            lay_out=nemo,
            holds="many",
            flat=False,
        ),
        Writer(
            name="rewardbench",
            description="RewardBench: one question, two texts, their models and subset",
            reader="rewardbench",
            lay_out=rewardbench,
        ),
    )
}
"""Name of a format to its writer; ``plaudit data convert --to`` takes these."""
