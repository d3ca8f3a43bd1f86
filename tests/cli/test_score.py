"""``plaudit score`` on the command line: inline responses, stdin, stdout, the first rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import plaudit
from plaudit.cli.main import main
from tests.conftest import pair_rows, write_jsonl

pytestmark = pytest.mark.heavy


def test_responses_on_the_command_line_score_as_in_python(
    finished_run: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    responses = ["it right", "it\x1b[31m wrong\n"]
    rewards = plaudit.load(finished_run).score("what is it", responses)
    capsys.readouterr()
    assert main(["score", str(finished_run), "what is it", *responses]) == 0
    assert capsys.readouterr().out == (
        f"{rewards[0]:.6f}\tit right\n{rewards[1]:.6f}\tit\\x1b[31m wrong\n"
    )
    assert main(["score", str(finished_run), "what is it", *responses, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rewards": rewards}
    assert main(["score", str(finished_run), str(pairs_file), str(pairs_file)]) == 2
    assert "score one at a time" in capsys.readouterr().err
    for option in ("--limit=1", "--out=x.jsonl", "--format=pairs", "--columns=a=b", "--column=r"):
        assert main(["score", str(finished_run), "what", "it", option]) == 2
        sentence = "--out, --limit, --format, --columns and --column apply to files"
        assert sentence in capsys.readouterr().err
    for prompt in ("what is it " * 50, "~what is it"):
        assert main(["score", str(finished_run), prompt, "it"]) == 0
        assert capsys.readouterr().out.endswith("\tit\n")


def test_rows_go_from_stdin_to_stdout(finished_run: Path, tmp_path: Path) -> None:
    """With the rewards of a file; the summary goes to stderr."""
    data = write_jsonl(tmp_path / "rows.jsonl", pair_rows(5))
    command = [sys.executable, "-m", "plaudit", "score", str(finished_run), "-", "--limit", "3"]
    done = subprocess.run(
        command, input=data.read_bytes(), capture_output=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"Scored 3 of 3 rows" in done.stderr
    out = tmp_path / "out.jsonl"
    assert main(["score", str(finished_run), str(data), "--limit", "3", "--out", str(out)]) == 0
    assert done.stdout == out.read_bytes()
    assert len(out.read_text().splitlines()) == 3


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(
    finished_run: Path, pairs_file: Path
) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "plaudit", "best-of", str(finished_run), str(pairs_file)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=240, check=False)
    os.close(write)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


def test_rows_on_stdout_leave_no_room_for_counts(
    pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "runs/gone", str(pairs_file), "--json"]) == 2
    assert "--json needs --out FILE" in capsys.readouterr().err


def test_eval_reads_the_first_rows_and_says_it_in_a_few_lines(
    finished_run: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(finished_run), str(pairs_file), "--limit", "7", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["eval"]["pairs"] == 7
    assert "--verbose" in captured.err
    command = ["eval", str(finished_run), str(pairs_file), "--limit", "7", "--verbose"]
    assert main(command) == 0
    assert len(capsys.readouterr().err) > len(captured.err)


def test_a_suite_takes_no_options_of_data(
    pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--limit", "7"], ["--columns", "prompt=question"]):
        assert main(["eval", "runs/gone", "--suite", f"pairs:{pairs_file}", *option]) == 2
        assert "apply to DATA, not to suites" in capsys.readouterr().err
