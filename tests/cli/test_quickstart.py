"""``plaudit quickstart`` on a small share of its data: the same path, minutes shorter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plaudit.cli.main import main
from plaudit.data.sources.documentation import MIX
from plaudit.reward_model import load
from tests.conftest import set_metadata

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "run"
    code = main(
        [
            *("quickstart", "--out", str(out)),
            *("--set", "data.train=documentation:training:80"),
            *("--set", "data.test={path: 'documentation:heldout:40', name: heldout}"),
            *("--set", "train.max_steps=4", "--set", "train.eval_steps=2"),
        ]
    )
    assert code == 0
    return out


def test_it_measures_every_operator_on_held_out_modules(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    slices = [s for s in metrics["test"]["slices"] if s["column"] == "subset"]
    assert {s["value"]: s["pairs"] for s in slices} == dict.fromkeys(MIX, 4)
    assert metrics["test"]["pairs"] == 40
    assert metrics["data"]["leaked_prompts"] == 0


def test_the_run_folder_can_be_moved(folder: Path, tmp_path: Path) -> None:
    """The embedded base travels with it."""
    before = load(folder).score("What does `len` do?", ["Return the number of items.", "No."])
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    set_metadata(moved, base="/gone")
    after = load(moved).score("What does `len` do?", ["Return the number of items.", "No."])
    assert after == before


def test_an_existing_folder_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--out", str(folder)]) == 2
    assert "choose another name" in capsys.readouterr().err


NO_ROUTE = ("unshare", "--map-root-user", "--net")


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*NO_ROUTE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine does not let a process give up its network",
)
def test_it_needs_no_network(tmp_path: Path) -> None:
    """The main job in a network namespace without a single route, the Hub libraries not warned."""
    out = tmp_path / "run"
    done = subprocess.run(
        [
            *(*NO_ROUTE, sys.executable, "-m", "plaudit", "quickstart", "--out", str(out)),
            *("--set", "data.train=documentation:training:40"),
            *("--set", "data.test={path: 'documentation:heldout:20', name: heldout}"),
            *("--set", "train.max_steps=2", "--set", "train.eval_steps=1"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for written in ("README.md", "report.html", "plaudit.json", "adapter_model.safetensors"):
        assert (out / written).is_file()
