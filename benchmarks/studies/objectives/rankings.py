"""Plackett-Luce, all pairs and ListNet on rankings of K = 4 and 8 responses, side by side.

    python -m benchmarks.studies.objectives.rankings DATA_DIR [--out DIR]
    python -m benchmarks.studies.objectives.rankings DATA_DIR --time

``DATA_DIR`` holds ``wmt_human.jsonl.gz`` and ``ukpconvarg1.jsonl.gz``. Their pairs are made into
rankings: the human scores of translations from the margins of their pairs, and the convincingness
of an argument from the share of its comparisons that it won less the share that it lost. Every
objective trains on the same rankings from the same seeds; the checkpoint has the lowest
Bradley-Terry loss on evaluation prompts, and what is reported is of test prompts. The learning rate
of each objective is the better of two on the evaluation prompts of the first seed.

``--time`` measures seconds of training alone, the objectives in turn. Writes ``rankings.json``
after every run; runs that are recorded are not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.studies.objectives.common import (
    RESULTS,
    Record,
    console,
    difference,
    print_interval,
    read_pairs,
)
from plaudit.storage.atomic import write_text
from plaudit.training.run import train

KINDS = ("all_pairs", "plackett_luce", "listnet")
BASELINE = "all_pairs"
CELLS = {("ukpconvarg1", 4): 400, ("ukpconvarg1", 8): 240, ("wmt_human", 4): 400}
"""A set and a K, and how many rankings are used in all."""
RATES = (3e-4, 1e-3)
SEEDS = range(5)
ROUNDS = 3
TIMED = (4, 8)
MEASURES = ("tau_b", "top1", "accuracy", "log_loss", "log_loss_calibrated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run. ``rate`` is its learning rate."""

    data: str
    size: int
    kind: str
    seed: int
    rate: float


# ---- pairs to rankings


def ends(row: Mapping[str, Any]) -> tuple[str, str]:
    """The texts of the better and the worse response."""
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


def scores_by_margin(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Human scores of the responses that pairs connect, up to a constant.

    The largest connected part is kept, and nothing where two paths disagree by more than 0.02.
    """
    edges: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for row in rows:
        better, worse = ends(row)
        edges[better].append((worse, -row["margin"]))
        edges[worse].append((better, row["margin"]))
    parts: list[dict[str, float]] = []
    seen: set[str] = set()
    for start in edges:
        if start in seen:
            continue
        part, waiting = {start: 0.0}, [start]
        while waiting:
            here = waiting.pop()
            for there, step in edges[here]:
                if there not in part:
                    part[there] = part[here] + step
                    waiting.append(there)
        seen |= part.keys()
        parts.append(part)
    largest = max(parts, key=len)
    for text, score in largest.items():
        if any(abs(largest[other] - score - step) > 0.02 for other, step in edges[text]):
            return {}
    return largest


def scores_by_wins(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The share of its comparisons that a response won less the share that it lost."""
    wins: Counter[str] = Counter()
    played: Counter[str] = Counter()
    for row in rows:
        better, worse = ends(row)
        wins[better] += 1
        wins[worse] -= 1
        played.update((better, worse))
    return {text: wins[text] / played[text] for text in played}


SCORES = {"wmt_human": (scores_by_margin, 1), "ukpconvarg1": (scores_by_wins, 3)}
"""How a set's responses are scored, and how often each is put into a group."""


def rankings(data_dir: Path, name: str, size: int) -> list[dict[str, Any]]:
    """Groups of ``size`` responses to one prompt, as rows with grades; a random sample of them."""
    every = list(_every_ranking(data_dir, name, size))
    return random.Random(size).sample(every, min(len(every), CELLS[name, size]))


def _every_ranking(data_dir: Path, name: str, size: int) -> Iterator[dict[str, Any]]:
    score, rounds = SCORES[name]
    rng = random.Random(f"{name}/{size}")
    for prompt, rows in read_pairs(data_dir, name).items():
        scores = score(rows)
        texts = sorted(scores)
        for _ in range(rounds):
            rng.shuffle(texts)
            for start in range(0, len(texts) - size + 1, size):
                group = texts[start : start + size]
                grades = [scores[text] for text in group]
                if len(set(grades)) > 1:
                    yield {"prompt": json.loads(prompt), "responses": group, "grades": grades}


# ---- runs


def recipe_of(run: Run, file: Path) -> dict[str, Any]:
    return {
        "model": {"base": "embedded"},
        "lora": {"r": 16, "lora_alpha": 32},
        "data": {
            "train": str(file),
            "eval_fraction": 0.15,
            "test_fraction": 0.25,
            "seed": run.seed,
        },
        "tokens": {"max_length": 2048},
        "loss": {"kind": run.kind},
        "train": {
            "learning_rate": run.rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "eval_steps": 0.5,
            "seed": run.seed,
        },
        "evaluate": {"baselines": [], "perturbation_tests": 0},
        "report": {"html": False, "plots": False},
    }


def measured(run: Run, file: Path) -> dict[str, Any]:
    """A run's numbers on test prompts, and its lowest loss on evaluation prompts."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(recipe_of(run, file), Path(folder) / "run").metrics
    assert metrics is not None
    assert metrics.test is not None
    assert metrics.eval is not None
    test = metrics.test
    assert test.ranks is not None
    history = metrics.eval.history or ()
    return asdict(run) | {
        "tau_b": test.ranks.tau_b,
        "tau_b_ci95": test.ranks.tau_b_ci95,
        "top1": test.ranks.top1,
        "top1_by_chance": test.ranks.top1_by_chance,
        "accuracy": test.accuracy,
        "log_loss": test.nll,
        "log_loss_calibrated": test.nll_calibrated,
        "test_rankings": test.ranks.comparisons,
        "test_prompts": test.groups,
        "train_rankings": metrics.data.splits["train"].used,
        "eval_loss": min(entry.validation_loss or 0.0 for entry in history),
        "steps": metrics.train.steps,
    }


def study(data_dir: Path, record: Record) -> None:
    """Every run that is not recorded yet."""
    with tempfile.TemporaryDirectory() as folder:
        for name, size in CELLS:
            file = Path(folder) / f"{name}-{size}.jsonl"
            rows = map(json.dumps, rankings(data_dir, name, size))
            write_text(file, "\n".join(rows) + "\n")
            for kind in KINDS:
                _one_kind(record, file, name, size, kind)


def _one_kind(record: Record, file: Path, name: str, size: int, kind: str) -> None:
    def result(seed: int, rate: float) -> dict[str, Any]:
        run = Run(data=name, size=size, kind=kind, seed=seed, rate=rate)
        found = record.find(asdict(run))
        if found is None:
            found = measured(run, file)
            record.add(found)
            console.print(f"{run}: tau {found['tau_b']:.3f}, log loss {found['log_loss']:.4f}")
        return found

    best = min(RATES, key=lambda rate: result(SEEDS[0], rate)["eval_loss"])
    for seed in SEEDS:
        result(seed, best)


def time_training(data_dir: Path, record: Record) -> None:
    """Seconds of the same training steps without evaluations, the objectives in turn."""
    times = record.rest["times"] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in TIMED:
            file = Path(folder) / f"{size}.jsonl"
            rows = [json.dumps(row) for row in rankings(data_dir, "ukpconvarg1", size)][:160]
            write_text(file, "\n".join(rows) + "\n")
            for number in range(ROUNDS):
                for kind in KINDS:
                    run = Run(data="ukpconvarg1", size=size, kind=kind, seed=0, rate=1e-4)
                    recipe = recipe_of(run, file)
                    recipe["data"] = {"train": str(file), "eval_fraction": None}
                    recipe["train"] |= {"num_train_epochs": 1, "save_strategy": "no"}
                    recipe["train"].pop("eval_steps")
                    metrics = train(recipe, Path(folder) / f"{size}-{kind}-{number}").metrics
                    assert metrics is not None
                    times.append(
                        {
                            "size": size,
                            "kind": kind,
                            "round": number,
                            "seconds": metrics.train.seconds,
                            "tokens": metrics.train.tokens,
                        }
                    )
                    record.write()


# ---- the tables


def chosen(record: Record, name: str, size: int, kind: str) -> dict[int, dict[str, Any]]:
    """The runs of an objective at its better learning rate, by seed."""
    mine = [
        run for run in record.runs if (run["data"], run["size"], run["kind"]) == (name, size, kind)
    ]
    first = [run for run in mine if run["seed"] == SEEDS[0]]
    if not first:
        return {}
    rate = min(first, key=lambda run: run["eval_loss"])["rate"]
    return {run["seed"]: run for run in mine if run["rate"] == rate}


def tables(record: Record) -> str:
    """Markdown: the means over seeds, and each objective against all pairs."""
    columns = "data|K|objective|learning rate|tau-b|top-1|accuracy|log loss|calibrated"
    headings = [*columns.split("|"), "Δ tau-b (95% CI)", "Δ calibrated (95% CI)"]
    lines = [f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
    for name, size in CELLS:
        baseline = chosen(record, name, size, BASELINE)
        for kind in KINDS:
            runs = chosen(record, name, size, kind)
            if not runs:
                continue
            means = {m: statistics.fmean(run[m] for run in runs.values()) for m in MEASURES}
            cells = [
                name,
                str(size),
                f"`{kind}`",
                f"{next(iter(runs.values()))['rate']:g}",
                *(f"{means[m]:.3f}" for m in MEASURES[:3]),
                *(f"{means[m]:.4f}" for m in MEASURES[3:]),
                *(
                    "" if kind == BASELINE else print_interval(difference(runs, baseline, m))
                    for m in ("tau_b", "log_loss_calibrated")
                ),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    times = record.rest.get("times")
    if times:
        lines += [
            "",
            "| K | objective | seconds (median) | ratio to all pairs |",
            "| --- " * 4 + "|",
        ]
        for size in TIMED:
            seconds = {
                kind: statistics.median(
                    one["seconds"] for one in times if (one["size"], one["kind"]) == (size, kind)
                )
                for kind in KINDS
            }
            lines += [
                f"| {size} | `{kind}` | {seconds[kind]:.2f} |"
                f" {seconds[kind] / seconds[BASELINE]:.2f} |"
                for kind in KINDS
            ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--time", action="store_true", help="measure time and nothing else")
    arguments = parser.parse_args()
    record = Record.at(arguments.out / "rankings.json")
    if arguments.time:
        time_training(arguments.data_dir, record)
    else:
        study(arguments.data_dir, record)
    print(tables(record))


if __name__ == "__main__":
    main()
