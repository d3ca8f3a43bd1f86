"""The benchmark commands start, one of each kind runs at a tiny size, and the page is theirs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plaudit.types import TokenTree
from tests.conftest import pair_rows, write_jsonl

FOLDER = Path(__file__).parents[2] / "benchmarks"
COMMANDS = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for path in (FOLDER / "tables.py", *FOLDER.glob("*/*.py"))
    if path.stem != "__init__" and path.parent.name not in ("common", "results", "gpu")
)


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=FOLDER.parent,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "quality.real_data"])
def test_every_command_says_what_it_answers(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m benchmarks.{name}" in done.stdout


def test_the_page_is_written_by_the_results() -> None:
    done = run("tables", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.heavy
def test_a_training_comparison_runs_and_compares_losses(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(12))
    done = run(
        "speed.training",
        *("--data", str(data), "--models", "tiny", "--batches", "2", "--rounds", "1"),
        *("--no-memory", "--out", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [case["order"] for case in record["cases"]] == ["random", "grouped"]
    raw = record["cases"][0]["raw"]
    assert raw.keys() == {"plaudit", "trl", "padded"}
    # One step to warm up, then four steps of two pairs make a round of eight.
    assert [len(steps) for steps in raw["trl"]["losses"]] == [1, 4]
    np.testing.assert_allclose(raw["plaudit"]["losses"][1], raw["trl"]["losses"][1], atol=1e-4)
    assert len(set(raw["plaudit"]["losses"][1])) == 4
    assert (tmp_path / "out" / "pairs.png").is_file()


@pytest.mark.heavy
def test_the_data_path_reads_and_encodes_every_row(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(12))
    done = run(
        "speed.data_path",
        *("--data", str(data), "--sizes", "30", "--rounds", "1", "--out", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "out" / "results.json").read_text())["cases"]
    assert case["rows"] == 30
    assert case["new"][0]["rows_per_second"] > 0


def test_losses_that_differ_stop_the_comparison() -> None:
    training: Any = importlib.import_module("benchmarks.speed.training")
    taken = {"plaudit": {"losses": [[0.7]]}, "trl": {"losses": [[0.7002]]}}
    with pytest.raises(SystemExit, match="must agree"):
        training.refuse_other_losses(taken, 0)


def test_grouped_batches_are_of_similar_length() -> None:
    training: Any = importlib.import_module("benchmarks.speed.training")
    lengths = np.random.default_rng(0).integers(10, 900, 640).tolist()
    batches = training.grouped_batches(lengths, 8, 5, 0)
    assert [len(steps) for steps in batches.rounds] == [1, 1, 1, 1, 1, 1]
    longest = [max(lengths[i] for i in steps[0]) for steps in batches.rounds[1:]]
    spread = [longest[r] - min(lengths[i] for i in batches.rounds[1 + r][0]) for r in range(5)]
    assert max(spread) < 100 < max(longest) - min(longest)


def test_attended_counts_what_the_attention_mask_lets_through() -> None:
    flops: Any = importlib.import_module("benchmarks.common.flops")

    def ids(count: int) -> np.ndarray[Any, Any]:
        return np.zeros(count, np.int32)

    tree = TokenTree(index=0, prefix=ids(5), branches=(ids(3), ids(1)))
    owner = np.array([0] * 5 + [1] * 3 + [2])
    order = np.arange(9)
    sees = (order[:, None] >= order) & ((owner[:, None] == owner) | (owner == 0))
    assert flops.attended(tree) == int(sees.sum())
