"""What an evaluation during training measures."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit.evaluate import metrics
from plaudit.evaluate.table import Pairs
from plaudit.train.measure import PairIndex, measure


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
    assert measured["eval_calibrated_loss"] == metrics.nll(index.deltas(reward_N))
