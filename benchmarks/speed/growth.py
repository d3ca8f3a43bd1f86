"""How does cost grow: with the tokens of a step, and with ten times the data?

    python -m benchmarks.speed.growth --data hh_harmless.jsonl.gz [--models 25m] [--pairs 1,2,4,8]

Tokens: optimizer steps of plaudit's own training over more and more pairs, taking turns; a step is
cut into rows of at most ``tokens.max_tokens_per_microbatch``, so time should grow as tokens do.
Data: whole ``plaudit train`` runs in this process (reading, encoding, one epoch, evaluation, all
files written) on a part of the rows and on ten times as many; time per pair should not grow.
"""

from __future__ import annotations

import gzip
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import plots
from benchmarks.common.models import LLAMAS, LORA, MODELS, build_base
from benchmarks.common.results import (
    Shown,
    console,
    figure,
    median,
    numbers,
    parser,
    show,
    words,
)

QUESTION = "growth"


def over_tokens(
    base: Path, data: Path, work: Path, pairs: list[int], rounds: int, seed: int
) -> list[dict[str, Any]]:
    """Seconds of optimizer steps by their pairs; one step to warm up, then a step a round."""
    import numpy as np

    from benchmarks.common.sides import plaudit_trainer, prepare_run
    from benchmarks.common.stepper import Stepper

    cases: list[dict[str, Any]] = []
    for count in pairs:
        prepared = prepare_run(base, data, work / f"run-{count}", batch=count, seed=seed)
        trees = prepared.trees
        generator = np.random.default_rng((seed, count))
        groups = [
            [trees[i] for i in generator.choice(len(trees), count, replace=False)]
            for _ in range(rounds + 1)
        ]
        stepper = Stepper(plaudit_trainer(prepared, groups))
        try:
            seconds = [stepper.step().seconds for _ in groups][1:]
        finally:
            stepper.close()
        tokens = [sum(tree.tokens for tree in group) for group in groups[1:]]
        each = [1e6 * s / t for s, t in zip(seconds, tokens, strict=True)]
        console.log(f"{count} pairs: {median(each):.0f} microseconds a token")
        cases.append(
            {
                "what": "tokens of a step",
                "pairs": count,
                "tokens": tokens,
                "seconds": seconds,
                "microseconds_per_token": median(each),
            }
        )
    return cases


def over_data(data: Path, work: Path, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of whole runs on the embedded base over ``rows`` and ten times as many."""
    from plaudit.training.run import train

    opened = gzip.open if data.suffix == ".gz" else open
    with opened(data, "rt", encoding="utf-8") as file:
        lines = file.readlines()
    if len(lines) < 10 * rows:
        raise SystemExit(f"{data.name} has {len(lines)} rows; --rows {rows} needs ten times {rows}")
    taken: dict[int, list[float]] = {rows: [], 10 * rows: []}
    for number in range(rounds):
        for count in taken:
            part = work / f"{count}.jsonl"
            part.write_text("".join(lines[:count]), encoding="utf-8")
            recipe = {
                "model": {"base": "embedded"},
                "lora": dict(LORA),
                "data": {"train": str(part)},
                "loss": {"margin": "ignore"},
                "train": {"num_train_epochs": 1, "per_device_train_batch_size": 8},
            }
            began = time.perf_counter()
            train(recipe, work / f"run-{count}-{number}")
            taken[count].append(time.perf_counter() - began)
            console.log(f"{count} rows: {taken[count][-1]:.1f} s")
    return [
        {
            "what": "rows of a run",
            "pairs": count,
            "seconds": seconds,
            "milliseconds_per_pair": 1e3 * median(seconds) / count,
        }
        for count, seconds in taken.items()
    ]


def table(record: dict[str, Any]) -> Shown:
    """One line per size."""
    rows = [
        (
            case["what"],
            case.get("model", "embedded"),
            f"{case['pairs']:,}",
            f"{median(case['tokens']):,.0f}" if "tokens" in case else "",
            figure(median(case["seconds"])),
            f"{case['microseconds_per_token']:.0f} us per token"
            if "microseconds_per_token" in case
            else f"{case['milliseconds_per_pair']:.1f} ms per pair",
        )
        for case in record["cases"]
    ]
    return Shown(("variable", "model", "pairs", "tokens", "seconds", "cost per unit"), tuple(rows))


def main() -> None:
    """Parse, measure both kinds of growth."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--data", type=Path, required=True, help="preference rows, JSON lines")
    made.add_argument("--models", default="25m", help=f"of {', '.join(MODELS)}")
    made.add_argument("--pairs", default="1,2,4,8,16,32", help="pairs of a step")
    made.add_argument("--rows", type=int, default=150, help="rows of the smaller run; 0 for none")
    made.add_argument("--run-rounds", type=int, default=3, help="whole runs of each size")
    arguments = made.parse_args()
    from benchmarks.common.sides import begin

    recorder = begin(QUESTION, arguments, settings={"lora": LORA, "llamas": LLAMAS})
    for name in words(arguments.models):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            base = build_base(name, work / "base", seed=arguments.seed)
            for case in over_tokens(
                base,
                arguments.data,
                work,
                numbers(arguments.pairs),
                arguments.rounds,
                arguments.seed,
            ):
                recorder.add({"model": name, **case})
    if arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            for case in over_data(
                arguments.data, Path(folder), arguments.rows, arguments.run_rounds
            ):
                recorder.add(case)
    record = recorder.record()
    show(table(record))
    draw(record, recorder.folder)


def draw(record: dict[str, Any], folder: Path) -> None:
    """The question's plot."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for case in record["cases"]:
        if "tokens" in case:
            points = zip(case["tokens"], case["seconds"], strict=True)
            lines.setdefault(case["model"], []).extend(points)
    plots.lines(
        folder / "tokens.png",
        lines,
        x="tokens of an optimizer step",
        y="seconds",
    )


if __name__ == "__main__":
    main()
