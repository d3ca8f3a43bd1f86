"""What a format is: a reader takes rows apart, a writer lays comparisons out as rows.

Formats of other tools lie in ``interop/<tool>/`` and are found through :mod:`plaudit.registry`
(``row_format`` and ``row_writer``). They need this module and ``values.py`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from plaudit.data.formats.values import Looks, Row
from plaudit.data.reasons import BROKEN_TURNS, SINGLE_RESPONSE, TIE, UNLABELLED
from plaudit.types import MEDIA, Comparison, Message, Turns

Messages: TypeAlias = tuple[Message, ...]

# --- readers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRow:
    """What a reader takes out of a row. ``grades``: higher is better, empty when unknown.

    ``rated`` says that a grade means something by itself and not only by its order. ``strength`` is
    how clear a preference between two responses is, in the format's own units, 0 or more;
    ``agreement`` is the share of annotators who prefer the better one. ``attributes`` are named
    ratings, for each one number per response, None where it is missing.
    ``unusable`` is a key of :data:`plaudit.data.reasons.EXPLANATIONS` where the row is well formed
    and no comparison to learn from. ``metadata`` is more to keep beside it.
    """

    prompt: Turns
    responses: tuple[Turns, ...]
    grades: tuple[float, ...]
    rated: bool = False
    strength: float | None = None
    agreement: float | None = None
    attributes: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    unusable: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One format of rows.

    ``columns`` must be there, each with a value that looks as said, and ``optional`` may be;
    neither goes to ``metadata``. ``parse`` raises a DataError that names the column; where the row
    stands is added for it. ``when`` asks more of a row, so that at most one reader recognises it.
    ``rename_tags`` reads the ``tags`` of a source (those that the format knows) and gives the row
    under the reader's own keys and roles.
    """

    name: str
    columns: Mapping[str, Looks]
    parse: Callable[[Row], ParsedRow]
    when: Callable[[Row], bool] = lambda row: True
    optional: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()
    rename_tags: Callable[[Row, Mapping[str, str | None]], dict[str, Any]] | None = None

    def recognises(self, row: Row) -> bool:
        """Whether a row has the columns, with values of their types."""
        return (
            row.keys() >= self.columns.keys()
            and all(looks(row[column]) for column, looks in self.columns.items())
            and self.when(row)
        )


def reader_of(
    parse: Callable[[Row], ParsedRow],
    columns: Mapping[str, Looks],
    *,
    when: Callable[[Row], bool] = lambda row: True,
    optional: tuple[str, ...] = (),
) -> Reader:
    """A reader named like its function."""
    return Reader(name=parse.__name__, columns=columns, parse=parse, when=when, optional=optional)


def attributes_at(
    attributes: Mapping[str, tuple[float | None, ...]], places: Iterable[int]
) -> dict[str, tuple[float | None, ...]]:
    """Those of the responses at ``places``, in their order; without any number, none is left."""
    order = list(places)
    taken = {name: tuple(numbers[at] for at in order) for name, numbers in attributes.items()}
    return {name: some for name, some in taken.items() if any(n is not None for n in some)}


def pair(prompt: Turns, chosen: Turns, rejected: Turns) -> ParsedRow:
    """A prompt with its better and its worse response."""
    return ParsedRow(prompt=prompt, responses=(chosen, rejected), grades=(1.0, 0.0))


def pair_of_conversations(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> ParsedRow:
    """Two whole conversations, better first. The leading messages they share are the prompt.

    At least one message stays in each response, so identical conversations keep their last turn.
    """
    both = zip(chosen[:-1], rejected[:-1], strict=False)
    shared = len(list(takewhile(lambda turns: turns[0] == turns[1], both)))
    return pair(chosen[:shared], chosen[shared:], rejected[shared:])


def user_turn(text: str) -> Messages:
    """One user turn."""
    return (Message(role="user", content=text),)


def assistant_turn(text: str) -> Messages:
    """One assistant turn."""
    return (Message(role="assistant", content=text),)


def with_system_turn(system: str | None, turns: Messages) -> Messages:
    """The turns, after a system text if there is one."""
    return (Message(role="system", content=system), *turns) if system else turns


def is_sharegpt(value: Any) -> bool:
    """Whether a value looks like one ShareGPT turn."""
    return isinstance(value, dict) and "from" in value and "value" in value


# --- writers ------------------------------------------------------------------------------------

MESSAGES: Final = "messages"
SEVERAL_RESPONSES: Final = "several_responses"
SEVERAL_TURNS: Final = "several_turns"
ROLES: Final = "roles"
NOT_TEXT: Final = "not_text"
MARKERS: Final = "markers"

SKIP_REASONS: Final[dict[str, str]] = {
    SINGLE_RESPONSE: "only one response, but the format needs pairs",
    UNLABELLED: "no label, but the format needs an order",
    TIE: "all responses have the same grade, but the format needs an order",
    SEVERAL_RESPONSES: "more than two responses, and --pairs is none",
    MESSAGES: "a conversation, but the format holds plain text",
    SEVERAL_TURNS: "more than one user turn and one assistant turn",
    ROLES: "roles other than user and assistant, or turns that do not alternate",
    NOT_TEXT: "a message with more than text: media, tool calls or names",
    MARKERS: "a text that contains the format's own markers",
    BROKEN_TURNS: "turns that the tool skips: out of order, or the last turn is not the user's",
    MEDIA: "images, audio or video, of which the format would keep only the text",
}
"""Why a row is not written."""

TEXT_AS_TURNS: Final = "text_as_turns"
CUT_TO_PAIRS: Final = "cut_to_pairs"
CUT_TO_ONES: Final = "cut_to_single_responses"
TIED_PAIRS: Final = "tied_pairs"
GRADES_AS_ORDER: Final = "grades_as_order"
OUTER_SPACE: Final = "outer_space"
COLUMN_TAKEN: Final = "column_taken"
SOFT_LABEL_DROPPED: Final = "soft_label_dropped"

LOSSES: Final[dict[str, str]] = {
    TEXT_AS_TURNS: "plain text was converted into one user turn and one assistant turn",
    CUT_TO_PAIRS: "rows with more than two responses were converted into pairs",
    CUT_TO_ONES: "each response was written as its own row",
    TIED_PAIRS: "pairs of responses with the same grade were left out",
    GRADES_AS_ORDER: "the format keeps the order of the grades, not their values",
    OUTER_SPACE: "the format does not keep white space around a turn",
    COLUMN_TAKEN: "a column was dropped because the format uses its name",
    SOFT_LABEL_DROPPED: "a soft label was dropped, because it belongs to a pair of responses",
    "margin_not_read": "the tool ignores the margin; the column is kept",
    "weight_not_read": "the tool ignores the weight; the column is kept",
    "soft_label_not_read": "the tool ignores the soft label; the column is kept",
    "attributes_not_read": "the tool ignores the attributes; the column is kept",
    "tools_not_read": "the tool ignores the tools; the column is kept",
    "chat_template_kwargs_not_read": "the tool ignores chat_template_kwargs; the column is kept",
}
"""What a row that is written has lost."""


class UnfitError(Exception):
    """A comparison that a format cannot hold; its argument is a key of :data:`SKIP_REASONS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """One format of rows.

    ``lay_out`` gets what ``holds`` says: a ``pair`` with the better response first, ``one``
    response or ``many``; all messages where ``turns`` is ``chat`` and all text where it is
    ``text``. ``reader_name`` is the reader of the rows where it has another name. Other columns
    may not have the names that are optional to the reader, or ``reserved``. ``reads`` are those of
    margin, weight, soft_label, attributes, tools and chat_template_kwargs that the tool reads.
    ``ordered`` formats keep of the grades their order alone; ``strips`` ones lose white space
    around a turn. ``flat`` rows can stand in a CSV file. ``check_out`` raises an OutputError for a
    file that the tool cannot read; ``describe`` tells the tool of a new file.
    """

    name: str
    description: str
    lay_out: Callable[[Comparison], dict[str, Any]]
    holds: Literal["pair", "one", "many"] = "pair"
    turns: Literal["text", "chat", "either"] = "chat"
    reserved: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    ordered: bool = True
    strips: bool = False
    flat: bool = True
    check_out: Callable[[Path], None] | None = None
    describe: Callable[[Path], None] | None = None
    reader_name: str | None = None

    @property
    def reader(self) -> str:
        """The name of the reader that reads the rows back."""
        return self.reader_name or self.name


def plain(turns: Turns) -> str | list[dict[str, Any]]:
    """Text, or messages as JSON has them."""
    return turns if isinstance(turns, str) else [turn.as_dict() for turn in turns]


def explicit(pair: Comparison) -> dict[str, Any]:
    """The prompt in its own column (TRL)."""
    better, worse = pair.responses
    return {"prompt": plain(pair.prompt), "chosen": plain(better), "rejected": plain(worse)}


def words_of(message: Message) -> str:
    """A message's text, where it is nothing else."""
    if message.extra or not isinstance(message.content, str):
        raise UnfitError(NOT_TEXT)
    return message.content


def answer_of(response: Turns) -> str:
    """A response's text, where it is one assistant turn of text."""
    assert not isinstance(response, str)
    if len(response) != 1:
        raise UnfitError(SEVERAL_TURNS)
    if response[0].role != "assistant":
        raise UnfitError(ROLES)
    return words_of(response[0])


def dialogue_of(prompt: Turns) -> tuple[str, list[str]]:
    """The system text and the texts of the turns, user first and user last."""
    assert not isinstance(prompt, str)
    system = words_of(prompt[0]) if prompt and prompt[0].role == "system" else ""
    turns = prompt[1:] if prompt and prompt[0].role == "system" else prompt
    roles = [turn.role for turn in turns]
    if len(turns) % 2 == 0 or roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise UnfitError(ROLES)
    return system, [words_of(turn) for turn in turns]
