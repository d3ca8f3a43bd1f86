"""``plaudit data audit`` as a command: files, exit codes, the page, mistakes in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.cli.main import main
from tests.conftest import pair_rows, write_jsonl


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty pairs of which one stands twice and one has an empty response."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    rows = pair_rows(20)
    rows.append(rows[3])
    rows[5] = {**rows[5], "rejected": [{"role": "assistant", "content": ""}]}
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


def usage_error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["data", "audit", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return " ".join(shown.err.split())


def test_held_out_data_may_have_columns_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n}", "rejected": "no"} for n in range(5)]
    named = [{("question" if k == "prompt" else k): v for k, v in row.items()} for row in rows]
    data = write_jsonl(tmp_path / "data.jsonl", named)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", rows)
    words = [str(data), "--eval", str(held_out), "--columns", "prompt=question", "--json"]
    assert main(["data", "audit", *words]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert [part["rows"] for part in parts] == [5, 5]


def test_the_table_fits_and_names_lines(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit", data.name]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(len(line) <= 80 for line in shown.err.splitlines())
    for words in ("Empty responses", "pairs.jsonl:6", "Exact duplicates", "pairs.jsonl:21"):
        assert words in shown.err
    assert "--eval" in shown.err, "the output says what was not checked"


def test_strict_is_exit_1_only_for_errors(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "audit", data.name, "--strict"]) == 1
    clean = write_jsonl(tmp_path / "clean.jsonl", [*pair_rows(20), pair_rows(20)[3]])
    assert main(["data", "audit", clean.name, "--strict"]) == 0
    assert "Exact duplicates" in capsys.readouterr().err


def test_every_number_is_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "audit", data.name, "--out", "audit", "--fix", "clean.jsonl", "--json"]
    assert main(arguments) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert facts == json.loads(Path("audit/audit.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in Path("audit").iterdir()) == ["audit.html", "audit.json"]
    assert facts["rows"] == 21
    cleaned = facts["cleaned"]
    assert cleaned["dropped"] == {"empty_responses": 1, "exact_duplicates": 1}
    assert len(Path("clean.jsonl").read_text().splitlines()) == cleaned["kept"] == 19
    assert main(["data", "audit", "clean.jsonl", "--strict"]) == 0


def test_what_data_says_is_text_on_the_page(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<b>&"
    folder.mkdir()
    path = write_jsonl(folder / "pairs.jsonl", json_rows(data))
    assert main(["data", "audit", str(path), "--out", "audit"]) == 0
    page = Path("audit/audit.html").read_text(encoding="utf-8")
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_labels_are_in_the_output_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows: list[dict[str, Any]] = [
        {"prompt": f"{n}?", "responses": [f"answer {n}"], "grades": [1 + n % 5]} for n in range(10)
    ]
    rows.append({"prompt": "Tie?", "responses": ["a", "b"], "grades": [1, 1]})
    rows.append({"prompt": "Soft?", "responses": ["a", "b"], "grades": [1, 0], "soft_label": 0.75})
    rows[0]["attributes"] = {"clear": 4}
    rows[-1]["attributes"] = {"up to date": [None, 3], "clear": [0.5, -1]}
    data = str(write_jsonl(tmp_path / "rated.jsonl", rows))
    assert main(["data", "audit", data]) == 0
    shown = capsys.readouterr().err
    assert "1 can be trained on with loss.kind bradley_terry." in shown
    assert "12 rows with ratings or grades, for mse, huber, bce, ordinal: 0 to 5, median 2" in shown
    assert "1 tie, for rao_kupper, davidson: 50.0% of the rows with a known order." in shown
    assert "1 row with a soft label: annotators agree in 75.0% on average." in shown
    assert (
        "Attributes: clear (3 responses, -1 to 4, mean 1.17), up to date (1 response, 3 to 3, "
        "mean 3)."
    ) in shown
    out = tmp_path / "audit"
    assert main(["data", "audit", data, "--loss", "ordinal", "--out", str(out)]) == 0
    assert "12 can be trained on with loss.kind ordinal." in capsys.readouterr().err
    page = (out / "audit.html").read_text(encoding="utf-8")
    assert "rows it can learn from" in page
    assert "Ratings or grades of responses." in page
    cells = "".join(f'<td class="n">{cell}</td>' for cell in (3, -1, 1.17, 4))
    assert f"<tr><td>clear</td>{cells}</tr>" in page
    assert json.loads((out / "audit.json").read_text())["labels"]["attributes"][1] == {
        "name": "up to date",
        "responses": 1,
        "least": 3.0,
        "most": 3.0,
        "mean": 3.0,
    }
    assert usage_error(capsys, data, "--loss", "ordinl").count("did you mean ordinal?") == 1


def json_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_markup_in_names_is_not_read_as_such(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "[red]x[].jsonl", json_rows(data))
    assert main(["data", "audit", "[red]x[].jsonl"]) == 0
    assert "[red]x[].jsonl:6" in "".join(capsys.readouterr().err.split())


def test_a_split_and_a_benchmark_are_compared_with(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pair_rows(20)
    write_jsonl(tmp_path / "held_out.jsonl", rows[:2])
    prompt = rows[4]["prompt"][0]["content"].upper()
    pair = {"prompt": prompt, "chosen": "a", "rejected": "b", "subset": "s"}
    write_jsonl(tmp_path / "suite.jsonl", [pair])
    arguments = ["--eval", "held_out.jsonl", "--suite", "pairs:suite.jsonl", "--json"]
    assert main(["data", "audit", data.name, *arguments]) == 0
    findings = {f["check"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    shared = findings["shared_with_eval"]["examples"]
    assert [example["where"] for example in shared] == ["pairs.jsonl:1", "pairs.jsonl:2"]
    assert shared[0]["other"] == "held_out.jsonl:1"
    assert findings["shared_with_suite"]["rows"] == 1


def test_mistakes_are_one_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "does not exist" in usage_error(capsys, "missing.jsonl")
    assert "does not exist" in usage_error(capsys, data.name, "--eval", "missing.jsonl")
    assert "already exists" in usage_error(capsys, data.name, "--out", "full")
    assert "already exists" in usage_error(capsys, data.name, "--fix", data.name)
    assert "unknown file extension" in usage_error(capsys, data.name, "--fix", "clean.txt")
    assert "a single DATA" in usage_error(capsys, data.name, data.name, "--fix", "clean.jsonl")
    assert "unknown suite" in usage_error(capsys, data.name, "--suite", "nonsense")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "chosen": "b"\n', encoding="utf-8")
    words = usage_error(capsys, "broken.jsonl", "--fix", "clean.jsonl", "--out", "audit")
    assert "broken.jsonl:1" in words
    assert not (tmp_path / "clean.jsonl").exists()
    assert not (tmp_path / "audit").exists()


@pytest.mark.heavy
def test_rows_that_the_template_rejects_are_counted(
    tiny_base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "audit", data.name, "--tokenizer", str(tiny_base), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["tokens_exact"]
    assert {f["check"]: f["rows"] for f in facts["findings"]}["template_error"] == 0
    assert "no usable tokenizer" in usage_error(capsys, data.name, "--tokenizer", "nowhere/near")
