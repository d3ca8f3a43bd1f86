"""Bad input: one sentence, exit code 2, no traceback, and nothing half-written."""

from __future__ import annotations

import gzip
import hashlib
import json
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from plaudit.cli.main import main
from tests.conftest import pair_rows, recipe_of, set_metadata, write_jsonl
from tests.warm import Popen, environment_of_a_user, python

pytestmark = pytest.mark.heavy

Refuse = Callable[..., str]


def snapshot(folder: Path) -> dict[str, str | None]:
    """Every path below a folder, with a digest of each file's bytes."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        )
        for path in sorted(folder.rglob("*"))
    }


def the_sentence(errors: str) -> str:
    """The one line that plaudit says about a mistake."""
    assert "Traceback" not in errors
    own = [line for line in errors.splitlines() if line.startswith("plaudit: ")]
    assert len(own) == 1, errors
    assert errors.splitlines()[-1] == own[0], errors
    return own[0]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """Run a command line that must be refused without a trace on the disk; its sentence."""

    def run(*arguments: object) -> str:
        before = snapshot(tmp_path)
        code = main([str(word) for word in arguments])
        captured = capsys.readouterr()
        assert code == 2, captured.err
        assert captured.out == ""
        assert snapshot(tmp_path) == before
        return the_sentence(captured.err)

    return run


def overlaid(recipe: dict[str, Any], **sections: Mapping[str, Any] | None) -> dict[str, Any]:
    """A recipe with keys laid over its sections."""
    return {
        **recipe,
        **{
            name: None if keys is None else {**recipe.get(name, {}), **keys}
            for name, keys in sections.items()
        },
    }


def saved(recipe: Mapping[str, Any], folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(dict(recipe)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def own_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A copy of the base that a test may damage."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("damaged") / "base"
        shutil.copytree(tiny_base, folder)
        return folder

    return copy


@pytest.fixture
def own_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may damage."""
    folder = tmp_path / "model"
    shutil.copytree(finished_run, folder)
    return folder


# ---- data

TEXT_ROW = {"prompt": "one ", "chosen": "two", "rejected": "three"}


def texts(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


DATA: dict[str, tuple[str, bytes | None, Sequence[str]]] = {
    "a missing file": ("pairs.jsonl", None, ["pairs.jsonl", "does not exist"]),
    "broken JSON": (
        "pairs.jsonl",
        texts([TEXT_ROW, TEXT_ROW]) + b'{"prompt": "a", "chosen"\n',
        ["pairs.jsonl:3", "invalid JSON"],
    ),
    "binary junk": ("pairs.jsonl", bytes(range(256)) * 8, ["pairs.jsonl:1", "UTF-8"]),
    "junk called gzip": ("pairs.jsonl.gz", b"junk" * 50, ["pairs.jsonl.gz", "gzip"]),
    "a cut gzip file": (
        "pairs.jsonl.gz",
        gzip.compress(texts([TEXT_ROW] * 50))[:-12],
        ["pairs.jsonl.gz", "complete gzip"],
    ),
    "junk called Parquet": ("pairs.parquet", b"junk" * 50, ["pairs.parquet", "Parquet"]),
    "unknown columns": (
        "pairs.jsonl",
        texts([{"question": "a", "good": "b", "bad": "c"}]),
        ["pairs.jsonl:1", "question, good, bad", "prompt, chosen, rejected"],
    ),
    "no rows": ("pairs.jsonl", b"", ["pairs.jsonl", "no rows"]),
    "only blank lines": ("pairs.jsonl", b"\n  \n", ["pairs.jsonl", "no rows"]),
    "an empty array": ("pairs.json", b"[]", ["pairs.json", "no rows"]),
    "all pairs identical": (
        "pairs.jsonl",
        texts([{**TEXT_ROW, "rejected": "two"}] * 3),
        ["none of the 3 rows", "3 identical_responses"],
    ),
    "all responses empty": (
        "pairs.jsonl",
        texts([{**TEXT_ROW, "rejected": " "}] * 3),
        ["none of the 3 rows", "3 empty_response"],
    ),
    "no labels": (
        "pairs.jsonl",
        texts([{"prompt": "a", "responses": ["b", "c"]}] * 2),
        ["none of the 2 rows", "2 unlabelled"],
    ),
    "a margin that is text": (
        "pairs.jsonl",
        texts([TEXT_ROW, {**TEXT_ROW, "margin": "wide"}]),
        ["pairs.jsonl:2", "margin is text", "a number"],
    ),
    "a margin without bounds": (
        "pairs.jsonl",
        texts([TEXT_ROW]) + b'{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e999}\n',
        ["pairs.jsonl:2", "margin", "finite number"],
    ),
    "a label that is text": (
        "pairs.jsonl",
        texts([{"prompt": "a", "completion": "b", "label": "good"}]),
        ["pairs.jsonl:1", "label is text", "a number"],
    ),
    "a grade that is text": (
        "pairs.jsonl",
        texts([{"prompt": "a", "responses": ["b", "c"], "grades": [1, "two"]}]),
        ["pairs.jsonl:1", "grades[1] is text", "a number"],
    ),
    "text and messages mixed": (
        "pairs.jsonl",
        texts([{**TEXT_ROW, "chosen": [{"role": "assistant", "content": "x"}]}]),
        ["pairs.jsonl:1"],
    ),
    "one prompt only": ("pairs.jsonl", texts([TEXT_ROW] * 4), ["same prompt", "split_by: row"]),
}


@pytest.mark.parametrize("name", DATA)
def test_data(name: str, tiny_base: Path, tmp_path: Path, refuse: Refuse) -> None:
    file, content, words = DATA[name]
    data = tmp_path / file
    if content is not None:
        data.write_bytes(content)
    recipe = saved(recipe_of(tiny_base, data), tmp_path)
    sentence = refuse("train", recipe, "--out", tmp_path / "run")
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("truncation", ["drop", "error", "left"])
def test_all_too_long(
    truncation: str, tiny_base: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse
) -> None:
    recipe = overlaid(
        recipe_of(tiny_base, pairs_file), tokens={"max_length": 3, "truncation": truncation}
    )
    sentence = refuse("train", saved(recipe, tmp_path), "--out", tmp_path / "run")
    assert "max_length" in sentence
    assert ("over_length 42" if truncation != "error" else "pairs.jsonl:") in sentence


def test_messages_without_a_chat_template(
    own_base: Callable[[], Path], pairs_file: Path, tmp_path: Path, refuse: Refuse
) -> None:
    base = own_base()
    (base / "chat_template.jinja").unlink()
    recipe = saved(recipe_of(base, pairs_file), tmp_path)
    sentence = refuse("train", recipe, "--out", tmp_path / "run")
    assert "no chat template" in sentence
    assert "tokens.chat_template" in sentence
    assert "pairs.jsonl:" in sentence


def test_rows_that_cannot_train_are_counted(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few bad rows do not stop a run; each is counted under its reason."""
    rows = pair_rows(30)
    empty = {**rows[0], "rejected": [{"role": "assistant", "content": "  "}]}
    same = {**rows[1], "rejected": rows[1]["chosen"]}
    long = {**rows[2], "chosen": [{"role": "assistant", "content": "fox " * 400}]}
    calls = [{"function": {"name": "clock"}}]
    odd = {**rows[3], "chosen": [{"role": "assistant", "content": None, "tool_calls": calls}]}
    data = write_jsonl(tmp_path / "pairs.jsonl", [*rows, empty, same, long, odd])
    recipe = saved(recipe_of(tiny_base, data, num_train_epochs=1), tmp_path)
    code = main(["train", str(recipe), "--out", str(tmp_path / "run"), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    facts = json.loads(captured.out)["data"]
    assert facts["dropped"] == {
        "empty_response": 1,
        "identical_responses": 1,
        "over_length": 1,
        "template_error": 1,
    }
    assert (facts["rows"], facts["used"]) == (34, 30)
    for reason in facts["dropped"]:
        assert reason in captured.err


# ---- recipes

RECIPES: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "an unknown section": ({"trian": {}}, ["`trian`", "did you mean `train`?"]),
    "an unknown key": ({"tokens": {"max_lenght": 5}}, ["tokens.max_lenght", "`max_length`"]),
    "an unknown training argument": (
        {"train": {"learning_rat": 1e-4}},
        ["train.learning_rat", "did you mean `learning_rate`?"],
    ),
    "an unknown LoRA option": ({"lora": {"lora_alfa": 3}}, ["lora.lora_alfa", "`lora_alpha`"]),
    "a negative learning rate": ({"train": {"learning_rate": -1}}, ["learning_rate", "at least 0"]),
    "a number as text": ({"train": {"learning_rate": "fast"}}, ["'fast'", "a number"]),
    "half an epoch's batch": ({"train": {"per_device_train_batch_size": 1.5}}, ["whole number"]),
    "a length below two": ({"tokens": {"max_length": 1}}, ["tokens.max_length", "at least 2"]),
    "an unknown loss": ({"loss": {"kind": "bradley"}}, ["loss.kind", "bradley_terry"]),
    "a section that is text": ({"data": "pairs"}, ["`data`", "mapping"]),
    "everything held out": ({"data": {"eval_fraction": 1.0}}, ["data.eval_fraction", "below 1"]),
    "a schedule that is unknown": ({"train": {"lr_scheduler_type": "cosin"}}, ["'cosine'"]),
    "dates": ({"tokens": {"date": "today"}}, ["tokens.date", "2024-07-26"]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(
    name: str, tiny_base: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse
) -> None:
    changes, words = RECIPES[name]
    recipe = recipe_of(tiny_base, pairs_file)
    for section, keys in changes.items():
        recipe[section] = {**recipe.get(section, {}), **keys} if isinstance(keys, dict) else keys
    sentence = refuse("train", saved(recipe, tmp_path), "--out", tmp_path / "run")
    assert "recipe.yaml" in sentence
    for word in words:
        assert word in sentence


def test_recipe_file(tmp_path: Path, refuse: Refuse) -> None:
    gone = tmp_path / "gone.yaml"
    assert "recipe file does not exist" in refuse("train", gone, "--out", tmp_path / "run")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model:\n  base: x\n data: [\n")
    assert "broken.yaml:3" in refuse("train", broken, "--out", tmp_path / "run")
    broken.write_bytes(bytes(range(128, 256)))
    assert "not a text file" in refuse("train", broken, "--out", tmp_path / "run")
    broken.write_text("")
    assert "is empty" in refuse("train", broken, "--out", tmp_path / "run")


def test_an_override(tiny_base: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse) -> None:
    recipe = saved(recipe_of(tiny_base, pairs_file), tmp_path)
    sentence = refuse("train", recipe, "--out", tmp_path / "run", "--set", "train.sed=7")
    assert "did you mean `seed`?" in sentence
    assert "--set seed" in refuse("train", recipe, "--out", tmp_path / "run", "--set", "seed")


@pytest.mark.parametrize(
    ("targets", "absent"),
    [
        (["no_such_layer"], "no_such_layer"),
        (["q_proj", "v_prj"], "v_prj"),
        (".*nothing.*", ".*nothing.*"),
        ("q_proj,v_proj", "(write several names as a YAML list)"),
    ],
    ids=str,
)
def test_target_modules_are_checked_before_data_are_read(
    targets: Any,
    absent: str,
    tiny_base: Path,
    tmp_path: Path,
    refuse: Refuse,
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("no rows, which reading would say")
    recipe = overlaid(recipe_of(tiny_base, data), lora={"target_modules": targets})
    sentence = refuse("train", saved(recipe, tmp_path), "--out", tmp_path / "run")
    assert absent in sentence
    for word in ("lora.target_modules", "q_proj", "down_proj"):
        assert word in sentence


# ---- bases


def remove(*names: str) -> Callable[[Path], None]:
    def damage(base: Path) -> None:
        for name in names:
            (base / name).unlink()

    return damage


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(base: Path) -> None:
        (base / name).write_bytes(content)

    return damage


def cut(name: str) -> Callable[[Path], None]:
    def damage(base: Path) -> None:
        content = (base / name).read_bytes()
        (base / name).write_bytes(content[: len(content) // 2])

    return damage


BASES: dict[str, tuple[Callable[[Path], None], Sequence[str]]] = {
    "without weights": (remove("model.safetensors"), ["model.safetensors"]),
    "with cut weights": (cut("model.safetensors"), ["cannot be loaded"]),
    "with junk for weights": (overwrite("model.safetensors", b"junk" * 99), ["cannot be loaded"]),
    "without a tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        ["no usable tokenizer"],
    ),
    "without a vocabulary": (remove("tokenizer.json"), ["no usable tokenizer"]),
    "with a broken tokenizer": (
        overwrite("tokenizer.json", b'{"version": '),
        ["no usable tokenizer"],
    ),
    "with a tokenizer of no kind": (
        overwrite("tokenizer.json", b'{"version": "1.0", "model": {"type": "Nope"}}'),
        ["no usable tokenizer"],
    ),
    "without a config": (remove("config.json"), ["config.json"]),
    "with a broken config": (overwrite("config.json", b"{"), ["config.json"]),
    "of an unknown kind": (overwrite("config.json", b'{"model_type": "nope"}'), ["config.json"]),
}


@pytest.mark.parametrize("name", BASES)
def test_base(
    name: str, own_base: Callable[[], Path], pairs_file: Path, tmp_path: Path, refuse: Refuse
) -> None:
    damage, words = BASES[name]
    base = own_base()
    damage(base)
    recipe = saved(recipe_of(base, pairs_file), tmp_path)
    sentence = refuse("train", recipe, "--out", tmp_path / "run")
    for word in [str(base), *words]:
        assert word in sentence


def test_a_base_that_is_nowhere(pairs_file: Path, tmp_path: Path, refuse: Refuse) -> None:
    recipe = overlaid(recipe_of(Path("x"), pairs_file), model={"base": "nobody/nothing"})
    sentence = refuse("train", saved(recipe, tmp_path), "--out", tmp_path / "run")
    assert "nobody/nothing is not a local folder" in sentence


def test_four_bits_without_bitsandbytes(
    tiny_base: Path,
    tmp_path: Path,
    refuse: Refuse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("plaudit.model.load.find_spec", lambda name: None)
    data = tmp_path / "pairs.jsonl"
    data.write_text("no rows, which reading would say")
    recipe = overlaid(recipe_of(tiny_base, data), model={"quantize": "4bit"})
    sentence = refuse("train", saved(recipe, tmp_path), "--out", tmp_path / "run")
    assert "4bit needs bitsandbytes" in sentence


@pytest.mark.parametrize("content", [None, b"\xff\xfe junk \xff"])
def test_template_file(
    content: bytes | None, tiny_base: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse
) -> None:
    template = tmp_path / "chat.jinja"
    if content is not None:
        template.write_bytes(content)
    recipe = overlaid(recipe_of(tiny_base, pairs_file), tokens={"chat_template": str(template)})
    sentence = refuse("train", saved(recipe, tmp_path), "--out", tmp_path / "run")
    assert str(template) in sentence


def test_a_template_that_is_not_jinja(
    tiny_base: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}")
    recipe = overlaid(recipe_of(tiny_base, pairs_file), tokens={"chat_template": str(template)})
    sentence = refuse("train", saved(recipe, tmp_path), "--out", tmp_path / "run")
    assert "template_error" in sentence


# ---- --out and --resume


def test_out_that_exists(
    tiny_base: Path, pairs_file: Path, finished_run: Path, tmp_path: Path, refuse: Refuse
) -> None:
    recipe = saved(recipe_of(tiny_base, pairs_file), tmp_path)
    sentence = refuse("train", recipe, "--out", finished_run)
    assert "--resume" in sentence
    assert "another name" in sentence
    file = tmp_path / "file"
    file.write_text("mine")
    assert "another name" in refuse("train", recipe, "--out", file)
    assert "another place" in refuse("train", recipe, "--out", file / "run")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    sentence = refuse("train", recipe, "--out", folder)
    assert "--resume" not in sentence
    assert "another name" in sentence


def test_resume_without_a_run(
    tiny_base: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse
) -> None:
    recipe = saved(recipe_of(tiny_base, pairs_file), tmp_path)
    sentence = refuse("train", recipe, "--out", tmp_path / "run", "--resume")
    assert "No run to resume" in sentence
    assert "--out FOLDER is required" in refuse("train", recipe, "--resume")


def test_resume_with_another_recipe(
    tiny_base: Path, pairs_file: Path, own_run: Path, tmp_path: Path, refuse: Refuse
) -> None:
    recipe = saved(
        overlaid(recipe_of(tiny_base, pairs_file, learning_rate=1e-5), tokens={"max_length": 99}),
        tmp_path,
    )
    sentence = refuse("train", recipe, "--out", own_run, "--resume")
    assert "tokens.max_length, train.learning_rate" in sentence
    assert str(own_run / "recipe.yaml") in sentence


def test_resume_of_a_finished_run_trains_nothing(
    own_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def results() -> dict[str, str | None]:
        # Card, report and plots may be made anew.
        made_anew = ("README.md", "report.html", "plots/")
        return {
            name: digest
            for name, digest in snapshot(own_run).items()
            if not any(word in name for word in made_anew)
        }

    before = results()
    code = main(["train", str(own_run / "recipe.yaml"), "--out", str(own_run), "--resume"])
    assert code == 0
    assert "already finished" in " ".join(capsys.readouterr().err.split())
    assert results() == before


def test_resume_of_a_run_stopped_before_its_card(
    own_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill between the numbers and what is made of them: only the latter is made again."""
    (own_run / "README.md").unlink()
    shutil.rmtree(own_run / "plots")
    metrics = (own_run / "metrics.json").read_bytes()
    code = main(["train", str(own_run / "recipe.yaml"), "--out", str(own_run), "--resume"])
    assert code == 0, capsys.readouterr().err
    assert (own_run / "README.md").is_file()
    assert list((own_run / "plots").glob("*.png"))
    assert (own_run / "metrics.json").read_bytes() == metrics


# ---- losses that are not finite


def finite_checkpoints(out: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    return all(
        bool(torch.isfinite(tensor).all())
        for path in out.rglob("*.safetensors")
        for tensor in load_file(path).values()
    )


def test_a_base_of_nans(
    own_base: Callable[[], Path],
    pairs_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from safetensors.torch import load_file, save_file

    base = own_base()
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    recipe = saved(recipe_of(base, pairs_file, save_steps=1, eval_steps=1), tmp_path)
    code = main(["train", str(recipe), "--out", str(tmp_path / "run")])
    sentence = the_sentence(capsys.readouterr().err)
    assert code == 2
    assert "step 1 is not a finite number" in sentence
    assert sentence.count("pairs.jsonl:") == 4
    assert not list((tmp_path / "run").glob("checkpoints/checkpoint-*"))
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_learning_rate_far_too_high(
    evaluated: bool,
    tiny_base: Path,
    pairs_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The step before the first loss that is not finite has poisoned the weights already."""
    recipe = recipe_of(
        tiny_base, pairs_file, learning_rate=1e30, save_steps=1, eval_steps=1, max_grad_norm=0
    )
    if not evaluated:
        recipe["data"]["eval_fraction"] = None
        del recipe["train"]["eval_steps"]
    out = tmp_path / "run"
    code = main(["train", str(saved(recipe, tmp_path)), "--out", str(out)])
    sentence = the_sentence(capsys.readouterr().err)
    assert code == 2
    assert "not a finite number" in sentence or "not finite" in sentence
    assert finite_checkpoints(out)
    assert not (out / "adapter_model.safetensors").exists()
    assert not (out / "metrics.json").exists()


# ---- a full disk


def limited_file_size(limit: int) -> Callable[[], None]:
    """For a child process: no file may grow beyond ``limit`` bytes."""

    def limit_it() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return limit_it


@pytest.mark.parametrize("limit", [2_000, 12_000, 60_000])
def test_no_room_while_saving(
    limit: int, finished_run: Path, tiny_base: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """The limit strikes at another file each time: weights, tokenizer or optimizer.

    The run that is finished has filled the cache.
    """
    recipe = saved(recipe_of(tiny_base, pairs_file), tmp_path)
    out = tmp_path / "run"
    done = subprocess.run(
        [python(), "-m", "plaudit", "train", str(recipe), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment_of_a_user(),
        preexec_fn=limited_file_size(limit),
    )
    assert done.returncode == 2, done.stderr
    assert "could not be written" in the_sentence(done.stderr)
    complete = [p.parent for p in out.glob("checkpoints/*/manifest.json")]
    assert all((folder / "optimizer.pt").is_file() for folder in complete)
    assert not (out / "metrics.json").exists()
    assert not list(out.rglob("*.partial"))


def test_no_room_for_the_copy_of_the_embedded_base(pairs_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", "--model", "embedded", "--data", str(pairs_file), "--out", str(out)]
    done = subprocess.run(
        [python(), "-m", "plaudit", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment_of_a_user(),
        preexec_fn=limited_file_size(1_000_000),
    )
    assert done.returncode == 2, done.stderr
    assert f"{out / 'base'} could not be written" in the_sentence(done.stderr)
    assert not out.exists()


# ---- saved models


def set_fact(name: str, value: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "plaudit.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return damage


def without_tensors(word: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "adapter_model.safetensors"
        kept = {name: t for name, t in load_file(path).items() if word not in name}
        save_file(kept, path, metadata={"format": "pt"})

    return damage


MODELS: dict[str, tuple[Callable[[Path], object], Sequence[str]]] = {
    "none": (shutil.rmtree, ["does not exist"]),
    "without plaudit.json": (remove("plaudit.json"), ["no plaudit.json"]),
    "with a broken plaudit.json": (cut("plaudit.json"), ["plaudit.json cannot be read"]),
    "of a newer format": (set_fact("format", 99), ["format 99", "upgrade plaudit"]),
    "with a fact of the wrong kind": (set_fact("max_length", "long"), ["max_length is 'long'"]),
    "with cut weights": (cut("adapter_model.safetensors"), ["is damaged"]),
    "without weights": (remove("adapter_model.safetensors"), ["no adapter_model.safetensors"]),
    "without its head": (without_tensors("score"), ["no score head"]),
    "without a layer": (without_tensors("layers.1.self_attn.q_proj"), ["lacks 2 of", "layers.1"]),
    "without adapter_config.json": (remove("adapter_config.json"), ["no adapter_config.json"]),
    "with a broken adapter_config.json": (cut("adapter_config.json"), ["adapter"]),
    "without a tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        ["no usable tokenizer"],
    ),
    "whose base is gone": (set_fact("base", "/gone/base"), ["/gone/base"]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("verb", ["score", "eval"])
def test_model(
    name: str, verb: str, own_run: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse
) -> None:
    damage, words = MODELS[name]
    # Models of other tools and of plaudit 0.1.0 have no manifest.
    (own_run / "manifest.json").unlink()
    damage(own_run)
    out = tmp_path / ("out.jsonl" if verb == "score" else "out")
    sentence = refuse(verb, own_run, pairs_file, "--out", out)
    for word in words:
        assert word in sentence


def flip(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(share * len(content))] ^= 1
        (folder / name).write_bytes(content)

    return damage


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "plaudit.json"]
)
def test_a_damaged_model_never_scores(
    name: str, own_run: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """Every file that decides a reward; one changed bit in it can be another reward."""
    content = (own_run / name).read_bytes()
    for damage in (cut(name), flip(name, 0.1), flip(name, 0.9), remove(name)):
        damage(own_run)
        sentence = refuse("score", own_run, pairs_file, "--out", tmp_path / "out.jsonl")
        assert name in sentence
        (own_run / name).write_bytes(content)


def test_a_whole_model_with_cut_weights(
    tiny_base: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse
) -> None:
    from plaudit.training.run import train

    folder = tmp_path / "full"
    train({**recipe_of(tiny_base, pairs_file, num_train_epochs=1), "lora": None}, folder)
    cut("model.safetensors")(folder)
    assert "cannot be loaded" in refuse(
        "score", folder, pairs_file, "--out", tmp_path / "out.jsonl"
    )


def test_another_base(
    own_run: Path,
    own_base: Callable[[], Path],
    pairs_file: Path,
    tmp_path: Path,
    refuse: Refuse,
) -> None:
    from tests.models import build_base

    other = build_base(tmp_path / "other", hidden_size=16, head_dim=4)
    out = tmp_path / "out.jsonl"
    sentence = refuse("score", own_run, pairs_file, "--out", out, "--base", other)
    assert "does not fit its base" in sentence
    assert "--base" in sentence


def test_card(tmp_path: Path, own_run: Path, refuse: Refuse) -> None:
    assert "gone" in refuse("card", tmp_path / "gone")
    (own_run / "metrics.json").unlink()
    assert "metrics.json" in refuse("card", own_run)
    (own_run / "metrics.json").write_text("{")
    assert "metrics.json" in refuse("card", own_run)


# ---- scoring a file


def test_score_out(finished_run: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse) -> None:
    out = tmp_path / "scores.jsonl"
    out.write_text("mine")
    assert "already exists" in refuse("score", finished_run, pairs_file, "--out", out)
    sentence = refuse("score", finished_run, pairs_file, "--out", tmp_path / "scores.txt")
    assert "unknown file extension" in sentence
    assert ".jsonl, .jsonl.gz, .ndjson, .json, .csv, .parquet" in sentence
    sentence = refuse("score", finished_run, pairs_file, "--out", out / "scores.jsonl")
    assert "could not be written" in sentence


@pytest.mark.parametrize("column", ["rewards", "rewards_reason"])
def test_score_column_that_exists(
    column: str, finished_run: Path, tmp_path: Path, refuse: Refuse
) -> None:
    rows = pair_rows(3)
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows, {**rows[0], column: "mine"}])
    out = tmp_path / "out.jsonl"
    sentence = refuse("score", finished_run, data, "--out", out)
    assert f"rows.jsonl:4 already has a column '{column}'" in sentence
    assert "--column" in sentence
    assert main(["score", str(finished_run), str(data), "--out", str(out), "--column", "r"]) == 0
    assert json.loads(out.read_text().splitlines()[3])[column] == "mine"


def test_score_reads_every_row_before_the_first_is_scored(
    finished_run: Path, tmp_path: Path, refuse: Refuse
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", pair_rows(3))
    with data.open("a") as file:
        file.write('{"prompt": \n')
    sentence = refuse("score", finished_run, data, "--out", tmp_path / "out.jsonl")
    assert "rows.jsonl:4" in sentence


def test_a_row_too_long_to_score_keeps_its_place(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pair_rows(4)
    rows[2]["chosen"] = [{"role": "assistant", "content": "fox " * 400}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "out.jsonl"
    assert main(["score", str(finished_run), str(data), "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "rows": 4,
        "scored": 3,
        "skipped": {"over_length": 1},
        "resumed": 0,
        "unread": {"rows": 4, "without_prompt": 0, "columns": {"subset": 4}},
    }
    assert "over_length 1" in captured.err
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{k: row[k] for k in rows[0]} for row in written] == rows
    assert [len(row["rewards"] or ()) for row in written] == [2, 2, 0, 2]
    assert [row.get("rewards_reason") for row in written] == [None, None, "over_length", None]


@pytest.mark.parametrize("ending", [".jsonl.gz", ".parquet"])
def test_score_in_other_kinds_of_file(ending: str, finished_run: Path, tmp_path: Path) -> None:
    """Columns that come late, and dates as text, are what they were."""
    import pyarrow.parquet as pq

    rows = [{**row, "day": "2024-07-26"} for row in pair_rows(5)]
    rows[2]["chosen"] = [{"role": "assistant", "content": "fox " * 400}]
    rows[4]["note"] = "late"
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    plain, other = tmp_path / "out.jsonl", tmp_path / f"out{ending}"
    for out in (plain, other):
        assert main(["score", str(finished_run), str(data), "--out", str(out)]) == 0
    expected = [json.loads(line) for line in plain.read_text().splitlines()]
    if ending == ".parquet":
        names = {name for row in expected for name in row}
        expected = [{name: row.get(name) for name in names} for row in expected]
        found = pq.read_table(other).to_pylist()
    else:
        found = [json.loads(line) for line in gzip.decompress(other.read_bytes()).splitlines()]
    assert found == expected


def test_columns_that_parquet_cannot_hold(
    finished_run: Path, tmp_path: Path, refuse: Refuse, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "mixed": mixed} for row, mixed in zip(pair_rows(2), ["x", [1]], strict=True)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "out.parquet"
    code = main(["score", str(finished_run), str(data), "--out", str(out)])
    assert code == 2
    assert ".jsonl" in the_sentence(capsys.readouterr().err)
    assert not out.exists()


def test_rewards_that_are_no_numbers_are_not_written(
    own_run: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    path = own_run / "adapter_model.safetensors"
    weights = load_file(path)
    weights["base_model.model.score.weight"].fill_(float("inf"))
    save_file(weights, path, metadata={"format": "pt"})
    (own_run / "manifest.json").unlink()
    out = tmp_path / "out.jsonl"
    assert main(["score", str(own_run), str(pairs_file), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == {"reward_not_finite": 60}
    first = json.loads(out.read_text().splitlines()[0])
    assert (first["rewards"], first["rewards_reason"]) == (None, "reward_not_finite")


def start_scoring(model: Path, data: Path, out: Path, *options: str) -> Popen:
    program = (
        "import sys\nfrom plaudit import score_file\nscore_file.CHUNK_ROWS = 8\n"
        "from plaudit.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    return Popen(
        [
            python(),
            "-c",
            program,
            "score",
            str(model),
            str(data),
            "--out",
            str(out),
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_of_a_user(),
    )


def test_a_killed_call_is_gone_on_with(
    finished_run: Path,
    own_run: Path,
    tmp_path: Path,
    refuse: Refuse,
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", pair_rows(1200, seed=3))
    out = tmp_path / "out.jsonl"
    partial = tmp_path / ".out.jsonl.partial.jsonl"
    whole = tmp_path / "whole.jsonl"
    assert start_scoring(finished_run, data, whole).wait(timeout=300) == 0
    process = start_scoring(finished_run, data, out)
    try:
        deadline = time.monotonic() + 240
        while not (partial.is_file() and partial.stat().st_size > 10_000):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()

    set_metadata(own_run, temperature=7.0)
    sentence = refuse("score", own_run, data, "--out", out)
    assert "another model" in sentence
    assert str(tmp_path / ".out.jsonl.partial.json") in sentence

    with partial.open("a") as file:
        file.write('{"cut off in the mid')
    process = start_scoring(finished_run, data, out, "--json")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    counts = json.loads(printed)
    assert 0 < counts["resumed"] < counts["rows"] == counts["scored"] == 1200
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*"))


# ---- evaluation


def test_eval_data(finished_run: Path, tmp_path: Path, refuse: Refuse) -> None:
    unlabelled = write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": "a", "responses": ["b", "c"]}] * 2
    )
    sentence = refuse("eval", finished_run, unlabelled, "--out", tmp_path / "out")
    assert "2 unlabelled" in sentence
    gone = tmp_path / "gone.jsonl"
    assert "does not exist" in refuse("eval", finished_run, gone, "--out", tmp_path / "out")
    rows = pair_rows(2)
    for row in rows:
        row["chosen"] = [{"role": "assistant", "content": "fox " * 400}]
    long = write_jsonl(tmp_path / "long.jsonl", rows)
    sentence = refuse("eval", finished_run, long, "--out", tmp_path / "out")
    assert "over_length 2" in sentence


def test_eval_out(finished_run: Path, pairs_file: Path, tmp_path: Path, refuse: Refuse) -> None:
    sentence = refuse("eval", finished_run, pairs_file, "--out", finished_run)
    assert "already exists" in sentence
    file = tmp_path / "file"
    file.write_text("mine")
    assert "already exists" in refuse("eval", finished_run, pairs_file, "--out", file)
    assert "could not be written" in refuse("eval", finished_run, pairs_file, "--out", file / "out")


def test_an_evaluation_with_no_room_leaves_no_folder(
    finished_run: Path, pairs_file: Path, tmp_path: Path
) -> None:
    from plaudit.evaluate_model import evaluate

    evaluate(finished_run, pairs_file)  # fills the cache, so that the limit strikes at the output
    done = subprocess.run(
        [
            *(python(), "-m", "plaudit", "eval", str(finished_run)),
            *(str(pairs_file), "--out", str(tmp_path / "out")),
        ],
        env=environment_of_a_user(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=limited_file_size(1_000),
    )
    assert done.returncode == 2, done.stderr
    assert "could not be written" in the_sentence(done.stderr)
    assert snapshot(tmp_path) == {}
