"""``plaudit export`` and ``plaudit merge`` as processes: output, exit codes, one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.conftest import pair_rows, plaudit, write_jsonl

pytestmark = pytest.mark.heavy


def test_an_export_says_what_it_did(finished_run: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", pair_rows(5, seed=3))
    out = tmp_path / "out"
    done = plaudit(
        *("export", finished_run, "--to", "merged", "--out", out, "--dtype", "bfloat16"),
        *("--rows", rows, "--normalize", "--json"),
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["parity"]["responses"] == 10
    assert told["parity"]["largest_difference"] <= 1e-5
    assert "over 10 responses of 5 comparisons" in done.stderr
    assert "rounding: rewards changed by up to" in done.stderr
    assert "for vLLM: --pooler-config" in done.stderr
    assert json.loads((out / "export.json").read_text())["parity"] == told["parity"]
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    assert {"reward-model", "plaudit", "merged"} <= set(card.data.tags)
    assert card.data.eval_results is not None
    for line in ("with the head in float32", "vllm serve", "logit_mean", "changed the order"):
        assert line in card.text
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert len(config["id2label"]) == 1
    assert config["pad_token_id"] == 2


def test_a_failed_check_is_exit_1_and_leaves_nothing(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = plaudit("export", finished_run, "--to", "merged", "--out", out, "--tolerance", "1e-30")
    assert done.returncode == 1, done.stderr
    assert "The merged export gives different scores" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_sentence(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bad_rows = tmp_path / "bad.jsonl"
    bad_rows.write_text('{"nothing": "known"}\n')
    cases = [
        (("export", tmp_path / "none", "--to", "merged", "--out", out), "none does not exist"),
        (("export", finished_run, "--to", "gguf", "--out", out), "gguf"),
        (
            ("export", finished_run, "--to", "merged", "--out", out, "--rows", bad_rows),
            "bad.jsonl",
        ),
        (("merge", finished_run, "--out", out), "Cannot average a single model"),
        (
            ("merge", finished_run, finished_run, "--weights", "a,b", "--out", out),
            "expected numbers with commas",
        ),
    ]
    for arguments, sentence in cases:
        done = plaudit(*arguments)
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_merge_says_what_it_did(finished_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    out = tmp_path / "out"
    done = plaudit(
        *("merge", finished_run, other, "--weights", "0.25,0.75", "--out", out, "--json"),
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["weights"] == [0.25, 0.75]
    assert told["method"] == "adapter"
    assert "Temperature and reward statistics are not carried over" in done.stderr
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "peft"
    scored = plaudit(
        "score",
        out,
        write_jsonl(tmp_path / "r.jsonl", pair_rows(2)),
        "--out",
        tmp_path / "scored.jsonl",
    )
    assert scored.returncode == 0, scored.stderr
