"""Shared fixtures: no hub, a tiny base on disk, preference files, and one finished run."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.warm import environment_of_a_user, python

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "trl")


class NoHeavyImports:
    """Skips what would import torch or a library on it: what is left runs within a minute."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in HEAVY:
            pytest.skip(f"needs {name}", allow_module_level=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that load no torch")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        sys.meta_path.insert(0, NoHeavyImports())
        config.option.markexpr = "not heavy and not slow"


# Before any test imports a library that would try the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# Tiny models gain nothing from threads, and processes that share cores lose much to them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests share a cache of their own, in this process and in those that they start.
_CACHE = tempfile.TemporaryDirectory(prefix="plaudit-tests-")
os.environ["PLAUDIT_CACHE"] = _CACHE.name

SENTENCE = (
    "the quick brown fox jumps over lazy dog what is answer question it forty two because we "
    "counted twice no that not right yes better shorter"
)


def pair_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversational pairs a tiny model can learn: chosen ends in "right", rejected in "wrong"."""
    generator = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(generator.choices(SENTENCE.split(), k=generator.randint(low, high)))

    return [
        {
            "prompt": [{"role": "user", "content": f"{words(3, 12)} {number}"}],
            "chosen": [{"role": "assistant", "content": f"{words(2, 14)} right"}],
            "rejected": [{"role": "assistant", "content": f"{words(2, 14)} wrong"}],
            "subset": generator.choice(["a", "b"]),
        }
        for number in range(count)
    ]


def rows_with_ties(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The pairs of :func:`pair_rows`, every fourth of them a tie of two good responses."""
    others = [row["chosen"] for row in pair_rows(count, seed=seed + 1000)]
    return [
        {
            "prompt": row["prompt"],
            "responses": [row["chosen"], row["rejected"] if number % 4 else others[number]],
            "grades": [1, int(number % 4 == 0)],
            "subset": row["subset"],
        }
        for number, row in enumerate(pair_rows(count, seed=seed))
    ]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


LIBRARY_NOISE = re.compile(
    r"Warning\b|warnings\.warn|site-packages|^\[\w+\] |LOAD REPORT|newly initialized|it/s\]",
    re.MULTILINE,
)


def plaudit(*arguments: object, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """The command as a user's process, whose stderr holds nothing that a library said.

    With ``fresh`` it imports all it needs, as one test of each command has it do.
    """
    done = subprocess.run(
        [sys.executable if fresh else python(), "-m", "plaudit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment_of_a_user(),
    )
    assert "Traceback" in done.stderr or not LIBRARY_NOISE.search(done.stderr), done.stderr
    return done


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama base of 47,000 parameters with its own tokenizer and chat template."""
    from tests.models import build_base

    return build_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", pair_rows(60))


def recipe_of(base: Path, data: Path, **train: Any) -> dict[str, Any]:
    """A recipe that runs in a second or two; ``train`` is laid over its own.

    Plots and report take longer than the rest: where they matter, delete the section ``report``.
    """
    return {
        "model": {"base": str(base)},
        "data": {"train": str(data), "eval_fraction": 0.3},
        "tokens": {"max_length": 256},
        "train": {
            "learning_rate": 3e-3,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "logging_steps": 2,
            "eval_steps": 6,
            **train,
        },
        "report": {"html": False, "plots": False},
    }


@pytest.fixture(scope="session")
def finished_run(
    tiny_base: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A LoRA run folder, trained once for all tests that only read it."""
    from plaudit.training.run import train

    folder = tmp_path_factory.mktemp("runs") / "lora"
    recipe = recipe_of(tiny_base, pairs_file)
    del recipe["report"]
    train(recipe, folder)
    return folder


def set_metadata(folder: Path, **changes: Any) -> None:
    """Change facts of a saved model as plaudit does: ``plaudit.json``, and its manifest anew."""
    from plaudit.storage.manifest import write_model_manifest

    path = folder / "plaudit.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**facts, **changes}), encoding="utf-8")
    write_model_manifest(folder)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    import yaml

    def write(recipe: Mapping[str, Any]) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(dict(recipe)), encoding="utf-8")
        return path

    return write
