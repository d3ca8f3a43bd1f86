from __future__ import annotations

import errno
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.errors import DataError, ModelError, OutputError
from plaudit.evaluation.table import (
    ScoredSet,
    build_table,
    concatenate,
    pairs,
    read_held_out,
    read_rewards,
    read_table,
    write_rewards,
    write_table,
)
from plaudit.types import Comparison, Outputs, TokenTree
from tests.tables import score_row, score_table


def row(comparison="c", response=0, reward=0.0, grade=0.0, **changes):
    fields = {"group": "g", "tokens": 5, "characters": 20, "reward": reward, "grade": grade}
    number = sum(map(ord, comparison))
    return score_row(number, response, comparison=comparison, **(fields | changes))


ROWS = st.lists(
    st.builds(
        row,
        comparison=st.sampled_from("abc"),
        dataset=st.sampled_from(["x", "y"]),
        group=st.sampled_from("pq"),
        reward=st.floats(-9, 9),
        grade=st.sampled_from([0.0, 0.5, 1.0]),
        margin=st.floats(0, 1),
    ),
    max_size=24,
)


@settings(deadline=None)
@given(ROWS)
def test_pairs_are_all_rows_of_one_comparison_with_higher_and_lower_grade(rows):
    paired = pairs(build_table(rows))
    order = list(dict.fromkeys((item.dataset, item.comparison) for item in rows))
    expected = sorted(
        (order.index((high.dataset, high.comparison)), i, j)
        for i, high in enumerate(rows)
        for j, low in enumerate(rows)
        if (high.dataset, high.comparison) == (low.dataset, low.comparison)
        and high.grade > low.grade
    )
    found = zip(paired.comparison_P, paired.winner_P, paired.loser_P, strict=True)
    assert list(found) == expected
    groups = list(dict.fromkeys(item.group for item in rows))
    for number, (_, i, j) in enumerate(expected):
        assert paired.delta_P[number] == rows[i].reward - rows[j].reward
        assert paired.margin_P[number] == rows[i].margin
        assert groups[paired.group_P[number]] == rows[i].group


def test_rewards_that_are_not_finite_are_refused():
    table = build_table([row(reward=1.0), row(comparison="bad", response=1, reward=float("nan"))])
    with pytest.raises(ModelError, match=r"1 of 2 rewards .* response 1 of comparison 'bad'"):
        pairs(table)


def test_where_keeps_marked_rows_and_pairs():
    table = build_table(
        [row(c, k, grade=1.0 - k, metadata={"subset": c}) for c in "ab" for k in (0, 1)]
    )
    kept = table.take(table.comparison_N == "b")
    assert list(kept.comparison_N) == ["b", "b"]
    assert list(kept.metadata["subset"]) == ["b", "b"]
    paired = pairs(table)
    assert list(paired.where(paired.comparison_P == 1).winner_P) == [2]


METADATA = st.dictionaries(
    st.sampled_from(["subset", "id", "reward", "metadata.id", "n|`<\n", "flag", "mixed"]),
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text("aé|<\n", max_size=5)
    | st.lists(st.integers(), max_size=2),
)


@settings(deadline=None)
@given(st.lists(METADATA, max_size=5))
def test_write_then_read_keeps_every_core_value_and_metadata_name(tmp_path_factory, metadata):
    path = tmp_path_factory.mktemp("table") / "predictions.parquet"
    table = build_table(
        [row(f"c{n}", n, reward=n / 3, metadata=item) for n, item in enumerate(metadata)]
    )
    write_table(table, path)
    again = read_table(path)
    for name in ("comparison_N", "reward_N", "grade_N", "tokens_N", "group_N", "margin_N"):
        assert list(getattr(again, name)) == list(getattr(table, name))
    assert set(again.metadata) == set(table.metadata)
    for name, column in table.metadata.items():
        assert [v is None for v in column] == [v is None for v in again.metadata[name]]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_plain_metadata_columns_keep_their_type(tmp_path):
    path = tmp_path / "predictions.parquet"
    kinds: dict[str, Any] = {
        "text": ["a", None],
        "whole": [3, 4],
        "number": [1, 2.5],
        "yes": [True, None],
    }
    table = build_table(
        [row(f"c{n}", metadata={k: v[n] for k, v in kinds.items()}) for n in (0, 1)]
    )
    write_table(table, path)
    again = read_table(path)
    assert {name: list(column) for name, column in again.metadata.items()} == kinds


def test_columns_of_the_file(tmp_path):
    path = tmp_path / "a=b" / "predictions.parquet"
    path.parent.mkdir()
    write_table(build_table([row(metadata={"id": "mine", "odd": "\ud800"})]), path)
    names = pq.ParquetFile(path).schema_arrow.names
    assert names[:6] == ["id", "response", "reward", "grade", "tokens", "characters"]
    assert {"source", "margin", "dataset", "group", "metadata.id", "odd"} <= set(names)
    assert read_table(path).metadata["id"][0] == "mine"


def test_tables_of_the_first_release_say_nothing_of_ratings(tmp_path):
    """``predictions.parquet`` of plaudit 0.1 has no column ``rated``."""
    table = score_table([[{"reward": 1.0, "rated": True}, {"reward": 0.5}]])
    path = tmp_path / "predictions.parquet"
    write_table(table, path)
    assert read_table(path).rated_N.tolist() == [True, False]
    pq.write_table(pq.read_table(path).drop_columns(["rated"]), path)
    old = read_table(path)
    assert old.rated_N.tolist() == [False, False]
    assert old.reward_N.tolist() == [1.0, 0.5]


def _comparison(number: int, **fields: Any) -> Comparison:
    return Comparison(
        id=str(number),
        prompt="p",
        responses=("a", "b"),
        grades=(1.0, 0.0),
        group=str(number),
        source="s",
        where=f"s:{number}",
        **fields,
    )


def test_outputs_and_their_attributes_are_columns(tmp_path):
    """Of the attributes, those that the model has an output of; what is missing is NaN."""
    outputs = Outputs(names=("helpful", "true"), weights=(0.5, 0.5), offsets=(0.0, 0.0))
    branch = np.ones(1, np.int32)
    trees = [TokenTree(index=n, prefix=branch, branches=(branch, branch)) for n in range(3)]
    comparisons = [
        _comparison(0, attributes={"helpful": (4.0, None), "long": (1.0, 2.0)}),
        _comparison(1, metadata={"output.true": "mine"}),
        _comparison(2, attributes={"true": (0.0, 1.0)}),
    ]
    outputs_NO = np.arange(12.0).reshape(6, 2)
    scored = ScoredSet(
        dataset="eval",
        comparisons=comparisons,
        trees=trees,
        rewards=[outputs_NO[2 * n : 2 * n + 2].mean(axis=1) for n in range(3)],
        outputs=[outputs_NO[2 * n : 2 * n + 2] for n in range(3)],
    )
    table = read_held_out([scored], outputs=outputs).table
    path = tmp_path / "predictions.parquet"
    write_table(table, path)
    assert {"output.helpful", "attribute.true", "metadata.output.true"} <= set(
        pq.ParquetFile(path).schema_arrow.names
    )
    for one in (
        table,
        read_table(path),
        concatenate([table.take(np.arange(6)), table.take(np.arange(0))]),
    ):
        assert {name: column.tolist() for name, column in one.outputs.items()} == {
            "helpful": [0.0, 2.0, 4.0, 6.0, 8.0, 10.0],
            "true": [1.0, 3.0, 5.0, 7.0, 9.0, 11.0],
        }
        assert list(one.attributes) == ["helpful", "true"]
        np.testing.assert_array_equal(one.attributes["helpful"], [4.0] + [np.nan] * 5)
        np.testing.assert_array_equal(one.attributes["true"], [np.nan] * 4 + [0.0, 1.0])
        assert one.metadata["output.true"].tolist() == [None, None, "mine", "mine", None, None]
    both = concatenate([table, score_table([[{}, {}]])])
    np.testing.assert_array_equal(both.outputs["true"][-3:], [11.0, np.nan, np.nan])


def test_metadata_of_older_tables_may_be_called_as_outputs_are(tmp_path):
    path = tmp_path / "predictions.parquet"
    write_table(build_table([row(), row(response=1)]), path)
    stored = pq.read_table(path).append_column("output.true", pa.array(["a", "b"]))
    pq.write_table(stored, path)
    table = read_table(path)
    assert table.outputs == {}
    assert table.metadata["output.true"].tolist() == ["a", "b"]


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "predictions.parquet"
    with pytest.raises(DataError, match="Cannot read predictions"):
        read_table(path)
    path.write_bytes(b"\x00\x01junk")
    with pytest.raises(DataError, match="Cannot read predictions"):
        read_table(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(DataError, match="lacks response, reward"):
        read_table(path)


def test_no_flipped_bit_of_the_values_goes_unnoticed(tmp_path):
    """The pages of the columns have checksums; the footer describes them."""
    path = tmp_path / "predictions.parquet"
    write_table(build_table([row(f"c{n}", n, reward=n / 3) for n in range(4)]), path)
    content = path.read_bytes()
    group = pq.ParquetFile(path).metadata.row_group(0)
    rewards = next(
        group.column(n)
        for n in range(group.num_columns)
        if group.column(n).path_in_schema == "reward"
    )
    start = rewards.dictionary_page_offset or rewards.data_page_offset
    expected = list(read_table(path).reward_N)
    caught = 0
    for bit in range(8 * start, 8 * (start + rewards.total_compressed_size)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            rewards_N = read_table(path).reward_N
        except DataError:
            caught += 1
        else:
            assert list(rewards_N) == expected
    assert caught


def test_damaged_rewards_of_an_evaluation_are_named(tmp_path):
    rewards = np.random.default_rng(0).normal(size=40)
    write_rewards(tmp_path, 6, rewards)
    path = tmp_path / "step-6.npz"
    content = path.read_bytes()
    assert list(read_rewards(tmp_path, 6)) == list(rewards)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with suppress(DataError):
            assert list(read_rewards(tmp_path, 6)) == list(rewards)
    for damaged in (content[:-1], content[: len(content) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"step-6\.npz is damaged"):
            read_rewards(tmp_path, 6)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        read_rewards(tmp_path, 6)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(table, where, **options):
        where.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OutputError, match="The disk is full"):
        write_table(build_table([row()]), tmp_path / "predictions.parquet")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_table_has_no_pairs():
    assert len(pairs(build_table([]))) == 0
    assert len(build_table([])) == 0
    assert np.isnan(pairs(build_table([])).delta_P).sum() == 0
