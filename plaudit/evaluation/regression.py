"""A gate for CI: is a model significantly worse than a baseline model on the same pairs?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.errors import DataError
from plaudit.evaluation.compare import LEVEL, METRICS, Metric, Scored, align, paired_test
from plaudit.evaluation.facts import json_safe
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.significance import holm


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What must not get worse, and how sure the verdict must be."""

    metrics: tuple[Metric, ...] = ("accuracy", "nll")
    level: float = LEVEL


def parse_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Names of metrics; without any, all.

    Raises:
        DataError: there is no such metric to gate on.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise DataError(
            f"there is no metric {unknown[0]!r} to gate on; expected one of {', '.join(METRICS)}."
        )
    return tuple(metric for metric in METRICS if not names or metric in names)


def judge(model: Scored, baseline: Scored, gate: Gate, *, seed: int = 0) -> dict[str, Any]:
    """The ``gate`` block of ``pairwise.json``, JSON-safe; ``passed`` is the verdict.

    A metric fails when it is worse than the baseline's and the p-value of the paired two-sided
    test, corrected for the metrics of the gate (Holm, 1979), is below the level. A model that is
    as good fails with a chance of at most half the level.

    Raises:
        DataError: the two have no pairs in common.
    """
    aligned = align([model, baseline])
    group_P = aligned.paired.group_P
    entries: dict[str, dict[str, Any]] = {}
    for metric in gate.metrics:
        model_P, baseline_P = aligned.values(metric)
        test = paired_test(metric, model_P, baseline_P, group_P)
        (interval,) = pairwise.bootstrap_means((model_P - baseline_P)[None, :], group_P, seed=seed)
        entries[metric] = {
            "model": float(model_P.mean()),
            "baseline": float(baseline_P.mean()),
            "difference": test.difference.mean,
            "difference_ci95": interval,
            "p": test.p,
            "test": test.name,
        }
    for metric, p in zip(gate.metrics, holm([e["p"] for e in entries.values()]), strict=True):
        entry = entries[metric]
        worse = entry["difference"] < 0 if metric == "accuracy" else entry["difference"] > 0
        entry["p_holm"] = p
        entry["worse"] = worse and p is not None and p < gate.level
    failed = [metric for metric in gate.metrics if entries[metric]["worse"]]
    block: dict[str, Any] = json_safe(
        {
            "baseline": baseline.name,
            "level": gate.level,
            "pairs": len(aligned.paired),
            "left_out": sum(aligned.left_out.values()),
            "metrics": entries,
            "passed": not failed,
        }
    )
    return {**block, "sentence": _sentence(block)}


def _sentence(block: dict[str, Any]) -> str:
    named = [
        (METRICS[metric], block["metrics"][metric])
        for metric in METRICS
        if metric in block["metrics"]
    ]
    parts = [
        f"{name} {entry['model']:.4f} against {entry['baseline']:.4f} "
        f"({entry['difference']:+.4f}, corrected p "
        + ("unknown)" if entry["p_holm"] is None else f"= {entry['p_holm']:.4f})")
        for name, entry in named
    ]
    verdict = "passed" if block["passed"] else "FAILED"
    worse = [name for name, entry in named if entry["worse"]]
    reason = f"significantly worse {' and '.join(worse)}" if worse else "not significantly worse"
    return (
        f"gate {verdict}: {reason} than {block['baseline']} on {block['pairs']:,} pairs; "
        f"{'; '.join(parts)}."
    )
