"""``--dtype``: the precision that scored is the one recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from plaudit.cli.main import main
from tests.conftest import pair_rows, plaudit, write_jsonl

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("dtype") / "pairs.jsonl", pair_rows(12, seed=5))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A command in this process; what it wrote to stdout."""

    def call(*arguments: object, status: Sequence[int] = (0,)) -> str:
        found = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert found in status, shown.err
        return shown.out

    return call


@pytest.mark.parametrize("command", ["score", "best-of"])
def test_rewards_of_a_half_precision_body_lie_near_those_of_fp32(
    command: str, finished_run: Path, data: Path, run: Callable[..., str]
) -> None:
    whole, half = (
        [json.loads(line)["rewards"] for line in out.splitlines()]
        for out in (
            run(command, finished_run, data, "--dtype", dtype) for dtype in ("float32", "bfloat16")
        )
    )
    assert len(whole) == 12
    assert half != whole
    for row, near in zip(whole, half, strict=True):
        assert near == pytest.approx(row, abs=0.05)


def test_an_evaluation_records_its_dtype(finished_run: Path, data: Path) -> None:
    """As a user's processes."""
    found = {}
    for dtype, options in {"float32": (), "bfloat16": ("--dtype", "bfloat16")}.items():
        done = plaudit("eval", finished_run, data, *options, "--json")
        assert done.returncode == 0, done.stderr
        found[dtype] = json.loads(done.stdout)
        assert found[dtype]["environment"]["dtype"] == dtype
    whole, half = (found[dtype]["eval"]["nll"] for dtype in ("float32", "bfloat16"))
    assert half != whole
    assert half == pytest.approx(whole, abs=0.05)


def test_a_comparison_records_its_dtype(
    finished_run: Path, data: Path, run: Callable[..., str]
) -> None:
    checkpoint = next((finished_run / "checkpoints").iterdir())
    losses = []
    for dtype in ("float32", "bfloat16"):
        out = run("compare", finished_run, checkpoint, data, "--dtype", dtype, "--json")
        result = json.loads(out)
        names = [model["name"] for model in result["models"]]
        assert result["data"]["dtypes"] == dict.fromkeys(names, dtype)
        losses.append([model["nll"] for model in result["models"]])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_a_calibration_says_its_dtype(
    finished_run: Path, data: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    losses = []
    for dtype, options in {"float32": (), "bfloat16": ("--dtype", "bfloat16")}.items():
        folder = tmp_path / dtype
        shutil.copytree(finished_run, folder)
        result = json.loads(run("calibrate", folder, data, *options, "--json", status=(0, 1)))
        assert result["dtype"] == dtype
        losses.append(result["before"]["log_loss"])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_another_name_is_a_usage_error(finished_run: Path, data: Path) -> None:
    done = plaudit("eval", finished_run, data, "--dtype", "bf16")
    assert done.returncode == 2
    assert "bfloat16" in done.stderr
