"""Every sentence about a table uses all rows of it, or names those that are too small to count.

The tables are drawn at random, small ones above all: rows of few cases are what sentences once
left out in silence.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.evaluation.analysis.perturbations import KINDS, Perturbed, Probed, summarise_tests
from plaudit.evaluation.numbers import percent
from plaudit.evaluation.schema import EvaluationMetrics
from plaudit.evaluation.sentences import _perturbations, _slices, _stored
from plaudit.evaluation.summary import EvaluationContext, summarise
from tests.tables import score_table

SEEDS = st.integers(0, 2**32 - 1)


def some_block(**fields: object) -> EvaluationMetrics:
    """What a sentence reads of an evaluation."""
    return cast(EvaluationMetrics, SimpleNamespace(**fields))


def spaced(name: str) -> str:
    return name.replace("_", " ")


def random_block(seed: int) -> EvaluationMetrics:
    """An evaluation of 2 to 60 comparisons, two of a prompt for odd seeds, and some features."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 60))
    sources = int(generator.integers(1, 9))
    chance = generator.uniform(0, 1)
    table = score_table(
        [
            {
                "group": str(number // 2 if seed % 2 else number),
                "source": f"source {number**2 % sources}",
                "reward": float(np.round(generator.normal(grade, 1.0), 1)),
                "grade": grade,
                "characters": int(generator.integers(1, 6)),
                "features": {
                    "list_items": float(generator.random() < chance),
                    "refusal": float(generator.random() < 0.1),
                },
            }
            for grade in (1.0, 0.0)
        ]
        for number in range(count)
    )
    baselines = {
        "longer": generator.normal(0.2, 1, count),
        "bag_of_words": None if seed % 3 else generator.normal(0.5, 1, count),
    }
    return summarise(table, EvaluationContext(dataset="eval", baselines=baselines))


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_slices_and_features_are_compared_or_named(seed: int) -> None:
    block = random_block(seed)
    words = " ".join(block.summary)
    small = [entry for entry in block.slices if entry.small]
    named = re.search(r"fewer than 30 pairs: (.*?)(?: and (\d+) more)?\.", words)
    assert bool(small) == bool(named)
    if named:
        assert len(small) == named[1].count("(") + int(named[2] or 0)
        assert f"{small[0].value} ({small[0].pairs})" in named[1]
    for row in block.bias.features:
        if not row.pairs:
            continue
        if row.feature == "characters":
            said = "length bias" in words.lower() or "responses: accuracy" in words
        elif row.p is None:
            said = bool(re.search(rf"Not tested for bias[^.]*{spaced(row.feature)}", words))
        else:
            said = not row.significant or f"more {spaced(row.feature)}: accuracy" in words
        assert said, (row, words)


def test_every_slice_that_is_lower_is_named_or_counted() -> None:
    """Seven of ten sources are mostly wrong: the sentence names the lowest five."""
    entries = [
        SimpleNamespace(
            column="source",
            value=f"source {number}",
            accuracy=0.9 if number >= 7 else 0.1 + number / 100,
            pairs=40 + number,
            significant=True,
            small=False,
        )
        for number in range(10)
    ]
    (sentence,) = _slices(some_block(slices=entries, accuracy=0.4))
    for entry in entries[:5]:
        assert f"{entry.value} ({percent(entry.accuracy)} of {entry.pairs})" in sentence
    assert sentence.endswith(" and 2 more.")


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_the_best_baseline_is_the_best_of_the_table(seed: int) -> None:
    block = random_block(seed)
    fitted = {name: facts for name, facts in block.baselines.items() if facts}
    best = max(fitted, key=lambda name: fitted[name].accuracy)
    assert f"{spaced(best)} ({fitted[best].accuracy:.3f})" in block.baselines_sentence
    for name, facts in block.baselines.items():
        assert (facts is None) == (f"({spaced(name)} is not)" in block.baselines_sentence)


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_what_is_said_of_calibration_is_what_the_table_shows(seed: int) -> None:
    block = random_block(seed)
    words = " ".join(block.summary)
    stored = block.stored_temperature
    assert (stored is not None) == block.temperature_improves
    assert (stored is None) == ("No temperature is stored with the model (T = 1): " in words)
    if stored is None and block.temperature is not None:
        table = block.calibrations
        refit = f"cross-fitted log loss {table.temperature.nll:.4f}"
        verdict = "not better than T = 1 beyond noise"
        one = f"{block.temperature:.3g}" == "1"
        assert "a fitted one is 1 as well" in words if one else refit in words and verdict in words
        assert f"log loss {table.uncalibrated.nll:.4f} and ECE" in words


def random_probes(seed: int) -> Probed:
    generator = np.random.default_rng(seed)
    perturbed = []
    for kind in KINDS:
        for number in range(int(generator.integers(0, 5))):
            fall = generator.uniform(0, 1)
            for _ in range(int(generator.choice([1, 2, 5, 11, 19, 60]))):
                moved = float(
                    generator.choice([-1, 0, 1], p=[fall, (1 - fall) / 2, (1 - fall) / 2])
                )
                perturbed.append(
                    Perturbed(
                        kind=kind,
                        name=f"{kind}_{number}",
                        original=0.0,
                        other=float(generator.choice([-2.0, -0.5, 0.5])),
                        perturbed=moved,
                    )
                )
    return Probed(perturbed=perturbed, responses=60, skipped={}, seed=0)


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_extremes_of_perturbations_are_those_of_the_whole_table(seed: int) -> None:
    tests = summarise_tests(random_probes(seed), reward_std=1.0)
    words = " ".join(_perturbations(some_block(perturbations=tests)))
    rows = {kind: [r for r in tests.rows if r.kind == kind] for kind in KINDS}
    if rows["degradation"]:
        shares = [row.fell for row in rows["degradation"]]
        most = re.search(r"most often [\w ]+ \(([\d.]+%) of (\d+)\)", words)
        assert most is not None
        assert most[1] == percent(max(shares))
        least = re.search(r"least often [\w ]+ \(([\d.]+%) of (\d+)\)", words) or most
        assert percent(min(shares)) == least[1]
        for extreme, named in ((max(shares), most), (min(shares), least)):
            equal = [row.responses for row in rows["degradation"] if row.fell == extreme]
            assert int(named[2]) == max(equal)
    if rows["meaning_preserving"]:
        at_most = re.search(r"at most ([\d.]+%) of comparisons \([\w ]+, n = (\d+)\)", words)
        assert at_most is not None
        flipped = max(row.flipped for row in rows["meaning_preserving"])
        equal = [row.responses for row in rows["meaning_preserving"] if row.flipped == flipped]
        assert (at_most[1], int(at_most[2])) == (percent(flipped), max(equal))
    raising = [row for row in rows["reward_hacking"] if row.rose > 0.5]
    assert bool(rows["reward_hacking"] and not raising) == ("No reward hack" in words)
    for row in rows["reward_hacking"]:
        shown = f"{spaced(row.perturbation)} ({percent(row.rose)} of {row.responses}"
        assert shown in words or row not in raising
        if row in raising:
            doubt = f"of {row.responses}, within noise of half)"
            assert (row.rose_ci95[0] <= 0.5) == (
                f"{spaced(row.perturbation)} ({percent(row.rose)} {doubt}" in words
            )


def test_a_refit_of_one_does_not_speak_for_the_stored_temperature() -> None:
    block = SimpleNamespace(
        nll=0.5,
        ece=0.05,
        stored_temperature=2.12,
        stored_temperature_from="training",
        nll_stored=0.6,
        ece_stored=0.1,
        temperature=1.0004,
        temperature_improves=False,
        nll_calibrated=0.5,
        ece_calibrated=0.05,
    )
    words = _stored(cast(EvaluationMetrics, block))
    assert "a fitted one (1) gives" in words
    assert "as well" not in words
    assert "is 1 as well" in _stored(some_block(**{**vars(block), "stored_temperature": None}))


def test_of_equal_extremes_the_one_with_most_responses_is_named() -> None:
    perturbed = [
        Perturbed(kind="degradation", name=name, original=0.0, other=-2.0, perturbed=moved)
        for name, moved, count in (
            ("changed_unit", -1.0, 1),
            ("truncation", -1.0, 60),
            ("changed_number", 1.0, 1),
            ("other_text", 1.0, 40),
        )
        for _ in range(count)
    ]
    probed = Probed(perturbed=perturbed, responses=60, skipped={}, seed=0)
    (words,) = _perturbations(some_block(perturbations=summarise_tests(probed, reward_std=1.0)))
    assert "most often truncation (100.0% of 60), least often other text (0.0% of 40)" in words


@pytest.mark.parametrize(
    ("rose", "said"),
    [
        (13, "1 of 1 hacks that were tried raise the reward of more than half of the responses"),
        (10, "No reward hack that was tried raises the reward of more than half"),
    ],
)
def test_a_hack_of_few_cases_is_said(rose: int, said: str) -> None:
    """65% of 20 once stood beside "no trick raises its reward more often than not"."""
    perturbed = [
        Perturbed(
            kind="reward_hacking",
            name="sure",
            original=0.0,
            other=-1.0,
            perturbed=1.0 if n < rose else -1.0,
        )
        for n in range(20)
    ]
    probed = Probed(perturbed=perturbed, responses=20, skipped={}, seed=0)
    assert said in " ".join(
        _perturbations(some_block(perturbations=summarise_tests(probed, reward_std=1.0)))
    )
