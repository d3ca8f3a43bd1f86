from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.evaluation.analysis.error_analysis import SMALL_SLICE, bounded, measure_slices
from plaudit.evaluation.table import pairs
from plaudit.types import TokenReward
from tests.tables import score_table


def table_of(count, *, right=lambda number: 0.75, features=lambda number: {}, responses=2, seed=0):
    generator = np.random.default_rng(seed)
    wins_C = [generator.random() < right(number) for number in range(count)]
    return score_table(
        [
            {
                "reward": -float(response) if wins_C[number] else float(response),
                "metadata": {"kind": number % 4, "rare": number == 0},
                "features": features(number),
            }
            for response in range(responses if number % 2 else 2)
        ]
        for number in range(count)
    )


def described(number):
    return {
        "turns": 1 + 2 * (number % 3),
        "prompt_characters": number,
        "truncated": number % 10 == 0,
        "prompt_script": "latin" if number % 5 else "cyrillic",
    }


def test_every_slicing_covers_every_pair_with_its_counts():
    table = table_of(200, features=described, responses=3)
    paired = pairs(table)
    entries = measure_slices(table, paired)
    columns: dict[str, list[Any]] = {}
    for entry in entries:
        columns.setdefault(entry.column, []).append(entry)
        assert entry.small == (entry.pairs < SMALL_SLICE)
        assert (entry.p is None) == (entry.small or entry.pairs == len(paired))
        assert entry.groups <= entry.pairs
    expected = {
        *("source", "turns", "prompt_characters", "responses", "truncated", "prompt_script"),
        *("kind", "rare"),
    }
    assert set(columns) == expected
    for found in columns.values():
        assert sum(entry.pairs for entry in found) == len(paired)
    assert [entry.value for entry in columns["turns"]] == ["1", "3", "5"]
    assert [entry.value for entry in columns["responses"]] == ["2", "3"]
    assert [entry.value for entry in columns["prompt_characters"]] == [
        "0 to 49", "50 to 99", "100 to 149", "150 to 199"
    ]  # fmt: skip
    assert {entry.value for entry in columns["truncated"]} == {"whole", "prompt cut"}


def test_a_weak_slice_significant_and_the_others_do_not():
    weak = table_of(800, right=lambda number: 0.45 if number % 4 == 3 else 0.8)
    found = {
        entry.value: entry for entry in measure_slices(weak, pairs(weak)) if entry.column == "kind"
    }
    assert found["3"].significant
    assert found["3"].p_adjusted >= found["3"].p
    even = table_of(800)
    assert not any(entry.significant for entry in measure_slices(even, pairs(even)))


def test_small_slices_are_marked_and_never_stand_out():
    table = table_of(100, right=lambda number: float(number > 0))
    entry = next(e for e in measure_slices(table, pairs(table)) if e.value == "True")
    assert (entry.pairs, entry.small, entry.p, entry.significant) == (
        1,
        True,
        None,
        False,
    )


def test_long_tails_and_unknown_values():
    table = table_of(
        120,
        features=lambda n: {} if n % 3 == 0 else {"turns": 1 if n % 3 == 1 else 50 + n},
    )
    values = [e.value for e in measure_slices(table, pairs(table)) if e.column == "turns"]
    assert values == ["1", "10 or more", None]


TOKENS = st.lists(
    st.tuples(st.sampled_from(["", "a", "bc "]), st.floats(-9, 9, allow_nan=False)), max_size=30
)


def rewards(tokens: list[tuple[str, float]]) -> list[TokenReward]:
    return [TokenReward(text=text, reward=reward) for text, reward in tokens]


@given(TOKENS, st.integers(2, 8))
def test_tokens_are_kept_or_counted(tokens: list[tuple[str, float]], most: int) -> None:
    facts = bounded(rewards(tokens), most=most)
    if facts is None:
        assert not tokens
        return
    visible = sum(bool(text) for text, _ in tokens) + (tokens[-1][0] == "")
    assert len(facts.tokens) + facts.left_out == visible
    assert len(facts.tokens) <= most
    assert facts.tokens[-1].reward == tokens[-1][1]
    if not facts.left_out:
        assert "".join(one.text for one in facts.tokens) == "".join(t for t, _ in tokens)


def test_changes_and_extremes() -> None:
    # The second token is half of a character that the third completes.
    facts = bounded(rewards([("a", 1.0), ("", 5.0), ("é", 3.0), ("b", 2.5)]))
    assert facts is not None
    changes = [(one.text, one.change) for one in facts.tokens]
    assert changes == [("a", None), ("é", 2.0), ("b", -0.5)]
    assert facts.largest_rise is not None
    assert facts.largest_fall is not None
    assert facts.largest_rise.text == "é"
    assert facts.largest_fall.text == "b"


@pytest.mark.parametrize("tokens", [None, [], [("a", float("nan")), ("b", 1.0)]])
def test_nothing_is_nothing(tokens: list[tuple[str, float]] | None) -> None:
    assert bounded(rewards(tokens) if tokens else None) is None
