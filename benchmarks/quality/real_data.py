"""Train on real preference sets, evaluate on held-out prompts, write the table of docs/results.md.

    python -m benchmarks.quality.real_data DATA_DIR [--out DIR] [--base embedded]

``DATA_DIR`` holds the preference files (JSON lines, gzip). Every set is split by prompt group: a
fifth chooses the checkpoint, another fifth is scored once at the end. Runs that exist are not
repeated, so the command can be stopped and called again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from plaudit.evaluation.schema import json_safe
from plaudit.storage.atomic import write_json, write_text
from plaudit.training.run import train


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run: a file, the share of it that is read, and whether LoRA or everything trains."""

    data: str
    method: str
    weight: float = 1.0
    epochs: int = 2


CASES = (
    Case(data="hh_harmless", method="lora"),
    Case(data="gsm8k_openai", method="lora", weight=0.5),
    Case(data="ukpconvarg1", method="lora", weight=0.2),
    Case(data="hh_harmless", method="full"),
    Case(data="wmt_human", method="lora", weight=0.1),
)
RATES = {"lora": 5e-4, "full": 1e-4}


def recipe_of(case: Case, data_dir: Path, base: str) -> dict[str, Any]:
    source = {"path": str(data_dir / f"{case.data}.jsonl.gz"), "weight": case.weight}
    return {
        "model": {"base": base},
        "lora": {"r": 16, "lora_alpha": 32} if case.method == "lora" else None,
        "data": {"train": [source], "eval_fraction": 0.2, "test_fraction": 0.2, "seed": 42},
        "tokens": {"max_length": 1024},
        # The sets' margins are quality points of their judges, not units of reward.
        "loss": {"margin": "ignore"},
        "train": {
            "learning_rate": RATES[case.method],
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "num_train_epochs": case.epochs,
            "per_device_train_batch_size": 16,
            "eval_steps": 0.25,
            "logging_steps": 5,
            "seed": 42,
        },
    }


def row(case: Case, metrics: dict[str, Any]) -> str:
    test = metrics["test"]

    def cell(block: dict[str, Any]) -> str:
        low, high = block["accuracy_ci95"]
        return f"{block['accuracy']:.3f} [{low:.3f}, {high:.3f}]"

    longer, words = (test["baselines"][name] for name in ("longer", "bag_of_words"))
    used = metrics["data"]["splits"]
    reasons = metrics["data"]["dropped"]
    dropped = sum(count for reason, count in reasons.items() if reason != "not_sampled")
    return (
        f"| {case.data} | {case.method} | {used['train']['used']:,} / {used['eval']['used']:,} / "
        f"{used['test']['used']:,} | {dropped:,} | {cell(test)} | {cell(longer)} | {cell(words)} | "
        f"{test['loss']:.3f} | {test['nll_calibrated']:.3f} | {metrics['best']['step']} of "
        f"{metrics['train']['steps']} |"
    )


HEADINGS = (
    "data set",
    "method",
    "pairs: train / eval / test",
    "skipped",
    "test accuracy (95% CI)",
    "baseline: longer",
    "baseline: bag of words",
    "log loss",
    "log loss, calibrated",
    "best step",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real_data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/real_data"))
    parser.add_argument("--base", default="embedded")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    lines = ["| " + " | ".join(HEADINGS) + " |", "| " + " | ".join(["---"] * len(HEADINGS)) + " |"]
    for case in CASES:
        name = f"{case.data}-{case.method}"
        folder = arguments.runs / name
        console.rule(name)
        if (folder / "metrics.json").is_file():
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        else:
            recipe = recipe_of(case, arguments.data_dir, arguments.base)
            run = train(recipe, folder, resume=folder.is_dir(), console=console)
            metrics = json_safe(run.metrics)
        # Curves and per-step logs stay in the run; the measured numbers are kept here.
        kept = {key: metrics[key] for key in ("run", "data", "train", "test", "best", "overfit")}
        kept["test"] = {k: v for k, v in kept["test"].items() if k != "curves"}
        kept["data"] = {k: v for k, v in kept["data"].items() if k != "sources"}
        write_json(arguments.out / f"{name}.json", kept | {"environment": metrics["environment"]})
        lines.append(row(case, metrics))
        write_text(arguments.out / "table.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
