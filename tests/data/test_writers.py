"""Writers: what is written reads back as it was, and what cannot be held is skipped by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.formats.readers import READERS, choose_reader, to_comparison
from plaudit.data.formats.records import LOSSES, SKIP_REASONS, attributes_at
from plaudit.data.formats.writers import (
    WRITERS,
    choose_writer,
    convert,
    write_comparison,
)
from plaudit.data.load import open_source
from plaudit.data.sources.files import ROW_FILES
from plaudit.errors import DataError, OutputError
from plaudit.recipe.schema import Source
from plaudit.types import Comparison, Message, Turns, as_turns
from tests.conftest import pair_rows, write_jsonl
from tests.data.test_readers import EXAMPLES

ORDER_ALONE = {name for name, writer in WRITERS.items() if writer.ordered}


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


words = st.text(min_size=1, max_size=30)
grades = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 7.0]), min_size=1, max_size=4)


def attributes_of(count: int) -> st.SearchStrategy[dict[str, tuple[float | None, ...]]]:
    numbers = st.lists(st.sampled_from([None, -1.0, 0.1, 3.0]), min_size=count, max_size=count)
    some = numbers.filter(lambda row: set(row) != {None}).map(tuple)
    return st.dictionaries(st.sampled_from(["clear", "up to date/ü"]), some)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    given_grades = draw(grades)
    count = len(given_grades)
    texts = draw(st.lists(words, min_size=count, max_size=count, unique_by=str.strip))
    prompt: Turns
    if draw(st.booleans()):
        prompt = draw(words)
        answers: tuple[Turns, ...] = tuple(texts)
    else:
        system = [Message(role="system", content=draw(words))] if draw(st.booleans()) else []
        earlier = [user(draw(words)), assistant(draw(words))] if draw(st.booleans()) else []
        prompt = (*system, *earlier, user(draw(words)))
        answers = tuple((assistant(text),) for text in texts)
    known = draw(st.booleans())
    return Comparison(
        id="7",
        prompt=prompt,
        responses=answers,
        grades=tuple(given_grades) if known else (),
        group="0",
        source="file",
        where="file:7",
        margin=draw(st.sampled_from([None, 0.5])),
        weight=draw(st.sampled_from([1.0, 2.0])),
        attributes=draw(attributes_of(count)),
        metadata={"note": draw(words), "subset": "one"},
    )


def read_back(name: str, row: dict[str, Any]) -> Comparison:
    row = json.loads(json.dumps(row))
    assert choose_reader(row, where="row").name == WRITERS[name].reader
    reader = READERS[WRITERS[name].reader]
    return to_comparison(reader, row, number=1, where="row", source="file")


def whole(prompt: Turns, response: Turns, *, strip: bool) -> Any:
    """A conversation whole, since formats differ in where they cut it."""
    if isinstance(prompt, str):
        assert isinstance(response, str)
        return prompt + response
    assert not isinstance(response, str)
    turns = [(turn.role, turn.content) for turn in (*prompt, *response)]
    return [(role, text.strip() if strip else text) for role, text in turns]


@pytest.mark.parametrize("name", [n for n in WRITERS if WRITERS[n].reader in READERS])
@settings(deadline=None, max_examples=60)
@given(comparison=comparisons())
def test_what_is_written_reads_back_as_it_was(name: str, comparison: Comparison) -> None:
    writer = WRITERS[name]
    written = write_comparison(writer, comparison)
    assert set(written.losses) <= set(LOSSES)
    if written.skipped is not None:
        assert written.skipped in SKIP_REASONS
        assert not written.rows
        return
    if isinstance(comparison.prompt, str) and writer.turns == "chat":
        assert "text_as_turns" in written.losses
        comparison = as_turns(comparison)
    expected = {
        json.dumps(whole(comparison.prompt, response, strip=writer.strips)): grade
        for response, grade in zip(
            comparison.responses, comparison.grades or [None] * 9, strict=False
        )
    }
    seen = set()
    for row in written.rows:
        back = read_back(name, row)
        assert back.metadata["note"] == comparison.metadata["note"]
        assert back.metadata["subset"] == "one"
        assert (back.margin, back.weight) == (comparison.margin, comparison.weight)
        texts = [json.dumps(whole(back.prompt, r, strip=writer.strips)) for r in back.responses]
        seen |= set(texts)
        assert set(texts) <= set(expected)
        if len(set(expected)) == len(comparison.responses):
            assert back.attributes == attributes_at(
                comparison.attributes, map(list(expected).index, texts)
            )
        known = [expected[text] for text in texts]
        if name in ORDER_ALONE:
            same = list(zip(back.grades, known, strict=True))
            assert len(set(texts)) < len(texts) or all(
                (a > b) == (x > y) for a, x in same for b, y in same
            )
        elif len(set(texts)) == len(texts):
            assert list(back.grades or [None] * len(texts)) == known
    if len(set(comparison.grades)) == len(comparison.responses):
        assert seen == set(expected)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz", ".csv", ".parquet"])
def test_every_reader_s_rows_become_ranked_ones(name: str, ending: str, tmp_path: Path) -> None:
    """The one format that holds everything: prompt, responses and grades are the same."""
    data = write_jsonl(tmp_path / "in.jsonl", [EXAMPLES[name]])
    counts = convert(
        Source(path=str(data), format=name), tmp_path / f"o{ending}", WRITERS["ranked"]
    )
    assert (counts.read, counts.used, counts.written) == (1, 1, 1)
    ((_, _, _, old),) = open_source(Source(path=str(data), format=name)).rows
    ((_, _, _, new),) = open_source(Source(path=str(tmp_path / f"o{ending}"))).rows
    assert (new.prompt, new.responses, new.grades) == (old.prompt, old.responses, old.grades)
    assert new.group == old.group
    if ending != ".csv":
        assert new.metadata.items() >= old.metadata.items()


PAIR = Comparison(
    id="1",
    prompt=(user("Why?"),),
    responses=((assistant("No."),), (assistant("Yes."),), (assistant("So."),)),
    grades=(0.0, 1.0, 0.0),
    group="0",
    source="file",
    where="file:1",
)


def test_more_than_two_responses_become_pairs() -> None:
    def ids(pairs: Any) -> tuple[list[str], tuple[str, ...], str | None]:
        written = write_comparison(WRITERS["rlhflow"], PAIR, pairs=pairs)
        return [row["id"] for row in written.rows], written.losses, written.skipped

    assert ids("all") == (["1-1-0", "1-1-2"], ("tied_pairs", "cut_to_pairs"), None)
    assert ids("best-worst") == (["1-1-0"], ("cut_to_pairs",), None)
    assert ids("none") == ([], (), "several_responses")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("rlhflow", {"grades": ()}, "unlabelled"),
        ("rlhflow", {"grades": (1.0, 1.0, 1.0)}, "tie"),
        ("rlhflow", {"responses": PAIR.responses[:1], "grades": (1.0,)}, "single_response"),
        ("explicit_text", {}, "messages"),
        ("rewardbench", {"prompt": (user("a"), assistant("b"), user("c"))}, "several_turns"),
        ("alpaca", {"prompt": (user("a"), user("b"))}, "roles"),
        ("alpaca", {"prompt": (Message(role="user", content=[{"type": "image"}]),)}, "not_text"),
        ("sharegpt", {"responses": ((assistant("a"), user("b")),) * 3}, "several_turns"),
        ("hh_rlhf", {"prompt": (user("a\n\nHuman: b"),)}, "markers"),
        ("ranked", {"unusable": "broken_turns"}, "broken_turns"),
    ],
)
def test_what_a_format_cannot_hold_is_skipped_by_name(
    name: str, change: dict[str, Any], reason: str
) -> None:
    written = write_comparison(WRITERS[name], replace(PAIR, **change))
    assert (written.skipped, written.rows) == (reason, ())


def test_what_is_lost_is_said() -> None:
    rich = replace(
        PAIR,
        margin=1.0,
        tools=({"name": "x"},),
        responses=PAIR.responses[:2],
        grades=(4.5, 2.0),
        metadata={"prompt": "taken", "kept": 1},
    )
    written = write_comparison(WRITERS["hh_rlhf"], rich)
    assert set(written.losses) == {
        "margin_not_read",
        "tools_not_read",
        "grades_as_order",
        "column_taken",
    }
    (row,) = written.rows
    assert (row["kept"], row["score_chosen"], row["score_rejected"]) == (1, 4.5, 2.0)
    assert "prompt" not in row


def test_a_soft_label_is_kept_or_said_to_be_lost() -> None:
    pair = replace(PAIR, responses=PAIR.responses[:2], grades=(1.0, 0.0), soft_label=0.75)
    for name, losses in (("ranked", ()), ("explicit_conversational", ("soft_label_not_read",))):
        written = write_comparison(WRITERS[name], pair)
        (row,) = written.rows
        assert (row["soft_label"], written.losses) == (0.75, losses)
        read = to_comparison(choose_reader(row, where=""), row, number=1, where="", source="")
        assert read.soft_label == 0.75
    cut = write_comparison(WRITERS["unpaired"], pair)
    assert cut.losses == ("cut_to_single_responses", "soft_label_dropped")
    assert all("soft_label" not in row for row in cut.rows)


ATTRIBUTES = {"clear": (1.0, 2.5, None), "brief": (None, None, 0.0)}


def test_attributes_stay_with_their_responses() -> None:
    """In rows of fewer responses, and in another order, as in the row of all."""
    rich = replace(PAIR, attributes=ATTRIBUTES)
    for name, losses, expected in (
        ("ranked", (), [{"clear": [1.0, 2.5, None], "brief": [None, None, 0.0]}]),
        (
            "unpaired",
            ("cut_to_single_responses", "attributes_not_read"),
            [{"clear": [1.0]}, {"clear": [2.5]}, {"brief": [0.0]}],
        ),
        (
            "explicit_conversational",
            ("tied_pairs", "cut_to_pairs", "attributes_not_read"),
            [{"clear": [2.5, 1.0]}, {"clear": [2.5, None], "brief": [None, 0.0]}],
        ),
    ):
        written = write_comparison(WRITERS[name], rich)
        assert (written.losses, [row["attributes"] for row in written.rows]) == (losses, expected)
        for row in written.rows:
            read = to_comparison(choose_reader(row, where=""), row, number=1, where="", source="")
            assert read.attributes == {k: tuple(v) for k, v in row["attributes"].items()}
    plain = write_comparison(WRITERS["ranked"], PAIR)
    assert all("attributes" not in row for row in plain.rows)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz", ".csv", ".parquet"])
def test_a_file_keeps_the_attributes_of_its_rows(ending: str, tmp_path: Path) -> None:
    """Rows that differ in their attributes, or have none, in one file."""
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "responses": ["1", "2"], "attributes": {"clear": [4, None]}},
        {"prompt": "b", "responses": ["1", "2"], "grades": [1, 0]},
        {"prompt": "c", "responses": ["1"], "attributes": {"up to date/ü": 0.1, "clear": 1e-300}},
        *({"prompt": f"d{n}", "responses": ["1"], "attributes": {"n": n}} for n in range(600)),
    ]
    out = tmp_path / f"out{ending}"
    convert(Source(path=str(write_jsonl(tmp_path / "in.jsonl", rows))), out, WRITERS["ranked"])
    read = [row.comparison.attributes for row in open_source(Source(path=str(out))).rows]
    assert read[:3] == [{"clear": (4.0, None)}, {}, {"up to date/ü": (0.1,), "clear": (1e-300,)}]
    assert read[3:] == [{"n": (float(n),)} for n in range(600)]


def test_ratings_that_become_ranks_are_said_to_be_lost() -> None:
    """A rank says that 5 is better than 4, and no longer that both are good."""
    pair = replace(PAIR, responses=PAIR.responses[:2], grades=(5.0, 4.0), rated=True)
    assert write_comparison(WRITERS["nemo"], pair).losses == ("grades_as_order",)
    assert write_comparison(WRITERS["nemo"], replace(pair, rated=False)).losses == ()
    assert write_comparison(WRITERS["nemo"], replace(pair, grades=(1.0, 0.0))).losses == ()
    assert write_comparison(WRITERS["unpaired"], pair).losses == ("cut_to_single_responses",)


def test_llama_factory_finds_the_file(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "in.jsonl", pair_rows(3))
    (tmp_path / "dataset_info.json").write_text('{"other": {"file_name": "other.json"}}')
    convert(Source(path=str(data)), tmp_path / "mine.json", choose_writer("alpaca"))
    entries = json.loads((tmp_path / "dataset_info.json").read_text())
    assert list(entries) == ["other", "mine"]
    assert entries["mine"]["file_name"] == "mine.json"
    assert entries["mine"]["ranking"] is True
    rows = json.loads((tmp_path / "mine.json").read_text())
    assert {*entries["mine"]["columns"].values()} <= rows[0].keys()
    (tmp_path / "dataset_info.json").write_text("[")
    with pytest.raises(OutputError, match="invalid JSON"):
        convert(Source(path=str(data)), tmp_path / "more.json", choose_writer("sharegpt"))
    assert not (tmp_path / "more.json").exists()


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "in.jsonl", pair_rows(3))
    source = Source(path=str(data))
    for out, name, message in (
        ("o.jsonl", "explicit_text", "none of the 3 rows can be written: 3 messages"),
        ("o.csv", "nemo", "CSV cannot hold the lists of the format nemo"),
        ("o.jsonl.gz", "alpaca", "LLaMA-Factory does not read .jsonl.gz files"),
        ("o.xml", "ranked", "unknown file extension; expected one of .jsonl"),
        ("in.jsonl", "ranked", "already exists"),
    ):
        with pytest.raises((DataError, OutputError), match=message):
            convert(source, tmp_path / out, WRITERS[name])
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    with pytest.raises(
        DataError, match="--to: unknown format 'nonsense'; expected one of explicit"
    ):
        choose_writer("nonsense")


def test_the_tables_are_complete() -> None:
    assert set(ROW_FILES) == {".jsonl", ".jsonl.gz", ".ndjson", ".json", ".csv", ".parquet"}
    for name, writer in WRITERS.items():
        assert name == writer.name
        assert writer.description
