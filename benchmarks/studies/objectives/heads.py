"""Does the spread over the heads of an ensemble say where it errs, or that a text is foreign?

    python -m benchmarks.studies.objectives.heads DATA_DIR [--out DIR]

``DATA_DIR`` holds the sets below as ``NAME.jsonl.gz``. A seed splits ``hh_harmless`` by prompt:
500 pairs train an ensemble of five heads on the embedded base, 300 others are tested. On these,
AUROC for wrong pairs of the spread of the reward difference, of the spread over the size of the
difference, and of minus that size, which one head gives. Then AUROC of the spread of single rewards
for responses of other sets, and of random characters, against the tested ones. All conversations
have at most 1,500 characters as JSON.

``--starts`` are the standard deviations of a head's first weights, in units of 1 / sqrt(width);
``default`` is what ``loss.heads`` starts from. Writes ``heads.json`` after every run; runs that are
recorded are not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import rankdata

import plaudit
from benchmarks.studies.objectives.common import RESULTS, Record, console, read_pairs
from plaudit.evaluation.metrics.uncertainty import uncertainty_scores
from plaudit.model import load as model_load
from plaudit.reward_model import RewardModel
from plaudit.storage.atomic import write_text
from plaudit.training.run import train
from plaudit.types import FloatArray, TokenTree

TRAINED, TESTED, FOREIGN = 500, 300, 200
SEEDS: Final = range(3)
STARTS: Final = ("default", "1.0")
OTHERS: Final = ("zeroeval_verified", "wmt_human", "llamafactory_dpo")
LONGEST = 1500
SIGNS: Final = "abcdefghijklmnopqrstuvwxyz#@0123456789"


def rows_of(data_dir: Path, name: str, seed: int) -> list[dict[str, Any]]:
    """One pair of each prompt, in random order."""
    rng = random.Random(f"{name}/{seed}")
    rows = [rng.choice(pairs) for _, pairs in sorted(read_pairs(data_dir, name).items())]
    rows = [
        {key: row[key] for key in ("prompt", "chosen", "rejected")}
        for row in rows
        if len(json.dumps([row["prompt"], row["chosen"], row["rejected"]])) <= LONGEST
    ]
    rng.shuffle(rows)
    return rows


def noise(count: int, seed: int) -> list[dict[str, Any]]:
    """Conversations of random words of letters and signs."""
    rng = random.Random(seed)

    def turn(role: str) -> list[dict[str, str]]:
        words = ["".join(rng.choices(SIGNS, k=6)) for _ in range(40)]
        return [{"role": role, "content": " ".join(words)}]

    return [
        {"prompt": turn("user"), "chosen": turn("assistant"), "rejected": turn("assistant")}
        for _ in range(count)
    ]


def outputs_of(model: RewardModel, rows: Sequence[dict[str, Any]]) -> FloatArray:
    """``outputs_P2H``: those of the better and the worse response of each pair that can be read."""
    compared = [model.comparison(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows]
    trees = [tree for tree in model.encode(compared) if isinstance(tree, TokenTree)]
    return np.stack(model.output_trees(trees))


def auroc(positive: FloatArray, negative: FloatArray) -> float:
    """The probability that one of ``positive`` is above one of ``negative``."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    below = ranks.sum() - len(positive) * (len(positive) + 1) / 2
    return float(below / (len(positive) * len(negative)))


def run(data_dir: Path, start: str, seed: int) -> dict[str, Any]:
    """Train one ensemble and measure it."""
    rows = rows_of(data_dir, "hh_harmless", seed)
    begin = model_load.init_head

    def widened(head: torch.nn.Linear, kind: str) -> None:
        torch.nn.init.normal_(head.weight, std=float(start) * head.in_features**-0.5)

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        write_text(data, "".join(json.dumps(row) + "\n" for row in rows[:TRAINED]))
        recipe: dict[str, Any] = {
            "model": {"base": "embedded"},
            "data": {"train": str(data), "eval_fraction": None},
            "loss": {"heads": 5},
            "train": {"num_train_epochs": 3, "learning_rate": 1e-3, "seed": seed},
            "evaluate": {"perturbation_tests": 0, "baselines": []},
            "report": {"html": False, "plots": False},
        }
        recipe["train"] |= {"save_strategy": "no", "load_best_model_at_end": False}
        if start != "default":
            model_load.init_head = widened
        try:
            train(recipe, Path(folder) / "run")
        finally:
            model_load.init_head = begin
        model = plaudit.load(Path(folder) / "run")
    tested_P2H = outputs_of(model, rows[TRAINED : TRAINED + TESTED])
    delta_PH = tested_P2H[:, 0] - tested_P2H[:, 1]
    delta_P = delta_PH.mean(axis=1)
    wrong_P = delta_P <= 0
    scores = uncertainty_scores(delta_P, delta_PH.std(axis=1, ddof=1))
    spread_N = tested_P2H.std(axis=2, ddof=1).ravel()
    foreign = {name: rows_of(data_dir, name, seed)[:FOREIGN] for name in OTHERS}
    foreign["random characters"] = noise(FOREIGN, seed)
    return {
        "start": start,
        "seed": seed,
        "pairs": len(delta_P),
        "accuracy": float((delta_P > 0).mean()),
        "errors": {
            name: auroc(score_P[wrong_P], score_P[~wrong_P]) for name, score_P in scores.items()
        },
        "foreign": {
            name: auroc(outputs_of(model, others).std(axis=2, ddof=1).ravel(), spread_N)
            for name, others in foreign.items()
        },
    }


def main() -> None:
    """Run what is not recorded yet, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--starts", nargs="+", default=list(STARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Record.at(options.out / "heads.json")
    for seed in SEEDS:
        for start in options.starts:
            if record.find({"start": start, "seed": seed}) is None:
                record.add(run(options.data_dir, start, seed))
                console.print(record.runs[-1], highlight=False)


if __name__ == "__main__":
    main()
