"""``plaudit plan`` end to end, on the shipped reference recipe and on a file of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plaudit.cli.main import main

pytestmark = pytest.mark.heavy

REFERENCE = "llama3-8b-reference"
STATED = ["--pairs", "24004", "--prompt-tokens", "300", "--response-tokens", "200"]


def test_the_reference_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", REFERENCE, *STATED, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["split"]["train"] == 21_603
    assert record["split"]["evaluation"] == 2_401
    assert record["steps"]["per_epoch"] == 5_401
    assert record["steps"]["total"] == 16_203
    assert record["model"]["trainable"] == 20_975_616
    assert record["model"]["total"] == 7_525_900_288
    assert any("16,200 steps" in note for note in record["notes"])


def test_tables_fit_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", REFERENCE, *STATED, "--gpu", "A100"]) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 80
    for words in ("16,203", "20,975,616", "7,525,900,288", "1 x A100-80GB", "16,200"):
        assert words in shown


def test_lengths_come_from_the_recipes_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"{i} " + "p" * 78, "chosen": "c" * 40, "rejected": "r" * 20}
        for i in range(10, 50)
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{base: Qwen/Qwen3-0.6B}}\ndata: {{train: {pairs}}}\n", encoding="utf-8"
    )
    assert main(["plan", str(recipe), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["split"]["pairs"] == 40
    assert record["split"]["evaluation"] == 4
    assert "4 characters a token" in record["tokens"]["how"]
    assert 30 <= record["tokens"]["per_pair"] <= 40


def test_an_unknown_gpu_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", REFERENCE, *STATED, "--gpu", "L400S"]) == 2
    assert "did you mean L40S" in capsys.readouterr().err
