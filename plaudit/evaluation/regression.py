"""Regression check: is a model significantly worse than a baseline model on the same pairs?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plaudit.errors import DataError
from plaudit.evaluation.compare import METRICS, Metric, Scored, align, p_value, paired_test
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.pairwise import ALPHA, holm
from plaudit.evaluation.schema import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionOptions:
    """Metrics that must not get worse, and the significance level of the test."""

    metrics: tuple[Metric, ...] = ("accuracy", "nll")
    alpha: float = ALPHA


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionTest:
    """One metric: ``difference = model - baseline``, and its paired test.

    ``p_holm`` is corrected for all tested metrics; ``worse`` says that the model is worse with
    ``p_holm`` below alpha.
    """

    model: float
    baseline: float
    difference: float
    difference_ci95: Interval | None
    p: float | None
    test: str
    p_holm: float | None
    worse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionCheck:
    """The verdict against ``baseline``: ``passed`` where no metric is significantly worse.

    ``unmatched`` counts comparisons that only one of the two scored.
    """

    baseline: str
    alpha: float
    pairs: int
    unmatched: int
    metrics: Mapping[Metric, RegressionTest]
    passed: bool
    sentence: str


def parse_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Names of metrics; without any, all.

    Raises:
        DataError: there is no such metric.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise DataError(
            f"there is no metric {unknown[0]!r} for a regression check; expected one of "
            f"{', '.join(METRICS)}."
        )
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
    group_P = aligned.paired.group_P
    values = {metric: aligned.values(metric) for metric in options.metrics}
    tests = {m: paired_test(m, own_P, other_P, group_P) for m, (own_P, other_P) in values.items()}
    corrected = holm([test.p for test in tests.values()])
    metrics: dict[Metric, RegressionTest] = {}
    for (metric, test), p_holm in zip(tests.items(), corrected, strict=True):
        own_P, other_P = values[metric]
        (interval,) = pairwise.bootstrap_means((own_P - other_P)[None, :], group_P, seed=seed)
        difference = test.difference.mean
        lower_is_worse = metric == "accuracy"
        metrics[metric] = RegressionTest(
            model=float(own_P.mean()),
            baseline=float(other_P.mean()),
            difference=difference,
            difference_ci95=interval,
            p=test.p,
            test=test.name,
            p_holm=p_holm,
            worse=bool(
                p_holm is not None
                and p_holm < options.alpha
                and (difference < 0 if lower_is_worse else difference > 0)
            ),
        )
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
        f"{METRICS[metric]} {test.model:.4f} (baseline {test.baseline:.4f}, "
        f"{test.difference:+.4f}, corrected {p_value(test.p_holm)})"
        for metric, test in metrics.items()
    ]
    worse = [METRICS[metric] for metric, test in metrics.items() if test.worse]
    verdict = (
        f"FAILED: significantly worse {' and '.join(worse)}"
        if worse
        else "passed: not significantly worse"
    )
    return f"Regression check {verdict} than {baseline} on {pairs:,} pairs; {'; '.join(parts)}."
