"""Whole files or nothing, and a sentence when a write fails."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from plaudit.errors import OutputError
from plaudit.storage.atomic import (
    as_output_error,
    write_atomically,
    write_folder,
    write_json,
    write_text,
    writing,
)


def failing(number: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text("half of it")
        raise OSError(number, "as the system says it")

    return write


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(number: int, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("before")
    with pytest.raises(OutputError, match=r"The disk is full: .*result\.json"):
        write_atomically(path, failing(number))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_any_other_failure_names_its_cause(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"as the system says it.*--out"):
        write_atomically(tmp_path / "result", failing(errno.EFBIG))
    assert not list(tmp_path.iterdir())


def test_a_defect_is_not_a_failed_write(tmp_path: Path) -> None:
    def write(path: Path) -> NoReturn:
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "result", write)
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="could not be written"):
        write_text(tmp_path / "file" / "result", "text")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        # What safetensors, tokenizers and torch say on a full disk.
        ("Error while serializing: I/O error: No space left on device (os error 28)", "is full"),
        ("File too large (os error 27)", "File too large"),
        ("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 528", "completely"),
        ("PytorchStreamWriter failed writing file data/3: file write failed", "completely"),
    ],
)
def test_failed_writes_of_libraries(message: str, words: str, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError(message)

    with pytest.raises(OutputError, match=words) as caught, writing(tmp_path / "model"):
        fail()
    assert str(tmp_path / "model") in str(caught.value)


def test_other_errors_of_libraries_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), writing(tmp_path):
        raise RuntimeError("a shape does not fit")


def test_json_is_json(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "facts.json"
    write_json(path, {"é": [1, None]})
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert "é" in path.read_text(encoding="utf-8")


def test_a_system_error_without_words(tmp_path: Path) -> None:
    assert "gone wrong" in str(as_output_error(OSError("gone wrong"), tmp_path))


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def fails(path: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "as the system says it")

    def writes(path: Path) -> None:
        path.write_text("whole")

    folder = tmp_path / "above" / "folder"
    with pytest.raises(OutputError, match=r"The disk is full: .*folder"):
        write_folder(folder, {"first": writes, "second": fails})
    assert not any(folder.parent.iterdir())
    write_folder(folder, {"first": writes})
    assert [path.name for path in folder.parent.rglob("*")] == ["folder", "first"]
    with pytest.raises(OutputError, match="already exists"):
        write_folder(folder, {"second": writes})
    assert [path.name for path in folder.iterdir()] == ["first"]
