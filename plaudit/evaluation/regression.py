"""Regression check: is a model significantly worse than a baseline model on the same pairs?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plaudit.errors import DataError
from plaudit.evaluation.compare import DECIMALS, METRICS, Scored, align, metric_tests, p_value
from plaudit.evaluation.metrics.pairwise import ALPHA
from plaudit.evaluation.numbers import counted, signed
from plaudit.evaluation.schema import (
    Metric,
    RegressionCheck,
    RegressionTest,
    TestedDifference,
    parts,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionOptions:
    """Metrics that must not get worse, and the significance level of the test."""

    metrics: tuple[Metric, ...] = ("accuracy", "nll")
    alpha: float = ALPHA


def parse_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Names of metrics; without any, all.

    Raises:
        DataError: there is no such metric.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise DataError(f"unknown metric {unknown[0]!r}; expected one of {', '.join(METRICS)}.")
    return tuple(metric for metric in METRICS if not names or metric in names)


def check_regression(
    model: Scored, baseline: Scored, options: RegressionOptions, *, seed: int = 0
) -> RegressionCheck:
    """Test each metric of the model against the baseline's on the pairs that both scored.

    A metric fails when it is worse than the baseline's and the p-value of the paired two-sided
    test, corrected for the tested metrics (Holm, 1979), is below alpha. A model that is as good
    fails with a probability of at most half of alpha.

    Raises:
        DataError: the two have no pairs in common.
    """
    aligned = align([model, baseline])
    tests = metric_tests(
        aligned, [(metric, 0, 1) for metric in options.metrics], alpha=options.alpha, seed=seed
    )
    metrics = {
        metric: RegressionTest(
            model=test.a,
            baseline=test.b,
            **parts(test, of=TestedDifference),
            worse=test.better == "b",
        )
        for metric, test in zip(options.metrics, tests, strict=True)
    }
    name, pairs = aligned.names[1], len(aligned.paired)
    return RegressionCheck(
        baseline=name,
        alpha=options.alpha,
        pairs=pairs,
        unmatched=sum(aligned.unmatched.values()),
        metrics=metrics,
        passed=not any(test.worse for test in metrics.values()),
        sentence=_sentence(name, pairs, metrics),
    )


def _sentence(baseline: str, pairs: int, metrics: Mapping[Metric, RegressionTest]) -> str:
    parts = [
        f"{METRICS[metric]} {test.model:.{decimals}f} (baseline {test.baseline:.{decimals}f}, Δ"
        f" {signed(test.difference, decimals)}, corrected {p_value(test.p_holm)})"
        for metric, test in metrics.items()
        for decimals in [DECIMALS[metric]]
    ]
    worse = [METRICS[metric] for metric, test in metrics.items() if test.worse]
    verdict = (
        f"FAILED: significantly worse {' and '.join(worse)}"
        if worse
        else "passed: not significantly worse"
    )
    on = counted(pairs, "pair")
    return f"Regression check {verdict} than {baseline} on {on}; {'; '.join(parts)}."
