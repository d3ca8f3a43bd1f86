"""Data of LLaMA-Factory: entries of ``dataset_info.json``, rows of its ranking and KTO formats.

The rules of entries are those of ``llamafactory/data/parser.py`` and ``converter.py``: where an
entry has ``columns`` (or ``tags``), every name that it does not list is not read at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from plaudit.data.formats import values
from plaudit.data.formats.published import pair_by_lead
from plaudit.data.formats.records import (
    Messages,
    ParsedRow,
    Reader,
    Writer,
    answer_of,
    assistant_turn,
    dialogue_of,
    is_sharegpt,
    pair,
    user_turn,
    with_system_turn,
)
from plaudit.data.formats.values import Row
from plaudit.data.reasons import BROKEN_TURNS
from plaudit.data.sources.files import row_file_ending
from plaudit.errors import DataError, OutputError, did_you_mean
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import existing_path, write_json
from plaudit.types import Comparison, Message

FILE_NAME: Final = "dataset_info.json"

_COLUMNS: Final = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "conversations",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
}
"""LLaMA-Factory's name of a column, and what the reader calls it."""

_MEDIA: Final = ("images", "videos", "audios")
_ELSEWHERE: Final = {
    "script_url": "a loading script, which plaudit does not run",
    "cloud_file_name": "a file in a cloud store",
    "ms_hub_url": "ModelScope",
    "om_hub_url": "Modelers",
}


def resolve(source: Source) -> Source:
    """The source that an entry stands for; its path names the file, ``subset`` the entry.

    On command lines ``dataset_info.json:ENTRY`` names both.

    What the source says itself (name, weight, num_samples, …) goes before the entry.

    Raises:
        DataError: the file, the entry or what it asks for cannot be used here.
    """
    path, colon, name = source.path.rpartition(":")
    if colon and Path(path).name == FILE_NAME:
        source = source.model_copy(update={"path": path, "subset": name})
    entry = _entry(source)
    where = f"{source.path}: {source.subset}"
    _check_usable(entry, where)
    fields = source.model_dump(exclude_unset=True) | _place(entry, source, where)
    shape = _shape(entry, where)
    fields |= {"name": source.name or source.subset, **shape}
    fields["columns"] = {**shape["columns"], **source.columns}
    if entry.get("num_samples") is not None and source.weight == 1 and not source.probability:
        fields.setdefault("num_samples", entry["num_samples"])
    return Source(**fields)


def _entry(source: Source) -> Mapping[str, Any]:
    entries = _read_entries(existing_path(source.path) or Path(source.path), source.path)
    if source.subset is None:
        raise DataError(
            f"{source.path} describes {', '.join(entries) or 'nothing'}; choose an entry with"
            f" `subset` (on a command line: {FILE_NAME}:ENTRY)."
        )
    if source.subset not in entries:
        hint = did_you_mean(
            source.subset, entries, f"expected one of {', '.join(entries) or 'none'}."
        )
        raise DataError(f"{source.path} has no entry {source.subset}; {hint}")
    entry = entries[source.subset]
    if not isinstance(entry, dict):
        raise DataError(
            f"{source.path}: {source.subset} is not an object; expected the description of a data"
            " set."
        )
    return entry


def _read_entries(path: Path, shown: str) -> dict[str, Any]:
    """Raises DataError where ``path`` is no object of entries."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown}: invalid JSON ({error}).") from error
    if not isinstance(entries, dict):
        raise DataError(
            f"{shown} is not a JSON object; expected data set names mapped to their descriptions."
        )
    return entries


def _check_usable(entry: Mapping[str, Any], where: str) -> None:
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    for key, names in (("columns", columns), ("tags", tags)):
        if not isinstance(names, dict) or not all(
            value is None or isinstance(value, str) for value in names.values()
        ):
            raise DataError(f"{where}: {key} is not an object; expected names mapped to names.")
    if not entry.get("ranking") and not columns.get("kto_tag"):
        raise DataError(
            f"{where} is not a ranking, so it has no pairs to compare; set its `ranking` to true"
            " if it has chosen and rejected answers."
        )
    media = [name for name in _MEDIA if columns.get(name)]
    if media:
        raise DataError(f"{where} has {' and '.join(media)}, but plaudit reads only text.")
    samples = entry.get("num_samples")
    if samples is not None and (not isinstance(samples, int) or samples < 1):
        raise DataError(f"{where}: num_samples is {samples!r}; expected a number of rows.")


def _place(entry: Mapping[str, Any], source: Source, where: str) -> dict[str, Any]:
    """Path and parts: the Hub where the entry names it, else a file beside the description."""
    if entry.get("hf_hub_url"):
        parts = {"subset": entry.get("subset"), "data_dir": entry.get("folder")}
        return {"path": entry["hf_hub_url"], "split": entry.get("split", "train"), **parts}
    elsewhere = [what for key, what in _ELSEWHERE.items() if entry.get(key)]
    if elsewhere:
        raise DataError(f"{where} is on {elsewhere[0]}; download it and give it a file_name.")
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise DataError(f"{where} has neither file_name nor hf_hub_url; expected one of them.")
    folder = Path(source.path).expanduser().parent
    # A file is always streamed, so asking for it is no mistake here.
    parts = dict.fromkeys(("split", "subset", "data_dir"))
    return {"path": str(folder / name), "streaming": False, **parts}


def _shape(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Format, columns and tags."""
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise DataError(f"{where}: formatting is {formatting!r}; expected alpaca or sharegpt.")
    names = entry.get("columns")
    tagged = bool(names and names.get("kto_tag"))
    reader: Reader | None = SHAREGPT_KTO if tagged else SHAREGPT
    if formatting == "alpaca":
        used = ALPACA if names and names.get("chosen") else ALPACA_OUTPUT
        used = ALPACA_KTO if tagged else used
        reader = None if names is None else used
    columns: dict[str, str | None] = {}
    if names is not None and reader is not None:
        # A column that the reader does not know needs no hiding.
        known = {"tools", *reader.columns, *reader.optional}
        columns = {ours: names.get(theirs) for theirs, ours in _COLUMNS.items() if ours in known}
    tags = {}
    if formatting != "alpaca" and entry.get("tags") is not None:
        tags = {tag: entry["tags"].get(tag) for tag in SHAREGPT.tags}
    return {"format": None if reader is None else reader.name, "columns": columns, "tags": tags}


# --- rows that are read -------------------------------------------------------------------------

KEY_TAGS: Final = {"role_tag": "from", "content_tag": "value"}
"""Tags for the keys of a turn, and what the reader calls them."""

ROLE_TAGS: Final = {
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""Tags for who speaks, and what the reader calls them."""

_TURNS: Final = ("conversations", "chosen", "rejected")

SHAREGPT_ROLES: Final = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    "system": "system",
}
"""The ``from`` of a ShareGPT turn to the role of a message."""

ASKING: Final = ("human", "observation")
ANSWERING: Final = ("gpt", "function_call")


def read_alpaca(row: Row) -> ParsedRow:
    """LLaMA-Factory's alpaca ranking: an instruction, perhaps with an input, and two texts."""
    return pair_by_lead(row, _alpaca_prompt(row), ("chosen", "rejected"), 1)


def read_alpaca_output(row: Row) -> ParsedRow:
    """The same as LLaMA-Factory had it until 0.7.1: ``output`` holds the better, then the worse."""
    outputs = values.texts(row, "output")
    if len(outputs) != 2:
        raise DataError(
            f"output holds {len(outputs)} texts; expected two: the chosen and the rejected"
            " response."
        )
    return pair(_alpaca_prompt(row), assistant_turn(outputs[0]), assistant_turn(outputs[1]))


def read_sharegpt(row: Row) -> ParsedRow:
    """LLaMA-Factory's sharegpt ranking: a conversation, and two turns that continue it.

    LLaMA-Factory's rules: after one system turn, ``human`` or ``observation`` alternates with
    ``gpt`` or ``function_call``, and the last turn asks. It skips other rows with a warning; here
    they are counted as ``broken_turns``.
    """
    turns = _sharegpt_turns(row)
    replies = [
        sharegpt_turn(values.value_of(row, column), column) for column in ("chosen", "rejected")
    ]
    return _sharegpt_row(row, turns, replies, (1.0, 0.0))


def read_alpaca_kto(row: Row) -> ParsedRow:
    """LLaMA-Factory's KTO rows: an instruction, one output, and whether it is good."""
    return ParsedRow(
        prompt=_alpaca_prompt(row),
        responses=(assistant_turn(values.text(row, "output")),),
        grades=_kto_grade(row),
        rated=True,
    )


def read_sharegpt_kto(row: Row) -> ParsedRow:
    """The same as a conversation, of which the last turn is the response."""
    turns = _sharegpt_turns(row)
    if not turns:
        raise DataError("conversations is an empty list; expected at least one turn.")
    return _sharegpt_row(row, turns[:-1], turns[-1:], _kto_grade(row))


def _kto_grade(row: Row) -> tuple[float, ...]:
    label = values.optional_number(row, "kto_tag", truth=True)
    return () if label is None else (label,)


def _sharegpt_turns(row: Row) -> list[tuple[str, Message]]:
    return [
        sharegpt_turn(value, f"conversations[{index}]")
        for index, value in enumerate(values.items(row, "conversations"))
    ]


def _sharegpt_row(
    row: Row,
    turns: list[tuple[str, Message]],
    replies: list[tuple[str, Message]],
    grades: tuple[float, ...],
) -> ParsedRow:
    """The turns of a prompt and the responses to it; one response has a rating."""
    leading = turns[0][1] if turns and turns[0][0] == "system" else None
    turns = turns if leading is None else turns[1:]
    system = values.optional_text(row, "system") if leading is None else str(leading.content)
    # Asking and answering in turn, the first and the last asking.
    in_turn = len(turns) % 2 == 1 and all(
        name in (ASKING, ANSWERING)[number % 2] for number, (name, _) in enumerate(turns)
    )
    whole = in_turn and all(name in ANSWERING for name, _ in replies)
    return ParsedRow(
        prompt=with_system_turn(system, tuple(message for _, message in turns)),
        responses=tuple((message,) for _, message in replies),
        grades=grades,
        rated=len(replies) == 1,
        unusable=None if whole else BROKEN_TURNS,
    )


def _alpaca_prompt(row: Row) -> Messages:
    """History, then instruction and input joined by a line break, under the system text."""
    instruction, query = (values.optional_text(row, column) for column in ("instruction", "input"))
    earlier: list[Any] = []
    if row.get("history") is not None:
        for index, turn in enumerate(values.items(row, "history")):
            if not values.is_texts(turn) or len(turn) != 2:
                raise DataError(
                    f"history[{index}] is invalid; expected a question and its answer, as two"
                    " texts."
                )
            earlier += [*user_turn(turn[0]), *assistant_turn(turn[1])]
    last = "\n".join(text for text in (instruction, query) if text is not None)
    return with_system_turn(values.optional_text(row, "system"), (*earlier, *user_turn(last)))


def sharegpt_turn(value: Any, what: str) -> tuple[str, Message]:
    """The ``from`` of a turn and its message.

    A call of a function becomes ``tool_calls`` where it is JSON, as chat templates read it.

    Raises:
        DataError: it is no turn.
    """
    if not is_sharegpt(value):
        found = values.listed(value) if isinstance(value, dict) else values.kind(value)
        raise DataError(f"{what} has no from and value (found: {found}); expected a ShareGPT turn.")
    name, content = value["from"], value["value"]
    if not isinstance(name, str) or not isinstance(content, str):
        raise DataError(f"{what} has a from or value that is not text; expected text in both.")
    calls = _tool_calls(content) if name == "function_call" else None
    if calls is not None:
        return name, Message(role="assistant", content="", extra={"tool_calls": calls})
    return name, Message(role=SHAREGPT_ROLES.get(name, name), content=content)


def _tool_calls(content: str) -> list[dict[str, Any]] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        return None
    return [
        {
            "type": "function",
            "function": {"name": call["name"], "arguments": call.get("arguments", {})},
        }
        for call in calls
    ]


def _rename_tags(row: Row, tags: Mapping[str, str | None]) -> dict[str, Any]:
    """The row, its turns with the readers' keys and roles.

    A role that no tag names is kept apart from the reader's own names, so that it is not taken for
    one of them.
    """
    for tag in KEY_TAGS:
        if tag in tags and not tags[tag]:
            raise DataError(f"`tags`: {tag} is null; expected the name of a key.")
    keys = {ours: tags.get(tag) or ours for tag, ours in KEY_TAGS.items()}
    roles = {name: ours for tag, ours in ROLE_TAGS.items() if (name := tags.get(tag)) is not None}

    def retagged(value: Any) -> Any:
        if isinstance(value, list):
            return [retagged(turn) for turn in value]
        if not isinstance(value, dict) or not all(key in value for key in keys.values()):
            return value
        turn = {ours: value[key] for ours, key in keys.items()}
        name = turn["from"]
        if roles and isinstance(name, str):
            turn["from"] = roles.get(name, f"unknown: {name}" if name in SHAREGPT_ROLES else name)
        return turn

    return {name: retagged(value) if name in _TURNS else value for name, value in row.items()}


_ALPACA_OPTIONAL: Final = ("input", "history", "system")
_TAGGED: Final = {"kto_tag": values.anything}

ALPACA: Final = Reader(
    name="alpaca",
    columns=values.all_of(values.is_text, "instruction", "chosen", "rejected"),
    parse=read_alpaca,
    when=lambda row: "prompt" not in row,
    optional=_ALPACA_OPTIONAL,
)

ALPACA_OUTPUT: Final = Reader(
    name="alpaca_output",
    columns={"instruction": values.is_text, "output": values.is_texts},
    parse=read_alpaca_output,
    when=lambda row: "chosen" not in row,
    optional=_ALPACA_OPTIONAL,
)

SHAREGPT: Final = Reader(
    name="sharegpt",
    columns={
        "conversations": lambda turns: isinstance(turns, list) and all(map(is_sharegpt, turns)),
        "chosen": is_sharegpt,
        "rejected": is_sharegpt,
    },
    parse=read_sharegpt,
    optional=("system",),
    tags=frozenset({*KEY_TAGS, *ROLE_TAGS}),
    rename_tags=_rename_tags,
)

ALPACA_KTO: Final = Reader(
    name="alpaca_kto",
    columns=values.all_of(values.is_text, "instruction", "output") | _TAGGED,
    parse=read_alpaca_kto,
    when=lambda row: "prompt" not in row,
    optional=_ALPACA_OPTIONAL,
)

SHAREGPT_KTO: Final = Reader(
    name="sharegpt_kto",
    columns={"conversations": SHAREGPT.columns["conversations"]} | _TAGGED,
    parse=read_sharegpt_kto,
    when=lambda row: "chosen" not in row,
    optional=SHAREGPT.optional,
    # SHAREGPT renames them for both.
    tags=SHAREGPT.tags,
)


# --- rows that are written ----------------------------------------------------------------------


def write_alpaca(pair: Comparison) -> dict[str, Any]:
    """LLaMA-Factory's alpaca ranking (``data/README.md`` there)."""
    system, turns = dialogue_of(pair.prompt)
    earlier = [[turns[at], turns[at + 1]] for at in range(0, len(turns) - 1, 2)]
    better, worse = (answer_of(response) for response in pair.responses)
    return {
        "instruction": turns[-1],
        "chosen": better,
        "rejected": worse,
        "system": system,
        "history": earlier,
    }


def write_sharegpt(pair: Comparison) -> dict[str, Any]:
    """LLaMA-Factory's sharegpt ranking (``data/README.md`` there)."""
    system, turns = dialogue_of(pair.prompt)
    named = [("system", system)] if system else []
    named += [(("human", "gpt")[at % 2], text) for at, text in enumerate(turns)]
    better, worse = (answer_of(response) for response in pair.responses)
    return {
        "conversations": [{"from": name, "value": text} for name, text in named],
        "chosen": {"from": "gpt", "value": better},
        "rejected": {"from": "gpt", "value": worse},
    }


_READS: Final = (".json", ".jsonl", ".csv", ".parquet")
"""What LLaMA-Factory knows by its ending (``extras/constants.py`` there, FILEEXT2TYPE)."""


def _entry_of(*columns: str, **formatting: str) -> dict[str, Any]:
    """The entry of a file with these columns."""
    names = {theirs: ours for theirs, ours in _COLUMNS.items() if ours in columns}
    return {**formatting, "ranking": True, "columns": names}


def _check_out(out: Path) -> None:
    """Raises OutputError where LLaMA-Factory cannot read ``out``, or no entry can be added."""
    ending = row_file_ending(out)
    if ending not in _READS:
        raise OutputError(
            f"--out {out}: LLaMA-Factory does not read {ending} files; choose a name that ends in"
            " .json."
        )
    _entries_beside(out)


def _describe(out: Path, entry: Mapping[str, Any]) -> None:
    """Add an entry, named like the file, to ``dataset_info.json`` beside it."""
    name = out.name.removesuffix(row_file_ending(out))
    entries = {**_entries_beside(out), name: {"file_name": out.name, **entry}}
    write_json(out.with_name(FILE_NAME), entries)


def _entries_beside(out: Path) -> dict[str, Any]:
    """The entries there are. Raises OutputError where the file is something else."""
    path = out.with_name(FILE_NAME)
    try:
        return _read_entries(path, str(path)) if path.exists() else {}
    except DataError as error:
        raise OutputError(
            f"cannot add an entry to the existing file: {error} Choose another folder with --out."
        ) from error


ALPACA_WRITER: Final = Writer(
    name="alpaca",
    description="LLaMA-Factory: alpaca ranking, with its entry in dataset_info.json",
    lay_out=write_alpaca,
    reserved=frozenset({"prompt"}),
    flat=False,
    check_out=_check_out,
    describe=partial(
        _describe, entry=_entry_of("instruction", "system", "history", "chosen", "rejected")
    ),
)

SHAREGPT_WRITER: Final = Writer(
    name="sharegpt",
    description="LLaMA-Factory: sharegpt ranking, with its entry in dataset_info.json",
    lay_out=write_sharegpt,
    flat=False,
    check_out=_check_out,
    describe=partial(_describe, entry=_entry_of(*_TURNS, formatting="sharegpt")),
)
