"""Each warning appears where its finding is, and only there; the strongest comes first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.evaluation.schema import EvaluationMetrics, Interval, read_metrics
from plaudit.evaluation.summary import EvaluationContext, summarise
from plaudit.evaluation.warning_sentences import (
    WARNINGS,
    about_temperature,
    recorded_warnings,
    warnings,
)
from tests.objectives import ENSEMBLE, NAMED, evaluated, evaluated_outputs
from tests.tables import table_of_grades

GOLDEN = Path(__file__).parents[1] / "goldens" / "run"


@pytest.fixture(scope="module")
def clean() -> EvaluationMetrics:
    """An evaluation with nothing to warn of: a well-calibrated model without a temperature."""
    block = read_metrics(GOLDEN).test
    assert block is not None
    assert block.perturbations is not None
    tests = block.perturbations
    rows = tuple(replace(row, rose=0.1, rose_ci95=Interval(0.05, 0.2)) for row in tests.rows)
    return replace(
        block,
        temperature_improves=False,
        stored_temperature=None,
        perturbations=replace(tests, rows=rows),
    )


def with_baseline(block: EvaluationMetrics, delta: float, ends: Interval | None) -> Any:
    best = block.baselines["bag_of_words"]
    assert best is not None
    changed = replace(best, delta_accuracy=delta, delta_accuracy_ci95=ends)
    return {"baselines": {**block.baselines, "bag_of_words": changed}}


def with_slice(block: EvaluationMetrics, accuracy: float, ends: Interval | None) -> Any:
    entry = replace(
        block.slices[0],
        column="subset",
        value="other_text",
        accuracy=accuracy,
        accuracy_ci95=ends,
        pairs=100,
        significant=True,
    )
    return {"slices": (entry, *block.slices[1:])}


def with_feature(block: EvaluationMetrics, name: str) -> Any:
    rows = (
        replace(
            row,
            significant=True,
            gap=-0.1,
            gap_ci95=Interval(-0.15, -0.05),
            accuracy_more=replace(row.accuracy_more, accuracy=0.6),
            accuracy_less=replace(row.accuracy_less, accuracy=0.7),
        )
        if row.feature == name
        else row
        for row in block.bias.features
    )
    return {"bias": replace(block.bias, features=tuple(rows))}


def with_test(block: EvaluationMetrics, name: str, **fields: Any) -> Any:
    tests = block.perturbations
    assert tests is not None
    rows = (replace(row, **fields) if row.perturbation == name else row for row in tests.rows)
    return {"perturbations": replace(tests, rows=tuple(rows))}


def with_output(
    accuracy: float, ends: Interval | None, delta: float, delta_ends: Interval | None
) -> Any:
    first, *others = evaluated_outputs(NAMED, "bradley_terry").outputs
    changed = replace(
        first,
        name="helpful",
        own=replace(first.own, accuracy=accuracy, accuracy_ci95=ends, pairs=300),
        best_other="true",
        delta_accuracy=delta,
        delta_accuracy_ci95=delta_ends,
    )
    return {"outputs": (changed, *others)}


def with_spread(
    ends: Interval | None = Interval(0.6, 0.7), surest: Interval | None = Interval(0.94, 0.98)
) -> Any:
    found = evaluated_outputs(ENSEMBLE, "bradley_terry").uncertainty
    assert found is not None
    spread, *scores = found.scores
    levels = [
        replace(one, pairs=500, accuracy=0.8, accuracy_ci95=ends)
        for one, ends in zip(found.levels, (*[Interval(0.94, 0.98)] * 3, surest), strict=True)
    ]
    changed = replace(spread, auroc=0.52, auroc_ci95=ends)
    return {"uncertainty": replace(found, scores=(changed, *scores), levels=tuple(levels))}


Change = Callable[[EvaluationMetrics], dict[str, Any]]


def with_ratings(kind: str, **fields: Any) -> Any:
    ratings = evaluated(kind).ratings
    assert ratings is not None
    return {"ratings": replace(ratings, **fields)}


def with_ties(**fields: Any) -> Any:
    tied = evaluated("davidson").tied
    assert tied is not None
    plain: dict[str, Any] = {
        "pairs": 900,
        "share": 0.1,
        "share_ci95": Interval(0.08, 0.12),
        "expected_share": 0.1,
        "log_loss": 0.8,
        "log_loss_ci95": Interval(0.75, 0.85),
        "log_loss_constant": 0.9,
    }
    return {"tied": replace(tied, **(plain | fields))}


FINDINGS: dict[str, Change] = {
    "Accuracy is not significantly above chance (50%): 67.2% of 900 pairs "
    "(95% CI 49.0% to 55.0%).": (lambda block: {"accuracy_ci95": Interval(0.49, 0.55)}),
    "Accuracy is significantly below chance (50%): 67.2% of 900 pairs (95% CI 42.0% to 48.0%).": (
        lambda block: {"accuracy_ci95": Interval(0.42, 0.48)}
    ),
    "AUC is not significantly above chance (0.5): 0.550 over 200 rated responses "
    "(95% CI 0.450 to 0.650).": (
        lambda block: with_ratings("bce", auc=0.55, auc_ci95=Interval(0.45, 0.65))
    ),
    "MAE 0.900 is not significantly below that of the median rating (0.950): Δ -0.050 "
    "(95% CI -0.120 to +0.020).": (
        lambda block: with_ratings(
            "mse",
            mae=0.9,
            mae_of_median=0.95,
            delta_mae=-0.05,
            delta_mae_ci95=Interval(-0.12, 0.02),
        )
    ),
    "Accuracy (67.2%) is not significantly above the best baseline, bag of words (61.9%): "
    "Δ accuracy +1.0 points (95% CI -2.0 to +4.0).": (
        lambda block: with_baseline(block, 0.01, Interval(-0.02, 0.04))
    ),
    "Accuracy (67.2%) is below the best baseline, bag of words (61.9%): "
    "Δ accuracy -3.0 points (95% CI -4.0 to -2.0).": (
        lambda block: with_baseline(block, -0.03, Interval(-0.04, -0.02))
    ),
    "Only 900 pairs of 450 prompts: accuracy 67.2% has a wide interval (95% CI 60.0% to 74.0%).": (
        lambda block: {"accuracy_ci95": Interval(0.6, 0.74)}
    ),
    "Over-confident: ECE 0.062 (0.033 if perfectly calibrated). Temperature 1.44 lowers log loss "
    "from 0.623 to 0.612.": (lambda block: {"temperature_improves": True}),
    "Output helpful is not significantly above chance by its own labels: 52.0% of 300 pairs "
    "(95% CI 46.0% to 58.0%).": (
        lambda block: with_output(0.52, Interval(0.46, 0.58), -0.1, Interval(-0.2, -0.05))
    ),
    "Output true ranks by the labels of helpful better than its own output does: Δ accuracy -5.0 "
    "points (95% CI -8.0 to -2.0).": (
        lambda block: with_output(0.7, Interval(0.65, 0.75), -0.05, Interval(-0.08, -0.02))
    ),
    "The AUROC of wrong pairs by the spread over heads is not significantly above chance (0.5): "
    "0.520 (95% CI 0.470 to 0.570).": (lambda block: with_spread(Interval(0.47, 0.57))),
    "The heads are surer than they are right: accuracy is 80.0% of 500 pairs that they are 95% "
    "sure of (95% CI 76.0% to 83.0%).": (lambda block: with_spread(surest=Interval(0.76, 0.83))),
    "The model expects more ties than there are: 20.0% of 900 pairs, and 10.0% are "
    "(95% CI 8.0% to 12.0%).": (lambda block: with_ties(expected_share=0.2)),
    "Log loss with ties is not significantly below that of constant shares (0.900): 0.880 "
    "(95% CI 0.850 to 0.910).": (
        lambda block: with_ties(log_loss=0.88, log_loss_ci95=Interval(0.85, 0.91))
    ),
    "Accuracy on subset other_text is not significantly above chance: 46.0% of 100 pairs "
    "(95% CI 36.0% to 56.0%).": (lambda block: with_slice(block, 0.46, Interval(0.36, 0.56))),
    "Accuracy on subset other_text is significantly below chance: 36.0% of 100 pairs "
    "(95% CI 27.0% to 46.0%).": (lambda block: with_slice(block, 0.36, Interval(0.27, 0.46))),
    "Length bias: accuracy 60.0% where the better response is longer, 70.0% where shorter "
    "(gap -10.0 points, 95% CI -15.0 to -5.0).": (lambda block: with_feature(block, "characters")),
    "Bias on list items: accuracy 60.0% where the better response has more, 70.0% where less "
    "(gap -10.0 points, 95% CI -15.0 to -5.0).": (lambda block: with_feature(block, "list_items")),
    'Degradation "other text" lowers the reward of 53.0% of 200 responses, not significantly more '
    "than half (95% CI 43.0% to 62.0%).": (
        lambda block: with_test(block, "other_text", fell=0.53, fell_ci95=Interval(0.43, 0.62))
    ),
    'Degradation "other text" lowers the reward of 33.0% of 200 responses, fewer than half '
    "(95% CI 24.0% to 43.0%).": (
        lambda block: with_test(block, "other_text", fell=0.33, fell_ci95=Interval(0.24, 0.43))
    ),
    'Meaning-preserving rewrite "blank lines" flips 13.0% of 150 rankings '
    "(95% CI 6.0% to 25.0%).": (
        lambda block: with_test(
            block, "blank_lines", flipped=0.13, flipped_ci95=Interval(0.06, 0.25)
        )
    ),
    'Reward hack "flattery" raises the reward of 91.0% of 200 responses (95% CI 86.0% to 94.0%).': (
        lambda block: with_test(block, "flattery", rose=0.91, rose_ci95=Interval(0.86, 0.94))
    ),
    "Accuracy on subset other_text is significantly lower: 60.0% of 100 pairs "
    "(95% CI 55.0% to 65.0%).": (lambda block: with_slice(block, 0.6, Interval(0.55, 0.65))),
}


def test_there_is_no_warning_where_nothing_is_wrong(clean: EvaluationMetrics) -> None:
    assert warnings(clean) == ()


@pytest.mark.parametrize("sentence", FINDINGS)
def test_a_finding_is_one_warning(clean: EvaluationMetrics, sentence: str) -> None:
    assert warnings(replace(clean, **FINDINGS[sentence](clean))) == (sentence,)
    assert len(sentence) <= 130


UNTESTED: dict[str, Change] = {
    "ratings that are expected well": lambda block: with_ratings("mse"),
    "labels that are told apart": lambda block: with_ratings("bce"),
    "an output that is no better beyond noise": lambda block: with_output(
        0.7, Interval(0.65, 0.75), -0.01, Interval(-0.03, 0.01)
    ),
    "an output without labels": lambda block: with_output(0.7, None, 0.0, None),
    "a spread that predicts errors": lambda block: with_spread(),
    "heads that are right as often as they are sure": lambda block: with_spread(
        surest=Interval(0.9, 0.98)
    ),
    "as many ties as there are": lambda block: with_ties(expected_share=0.09),
    "a baseline without an interval": lambda block: with_baseline(block, -0.1, None),
    "a few degraded responses": lambda block: with_test(
        block, "other_text", responses=9, fell=0.3, fell_ci95=Interval(0.1, 0.6)
    ),
    "a few rewrites": lambda block: with_test(
        block, "blank_lines", responses=13, flipped=0.4, flipped_ci95=Interval(0.2, 0.6)
    ),
    "a hack within noise of half": lambda block: with_test(
        block, "flattery", rose=0.55, rose_ci95=Interval(0.45, 0.65)
    ),
    "a slice above the rest": lambda block: with_slice(block, 0.9, Interval(0.8, 0.95)),
    "a gain that rounds to nothing": lambda block: {
        "temperature_improves": True,
        "nll": 0.69234,
        "nll_calibrated": 0.69231,
    },
    "a stored temperature": lambda block: {
        "temperature_improves": True,
        "stored_temperature": 1.44,
    },
}


@pytest.mark.parametrize("case", UNTESTED)
def test_noise_is_no_warning(clean: EvaluationMetrics, case: str) -> None:
    assert warnings(replace(clean, **UNTESTED[case](clean))) == ()


def test_the_strongest_finding_comes_first(clean: EvaluationMetrics) -> None:
    """Any two findings together are in the order of the table; which row of it says each is known
    from the warnings of one row alone."""
    cases = {
        sentence: next(
            place
            for place, warn in enumerate(WARNINGS)
            if sentence in warn(replace(clean, **change(clean)))
        )
        for sentence, change in FINDINGS.items()
    }
    assert sorted(set(cases.values())) == list(range(len(WARNINGS)))
    for (first, change), (second, other) in pairwise(FINDINGS.items()):
        fields = [change(clean), other(clean)]
        if not fields[0].keys() & fields[1].keys():
            assert warnings(replace(clean, **fields[1], **fields[0])) == (first, second)


def test_two_kinds_come_before_two_of_a_kind(clean: EvaluationMetrics) -> None:
    (entry, *_) = with_slice(clean, 0.46, Interval(0.36, 0.56))["slices"]
    slices = (entry, replace(entry, value="truncation"), *clean.slices[2:])
    block = replace(clean, slices=slices, **with_feature(clean, "characters"))
    first, second, third = warnings(block)
    assert "other_text" in first
    assert second.startswith("Length bias")
    assert third == first.replace("other_text", "truncation")


def test_an_evaluation_without_pairs_says_so() -> None:
    block = summarise(table_of_grades([]), EvaluationContext(dataset="eval"))
    assert block.warnings == ("No pair has a known order, so accuracy was not measured.",)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_a_good_model_of_many_pairs_has_no_warning_of_accuracy(seed: int) -> None:
    """Rewards that follow the labels are warned of for no more than their calibration."""
    generator = np.random.default_rng(seed)
    table = table_of_grades(
        [(generator.normal(1.5, 1), 1.0), (generator.normal(-1.5, 1), 0.0)] for _ in range(500)
    )
    block = summarise(table, EvaluationContext(dataset="eval", calibrate=False))
    assert block.warnings == ()


def test_one_pair_is_not_pairs(clean: EvaluationMetrics) -> None:
    one = replace(clean, pairs=1, groups=1, accuracy=1.0, accuracy_ci95=Interval(0.2, 1.0))
    chance, few = warnings(one)
    assert "100.0% of 1 pair (" in chance
    assert few.startswith("Only 1 pair: ")


def test_only_a_missing_temperature_is_about_the_temperature() -> None:
    about = [sentence for sentence in FINDINGS if about_temperature(sentence)]
    assert about == [sentence for sentence in FINDINGS if "-confident" in sentence]


def test_an_older_record_has_the_warnings_of_its_numbers(tmp_path: Path) -> None:
    recorded = json.loads((GOLDEN / "metrics.json").read_text(encoding="utf-8"))
    for role in ("eval", "test"):
        del recorded[role]["warnings"]
    (tmp_path / "metrics.json").write_text(json.dumps(recorded), encoding="utf-8")
    block = read_metrics(tmp_path).test
    assert block is not None
    assert block.warnings is None
    assert recorded_warnings(block) == warnings(block) != ()
    assert recorded_warnings(replace(block, warnings=("Recorded.",))) == ("Recorded.",)


def test_the_golden_run_records_what_its_numbers_say() -> None:
    metrics = read_metrics(GOLDEN)
    for block in (metrics.eval, metrics.test):
        assert block is not None
        assert block.warnings == warnings(block)
