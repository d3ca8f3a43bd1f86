"""Regression check: exit codes follow a paired test, and nothing but a significant loss fails."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from pydantic import TypeAdapter

from plaudit.errors import DataError
from plaudit.evaluation.compare import Scored
from plaudit.evaluation.regression import (
    RegressionOptions,
    check_regression,
    parse_metrics,
)
from plaudit.evaluation.schema import RegressionCheck
from tests.evaluation.test_compare import noisy
from tests.tables import table_of_deltas


def checked(model: np.ndarray, baseline: np.ndarray, **options: object) -> RegressionCheck:
    result = check_regression(
        Scored(name="model", table=table_of_deltas(model)),
        Scored(name="baseline", table=table_of_deltas(baseline)),
        RegressionOptions(**options),  # type: ignore[arg-type]
    )
    stored = json.dumps(asdict(result), allow_nan=False)
    assert TypeAdapter(RegressionCheck).validate_json(stored) == result
    return result


def test_a_worse_model_fails_in_both_metrics() -> None:
    good = noisy(0, 0.8)
    result = checked(good - 0.7, good)
    assert not result.passed
    assert all(entry.worse for entry in result.metrics.values())
    assert result.sentence.startswith(
        "Regression check FAILED: significantly worse accuracy and log loss than baseline on 400"
    )
    accuracy, loss = result.metrics["accuracy"], result.metrics["nll"]
    assert (
        f"accuracy {accuracy.model:.3f} (baseline {accuracy.baseline:.3f}, Δ"
        f" {accuracy.difference:+.3f}, corrected"
    ) in result.sentence
    assert f"log loss {loss.model:.4f} (baseline {loss.baseline:.4f}, " in result.sentence


def test_an_equal_and_a_better_model_pass() -> None:
    good = noisy(0, 0.8)
    assert checked(good, good).passed
    better = checked(good + 0.7, good)
    assert better.passed
    assert better.metrics["accuracy"].p_holm < 0.05
    assert "not significantly worse" in better.sentence


def test_over_confidence_fails_in_log_loss_alone_and_the_metric_can_be_chosen() -> None:
    calm = noisy(3, 0.4)
    result = checked(9 * calm, calm)
    assert result.metrics["nll"].worse
    assert not result.metrics["accuracy"].worse
    assert not result.passed
    assert checked(9 * calm, calm, metrics=("accuracy",)).passed


def test_metric_names() -> None:
    assert parse_metrics(()) == ("accuracy", "nll")
    assert parse_metrics(["nll"]) == ("nll",)
    with pytest.raises(DataError, match="unknown metric 'f1'; expected one of"):
        parse_metrics(["f1"])
