"""How fast is a training step, and how much memory does it take, against TRL and plain padding?

    python -m benchmarks.speed.training --data hh_harmless.jsonl.gz [--models 25m] [--batches 8]
        [--sides plaudit,trl,padded,grouped] [--rounds 5]

The data are HH-RLHF's harmless-base dialogues (docs/performance.md says where they come from) as
preference rows that plaudit reads. Every side trains LoRA (r 8, all linear layers, head whole) from
the same weights on the same rows in the same order, through its own ``Trainer.train()``, one round
after the other in one process; a round is one optimizer step, or several where the batch is small.
The losses of every step must agree within 1e-4, or the command fails.

The process keeps the memory it frees (common/machine.py, keep_heap), which spares the sides with
the largest tensors the most; ``--heap system`` measures with glibc's default.

Sides: ``plaudit``; ``trl``: TRL's RewardTrainer; ``padded``: plain transformers, random batches;
``grouped``: plain transformers on batches of similar length, made as transformers' sampler makes
them over all the data, of which as many as there are rounds are taken at even spaces of length;
plaudit is timed on the same batches again.

Memory is the highest resident memory of a fresh process for each side while it trains, above what
it held with its model loaded: two steps, the second on the measured batch with the most padding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import machine, plots
from benchmarks.common.models import LLAMAS, LORA, MODELS, build_base
from benchmarks.common.results import (
    Shown,
    console,
    figure,
    median,
    numbers,
    parser,
    show,
    size,
    words,
)
from benchmarks.common.results import recorder as start_recorder

if TYPE_CHECKING:
    from benchmarks.common.sides import Prepared
    from plaudit.types import TokenTree

QUESTION = "training"
SIDES = ("plaudit", "trl", "padded", "grouped")
TOLERANCE = 1e-4
PAIRS_PER_ROUND = 8
QUIET = 0.1
GROUP_BATCHES = 50
"""transformers' LengthGroupedSampler sorts this many batches at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Rounds of groups: a group is the pairs of a step. The first round warms up."""

    rounds: tuple[tuple[tuple[int, ...], ...], ...]

    def groups(self, trees: Sequence[TokenTree]) -> list[list[TokenTree]]:
        return [[trees[i] for i in group] for steps in self.rounds for group in steps]


def random_batches(count: int, batch: int, rounds: int, seed: int) -> Batches:
    """Disjoint random rows; the warm-up is one step, and drawn again where rows are scarce."""
    import numpy as np

    steps = max(1, PAIRS_PER_ROUND // batch)
    needed = batch * (1 + rounds * steps)
    generator = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < needed:
        order += generator.permutation(count).tolist()
    groups = [tuple(order[i : i + batch]) for i in range(0, needed, batch)]
    measured = [tuple(groups[1 + r * steps : 1 + (r + 1) * steps]) for r in range(rounds)]
    return Batches(rounds=(tuple(groups[:1]), *measured))


def grouped_batches(lengths: Sequence[int], batch: int, rounds: int, seed: int) -> Batches:
    """Batches of similar length as transformers' sampler makes them, spread evenly over lengths."""
    import numpy as np

    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths)).tolist()
    made: list[tuple[int, ...]] = []
    for start in range(0, len(order), batch * GROUP_BATCHES):
        rows = sorted(order[start : start + batch * GROUP_BATCHES], key=lambda i: -lengths[i])
        made += [tuple(rows[i : i + batch]) for i in range(0, len(rows) - batch + 1, batch)]
    made.sort(key=lambda group: max(lengths[i] for i in group))
    steps = max(1, PAIRS_PER_ROUND // batch)
    taken = [
        tuple(
            made[min(len(made) - 1, int((r + (s + 0.5) / steps) * len(made) / rounds))]
            for s in range(steps)
        )
        for r in range(rounds)
    ]
    warm = made[len(made) // 2]
    return Batches(rounds=((warm,), *(taken[i] for i in generator.permutation(rounds))))


def measure(
    prepared: Prepared, batches: Batches, sides: Sequence[str]
) -> dict[str, dict[str, list[list[float]]]]:
    """Seconds and losses of every step by side and round, the sides taking turns."""
    from benchmarks.common.sides import TRAINERS
    from benchmarks.common.stepper import Stepper

    groups = batches.groups(prepared.trees)
    steppers = {side: Stepper(TRAINERS[side](prepared, groups)) for side in sides}
    taken: dict[str, dict[str, list[list[float]]]] = {
        side: {"seconds": [], "losses": [], "others": []} for side in sides
    }
    try:
        for number, round_ in enumerate(batches.rounds):
            turn = list(sides) if number % 2 == 0 else list(reversed(sides))
            for side in turn:
                steps = [steppers[side].step() for _ in round_]
                taken[side]["seconds"].append([step.seconds for step in steps])
                taken[side]["losses"].append([step.loss for step in steps])
                taken[side]["others"].append([step.others for step in steps])
            refuse_other_losses(taken, number)
            console.log(
                f"round {number}: "
                + ", ".join(f"{side} {sum(taken[side]['seconds'][-1]):.2f} s" for side in sides)
            )
    finally:
        for stepper in steppers.values():
            stepper.close()
    return taken


def refuse_other_losses(taken: dict[str, dict[str, list[list[float]]]], number: int) -> None:
    """Nobody is fast by being wrong."""
    first, *others = taken
    for side in others:
        for mine, theirs in zip(
            taken[first]["losses"][number], taken[side]["losses"][number], strict=True
        ):
            if not abs(mine - theirs) <= TOLERANCE:
                raise SystemExit(
                    f"round {number}: the loss of {side} is {theirs:.6f}, that of {first} "
                    f"{mine:.6f}; they must agree within {TOLERANCE}"
                )


def token_counts(prepared: Prepared, batches: Batches) -> dict[str, int]:
    """Tokens of the measured rounds: of the conversations, computed packed, computed padded."""
    groups = [[prepared.trees[i] for i in group] for steps in batches.rounds[1:] for group in steps]
    return {
        "pairs": sum(len(group) for group in groups),
        "conversations": sum(sum(tree.lengths) for group in groups for tree in group),
        "packed": sum(tree.tokens for group in groups for tree in group),
        "padded": sum(_padded(group) for group in groups),
    }


def _padded(group: Sequence[TokenTree]) -> int:
    return 2 * len(group) * max(max(tree.lengths) for tree in group)


def summarise(
    taken: dict[str, dict[str, list[list[float]]]], batches: Batches, tokens: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """Per side pairs/s of each measured round, their median, and how many times faster plaudit is.

    ``ratio`` is plaudit's median over the side's; ``ratio_of_totals`` compares all rounds together.
    ``processor_of_others`` is how many processors other processes kept busy meanwhile: near 0 where
    the machine was quiet.
    """
    pairs = [sum(len(group) for group in steps) for steps in batches.rounds[1:]]
    seconds = {side: [sum(s) for s in one["seconds"][1:]] for side, one in taken.items()}
    rates = {
        side: [p / s for p, s in zip(pairs, own, strict=True)] for side, own in seconds.items()
    }
    mine, total = median(rates["plaudit"]), sum(seconds["plaudit"])
    return {
        side: {
            "pairs_per_second": median(rates[side]),
            "pairs_per_second_rounds": rates[side],
            "tokens_per_second": tokens["conversations"] / sum(own),
            "ratio": mine / median(rates[side]),
            "ratio_of_totals": sum(own) / total,
            "processor_of_others": sum(map(sum, taken[side]["others"][1:])) / sum(own),
        }
        for side, own in seconds.items()
    }


def memory(
    arguments: argparse.Namespace, base: Path, batches: Batches, side: str
) -> dict[str, int]:
    """Peak memory of a side in a process of its own."""
    layout = "padded" if side == "grouped" else side
    with tempfile.TemporaryDirectory() as folder:
        out, given = Path(folder) / "memory.json", Path(folder) / "batches.json"
        given.write_text(json.dumps(batches.rounds), encoding="utf-8")
        subprocess.run(
            [
                *(sys.executable, "-m", __spec__.name, "--data", str(arguments.data)),
                *("--memory-of", layout, "--base", str(base), "--given", str(given)),
                *("--seed", str(arguments.seed), "--out", str(out)),
            ],
            check=True,
        )
        found: dict[str, int] = json.loads(out.read_text(encoding="utf-8"))
        return found


def measure_memory(arguments: argparse.Namespace) -> None:
    """The child: load, note what is held, take two steps, note the highest."""
    import gc

    from benchmarks.common.sides import TRAINERS, prepare_run, quiet

    quiet()
    rounds = json.loads(arguments.given.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as work:
        prepared = prepare_run(
            arguments.base,
            arguments.data,
            Path(work) / "run",
            batch=len(rounds[0][0]),
            seed=arguments.seed,
        )
        trees = prepared.trees
        groups = [[trees[i] for i in group] for steps in rounds[1:] for group in steps]
        heaviest = max(groups, key=_padded)
        trainer = TRAINERS[arguments.memory_of](prepared, [groups[0], heaviest])
        if arguments.memory_of != "plaudit":
            # The side has its own copy of the model; plaudit's is not part of its cost.
            del prepared
        gc.collect()
        bare = machine.resident()
        machine.reset_peak()
        trainer.train()
        peak = machine.peak_resident()
    arguments.out.write_text(json.dumps({"bare": bare, "peak": peak, "above": peak - bare}))


def run(arguments: argparse.Namespace) -> None:
    """Every model and batch size, written after each."""
    from benchmarks.common.sides import CONFIGURATIONS, prepare_run, quiet

    quiet()
    if arguments.heap == "kept":
        machine.keep_heap()
    recorder = start_recorder(
        QUESTION,
        arguments,
        settings={"lora": LORA, "llamas": LLAMAS},
        peers=CONFIGURATIONS,
    )
    for name in words(arguments.models):
        with tempfile.TemporaryDirectory() as work:
            base = build_base(name, Path(work) / name, seed=arguments.seed)
            for batch in numbers(arguments.batches):
                console.rule(f"{name}, batch {batch}")
                prepared = prepare_run(
                    base,
                    arguments.data,
                    Path(work) / f"run-{batch}",
                    batch=batch,
                    seed=arguments.seed,
                )
                for case in _cases(arguments, prepared, base, batch):
                    recorder.add({"model": name, "batch": batch, **case})
    record = recorder.record()
    show(table(record))
    draw(record, recorder.folder)


def _cases(
    arguments: argparse.Namespace, prepared: Prepared, base: Path, batch: int
) -> list[dict[str, Any]]:
    """Random batches with all sides that take them, then batches of similar length."""
    sides = words(arguments.sides)
    lengths = [max(tree.lengths) for tree in prepared.trees]
    orders = {
        "random": (
            random_batches(len(lengths), batch, arguments.rounds, arguments.seed),
            [side for side in sides if side != "grouped"],
        ),
        "grouped": (
            grouped_batches(lengths, batch, arguments.rounds, arguments.seed),
            ["plaudit", "padded"] if "grouped" in sides and batch > 1 else [],
        ),
    }
    cases: list[dict[str, Any]] = []
    for order, (batches, own) in orders.items():
        if not own:
            continue
        tokens = token_counts(prepared, batches)
        taken = measure(prepared, batches, own)
        case: dict[str, Any] = {
            "order": order,
            "parameters": prepared.run.built.parameters,
            "layout": prepared.run.built.model.layout,
            "tokens": tokens,
            "sides": summarise(taken, batches, tokens),
            "raw": taken,
        }
        if arguments.memory:
            case["memory"] = {side: memory(arguments, base, batches, side) for side in own}
        cases.append(case)
        busy = max(one["processor_of_others"] for one in case["sides"].values())
        if busy > QUIET:
            console.log(f"[bold]other processes kept {busy:.2f} processors busy[/bold]")
        show(table({"cases": [{"model": "", "batch": batch, **case}]}))
    return cases


def table(record: dict[str, Any]) -> Shown:
    """One line per model, batch size, order and side."""
    rows: list[tuple[str, ...]] = []
    # As --add may have put them together in any order.
    cases = sorted(record["cases"], key=lambda c: (c["model"], c["batch"], c["order"] == "grouped"))
    for case in cases:
        held = case.get("memory", {})
        for side, one in case["sides"].items():
            above = held.get(side, {}).get("above")
            share = above / held["plaudit"]["above"] if above else None
            rows.append(
                (
                    case["model"],
                    str(case["batch"]),
                    case["order"],
                    side,
                    figure(one["pairs_per_second"]),
                    figure(one["tokens_per_second"]),
                    "" if side == "plaudit" else f"{one['ratio']:.2f}x",
                    "" if above is None else size(above),
                    "" if share is None or side == "plaudit" else f"{share:.2f}x",
                )
            )
    headings = (
        "model",
        "batch size",
        "batching",
        "trainer",
        "pairs/s",
        "tokens/s",
        "plaudit's speedup",
        "peak memory above the model",
        "relative to plaudit",
    )
    return Shown(headings, tuple(rows))


def draw(record: dict[str, Any], folder: Path) -> None:
    """Pairs a second and ratios over the batch size."""
    for measure_, name, label in (
        ("pairs_per_second", "pairs.png", "pairs per second"),
        ("ratio", "ratio.png", "speedup of plaudit"),
    ):
        lines: dict[str, list[tuple[float, float]]] = {}
        for case in record["cases"]:
            for side, one in case["sides"].items():
                if case["order"] == "grouped" and side == "plaudit":
                    continue
                if measure_ == "ratio" and side == "plaudit":
                    continue
                named = "padded, grouped" if case["order"] == "grouped" else side
                lines.setdefault(f"{case['model']} {named}", []).append(
                    (case["batch"], one[measure_])
                )
        plots.lines(folder / name, lines, x="pairs per optimizer step", y=label, log_x=True)


def main() -> None:
    """Parse and run; ``--memory-of`` is for the command's own child processes."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--data", type=Path, required=True, help="preference rows, JSON lines")
    made.add_argument("--models", default="embedded,25m,110m", help=f"of {', '.join(MODELS)}")
    made.add_argument("--batches", default="1,2,4,8,16")
    made.add_argument("--sides", default=",".join(SIDES), help=f"of {', '.join(SIDES)}")
    made.add_argument(
        "--heap",
        default="kept",
        choices=("kept", "system"),
        help="kept: freed memory stays with the process, for all sides; system: glibc's default",
    )
    made.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--memory-of", help=argparse.SUPPRESS)
    made.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--given", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.memory_of:
        measure_memory(arguments)
        return
    for chosen, known in ((arguments.models, MODELS), (arguments.sides, SIDES)):
        if unknown := [word for word in words(chosen) if word not in known]:
            made.error(f"{unknown[0]} is none of {', '.join(known)}")
    if "plaudit" not in words(arguments.sides):
        made.error("--sides must name plaudit, whose losses the others are held to")
    run(arguments)


if __name__ == "__main__":
    main()
