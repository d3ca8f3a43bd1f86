"""The gate: exit codes follow a paired test, and nothing but a significant loss fails."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from plaudit.errors import DataError
from plaudit.evaluation.compare import Scored
from plaudit.evaluation.regression import Gate, judge, parse_metrics
from tests.evaluation.test_compare import noisy, table_of


def gated(model: np.ndarray, baseline: np.ndarray, **options: object) -> dict:
    block = judge(
        Scored(name="model", table=table_of(model)),
        Scored(name="baseline", table=table_of(baseline)),
        Gate(**options),  # type: ignore[arg-type]
    )
    json.dumps(block, allow_nan=False)
    return block


def test_a_worse_model_fails_in_both_metrics() -> None:
    good = noisy(0, 0.8)
    block = gated(good - 0.7, good)
    assert not block["passed"]
    assert all(entry["worse"] for entry in block["metrics"].values())
    assert block["sentence"].startswith(
        "gate FAILED: significantly worse accuracy and log loss than baseline on 400 pairs"
    )


def test_an_equal_and_a_better_model_pass() -> None:
    good = noisy(0, 0.8)
    assert gated(good, good)["passed"]
    better = gated(good + 0.7, good)
    assert better["passed"]
    assert better["metrics"]["accuracy"]["p_holm"] < 0.05
    assert "not significantly worse" in better["sentence"]


def test_over_confidence_fails_in_log_loss_alone_and_the_metric_can_be_chosen() -> None:
    calm = noisy(3, 0.4)
    block = gated(9 * calm, calm)
    assert block["metrics"]["nll"]["worse"]
    assert not block["metrics"]["accuracy"]["worse"]
    assert not block["passed"]
    assert gated(9 * calm, calm, metrics=("accuracy",))["passed"]


def test_the_p_value_is_scipys_and_the_level_decides() -> None:
    model, baseline = noisy(5, 0.5, 60), noisy(6, 0.6, 60)
    expected = stats.ttest_rel(np.logaddexp(0, -model), np.logaddexp(0, -baseline)).pvalue
    block = gated(model, baseline, metrics=("nll",))
    assert block["metrics"]["nll"]["p_holm"] == pytest.approx(expected, rel=1e-9)
    worse = block["metrics"]["nll"]["difference"] > 0
    for level in (expected * 1.01, expected * 0.99):
        assert gated(model, baseline, metrics=("nll",), level=level)["passed"] == (
            not (worse and expected < level)
        )


def test_metric_names() -> None:
    assert parse_metrics(()) == ("accuracy", "nll")
    assert parse_metrics(["nll"]) == ("nll",)
    with pytest.raises(DataError, match="no metric 'f1' to gate on; expected one of accuracy, nll"):
        parse_metrics(["f1"])
