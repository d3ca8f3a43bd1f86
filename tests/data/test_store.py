"""Stored comparisons and trees: equal to those in memory, in flat memory, never half-written."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import plaudit
from plaudit import registry
from plaudit.data import load
from plaudit.data import store as comparison_store
from plaudit.data.load import load_comparisons, open_source
from plaudit.data.store import StoredComparisons
from plaudit.errors import DataError, OutputError
from plaudit.recipe.schema import Source
from plaudit.storage import fork_pool
from plaudit.storage.arrow import BATCH_ROWS, CACHE_VARIABLE, cached
from plaudit.tokens import store
from plaudit.tokens.encode import Encoder, encode, why_untrainable
from plaudit.types import Comparison, Message, Rendering, Skipped, TokenTree
from tests.conftest import pair_rows, write_jsonl

pytestmark = pytest.mark.heavy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(tokenizer=AutoTokenizer.from_pretrained(tiny_base), max_length=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """More rows than a batch, one of them too long."""
    rows = pair_rows(2 * BATCH_ROWS + 100)
    rows[7]["chosen"][0]["content"] = "word " * 200
    rows[9]["margin"] = 0.5
    path = write_jsonl(tmp_path_factory.mktemp("stored") / "pairs.jsonl", rows)
    return Source(path=str(path))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def assert_same(trees: Iterator[TokenTree], expected: list[TokenTree]) -> None:
    for index, (ours, theirs) in enumerate(zip(trees, expected, strict=True)):
        assert ours.index == index
        assert ours.prefix.tolist() == theirs.prefix.tolist()
        assert [b.tolist() for b in ours.branches] == [b.tolist() for b in theirs.branches]
        assert ours.prefix.dtype == theirs.prefix.dtype == np.int32
        rest = ("grades", "margin", "weight", "attributes", "copies", "truncated", "lengths")
        assert [getattr(ours, name) for name in rest] == [getattr(theirs, name) for name in rest]


def usable(outcomes: list[TokenTree | Skipped]) -> list[TokenTree]:
    trees = [o for o in outcomes if isinstance(o, TokenTree)]
    return [tree for tree in trees if why_untrainable(tree) is None]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
TEXT = st.text(st.characters())
MESSAGES = st.lists(
    st.builds(Message, role=TEXT, content=TEXT | JSON, extra=st.dictionaries(TEXT, JSON)),
    max_size=2,
).map(tuple)


@given(
    st.builds(
        Comparison,
        id=TEXT,
        prompt=TEXT | MESSAGES,
        responses=st.lists(TEXT | MESSAGES, min_size=1, max_size=3).map(tuple),
        grades=st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
        group=st.text("0123456789abcdef", min_size=16, max_size=16),
        source=TEXT,
        where=TEXT,
        margin=st.none() | st.floats(allow_nan=False),
        weight=st.floats(0.1, 9),
        attributes=st.dictionaries(
            TEXT,
            st.lists(st.none() | st.floats(allow_nan=False), max_size=2).map(tuple),
            max_size=2,
        ),
        tools=st.none() | st.lists(st.dictionaries(TEXT, JSON), min_size=1).map(tuple),
        chat_template_kwargs=st.dictionaries(TEXT, JSON, max_size=2),
        metadata=st.dictionaries(TEXT, TEXT | st.floats(allow_nan=False), max_size=2),
        unusable=st.none() | TEXT,
    )
)
def test_a_comparison_comes_back_as_it_was(comparison: Comparison) -> None:
    assert comparison_store.decode(comparison_store.encode(comparison)) == comparison
    code = comparison_store.group_code(comparison.group)
    assert comparison_store.group_name(code) == comparison.group


def test_stored_is_what_reading_and_encoding_give(
    folder: Path, source: Source, encoder: Encoder
) -> None:
    comparisons = load_comparisons((source,), seed=1).comparisons
    read = [comparison for *_, comparison in open_source(source).rows]
    assert list(comparisons) == read
    assert comparisons[-1] == read[-1]
    assert comparisons[5:9] == read[5:9]
    outcomes = encode(encoder, read)
    found = store.encode_rows(encoder, comparisons).of(comparisons)
    assert_same(iter(found.trees), usable(outcomes))
    assert found.dropped == found.lost
    assert found.dropped["over_length"] == 1
    assert "tokens, the maximum is 64" in found.example
    twice = load_comparisons((source.model_copy(update={"weight": 2}),), seed=1).comparisons
    repeated = store.encode_rows(encoder, twice).of(twice)
    assert (repeated.lost, repeated.dropped) == (found.lost, {"over_length": 2})
    assert_same(iter(repeated.trees.take(slice(0, None, 2))), usable(outcomes))
    assert len(found.comparisons) + sum(found.dropped.values()) == len(read)
    margins = found.trees.label("margin")
    assert margins[margins != 0].tolist() == [0.5]
    assert not any(tree.margin for tree in found.trees.without(frozenset({"margin"}))[:20])
    for name, of_tree in (
        ("packed", lambda tree: tree.tokens),
        ("separate", lambda tree: sum(tree.lengths)),
        ("longest", lambda tree: max(tree.lengths)),
        ("largest_id", lambda tree: max(map(max, (tree.prefix, *tree.branches)))),
    ):
        assert found.trees.column(name).tolist() == [of_tree(tree) for tree in found.trees]


ATTRIBUTES = {"clear": (4.0, None, 0.1), "max length/ü": (1e-300, -3.0, None)}


def test_attributes_stay_with_their_responses(folder: Path, encoder: Encoder) -> None:
    """Through the store, a part, a cut of the prompt, and beside a copy, which has none."""
    answer = (Message(role="assistant", content="It isn't so, because it does not."),)
    rated = Comparison(
        id="a",
        prompt=(Message(role="user", content="why " * 50),),
        responses=(answer, *((Message(role="assistant", content=text),) for text in "bc")),
        grades=(3.0, 2.0, 1.0),
        group="0" * 16,
        source="s",
        where="s:1",
        attributes=ATTRIBUTES,
    )
    plain = replace(rated, id="b", group="1" * 16, attributes={})

    def build(path: Path) -> dict[str, Any]:
        comparison_store.write_comparisons(path, [plain, rated, rated])
        return {}

    stored = StoredComparisons([cached("comparisons", {"of": "test"}, build)])
    assert [one.attributes for one in stored] == [{}, ATTRIBUTES, ATTRIBUTES]
    long = replace(encoder, truncation="left")
    cut = store.encode_rows(long, stored).of(stored.take(np.array([0, 2])))
    assert [tree.attributes for tree in cut.trees] == [{}, ATTRIBUTES]
    assert all(tree.truncated for tree in cut.trees)
    whole = replace(encoder, max_length=999)
    copied = store.encode_rows(whole, stored, copy_seed=1).of(stored).trees
    assert [tree.attributes for tree in copied] == [{}, ATTRIBUTES, ATTRIBUTES]
    assert all(tree.copies and len(tree.branches) == 4 for tree in copied)
    assert not any(tree.attributes for tree in copied.take(slice(0, 1)))


def test_workers_give_the_same_files(
    folder: Path, source: Source, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparisons = load_comparisons((source,), seed=1).comparisons
    assert fork_pool.worker_count(len(comparisons)) == 1, "small data must not pay for processes"
    parallel = os.environ.get("TOKENIZERS_PARALLELISM")
    store.encode_rows(encoder, comparisons)
    (serial,) = folder.glob("trees-*.arrow")
    content = serial.read_bytes()
    serial.unlink()
    monkeypatch.setattr(fork_pool, "worker_count", lambda rows: 3)
    heard: list[tuple[int, int]] = []
    store.encode_rows(encoder, comparisons, on_rows=lambda *done: heard.append(done))
    assert serial.read_bytes() == content
    total = len(comparisons)
    assert heard == [(BATCH_ROWS, total), (2 * BATCH_ROWS, total), (total, total)]
    assert os.environ.get("TOKENIZERS_PARALLELISM") == parallel


def test_a_workers_mistake_is_the_users_sentence(
    folder: Path, source: Source, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_pool, "worker_count", lambda rows: 2)
    comparisons = load_comparisons((source,), seed=1).comparisons
    with pytest.raises(DataError, match=r"pairs\.jsonl:8: a conversation has \d+ tokens"):
        store.encode_rows(replace(encoder, truncation="error"), comparisons)
    assert not [name for name in entries(folder) if "trees" in name]
    monkeypatch.setattr(store, "_encode_batch", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match="a process that encodes was killed"):
        store.encode_rows(encoder, comparisons)
    assert not [name for name in entries(folder) if "trees" in name]


def test_what_decides_the_ids_decides_the_entry(
    folder: Path, source: Source, encoder: Encoder
) -> None:
    comparisons = load_comparisons((source,), seed=1).comparisons[:40]

    def trees_after(encoder: Encoder, rows: StoredComparisons = comparisons) -> int:
        store.encode_rows(encoder, rows)
        return len(list(folder.glob("trees-*.arrow")))

    assert trees_after(encoder) == 1
    assert trees_after(encoder) == 1
    assert trees_after(replace(encoder, max_length=20)) == 2
    assert trees_after(replace(encoder, truncation="left")) == 3
    assert trees_after(replace(encoder, chat_template_kwargs={"x": 1})) == 4
    assert trees_after(encoder, comparisons[:39]) == 5
    tokenizer = type(encoder.tokenizer).from_pretrained(encoder.tokenizer.name_or_path)
    assert trees_after(replace(encoder, tokenizer=tokenizer)) == 5
    tokenizer.add_tokens(["fox"])
    assert trees_after(replace(encoder, tokenizer=tokenizer)) == 6


def test_changed_data_are_read_again(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    source = Source(path=str(path))
    write_jsonl(path, pair_rows(3))
    assert len(load_comparisons((source,), seed=1).comparisons) == 3
    write_jsonl(path, pair_rows(4))
    assert len(load_comparisons((source,), seed=1).comparisons) == 4
    # Another split, seed or weight is another look at the same file.
    again = load_comparisons((source.model_copy(update={"weight": 2.5}),), seed=7)
    assert len(again.comparisons) == 10
    assert len(list(folder.glob("*.arrow"))) == 2


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "empty", "no note", "broken note", "flipped note"]
)
def test_a_damaged_entry_is_made_again(folder: Path, source: Source, damage: str) -> None:
    before = list(load_comparisons((source,), seed=1).comparisons)
    (arrow,), (note,) = folder.glob("*.arrow"), folder.glob("*.json")
    content = bytearray(arrow.read_bytes())
    if damage == "cut":
        arrow.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        arrow.write_bytes(content)
    elif damage == "empty":
        arrow.write_bytes(b"")
    elif damage == "no note":
        note.unlink()
    elif damage == "flipped note":
        rows = f'"rows": {len(before)}'
        assert rows in note.read_text()
        note.write_text(note.read_text().replace(rows, f'"rows": {len(before) + 1}'))
    else:
        note.write_text("{")
    assert load_comparisons((source,), seed=1).comparisons == before
    assert json.loads(note.read_text())["record"]["unread"]["rows"] == len(before)


def test_a_build_that_fails_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", [*pair_rows(600), {"chosen": 1}])
    with pytest.raises(DataError, match=r"pairs\.jsonl:601"):
        load_comparisons((Source(path=str(path)),), seed=1)
    assert entries(folder) == []


def test_a_killed_build_leaves_no_entry_and_no_lock(folder: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(20))
    stuck = (
        "import sys, time\n"
        "from plaudit.data import load\n"
        "from plaudit.recipe.schema import Source\n"
        "write = load.write_comparisons\n"
        "def stop(*arguments):\n"
        "    write(*arguments)\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
        "load.write_comparisons = stop\n"
        "load.load_comparisons((Source(path=sys.argv[1]),), seed=1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", stuck, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.wait()
    assert not list(folder.glob("*.arrow"))
    started = time.perf_counter()
    assert len(load_comparisons((Source(path=str(path)),), seed=1).comparisons) == 20
    assert time.perf_counter() - started < 30
    assert [Path(name).suffix for name in entries(folder)] == [".arrow", ".json"]


def test_without_a_cache_nothing_stays(
    tmp_path: Path, source: Source, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "off")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    comparisons = load_comparisons((source,), seed=1).comparisons
    trees = store.encode_rows(encoder, comparisons).of(comparisons).trees
    assert list(tmp_path.iterdir()) == []
    assert comparisons[-1].where.endswith(f":{len(comparisons)}")
    assert_same(iter(trees), usable(encode(encoder, list(comparisons))))


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(logging.getLogger("plaudit"), "propagate", True)
    assert len(load_comparisons((source,), seed=1).comparisons) > BATCH_ROWS
    assert "set PLAUDIT_CACHE to another" in caplog.text


def test_a_full_disk_is_one_sentence(
    folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load, "write_comparisons", full)
    with pytest.raises(OutputError, match=r"No space left.*set PLAUDIT_CACHE"):
        load_comparisons((source,), seed=1)
    assert entries(folder) == []


def test_entries_unused_for_a_month_go(folder: Path, source: Source, tmp_path: Path) -> None:
    load_comparisons((source,), seed=1)
    old = time.time() - 31 * 86400
    for name in entries(folder):
        os.utime(folder / name, (old, old))
    (folder / "mine.txt").write_text("kept")
    os.utime(folder / "mine.txt", (old, old))
    other = write_jsonl(tmp_path / "other.jsonl", pair_rows(5))
    load_comparisons((Source(path=str(other)),), seed=1)
    assert len(entries(folder)) == 3
    assert "mine.txt" in entries(folder)


def test_parts_of_several_tables(folder: Path, source: Source, tmp_path: Path) -> None:
    other = Source(path=str(write_jsonl(tmp_path / "other.jsonl", pair_rows(30, seed=1))), weight=2)
    loaded = load_comparisons((other, source), seed=1).comparisons
    first, second = (load_comparisons((one,), seed=1).comparisons for one in (other, source))
    assert loaded == [*first, *second]
    part = loaded.take(np.array([65, 3, 1000]))
    assert list(part) == [loaded[65], loaded[3], loaded[1000]]
    joined = StoredComparisons.joined([part, second[:2], loaded[:1]])
    assert list(joined) == [*part, *second[:2], loaded[0]]
    assert joined.groups.tolist() == [int(row.group, 16) for row in joined]


def test_memory_does_not_grow_with_the_rows_that_are_walked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of the mapped file go back: those in memory stay below a part of the file."""
    rows = [
        {"prompt": str(number), "chosen": "yes " * 5_000, "rejected": "no"}
        for number in range(1500)
    ]
    path = write_jsonl(tmp_path / "large.jsonl", rows)
    monkeypatch.setattr("plaudit.storage.arrow._KEPT_BYTES", 4 << 20)
    comparisons = load_comparisons((Source(path=str(path)),), seed=1).comparisons
    (arrow,) = folder.glob("*.arrow")
    assert arrow.stat().st_size > 25 << 20
    largest = 0
    for number, _ in enumerate(comparisons):
        if number % 100 == 99:
            largest = max(largest, _resident(arrow))
    assert 0 < largest < 10 << 20


def _resident(path: Path) -> int:
    """Bytes of a mapped file that are resident in this process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            kilobytes = next(line for line in lines if line.startswith("Rss:")).split()[1]
            return int(kilobytes) << 10
    return 0


@pytest.mark.parametrize("kind", ["chat_template", *registry.names("renderer")])
def test_the_key_of_trees_covers_every_module_that_decides_ids(kind: str) -> None:
    """Text becomes ids in ``tokens``, in the records of ``types``, and in a tool's renderer."""
    modules = set(store._code(Rendering(kind=kind)))
    package = Path(plaudit.__file__).parent
    assert modules >= {package / "types.py", *package.glob("tokens/*.py")}
    if kind != "chat_template":
        assert registry.source_file("renderer", kind) in modules
