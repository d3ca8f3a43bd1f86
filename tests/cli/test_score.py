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
from tests.models import FIVE_HEADS, saved_with_outputs
from tests.warm import environment_of_a_user, python

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


def test_outputs_and_uncertainty_of_an_ensemble_are_printed_and_written(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved_with_outputs(tmp_path / "model", tiny_base, lora=False, outputs=FIVE_HEADS)
    model = plaudit.load(folder, lower_bound_k=2)
    responses = ["it right", "it wrong"]
    details = model.score("what is it", responses, outputs=True, uncertainty=True)
    capsys.readouterr()
    inline = ["score", str(folder), "what is it", *responses, "--lower-bound-k", "2"]
    assert main([*inline, "--outputs", "--uncertainty", "--json"]) == 0
    fields = ("outputs", "mean", "spread", "lower_bound")
    expected = {name: [getattr(one, name) for one in details] for name in fields}
    rewards = {"rewards": [one.reward for one in details]}
    assert json.loads(capsys.readouterr().out) == rewards | expected
    assert main([*inline, "--uncertainty", "--reward", "lower_bound"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{one.lower_bound:.6f}\tmean={one.mean:.6f}\tspread={one.spread:.6f}"
        f"\tlower_bound={one.lower_bound:.6f}\t{response}"
        for one, response in zip(details, responses, strict=True)
    ]
    assert main([*inline, "--outputs"]) == 0
    heads = [f"{name}={value:.6f}" for name, value in (details[1].outputs or {}).items()]
    last = capsys.readouterr().out.splitlines()[1]
    assert last.split("\t") == [f"{details[1].reward:.6f}", *heads, "it wrong"]

    row = {"prompt": "what is it", "responses": responses}
    data, out = write_jsonl(tmp_path / "rows.jsonl", [row]), tmp_path / "out.jsonl"
    options = ["--outputs", "--uncertainty", "--reward", "lower_bound", "--lower-bound-k", "2"]
    assert main(["score", str(folder), str(data), "--out", str(out), *options]) == 0
    written = json.loads(out.read_text())
    for name, values in expected.items():
        for found, value in zip(written[f"rewards_{name}"], values, strict=True):
            assert found == pytest.approx(value, abs=1e-5)
    assert written["rewards"] == written["rewards_lower_bound"]
    best = tmp_path / "best.jsonl"
    command = ["best-of", str(folder), str(data), "--out", str(best), *options[2:]]
    assert main(command) == 0
    row = json.loads(best.read_text())
    assert row["rewards"] == written["rewards"]
    assert row["best"] == row["rewards"].index(max(row["rewards"]))


@pytest.mark.parametrize("command", ["score", "best-of", "serve"])
def test_a_lower_bound_of_a_model_without_an_ensemble_is_an_error(
    finished_run: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    rest = ["--port", "0"] if command == "serve" else [str(pairs_file)]
    assert main([command, str(finished_run), *rest, "--reward", "lower_bound"]) == 2
    assert "has one output and no ensemble of heads; train a model" in capsys.readouterr().err
    assert main([command, str(finished_run), *rest, "--lower-bound-k", "inf"]) == 2
    assert "expected a finite number of at least 0" in capsys.readouterr().err


def test_rows_go_from_stdin_to_stdout(finished_run: Path, tmp_path: Path) -> None:
    """With the rewards of a file; the summary goes to stderr."""
    data = write_jsonl(tmp_path / "rows.jsonl", pair_rows(5))
    done = subprocess.run(
        [python(), "-m", "plaudit", "score", str(finished_run), "-", "--limit", "3"],
        input=data.read_bytes(),
        capture_output=True,
        timeout=240,
        check=False,
        env=environment_of_a_user(),
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
