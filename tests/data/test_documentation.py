"""The documentation corpus, the pairs that are built of it, and the source that names them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.formats.readers import choose_reader, to_comparison
from plaudit.data.load import load_comparisons
from plaudit.data.perturb.text import make_context
from plaudit.data.sources import documentation
from plaudit.data.sources.documentation import (
    LONGEST,
    MIX,
    MOST_PAIRS,
    SHORTEST,
    Documentation,
    Part,
    answers,
    build_pairs,
    is_prose,
    questions,
    read_documentation,
    unwrap,
)
from plaudit.data.sources.read import read_rows, source_fingerprint
from plaudit.embedded import base_path, documentation_path
from plaudit.errors import DataError
from plaudit.recipe.schema import Source

PARTS = get_args(Part)
SCRIPT = Path(__file__).parents[2] / "scripts" / "extract_documentation.py"


@cache
def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("extract_documentation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script()


def runs_of_words(text: str, size: int) -> set[str]:
    """Written apart from the script: every run of ``size`` words, letters and digits only."""
    words = "".join(c if c.isalnum() and c.isascii() else " " for c in text.lower()).split()
    if len(words) < size:
        return {" ".join(words)}
    return {" ".join(words[at : at + size]) for at in range(len(words) - size + 1)}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_there_and_a_module_stands_in_one_part(part: str) -> None:
    records = read_documentation()
    own = {(record.kind, record.module) for record in records if record.part == part}
    others = {(record.kind, record.module) for record in records if record.part != part}
    assert len([record for record in records if record.part == part]) > 500
    assert not own & others


@pytest.mark.parametrize(("part", "before"), [("training", 1), ("heldout", 2)])
@pytest.mark.parametrize("size", [5, 8])
def test_no_paragraph_nor_near_copy_stands_in_an_earlier_part(
    part: str, before: int, size: int
) -> None:
    """Half of a paragraph's runs of words in other parts, wherever they stand, is a near copy."""
    records = read_documentation()
    earlier: set[str] = set()
    for record in records:
        if record.part in PARTS[:before]:
            for paragraph in record.text.split("\n\n"):
                earlier |= runs_of_words(paragraph, size)
    checked = 0
    for record in records:
        if record.part == part:
            for paragraph in record.text.split("\n\n"):
                runs = runs_of_words(paragraph, size)
                checked += 1
                assert len(runs & earlier) < 0.5 * len(runs), (record.name, paragraph)
    assert checked > 1000


def test_no_heldout_answer_is_a_near_copy_of_another_answer() -> None:
    """The same for what comparisons are made of, which may run over several paragraphs."""
    earlier: set[str] = set()
    heldout = []
    for record in read_documentation():
        for answer in answers(record):
            if record.part == "heldout":
                heldout.append(answer.text)
            else:
                earlier |= runs_of_words(answer.text, 6)
    assert len(heldout) > 800
    for text in heldout:
        runs = runs_of_words(text, 6)
        assert len(runs & earlier) < 0.5 * len(runs), text


def test_comments_are_read_in_pretraining_only() -> None:
    assert {record.part for record in read_documentation() if record.kind == "comment"} == {
        "pretraining"
    }


def test_the_corpus_is_small_and_sorted() -> None:
    records = read_documentation()
    keys = [(record.kind, record.name, record.text) for record in records]
    assert documentation_path().stat().st_size < 1_000_000
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_answers_are_one_line_of_prose_with_a_question() -> None:
    kinds = set()
    for record in read_documentation():
        for number, answer in enumerate(answers(record)):
            assert answer.index == number
            assert SHORTEST <= len(answer.text) <= LONGEST
            assert answer.text == unwrap(answer.text)
            assert all(answer.name in question for question in questions(answer))
            kinds.add(record.kind)
    assert kinds == {"docstring", "topic", "comment"}


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("Return the length of the longest line.", True),
        ("Return the\nlength of the longest line.", True),
        ("The following names are there to be used:", False),
        ("    x = length(of, the, longest, line)", False),
        ("- one item of a list of many items", False),
        ("if_stmt ::= the word if and an expression", False),
        ("1 + 2 * 3 ** 4 == 5 // 6 and a b c d e", False),
    ],
)
def test_prose_is_told_from_code_lists_and_grammar(paragraph: str, expected: bool) -> None:
    assert is_prose(paragraph) is expected


def test_passages_join_paragraphs_and_stop_at_code() -> None:
    text = """The first paragraph says
something of use.

The second paragraph goes on with it.

    code = here()

The third paragraph stands alone behind code."""
    record = Documentation(name="a.b", module="a", kind="docstring", part="training", text=text)
    assert [answer.text for answer in answers(record)] == [
        "The first paragraph says something of use. The second paragraph goes on with it.",
        "The third paragraph stands alone behind code.",
    ]


def test_a_missing_or_damaged_corpus_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing; reinstall plaudit"):
        read_documentation(tmp_path / "none.jsonl.xz")
    damaged = tmp_path / "damaged.jsonl.xz"
    damaged.write_bytes(documentation_path().read_bytes()[:1000])
    with pytest.raises(DataError, match="is damaged"):
        read_documentation(damaged)
    damaged.write_bytes(lzma.compress(b'{"name": 1}\n'))
    with pytest.raises(DataError, match="is damaged"):
        read_documentation(damaged)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("sin(x, /)\n\nReturn the sine.", "Return the sine."),
        ("S.find(sub[, start]) -> int\n\nReturn the index.", "Return the index."),
        ("divmod(x, y) -- give both at once", "give both at once"),
        ("Say it.\n\n>>> say()\n'it'\n\nThen stop.", "Say it.\n\nThen stop."),
        ("Title\n=====\n\n    Body.", "Title\n\n    Body."),
    ],
)
def test_cleaning_leaves_the_prose(script: ModuleType, raw: str, expected: str) -> None:
    assert script.clean(raw) == expected


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12))
def test_shingles_agree_with_the_tests_own(words: list[str]) -> None:
    text = " ".join(words)
    assert {" ".join(run) for run in load_script().shingles(text, 5)} == runs_of_words(text, 5)


def test_near_copies_are_removed_from_the_later_part(script: ModuleType) -> None:
    text = "Return the number of items that stand in the queue at this moment."
    other = "Nothing of this is said anywhere else, so it may stay where it is."

    def record(name: str, part: str, text: str) -> Documentation:
        return Documentation(name=name, module=name, kind="docstring", part=part, text=text)  # type: ignore[arg-type]

    kept = list(
        script.remove_near_copies(
            [
                record("a", "pretraining", text),
                record("b", "heldout", f"{text} Perhaps.\n\n{other}"),
                record("c", "heldout", text.replace("queue", "list")),
            ]
        )
    )
    assert [(item.name, item.text) for item in kept] == [("a", text), ("b", other)]


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="docstrings differ between versions")
def test_two_builds_write_the_same_bytes(tmp_path: Path) -> None:
    """Side by side, with other seeds of Python's hashes: no order may come from a set."""
    outs = [tmp_path / "first.jsonl.xz", tmp_path / "again.jsonl.xz"]
    builds = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "--out", str(out)],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(SCRIPT.parents[1])},
            stdout=subprocess.DEVNULL,
        )
        for seed, out in enumerate(outs)
    ]
    assert [build.wait() for build in builds] == [0, 0]
    first, again = (out.read_bytes() for out in outs)
    assert first == again
    records, shipped = lzma.decompress(first).count(b"\n"), len(read_documentation())
    # Another build of 3.11 has other C modules, and a later patch release other docstrings.
    assert abs(records - shipped) < 0.05 * shipped


def test_package_data_is_where_the_package_is() -> None:
    assert documentation_path().parent == base_path().parent
    notice = (documentation_path().parent / "NOTICE").read_text(encoding="utf-8")
    assert "Python Software Foundation" in notice


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
    answer = Documentation(
        name="a", module="a", kind="docstring", part="training", text="Return the sum."
    )
    monkeypatch.setattr(
        documentation, "material", lambda _: ((answer,), CONTEXT, {"a": frozenset()})
    )
    with pytest.raises(DataError, match="has no more pairs for the perturbation"):
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
    with pytest.raises(DataError, match="pairs requested; expected 1 to 24004"):
        build_pairs(count, 0)


def test_the_base_s_own_reading_makes_no_pairs() -> None:
    with pytest.raises(DataError, match="expected training or heldout"):
        build_pairs(1, 0, "pretraining")  # type: ignore[arg-type]


def test_rows_read_back_as_comparisons() -> None:
    row = build_pairs(1, 0)[0]
    reader = choose_reader(row, where="row 1")
    comparison = to_comparison(reader, row, number=1, where="row 1", source="file")
    assert reader.name == "explicit_conversational"
    assert comparison.id == row["id"]
    assert comparison.grades == (1.0, 0.0)
    assert comparison.metadata["subset"] == row["subset"]


def source(path: str) -> Source:
    return Source(path=path)


def test_pairs_are_read_like_any_file() -> None:
    loaded = load_comparisons([source("documentation:training:40")], seed=1)
    assert loaded.tally.rows == loaded.tally.used == 40
    (facts,) = loaded.sources
    assert (facts.name, facts.format, facts.licence) == (
        "documentation",
        "explicit_conversational",
        "PSF-2.0",
    )
    operators = [comparison.metadata["subset"] for comparison in loaded.comparisons]
    assert {operators.count(name) for name in set(operators)} == {4}
    assert len(set(operators)) == 10


def test_the_same_path_gives_the_same_rows_and_another_seed_others() -> None:
    def rows(path: str) -> list[dict[str, object]]:
        return [row for _, row in read_rows(source(path))]

    assert rows("documentation:heldout:20") == rows("documentation:heldout:20:42")
    assert rows("documentation:heldout:20") != rows("documentation:heldout:20:7")
    assert source_fingerprint(source("documentation:heldout:20")) != source_fingerprint(
        source("documentation:heldout:21")
    )


@pytest.mark.parametrize(
    "path",
    [
        "documentation:",
        "documentation:training",
        "documentation:training:many",
        "documentation:pretraining:10",
        "documentation:training:10:first",
        "documentation:training:0",
        "documentation:training:24005",
    ],
)
def test_what_is_no_documentation_set_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"documentation|pairs requested"):
        list(read_rows(source(path)))
