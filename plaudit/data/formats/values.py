"""Values of a row, checked: each function gives what it names or says what it found instead.

A wrong value raises a DataError that names the column, the position and the kind of value, never
its content: data is not for logs. Where the row stands is added by the caller.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from plaudit.errors import DataError
from plaudit.types import Message, Prompted, Turns

Row: TypeAlias = Mapping[str, Any]

Value = TypeVar("Value")

Looks: TypeAlias = Callable[[Any], bool]
"""Whether a value is of a type, such as :data:`is_text`."""


def listed(row: Row) -> str:
    """The names of the columns, for a message."""
    return ", ".join(str(column) for column in row) or "(none)"


def kind(value: Any) -> str:
    """How a value is called in a message."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN or infinite"
    kinds = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), type(value).__name__)


def typed(*types: type) -> Looks:
    """Whether a value is of one of these types."""
    return lambda value: isinstance(value, types)


anything: Final = typed(object)
"""For a value whose type its reader checks."""
is_text: Final = typed(str)
is_list: Final = typed(list)
is_text_or_list: Final = typed(str, list)


def is_messages(value: Any) -> bool:
    """Whether a value looks like a list of messages."""
    return isinstance(value, list) and all(isinstance(turn, dict) for turn in value)


def is_turns(value: Any) -> bool:
    """Whether a value is text or looks like a list of messages."""
    return is_text(value) or is_messages(value)


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts, at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def all_of(looks: Looks, *columns: str) -> dict[str, Looks]:
    """Columns whose values all look as said."""
    return dict.fromkeys(columns, looks)


def located(where: str, read: Callable[..., Value], *arguments: Any) -> Value:
    """What ``read`` returns; its errors begin with ``where``."""
    try:
        return read(*arguments)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _wrong(what: str, value: Any, expected: str) -> DataError:
    return DataError(f"{what} is {kind(value)}; expected {expected}.")


def _checked(value: Any, what: str, type_: type[Value], expected: str) -> Value:
    if not isinstance(value, type_):
        raise _wrong(what, value, expected)
    return value


def value_of(row: Row, column: str) -> Any:
    """The value of a required column."""
    if column not in row:
        raise DataError(f"the column {column} is missing (found: {listed(row)}).")
    return row[column]


def text(row: Row, column: str) -> str:
    """A required text."""
    return _checked(value_of(row, column), column, str, "text")


def optional_text(row: Row, column: str) -> str | None:
    """A text; ``None`` where the column is null, missing or empty."""
    return text(row, column) or None if row.get(column) is not None else None


def texts(row: Row, column: str) -> tuple[str, ...]:
    """A required list of texts, at least one."""
    return tuple(_items_of(row, column, str, "text"))


def each(row: Row, column: str, read: Callable[[Row], Value]) -> tuple[Value, ...]:
    """What ``read`` makes of each object of a required list, at least one."""
    objects = _items_of(row, column, dict, "an object")
    return tuple(located(f"{column}[{at}]", read, item) for at, item in enumerate(objects))


def _items_of(row: Row, column: str, type_: type[Value], name: str) -> list[Value]:
    """A required list of values of a type, at least one."""
    values = items(row, column)
    if not values:
        raise DataError(f"{column} is an empty list; expected at least one {name.split()[-1]}.")
    return [_checked(value, f"{column}[{at}]", type_, name) for at, value in enumerate(values)]


def number(row: Row, column: str) -> float:
    """A required finite number."""
    return as_number(value_of(row, column), column)


def items(row: Row, column: str) -> list[Any]:
    """A required list."""
    return _checked(value_of(row, column), column, list, "a list")


def messages(row: Row, column: str) -> tuple[Message, ...]:
    """A required list of messages."""
    return as_messages(value_of(row, column), column, "a list of messages")


def turns(row: Row, column: str) -> Turns:
    """A required text or list of messages."""
    value = value_of(row, column)
    return value if isinstance(value, str) else as_messages(value, column)


def reply(row: Row, column: str, prompt: Turns) -> Turns:
    """A required response, of the kind of its prompt (:func:`as_reply`)."""
    return as_reply(value_of(row, column), column, prompt)


def as_reply(value: Any, what: str, prompt: Turns) -> Turns:
    """A response of the prompt's kind: text after text; messages, or one's text, after messages."""
    if isinstance(prompt, str):
        return _checked(value, what, str, "text, like the prompt")
    if isinstance(value, str):
        return (Message(role="assistant", content=value),)
    return as_messages(value, what)


def as_messages(
    value: Any, what: str, expected: str = "text or a list of messages"
) -> tuple[Message, ...]:
    """Messages of a row, a caller or a request; ``what`` names them in errors.

    Raises:
        DataError: it is not a list, or one of them has no role, or a content that is neither text
            nor parts.
    """
    if not isinstance(value, (list, tuple)):
        raise _wrong(what, value, expected)
    return tuple(_as_message(turn, f"{what}[{index}]") for index, turn in enumerate(value))


def _as_message(value: Any, what: str) -> Message:
    """A field that is null is absent: tables fill the fields that a message lacks with null."""
    if not isinstance(value, Mapping):
        raise _wrong(what, value, "a message with role and content")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str):
        raise DataError(
            f"{what} has no role (found: {listed(value)}); expected a message with role and"
            " content."
        )
    extra = {
        key: item
        for key, item in value.items()
        if key not in ("role", "content") and item is not None
    }
    if not isinstance(content, (str, list)) and not (content is None and extra.get("tool_calls")):
        raise _wrong(f"{what}.content", content, "text (null is allowed only beside tool_calls)")
    if isinstance(content, list):
        content = _content(content, f"{what}.content")
    return Message(role=role, content=content, extra=extra)


def _content(parts: list[Any], what: str) -> str | list[Any]:
    """The text of content parts, joined by line breaks; the parts themselves where one is media.

    The line break is vLLM's, for templates that take text alone; transformers leaves parts to the
    template. One rule before any template gives a text one score, whichever form it comes in.

    Raises:
        DataError: a part of another type, or one without its text.
    """
    texts: list[str] = []
    media = False
    for index, part in enumerate(parts):
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise _wrong(f"{what}[{index}]", part, "a content part, for example one of type text")
        kind_of_part = part.get("type") or ("text" if "text" in part else None)
        if not isinstance(kind_of_part, str):
            raise _wrong(f"{what}[{index}].type", kind_of_part, "the type of a content part")
        if _MEDIA.intersection(kind_of_part.split("_")):
            media = True
        elif kind_of_part in _TEXT_PARTS:
            texts.append(located(f"{what}[{index}]", text, part, _TEXT_PARTS[kind_of_part]))
        else:
            raise DataError(
                f"{what}[{index}] is a content part of type {kind_of_part[:_TYPE_CHARACTERS]!r};"
                f" expected one of {', '.join(_TEXT_PARTS)} (only text is read)."
            )
    return parts if media else "\n".join(texts)


_MEDIA: Final = frozenset({"image", "audio", "video"})
"""Words in the types of parts that are not text: ``image_url``, ``input_audio``, …"""

_TEXT_PARTS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
"""Types of content parts that are text (OpenAI's APIs), and the key of the text."""

_TYPE_CHARACTERS: Final = 40


def as_number(value: Any, what: str, *, truth: bool = False) -> float:
    """A finite float. ``truth`` lets true and false count as 1 and 0."""
    if not isinstance(value, (int, float)) or (isinstance(value, bool) and not truth):
        raise _wrong(what, value, "a number")
    try:
        number = float(value)
    except OverflowError:  # JSON has whole numbers of any length
        number = math.inf
    if not math.isfinite(number):
        raise _wrong(what, number, "a finite number")
    return number


def optional_number(row: Row, column: str, *, truth: bool = False) -> float | None:
    """A finite float; ``None`` where the column is null or missing."""
    value = row.get(column)
    return None if value is None else as_number(value, column, truth=truth)


def weight(row: Row) -> float:
    """The row's own weight: above 0, 1 where none is given."""
    number = optional_number(row, "weight")
    if number is None:
        return 1.0
    if number <= 0:
        raise DataError("weight is 0 or less; expected a number above 0.")
    return number


def soft_label(row: Row, responses: int) -> float | None:
    """The share of annotators who prefer the better response of a pair, from 0 to 1."""
    number = optional_number(row, "soft_label")
    if number is None:
        return None
    if not 0.0 <= number <= 1.0:
        raise DataError(f"soft_label is {number:g}; expected a share from 0 to 1.")
    if responses != 2:
        raise DataError(
            f"the row has a soft_label and {responses} responses; a soft label is the share of "
            "annotators who prefer the better response of a pair."
        )
    return number


def attributes(row: Row, responses: int) -> dict[str, tuple[float | None, ...]]:
    """Named ratings: for each, one number per response, None where it is missing.

    The number of a single response may stand without a list. A null in place of a list says
    nothing.
    """
    read: dict[str, tuple[float | None, ...]] = {}
    for name, value in (from_json(row, "attributes", dict) or {}).items():
        what = f"attributes.{attribute_name(name)}"
        if value is None:
            continue
        if isinstance(value, list):
            if len(value) != responses:
                raise DataError(
                    f"{what} is a list of length {len(value)}; expected length {responses}: one "
                    "number, or null, per response."
                )
            read[name] = tuple(
                None if number is None else as_number(number, f"{what}[{at}]")
                for at, number in enumerate(value)
            )
        elif responses == 1:
            read[name] = (as_number(value, what),)
        else:
            raise _wrong(what, value, f"a list of {responses} numbers, one per response")
    return read


def attribute_name(name: str) -> str:
    """The name of an attribute, which metrics, options and columns of tables can hold."""
    if not _ATTRIBUTE.fullmatch(name):
        raise DataError(
            f"an attribute is named {name[:_NAME_CHARACTERS]!r}; expected letters, digits, _, -, . "
            "and /, with spaces only between them."
        )
    return name


_ATTRIBUTE: Final = re.compile(r"[\w./-](?:[\w./ -]*[\w./-])?")
_NAME_CHARACTERS: Final = 40


def grades(row: Row, count: int) -> tuple[float, ...]:
    """One grade per response; empty where none are given."""
    if row.get("grades") is None:
        return ()
    values = items(row, "grades")
    if len(values) != count:
        raise DataError(
            f"there are {count} responses but {len(values)} grades; expected one grade per "
            "response."
        )
    return tuple(
        as_number(grade, f"grades[{index}]", truth=True) for index, grade in enumerate(values)
    )


def name(row: Row, column: str) -> str | None:
    """A scalar or a list of texts as text; ``None`` where the column is null or missing."""
    value = row.get(column)
    if value is None:
        return None
    if is_texts(value):
        return ", ".join(value)
    if isinstance(value, (dict, list)):
        raise _wrong(column, value, "text or a number")
    return str(value)


def tools(row: Row) -> tuple[Mapping[str, Any], ...] | None:
    """The schemas of the tools a conversation may call; ``None`` where there are none."""
    tools = from_json(row, "tools", list)
    if not tools:
        return None
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise _wrong(f"tools[{index}]", tool, "an object with the tool's schema")
    return tuple(map(dict, tools))


def as_tools(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    """The tools of a caller, under the rules of :func:`tools`."""
    return tools({"tools": list(value) if isinstance(value, tuple) else value})


def from_json(row: Row, column: str, type_: type) -> Any:
    """A list or object, given as such or as JSON text (Arrow cannot hold free-form objects)."""
    value, expected = row.get(column), kind(type_())
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{column} is invalid JSON; expected {expected}.") from error
    if value is not None and not isinstance(value, type_):
        raise _wrong(column, value, f"{expected}, or its JSON as text")
    return value


def check_responses(responses: Any, where: str = "") -> None:
    """Whether ``responses`` is a list with at least one response.

    ``where`` names the row before ``responses`` in the message. What a prompt or a response must be
    is said by :func:`as_messages`.

    Raises:
        DataError: something else, named by its type.
    """
    is_list = hasattr(responses, "__getitem__") and hasattr(responses, "__len__")
    if not is_list or isinstance(responses, (str, bytes, Mapping)):
        raise DataError(
            f"{where}responses is {_called(responses)}; expected a list with at least one response."
        )
    if not len(responses):
        raise DataError(f"{where}responses is empty; expected a list with at least one response.")


def check_rows(rows: Any) -> list[Prompted]:
    """The rows, each a pair of a prompt and its responses (:func:`check_responses`).

    Raises:
        DataError: something else, named by its position and its type.
    """
    if not isinstance(rows, Iterable) or isinstance(rows, (str, bytes, Mapping)):
        raise DataError(f"rows is {_called(rows)}; expected a list of pairs (prompt, responses).")
    checked: list[Prompted] = []
    for number, row in enumerate(rows):
        if not isinstance(row, (tuple, list)) or len(row) != 2:
            raise DataError(
                f"rows[{number}] is {_called(row)}; expected a pair (prompt, responses)."
            )
        prompt, responses = row
        check_responses(responses, f"rows[{number}]: ")
        checked.append((prompt, responses))
    return checked


def _called(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, str):
        return "a single string"
    return f"of type {type(value).__name__}"
