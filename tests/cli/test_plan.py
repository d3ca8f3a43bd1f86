"""``plaudit plan`` end to end, on the shipped reference recipe and on a file of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plaudit.cli.main import main
from plaudit.recipe.load import dump_recipe, parse_recipe
from plaudit.training.corpus import encode_corpus, read_comparisons
from plaudit.training.prepare import make_encoder, prepare_tokenizer
from tests.conftest import write_jsonl

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
    assert "4 characters per token" in record["tokens"]["how"]
    assert 30 <= record["tokens"]["per_pair"] <= 40


@pytest.mark.parametrize("split_by", ["prompt", "row"])
@pytest.mark.parametrize("weight", [1, 2.5])
def test_the_parts_are_those_of_training(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    split_by: str,
    weight: float,
) -> None:
    """Prompts of several rows, copies of a weighted source, and rows over length in any part."""
    rows = [
        {
            "prompt": f"{'p ' * (300 if n % 17 == 0 else 5)}{n // 7}",
            "chosen": f"c {n}",
            "rejected": "r",
        }
        for n in range(150)
    ]
    held_out = write_jsonl(tmp_path / "test.jsonl", [*rows[:20], rows[0]])
    data = {
        "train": [{"path": str(write_jsonl(tmp_path / "pairs.jsonl", rows)), "weight": weight}],
        "eval_fraction": 0.13,
        "split_by": split_by,
        **({"test_fraction": 0.2} if weight == 1 else {"test": str(held_out)}),
    }
    recipe = parse_recipe(
        {"model": {"base": str(tiny_base)}, "data": data, "tokens": {"max_length": 64}}, "test"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert main(["plan", str(path), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["split"]
    tokenizer = prepare_tokenizer(recipe.model, recipe.tokens, recipe.model.base)
    encoder = make_encoder(recipe.tokens, tokenizer, None)
    corpus = encode_corpus(encoder, read_comparisons(recipe.data), ignored=frozenset({"margin"}))
    trained = {role: sum(len(part.trees) for part in sets) for role, sets in corpus.parts().items()}
    found = {name: planned[name] for name in ("train", "evaluation", "test")}
    assert found == dict(zip(("train", "evaluation", "test"), trained.values(), strict=True))
    assert planned["over_length"] > 0


def test_an_unknown_gpu_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", REFERENCE, *STATED, "--gpu", "L400S"]) == 2
    assert "did you mean L40S" in capsys.readouterr().err
