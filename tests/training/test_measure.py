"""What an evaluation during training measures."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plaudit.errors import TrainingError
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.table import Pairs, write_rewards
from plaudit.training.measure import PairIndex, history, measure, read_evaluated


def index_of(pairs: int, group_P: np.ndarray) -> PairIndex:
    rows = np.arange(2 * pairs)
    return PairIndex(
        pairs=Pairs(
            winner_P=rows[0::2],
            loser_P=rows[1::2],
            delta_P=np.zeros(pairs),
            comparison_P=np.arange(pairs),
            group_P=group_P,
            margin_P=np.zeros(pairs),
        ),
        dataset_P=np.array(["eval"] * pairs, dtype=object),
    )


def test_calibrated_loss_does_not_change_with_confidence() -> None:
    """Rewards five times as large rank alike: the loss rises, the calibrated loss stays."""
    generator = np.random.default_rng(0)
    reward_N = generator.normal(size=800) + np.tile([0.6, 0.0], 400)
    index = index_of(400, np.arange(400) // 2)
    once, confident = (measure(index, reward_N * scale) for scale in (1.0, 5.0))
    assert confident["eval_loss"] > once["eval_loss"] + 0.1
    assert confident["eval_accuracy"] == once["eval_accuracy"]
    assert confident["eval_calibrated_loss"] == pytest.approx(once["eval_calibrated_loss"])
    assert confident["eval_calibrated_loss"] < np.log(2)


def test_one_prompt_cannot_be_calibrated() -> None:
    reward_N = np.array([1.0, 0.0, 0.5, 0.7])
    index = index_of(2, np.zeros(2, dtype=np.int64))
    measured = measure(index, reward_N)
    assert measured["eval_calibrated_loss"] == pairwise.nll(index.deltas(reward_N))


def test_a_lost_evaluation_costs_its_interval_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("plaudit"), "propagate", True)
    index = index_of(4, np.arange(4))
    steps = (2, 4, 6)
    log = [{"step": step, "epoch": 1.0, "eval_loss": 0.5, "eval_accuracy": 0.75} for step in steps]
    for step in steps:
        write_rewards(tmp_path, step, np.array([1.0, 0.0] * 3 + [0.0, 1.0]))
    whole = history(log, tmp_path, index)
    assert all(entry.accuracy_ci95 for entry in whole)
    (tmp_path / "step-2.npz").unlink()
    (tmp_path / "step-4.npz").write_bytes(b"PK")
    entries = history(log, tmp_path, index)
    first, second = (
        replace(entry, accuracy_ci95=None, accuracy_ci95_method=None) for entry in whole[:2]
    )
    assert entries == [first, second, whole[2]]
    assert [f"step-{step}.npz is" in caplog.text for step in steps] == [1, 1, 0]
    with pytest.raises(TrainingError, match=r"step-2\.npz is missing"):
        read_evaluated(tmp_path, 2, index)
