"""Mutations: always other than the text, the same for the same seed, in equal shares."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from random import Random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data import mutate
from plaudit.data.documentation import Answer, answers, read_documentation
from plaudit.data.mutate import (
    MOST_PAIRS,
    OPERATORS,
    build_pairs,
    make_context,
    mutate_rows,
)
from plaudit.data.readers import choose_reader, to_comparison
from plaudit.errors import DataError
from plaudit.types import Comparison, Message, Turns

TEXTS = (
    "Return the first item of the list, or None if the list is empty.",
    "Open the file for reading. Raise OSError if it cannot be opened.",
    "Set the size to 4096 bytes. The new_size must not be 0.",
    "Deprecated alias.",
    "Wait until all threads have stopped, then close the socket.",
    "Maps MixedCase names to their VALUES in 'order'.",
)
CONTEXT = make_context(TEXTS)
PART: tuple[Literal["training", "heldout"], ...] = ("training", "heldout")

texts = st.one_of(st.text(), st.text("ab cd.\n", max_size=40), st.sampled_from(TEXTS))


@pytest.mark.parametrize("name", OPERATORS)
@given(text=texts, seed=st.integers())
def test_a_mutation_is_another_text_and_the_same_again(name: str, text: str, seed: int) -> None:
    mutated = OPERATORS[name](text, Random(seed), CONTEXT)
    assert mutated == OPERATORS[name](text, Random(seed), CONTEXT)
    if mutated is not None:
        assert mutated.split() != text.split()
        assert mutated.strip()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("text", ["", "  \n "])
def test_nothing_can_be_made_worse_only_by_another_text(name: str, text: str) -> None:
    mutated = OPERATORS[name](text, Random(0), CONTEXT)
    assert mutated is None or name == "other_text"


@given(text=st.sampled_from(TEXTS), seed=st.integers(0, 1000))
def test_other_text_is_another_answer_of_like_length(text: str, seed: int) -> None:
    found = OPERATORS["other_text"](text, Random(seed), CONTEXT)
    assert found in set(TEXTS) - {text}


def test_other_text_never_is_a_right_answer() -> None:
    context = make_context(["Stop it now.", "Go on with it.", "Begin it, then stop it now."])
    for seed in range(20):
        assert OPERATORS["other_text"]("Stop it now.", Random(seed), context) == "Go on with it."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Stop before the file.", {"Stop after the file."}),
        ("This is not it.", {"This is it."}),
        ("True for files.", {"False for files."}),
        ("Return the sum.", {"Do not return the sum."}),
        ("Returns the sum.", {"Does not return the sum."}),
        ("Empty or first.", {"Non-empty or first.", "Empty or last."}),
        ("Sum of x.true and 'all'", {None}),
    ],
)
def test_reversed_meaning_turns_one_word(text: str, expected: set[str | None]) -> None:
    found = {OPERATORS["reversed_meaning"](text, Random(seed), CONTEXT) for seed in range(40)}
    assert found == expected


def test_changed_value_replaces_one_name_or_number_everywhere() -> None:
    text = "Raise KeyError for 7, and KeyError for 7 again."
    for seed in range(40):
        changed = OPERATORS["changed_value"](text, Random(seed), CONTEXT)
        assert changed is not None
        words = re.findall(r"\w+", changed)
        assert (words.count("KeyError"), words.count("7")) in {(2, 0), (0, 2)}
        assert len(set(words)) == len(set(re.findall(r"\w+", text)))


@given(st.sampled_from(TEXTS), st.integers(0, 1000))
def test_dropped_and_truncated_words_are_words_of_the_text(text: str, seed: int) -> None:
    for name in ("dropped_words", "truncation"):
        mutated = OPERATORS[name](text, Random(seed), CONTEXT)
        if mutated is not None:
            assert not Counter(mutated.split()) - Counter(text.split())
            assert len(mutated.split()) < len(text.split())
    cut = OPERATORS["truncation"](text, Random(seed), CONTEXT)
    assert cut is None or (text.startswith(cut) and cut[-1] not in ".!?")


@given(st.sampled_from(TEXTS), st.integers(0, 1000))
def test_shuffled_words_are_the_same_words(text: str, seed: int) -> None:
    mutated = OPERATORS["shuffled_words"](text, Random(seed), CONTEXT)
    assert mutated is None or sorted(mutated.split()) == sorted(text.split())


@given(st.sampled_from(TEXTS), st.integers(0, 1000))
def test_appended_and_repeated_words_leave_the_text_whole(text: str, seed: int) -> None:
    contradicted = OPERATORS["contradiction"](text, Random(seed), CONTEXT)
    assert contradicted is None or contradicted.startswith(text)
    for name in ("repeated_phrase", "verbose_filler"):
        longer = OPERATORS[name](text, Random(seed), CONTEXT)
        if longer is not None:
            words = iter(longer.replace(".", " ").split())
            assert all(word in words for word in text.replace(".", " ").split())


@given(count=st.integers(1, 60), seed=st.integers(0, 5), part=st.sampled_from(PART))
@settings(deadline=None, max_examples=20)
def test_operators_have_equal_shares_and_a_smaller_set_begins_a_larger(
    count: int, seed: int, part: Literal["training", "heldout"]
) -> None:
    rows = build_pairs(count, seed, part)
    shares = Counter(row["subset"] for row in rows)
    assert len(rows) == count
    assert max(shares.values()) - min(shares[name] for name in OPERATORS) <= 1
    assert rows == build_pairs(60, seed, part)[:count]


@pytest.mark.parametrize("part", PART)
def test_the_largest_set_has_no_pair_twice_and_knows_its_part_alone(
    part: Literal["training", "heldout"],
) -> None:
    rows = build_pairs(MOST_PAIRS, 42, part)
    assert len(rows) == MOST_PAIRS
    assert len({row["id"] for row in rows}) == MOST_PAIRS
    shares = Counter(row["subset"] for row in rows)
    assert set(shares) == set(OPERATORS)
    assert max(shares.values()) - min(shares.values()) <= 1
    records = [record for record in read_documentation() if record.part == part]
    known = {(record.name, answer.text) for record in records for answer in answers(record)}
    right = {text for _, text in known}
    pairs = set()
    for row in rows:
        (question,), (chosen,), (rejected,) = row["prompt"], row["chosen"], row["rejected"]
        assert (row["name"], chosen["content"]) in known
        assert row["name"] in question["content"]
        assert chosen["content"].split() != rejected["content"].split()
        if row["subset"] == "other_text":
            assert rejected["content"] in right
        pairs.add((question["content"], chosen["content"], rejected["content"]))
    assert len(pairs) == MOST_PAIRS


def test_a_thing_is_asked_about_in_one_phrasing() -> None:
    """Else a split by prompt would leave the same answer on both sides."""
    asked: dict[str, set[str]] = {}
    for row in build_pairs(6000, 42):
        asked.setdefault(row["chosen"][0]["content"], set()).add(row["prompt"][0]["content"])
    phrasings = {prompt.split("`")[0] for prompts in asked.values() for prompt in prompts}
    assert len(phrasings) > 5
    several = [answer for answer, prompts in asked.items() if len(prompts) > 1]
    # The few answers that stand under several names, word for word.
    assert len(several) < 0.01 * len(asked)


def test_what_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer(name="a", module="a", kind="docstring", index=0, text="Return the sum.")
    monkeypatch.setattr(mutate, "_material", lambda _: ((answer,), CONTEXT, {"a": frozenset()}))
    with pytest.raises(DataError, match="gives no more pairs of the operator"):
        build_pairs(200, 0)


def test_no_heldout_module_is_in_training() -> None:
    modules = {
        part: {
            (record.kind, record.module) for record in read_documentation() if record.part == part
        }
        for part in ("training", "heldout")
    }
    assert not modules["training"] & modules["heldout"]
    heldout = {row["chosen"][0]["content"] for row in build_pairs(5000, 1, "heldout")}
    training = {
        row[column][0]["content"]
        for row in build_pairs(5000, 1, "training")
        for column in ("chosen", "rejected")
    }
    assert not heldout & training


def test_a_set_depends_on_its_seed_alone() -> None:
    """Golden: the same bytes on every machine and in every supported version of Python."""

    def digest(seed: int) -> str:
        rows = json.dumps(build_pairs(500, seed), sort_keys=True)
        return hashlib.sha256(rows.encode()).hexdigest()

    assert digest(7) == digest(7) != digest(8)
    assert digest(42) == GOLDEN


GOLDEN = "66f09c09f8989c94140920bece48750adbe04adb51b736c75db7cd01e9b58a45"


@pytest.mark.parametrize("count", [0, -1, MOST_PAIRS + 1])
def test_a_size_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(DataError, match="pairs were asked for; expected 1 to 24004"):
        build_pairs(count, 0)


def test_the_base_s_own_reading_makes_no_pairs() -> None:
    with pytest.raises(DataError, match="use training or heldout"):
        build_pairs(1, 0, "pretraining")  # type: ignore[arg-type]


def test_rows_read_back_as_comparisons() -> None:
    row = build_pairs(1, 0)[0]
    reader = choose_reader(row, where="row 1")
    comparison = to_comparison(reader, row, number=1, where="row 1", source="file")
    assert reader.name == "explicit_conversational"
    assert comparison.id == row["id"]
    assert comparison.grades == (1.0, 0.0)
    assert comparison.metadata["subset"] == row["subset"]


def comparison(name: str, responses: tuple[Turns, ...], grades: tuple[float, ...]) -> Comparison:
    return Comparison(
        id=name,
        prompt="Why?",
        responses=responses,
        grades=grades,
        group=name,
        source="file",
        where=name,
    )


def test_any_comparison_can_be_mutated_and_what_cannot_is_counted() -> None:
    said = (Message(role="assistant", content="Open the file before it is read."),)
    picture = (Message(role="assistant", content=[{"type": "image"}]),)
    made = mutate_rows(
        [
            comparison("text", ("Worse.", "Close the socket after it was read."), (0.0, 1.0)),
            comparison("chat", (said,), ()),
            comparison("picture", (picture,), ()),
            comparison("short", ("Yes.",), ()),
        ],
        ["reversed_meaning", "truncation"],
        seed=3,
    )
    assert [row["id"] for row in made.rows] == [
        "text-reversed_meaning",
        "text-truncation",
        "chat-reversed_meaning",
        "chat-truncation",
    ]
    assert made.refused == {
        "no text": 2,
        "reversed_meaning does not apply": 1,
        "truncation does not apply": 1,
    }
    assert made.rows[0]["chosen"] == "Close the socket after it was read."
    assert made.rows[2]["rejected"][0]["role"] == "assistant"
    assert made.rows[2]["rejected"][0]["content"] != said[0].content


def test_an_unknown_operator_is_one_sentence() -> None:
    with pytest.raises(DataError, match="no mutation operator 'upside_down'; expected some of"):
        mutate_rows([], ["upside_down"], seed=0)
