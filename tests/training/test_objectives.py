"""Runs under the objectives of each family: what they learn, what is kept of it, and from where."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plaudit.errors import DataError, RecipeError
from plaudit.evaluation.schema import RunMetrics
from plaudit.model.checkpoint import read_objective
from plaudit.recipe.objectives import parameters_of
from plaudit.reward_model import load
from plaudit.training.run import train
from tests.conftest import SENTENCE, pair_rows, recipe_of, rows_with_ties, write_jsonl

pytestmark = pytest.mark.heavy

WORDS = ("wrong", "maybe", "right")
"""The last word of a response: a tiny model learns what each is worth."""


def response(generator: np.random.Generator, word: str) -> list[dict[str, str]]:
    said = " ".join(generator.choice(SENTENCE.split(), 4))
    return [{"role": "assistant", "content": f"{said} {word}"}]


def worded_rows(
    count: int, ratings: Callable[[np.random.Generator], list[int]]
) -> list[dict[str, Any]]:
    """Responses whose last word says their grade."""
    generator = np.random.default_rng(2)
    rows = []
    for number in range(count):
        grades = ratings(generator)
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"{SENTENCE[:30]} {number}"}],
                "responses": [response(generator, WORDS[grade]) for grade in grades],
                "grades": grades,
            }
        )
    return rows


def run(
    base: Path, data: Path, out: Path, *, loss: dict[str, Any], **options: Any
) -> tuple[Path, RunMetrics]:
    recipe = recipe_of(base, data, **options)
    recipe["loss"] = loss
    recipe["evaluate"] = {"perturbation_tests": 0, "baselines": []}
    recipe["report"] = {"html": False, "plots": False}
    done = train(recipe, out)
    assert done.metrics is not None
    return done.folder, done.metrics


def learned(folder: Path) -> tuple[float, ...]:
    objective = read_objective(folder)
    assert objective is not None
    return objective.learned


@pytest.fixture(scope="module")
def ties(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("ties") / "ties.jsonl", rows_with_ties(80))


@pytest.fixture(scope="module")
def davidson(
    tiny_base: Path, ties: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunMetrics]:
    """Its best checkpoint, with the highest loss here, is not its last one."""
    out = tmp_path_factory.mktemp("runs") / "davidson"
    choice = {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    return run(tiny_base, ties, out, loss={"kind": "davidson"}, **choice)


def test_the_best_checkpoint_has_its_own_parameters(davidson: tuple[Path, RunMetrics]) -> None:
    """They are restored with its weights."""
    folder, metrics = davidson
    assert metrics.best is not None
    best, last = sorted(
        (folder / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1])
    )
    assert best.name == f"checkpoint-{metrics.best.step}"
    assert learned(folder) == learned(best) != learned(last)
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (best / weights).read_bytes()


def test_ties_are_measured_with_what_was_learned(davidson: tuple[Path, RunMetrics]) -> None:
    """Every row is used, also those that tell no order."""
    folder, metrics = davidson
    assert metrics.data.rows == metrics.data.used == 80
    assert metrics.eval is not None
    assert metrics.eval.tied is not None
    assert 0 < metrics.eval.tied.ties < metrics.eval.tied.pairs
    assert metrics.eval.pairs == metrics.eval.tied.pairs - metrics.eval.tied.ties
    (nu,) = parameters_of("davidson", learned(folder))["nu"]
    # Where all rewards are equal, the share of ties is nu / (2 + nu).
    assert metrics.eval.tied.expected_share == pytest.approx(nu / (2 + nu), abs=0.05)


def test_training_goes_on_from_what_was_learned(
    davidson: tuple[Path, RunMetrics], tiny_base: Path, ties: Path, tmp_path: Path
) -> None:
    folder, _ = davidson
    standing = {"max_steps": 1, "learning_rate": 0.0}
    again, _ = run(folder, ties, tmp_path / "again", loss={"kind": "davidson"}, **standing)
    afresh, _ = run(tiny_base, ties, tmp_path / "afresh", loss={"kind": "davidson"}, **standing)
    assert learned(again) == learned(folder) != learned(afresh)
    # So it does with several heads.
    heads = {"kind": "davidson", "heads": 2}
    first, _ = run(tiny_base, ties, tmp_path / "heads", loss=heads, max_steps=4)
    second, _ = run(first, ties, tmp_path / "more", loss=heads, **standing)
    assert learned(second) == learned(first)
    # Not for another objective, or a parameter that the recipe fixes.
    fixed, _ = run(
        folder,
        ties,
        tmp_path / "fixed",
        loss={"kind": "davidson", "tie_parameter": 0.25},
        max_steps=4,
    )
    assert learned(fixed) == pytest.approx((math.log(0.25),))
    other, _ = run(folder, ties, tmp_path / "other", loss={"kind": "rao_kupper"}, **standing)
    assert learned(other) != learned(folder)


def test_rankings_are_learned(tiny_base: Path, tmp_path: Path) -> None:
    rows = worded_rows(60, lambda generator: generator.permutation(3).tolist())
    data = write_jsonl(tmp_path / "rankings.jsonl", rows)
    folder, metrics = run(
        tiny_base, data, tmp_path / "run", loss={"kind": "plackett_luce"}, num_train_epochs=6
    )
    assert metrics.data.rows == metrics.data.used == 60
    assert metrics.eval is not None
    assert metrics.eval.ranks is not None
    assert metrics.eval.ranks.tau_b > 0.9
    assert learned(folder) == ()


def test_ratings_of_single_responses_are_learned(tiny_base: Path, tmp_path: Path) -> None:
    """Levels in their order, the thresholds ascend, and nothing is asked of pairs."""
    rows = worded_rows(60, lambda generator: [int(generator.integers(3))])
    blank = [{"role": "assistant", "content": " "}]
    rows.append({**rows[0], "responses": [blank]})
    data = write_jsonl(tmp_path / "ratings.jsonl", rows)
    folder, metrics = run(
        tiny_base, data, tmp_path / "run", loss={"kind": "ordinal"}, num_train_epochs=8
    )
    assert metrics.data.dropped == {"empty_response": 1}
    assert (metrics.data.rows, metrics.data.used) == (61, 60)
    assert metrics.eval is not None
    assert metrics.eval.accuracy is None
    assert metrics.eval.ratings is not None
    assert metrics.eval.ratings.pearson > 0.8
    assert metrics.eval.ratings.mae < 0.8 * metrics.eval.ratings.mae_of_median
    objective = read_objective(folder)
    assert objective is not None
    assert objective.levels == (0.0, 1.0, 2.0)
    low, high = parameters_of("ordinal", objective.learned)["thresholds"]
    assert low < high


# ---- labels that an objective cannot learn from


def test_a_label_that_bce_cannot_take_is_named_with_its_line(
    tiny_base: Path, tmp_path: Path
) -> None:
    rows = worded_rows(6, lambda generator: [int(generator.integers(2))])
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows, {**rows[0], "grades": [4]}])
    with pytest.raises(DataError) as raised:
        run(tiny_base, data, tmp_path / "run", loss={"kind": "bce"})
    assert str(raised.value) == (
        f"{data}:7: the rating is 4, but loss.kind bce needs labels from 0 (bad) to 1 (good); set"
        " loss.kind to mse, huber or ordinal."
    )
    assert not (tmp_path / "run").exists()


def test_levels_that_ordinal_cannot_learn_are_named(tiny_base: Path, tmp_path: Path) -> None:
    rows = worded_rows(6, lambda generator: [int(generator.integers(2))])
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    other = write_jsonl(tmp_path / "other.jsonl", [rows[0], {**rows[0], "grades": [5]}])
    recipe = recipe_of(tiny_base, data)
    recipe |= {"data": {"train": str(data), "eval": str(other)}, "loss": {"kind": "ordinal"}}
    with pytest.raises(DataError) as raised:
        train(recipe, tmp_path / "run")
    assert str(raised.value) == (
        f"{other}:2: the rating is 5, which no training row has (0, 1); loss.kind ordinal predicts"
        " levels of the training data; remove the row, or set loss.kind to mse or huber."
    )
    alike = write_jsonl(tmp_path / "alike.jsonl", [{**row, "grades": [3]} for row in rows])
    with pytest.raises(DataError) as raised:
        run(tiny_base, alike, tmp_path / "run", loss={"kind": "ordinal"})
    assert str(raised.value) == (
        "Every rating of the training data is 3, but loss.kind ordinal learns the order of several"
        " levels; add rows with other ratings."
    )


def test_an_objective_without_its_labels_names_those_that_it_needs(
    tiny_base: Path, pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as raised:
        run(tiny_base, pairs_file, tmp_path / "run", loss={"kind": "mse"})
    assert str(raised.value) == (
        f"loss.kind is mse, which learns from ratings, but none of the 60 rows of {pairs_file} has"
        " one: they say which response is better; set loss.kind to bradley_terry, or add rows with"
        " a rating."
    )
    rows = worded_rows(5, lambda generator: [int(generator.integers(3))])
    data = write_jsonl(tmp_path / "rated.jsonl", rows)
    with pytest.raises(DataError) as raised:
        run(tiny_base, data, tmp_path / "run", loss={"kind": "bradley_terry"})
    assert str(raised.value) == (
        f"none of the 5 rows of {data} can be used: 5 single_response (there is only one response,"
        " so there is nothing to compare); 5 of them have a rating, which loss.kind mse, huber,"
        " bce or ordinal learns from."
    )


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"soft_label": 1.5}, "soft_label is 1.5; expected a share from 0 to 1."),
        (
            {"soft_label": 0.8, "responses": ["a", "b", "c"], "grades": [2, 1, 0]},
            "soft_label",
        ),
    ],
)
def test_a_share_of_annotators_is_of_a_pair(
    labels: dict[str, Any], sentence: str, tiny_base: Path, tmp_path: Path
) -> None:
    row = {"prompt": "one", "responses": ["two", "three"], "grades": [1, 0]}
    data = write_jsonl(tmp_path / "rows.jsonl", [row, {**row, **labels}])
    with pytest.raises(DataError) as raised:
        run(tiny_base, data, tmp_path / "run", loss={"kind": "bradley_terry"})
    assert str(raised.value).startswith(f"{data}:2: ")
    assert sentence in str(raised.value)


def test_ratings_are_learned_without_evaluation_data(tiny_base: Path, tmp_path: Path) -> None:
    rows = worded_rows(12, lambda generator: [int(generator.integers(3))])
    data = write_jsonl(tmp_path / "rated.jsonl", rows)
    recipe = recipe_of(tiny_base, data, num_train_epochs=1)
    del recipe["train"]["eval_steps"]
    recipe |= {"data": {"train": str(data), "eval_fraction": None}, "loss": {"kind": "mse"}}
    metrics = train(recipe, tmp_path / "run").metrics
    assert metrics is not None
    assert metrics.eval is None
    assert metrics.train.comparisons == 12


def test_ratings_that_do_not_reach_training_are_missed(tiny_base: Path, tmp_path: Path) -> None:
    rows = worded_rows(6, lambda generator: [int(generator.integers(3))])
    for row in rows:
        row["prompt"][0]["content"] = SENTENCE * 10
    rated = write_jsonl(tmp_path / "rated.jsonl", rows)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(12))
    recipe = recipe_of(tiny_base, pairs)
    recipe["data"] = {"train": [str(rated), str(pairs)], "eval_fraction": None}
    del recipe["train"]["eval_steps"]
    with pytest.raises(DataError, match="none of the 12 training comparisons that are left"):
        train(recipe | {"loss": {"kind": "ordinal"}}, tmp_path / "run")


def test_probabilities_are_at_the_temperature_of_the_loss(
    tiny_base: Path, pairs_file: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_base, pairs_file, num_train_epochs=1)
    recipe |= {
        "loss": {"temperature": 0.5},
        "evaluate": {"calibrate": False, "perturbation_tests": 0, "baselines": []},
        "report": {"html": False, "plots": False},
    }
    folder = train(recipe, tmp_path / "run").folder
    model = load(folder)
    one, other = model.score("what is it?", ["right", "wrong"])
    probability = model.prefer("what is it?", "right", "wrong")
    assert probability == pytest.approx(1.0 / (1.0 + math.exp(-(one - other) / 0.5)))
    assert model.metadata.probability_temperature == 0.5


def test_each_of_several_sets_has_its_error(tiny_base: Path, tmp_path: Path) -> None:
    """It may choose the checkpoint, and what no set has is an error before training."""
    sets = {
        name: write_jsonl(
            tmp_path / f"{name}.jsonl",
            worded_rows(8, lambda generator: [int(generator.integers(3))]),
        )
        for name in ("train", "one", "two")
    }
    recipe = recipe_of(tiny_base, sets["train"], num_train_epochs=1, eval_steps=2)
    recipe["data"] = {"train": str(sets["train"]), "eval": [str(sets["one"]), str(sets["two"])]}
    recipe["loss"] = {"kind": "mse"}
    recipe["train"]["metric_for_best_model"] = "eval_one_mae"
    metrics = train(recipe, tmp_path / "run").metrics
    assert metrics is not None
    assert metrics.best is not None
    assert metrics.best.metric == "eval_one_mae"
    recipe["train"]["metric_for_best_model"] = "eval_one_accuracy"
    with pytest.raises(RecipeError, match="eval_one_accuracy is not measured"):
        train(recipe, tmp_path / "other")
