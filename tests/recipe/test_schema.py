"""Recipes: what is accepted, what is refused and in which words, and that nothing is lost."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.errors import RecipeError
from plaudit.recipe.load import (
    description,
    dump_recipe,
    load_recipe,
    parse_recipe,
    shipped_recipes,
    starter,
    starter_text,
)
from plaudit.recipe.schema import HF_KEYS, LORA_DEFAULTS, Section
from plaudit.recipe.yaml import read_yaml, write_yaml

SHIPPED = sorted(shipped_recipes().values())
SMALLEST = "model: {base: some/base}\ndata: {train: pairs.jsonl}\n"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALLEST, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_parse_and_survive_a_round_trip(path: Path) -> None:
    recipe = load_recipe(path)
    assert parse_recipe(read_yaml(dump_recipe(recipe), "dumped"), "dumped") == recipe
    assert recipe.training_arguments["load_best_model_at_end"] is True


def test_every_shipped_recipe_is_there() -> None:
    assert {path.stem for path in SHIPPED} >= {
        "llama3-8b-reference",
        "llama3-8b-recommended",
        "qwen3-0.6b",
        "small-local",
    }


def test_the_reference_recipe_is_the_published_run_value_for_value() -> None:
    recipe = load_recipe("llama3-8b-reference")
    published = {
        "learning_rate": 5e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "per_device_eval_batch_size": 1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "seed": 42,
        "eval_steps": 2000,
    }
    assert published.items() <= recipe.train.items()
    assert recipe.model.base == "meta-llama/Meta-Llama-3-8B"
    assert recipe.lora == LORA_DEFAULTS
    assert (recipe.data.split_by, recipe.data.eval_fraction) == ("row", 0.1)


def test_numbers_are_read_as_yaml_1_2_reads_them(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        ["train.learning_rate=5e-5", "train.eval_strategy=no", "tokens.date=2024-07-26"],
    )
    assert recipe.train == {"learning_rate": 5e-5, "eval_strategy": "no"}
    assert recipe.tokens.date == "2024-07-26"


def test_numbers_written_as_text_are_numbers(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ['train.learning_rate="5e-5"', "train.max_steps=1e3"])
    assert recipe.train == {"learning_rate": 5e-5, "max_steps": 1000}
    assert isinstance(recipe.train["max_steps"], int)


def test_lora_keys_are_laid_over_the_defaults_and_null_means_none(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["lora.r=64"]).lora == {**LORA_DEFAULTS, "r": 64}
    assert load_recipe(recipe_file, ["lora=null"]).lora is None
    assert load_recipe(recipe_file, ["lora=null", "lora.r=4"]).lora == {**LORA_DEFAULTS, "r": 4}


def test_a_section_with_every_key_commented_out_is_its_defaults(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["tokens=", "train="]) == load_recipe(recipe_file)


def test_sources_are_a_path_a_mapping_or_a_list(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["data.train=[a.jsonl, {path: b.csv, weight: 2}]"])
    assert [(s.path, s.weight) for s in recipe.data.train] == [("a.jsonl", 1.0), ("b.csv", 2.0)]


def test_train_keys_are_written_in_one_order(recipe_file: Path) -> None:
    one = load_recipe(recipe_file, ["train={seed: 1, learning_rate: 1e-3}"])
    two = load_recipe(recipe_file, ["train={learning_rate: 1e-3, seed: 1}"])
    assert dump_recipe(one) == dump_recipe(two)


MISTAKES = {
    "train.learning_rat=1": "`train.learning_rat` is not a key of the train section; did you mean "
    "`learning_rate`?",
    "trian.seed=1": "`trian` is not a key of a recipe; did you mean `train`?",
    "tokens.zzz=1": "expected one of max_length, truncation, chat_template",
    "data.train=[{pth: a}]": "`data.train.0.pth` is not a key of the data.train.0 section; did "
    "you mean `path`?",
    "train.warmup_ratio=0.1": "set train.warmup_steps to a value below 1",
    "lora.rank=8": "did you mean `r`?",
    "model.dtype=bf16": "`model.dtype` is 'bf16', but must be auto, float32, bfloat16 or float16",
    "tokens.max_length=1": "`tokens.max_length` is 1, but must be a whole number of at least 2",
    "tokens.max_tokens_per_microbatch=much": "a whole number of at least 2 or auto",
    "tokens.date=26.07.2024": "must be text like 2024-07-26",
    "data.eval_fraction=2": "must be a number above 0 and below 1 or null",
    "data.train=3": "`data.train.0` is 3, but must be a path, a Hub id or a mapping of path",
    "data.train=[{path: a, weight: -1}]": "`data.train.0.weight` is -1, but must be a number above",
    "evaluate.baselines=[longest]": "must be longer, shorter or bag_of_words",
    "tokens.template={tool: openrlhf, name: a, releas: b}": "`tokens.template.releas` is not a key "
    "of the tokens.template section; did you mean `release`?",
    "tokens.template=llama3": "must be a mapping of tool, name, release",
    "tokens.llamafactory.template=llama3": "write it as tokens.template: {tool: llamafactory",
    "tokens.template={tool: trl, name: a}": "but must be llamafactory or openrlhf",
    "tokens={template: {tool: openrlhf, name: a}, chat_template: b}": "both set the chat template",
    "data.train=[{path: a, weight: 2, num_samples: 5}]": "has weight and num_samples, "
    "which all set the number of rows to use",
    "data.train=[{path: a, graded: margin}]": "`data.train.0.graded` was renamed to "
    "`preference_strength`.",
    "data.exhaust=all": "`data.exhaust` was renamed to `stopping_strategy`.",
    "evaluate.behaviour=0": "`evaluate.behaviour` was renamed to `perturbation_tests`.",
    "data.train=[{path: a, probability: 1}, b]": "sources with and without a probability",
    "data.eval=[{path: a, probability: 1}]": "are not mixed; use num_samples or weight",
    "data.train=[{path: a, preference_strength: loud}]": (
        "must be ignore, margin, weight or soft_label"
    ),
    "data.train=[{path: a, num_samples: 0}]": "must be a whole number of at least 1",
    "model=big": "`model` is 'big', but must be a mapping of base, revision",
    "train=[1]": "`train` is [1], but must be a mapping",
    "lora=all": "`lora` is 'all', but must be a mapping",
    "model={}": "`model.base` is missing; set it to",
    "data.train=null": "`data.train` is missing; set it to a file",
    "train.num_train_epochs=0": "`train.num_train_epochs` is 0, but must be a number above 0",
    "train.learning_rate=-1": "must be a number of at least 0",
    "train.learning_rate=.inf": "`train.learning_rate` is inf, but must be",
    "train.learning_rate=fast": "`train.learning_rate` is 'fast', but must be a number",
    "train.per_device_train_batch_size=0": "must be a whole number of at least 1",
    "train.per_device_train_batch_size=1.5": "must be a whole number",
    "train.gradient_accumulation_steps=0": "must be a whole number of at least 1",
    "train.max_steps=0": "must be -1 (no limit) or at least 1",
    "train.warmup_steps=-1": "must be a number of at least 0",
    "train.eval_steps=2.5": "a whole number of steps, or a fraction below 1",
    "train.bf16=yes": "must be true or false",
    "train.bf16=1": "must be true or false",
    "train.seed=true": "`train.seed` is true, but must be a whole number of at least 0",
    "train.save_total_limit=0": "must be a whole number of at least 1 or null",
    "train.optim=adam": "`train.optim` cannot be 'adam'; did you mean 'adamw_torch'?",
    "train.push_to_hub=true": "upload the finished run folder with plaudit push",
    "train.lr_scheduler_type=cosin": "did you mean 'cosine'?",
    "lora.r=0": "`lora.r` is 0, but must be a whole number of at least 1",
    "lora.lora_dropout=1": "must be a number of at least 0 and below 1",
    "lora.eva_config={}": "takes a Python object",
    "train.output_dir=x": "set the run folder with --out",
    "train.hub_token=x": "must not hold secrets",
    "lora.task_type=SEQ_CLS": "managed by plaudit",
    "data.seed.x=1": "`data.seed` is {'x': 1}, but must be a whole number",
    "model.base.x=1": "`base` is 'some/base' in this recipe and has no keys",
    "nonsense": "--set nonsense: expected section.key=value",
    "a..b=1": "expected section.key=value",
    "model.base=[": "invalid YAML",
}


@pytest.mark.parametrize(("override", "said"), list(MISTAKES.items()), ids=list(MISTAKES))
def test_a_mistake_is_one_sentence_that_names_the_key(
    recipe_file: Path, override: str, said: str
) -> None:
    assert said in refusal(recipe_file, override)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.eval_steps=100", "train.save_steps=150"], "set save_steps to 100"),
        (["train.eval_steps=0.1", "train.save_steps=500"], "set save_steps to 0.1"),
        (["train.eval_strategy=steps", "train.save_strategy=epoch"], "needs the same strategy"),
        (["train.save_strategy=no", "train.load_best_model_at_end=true"], "evaluation and saving"),
        (["data.eval_fraction=null", "train.eval_strategy=steps"], "there is no evaluation data"),
        (["data.eval_fraction=null", "evaluate.early_stopping_patience=2"], "set data.eval"),
        (["lora=null", "model.quantize=4bit"], "quantized weights cannot be trained"),
        (["data.eval_fraction=0.5", "data.test_fraction=0.5"], "leaves nothing to train on"),
    ],
    ids=str,
)
def test_keys_that_contradict_each_other(
    recipe_file: Path, overrides: list[str], said: str
) -> None:
    assert said in refusal(recipe_file, *overrides)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected a recipe, a mapping of sections"),
        (b"- a\n- b\n", "this file holds ['a', 'b']"),
        (b"model: {base: x}\ndata: {train: [a\n", "recipe.yaml:3: invalid YAML"),
        (b"model: {base: x}\nmodel: {base: y}\n", "recipe.yaml:2: invalid YAML: duplicate key"),
        (b"\xff\xfe\x00\x01", "not a text file"),
        (b"model: \x00\n", "invalid YAML"),
    ],
    ids=["empty", "list", "broken", "twice", "binary", "control"],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert said in refusal(path)


def test_an_option_of_another_objective_is_named_with_its_line(tmp_path: Path) -> None:
    """With the objectives that read it, if it is not at its default."""
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALLEST + "loss:\n  kind: hinge\n  huber_delta: 0.5\n", encoding="utf-8")
    assert refusal(path) == (
        f"{path}:5: `loss.huber_delta` is 0.5, but `loss.kind` is 'hinge', which does not read it;"
        " remove it, or set kind to huber."
    )
    assert load_recipe(path, ["loss.huber_delta=1"]).loss.kind == "hinge"
    path.write_text(
        SMALLEST + "loss:\n  kind: rao_kupper\n  tie_parameter: 0.5\n", encoding="utf-8"
    )
    assert refusal(path) == (
        f"{path}:5: `loss.tie_parameter` is 0.5, but rao_kupper's theta must be above 1."
    )
    assert load_recipe(path, ["loss.kind=davidson"]).loss.tie_parameter == 0.5
    assert "must be a number above 0 or learned" in refusal(path, "loss.tie_parameter=never")
    assert "did you mean 'plackett_luce'?" in refusal(path, "loss.kind=plackettluce")


def problems_of(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    "inside",
    [
        "a0: &a0 [x]\n"
        + "".join(f"    a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 61)),
        "a: &a [x, *a]\n",
    ],
)
@pytest.mark.parametrize("key", ["tokens:\n  max_length", "extra:\n  key"])
def test_aliases_without_end_are_an_error(key: str, inside: str, tmp_path: Path) -> None:
    """The first document stands for 2^60 values, the second has no end."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{base: x}}\n{key}:\n    {inside}", encoding="utf-8")
    (problem,) = problems_of(path)
    assert re.match(rf"{re.escape(str(path))}:\d+: the YAML aliases expand to more than", problem)


def test_what_an_alias_stands_for_has_its_lines(recipe_file: Path) -> None:
    recipe_file.write_text(
        "model: {base: x}\ndata:\n  train: &rows\n  - {pth: a.jsonl}\n  eval: *rows\n",
        encoding="utf-8",
    )
    problems = problems_of(recipe_file)
    assert [problem.split(": ")[0] for problem in problems] == [f"{recipe_file}:4"] * 2


def test_all_problems_are_shown_each_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {base: x, dtype: bf16}\n"
        "lora:\n  target_modules: all\n  r: 0\n"
        "data:\n  train:\n  - a.jsonl\n  - {pth: b.jsonl}\n"
        "trian: {seed: 1}\n"
        "train:\n  learning_rat: 1\n  seed: x\n  output_dir: y\n",
        encoding="utf-8",
    )
    problems = problems_of(path, "tokens.max_length=0", "nonsense.key=1")
    assert [problem.split(": ")[0].removeprefix(str(path)) for problem in problems] == [
        *(":1", ":3", ":4", ":8", ":9", ":11", ":12", ":13"),
        "--set tokens.max_length=0",
        "--set nonsense.key=1",
    ]
    for problem, said in zip(
        problems,
        (
            "did you mean 'bfloat16'?",
            "did you mean 'all-linear'?",
            "`lora.r` is 0",
            "did you mean `path`?",
            "did you mean `train`?",
            "did you mean `learning_rate`?",
            "`train.seed` is 'x'",
            "--out",
            "at least 2",
            "`nonsense` is not a key",
        ),
        strict=True,
    ):
        assert said in problem


@pytest.mark.parametrize(
    ("override", "count"),
    [("tokens.max_length=0", 3), ("train.seed=x", 2), ("eval_steps=5", 2), ("data.seed=x", 1)],
)
def test_contradictions_are_shown_beside_problems_elsewhere(
    recipe_file: Path, override: str, count: int
) -> None:
    """A section with a problem of its own may be another when it is mended."""
    overrides = ["data.eval_fraction=0.5", "data.test_fraction=0.5", "train.save_strategy=no"]
    problems = problems_of(recipe_file, *overrides, "train.load_best_model_at_end=true", override)
    assert len(problems) == count


def test_all_contradictions_and_all_repeated_keys_are_shown(recipe_file: Path) -> None:
    overrides = ["data.eval_fraction=0.5", "data.test_fraction=0.5", "train.save_strategy=no"]
    problems = problems_of(recipe_file, *overrides, "train.load_best_model_at_end=true")
    assert len(problems) == 2
    recipe_file.write_text("model: {base: x, base: y}\ndata: {train: a}\ndata: {train: b}\n")
    assert [problem.partition(": ")[0][-1] for problem in problems_of(recipe_file)] == ["1", "3"]
    assert len(problems_of(recipe_file.with_name("none.yaml"), "a", "b")) == 1


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model_name_or_path", "`model.base`"),
        ("torch_dtype", "`model.dtype`"),
        ("train_file", "`data.train`"),
        ("dataset", "`data.train`"),
        ("val_size", "`data.eval_fraction`"),
        ("cutoff_len", "`tokens.max_length`"),
        ("max_length", "`tokens.max_length`"),
        ("learning_rate", "`train.learning_rate`"),
        ("learning_rat", "`train.learning_rate`"),
        ("bf16", "`train.bf16`"),
        ("lora_r", "`lora.r`"),
        ("lora_rank", "`lora.r`"),
        ("r", "`lora.r`"),
        ("lora_alpha", "`lora.lora_alpha`"),
        ("lora_dropout", "`lora.lora_dropout`"),
        ("target_modules", "`lora.target_modules`"),
        ("seed", "`data.seed` or `train.seed`"),
        ("train.max_seq_length", "`tokens.max_length`"),
        ("train.lora_alpha", "`lora.lora_alpha`"),
        ("data.train_file", "`train`"),
        ("lora.rank", "`r`"),
        ("center_rewards_coefficient", "`loss.centering`"),
        ("train.center_rewards_coefficient", "`loss.centering`"),
        ("margin_loss", "`loss.margin`"),
        ("label_smoothing", "`loss.label_smoothing`"),
        ("label_smoothing_factor", "set loss.label_smoothing"),
        ("beta", "set loss.temperature, which divides"),
        ("output_dir", "--out"),
        ("warmup_ratio", "train.warmup_steps"),
    ],
)
def test_keys_of_other_trainers_lead_to_the_key_here(
    recipe_file: Path, key: str, meant: str
) -> None:
    said = refusal(recipe_file, f"{key}=1")
    assert f"did you mean {meant}?" in said or (not meant.startswith("`") and meant in said)


def test_a_required_key_under_another_name_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: x\ndata: {dataset: a.jsonl}\n", encoding="utf-8")
    assert [problem.rpartition(" ")[2] for problem in problems_of(path)] == [
        "`model.base`?",
        "`train`?",
    ]


def test_home_folders_in_paths(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    recipe = load_recipe(
        recipe_file,
        [
            "model.base=~/base",
            "data.train=[~/a.jsonl, {path: ~/b.jsonl}]",
            "data.eval=~/c.jsonl",
            "tokens.chat_template=~/t.jinja",
            "train.deepspeed=~/zero.json",
        ],
    )
    assert recipe.model.base == "/home/me/base"
    assert [source.path for source in recipe.data.train] == [
        "/home/me/a.jsonl",
        "/home/me/b.jsonl",
    ]
    assert recipe.data.eval[0].path == "/home/me/c.jsonl"
    assert recipe.tokens.chat_template == Path("/home/me/t.jinja")
    assert recipe.train["deepspeed"] == "/home/me/zero.json"


def test_a_recipe_is_named_by_file_name_or_run_folder(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("small-local") == load_recipe(shipped_recipes()["small-local"])
    assert load_recipe("quickstart").model.base == "embedded"
    assert load_recipe(recipe_file.parent) == load_recipe(recipe_file)
    recipe_file.rename(tmp_path / "small-local")
    assert load_recipe("small-local").model.base == "some/base"


def test_every_key_is_described() -> None:
    sections: list[type[Section]] = [Section, *Section.__subclasses__()]
    assert [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description
    ] == []
    for name in ("train", "lora"):
        assert all(description(name, key) for key in HF_KEYS[name] if key != "auto_mapping")


def test_the_starter_recipe_is_explained_and_is_the_one_that_runs_without_a_recipe() -> None:
    draft = starter().with_value(("model", "base"), "some/base", "here")
    draft = draft.with_value(("data", "train"), ["a.jsonl", "b.jsonl"], "here")
    draft = draft.with_value(("data", "test"), "c.jsonl", "here")
    text = starter_text(draft)
    assert parse_recipe(read_yaml(text, "here"), "here") == draft.check()
    lines = text.splitlines()
    keys = [n for n, line in enumerate(lines) if re.match(r"  (# )?\w+: \S|  \w+:$", line)]
    assert len(keys) > 25
    assert all(lines[number - 1].startswith("  # ") for number in keys)
    assert max(map(len, lines)) <= 100
    # Every example in a comment is a key, too.
    read = read_yaml(re.sub(r"^  # (\w+: \S+)$", r"  \1", text, flags=re.MULTILINE), "here")
    assert parse_recipe(read, "here").evaluate.early_stopping_patience == 3


def test_the_recipes_are_package_data() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["plaudit"]
    packed = {path for pattern in patterns for path in (root / "plaudit").glob(pattern)}
    assert set(shipped_recipes().values()) <= packed


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "the recipe file does not exist" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)


def test_defaults_keep_the_best_checkpoint_on_one_schedule(recipe_file: Path) -> None:
    arguments = load_recipe(recipe_file).training_arguments
    assert arguments["eval_strategy"] == arguments["save_strategy"] == "steps"
    assert arguments["eval_steps"] == arguments["save_steps"] == 0.1
    assert arguments["metric_for_best_model"] == "eval_loss"
    assert arguments["greater_is_better"] is False
    assert arguments["report_to"] == "none"


def test_saving_follows_evaluation_and_the_recipe_wins(recipe_file: Path) -> None:
    arguments = load_recipe(recipe_file, ["train.eval_steps=50"]).training_arguments
    assert arguments["save_steps"] == 50
    arguments = load_recipe(recipe_file, ["train.save_strategy=epoch"]).training_arguments
    assert arguments["eval_strategy"] == "epoch"
    arguments = load_recipe(
        recipe_file, ["train.metric_for_best_model=eval_accuracy"]
    ).training_arguments
    assert arguments["greater_is_better"] is True


def test_without_evaluation_data_nothing_is_chosen(recipe_file: Path) -> None:
    arguments = load_recipe(recipe_file, ["data.eval_fraction=null"]).training_arguments
    assert arguments["eval_strategy"] == "no"
    assert arguments["load_best_model_at_end"] is False
    assert arguments["save_strategy"] == "steps"


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(blacklist_categories=["Cs", "Cc"])),
    st.sampled_from(["5e-5", "no", "010", "2024-07-26", "1:30", "~", "0x1f", "1_000", ".5", "="]),
)


@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1),
        st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5),
        max_size=4,
    )
)
def test_what_is_written_is_what_is_read(value: dict[str, Any]) -> None:
    assert read_yaml(write_yaml(value), "here") == value


def test_infinities_survive_yaml_and_are_refused_by_sections() -> None:
    assert math.isinf(read_yaml(write_yaml(math.inf), "here"))
    with pytest.raises(RecipeError, match=r"evaluate\.early_stopping_threshold"):
        parse_recipe(
            {
                "model": {"base": "x"},
                "data": {"train": "a"},
                "evaluate": {"early_stopping_threshold": math.inf},
            },
            "here",
        )
