"""Pairs out of the documentation: in equal shares, the same for the same seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.formats.readers import choose_reader, to_comparison
from plaudit.data.perturb.text import make_context
from plaudit.data.sources import documentation
from plaudit.data.sources.documentation import (
    MIX,
    MOST_PAIRS,
    Answer,
    answers,
    build_pairs,
    read_documentation,
)
from plaudit.errors import DataError

CONTEXT = make_context(["Return the sum.", "Open the file."])
PART: tuple[Literal["training", "heldout"], ...] = ("training", "heldout")


@given(count=st.integers(1, 60), seed=st.integers(0, 5), part=st.sampled_from(PART))
@settings(deadline=None, max_examples=20)
def test_operators_have_equal_shares_and_a_smaller_set_begins_a_larger(
    count: int, seed: int, part: Literal["training", "heldout"]
) -> None:
    rows = build_pairs(count, seed, part)
    shares = Counter(row["subset"] for row in rows)
    assert len(rows) == count
    assert max(shares.values()) - min(shares[name] for name in MIX) <= 1
    assert rows == build_pairs(60, seed, part)[:count]


@pytest.mark.parametrize("part", PART)
def test_the_largest_set_has_no_pair_twice_and_knows_its_part_alone(
    part: Literal["training", "heldout"],
) -> None:
    rows = build_pairs(MOST_PAIRS, 42, part)
    assert len(rows) == MOST_PAIRS
    assert len({row["id"] for row in rows}) == MOST_PAIRS
    shares = Counter(row["subset"] for row in rows)
    assert set(shares) == set(MIX)
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
    monkeypatch.setattr(
        documentation, "material", lambda _: ((answer,), CONTEXT, {"a": frozenset()})
    )
    with pytest.raises(DataError, match="gives no more pairs of the perturbation"):
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
