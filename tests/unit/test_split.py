"""Splits: no prompt on both sides, exact sizes, the same for the same seed."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.data.split import count_leaks, split
from plaudit.errors import DataError
from plaudit.types import Comparison


def comparisons_of(groups: list[str]) -> list[Comparison]:
    return [
        Comparison(
            id=f"s:{number}",
            prompt=group,
            responses=("a", "b"),
            grades=(1.0, 0.0),
            group=group,
            source="s",
            where=f"s.jsonl:{number}",
        )
        for number, group in enumerate(groups, start=1)
    ]


GROUPS = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60)
FRACTIONS = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 50)


@given(GROUPS, FRACTIONS, SEEDS)
def test_by_prompt_no_group_is_on_both_sides(groups: list[str], fraction: float, seed: int) -> None:
    rows = comparisons_of(groups)
    if len(set(groups)) < 2:
        with pytest.raises(DataError, match=r"the same prompt.*split_by: row"):
            split(rows, fraction, by="prompt", seed=seed)
        return
    train, held_out = split(rows, fraction, by="prompt", seed=seed)
    assert train
    assert held_out
    assert count_leaks(train, held_out) == 0
    assert not {row.group for row in train} & {row.group for row in held_out}
    assert sorted(train + held_out, key=rows.index) == rows
    for part in (train, held_out):
        assert list(part) == sorted(part, key=rows.index)
    largest = max(Counter(groups).values())
    target = math.ceil(fraction * len(rows))
    assert abs(len(held_out) - target) <= largest


@given(GROUPS, FRACTIONS, SEEDS, st.randoms(use_true_random=False))
def test_by_prompt_does_not_depend_on_the_order(
    groups: list[str], fraction: float, seed: int, shuffler: random.Random
) -> None:
    rows = comparisons_of([*groups, "x", "y"])
    _, held_out = split(rows, fraction, by="prompt", seed=seed)
    shuffler.shuffle(rows)
    _, again = split(rows, fraction, by="prompt", seed=seed)
    assert {row.id for row in again} == {row.id for row in held_out}


@given(GROUPS, FRACTIONS, SEEDS)
def test_by_row_the_size_is_exact_and_leaks_are_counted(
    groups: list[str], fraction: float, seed: int
) -> None:
    rows = comparisons_of(groups)
    train, held_out = split(rows, fraction, by="row", seed=seed)
    assert len(held_out) == min(math.ceil(fraction * len(rows)), len(rows) - 1)
    assert sorted(train + held_out, key=rows.index) == rows
    assert list(held_out) == sorted(held_out, key=rows.index)
    in_train = {row.group for row in train}
    assert count_leaks(train, held_out) == len([row for row in held_out if row.group in in_train])


def test_the_reference_run_has_its_sizes() -> None:
    rows = comparisons_of([str(number) for number in range(24_004)])
    for by in ("prompt", "row"):
        train, held_out = split(rows, 0.1, by=by, seed=42)
        assert (len(train), len(held_out)) == (21_603, 2_401)


def test_by_row_is_the_split_of_the_datasets_library() -> None:
    from datasets import Dataset

    rows = comparisons_of(["a"] * 101)
    theirs = Dataset.from_dict({"id": [row.id for row in rows]}).train_test_split(0.1, seed=42)
    train, held_out = split(rows, 0.1, by="row", seed=42)
    assert {row.id for row in held_out} == set(theirs["test"]["id"])
    assert {row.id for row in train} == set(theirs["train"]["id"])


def test_the_seed_changes_what_is_held_out() -> None:
    rows = comparisons_of([str(number) for number in range(100)])
    for by in ("prompt", "row"):
        one, same, other = (split(rows, 0.2, by=by, seed=seed)[1] for seed in (1, 1, 2))
        assert one == same
        assert one != other


def test_a_large_group_does_not_drown_the_held_out_part() -> None:
    rows = comparisons_of(["big"] * 900 + [str(number) for number in range(100)])
    for seed in range(20):
        _, held_out = split(rows, 0.05, by="prompt", seed=seed)
        assert len(held_out) == 50


@pytest.mark.parametrize("by", ["prompt", "row"])
def test_copies_of_a_row_stay_together_and_are_held_out_once(by: str) -> None:
    once = comparisons_of([str(number) for number in range(40)])
    thrice = [row for row in once for _ in range(3)]
    train, held_out = split(thrice, 0.25, by=by, seed=3)  # type: ignore[arg-type]
    assert split(once, 0.25, by=by, seed=3)[1] == held_out  # type: ignore[arg-type]
    assert len(held_out) == len({row.id for row in held_out}) == 10
    assert set(Counter(row.id for row in train).values()) == {3}
    assert not {row.id for row in train} & {row.id for row in held_out}


def test_what_cannot_be_split_is_refused() -> None:
    one = comparisons_of(["a"])
    with pytest.raises(DataError, match="too few to hold any out"):
        split(one, 0.5, by="row", seed=1)
    with pytest.raises(DataError, match="same prompt"):
        split(one * 3, 0.5, by="prompt", seed=1)
    two = comparisons_of(["a", "b"])
    with pytest.raises(DataError, match="expected one between 0 and 1"):
        split(two, 1.0, by="row", seed=1)
    with pytest.raises(DataError, match="expected 0 or more"):
        split(two, 0.5, by="row", seed=-1)
