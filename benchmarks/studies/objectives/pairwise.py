"""Pairwise and regularising options against plain Bradley-Terry, one option at a time.

    python -m benchmarks.studies.objectives.pairwise DATA_DIR [--out DIR] [--tables]

``DATA_DIR`` holds the sets of ``SETS`` as ``NAME.jsonl.gz``. The pairs of a set are those whose
longer conversation has at most 600 characters. A seed parts the prompts (training 4/10,
evaluation 1/10, test 5/10) and draws a fixed number of pairs from each part, from as many prompts
as there are; every row of ``ROWS`` trains on the same pairs for the same steps and is tested on the
same pairs. All rows of a set have one learning rate, the best of three for plain Bradley-Terry on
the evaluation pairs of the first seed, which favours plain Bradley-Terry. A run has one epoch and
keeps its last weights, so evaluation pairs choose nothing else.

Writes ``pairwise.json`` after every run, seed by seed; runs that are recorded are not repeated. A
run keeps its reward differences on test pairs, from which the tests by prompt are computed.

Not in ``ROWS``:

- ``all_pairs``: on pairs it is ``bradley_terry``.
- ``rao_kupper`` and ``davidson``: these sets have no ties. Without ties the likelihood is highest
  where nothing ties, and there both are Bradley-Terry.
- ``temperature``: a reward model has no published value. It rescales the reward, whose scale is
  learned anyway.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from scipy.stats import ttest_1samp

import plaudit
from benchmarks.studies.objectives.common import (
    RESULTS,
    Record,
    console,
    difference,
    mean_interval,
    print_interval,
    read_pairs,
)
from plaudit.data.load import load_comparisons
from plaudit.data.perturb.copies import with_copy
from plaudit.evaluate_model import as_sources, score_comparisons
from plaudit.evaluation.analysis.surface import measure_length_bias
from plaudit.evaluation.metrics.calibration import cross_fit
from plaudit.evaluation.metrics.pairwise import (
    accuracy,
    bradley_terry_losses,
    clustered_p,
    holm,
    nll,
    paired_difference,
)
from plaudit.evaluation.schema import Interval
from plaudit.evaluation.table import ScoreTable, codes, pairs
from plaudit.reward_model import RewardModel
from plaudit.storage.atomic import write_text
from plaudit.training.run import train
from plaudit.types import FloatArray, Skipped

BASELINE = "bradley_terry"
ROWS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    BASELINE: {},
    # Joachims (2002): a margin of 1.
    "hinge": {"loss": {"kind": "hinge"}},
    # Szegedy et al. (2016), section 7.
    "label_smoothing": {"loss": {"label_smoothing": 0.1}},
    # Eisenstein et al. (2023); TRL's documentation of center_rewards_coefficient.
    "centering": {"loss": {"centering": 0.01}},
    # No published value: that of centering. At rewards of size 1 it adds 2% to a loss of 0.6.
    "reward_norm": {"loss": {"reward_norm": 0.01}},
    "length_residual": {"loss": {"length": "residual"}},
    # No published value: that of docs/how-to/choose-an-objective.md.
    "consistency": {"loss": {"consistency": 0.1}},
    # The factor for a new layer in Caffe's fine-tuning example (lr_mult of flickr_style).
    "head_learning_rate": {"model": {"head_learning_rate": 10.0}},
    # Half of the base's layers; Lee et al. (2019, arXiv 1911.03090) freeze up to three fourths.
    "freeze_layers": {"model": {"freeze_layers": 3}},
    # Llama 2 (Touvron et al. 2023, equation 2); only where a set has margins.
    "margin": {"loss": {"margin": "column"}},
}
"""What each row adds to the recipe. ``head_learning_rate`` is in units of the learning rate."""


class Set(NamedTuple):
    """Pairs of at most so many ``characters``, and how many are drawn."""

    characters: int
    train: int
    has_margins: bool = False


SETS: Final[Mapping[str, Set]] = {
    "hh_harmless": Set(600, 320),
    "ukpconvarg1": Set(600, 320, has_margins=True),
    "zeroeval_verified": Set(600, 240),
}
EVALUATION, TEST = 90, 500
COPIES = 100
RATES = (3e-4, 1e-3, 3e-3)
SEEDS = range(5)
MEASURES = ("accuracy", "log_loss", "log_loss_calibrated")
COPIED = (BASELINE, "consistency")
"""Rows whose rewards of rewritten copies are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run. ``rate`` is its learning rate."""

    data: str
    row: str
    seed: int
    rate: float


# ---- pairs


def drawn(by_prompt: Mapping[str, Sequence[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """``count`` pairs: the first of every prompt, then the second of every prompt, and so on."""
    turns = zip_longest(*by_prompt.values())
    rows = [row for turn in turns for row in turn if row is not None]
    if len(rows) < count:
        raise ValueError(f"{len(rows)} pairs, expected {count}")
    return rows[:count]


def split(data_dir: Path, name: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Training, evaluation and test pairs. ``prompt_number`` is a prompt's in the whole set."""
    longest, train_rows, _ = SETS[name]
    rng = random.Random(f"{name}/{seed}")
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for number, (prompt, rows) in enumerate(sorted(read_pairs(data_dir, name).items())):
        own = [row | {"prompt_number": number} for row in rows if _characters(row) <= longest]
        if own:
            by_prompt[prompt] = rng.sample(own, len(own))
    prompts = rng.sample(list(by_prompt), len(by_prompt))
    ends = [len(prompts) * tenths // 10 for tenths in (0, 4, 5, 10)]
    counts = {"train": train_rows, "eval": EVALUATION, "test": TEST}
    return {
        part: drawn({prompt: by_prompt[prompt] for prompt in prompts[start:end]}, count)
        for (part, count), start, end in zip(counts.items(), ends, ends[1:], strict=False)
    }


def _characters(row: Mapping[str, Any]) -> int:
    prompt = sum(len(turn["content"]) for turn in row["prompt"])
    return prompt + max(len(row[side][0]["content"]) for side in ("chosen", "rejected"))


# ---- runs


def recipe_of(run: Run, train_file: Path) -> dict[str, Any]:
    """The recipe of a run: full fine-tuning, one epoch, without evaluations."""
    recipe: dict[str, Any] = {
        "model": {"base": "embedded"},
        "data": {"train": str(train_file), "eval_fraction": None},
        "lora": None,
        "loss": {"margin": "ignore"},
        "train": {
            "learning_rate": run.rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "save_strategy": "no",
            "seed": run.seed,
        },
        "report": {"html": False, "plots": False},
    }
    for section, keys in ROWS[run.row].items():
        recipe[section] |= keys
    if "head_learning_rate" in recipe["model"]:
        recipe["model"]["head_learning_rate"] *= run.rate
    return recipe


def measured(run: Run, parts: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """A run's numbers on test pairs, and its loss on evaluation pairs where that chooses."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, rows in parts.items():
            write_text(folder / f"{part}.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
        trained = train(recipe_of(run, folder / "train.jsonl"), folder / "run")
        model = plaudit.load(trained.folder)
        table = score_table(model, folder / "test.jsonl")
        chooses = run.row == BASELINE and run.seed == SEEDS[0]
        evaluated = pairs(score_table(model, folder / "eval.jsonl")) if chooses else None
    assert trained.metrics is not None
    tested = pairs(table)
    assert len(tested) == TEST
    calibrated_P = cross_fit(tested.delta_P, tested.group_P).delta_P
    assert calibrated_P is not None
    length = measure_length_bias(table, tested)
    pair_mean_P = (table.reward_N[tested.winner_P] + table.reward_N[tested.loser_P]) / 2
    std = float(table.reward_N.std())
    copied = {"copy_distance": copy_distance(model, parts["test"][:COPIES]) / std}
    return {
        **asdict(run),
        "accuracy": accuracy(tested.delta_P),
        "log_loss": nll(tested.delta_P),
        "log_loss_calibrated": nll(calibrated_P),
        "length_spearman": length.spearman,
        "length_within_spearman": length.within_spearman,
        "reward_mean": float(table.reward_N.mean()),
        "reward_std": std,
        "reward_size": float(np.abs(table.reward_N).mean()),
        "pair_mean_size": float(np.abs(pair_mean_P).mean()),
        **(copied if run.row in COPIED else {}),
        "eval_loss": None if evaluated is None else nll(evaluated.delta_P),
        "train_pairs": trained.metrics.data.splits["train"].used,
        "test_prompts": len(np.unique(tested.group_P)),
        "steps": trained.metrics.train.steps,
        "differences": packed(tested.delta_P),
        "prompts": packed([row["prompt_number"] for row in parts["test"]], "<i2"),
    }


def score_table(model: RewardModel, file: Path) -> ScoreTable:
    """The scores of a file of pairs."""
    comparisons = load_comparisons(as_sources(file), seed=0).comparisons
    _, held_out, skipped = score_comparisons(model, comparisons, Console(quiet=True))
    assert not skipped
    return held_out.table


def copy_distance(model: RewardModel, rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean distance between the rewards of a response and of its rewritten copy."""
    copied = []
    for row in rows:
        comparison = model.comparison(row["prompt"], [row["chosen"], row["rejected"]])
        copied.append(with_copy(replace(comparison, id=row["id"]), seed=0))
    found = [one for one in copied if one is not None]
    scored = model.score_comparisons([one.comparison for one in found])
    distances = [
        abs(rewards_K[one.origin] - rewards_K[-1])
        for one, rewards_K in zip(found, scored, strict=True)
        if not isinstance(rewards_K, Skipped)
    ]
    assert len(distances) == len(found)
    return float(np.mean(distances))


def packed(values: Sequence[Any] | FloatArray, dtype: str = "<f2") -> str:
    """Numbers as text: base64 of float16, or of ``dtype``."""
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()


def unpacked(text: str, dtype: str = "<f2") -> npt.NDArray[Any]:
    """The numbers of :func:`packed`."""
    return np.frombuffer(base64.b64decode(text), dtype)


def study(data_dir: Path, record: Record) -> None:
    """Every run that is not recorded yet, seed by seed."""
    for seed in SEEDS:
        for name in SETS:
            parts = split(data_dir, name, seed)
            for row in rows_of(name):
                rates = RATES if seed == SEEDS[0] and row == BASELINE else (rate_of(record, name),)
                for rate in rates:
                    run = Run(data=name, row=row, seed=seed, rate=rate)
                    if record.find(asdict(run)) is None:
                        found = measured(run, parts)
                        record.add(found)
                        console.print(f"{run}: {[found[m] for m in MEASURES]}")


def rows_of(name: str) -> list[str]:
    return [row for row in ROWS if row != "margin" or SETS[name].has_margins]


def rate_of(record: Record, name: str) -> float:
    """The learning rate of a set, chosen on evaluation pairs."""
    wanted = {"data": name, "row": BASELINE, "seed": SEEDS[0]}
    tried = [run for run in record.runs if wanted.items() <= run.items()]
    rate: float = min(tried, key=lambda run: run["eval_loss"])["rate"]
    return rate


# ---- the tables


def sets_of(record: Record) -> list[str]:
    return [name for name in SETS if record.find({"data": name})]


def runs_of(record: Record, name: str, row: str) -> dict[int, dict[str, Any]]:
    """The runs of a row at the learning rate of its set, by seed; seeds that every row has."""
    wanted = {"data": name, "rate": rate_of(record, name)}
    runs = [run for run in record.runs if wanted.items() <= run.items()]
    rows = set(rows_of(name))
    done = [seed for seed in SEEDS if rows <= {run["row"] for run in runs if run["seed"] == seed}]
    return {run["seed"]: run for run in runs if run["row"] == row and run["seed"] in done}


class Difference(NamedTuple):
    """A row minus plain Bradley-Terry, with 95% intervals and p-values of two paired t-tests.

    ``seeds`` is over training runs and says what new runs would give. ``prompts`` is by prompt over
    the test pairs of all seeds, the test of ``plaudit compare`` where pairs share prompts, and says
    what these models would give on new prompts.
    """

    seeds: tuple[float, float, float]
    p_seeds: float | None
    prompts: Interval | None
    p_prompts: float | None


def compare(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]], measure: str
) -> Difference:
    """The difference of accuracy or of calibrated log loss."""
    seeds = sorted(ours.keys() & theirs.keys())
    values = [ours[seed][measure] - theirs[seed][measure] for seed in seeds]
    ours_P, theirs_P = (
        np.concatenate([pair_values(runs[seed], measure) for seed in seeds])
        for runs in (ours, theirs)
    )
    prompt_P = np.concatenate([prompts_of(theirs[seed]) for seed in seeds])
    by_prompt = paired_difference(theirs_P, ours_P, prompt_P)
    several = len(values) > 1 and len(set(values)) > 1
    return Difference(
        seeds=mean_interval(values),
        p_seeds=float(ttest_1samp(values, 0.0).pvalue) if several else None,
        prompts=by_prompt.interval,
        p_prompts=clustered_p(by_prompt),
    )


def pair_values(run: Mapping[str, Any], measure: str) -> FloatArray:
    """Per test pair of a run: whether it is ranked correctly, or its calibrated log loss."""
    delta_P = unpacked(run["differences"]).astype(np.float64)
    if measure == "accuracy":
        return (delta_P > 0).astype(np.float64)
    calibrated_P = cross_fit(delta_P, codes(prompts_of(run))).delta_P
    assert calibrated_P is not None
    return bradley_terry_losses(calibrated_P)


def prompts_of(run: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    """The prompt of each test pair, by its number in the whole set."""
    return unpacked(run["prompts"], "<i2").astype(np.int64)


SHOWN = {
    "accuracy": 3,
    "log_loss": 4,
    "log_loss_calibrated": 4,
    "length_within_spearman": 2,
    "reward_size": 2,
}
"""What the table of means shows of each row, and its decimals."""
TESTED = {"accuracy": 3, "log_loss_calibrated": 4}
CHECKS: Final[Sequence[tuple[str, str, Callable[[dict[str, Any]], float]]]] = (
    ("length_residual", "length correlation", lambda run: run["length_within_spearman"]),
    ("centering", "mean of a pair's rewards, size", lambda run: run["pair_mean_size"]),
    ("reward_norm", "reward, size", lambda run: run["reward_size"]),
    ("consistency", "distance of a rewritten copy", lambda run: run["copy_distance"]),
)
"""What a regulariser is for: its row, the quantity that it makes smaller, and where it is."""


def tables(record: Record) -> str:
    """Markdown: means, differences in each tested measure, whether regularisers do their work."""
    blocks = [means_table(record)]
    blocks += [difference_table(record, measure) for measure in TESTED]
    return "\n\n".join([*blocks, check_table(record)]) + "\n"


def means_table(record: Record) -> str:
    """The rows of all sets: means over seeds."""
    lines = []
    for name in sets_of(record):
        for row in rows_of(name):
            runs = runs_of(record, name, row)
            if runs:
                means = (
                    f"{statistics.fmean(run[measure] for run in runs.values()):.{digits}f}"
                    for measure, digits in SHOWN.items()
                )
                lines.append([name, f"`{row}`", f"{len(runs)}", *means])
    headings = "data|row|seeds|accuracy|log loss|calibrated|length correlation|mean abs. reward"
    return _markdown(headings.split("|"), lines)


def difference_table(record: Record, measure: str) -> str:
    """Each row against plain Bradley-Terry; p-values are corrected for the rows of a set (Holm)."""
    lines = []
    digits = TESTED[measure]
    for name in sets_of(record):
        theirs = runs_of(record, name, BASELINE)
        ours = {row: runs_of(record, name, row) for row in rows_of(name) if row != BASELINE}
        found = {row: compare(runs, theirs, measure) for row, runs in ours.items() if runs}
        by_seeds = holm([one.p_seeds for one in found.values()])
        by_prompts = holm([one.p_prompts for one in found.values()])
        for (row, one), seeds, prompts in zip(found.items(), by_seeds, by_prompts, strict=True):
            mean, low, high = one.seeds
            lines.append(
                [
                    name,
                    f"`{row}`",
                    f"{mean:+.{digits}f}",
                    _ends((low, high), digits),
                    _p(seeds),
                    _ends(one.prompts, digits),
                    _p(prompts),
                ]
            )
    headings = f"data|row|Δ {measure}|95% CI, seeds|p|95% CI, prompts|p"
    return _markdown(headings.replace("log_loss_", "log loss, ").split("|"), lines)


def _ends(interval: tuple[float, float] | None, digits: int) -> str:
    if interval is None or interval[0] != interval[0]:
        return ""
    return f"{interval[0]:+.{digits}f} to {interval[1]:+.{digits}f}"


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def check_table(record: Record) -> str:
    """What each regulariser makes smaller, without it and with it."""
    lines = []
    for row, quantity, read in CHECKS:
        for name in sets_of(record):
            ours, theirs = (
                {seed: {"it": read(run)} for seed, run in runs_of(record, name, one).items()}
                for one in (row, BASELINE)
            )
            if ours:
                both = [
                    statistics.fmean(run["it"] for run in one.values()) for one in (theirs, ours)
                ]
                means = [f"{mean:.3f}" for mean in both]
                change = print_interval(difference(ours, theirs, "it"), 3)
                lines.append([f"`{row}`", quantity, name, *means, change])
    return _markdown(["row", "quantity", "data", f"`{BASELINE}`", "row", "Δ (95% CI)"], lines)


def _markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="print what is recorded, run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = Record.at(arguments.out / "pairwise.json")
    if not arguments.tables:
        study(arguments.data_dir, record)
    print(tables(record))


if __name__ == "__main__":
    main()
