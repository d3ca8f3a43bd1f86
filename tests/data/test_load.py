"""Loading: every row is accounted for, weights repeat and sample, facts are those of the file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plaudit
from plaudit import registry
from plaudit.data import load
from plaudit.data.load import Tally, load_comparisons, open_source, with_known_columns
from plaudit.errors import DataError
from plaudit.recipe.objectives import LearnsFrom
from plaudit.recipe.schema import Source

PACKAGE = Path(plaudit.__file__).parent


def pair(chosen: str, rejected: str = "no", prompt: str = "p", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_are_used_or_dropped_by_name(tmp_path: Path) -> None:
    rows = [pair("a", id="x"), pair(""), pair("no"), pair("b", source="forum"), pair(" ")]
    path = write(tmp_path / "pairs.jsonl", rows)
    loaded = load_comparisons((Source(path=path),), seed=1)
    dropped = {"empty_response": 2, "identical_responses": 1}
    assert loaded.tally == Tally(rows=5, used=2, sampled=2, dropped=dropped)
    assert [c.id for c in loaded.comparisons] == ["x", "pairs:4"]
    assert [c.source for c in loaded.comparisons] == ["pairs", "forum"]
    assert [c.where for c in loaded.comparisons] == [f"{path}:1", f"{path}:4"]
    (facts,) = loaded.sources
    assert (facts.name, facts.path, facts.format) == ("pairs", path, "explicit_text")
    assert loaded.tallies == (loaded.tally,)
    assert (facts.rows, facts.used, facts.sampled) == (5, 2, 2)
    assert facts.licence is None
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert facts.fingerprint == f"sha256:{digest}"


def test_rows_with_media_are_named_unless_their_column_is_left_unread(tmp_path: Path) -> None:
    rows = [pair("a", images=["a.png"]), pair("b", images=[])]
    path = write(tmp_path / "pairs.jsonl", rows)
    loaded = load_comparisons((Source(path=path),), seed=1)
    assert loaded.tally == Tally(rows=2, used=1, sampled=1, dropped={"media": 1})
    unread = load_comparisons((Source(path=path, columns={"images": None}),), seed=1)
    assert unread.tally == Tally(rows=2, used=2, sampled=2, dropped={})


def test_sources_of_different_formats_are_added_up(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [pair("a"), pair("")])
    ranked = [
        {"prompt": "p", "responses": ["a", "b"], "grades": [1, 1]},
        {"prompt": "p", "responses": ["a", "b", "c"], "grades": [1, 2, 3]},
    ]
    two = write(tmp_path / "two.jsonl", ranked)
    loaded = load_comparisons((Source(path=one), Source(path=two)), seed=1)
    assert [facts.format for facts in loaded.sources] == ["explicit_text", "ranked"]
    dropped = {"empty_response": 1, "tie": 1}
    assert loaded.tally == Tally(rows=4, used=2, sampled=2, dropped=dropped)


def test_a_whole_weight_repeats_rows_beside_themselves(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [pair("a"), pair(""), pair("b")])
    loaded = load_comparisons((Source(path=path, weight=3),), seed=1)
    assert [c.where for c in loaded.comparisons] == [f"{path}:1"] * 3 + [f"{path}:3"] * 3
    assert loaded.tally == Tally(rows=3, used=2, sampled=6, dropped={"empty_response": 1})


def test_a_weight_below_one_leaves_rows_out_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [pair(str(n)) for n in range(100)] + [pair("")])
    loaded = load_comparisons((Source(path=path, weight=0.25),), seed=1)
    dropped = {"empty_response": 1, "not_sampled": 75}
    assert loaded.tally == Tally(rows=101, used=25, sampled=25, dropped=dropped)
    assert load_comparisons((Source(path=path, weight=0.25),), seed=1) == loaded
    assert (
        load_comparisons((Source(path=path, weight=0.25),), seed=2).comparisons
        != loaded.comparisons
    )


def test_one_source_does_not_change_what_another_samples(tmp_path: Path) -> None:
    one = Source(path=write(tmp_path / "a.jsonl", [pair(str(n)) for n in range(50)]), weight=1.5)
    two = Source(path=write(tmp_path / "b.jsonl", [pair("x")]), weight=2.5)
    alone = load_comparisons((one,), seed=1).comparisons
    both = load_comparisons((two, one), seed=1).comparisons
    assert len(alone) == 75
    assert both[-75:] == alone


ROW = st.builds(
    pair,
    st.sampled_from(["a", "", " ", "no", "b"]),
    prompt=st.sampled_from(["p", "q"]),
    margin=st.none() | st.integers(0, 3),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(ROW, min_size=1, max_size=12), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.3, 0.5, 1.0, 1.7, 2.0]), min_size=3, max_size=3),
    st.integers(0, 5),
)
def test_nothing_vanishes(
    parts: list[list[dict[str, Any]]], weights: list[float], seed: int
) -> None:
    with TemporaryDirectory() as folder:
        sources = tuple(
            Source(path=write(Path(folder) / f"{n}.jsonl", rows), weight=weight)
            for n, (rows, weight) in enumerate(zip(parts, weights, strict=False))
        )
        usable_row = Source(path=write(Path(folder) / "usable.jsonl", [pair("a")]))
        loaded = load_comparisons((*sources, usable_row), seed=seed)
    tally = loaded.tally
    assert tally.rows == sum(len(rows) for rows in parts) + 1
    assert tally.rows == tally.used + sum(tally.dropped.values())
    assert tally.sampled == len(loaded.comparisons)
    assert tally.used == len({comparison.where for comparison in loaded.comparisons})
    for n, (rows, weight) in enumerate(zip(parts, weights, strict=False)):
        facts, tally = loaded.sources[n], loaded.tallies[n]
        usable = sum(row["chosen"].strip() not in ("", "no") for row in rows)
        assert facts.rows == tally.rows == len(rows)
        assert facts.used == tally.used == usable - tally.dropped.get("not_sampled", 0)
        assert facts.sampled == tally.sampled
        assert abs(tally.sampled - weight * usable) <= 0.5
        copies = Counter(c.where for c in loaded.comparisons if c.source == facts.name)
        assert all(int(weight) <= count <= int(weight) + 1 for count in copies.values())


@pytest.mark.parametrize(
    ("learns_from", "used", "dropped", "usable_by"),
    [
        ("order", 2, {"single_response": 2, "tie": 1}, {"order_and_ties": 1, "ratings": 3}),
        ("order_and_ties", 3, {"single_response": 2}, {"ratings": 2}),
        ("ratings", 5, {}, {}),
    ],
)
def test_an_objective_uses_or_drops_each_row_by_what_it_learns_from(
    learns_from: LearnsFrom, used: int, dropped: dict[str, int], usable_by: dict[str, int]
) -> None:
    """Ratings of one response, of two alike and of two in order; a pair; and others."""
    rated = {"prompt": "p", "responses": ["a"], "grades": [4]}
    with TemporaryDirectory() as folder:
        path = write(
            Path(folder) / "rows.jsonl",
            [
                rated,
                {**rated, "grades": [2]},
                {**rated, "responses": ["a", "b"], "grades": [3, 3]},
                {**rated, "responses": ["a", "b"], "grades": [1, 5]},
                {**rated, "responses": ["a", "a"], "grades": [1, 5]},
                {**rated, "responses": [" "]},
            ],
        )
        pairs = write(Path(folder) / "pairs.jsonl", [pair("a"), pair("")])
        loaded = load_comparisons(
            (Source(path=path), Source(path=pairs)), seed=1, learns_from=learns_from
        )
    tally = loaded.tally
    dropped = dropped | {"identical_responses": 1, "empty_response": 2}
    assert tally == Tally(rows=8, used=used, sampled=used, dropped=dropped)
    assert loaded.usable_by == usable_by


def test_a_tally_that_does_not_add_up_cannot_be_made() -> None:
    with pytest.raises(AssertionError, match="unaccounted"):
        Tally(rows=3, used=1, sampled=1, dropped={"tie": 1})


def test_iterate_gives_every_row_in_order(tmp_path: Path) -> None:
    rows = [pair("a"), pair(""), pair("no"), pair("a")]
    path = write(tmp_path / "a.jsonl", rows)
    found = list(open_source(Source(path=path)).rows)
    assert [(number, where, row) for number, where, row, _ in found] == [
        (n, f"{path}:{n}", row) for n, row in enumerate(rows, start=1)
    ]
    assert [comparison.id for *_, comparison in found] == ["a:1", "a:2", "a:3", "a:4"]


def test_the_format_of_the_source_overrides_recognition(tmp_path: Path) -> None:
    row = pair("a", responses=["x", "y"], grades=[1, 0])
    path = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(DataError, match="several formats: explicit_text and ranked"):
        load_comparisons((Source(path=path),), seed=1)
    loaded = load_comparisons((Source(path=path, format="ranked"),), seed=1)
    assert loaded.comparisons[0].responses == ("x", "y")


def test_mappings_of_columns_that_no_row_has_are_dropped(tmp_path: Path) -> None:
    columns = {"prompt": "question", "chosen": "better", "system": None}
    path = write(tmp_path / "a.jsonl", [pair("a"), {**pair("b"), "better": "c"}])
    narrowed = with_known_columns(Source(path=path, columns=columns))
    assert narrowed.columns == {"chosen": "better", "system": None}
    path = write(tmp_path / "b.jsonl", [pair("a")])
    narrowed = with_known_columns(Source(path=path, columns=columns))
    assert [one.prompt for _, _, _, one in open_source(narrowed).rows] == ["p"]


def test_a_later_row_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [pair("a"), pair("b", margin="wide")])
    with pytest.raises(DataError) as raised:
        load_comparisons((Source(path=path),), seed=1)
    assert str(raised.value) == f"{path}:2: margin is text; expected a number."


def test_no_usable_row_is_an_error_with_the_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [pair("no"), pair("no"), pair("")])
    with pytest.raises(DataError) as raised:
        load_comparisons((Source(path=path),), seed=1)
    assert str(raised.value) == (
        f"none of the 3 rows of {path} can be used: 2 identical_responses (all responses are"
        " identical); 1 empty_response (a response is empty or only white space)."
    )
    with pytest.raises(DataError, match="no data source"):
        load_comparisons((), seed=1)


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    sources = [write(tmp_path / "a.jsonl", [pair("a")])]
    sources.append(write(tmp_path / "other" / "a.jsonl", [pair("b")]))
    with pytest.raises(DataError, match="two sources are named 'a'"):
        load_comparisons(tuple(Source(path=path) for path in sources), seed=1)
    named = tuple(Source(path=path, name=str(n)) for n, path in enumerate(sources))
    assert load_comparisons(named, seed=1).tally.used == 2


def numbered(path: Path, rows: int) -> str:
    return write(path, [pair(str(number)) for number in range(rows)])


def test_rows_take_a_number_of_them(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 10)
    few = load_comparisons((Source(path=path, num_samples=4),), seed=1)
    assert few.tally == Tally(rows=10, used=4, sampled=4, dropped={"not_sampled": 6})
    assert (
        load_comparisons((Source(path=path, num_samples=4),), seed=1).comparisons == few.comparisons
    )
    assert (
        load_comparisons((Source(path=path, num_samples=4),), seed=2).comparisons != few.comparisons
    )
    many = load_comparisons((Source(path=path, num_samples=23),), seed=1)
    assert many.tally == Tally(rows=10, used=10, sampled=23, dropped={})
    copies = Counter(c.where for c in many.comparisons)
    assert sorted(copies.values()) == [2] * 7 + [3] * 3


def test_first_reads_no_further(tmp_path: Path) -> None:
    """Not even a row that could not be read."""
    path = tmp_path / "a.jsonl"
    numbered(path, 5)
    path.write_text(path.read_text() + "not JSON\n")
    loaded = load_comparisons((Source(path=str(path), max_rows=3),), seed=1)
    assert loaded.tally == Tally(rows=3, used=3, sampled=3, dropped={})
    assert len(load_comparisons((Source(path=str(path), max_rows=5),), seed=1).comparisons) == 5


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("first_exhausted", {"a": 30, "b": 10}), ("all_exhausted", {"a": 120, "b": 40})],
)
def test_probabilities_mix_until_the_first_or_all_are_exhausted(
    tmp_path: Path, strategy: Any, expected: dict[str, int]
) -> None:
    """Three of a for one of b: a has 30 rows and b 40."""
    sources = (
        Source(path=numbered(tmp_path / "a.jsonl", 30), probability=0.75),
        Source(path=numbered(tmp_path / "b.jsonl", 40), probability=0.25),
    )
    loaded = load_comparisons(sources, seed=1, stopping_strategy=strategy)
    assert Counter(c.source for c in loaded.comparisons) == expected


def test_a_named_mixture_is_known_row_by_row(tmp_path: Path) -> None:
    """Rows that name a source of their own still say which part of the mixture they are."""
    path = write(tmp_path / "a.jsonl", [pair("a", source="forum"), pair("b")])
    other = write(tmp_path / "b.jsonl", [pair("c")])
    mine = Source(path=path, name="mine")
    one, two, _ = load_comparisons((mine, Source(path=other)), seed=1).comparisons
    assert (one.source, one.metadata) == ("forum", {"mixed_from": "mine"})
    assert (two.source, two.metadata) == ("mine", {})
    assert not any(
        comparison.metadata for comparison in load_comparisons((mine,), seed=1).comparisons
    )


def test_no_format_reads_ahead(tmp_path: Path) -> None:
    """Memory does not grow with the rows: a file that breaks late still gives its first rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = tmp_path / "a.csv"
    broken.write_text("prompt,chosen,rejected\np,a,b\np,c,d\np,e\n")
    rows = open_source(Source(path=str(broken))).rows
    assert [next(rows)[0] for _ in range(2)] == [1, 2]
    with pytest.raises(DataError, match="row 3: 2 cells"):
        next(rows)
    table = pa.Table.from_pylist([pair(str(number)) for number in range(3000)])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    groups = open_source(Source(path=str(tmp_path / "a.parquet"), max_rows=1)).rows
    assert [number for number, *_ in groups] == [1]


def test_the_cache_key_covers_every_module_that_reads_rows() -> None:
    modules = {path.relative_to(PACKAGE).as_posix() for path in load._code()}
    assert modules >= {
        "types.py",
        "data/load.py",
        "data/formats/values.py",
        "data/sources/files.py",
        "data/perturb/degradation.py",
        "data/perturb/words.json",
        *(
            registry.source_file(kind, name).relative_to(PACKAGE).as_posix()
            for kind in ("row_format", "data_source")
            for name in registry.names(kind)
        ),
    }


ATTRIBUTE_ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "responses": ["1", "2"], "grades": [1, 0], "attributes": {"clear": [3, 2]}},
    {"prompt": "b", "responses": ["1", "2"], "attributes": {"clear": [2, 2], "short": [1, None]}},
    {"prompt": "c", "responses": ["1"], "attributes": {"short": 5}},
    {"prompt": "d", "responses": ["1", "2"], "grades": [1, 0]},
    {"prompt": "e", "responses": ["1", "2"], "attributes": {"clear": [None, None]}},
]


@pytest.mark.parametrize(
    ("outputs", "learns_from", "kept", "rated"),
    [
        ((), "order", "ad", 2),
        (("clear",), "order", "a", 1),
        (("clear", "preference"), "order", "ad", 2),
        (("clear",), "order_and_ties", "ab", 1),
        (("short",), "ratings", "bc", 0),
        (("short", "clear", "preference"), "ratings", "abcd", 2),
    ],
)
def test_rows_are_kept_for_the_outputs_that_learn_from_them(
    tmp_path: Path, outputs: tuple[str, ...], learns_from: LearnsFrom, kept: str, rated: int
) -> None:
    path = write(tmp_path / "rows.jsonl", ATTRIBUTE_ROWS)
    loaded = load_comparisons(
        (Source(path=path),), seed=1, learns_from=learns_from, outputs=outputs
    )
    assert [row.prompt for row in loaded.comparisons] == list(kept)
    assert (loaded.rated, loaded.attributes) == (rated, {"clear": 2, "short": 2})
    assert loaded.tally.rows == 5 == loaded.tally.used + sum(loaded.tally.dropped.values())
    of_row = {row["prompt"]: row.get("attributes", {}) for row in ATTRIBUTE_ROWS}
    first = next(iter(loaded.comparisons))
    assert {name: list(some) for name, some in first.attributes.items()} == of_row[first.prompt]
    # What an objective of another kind could use, for the same outputs.
    if learns_from == "order" and outputs == ("clear",):
        assert loaded.usable_by == {"order_and_ties": 1, "ratings": 1}


def test_outputs_that_no_row_has_are_named_with_the_attributes_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ATTRIBUTE_ROWS)
    with pytest.raises(DataError) as raised:
        load_comparisons((Source(path=path),), seed=1, outputs=("clarity", "brief"))
    message = str(raised.value)
    assert message.startswith(f"none of the 5 rows of {path} can be used: 4 unlabelled (")
    assert message.endswith(
        "; the outputs are clarity, brief, the attributes of the rows clear, short."
    )
    plain = write(tmp_path / "plain.jsonl", [pair("a")])
    with pytest.raises(
        DataError, match=r"the outputs are clear, the attributes of the rows none\."
    ):
        load_comparisons((Source(path=plain),), seed=1, outputs=("clear",))
