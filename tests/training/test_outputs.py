"""Runs with several outputs: what each learns, the gate, and where heads of one reward part."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from plaudit.errors import DataError, RecipeError
from plaudit.evaluation.schema import RunMetrics
from plaudit.reward_model import RewardModel, load
from plaudit.training.run import train
from plaudit.types import FloatArray, TokenTree
from tests.conftest import SENTENCE, recipe_of, write_jsonl

pytestmark = pytest.mark.heavy

TRUE = ("wrong", "maybe", "right")
KIND = ("rude", "plain", "kind")
"""The last two words of a response say how true and how kind it is."""
NAMED: dict[str, Any] = {"kind": "mse", "outputs": ["true", "kind"]}


def rated_pairs(count: int, *, missing: float = 0.2, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs ordered by 2 * true - kind; a share of the attributes' numbers is missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        true, kind = rng.integers(0, 3, 2), rng.integers(0, 3, 2)
        worth = 2 * true - kind
        if worth[0] == worth[1]:
            continue
        order = np.argsort(-worth)
        said = [
            f"{' '.join(rng.choice(SENTENCE.split(), 3))} {TRUE[true[k]]} {KIND[kind[k]]}"
            for k in order
        ]
        holes = rng.random((2, 2)) < missing
        rows.append(
            {
                "prompt": f"{SENTENCE[:30]} {number}",
                "chosen": said[0],
                "rejected": said[1],
                "attributes": {
                    name: [
                        None if hole else int(value[k]) for k, hole in zip(order, gone, strict=True)
                    ]
                    for name, value, gone in (("true", true, holes[0]), ("kind", kind, holes[1]))
                },
            }
        )
    return rows


def run(
    base: Path, data: Path, out: Path, *, loss: dict[str, Any], **options: Any
) -> tuple[Path, RunMetrics]:
    recipe = recipe_of(base, data, **{"num_train_epochs": 6, **options})
    recipe["loss"] = loss
    recipe["evaluate"] = {"perturbation_tests": 0, "baselines": []}
    recipe["report"] = {"html": False, "plots": False}
    done = train(recipe, out)
    assert done.metrics is not None
    return done.folder, done.metrics


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "rated.jsonl", rated_pairs(160))


@pytest.fixture(scope="module")
def named(
    tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunMetrics]:
    out = tmp_path_factory.mktemp("runs") / "named"
    return run(tiny_base, data, out, loss={**NAMED, "gate": "learned"})


def outputs_of(model: RewardModel, texts: list[str]) -> FloatArray:
    prompt = f"{SENTENCE[:30]} 7"
    (tree,) = model.encode([model.comparison(prompt, texts)])
    assert isinstance(tree, TokenTree)
    return model.output_trees([tree])[0]


EVERY = [(true, kind) for true in range(3) for kind in range(3)]
SAID = [f"so it is {TRUE[true]} {KIND[kind]}" for true, kind in EVERY]


def test_each_output_learns_its_own_attribute(named: tuple[Path, RunMetrics]) -> None:
    model = load(named[0])
    assert model.metadata.outputs is not None
    assert model.metadata.outputs.names == ("true", "kind")
    found_NO = outputs_of(model, SAID)
    labels_NO = np.array(EVERY)
    correlation = np.corrcoef(found_NO.T, labels_NO.T)[:2, 2:]
    assert correlation[0, 0] > 0.9
    assert correlation[1, 1] > 0.9
    assert abs(correlation[0, 1]) < 0.4
    assert abs(correlation[1, 0]) < 0.4


def test_a_learned_gate_weighs_what_orders_the_rows(named: tuple[Path, RunMetrics]) -> None:
    folder, metrics = named
    outputs = load(folder).metadata.outputs
    assert outputs is not None
    true, kind = outputs.weights
    assert true > 0.5 > 0.0 > kind
    assert metrics.eval is not None
    assert metrics.eval.accuracy is not None
    assert metrics.eval.accuracy > 0.85
    # The best checkpoint's weights came back with it.
    assert metrics.best is not None
    best = folder / "checkpoints" / f"checkpoint-{metrics.best.step}" / "plaudit.json"
    assert json.loads(best.read_text())["outputs"]["weights"] == [true, kind]


def test_a_stopped_run_ends_as_it_would_have(
    named: tuple[Path, RunMetrics], tmp_path: Path
) -> None:
    folder, metrics = named
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    last = max((again / "checkpoints").iterdir(), key=lambda one: int(one.name.split("-")[1]))
    shutil.rmtree(last)
    for name in ("metrics.json", "adapter_model.safetensors", "plaudit.json", "training.json"):
        (again / name).unlink(missing_ok=True)
    resumed = train(again, again, resume=True).metrics
    assert resumed is not None
    assert resumed.eval == metrics.eval
    assert resumed.training_curve == metrics.training_curve
    weights = "adapter_model.safetensors"
    assert (again / weights).read_bytes() == (folder / weights).read_bytes()
    assert load(again).metadata.outputs == load(folder).metadata.outputs


def test_attributes_may_teach_by_their_order_alone(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    loss = {"outputs": ["true", "kind"], "gate": {"true": 2.0, "kind": -1.0}}
    folder, metrics = run(tiny_base, data, tmp_path / "run", loss=loss, learning_rate=1e-2)
    found_NO = outputs_of(load(folder), SAID)
    correlation = np.corrcoef(found_NO.T, np.array(EVERY).T)[:2, 2:]
    assert min(correlation[0, 0], correlation[1, 1]) > 0.8
    assert max(abs(correlation[0, 1]), abs(correlation[1, 0])) < 0.4
    assert metrics.eval is not None
    assert metrics.eval.accuracy is not None
    assert metrics.eval.accuracy > 0.8


def test_ratings_alone_are_learned_without_any_order(tiny_base: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen"], "attributes": labels}
        for row in rated_pairs(160, missing=0.0)
        if (labels := {name: one[0] for name, one in row["attributes"].items()})
    ]
    data = write_jsonl(tmp_path / "single.jsonl", rows)
    folder, metrics = run(tiny_base, data, tmp_path / "run", loss=NAMED)
    assert metrics.data.used == len(rows)
    outputs = load(folder).metadata.outputs
    assert outputs is not None
    # They begin at the means of their labels, most of which train.
    means = np.mean([[row["attributes"][name] for name in ("true", "kind")] for row in rows], 0)
    assert outputs.offsets == pytest.approx(means.tolist(), abs=0.15)
    correlation = np.corrcoef(outputs_of(load(folder), SAID).T, np.array(EVERY).T)[:2, 2:]
    assert min(correlation[0, 0], correlation[1, 1]) > 0.8
    with pytest.raises(DataError, match=r"none of the .* says which response is better"):
        run(tiny_base, data, tmp_path / "gate", loss={**NAMED, "gate": "learned"})


def test_an_output_without_a_label_is_named(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    loss = {"kind": "mse", "outputs": ["true", "helpful"]}
    with pytest.raises(DataError, match=r"loss.outputs has helpful, .*\(they have kind, true\)"):
        run(tiny_base, data, tmp_path / "run", loss=loss)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="bce needs labels from 0"):
        run(tiny_base, data, tmp_path / "run", loss={**NAMED, "kind": "bce"})
    labels = rated_pairs(40)
    for row in labels:
        for numbers in row["attributes"].values():
            numbers[:] = [None if one is None else int(one > 0) for one in numbers]
    # Missing labels are none that bce cannot take.
    good = write_jsonl(tmp_path / "good.jsonl", labels)
    loss = {**NAMED, "kind": "bce"}
    assert run(tiny_base, good, tmp_path / "good", loss=loss, max_steps=2)[0].is_dir()


def test_a_warm_start_keeps_its_outputs(
    named: tuple[Path, RunMetrics], data: Path, tmp_path: Path
) -> None:
    folder, _ = named
    with pytest.raises(RecipeError, match=r"has|outputs true, kind.*set loss.outputs to \[true"):
        run(folder, data, tmp_path / "plain", loss={})
    standing = {"max_steps": 1, "learning_rate": 0.0}
    again, _ = run(folder, data, tmp_path / "again", loss={**NAMED, "gate": "learned"}, **standing)
    assert load(again).metadata.outputs == load(folder).metadata.outputs
    kept, _ = run(folder, data, tmp_path / "kept", loss=NAMED, **standing)
    assert load(kept).metadata.outputs == load(folder).metadata.outputs
    mean, _ = run(folder, data, tmp_path / "mean", loss={**NAMED, "gate": "mean"}, **standing)
    before = load(folder).metadata.outputs
    assert before is not None
    assert load(mean).metadata.outputs == replace(before, weights=(0.5, 0.5))
    np.testing.assert_allclose(
        outputs_of(load(again), SAID), outputs_of(load(folder), SAID), atol=1e-5
    )


def test_heads_agree_on_what_they_have_seen_and_less_elsewhere(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """The spread of a reward difference is larger between words that no training row had."""
    folder, metrics = run(tiny_base, data, tmp_path / "run", loss={"heads": 5}, learning_rate=1e-2)
    assert metrics.eval is not None
    assert metrics.eval.accuracy is not None
    assert metrics.eval.accuracy > 0.8
    model = load(folder)
    outputs = model.metadata.outputs
    assert outputs is not None
    assert outputs.ensemble
    rng = np.random.default_rng(1)

    def spreads(words: list[str]) -> FloatArray:
        """Of the differences between two endings of one response."""
        found = []
        for _ in range(60):
            said = " ".join(rng.choice(words, 4))
            outputs_KO = outputs_of(
                model, [f"{said} {rng.choice(words)}", f"{said} {TRUE[2]} {KIND[1]}"]
            )
            found.append(np.std(outputs_KO[0] - outputs_KO[1], ddof=1))
        return np.array(found)

    seen = spreads([*SENTENCE.split(), TRUE[0], KIND[0], KIND[2]])
    unseen = spreads(["#%&", "8472", "xqz", "]]{{", "zzzz", "@@"])
    assert mannwhitneyu(unseen, seen, alternative="greater").pvalue < 0.01
