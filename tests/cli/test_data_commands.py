"""``plaudit data preview|convert|split|perturb`` from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from plaudit.cli.main import main
from plaudit.data.formats.writers import WRITERS
from plaudit.data.perturb.table import PERTURBATIONS
from tests.conftest import pair_rows, write_jsonl


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_convert_there_and_back(
    pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = tmp_path / "there.parquet", tmp_path / "back.jsonl"
    assert main(["data", "convert", str(pairs_file), "--out", str(there), "--to", "ranked"]) == 0
    asked = ["data", "convert", str(there), "--out", str(back), "--to", "explicit_conversational"]
    assert main([*asked, "--from", "ranked", "--json"]) == 0
    assert lines(back) == lines(pairs_file)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["read"], facts["used"], facts["written"], facts["skipped"]) == (60, 60, 60, {})
    assert main(asked) == 2
    assert "already exists" in capsys.readouterr().err


def test_one_row_is_not_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_jsonl(tmp_path / "pair.jsonl", pair_rows(1)), tmp_path / "out.jsonl"
    assert main(["data", "convert", str(data), "--out", str(out), "--to", "ranked"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"Wrote 1 row to {out}, from 1 of 1 row." in said


def test_the_tables_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(WRITERS)
    assert main(["data", "perturb", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PERTURBATIONS)


def test_split_keeps_rows_and_prompts_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pair_rows(40) + pair_rows(40)
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    asked = ["data", "split", str(data), "--stratify", "subset"]
    assert main([*asked, "--out", str(tmp_path / "parts"), "--json"]) == 0
    parts = [lines(tmp_path / "parts" / f"{name}.jsonl") for name in ("train", "eval", "test")]
    assert [len(part) for part in parts] == [64, 8, 8]
    written = [row for part in parts for row in part]
    assert sorted(map(json.dumps, written)) == sorted(map(json.dumps, rows))
    prompts = [{json.dumps(row["prompt"]) for row in part} for part in parts]
    assert not (prompts[0] & prompts[1])
    assert not (prompts[0] & prompts[2])
    assert not (prompts[1] & prompts[2])
    facts = json.loads(capsys.readouterr().out)
    assert [part["leaks"] for part in facts] == [0, 0, 0]
    write_jsonl(data, rows[::-1])
    assert main([*asked, "--out", str(tmp_path / "again")]) == 0
    assert sorted(map(json.dumps, lines(tmp_path / "again" / "eval.jsonl"))) == sorted(
        map(json.dumps, parts[1])
    )
    by_row = [*asked, "--out", str(tmp_path / "rows"), "--by", "row", "--fractions", "a=0.5,b=0.5"]
    assert main(by_row) == 0
    assert re.search(r"of 40 rows of b have a prompt that is also in a;", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fractions", "train=0.5"], "at least two parts"),
        (["--fractions", "a=0.5,b=0.6"], "add up to 1.1; expected 1"),
        (["--fractions", "a=0.5;b"], "expected NAME=SHARE"),
        (["--fractions", "a/b=0.5,c=0.5"], "invalid part name"),
        (
            ["--stratify", "nothing"],
            "no row of pairs has a value to stratify by in the column nothing",
        ),
    ],
)
def test_a_split_that_cannot_be_is_one_sentence(
    options: list[str],
    message: str,
    pairs_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "parts"
    assert main(["data", "split", str(pairs_file), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_perturb_makes_pairs_of_a_known_cause(
    pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["data", "perturb", str(pairs_file), "--seed", "7"]
    out = tmp_path / "hard.jsonl"
    assert main([*asked, "--out", str(out), "--per-row", "2", "--severity", "minor,major"]) == 0
    rows = lines(out)
    assert len(rows) == 120
    for row in rows:
        perturbation = PERTURBATIONS[str(row["subset"])]
        assert (row["kind"], row["severity"]) == (perturbation.kind, perturbation.severity)
        assert perturbation.severity in ("minor", "major")
        assert row["chosen"] != row["rejected"]
    same = tmp_path / "same.jsonl"
    assert main([*asked, "--out", str(same), "--per-row", "2", "--severity", "minor,major"]) == 0
    assert same.read_bytes() == out.read_bytes()
    ties = tmp_path / "ties.jsonl"
    asked.append("--perturbations")
    assert main([*asked, "meaning_preserving", "--out", str(ties), "--json"]) == 0
    assert {tuple(row["grades"]) for row in lines(ties)} == {(1.0, 1.0)}  # type: ignore[arg-type]
    facts = json.loads(capsys.readouterr().out)
    assert facts["written"] + sum(facts["not_made"].values()) == 60 * 11
    none = tmp_path / "none.jsonl"
    assert main([*asked, "final_newline", "--out", str(none), "--to", "rlhflow"]) == 2
    assert "none of the 60 rows can be written: 60 tie" in capsys.readouterr().err
    assert not none.exists()
    assert main([*asked, "nonsense", "--out", str(none)]) == 2
    assert "unknown perturbation 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["mutate", "pairs.jsonl"], "renamed to plaudit data perturb."),
        (
            ["perturb", "pairs.jsonl", "--operators=all"],
            "renamed to plaudit data perturb --perturbations.",
        ),
        (
            ["perturb", "p", "--out", "o.jsonl", "--perturbations", "hack"],
            "renamed to reward_hacking",
        ),
    ],
)
def test_an_old_name_is_a_usage_error_that_names_the_new(
    old: list[str], new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *old]) == 2
    assert new in capsys.readouterr().err


ODD = {
    "prompt": [{"role": "user", "content": "Is [red]<b>this</b>[/red] \x1b[31m it?\nYes 日"}],
    "chosen": [{"role": "assistant", "content": "It <script>alert(1)</script> is."}],
    "rejected": [{"role": "assistant", "content": "It is not."}],
}


@pytest.mark.heavy
def test_preview_shows_what_is_trained_on(
    finished_run: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "odd.jsonl", [ODD, *pair_rows(3)])
    shown = {}
    for model in (finished_run, tiny_base):
        assert main(["data", "preview", str(data), "--model", str(model), "--rows", "1"]) == 0
        shown[model] = capsys.readouterr().out
    assert shown[finished_run] == shown[tiny_base]
    text = shown[finished_run]
    assert "\x1b" not in text
    assert r"\x1b" in text
    assert re.search(r"tokens shared by both responses", text)
    assert re.search(r"chosen: \d+ tokens, the scored one is \S+ \(id \d+\)", text)
    assert "[red" in text.replace("|", "")
    page = tmp_path / "page.html"
    asked = ["data", "preview", str(data), "--model", str(tiny_base), "--html", str(page)]
    assert main(asked) == 0
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<b>" not in html
    assert html.count("<h2>") == 3
    assert len(re.findall(r'class="token[^"]* scored"', html)) == 6


@pytest.mark.heavy
def test_preview_says_what_is_skipped_and_what_is_wrong(
    tiny_base: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", [{**ODD, "rejected": ODD["chosen"]}, ODD])
    asked = ["data", "preview", str(data), "--model", str(tiny_base)]
    assert main([*asked, "--row", "2", "--max-length", "4"]) == 0
    assert "Not encoded (over_length)" in capsys.readouterr().out
    assert main([*asked, "--row", "1", "--ids"]) == 0
    assert "Training drops it: all responses are identical." in capsys.readouterr().out
    for words, message in (
        ([*asked, "--row", "9"], "there is no row 9"),
        (asked[:3], "set --model or --recipe"),
        (["data", "preview", "--model", str(tiny_base)], "no data to preview"),
        (
            [*asked[:3], "--model", str(finished_run), "--chat-template", "x.jinja"],
            "remove --chat-template",
        ),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.heavy
def test_preview_says_which_objectives_learn_from_a_row(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "one", "responses": ["two"], "grades": [4]},
        {"prompt": "one", "responses": ["two", "three"], "grades": [0.5, 0.5]},
        {"prompt": "one", "responses": ["two", "three"], "attributes": {"Clear": [None, 2.5]}},
    ]
    data = write_jsonl(tmp_path / "rated.jsonl", rows)
    asked = ["data", "preview", str(data), "--model", str(tiny_base)]
    assert main(asked) == 0
    text = capsys.readouterr().out
    assert "Labels: rating 4. Learned by mse, huber, ordinal." in text
    assert "Learned by rao_kupper, davidson, mse, huber, bce, ordinal." in " ".join(text.split())
    assert "Training drops it: there is only one response" in text
    assert "Training drops it: all responses have the same grade." in text
    assert "Labels: attributes Clear. Learned by outputs of these names." in text
    assert len(re.findall(r"response 2: .*\(id \d+\); Clear 2\.5\n", text)) == 1
    assert main([*asked, "--loss", "mse"]) == 0
    assert capsys.readouterr().out.count("Training drops it: no label says") == 1
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{base: {tiny_base}}}\ndata: {{train: {data}}}\nloss: {{kind: davidson}}\n"
    )
    assert main(["data", "preview", "--recipe", str(recipe)]) == 0
    assert capsys.readouterr().out.count("Training drops it") == 2
    assert main([*asked, "--loss", "mes"]) == 2
    assert "--loss mes: unknown objective; did you mean mse?" in capsys.readouterr().err


@pytest.mark.heavy
def test_preview_of_a_recipe(
    tiny_base: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{base: {tiny_base}}}\ndata: {{train: {pairs_file}}}\n"
        "tokens: {max_length: 30, truncation: left}\n"
    )
    assert main(["data", "preview", "--recipe", str(recipe), "--rows", "60"]) == 0
    out = capsys.readouterr().out
    assert "tokens of the prompt, the oldest, are cut" in out
