"""``plaudit train --from-llamafactory`` on the YAML and data of a real LLaMA-Factory run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from plaudit.cli.main import main
from plaudit.data.load import load_comparisons
from plaudit.data.split import split
from plaudit.recipe.schema import Source

FIXTURES = Path(__file__).parents[1] / "fixtures" / "llama_factory"
QUICK = (
    "train.gradient_checkpointing=false",
    "evaluate.perturbation_tests=0",
    "evaluate.baselines=[]",
    "report.html=false",
    "report.plots=false",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's files, with the base where its YAML says it is; the current folder, as there."""
    shutil.copytree(FIXTURES / "run", tmp_path / "run")
    (tmp_path / "base").symlink_to(FIXTURES / "base")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


def facts(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@pytest.mark.heavy
def test_a_real_run_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Split sizes, held-out rows and steps are those of LLaMA-Factory's run; the damage is said."""
    sets = [word for override in QUICK for word in ("--set", override)]
    assert main(["train", "--from-llamafactory", "reward.yaml", *sets]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "truncated to 512 tokens" in said
    assert "lora_rank" in said
    assert "10% dropout" in said
    metrics = facts(folder / "out" / "metrics.json")
    state = facts(FIXTURES / "adapter" / "trainer_state.json")
    assert metrics["train"]["steps"] == state["global_step"] == 30
    sizes = {role: part["used"] for role, part in metrics["data"]["splits"].items()}
    assert sizes == {"train": 60, "eval": 30}
    theirs = [entry["step"] for entry in state["log_history"] if "eval_loss" in entry]
    assert {entry["step"] for entry in metrics["eval"]["history"]} >= set(theirs)
    tokens = metrics["data"]["tokens"]
    assert tokens["longest"] == 512
    assert tokens["truncated_prompts"] > 0
    assert tokens["truncated_responses"] >= tokens["comparisons_with_truncated_responses"] > 0
    assert "cut in proportion" in (folder / "out" / "README.md").read_text("utf-8")
    rendering = facts(folder / "out" / "plaudit.json")["rendering"]
    assert (rendering["kind"], rendering["template"]) == ("llamafactory", "llama3")


def test_the_rows_held_out_are_llama_factorys(folder: Path) -> None:
    """Its own scores are of 26 of the 30 rows that it held out."""
    loaded = load_comparisons((Source(path="dataset_info.json", subset="dpo_en_demo"),), seed=1)
    _, held_out = split(loaded.comparisons, 0.3333, by="row", seed=1)
    ours = {str(one.responses[0][0].content) for one in held_out}  # type: ignore[union-attr]
    scored = [json.loads(line) for line in (FIXTURES / "scores.jsonl").read_text().splitlines()]
    theirs = {row["chosen"][0]["content"] for row in scored}
    assert len(held_out) == 30
    assert len(theirs) == 26
    assert theirs <= ours


def test_the_plan_of_a_real_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--from-llamafactory", "reward.yaml", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"]["total"] == 30


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["reward.yaml", "--from-llamafactory", "reward.yaml"],
            "pass either a recipe or --from-llamafactory",
        ),
        (["--from-llamafactory", "gone.yaml"], "the recipe file does not exist"),
        (["--from-llamafactory", "sft.yaml"], "sft.yaml: stage is 'sft'"),
        (["--from-llamafactory", "new.yaml"], "unknown template gemma9"),
    ],
)
def test_what_cannot_run_is_one_sentence(
    folder: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load((folder / "reward.yaml").read_text("utf-8"))
    (folder / "sft.yaml").write_text(yaml.safe_dump(settings | {"stage": "sft"}))
    (folder / "new.yaml").write_text(yaml.safe_dump(settings | {"template": "gemma9"}))
    assert main(["train", *arguments]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert expected in said
    assert not (folder / "out").exists()
