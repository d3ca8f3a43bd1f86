"""What ``train``, ``plan`` and ``init`` take for a recipe, and what they say where it is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from plaudit.cli.main import main
from plaudit.cli.recipes import RecipeRequest, select_recipe
from plaudit.recipe.load import TRAINING, load_recipe

PAIR = '{"prompt": "a", "selected": "b", "rejected": "c"}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data, a recipe, a run, and a folder of data."""
    monkeypatch.chdir(tmp_path)
    for place in ("pairs.jsonl", "held.jsonl", "many/a.jsonl", "my-base/config.json"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(PAIR, encoding="utf-8")
    for place, base in (("mine.yaml", "of/file"), ("run/recipe.yaml", "of/run")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(f"model: {{base: {base}}}\ndata: {{train: pairs.jsonl}}\n")
    for name in ("data.json", "environment.json", "checkpoints/checkpoint-9/training_recipe.yaml"):
        (tmp_path / "lost" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "lost" / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("request_", "base", "train", "name"),
    [
        (RecipeRequest(argument="mine.yaml"), "of/file", ["pairs.jsonl"], "mine"),
        (RecipeRequest(argument="run"), "of/run", ["pairs.jsonl"], "run"),
        (RecipeRequest(argument="small-local"), "./base", ["pairs.jsonl"], "small-local"),
        (
            RecipeRequest(argument="small-local", model="m/m", data=["a.csv", "b.csv"]),
            "m/m",
            ["a.csv", "b.csv"],
            "small-local",
        ),
        (RecipeRequest(argument="held.jsonl", model="my/base"), "my/base", ["held.jsonl"], "base"),
        (RecipeRequest(argument="many", model="my/base"), "my/base", ["many"], "base"),
        (RecipeRequest(model="my/base", data=["x.jsonl"]), "my/base", ["x.jsonl"], "base"),
        (
            RecipeRequest(overrides=["model.base=my/base", "data.train=y.jsonl"]),
            "my/base",
            ["y.jsonl"],
            "base",
        ),
        (
            RecipeRequest(argument="run", model="a/b", overrides=["model.base=c/d"]),
            "c/d",
            ["pairs.jsonl"],
            "run",
        ),
    ],
    ids=str,
)
def test_an_argument_and_options_become_a_recipe(
    request_: RecipeRequest, base: str, train: list[str], name: str
) -> None:
    selected = select_recipe(request_, "train")
    assert selected.recipe.model.base == base
    assert [source.path for source in selected.recipe.data.train] == train
    assert selected.name == name
    assert selected.run == (Path("run") if request_.argument == "run" else None)


def test_a_file_comes_before_a_shipped_recipe_and_that_before_a_run(folder: Path) -> None:
    (folder / "run").rename(folder / "small-local")
    assert (
        select_recipe(RecipeRequest(argument="small-local"), "train").recipe.model.base == "./base"
    )
    assert (
        select_recipe(RecipeRequest(argument="./small-local"), "train").recipe.model.base
        == "of/run"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ": plaudit train --model Qwen/Qwen3-0.6B --data pairs.jsonl;"),
        (["held.jsonl"], ": plaudit train --model Qwen/Qwen3-0.6B --data held.jsonl;"),
        (["--model", "a/b"], ": plaudit train --model a/b --data pairs.jsonl;"),
        (["--set", "data.train=z.csv"], "--model Qwen/Qwen3-0.6B --data z.csv;"),
        (["held.jsonl", "--data", "pairs.jsonl"], "--data is also set"),
        (["--data", "my pairs.jsonl"], "--model Qwen/Qwen3-0.6B --data 'my pairs.jsonl';"),
        (["held.jsonl", "--set", "model=big"], "`model` is 'big', but must be a mapping"),
        (["held.jsonl", "--set", "model="], "a base model (--model) must be set"),
        (["small-locl"], "did you mean small-local?"),
        (
            ["nothing"],
            (
                "nothing does not exist; expected, in this order, a recipe file (.yaml), a shipped "
                "recipe (llama3-8b-recommended, llama3-8b-reference, quickstart, qwen3-0.6b, "
                "reference-schedule-small or small-local), a run folder or a data file; pass a "
                "base model with --model"
            ),
        ),
        (["my-base"], "my-base is a model folder; expected, in this order"),
        (
            ["lost", "--resume"],
            (
                "lost is a run folder, and its recipe.yaml is missing; copy "
                "lost/checkpoints/checkpoint-9/training_recipe.yaml to lost/recipe.yaml."
            ),
        ),
        (["gone.yaml"], "gone.yaml: the recipe file does not exist."),
        (["mine.yaml", "--resume"], "--out FOLDER is required"),
    ],
    ids=str,
)
def test_what_is_no_recipe_is_one_line_with_what_to_type(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert said in errors


def test_what_is_missing_is_said_at_once_and_together(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    words = [
        *("train", "--model", "models/tiny/x", "--data", "gone.jsonl", "--test", "pairs.jsonl"),
        *("--set", "train.report_to=[wandb, tensorbord]", "--set", "train.optim=galore_adamw"),
        *("--set", "tokens.chat_template=no.jinja", "--set", "train.deepspeed=zero.json"),
        *("--out", "new"),
    ]
    assert main(words) == 2
    first, *problems = capsys.readouterr().err.splitlines()
    assert first == "plaudit: 8 problems:"
    for problem, said in zip(
        problems,
        (
            "model.base: models/tiny/x does not exist; expected a model folder or a Hub id.",
            "data.train: gone.jsonl does not exist",
            "tokens.chat_template: no file at no.jinja",
            "train.deepspeed: zero.json does not exist",
            "train.report_to: unknown integration tensorbord; did you mean tensorboard?",
            "train.report_to: wandb needs wandb, which is not installed; run pip install",
            "train.optim: galore_adamw needs galore_torch, which is not installed",
            "train.deepspeed needs deepspeed, which is not installed",
        ),
        strict=True,
    ):
        assert said in problem
    assert not (folder / "new").exists()


def test_init_writes_a_recipe_and_never_overwrites(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["init", "--model", "a/b", "--data", "pairs.jsonl", "--test", "held.jsonl"]
    assert main([*words, "--out", "new.yaml"]) == 0
    assert "plaudit train new.yaml" in capsys.readouterr().out
    written = (folder / "new.yaml").read_bytes()
    request = RecipeRequest(model="a/b", data=["pairs.jsonl"], test=["held.jsonl"])
    assert load_recipe("new.yaml") == select_recipe(request, "train").recipe
    assert load_recipe("new.yaml").train == TRAINING
    assert main(["init", "--out", "new.yaml"]) == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "new.yaml").read_bytes() == written
    assert main(["init", "--out", "new.yaml", "--force"]) == 0
    assert load_recipe("new.yaml").model.base == "Qwen/Qwen3-0.6B"
    assert main(["init"]) == 0
    assert (folder / "recipe.yaml").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", "gone", "pairs.jsonl", "--out", "held.jsonl"], "held.jsonl already exists"),
        (["score", "gone", "pairs.jsonl", "--out", "new.txt"], "unknown file extension"),
        (["score", "gone", "pairs.jsonl", "--out", "mine.yaml/new.csv"], "could not be written"),
        (["best-of", "gone", "pairs.jsonl", "--out", "held.jsonl"], "held.jsonl already exists"),
        (["score", "gone", "nothing.jsonl"], "nothing.jsonl does not exist"),
        (["eval", "gone", "pairs.jsonl", "--out", "run"], "run already exists"),
        (["eval", "gone", "pairs.jsonl", "--out", "mine.yaml/new"], "could not be written"),
        (["eval", "gone", "nothing.jsonl"], "nothing.jsonl does not exist"),
        (["eval", "gone", "pairs.jsonl", "--train-data", "no.csv"], "no.csv does not exist"),
    ],
    ids=str,
)
def test_data_and_out_are_checked_before_the_model(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no model, which is what loading it would say."""
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_folder_without_resume_starts_a_new_run_and_says_so(
    finished: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from plaudit.training import needs

    monkeypatch.setattr(needs, "check_needs", lambda recipe: None)
    if finished:
        (folder / "run" / "metrics.json").write_text("{}")
    assert main(["train", "run"]) == 2  # there is no such base
    errors = " ".join(capsys.readouterr().err.split())
    assert ("run is a finished run" in errors) == finished
    assert ("has not finished" in errors) != finished
    assert "a new run of its recipe starts in runs/run-" in errors
    assert ("To resume the old one: plaudit train run --resume" in errors) != finished
