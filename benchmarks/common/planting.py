"""Known defects put into clean preference rows, so that an audit can be held to them.

Rows are of the format ``ranked`` (a prompt, a list of responses, grades), which can hold all of
them. A kind is one function from (clean row, number, generator) to the rows that take its place and
the rows of other sets that go with them, and one row in :data:`KINDS`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class Planted:
    """What a defect is made of.

    ``bad`` are rows of which at least the last should be found, ``eval_`` and ``suite`` rows of the
    sets that the data are compared with.
    """

    bad: list[Row]
    eval_: list[Row] = field(default_factory=list)
    suite: list[Row] = field(default_factory=list)


OTHER_SCRIPTS = (
    "Это не тот язык, на котором спросили.",
    "Αυτή δεν είναι η γλώσσα της ερώτησης.",
    "هذه ليست لغة السؤال.",
)

Kind: TypeAlias = Callable[[Row, random.Random], Planted]


def ranked(row: Row) -> Row:
    """A pair (``prompt``, ``chosen``, ``rejected``; texts or messages) as a ranked row."""
    return {
        "prompt": _messages(row["prompt"], "user"),
        "responses": [_messages(row[side], "assistant") for side in ("chosen", "rejected")],
        "grades": [1.0, 0.0],
    }


def _messages(value: Any, role: str) -> list[Row]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _last(messages: list[Row]) -> Row:
    return messages[-1]


def _edited(text: str, generator: random.Random) -> str:
    """One word in twenty-five doubled; of less than ten words, letters and signs changed."""
    words = text.split(" ")
    if len(words) < 10:
        return f"{text.swapcase()} !"
    for _ in range(max(1, len(words) // 25)):
        place = generator.randrange(len(words))
        words[place] = f"{words[place]} {words[place]}"
    return " ".join(words)


def exact_duplicates(row: Row, generator: random.Random) -> Planted:
    return Planted([row, copy.deepcopy(row)])


def near_duplicates(row: Row, generator: random.Random) -> Planted:
    other = copy.deepcopy(row)
    for response in other["responses"]:
        _last(response)["content"] = _edited(_last(response)["content"], generator)
    return Planted([row, other])


def opposite_labels(row: Row, generator: random.Random) -> Planted:
    return Planted([row, {**copy.deepcopy(row), "grades": row["grades"][::-1]}])


def identical_responses(row: Row, generator: random.Random) -> Planted:
    first = row["responses"][0]
    return Planted([{**row, "responses": [first, copy.deepcopy(first)]}])


def empty_responses(row: Row, generator: random.Random) -> Planted:
    broken = copy.deepcopy(row)
    _last(broken["responses"][generator.randrange(2)])["content"] = generator.choice(["", " \n"])
    return Planted([broken])


def identical_after_truncation(row: Row, generator: random.Random) -> Planted:
    """Equal for 2,500 words, then different."""
    broken = copy.deepcopy(row)
    words = _last(row["responses"][0])["content"].split() or ["word"]
    opening = " ".join(generator.choices(words, k=2500))
    for response in broken["responses"]:
        _last(response)["content"] = f"{opening} {_last(response)['content']}"
    return Planted([broken])


def shared_with_eval(row: Row, generator: random.Random) -> Planted:
    other = copy.deepcopy(row)
    for response in other["responses"]:
        _last(response)["content"] = "Another answer: " + _last(response)["content"][::-1]
    return Planted([row], eval_=[other])


def near_eval(row: Row, generator: random.Random) -> Planted:
    other = copy.deepcopy(row)
    turn = _last(other["prompt"])
    turn["content"] = _edited(turn["content"] + " " + "Please answer in full.", generator)
    mine = copy.deepcopy(row)
    _last(mine["prompt"])["content"] += " Please answer in full."
    return Planted([mine], eval_=[other])


def shared_with_suite(row: Row, generator: random.Random) -> Planted:
    prompt = "\n".join(turn["content"] for turn in row["prompt"])
    pair = {"prompt": prompt, "chosen": "Yes.", "rejected": "No.", "subset": "planted"}
    return Planted([row], suite=[pair])


def split_column_leak(row: Row, generator: random.Random) -> Planted:
    held = copy.deepcopy(row)
    for response in held["responses"]:
        _last(response)["content"] = "In other words: " + _last(response)["content"][::-1]
    return Planted([{**held, "split": "test"}, {**row, "split": "train"}])


def ties(row: Row, generator: random.Random) -> Planted:
    return Planted([{**row, "grades": [0.5, 0.5]}])


def over_length(row: Row, generator: random.Random) -> Planted:
    """A response of 6,000 words."""
    broken = copy.deepcopy(row)
    turn = _last(broken["responses"][0])
    turn["content"] += " " + " ".join(
        generator.choices(turn["content"].split() or ["word"], k=6000)
    )
    return Planted([broken])


def mixed_scripts(row: Row, generator: random.Random) -> Planted:
    """An answer in letters that the row has none of."""
    broken = copy.deepcopy(row)
    letters = set(str(row))
    others = [text for text in OTHER_SCRIPTS if not letters & {c for c in text if c.isalpha()}]
    _last(broken["responses"][1])["content"] = generator.choice(others)
    return Planted([broken])


def several_votes(row: Row, generator: random.Random) -> Planted:
    """Two for, one against."""
    votes = [copy.deepcopy(row) for _ in range(3)]
    votes[2]["grades"] = row["grades"][::-1]
    return Planted([{**vote, "annotator": f"person {n}"} for n, vote in enumerate(votes)])


def role_order(row: Row, generator: random.Random) -> Planted:
    broken = copy.deepcopy(row)
    kind = generator.randrange(3)
    if kind == 0:
        broken["prompt"].append({"role": "system", "content": "Be brief."})
    elif kind == 1:
        broken["prompt"].append({"role": "user", "content": "Well?"})
    else:
        _last(broken["responses"][0])["role"] = "user"
    return Planted([broken])


def empty_turns(row: Row, generator: random.Random) -> Planted:
    broken = copy.deepcopy(row)
    turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": "Go on."}]
    broken["prompt"] = [*turns, *broken["prompt"]]
    return Planted([broken])


def special_tokens(row: Row, generator: random.Random) -> Planted:
    broken = copy.deepcopy(row)
    turn = _last(broken["responses"][generator.randrange(2)])
    token = generator.choice(["<|im_end|>", "<|eot_id|>", "</s>", " [/INST] ", "<end_of_turn>"])
    turn["content"] += token
    return Planted([broken])


def dialogue_markers(row: Row, generator: random.Random) -> Planted:
    broken = copy.deepcopy(row)
    turn = _last(broken["responses"][generator.randrange(2)])
    if generator.random() < 0.5:
        turn["content"] += "\n\nHuman: And what else?\n\nAssistant: Nothing."
    else:
        turn["content"] = "Assistant: " + turn["content"]
    return Planted([broken])


def bad_characters(row: Row, generator: random.Random) -> Planted:
    broken = copy.deepcopy(row)
    turn = _last(broken["responses"][generator.randrange(2)])
    turn["content"] += generator.choice([" It�s so.", " Itâ€™s so.", " It\x08 is so.", " cafÃ©"])
    return Planted([broken])


def nothing_compared(row: Row, generator: random.Random) -> Planted:
    return Planted([{**row, "responses": row["responses"][:1], "grades": row["grades"][:1]}])


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        exact_duplicates,
        near_duplicates,
        opposite_labels,
        identical_responses,
        empty_responses,
        identical_after_truncation,
        shared_with_eval,
        near_eval,
        shared_with_suite,
        split_column_leak,
        ties,
        over_length,
        mixed_scripts,
        several_votes,
        role_order,
        empty_turns,
        special_tokens,
        dialogue_markers,
        bad_characters,
        nothing_compared,
    )
}
"""Kinds of defects, by the name of the check that should find them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedSet:
    """Rows to audit and to compare with. ``lines[kind]`` are the line numbers, from 1, of the rows
    that the check of that name should find; ``planted`` all lines that are not clean rows.
    """

    rows: list[Row]
    eval_: list[Row]
    suite: list[Row]
    lines: dict[str, list[int]]
    planted: set[int]


def plant(clean: Sequence[Row], each: int, seed: int) -> PlantedSet:
    """``each`` defects of each kind in the given rows, spread over them by chance.

    Rows that are not used for a defect stay as they are. ``clean`` is not changed.
    """
    generator = random.Random(seed)
    names = [name for name in KINDS for _ in range(each)]
    places = generator.sample(range(len(clean)), len(names))
    by_place = dict(zip(places, names, strict=True))
    found = PlantedSet(rows=[], eval_=[], suite=[], lines={n: [] for n in KINDS}, planted=set())
    for place, row in enumerate(clean):
        name = by_place.get(place)
        if name is None:
            found.rows.append(row)
            continue
        planted = KINDS[name](copy.deepcopy(row), generator)
        for bad in planted.bad:
            found.rows.append(bad)
            found.planted.add(len(found.rows))
        found.lines[name].append(len(found.rows))
        found.eval_.extend(planted.eval_)
        found.suite.extend(planted.suite)
    return found
