"""What share of the machine's matmul speed does a packed pass reach, and where does the rest go?

    python -m benchmarks.speed.utilisation --data hh_harmless.jsonl.gz [--models 25m,110m]

Training: plaudit's own ``Trainer.train()`` with LoRA on ragged packed rows of real dialogues, an
optimizer step a round. Scoring: the same rows through the loop that every caller of plaudit scores
with. Right after each round plain matmuls of the same layers' shapes are timed at the same row
lengths: the ceiling. Utilisation is the operations a pass needs (common/flops.py: 4N a token for a
LoRA step, 2N for scoring, plus attention) over its time, as a share of the ceiling's operations
over theirs. One more pass runs under torch.profiler for the parts (common/breakdown.py).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import machine, plots
from benchmarks.common.models import LLAMAS, LORA, MODELS, build_base
from benchmarks.common.results import (
    Shown,
    console,
    figure,
    median,
    parser,
    show,
    words,
)

if TYPE_CHECKING:
    from benchmarks.common.flops import Ceiling
    from benchmarks.common.sides import Prepared
    from plaudit.types import TokenTree

QUESTION = "utilisation"
KINDS = ("training", "scoring")


def groups_of(prepared: Prepared, pairs: int, rounds: int, seed: int) -> list[list[TokenTree]]:
    """One random group of pairs per round, two before them to warm up, one after to profile."""
    import numpy as np

    order: list[int] = []
    generator = np.random.default_rng(seed)
    while len(order) < (rounds + 3) * pairs:
        order += generator.permutation(len(prepared.trees)).tolist()
    return [
        [prepared.trees[i] for i in order[start : start + pairs]]
        for start in range(0, (rounds + 3) * pairs, pairs)
    ]


def row_lengths(prepared: Prepared, group: Sequence[TokenTree]) -> list[int]:
    """Tokens of each packed row that a group is cut into."""
    cuts = prepared.run.built.batcher.split(group)
    return [sum(group[i].tokens for i in cut) for cut in cuts]


def at_ceiling(ceiling: Ceiling, lengths: Sequence[int]) -> dict[str, float]:
    """Seconds and operations of plain matmuls for these rows."""
    return {
        "seconds": sum(ceiling.seconds(tokens) for tokens in lengths),
        "flops": sum(ceiling.flops(tokens) for tokens in lengths),
    }


def one_round(
    network: Any,
    ceiling: Ceiling,
    group: Sequence[TokenTree],
    lengths: list[int],
    seconds: float,
    per: dict[str, int],
) -> dict[str, Any]:
    """A round's operations, times and utilisation."""
    from benchmarks.common.flops import work

    done = work(network, group, per)
    top = at_ceiling(ceiling, lengths)
    rate, limit = sum(done.values()) / seconds, top["flops"] / top["seconds"]
    return {
        "row_lengths": lengths,
        "flops": done,
        "seconds": seconds,
        "ceiling": top,
        "achieved_flops_per_second": rate,
        "ceiling_flops_per_second": limit,
        "utilisation": rate / limit,
    }


def training(prepared: Prepared, pairs: int, rounds: int, seed: int) -> dict[str, Any]:
    """Optimizer steps of plaudit's own training, each followed by its ceiling."""
    from benchmarks.common.flops import LORA_STEP, Ceiling
    from benchmarks.common.sides import plaudit_trainer
    from benchmarks.common.stepper import Stepper

    network = prepared.run.built.model.module.network
    groups = groups_of(prepared, pairs, rounds, seed)
    ceiling = Ceiling(network, backward=True)
    stepper = Stepper(plaudit_trainer(prepared, groups[: rounds + 2]))
    measured: list[dict[str, Any]] = []
    try:
        for number, group in enumerate(groups[: rounds + 2]):
            step = stepper.step()
            if number >= 2:
                lengths = row_lengths(prepared, group)
                measured.append(
                    one_round(network, ceiling, group, lengths, step.seconds, LORA_STEP)
                )
                measured[-1]["others"] = step.others
                console.log(f"step of {step.seconds:.2f} s at {measured[-1]['utilisation']:.3f}")
    finally:
        stepper.close()
    return {"rounds": measured, "parts": training_parts(prepared, [groups[0], groups[-1]])}


def training_parts(prepared: Prepared, groups: Sequence[Sequence[TokenTree]]) -> dict[str, float]:
    """The parts of the last group's optimizer step, in this thread: profilers watch one thread."""
    from transformers import TrainerCallback

    from benchmarks.common import breakdown
    from benchmarks.common.sides import plaudit_trainer

    trainer = plaudit_trainer(prepared, groups)
    profiler = breakdown.profiler()
    began = 0.0
    seconds = 0.0

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal began
            if state.global_step == len(groups) - 1:
                profiler.start()
                began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal seconds
            if state.global_step == len(groups):
                seconds = time.perf_counter() - began
                profiler.stop()

    trainer.add_callback(Watch())
    module = prepared.run.built.model.module
    with breakdown.labelled(module, module.network):
        trainer.train()
    return breakdown.parts(profiler, seconds, LORA["r"])


def scoring(prepared: Prepared, pairs: int, rounds: int, seed: int) -> dict[str, Any]:
    """Passes of plaudit's scoring loop without an adapter, each followed by its ceiling."""
    from benchmarks.common import breakdown
    from benchmarks.common.flops import FORWARD, Ceiling
    from plaudit.model.scoring import score_trees

    module, batcher = prepared.run.built.model.module, prepared.run.built.batcher
    module.eval()
    groups = groups_of(prepared, pairs, rounds, seed)
    ceiling = Ceiling(module.network, backward=False)
    measured: list[dict[str, Any]] = []
    for number, group in enumerate(groups[: rounds + 2]):
        before, began = machine.load(), time.perf_counter()
        score_trees(module, batcher, group)
        seconds = time.perf_counter() - began
        others = machine.load().others_since(before)
        if number >= 2:
            lengths = row_lengths(prepared, group)
            measured.append(one_round(module.network, ceiling, group, lengths, seconds, FORWARD))
            measured[-1]["others"] = others
            console.log(f"pass of {seconds:.2f} s at {measured[-1]['utilisation']:.3f}")
    with breakdown.labelled(module, module.network), breakdown.profiler() as profiler:
        began = time.perf_counter()
        score_trees(module, batcher, groups[-1])
        seconds = time.perf_counter() - began
    return {"rounds": measured, "parts": breakdown.parts(profiler, seconds, LORA["r"])}


def table(record: dict[str, Any]) -> Shown:
    """Per model and kind: utilisation, speeds, and the share of time of each part."""
    kinds = [part for case in record["cases"] for part in case["parts"]]
    names = tuple(dict.fromkeys(kinds))
    rows = [
        (
            case["model"],
            case["kind"],
            f"{median([sum(r['row_lengths']) for r in case['rounds']]):,.0f}",
            figure(median([r["achieved_flops_per_second"] for r in case["rounds"]]) / 1e9),
            figure(median([r["ceiling_flops_per_second"] for r in case["rounds"]]) / 1e9),
            f"{median([r['utilisation'] for r in case['rounds']]):.3f}",
            *(f"{case['parts'][n] / sum(case['parts'].values()):.1%}" for n in names),
        )
        for case in record["cases"]
    ]
    headings = ("model", "pass", "tokens", "GFLOP/s", "ceiling", "utilisation", *names)
    return Shown(headings, tuple(rows))


def main() -> None:
    """Parse, measure every model both ways, write after each."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--data", type=Path, required=True, help="preference rows, JSON lines")
    made.add_argument("--models", default="25m,110m", help=f"of {', '.join(MODELS)}")
    made.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    made.add_argument("--pairs", type=int, default=8, help="pairs of an optimizer step")
    made.add_argument("--scored-pairs", type=int, default=32, help="pairs of a scoring pass")
    arguments = made.parse_args()
    from benchmarks.common.sides import begin, prepare_run

    recorder = begin(QUESTION, arguments, settings={"lora": LORA, "llamas": LLAMAS})
    for name in words(arguments.models):
        for kind in words(arguments.kinds):
            console.rule(f"{name}, {kind}")
            pairs = arguments.pairs if kind == "training" else arguments.scored_pairs
            with tempfile.TemporaryDirectory() as work:
                base = build_base(name, Path(work) / name, seed=arguments.seed)
                prepared = prepare_run(
                    base,
                    arguments.data,
                    Path(work) / "run",
                    batch=pairs,
                    seed=arguments.seed,
                    lora=kind == "training",
                )
                measure = training if kind == "training" else scoring
                found = measure(prepared, pairs, arguments.rounds, arguments.seed)
            recorder.add({"model": name, "kind": kind, "pairs": pairs, **found})
    record = recorder.record()
    show(table(record))
    draw(record, recorder.folder)


def draw(record: dict[str, Any], folder: Path) -> None:
    """The question's plot."""
    plots.bars(
        folder / "parts.png",
        {
            f"{case['model']}\n{case['kind']}": {
                part: seconds / sum(case["parts"].values())
                for part, seconds in case["parts"].items()
            }
            for case in record["cases"]
        },
        y="share of the time",
    )


if __name__ == "__main__":
    main()
