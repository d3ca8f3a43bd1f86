"""Splits: no prompt on both sides, exact sizes, the same for the same seed."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.data.load import load_comparisons
from plaudit.data.split import assign_parts, count_leaks, split, split_rows
from plaudit.errors import DataError
from plaudit.recipe.schema import Source
from tests.conftest import write_jsonl

By = Literal["prompt", "row"]
Rows = list[tuple[int, str]]
"""A row's number and its group."""


def rows_of(groups: Sequence[str]) -> Rows:
    return list(enumerate(groups))


def parted(rows: Rows, fraction: float, *, by: By, seed: int) -> tuple[Rows, Rows]:
    """The two parts of rows whose groups are texts."""
    codes = {group: code for code, group in enumerate(sorted({group for _, group in rows}))}
    row_N = np.array([number for number, _ in rows], dtype=np.int64)
    group_N = np.array([codes[group] for _, group in rows], dtype=np.uint64)
    train, held_out = split_rows(row_N, group_N, fraction, by=by, seed=seed)
    return [rows[i] for i in train], [rows[i] for i in held_out]


GROUPS = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60)
FRACTIONS = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 50)


@given(GROUPS, FRACTIONS, SEEDS)
def test_by_prompt_no_group_is_on_both_sides(groups: list[str], fraction: float, seed: int) -> None:
    rows = rows_of(groups)
    if len(set(groups)) < 2:
        with pytest.raises(DataError, match=r"the same prompt.*split_by: row"):
            parted(rows, fraction, by="prompt", seed=seed)
        return
    train, held_out = parted(rows, fraction, by="prompt", seed=seed)
    assert train
    assert held_out
    assert not {group for _, group in train} & {group for _, group in held_out}
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
    rows = rows_of([*groups, "x", "y"])
    _, held_out = parted(rows, fraction, by="prompt", seed=seed)
    shuffler.shuffle(rows)
    _, again = parted(rows, fraction, by="prompt", seed=seed)
    assert {number for number, _ in again} == {number for number, _ in held_out}


@given(GROUPS, FRACTIONS, SEEDS)
def test_by_row_the_size_is_exact(groups: list[str], fraction: float, seed: int) -> None:
    rows = rows_of(groups)
    train, held_out = parted(rows, fraction, by="row", seed=seed)
    assert len(held_out) == min(math.ceil(fraction * len(rows)), len(rows) - 1)
    assert sorted(train + held_out, key=rows.index) == rows
    assert list(held_out) == sorted(held_out, key=rows.index)


def test_the_reference_run_has_its_sizes() -> None:
    rows = rows_of([str(number) for number in range(24_004)])
    for by in ("prompt", "row"):
        train, held_out = parted(rows, 0.1, by=by, seed=42)
        assert (len(train), len(held_out)) == (21_603, 2_401)


def test_by_row_is_the_split_of_the_datasets_library() -> None:
    from datasets import Dataset

    rows = rows_of(["a"] * 101)
    numbers = [number for number, _ in rows]
    theirs = Dataset.from_dict({"id": numbers}).train_test_split(0.1, seed=42)
    train, held_out = parted(rows, 0.1, by="row", seed=42)
    assert {number for number, _ in held_out} == set(theirs["test"]["id"])
    assert {number for number, _ in train} == set(theirs["train"]["id"])


def test_the_seed_changes_what_is_held_out() -> None:
    rows = rows_of([str(number) for number in range(100)])
    for by in ("prompt", "row"):
        one, same, other = (parted(rows, 0.2, by=by, seed=seed)[1] for seed in (1, 1, 2))
        assert one == same
        assert one != other


def test_a_large_group_does_not_drown_the_held_out_part() -> None:
    rows = rows_of(["big"] * 900 + [str(number) for number in range(100)])
    for seed in range(20):
        _, held_out = parted(rows, 0.05, by="prompt", seed=seed)
        assert len(held_out) == 50


@pytest.mark.parametrize("by", ["prompt", "row"])
def test_copies_of_a_row_stay_together_and_are_held_out_once(by: By) -> None:
    once = rows_of([str(number) for number in range(40)])
    thrice = [row for row in once for _ in range(3)]
    train, held_out = parted(thrice, 0.25, by=by, seed=3)
    assert parted(once, 0.25, by=by, seed=3)[1] == held_out
    assert len(held_out) == len({number for number, _ in held_out}) == 10
    assert set(Counter(number for number, _ in train).values()) == {3}
    assert not {number for number, _ in train} & {number for number, _ in held_out}


@pytest.mark.parametrize("by", ["prompt", "row"])
def test_parts_of_stored_comparisons(by: By, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    prompts = [f"p{number % 7}" for number in range(30)]
    write_jsonl(path, [{"prompt": p, "chosen": "a", "rejected": "b"} for p in prompts])
    loaded = load_comparisons((Source(path=str(path), weight=2),), seed=1).comparisons
    train, held_out = split(loaded, 0.3, by=by, seed=1)
    held_rows = {comparison.where for comparison in held_out}
    assert list(train) == [row for row in loaded if row.where not in held_rows]
    assert list(held_out) == [row for row in loaded[::2] if row.where in held_rows]
    in_train = {row.group for row in train}
    leaks = [row for row in held_out if row.group in in_train]
    assert count_leaks(train, held_out) == len(leaks)
    assert (len(leaks) > 0) == (by == "row")


def test_what_cannot_be_split_is_refused() -> None:
    one = rows_of(["a"])
    with pytest.raises(DataError, match="too few to hold any out"):
        parted(one, 0.5, by="row", seed=1)
    with pytest.raises(DataError, match="same prompt"):
        parted(one * 3, 0.5, by="prompt", seed=1)
    two = rows_of(["a", "b"])
    with pytest.raises(DataError, match="expected a fraction between 0 and 1"):
        parted(two, 1.0, by="row", seed=1)
    assert len(parted(rows_of(list("abcdef")), 4, by="prompt", seed=1)[1]) == 4
    assert len(parted(rows_of(list("abcdef")), 9, by="row", seed=1)[1]) == 5
    with pytest.raises(DataError, match="expected 0 or more"):
        parted(two, 0.5, by="row", seed=-1)


STRATA = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=12, max_size=80)


@given(rows=STRATA, seed=SEEDS, shares=st.sampled_from([(0.1, 0.1), (0.3, 0.2), (0.05, 0.6)]))
def test_parts_have_their_sizes_and_their_share_of_each_stratum(
    rows: list[tuple[int, int]], seed: int, shares: tuple[float, float]
) -> None:
    """Strata of which a group has one, as sources mostly do."""
    group_N = np.array([group * 10 + stratum for group, stratum in rows], dtype=np.uint64)
    stratum_N = np.array([stratum for _, stratum in rows], dtype=np.int64)
    sizes = np.unique(group_N, return_counts=True)[1]
    if len(sizes) < 3:
        return
    part_N = assign_parts(group_N, shares, by="prompt", seed=seed, stratum_N=stratum_N)
    assert {0, 1, 2} == set(part_N.tolist())
    for group in np.unique(group_N):
        assert len(set(part_N[group_N == group].tolist())) == 1
    largest = int(sizes.max())
    if len(sizes) > 20:
        for part, share in enumerate(shares, start=1):
            assert abs(int((part_N == part).sum()) - share * len(rows)) <= largest + 1
            for stratum in set(stratum_N.tolist()):
                mine = int(((part_N == part) & (stratum_N == stratum)).sum())
                assert abs(mine - share * int((stratum_N == stratum).sum())) <= 2 * largest + 1
    order = np.random.default_rng(seed).permutation(len(rows))
    again = assign_parts(group_N[order], shares, by="prompt", seed=seed, stratum_N=stratum_N[order])
    assert again.tolist() == part_N[order].tolist()


def test_parts_of_one_size_are_the_training_split() -> None:
    group_N = np.arange(100, dtype=np.uint64) // 3
    for by in ("prompt", "row"):
        train, held_out = split_rows(np.arange(100), group_N, 0.2, by=by, seed=5)
        part_N = assign_parts(group_N, [0.2], by=by, seed=5)
        assert np.flatnonzero(part_N == 0).tolist() == train.tolist()
        assert sorted(held_out.tolist()) == np.flatnonzero(part_N == 1).tolist()


def test_too_few_groups_for_the_parts() -> None:
    two = np.array([1, 1, 2], dtype=np.uint64)
    with pytest.raises(DataError, match="the 3 rows have 2 prompts, too few for 3 parts"):
        assign_parts(two, [0.3, 0.3], by="prompt", seed=0)
    with pytest.raises(DataError, match="2 rows are too few for 3 parts"):
        assign_parts(two[:2], [0.3, 0.3], by="row", seed=0)
