"""What best checkpoint, early stopping and calibration save: every checkpoint of one finished run.

    plaudit train reference-schedule-small --set train.save_total_limit=12 --out RUN
    python -m benchmarks.studies.reference_schedule RUN [--out DIR]

The evaluation pairs are those the run kept at each evaluation; the test pairs are scored here with
each checkpoint's weights. Writes ``results.json``, the tables of docs/reproduction.md and a plot.

Shapes: N responses of a set, P pairs among them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.metrics.calibration import best_temperature, cross_fit
from plaudit.evaluation.table import Pairs, ScoreTable, pairs, read_table
from plaudit.recipe.load import load_recipe
from plaudit.report.record import describe_environment
from plaudit.reward_model import load
from plaudit.storage.atomic import write_json, write_text
from plaudit.training.corpus import read_comparisons
from plaudit.training.trainer import load_weights
from plaudit.types import FloatArray, TokenTree

# The published run's own table (docs/reproduction.md): step, validation loss, accuracy.
REFERENCE = (
    (2000, 0.5997, 0.6922),
    (4000, 0.5836, 0.6993),
    (6000, 0.5818, 0.6985),
    (8000, 0.5936, 0.6922),
    (10000, 0.6069, 0.7026),
    (12000, 0.6337, 0.6960),
    (14000, 0.6236, 0.6976),
    (16000, 0.6329, 0.6960),
)
REFERENCE_PAIRS = 2401


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One step's rewards as pair differences, on the evaluation and on the test pairs."""

    step: int
    eval_P: FloatArray
    test_P: FloatArray


def pairs_with(table: ScoreTable, reward_N: FloatArray) -> Pairs:
    columns = {name: getattr(table, name) for name in ScoreTable.__slots__ if name != "reward_N"}
    return pairs(ScoreTable(**columns, reward_N=reward_N))


def read_checkpoints(run: Path, eval_table: ScoreTable, test_table: ScoreTable) -> list[Checkpoint]:
    """Every checkpoint of the run, in order of steps."""
    model = load(run)
    recipe = load_recipe(run / "recipe.yaml")
    (held_out,) = read_comparisons(recipe.data).test.values()
    trees = [tree for tree in model.encode(held_out) if isinstance(tree, TokenTree)]
    assert sum(len(tree.branches) for tree in trees) == len(test_table)
    found = sorted(
        (run / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    checkpoints = []
    for folder in track(found, description="scoring checkpoints"):
        step = int(folder.name.split("-")[1])
        load_weights(model.module, folder)
        rewards_N = np.concatenate(model.score_trees(trees))
        with np.load(run / "evaluations" / f"step-{step}.npz") as stored:
            kept_N = stored["reward_N"]
        checkpoints.append(
            Checkpoint(
                step=step,
                eval_P=pairs_with(eval_table, kept_N).delta_P,
                test_P=pairs_with(test_table, rewards_N).delta_P,
            )
        )
    return checkpoints


def quality(delta_P: FloatArray, group_P: np.ndarray) -> dict[str, Any]:
    """Loss, accuracy and calibration of a set, the temperature cross-fitted by prompt group."""
    calibrated = cross_fit(
        delta_P, group_P, estimator=lambda others_P, _: best_temperature(others_P)
    )
    assert calibrated.delta_P is not None
    return {
        "accuracy": pairwise.accuracy(delta_P),
        "accuracy_ci95": pairwise.wilson(int((delta_P > 0).sum()), len(delta_P)),
        "loss": pairwise.nll(delta_P),
        "ece": _ece(delta_P),
        "temperature": calibrated.temperature,
        "loss_calibrated": pairwise.nll(calibrated.delta_P),
        "ece_calibrated": _ece(calibrated.delta_P),
    }


def _ece(delta_P: FloatArray) -> float:
    """Expected calibration error in bins of equal width."""
    curve = pairwise.reliability_equal_width(
        pairwise.confidences(delta_P), pairwise.pair_credits(delta_P)
    )
    return pairwise.expected_calibration_error(curve)


def difference(a_P: FloatArray, b_P: FloatArray, group_P: np.ndarray) -> dict[str, Any]:
    """How much larger ``b_P`` is than ``a_P`` on the same pairs, judged by prompt group."""
    found = pairwise.paired_difference(a_P, b_P, group_P)
    return {"mean": found.mean, "ci95": found.interval}


def measure(checkpoints: list[Checkpoint], eval_: Pairs, test: Pairs) -> dict[str, Any]:
    """Facts of every checkpoint, and what each remedy changes on the test pairs."""
    steps = [
        {
            "step": c.step,
            "eval": quality(c.eval_P, eval_.group_P),
            "test": quality(c.test_P, test.group_P),
        }
        for c in checkpoints
    ]
    losses = [pairwise.nll(c.eval_P) for c in checkpoints]
    accuracies = [pairwise.accuracy(c.eval_P) for c in checkpoints]
    last = checkpoints[-1]
    kept = {
        "lowest_loss": checkpoints[int(np.argmin(losses))],
        "highest_accuracy": checkpoints[int(np.argmax(accuracies))],
    }
    remedies: dict[str, Any] = {}
    for name, chosen in kept.items():
        remedies[name] = {"step": chosen.step} | compare(last.test_P, chosen.test_P, test.group_P)
    for name, checkpoint in {"last": last, **kept}.items():
        # Fitted on the evaluation pairs, applied to the test pairs.
        temperature = best_temperature(checkpoint.eval_P)
        scaled_P = checkpoint.test_P / temperature
        remedies[f"{name}_calibrated"] = {
            "step": checkpoint.step,
            "temperature": temperature,
            "loss": pairwise.nll(scaled_P),
            "ece": _ece(scaled_P),
        } | compare(last.test_P, scaled_P, test.group_P)
    return {
        "steps": steps,
        "last_step": last.step,
        "against_last_on_test": remedies,
        "early_stopping": early_stopping(checkpoints, losses),
    }


def compare(last_P: FloatArray, other_P: FloatArray, group_P: np.ndarray) -> dict[str, Any]:
    """Loss and accuracy of ``other`` less those of the last checkpoint, pair by pair."""
    return {
        "loss_less_last": difference(
            pairwise.bradley_terry_losses(last_P), pairwise.bradley_terry_losses(other_P), group_P
        ),
        "accuracy_less_last": difference(
            pairwise.pair_credits(last_P), pairwise.pair_credits(other_P), group_P
        ),
    }


def early_stopping(checkpoints: list[Checkpoint], losses: list[float]) -> dict[str, Any]:
    """Where each patience would have stopped: evaluations without a lower loss, counted."""
    stops: dict[str, Any] = {}
    total = checkpoints[-1].step
    for patience in (1, 2, 3):
        best, waited = float("inf"), 0
        for checkpoint, loss in zip(checkpoints, losses, strict=True):
            best, waited = (loss, 0) if loss < best else (best, waited + 1)
            if waited == patience:
                stops[str(patience)] = {
                    "stops_at": checkpoint.step,
                    "steps_saved": total - checkpoint.step,
                    "share_saved": 1 - checkpoint.step / total,
                }
                break
    return stops


def interval(value: float, bounds: Any) -> str:
    return f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def tables(facts: Mapping[str, Any], history: list[dict[str, Any]]) -> str:
    """The markdown of docs/reproduction.md, from measured facts alone."""
    reference = {step: (loss, accuracy) for step, loss, accuracy in REFERENCE}
    training = {entry["step"]: entry["training_loss"] for entry in history}
    headings = (
        "step",
        "reference, validation loss",
        "reference, accuracy",
        "training loss",
        "validation loss",
        "accuracy",
        "ECE",
        "temperature",
        "log loss, calibrated",
    )
    lines = [
        "| " + " | ".join(headings) + " |",
        "| " + " | ".join(["---"] * len(headings)) + " |",
    ]
    for entry in facts["steps"]:
        step, own = entry["step"], entry["eval"]
        loss, accuracy = reference.get(step, (None, None))
        theirs = "| |"
        if loss is not None and accuracy is not None:
            bounds = pairwise.wilson(round(accuracy * REFERENCE_PAIRS), REFERENCE_PAIRS)
            theirs = f"{loss:.4f} | {interval(accuracy, bounds)} |"
        lines.append(
            f"| {step} | {theirs} {training[step]:.4f} | {own['loss']:.4f} | "
            f"{interval(own['accuracy'], own['accuracy_ci95'])} | {own['ece']:.3f} | "
            f"{own['temperature']:.2f} | {own['loss_calibrated']:.4f} |"
        )
    lines += [
        "",
        "| checkpoint | step | Δ accuracy | Δ log loss | ECE |",
        "| --- | --- | --- | --- | --- |",
    ]
    by_step = {entry["step"]: entry["test"] for entry in facts["steps"]}
    for name, remedy in facts["against_last_on_test"].items():
        accuracy, loss = remedy["accuracy_less_last"], remedy["loss_less_last"]
        ece = remedy.get("ece", by_step[remedy["step"]]["ece"])
        lines.append(
            f"| {name.replace('_', ' ')} | {remedy['step']} | "
            f"{interval(accuracy['mean'], accuracy['ci95'])} | "
            f"{interval(loss['mean'], loss['ci95'])} | {ece:.3f} |"
        )
    return "\n".join(lines) + "\n"


def plot(facts: Mapping[str, Any], out: Path) -> None:
    """Validation loss and accuracy by step: the reference's and this run's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    steps = [entry["step"] for entry in facts["steps"]]
    own = [entry["eval"] for entry in facts["steps"]]
    losses.plot(steps, [e["loss"] for e in own], marker="o", label="small run")
    losses.plot(
        steps, [e["loss_calibrated"] for e in own], marker="o", ls="--", label="small, calibrated"
    )
    losses.plot([r[0] for r in REFERENCE], [r[1] for r in REFERENCE], marker="s", label="reference")
    losses.set(xlabel="step", ylabel="validation loss")
    for series, label, marker in (
        (
            [(s, e["accuracy"], e["accuracy_ci95"]) for s, e in zip(steps, own, strict=True)],
            "small run",
            "o",
        ),
        (
            [
                (s, a, pairwise.wilson(round(a * REFERENCE_PAIRS), REFERENCE_PAIRS))
                for s, _, a in REFERENCE
            ],
            "reference",
            "s",
        ),
    ):
        at = [point[0] for point in series]
        value = np.array([point[1] for point in series])
        bounds = np.array([point[2] for point in series])
        accuracies.errorbar(
            at,
            value,
            yerr=np.abs(bounds - value[:, None]).T,
            marker=marker,
            capsize=3,
            label=label,
            color="C0" if label == "small run" else "C2",
        )
    losses.lines[2].set_color("C2")
    accuracies.set(xlabel="step", ylabel="accuracy, 95% interval")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reference_schedule"))
    arguments = parser.parse_args()
    recorded = json.loads((arguments.run / "metrics.json").read_text(encoding="utf-8"))
    table = read_table(arguments.run / "predictions.parquet")
    eval_table, test_table = (table.take(table.dataset_N == name) for name in ("eval", "heldout"))
    checkpoints = read_checkpoints(arguments.run, eval_table, test_table)
    facts = measure(checkpoints, pairs(eval_table), pairs(test_table))
    # The run recorded these itself; two ways to the same number.
    kept = next(e for e in facts["steps"] if e["step"] == recorded["best"]["step"])
    assert np.isclose(kept["test"]["loss"], recorded["test"]["loss"], atol=1e-6)
    assert np.isclose(kept["eval"]["loss"], recorded["eval"]["loss"], atol=1e-9)
    blocks = ("run", "data", "train", "best", "overfit")
    write_json(
        arguments.out / "results.json",
        {key: recorded[key] for key in blocks}
        | {"history": recorded["eval"]["history"], "environment": recorded["environment"]}
        | facts
        | {"measured_with": describe_environment("cpu")},
    )
    text = tables(facts, recorded["eval"]["history"])
    write_text(arguments.out / "tables.md", text)
    plot(facts, arguments.out / "curves.png")
    Console().print(text, markup=False)


if __name__ == "__main__":
    main()
