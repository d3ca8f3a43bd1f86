"""Files, folders and Hub ids: what is read, where it stood, and one sentence for bad input."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from plaudit.data.sources.read import licence, read_rows, source_fingerprint, source_name
from plaudit.errors import DataError
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import existing_path, missing_path

ROWS: list[dict[str, Any]] = [
    {"prompt": "2+3=", "chosen": "5", "rejected": "6"},
    {"prompt": "Grüße 你好", "chosen": "hi\u2028there", "rejected": 'a "quoted", b'},
]
TURNS = [{"role": "user", "content": "Hi"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def rows_of(path: Path | str, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    return list(read_rows(Source(path=str(path), **more)))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def complaint(path: Path | str, **more: Any) -> str:
    with pytest.raises(DataError) as raised:
        rows_of(path, **more)
    message = str(raised.value)
    assert "\n" not in message
    return message


def zstd(content: bytes) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.jsonl", JSONL.encode(), (1, 2)),
        ("a.ndjson", JSONL.encode(), (1, 2)),
        ("a.JSONL", JSONL.encode(), (1, 2)),
        ("a.v2.jsonl.gz", gzip.compress(JSONL.encode()), (1, 2)),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode()), (1, 1)),
        ("a.jsonl.zst", zstd(JSONL.encode()), (1, 2)),
        ("a.json.zst", zstd(json.dumps(ROWS).encode()), (1, 1)),
        ("a.json", json.dumps(ROWS, indent=1).encode(), (2, 7)),
        ("a.json", b"\n\n  [" + ",\n".join(map(json.dumps, ROWS)).encode() + b"\n]\n", (3, 4)),
        ("a.json", JSONL.encode(), (1, 2)),
        ("a.jsonl", b"\xef\xbb\xbf" + JSONL.encode(), (1, 2)),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), (1, 1)),
        ("a.jsonl", b"\n \n" + JSONL.replace("\n", "\r\n\r\n").encode(), (3, 5)),
        ("a.jsonl", JSONL.rstrip("\n").encode(), (1, 2)),
    ],
)
def test_json_files_give_rows_with_their_lines(
    tmp_path: Path, name: str, content: bytes, lines: tuple[int, ...]
) -> None:
    path = write(tmp_path / name, content)
    assert rows_of(path) == [(f"{path}:{line}", row) for line, row in zip(lines, ROWS, strict=True)]


def test_csv_and_parquet_give_rows_with_their_numbers(tmp_path: Path) -> None:
    for path in (write_csv(tmp_path / "a.csv", ROWS), write_parquet(tmp_path / "a.parquet", ROWS)):
        assert rows_of(path) == [(f"{path}:row {n}", row) for n, row in enumerate(ROWS, start=1)]
    packed = write(tmp_path / "b.csv.gz", gzip.compress((tmp_path / "a.csv").read_bytes()))
    assert [row for _, row in rows_of(packed)] == ROWS


def test_tsv_is_csv_with_tabs(tmp_path: Path) -> None:
    with (tmp_path / "a.tsv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, delimiter="\t")
        table.writerows([["prompt", "chosen", "rejected"], *(row.values() for row in ROWS)])
        table.writerow([json.dumps(TURNS), "a,b", "a\tb"])
    rows = [row for _, row in rows_of(tmp_path / "a.tsv")]
    assert rows == [*ROWS, {"prompt": TURNS, "chosen": "a,b", "rejected": "a\tb"}]
    packed = write(tmp_path / "b.tsv.zst", zstd((tmp_path / "a.tsv").read_bytes()))
    assert [row for _, row in rows_of(packed)] == rows


def test_datasets_saved_to_disk_give_their_rows(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    saved = tmp_path / "saved"
    Dataset.from_list(ROWS).save_to_disk(saved, num_shards=2)
    # What `map` writes beside the data is no part of them.
    write(saved / "cache-1.arrow", b"")
    assert rows_of(saved) == [
        (f"{saved}/data-0000{n}-of-00002.arrow:row 1", row) for n, row in enumerate(ROWS)
    ]
    splits = tmp_path / "splits"
    DatasetDict(train=Dataset.from_list(ROWS[:1]), test=Dataset.from_list(ROWS[1:])).save_to_disk(
        splits
    )
    assert [row for _, row in rows_of(splits)] == ROWS[:1]
    assert [row for _, row in rows_of(splits, split="test")] == ROWS[1:]
    assert source_fingerprint(Source(path=str(splits))) != source_fingerprint(
        Source(path=str(splits), split="test")
    )
    assert "has no split 'dev' (found: test, train)" in complaint(splits, split="dev")
    (splits / "test" / "data-00000-of-00001.arrow").unlink()
    assert "lacks data-00000-of-00001.arrow" in complaint(splits, split="test")
    write(splits / "test" / "state.json", "{}")
    assert "does not list the files of the dataset" in complaint(splits, split="test")


def test_a_state_file_alone_is_no_saved_dataset(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", JSONL)
    write(tmp_path / "state.json", JSONL)
    assert [row for _, row in rows_of(tmp_path)] == [*ROWS, *ROWS]


@pytest.mark.parametrize(
    "text", ["long " * 100, "long/" * 100, "o/" + "long" * 100, "~no one here", "~no-one/x", "a\0b"]
)
def test_any_text_may_stand_where_a_path_is_expected(text: str) -> None:
    """A prompt on a command line, for one."""
    assert existing_path(text) is None
    assert missing_path(text) is None or "does not exist" in str(missing_path(text))
    assert source_name(Source(path=text)) == text
    if not text.startswith("o/"):
        message = complaint(text)
        assert "does not exist" in message
        assert len(message) < 600


def test_the_hint_for_a_missing_path_is_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is opened by the name as it is, and a recipe is not read by a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model = tmp_path / "mymodel"
    model.mkdir()
    for name in ("~/mymodel", "~/mymodl", f"{tmp_path}/mymodl"):
        assert missing_path(name) == f"{name} does not exist (did you mean {model}?)"
    assert missing_path(str(model)) is None


def test_csv_cells_become_messages_lists_numbers_and_nulls(tmp_path: Path) -> None:
    cells = {
        "prompt": json.dumps(TURNS),
        "chosen": "[INST] no JSON",
        "rejected": "[1, 2]",
        "responses": '["a", "b"]',
        "grades": "[1, 0.5]",
        "margin": "0.5",
        "weight": " ",
        "label": "True",
        "tools": "",
        "attributes": " ",
        "verbosity": "3",
        "coherence": "",
        "id": "7",
        "year": "1999",
    }
    (_, row), (_, second) = rows_of(write_csv(tmp_path / "a.csv", [cells, cells | {"margin": "x"}]))
    assert row == {
        **cells,
        "prompt": TURNS,
        "responses": ["a", "b"],
        "grades": [1, 0.5],
        "margin": 0.5,
        "weight": None,
        "label": True,
        "tools": None,
        "attributes": None,
        "verbosity": 3,
        "coherence": None,
    }
    assert second["margin"] == "x"


def test_csv_cells_may_be_longer_than_the_csv_module_allows_at_first(tmp_path: Path) -> None:
    long = "word " * 40_000
    path = write_csv(tmp_path / "a.csv", [{"prompt": long, "chosen": "a\nb", "rejected": "c"}])
    assert rows_of(path)[0][1] == {"prompt": long, "chosen": "a\nb", "rejected": "c"}


def test_nulls_that_parquet_fills_in_are_taken_out_again(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]},
    ]
    path = write_parquet(tmp_path / "a.parquet", [{"chosen": turns, "margin": None}])
    assert rows_of(path)[0][1] == {
        "chosen": [turns[0], {"role": "assistant", "tool_calls": [{"name": "clock"}]}],
        "margin": None,
    }


def test_a_folder_is_its_data_files_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", JSONL)
    write(tmp_path / "a.json", json.dumps(ROWS[:1]))
    write(tmp_path / ".hidden.jsonl", "junk")
    write(tmp_path / "README.md", "not data")
    wheres = [where for where, _ in rows_of(f"{tmp_path}/")]
    assert wheres == [f"{tmp_path}/a.json:1", f"{tmp_path}/b.jsonl:1", f"{tmp_path}/b.jsonl:2"]


def test_where_is_the_path_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", JSONL)
    assert rows_of("./pairs.jsonl")[1][0] == "./pairs.jsonl:2"


def test_jsonl_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("w") as stream:
        for _ in range(4_000):
            stream.write(json.dumps({"prompt": "x" * 5_000}) + "\n")
    tracemalloc.start()
    assert sum(1 for _ in read_rows(Source(path=str(path)))) == 4_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 20_000_000
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": 1,\n', ":2: invalid JSON (Expecting"),
        ("a.jsonl", b'{"a": 1} {"a": 2}\n', ":1: invalid JSON (Extra data"),
        ("a.jsonl", b'{"a": ' + b"9" * 5_000 + b"}", ":1: invalid JSON (Exceeds the limit"),
        ("a.jsonl", b'{"a": ' + b"[" * 200_000, ":1: invalid JSON (nested too deeply"),
        ("a.json", b'[{"a": 1},\n{"a": }]', ":2: invalid JSON (Expecting value"),
        ("a.json", b'[{"a": 1}\n\n{"a": 2}]', ":3: invalid JSON; expected a comma"),
        ("a.json", b'[{"a": 1},\n]', ":2: invalid JSON (Expecting value"),
        ("a.json", b'[{"a": 1}', ":1: invalid JSON; expected a comma"),
        ("a.json", b"[" * 200_000, ":1: invalid JSON (nested too deeply"),
        ("a.json", b'[{"a": 1}] [', "more text after the array"),
        ("a.json", b'{"a":\n1}', ":1: invalid JSON (Expecting value"),
        ("a.jsonl", b"\x80\x04\x95\xff\n", ":1: invalid UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', ":2: invalid UTF-8"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), ":1: invalid UTF-8"),
        ("a.jsonl", b"\0\0\0\0", ":1: invalid UTF-8"),
        ("a.csv", b"PK\x03\x04\xfa\xfb", ":1: invalid UTF-8"),
        ("a.jsonl", b"[1]\n", ":1: found a list; expected an object"),
        ("a.jsonl", b'"x"\n', ":1: found text; expected an object"),
        ("a.jsonl", b"null\n", ":1: found null; expected an object"),
        ("a.jsonl", b"true\n", ":1: found a boolean; expected an object"),
        ("a.json", b'[{"a": 1},\n 3]', ":2: found a number; expected an object"),
        ("a.jsonl", b'{"a": "x\\ud83d"}\n', ":1: a text has an unpaired surrogate"),
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b"\n \n", "has no rows"),
        ("a.json", b"[ ]", "has no rows"),
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"prompt,chosen\n", "has no rows"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", ":row 2: 3 cells, but the header has 2 columns"),
        ("a.csv", b"a,a\n1,2\n", "duplicate column name"),
        ("a.csv", b'a,b\n1,"2\n', "invalid CSV (unexpected end of data)"),
        ("a.parquet", b"PAR1 not really", "cannot be read as Parquet"),
        ("a.parquet", b"", "cannot be read as Parquet"),
        ("a.jsonl.gz", JSONL.encode(), "is not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(JSONL.encode())[:-9], "is not a complete gzip file"),
        ("a.jsonl", gzip.compress(JSONL.encode()), "add .gz to the name"),
        ("a.jsonl.zst", JSONL.encode(), "is not a complete zstd file"),
        ("a.jsonl.zst", zstd(JSONL.encode() * 99)[:-9], "is not a complete zstd file"),
        ("a.jsonl", zstd(JSONL.encode()), "add .zst to the name"),
        ("a.tsv", b"a\tb\n1\t2\t3\n", "quote texts that contain tabs or line breaks"),
        ("a.arrow", b"ARROW1 not really", "cannot be read as Arrow"),
        ("a.arrow", b"not really", "cannot be read as Arrow"),
        ("a.txt", b"hello", "has an unknown file extension; expected .jsonl, .ndjson"),
        ("pairs", b"hello", "has an unknown file extension"),
    ],
)
def test_bad_files_are_one_sentence_with_the_place(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    path = write(tmp_path / name, content)
    message = complaint(path)
    assert expected in message
    assert message.startswith(str(path))


def test_escaped_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a": "\\ud83d\\ude00"}\n')
    assert rows_of(path)[0][1] == {"a": "😀"}


def test_a_missing_file_suggests_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", JSONL)
    assert complaint(tmp_path / "pair.jsonl").endswith("did you mean pairs.jsonl?")
    assert "there is no folder" in complaint(tmp_path / "no" / "pairs.jsonl")
    assert "expected a file, a folder or a Hub dataset id" in complaint(tmp_path / "zzz.csv")


def test_a_bare_word_or_a_forgotten_extension_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "pairs.jsonl", JSONL)
    assert complaint("data/pairs") == "data/pairs does not exist; did you mean pairs.jsonl?"
    assert "did you mean pairs.jsonl?" in complaint("data/pairz.jsonl")
    assert "does not exist" in complaint("imdb")


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "words")
    assert "has no data files; expected .jsonl" in complaint(tmp_path)


def test_split_and_subset_belong_to_the_hub(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", JSONL)
    assert "Hub datasets only" in complaint(path, split="train")
    assert "Hub datasets only" in complaint(path, subset="x")


def test_fingerprints_are_those_of_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", JSONL)
    digest = hashlib.sha256(JSONL.encode()).hexdigest()
    assert source_fingerprint(Source(path=str(path))) == f"sha256:{digest}"
    whole = source_fingerprint(Source(path=str(tmp_path)))
    write(tmp_path / "b.jsonl", JSONL)
    assert source_fingerprint(Source(path=str(tmp_path))) != whole


def test_source_names(tmp_path: Path) -> None:
    path = write(tmp_path / "my.pairs.jsonl.gz", b"")
    assert source_name(Source(path=str(path))) == "my.pairs"
    assert source_name(Source(path=str(path), name="x")) == "x"
    assert source_name(Source(path=f"{tmp_path}/")) == tmp_path.name
    assert source_name(Source(path="owner/name")) == "owner/name"


@pytest.fixture
def hub_table(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A dataset that ``load_dataset`` gives for any id; the calls it got are returned."""
    import datasets

    calls: list[dict[str, Any]] = []

    def load_dataset(path: str, *, streaming: bool, **parts: str | None) -> Any:
        calls.append({"path": path, "streaming": streaming, **parts})
        table = datasets.Dataset.from_list(ROWS)
        return table.to_iterable_dataset() if streaming else table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_datasets_give_rows_with_their_part(hub_table: list[dict[str, Any]]) -> None:
    assert rows_of("owner/name") == [
        ("owner/name[train]:row 1", ROWS[0]),
        ("owner/name[train]:row 2", ROWS[1]),
    ]
    assert rows_of("owner/name", subset="s", split="test")[0][0] == "owner/name[s/test]:row 1"
    parts = {"name": "s", "data_dir": None, "split": "test", "streaming": False}
    assert hub_table[1] == {"path": "owner/name", **parts}
    streamed = rows_of("owner/name", data_dir="preference", streaming=True)
    assert streamed[0] == ("owner/name[preference/train]:row 1", ROWS[0])
    assert hub_table[2]["data_dir"] == "preference"
    assert hub_table[2]["streaming"]


def test_hub_facts_come_from_the_hub_or_are_left_out(
    monkeypatch: pytest.MonkeyPatch, hub_table: list[dict[str, Any]]
) -> None:
    import huggingface_hub
    from huggingface_hub.hf_api import DatasetInfo

    info = DatasetInfo(
        id="owner/name", sha="abc123", downloads=0, likes=0, tags=[], cardData={"license": "mit"}
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: info)
    source = Source(path="owner/name")
    assert source_fingerprint(source) == "revision:abc123"
    assert licence(source) == "mit"

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    assert licence(source) is None
    assert source_fingerprint(source).startswith("datasets:")
    with pytest.raises(DataError, match="cannot be streamed because the Hub is unreachable"):
        source_fingerprint(Source(path="owner/name", streaming=True))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("DatasetNotFoundError", "neither a local file nor a Hub dataset"),
        ("ConnectionError", "the Hub is unreachable"),
        ("ValueError", "Unknown split; set `split` or `subset`"),
        ("DataFilesNotFoundError", "cannot be loaded: Unknown split"),
        ("RuntimeError", "cannot be loaded"),
    ],
)
def test_hub_failures_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: str, expected: str
) -> None:
    import builtins

    import datasets
    from datasets import exceptions

    kind = vars(exceptions).get(error) or vars(builtins)[error]

    def fails(*_: Any, **__: Any) -> None:
        raise kind("Unknown\nsplit.")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    message = complaint("owner/name").replace("Unknown split.", "Unknown split")
    assert message.startswith("owner/name")
    assert expected in message
