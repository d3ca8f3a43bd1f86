"""``plaudit push`` and ``plaudit pull`` as processes, against a Hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fake_hub import TOKEN, Hub, running_hub
from tests.foreign import BASE, LLAMA_FACTORY

pytestmark = pytest.mark.heavy
REPO = "someone/my-reward-model"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as found:
        yield found


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    return folder


def plaudit(
    hub: Hub | None, *arguments: str | Path, token: str | None = TOKEN, home: Path
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9" if hub is None else hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home / "hf-home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("HF_TOKEN", None)
    if token is not None:
        environment["HF_TOKEN"] = token
    return subprocess.run(
        [sys.executable, "-m", "plaudit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def test_a_run_goes_up_and_comes_down_whole(hub: Hub, run: Path, tmp_path: Path) -> None:
    done = plaudit(hub, "push", run, REPO, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    there = hub.files(REPO)
    assert {
        *("README.md", "plaudit.json", "adapter_config.json", "adapter_model.safetensors"),
        *("tokenizer.json", "chat_template.jinja", "metrics.json", "recipe.yaml"),
    } <= set(there)
    # What resuming needs and rows of somebody's data stay here.
    assert not [n for n in there if n.startswith(("checkpoints", "evaluations"))]
    assert not {"predictions.parquet", "events.jsonl", "data.json"} & set(there)
    assert not [n for n in there if n.endswith((".pt", ".bin", ".pth"))]
    told = json.loads(done.stdout)
    assert told["commit"] == hub.repos[REPO].branches["main"]
    assert "checkpoints/" in done.stderr
    assert "which other people do not have" in done.stderr  # the base is a folder of this machine

    pulled = plaudit(hub, "pull", REPO, "--out", tmp_path / "pulled", "--json", home=tmp_path)
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads(pulled.stdout)["commit"] == told["commit"]
    names = {
        p.relative_to(tmp_path / "pulled").as_posix(): p for p in (tmp_path / "pulled").rglob("*")
    }
    assert not [n for n in names if n.startswith(".")]
    for name, path in names.items():
        if path.is_file():
            assert path.read_bytes() == there[name] == (run / name).read_bytes()
    from plaudit.reward_model import load

    question, answers = "which one?", ["this right", "that wrong"]
    assert load(tmp_path / "pulled").score(question, answers) == load(run).score(question, answers)


def test_a_dry_run_shows_the_files_and_asks_nobody(hub: Hub, run: Path, tmp_path: Path) -> None:
    done = plaudit(hub, "push", run, REPO, "--dry-run", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    told = json.loads(done.stdout)
    assert [
        "adapter_model.safetensors",
        (run / "adapter_model.safetensors").stat().st_size,
    ] in told["files"]
    assert "predictions.parquet" in told["skipped"]
    assert told["commit"] is None
    assert "adapter_model.safetensors" in done.stderr
    assert "Dry run: nothing was uploaded" in done.stderr
    assert not [note for note in told["notes"] if "has not finished" in note]
    from plaudit.interop.hub import PushOptions, push

    unevaluated = tmp_path / "unevaluated"
    shutil.copytree(run, unevaluated, ignore=shutil.ignore_patterns("checkpoints"))
    (unevaluated / "training.json").write_text("{}")
    plan = push(unevaluated, REPO, PushOptions(dry_run=True))
    (note,) = [n for n in plan.notes if "has not finished" in n]
    assert f"plaudit train {unevaluated} --resume" in note


def test_private_revision_and_further_files(hub: Hub, run: Path, tmp_path: Path) -> None:
    arguments = ("--private", "--revision", "step-6", "--include", "predictions.parquet")
    done = plaudit(hub, "push", run, REPO, *arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.repos[REPO].private
    assert set(hub.files(REPO, "main")) == {".gitattributes"}
    assert "predictions.parquet" in hub.files(REPO, "step-6")
    out = tmp_path / "pulled"
    done = plaudit(hub, "pull", REPO, "--out", out, "--revision", "step-6", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (out / "plaudit.json").is_file()
    assert not (out / "predictions.parquet").exists()
    refused = plaudit(hub, "pull", REPO, "--out", tmp_path / "b", token=None, home=tmp_path)
    assert refused.returncode == 2
    assert "log in with hf auth login" in refused.stderr


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("head", "but no reward head"),
        ("weights", "holds no weights"),
        ("pickle", "holds only pickles (adapter_model.bin)"),
        ("card", "has no README.md"),
        ("metadata", "cannot be read"),
        ("base", "is not a Hub id"),
        ("licence", "license is not known"),
        ("optimizer", "is a pickle"),
    ],
)
def test_what_is_not_fit_to_be_shared_stays_here(
    damage: str, sentence: str, hub: Hub, run: Path, tmp_path: Path
) -> None:
    weights, card = run / "adapter_model.safetensors", run / "README.md"
    extra: tuple[str, ...] = ()
    if damage == "head":
        kept = {k: v for k, v in load_file(weights).items() if ".score." not in k}
        save_file(kept, weights)
    elif damage in ("weights", "pickle"):
        weights.unlink()
        if damage == "pickle":
            (run / "adapter_model.bin").write_bytes(b"\x80")
    elif damage == "card":
        card.unlink()
    elif damage == "metadata":
        card.write_text("---\nmodel-index: 3\ntags: [a\n---\n# x\n")
    elif damage == "base":
        card.write_text("---\nbase_model: /home/someone/llama\n---\n# x\n")
    elif damage == "licence":
        card.write_text("---\nlicense: my-own\n---\n# x\n")
    else:
        extra = ("--include", "checkpoints/*")
    done = plaudit(hub, "push", run, REPO, *extra, home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert set(hub.files(REPO) if REPO in hub.repos else {}) <= {".gitattributes"}


def test_weights_of_an_earlier_push_do_not_stay_beside_new_ones(
    hub: Hub, run: Path, tmp_path: Path
) -> None:
    hub.put(REPO, {"model.safetensors": b"old", "notes.txt": b"kept"})
    done = plaudit(hub, "push", run, REPO, home=tmp_path)
    assert done.returncode == 2
    assert "holds model.safetensors, which this folder does not have" in done.stderr
    assert set(hub.files(REPO)) == {"model.safetensors", "notes.txt"}
    done = plaudit(hub, "push", run, REPO, "--replace", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" not in hub.files(REPO)
    assert "notes.txt" in hub.files(REPO)


def test_who_may_not_write_hears_it(hub: Hub, run: Path, tmp_path: Path) -> None:
    done = plaudit(hub, "push", run, REPO, token=None, home=tmp_path)
    assert done.returncode == 2
    assert "log in" in done.stderr
    assert "Traceback" not in done.stderr


def test_pull_takes_no_pickles_and_no_code(hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.put(REPO, {"README.md": b"# x", "pytorch_model.bin": b"\x80", "config.json": b"{}"})
    done = plaudit(hub, "pull", REPO, "--out", tmp_path / "a", home=tmp_path)
    assert done.returncode == 2
    assert "only pickles (pytorch_model.bin)" in done.stderr
    assert not (tmp_path / "a").exists()
    files = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    hub.put(REPO, {**files, "modeling_custom.py": b"print()", "optimizer.pt": b"\x80"})
    done = plaudit(hub, "pull", REPO, "--out", tmp_path / "b", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "b").glob("*.py"))
    assert not list((tmp_path / "b").glob("*.pt"))
    assert "not downloaded: " in done.stderr
    headless = {**files, "adapter_model.safetensors": _without_head(run)}
    hub.put(REPO, headless)
    done = plaudit(hub, "pull", REPO, "--out", tmp_path / "c", home=tmp_path)
    assert done.returncode == 2
    assert "no reward head" in done.stderr
    assert not (tmp_path / "c").exists()


def test_a_model_of_pickles_with_its_base_beside_it_is_read_by_its_id(
    hub: Hub, tmp_path: Path
) -> None:
    """LLaMA-Factory's old layout. The base's weights are read as weights too."""
    files = {p.name: p.read_bytes() for p in (LLAMA_FACTORY / "adapter_old_layout").iterdir()}
    base = {f"base/{p.name}": p.read_bytes() for p in BASE.iterdir()}
    hub.put(REPO, {**files, **base, "modeling_custom.py": b"raise SystemExit(7)"})
    assert "value_head.bin" in files
    done = plaudit(hub, "export", REPO, "--to", "merged", "--out", tmp_path / "a", home=tmp_path)
    assert done.returncode == 0, done.stderr
    # The merged model as a pickle alone, as NeMo writes it.
    merged = load_file(tmp_path / "a" / "model.safetensors")
    torch.save(merged, tmp_path / "pytorch_model.bin")
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    whole = {name: (tmp_path / "a" / name).read_bytes() for name in names}
    hub.put(
        "someone/pickled",
        {**whole, "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()},
    )
    done = plaudit(hub, "import", "someone/pickled", "--out", tmp_path / "b", home=tmp_path)
    assert done.returncode == 0, done.stderr
    imported = load_file(tmp_path / "b" / "model.safetensors")
    assert imported["score.weight"].equal(merged["score.weight"])


def _without_head(run: Path) -> bytes:
    from safetensors.torch import save

    tensors = load_file(run / "adapter_model.safetensors")
    return save({k: v for k, v in tensors.items() if ".score." not in k})


def test_what_cannot_be_found_or_reached_is_one_sentence(
    hub: Hub, run: Path, tmp_path: Path
) -> None:
    hub.put(REPO, {"model.safetensors": b""})
    cases = [
        (
            plaudit(hub, "pull", "no/such", "--out", tmp_path / "a", home=tmp_path),
            "no/such is not on the Hub",
        ),
        (
            plaudit(hub, "pull", REPO, "--out", tmp_path / "a", "--revision", "x", home=tmp_path),
            "no such revision",
        ),
        (
            plaudit(hub, "pull", "not an id", "--out", tmp_path / "a", home=tmp_path),
            "is not a Hub id",
        ),
        (plaudit(None, "pull", REPO, "--out", tmp_path / "a", home=tmp_path), "is unreachable"),
        (plaudit(hub, "push", tmp_path / "none", REPO, home=tmp_path), "No folder at"),
        (plaudit(hub, "pull", REPO, "--out", run, home=tmp_path), "already exists"),
    ]
    for done, sentence in cases:
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "a").exists()
