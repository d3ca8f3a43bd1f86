from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from plaudit.evaluation.metrics.pairwise import bradley_terry_loss
from plaudit.evaluation.schema import HistoryEntry, json_safe
from plaudit.evaluation.summary import Evaluated, EvaluationContext, judge_overfit, summarise
from plaudit.evaluation.table import pairs
from tests.tables import score_table


def make_table(count=60, datasets=("eval",), seed=0, metadata=lambda number: {}, spread=1.0):
    generator = np.random.default_rng(seed)
    return score_table(
        [
            {
                "group": str(number // 2),
                "dataset": datasets[number % len(datasets)],
                "source": "abc"[number % 3],
                "reward": spread * float(generator.normal(grade, 1.0)),
                "grade": grade,
                "margin": 0.25,
                "tokens": 20,
                "characters": int(generator.integers(0, 400)),
                "metadata": metadata(number),
            }
            for grade in (1.0, 0.0)
        ]
        for number in range(count)
    )


def summary(table, **changes):
    options: dict[str, Any] = {"dataset": "eval", "chose_checkpoint": True, "baselines": {}}
    return summarise(table, EvaluationContext(**(options | changes)))


def strict_json(record):
    """The record, after its JSON was found to have no number that JSON has not."""
    json.dumps(json_safe(record), allow_nan=False)
    return record


def test_what_is_no_number_is_none_in_the_record_too():
    entry = HistoryEntry(
        step=1,
        epoch=None,
        training_loss=None,
        validation_loss=float("nan"),
        accuracy=0.5,
        accuracy_ci95=None,
        accuracy_ci95_method=None,
    )
    block = strict_json(summary(make_table(), history=[entry]))
    assert block.history == (replace(entry, validation_loss=None),)
    assert summary(make_table()).history is None


def test_loss_honours_margins_and_nll_does_not():
    table = make_table()
    paired = pairs(table)
    block = summary(table)
    assert block.loss == pytest.approx(bradley_terry_loss(paired.delta_P, 0.25))
    assert block.nll == pytest.approx(bradley_terry_loss(paired.delta_P))
    assert block.groups == 30
    assert block.reward.chosen_mean - block.reward.rejected_mean == pytest.approx(block.margin.mean)


def test_without_pairs_numbers_are_null():
    block = strict_json(summary(score_table([])))
    for key in ("loss", "accuracy", "accuracy_ci95", "ece", "temperature", "nll_calibrated"):
        assert getattr(block, key) is None
    assert block.pairs == 0
    assert "0" in block.calibration_note


def test_constant_rewards_are_all_ties():
    block = strict_json(summary(make_table(spread=0.0)))
    assert (block.ties, block.accuracy, block.accuracy_half_ties) == (60, 0.0, 0.5)
    assert block.loss == pytest.approx(math.log1p(math.exp(0.25)))
    assert block.temperature is None
    assert sum(block.curves.reward.chosen) == 60


def test_calibration_can_be_left_out():
    block = summary(make_table(), calibrate=False)
    assert block.temperature is None
    assert block.ece_calibrated is None
    assert block.ece is not None


def test_slices_cover_every_pair_once():
    table = make_table(
        metadata=lambda n: {
            "subset": ["x", "y", None][n % 3],
            "row": n,
            "constant": 1,
            "source": n % 2,
            "list": [n % 2],
        }
    )
    slices = summary(table).slices
    columns: dict[str, int] = {}
    for entry in slices:
        columns[entry.column] = columns.get(entry.column, 0) + entry.pairs
        assert entry.accuracy_ci95[0] <= entry.accuracy <= entry.accuracy_ci95[1]
    assert columns == dict.fromkeys(("source", "subset", "metadata.source", "list"), 60)
    assert None in [entry.value for entry in slices if entry.column == "subset"]


def test_several_datasets_get_a_block_each():
    table = make_table(datasets=("one", "two"))
    blocks = summary(table).datasets
    assert {name: block.pairs for name, block in blocks.items()} == {"one": 30, "two": 30}
    mean = (blocks["one"].loss + blocks["two"].loss) / 2
    assert mean == pytest.approx(summary(table).loss)
    assert summary(make_table()).datasets == {}


def test_curves_hold_every_pair():
    curves = summary(make_table()).curves
    assert sum(curves.margin.pairs) == 60
    assert sum(curves.reward.rejected) == 60
    assert len(curves.reward.edges) == len(curves.reward.chosen) + 1
    assert sum(entry.pairs for entry in curves.length) == 60
    lows = [entry.low for entry in curves.length]
    assert lows == sorted(set(lows))
    assert all(entry.low * entry.high >= 0 for entry in curves.length)
    assert sum(entry.pairs for entry in curves.reliability) == 60


def test_no_histogram_bin_mixes_right_and_wrong():
    edges = np.array(summary(make_table()).curves.margin.edges)
    assert (edges < 0).any()
    assert (edges == 0).any()


@pytest.mark.parametrize(
    ("right", "words"), [(0.05, "is above"), (1.0, "is below"), (None, "cannot be told from")]
)
def test_the_best_baseline_is_named(right, words):
    table = make_table()
    best_P = pairs(table).delta_P.copy()
    if right is not None:
        best_P = np.where(np.arange(60) < 60 * right, 1.0, -1.0)
    baselines = {"longer": np.full(60, -1.0), "bag_of_words": best_P, "unfitted": None}
    block = summary(table, baselines=baselines)
    assert words in block.baselines_sentence
    named = f"bag of words ({block.baselines['bag_of_words'].accuracy:.3f})"
    assert named in block.baselines_sentence
    assert block.baselines["unfitted"] is None
    assert summary(table, baselines={"bag_of_words": None}).baselines_sentence is None


def test_mistakes_are_the_most_confident_one_per_prompt():
    table = make_table(count=200, seed=3)
    paired = pairs(table)
    block = summary(table)
    found = block.mistakes
    differences = [mistake.difference for mistake in found]
    assert differences == sorted(differences)
    assert differences[0] == paired.delta_P.min()
    assert all(mistake.probability > 0.5 for mistake in found)
    assert len({mistake.number // 2 for mistake in found}) == len(found) <= 30
    assert (found[0].better, found[0].worse) == (0, 1)


@pytest.mark.parametrize("repeat", [True, False])
def test_one_interval_by_prompt_where_prompts_repeat(repeat):
    """The same choice for all pairs, a slice, a baseline and a bin; the other one stays there."""
    table = make_table(count=120)
    if not repeat:
        table = replace(table, group_N=table.number_N.astype(str).astype(object))
    block = summary(table, baselines={"longer": np.ones(120)})
    kind = "bootstrap_by_prompt" if repeat else "wilson"
    assert block.accuracy_ci95_method == kind
    chosen = "accuracy_bootstrap_ci95" if repeat else "accuracy_wilson_ci95"
    other = "accuracy_wilson_ci95" if repeat else "accuracy_bootstrap_ci95"
    assert block.accuracy_ci95 == getattr(block, chosen) != getattr(block, other)
    low, high = block.accuracy_ci95
    assert f"(95% CI {100 * low:.1f}% to {100 * high:.1f}%)" in block.summary[0]
    # Two of a prompt's pairs stand in two slices by source: none repeats there.
    assert {entry.accuracy_ci95_method for entry in block.slices} == {"wilson"}
    assert block.baselines["longer"].accuracy_ci95_method == (
        "wilson_over_prompts" if repeat else "wilson"
    )
    assert block.curves.risk_coverage[-1].risk_ci95 == pytest.approx([1 - high, 1 - low], abs=0.02)


def test_a_temperature_of_other_data_is_reported_beside_a_new_one():
    table = make_table(count=400)
    delta_P = pairs(table).delta_P
    block = summary(table, stored_temperature=2.5)
    assert (block.stored_temperature, block.stored_temperature_from) == (2.5, "other_data")
    assert block.nll_stored == pytest.approx(bradley_terry_loss(delta_P / 2.5))
    assert block.calibrations.stored.nll == block.nll_stored
    assert block.nll_calibrated < block.nll_stored
    assert all(
        mistake.probability == pytest.approx(expit(-mistake.difference / 2.5))
        for mistake in block.mistakes
    )
    (sentence,) = (s for s in block.summary if "The temperature 2.5" in s)
    assert f"gives log loss {block.nll_stored:.4f}" in sentence
    assert f"cross-fitted log loss {block.nll_calibrated:.4f}" in sentence
    none = summary(table, stored_temperature=1.0)
    assert none.stored_temperature is None
    assert none.calibrations.stored is None
    assert none.nll_stored == none.nll


def test_a_temperature_of_these_data_is_judged_without_its_own_pairs():
    block = summary(make_table(count=400, spread=4.0))
    assert block.stored_temperature == block.temperature > 2
    assert block.temperature_improves
    assert block.calibration_gain_ci95[0] > 0
    assert block.nll_stored == block.nll_calibrated < block.nll - 0.05
    few = summary(make_table(count=6))
    assert few.stored_temperature is None
    assert few.nll_stored == few.nll


def test_risk_falls_with_coverage_and_ends_at_the_error():
    block = summary(make_table(count=400))
    curve = block.curves.risk_coverage
    assert curve[-1].risk == pytest.approx(1 - block.accuracy_half_ties)
    assert curve[0].risk < curve[-1].risk
    assert block.aurc_best_possible < block.aurc < 1 - block.accuracy


def test_the_summary_is_sentences_of_recorded_numbers():
    block = summary(make_table(count=400))
    assert block.summary[0].startswith(f"It ranks {100 * block.accuracy:.1f}% of 400 pairs")
    assert all(sentence.endswith(".") for sentence in block.summary)
    assert summary(score_table([])).summary == (
        "There is no pair with a known order, so nothing can be said of accuracy.",
    )


def test_json_safe():
    found = json_safe({"a": np.float64("nan"), 1: (np.int64(2), math.inf), "c": np.array([1.5])})
    assert found == {"a": None, "1": [2, None], "c": [1.5]}


def judged(best_delta_P, last_delta_P, *, best_step=10, last_step=20, evaluations=2):
    pairs_seen = len(best_delta_P)
    return judge_overfit(
        Evaluated(step=best_step, delta_P=best_delta_P),
        Evaluated(step=last_step, delta_P=last_delta_P),
        kept_step=best_step,
        margin_P=np.zeros(pairs_seen),
        group_P=np.arange(pairs_seen) // 2,
        evaluations=evaluations,
    )


DELTA = np.random.default_rng(8).normal(0.6, 1.0, size=400)


def test_overconfidence_is_called_overfit():
    found = judged(DELTA, DELTA * 4)
    assert found.verdict == "overfit"
    low, high = found.loss_rise_ci95
    assert 0 < low < found.loss_rise < high
    rise = bradley_terry_loss(DELTA * 4) - bradley_terry_loss(DELTA)
    assert found.loss_rise == pytest.approx(rise)
    assert found.sentence.startswith("Overfit: validation loss rose from ")
    assert "at step 10 (kept)" in found.sentence
    assert "accuracy did not change beyond noise" in found.sentence


def test_a_rise_within_noise_is_said_to_be_one():
    shaken = DELTA + np.random.default_rng(9).normal(0, 0.05, size=400)
    found = judged(DELTA, shaken)
    assert found.verdict == "within_noise"
    assert found.loss_rise_ci95[0] < 0 < found.loss_rise_ci95[1]
    assert found.sentence.startswith("No overfitting beyond noise: ")


def test_the_last_evaluation_being_best_is_no_overfit():
    found = judged(DELTA, DELTA, best_step=20)
    assert found.verdict == "no_overfit"
    assert found.sentence == "No overfitting seen: the last evaluation was the best."


def test_a_fall_after_the_kept_step_is_no_overfit():
    found = judged(DELTA - 1, DELTA)
    assert found.verdict == "no_overfit"
    assert "loss fell from" in found.sentence
    assert "accuracy rose" in found.sentence


def test_one_evaluation_judges_nothing():
    found = judged(DELTA, DELTA, best_step=20, evaluations=1)
    assert found.verdict == "single_evaluation"
    assert strict_json(found) == found


def test_one_group_has_no_interval_and_no_verdict():
    found = judge_overfit(
        Evaluated(step=1, delta_P=np.ones(3)),
        Evaluated(step=2, delta_P=-np.ones(3)),
        kept_step=1,
        margin_P=np.zeros(3),
        group_P=np.zeros(3, dtype=np.int64),
        evaluations=2,
    )
    assert found.verdict == "within_noise"
    assert found.loss_rise_ci95 is None
