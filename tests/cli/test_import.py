"""``plaudit import`` and commands on other tools' folders, through real processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import plaudit as plaudit_command
from tests.conftest import write_jsonl
from tests.foreign import BASE, LLAMA_FACTORY, complete, rows


def without_scores(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "prompt", "chosen", "rejected")}


def test_an_adapter_is_imported_and_scores_the_same(tmp_path: Path) -> None:
    out = tmp_path / "imported"
    done = plaudit_command(
        *("import", LLAMA_FACTORY / "adapter", "--out", out, "--base", BASE, "--json"), fresh=True
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["origin"]["format"] == "LLaMA-Factory"
    said = " ".join(done.stderr.split())
    for words in (
        "template llama3",
        "has a bias",
        "inferred from PEFT 0.18.1",
        f"written to {out}",
    ):
        assert words in said
    card = (out / "README.md").read_text()
    assert "do not record the training data" in card
    assert card.startswith("---\nlibrary_name: peft")
    recorded = rows(LLAMA_FACTORY / "scores.jsonl")[:4]
    data = write_jsonl(tmp_path / "rows.jsonl", [without_scores(row) for row in recorded])
    scored = plaudit_command("score", out, data, "--out", tmp_path / "scored.jsonl")
    assert scored.returncode == 0, scored.stderr
    for row in rows(tmp_path / "scored.jsonl"):
        assert row["rewards"] == pytest.approx(
            next(
                r["rewards"] for r in rows(LLAMA_FACTORY / "scores.jsonl") if r["id"] == row["id"]
            ),
            abs=1e-5,
        )


def test_commands_take_another_tools_folder_as_it_is(tmp_path: Path) -> None:
    data = write_jsonl(
        tmp_path / "rows.jsonl",
        [without_scores(row) for row in rows(LLAMA_FACTORY / "scores.jsonl")[:4]],
    )
    done = plaudit_command(
        "score", LLAMA_FACTORY / "adapter", data, "--out", tmp_path / "o.jsonl", "--base", BASE
    )
    assert done.returncode == 0, done.stderr
    expected = [row["rewards"] for row in rows(LLAMA_FACTORY / "scores.jsonl")[:4]]
    found = [row["rewards"] for row in rows(tmp_path / "o.jsonl")]
    assert [x for pair in found for x in pair] == pytest.approx(
        [x for pair in expected for x in pair], abs=1e-5
    )


def test_a_refused_import_says_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    folder = complete("lost_head", tmp_path / "adapter")
    out = tmp_path / "out"
    done = plaudit_command("import", folder, "--out", out, "--base", BASE)
    assert done.returncode == 2
    assert "were not saved (OpenRLHF saves LoRA this way)" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    shutil.copytree(folder, out)
    done = plaudit_command("import", LLAMA_FACTORY / "adapter", "--out", out, "--base", BASE)
    assert done.returncode == 2
    assert "already exists" in done.stderr
