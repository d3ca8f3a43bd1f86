"""A LoRA step of a random-weight Llama-3-8B on one GPU, against a padded baseline.

    python -m benchmarks.gpu.llama8b [--shapes 512+128,2048+256] [--checkpointing] [--rounds 5]
    python -m benchmarks.gpu.llama8b --tiny        (a tiny model on the CPU, to see that it runs)

A shape is the tokens of a prompt and of each of its two responses; a step is 4 such pairs of random
ids. The weights are random too, bf16 on a GPU with the adapter in fp32. Every side runs in a
process of its own, one after the other, through its own ``Trainer.train()``, from the same weights
on disk (16 GB); the first two steps warm up. Losses must agree within 1e-4 in fp32 and 0.02 in
bf16.

Sides: ``plaudit``; ``padded``: plain transformers, sdpa attention, one row per response (all of one
length here, so nothing is padded, its best case); ``flash_preference``: the released package of
that name over the padded side (``pip install flash-pref flash-attn``), where it imports. Its
approach: the second copy of a prompt is taken out of the hidden states before the first layer and
put back after the last; inside, keys and values of the prompt are gathered in front of each
response's for one variable-length flash-attention call. plaudit's ``varlen`` backend makes the same
kind of call; it never builds the padded batch, and packs all pairs of a micro-batch in one row.

Printed: pairs/s; the most memory allocated, and what ``plaudit plan`` predicted; model FLOP
utilisation, which is the operations of the tokens a side computes (common/flops.py) over its time
and the GPU's published bf16 peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common.models import LORA
from benchmarks.common.results import Shown, console, figure, median, parser, show, size
from benchmarks.common.results import recorder as start_recorder
from benchmarks.common.results import words as listed

if TYPE_CHECKING:
    from plaudit.types import TokenTree

QUESTION = "llama8b"
SIDES = ("plaudit", "padded", "flash_preference")
BASE = "meta-llama/Meta-Llama-3-8B"
PAIRS = 4
WARM_UP = 2
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def build(folder: Path, seed: int, *, tiny: bool) -> Path:
    """The model's architecture with random weights, on disk."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from benchmarks.common.models import HEAD_STD, build_base
    from plaudit.embedded import base_path
    from plaudit.planning.architecture import read_config

    if tiny:
        return build_base("tiny", folder, seed=seed)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    config = read_config(BASE)
    config.pad_token_id = tokenizer.pad_token_id
    with torch.device("cuda"):
        network = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
    torch.nn.init.normal_(network.score.weight, std=HEAD_STD)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def groups_of(
    prompt: int, response: int, steps: int, vocabulary: int, seed: int
) -> list[list[TokenTree]]:
    """Steps of pairs of random ids, the first response of each the chosen one."""
    import numpy as np

    from plaudit.types import TokenTree

    generator = np.random.default_rng((seed, prompt, response))

    def ids(count: int) -> Any:
        return generator.integers(10, vocabulary, count, dtype=np.int32)

    return [
        [
            TokenTree(
                index=i,
                prefix=ids(prompt),
                branches=(ids(response), ids(response)),
                grades=(1.0, 0.0),
            )
            for i in range(PAIRS)
        ]
        for _ in range(steps)
    ]


def measure_side(arguments: argparse.Namespace) -> None:
    """The child: one side's steps on one shape, written as JSON."""
    import torch

    from benchmarks.common import machine
    from benchmarks.common.flops import LORA_STEP, work
    from benchmarks.common.saved import write_pairs
    from benchmarks.common.sides import plaudit_trainer, prepare_run, quiet
    from benchmarks.common.stepper import Stepper

    quiet()
    prompt, response = (int(count) for count in arguments.shape.split("+"))
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_run(
            arguments.base,
            write_pairs(Path(folder) / "pairs.jsonl", PAIRS),
            Path(folder) / "run",
            batch=PAIRS,
            seed=arguments.seed,
            options={"gradient_checkpointing": arguments.checkpointing},
        )
        network = prepared.run.built.model.module.network
        dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
        groups = groups_of(
            prompt,
            response,
            WARM_UP + arguments.rounds,
            network.config.vocab_size,
            arguments.seed,
        )
        make = {
            "plaudit": plaudit_trainer,
            "padded": padded_side,
            "flash_preference": flash_preference_side,
        }
        trainer = make[arguments.side](prepared, groups)
        per_step = work(network, _as_computed(arguments.side, groups[0]), LORA_STEP)
        layout = prepared.run.built.model.layout
        if arguments.side != "plaudit":
            # The side has its own copy of the model; plaudit's would count as its memory.
            prepared.run.built.model.module.to("meta")
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            machine.reset_peak()
        stepper = Stepper(trainer)
        try:
            steps = [stepper.step() for _ in groups]
        finally:
            stepper.close()
        peak = torch.cuda.max_memory_allocated() if cuda else machine.peak_resident()
    found = {
        "seconds": [step.seconds for step in steps[WARM_UP:]],
        "losses": [step.loss for step in steps],
        "peak_bytes": peak,
        "flops_per_step": sum(per_step.values()),
        "dtype": dtype,
        "layout": layout,
    }
    arguments.result.write_text(json.dumps(found), encoding="utf-8")


def _as_computed(side: str, group: list[TokenTree]) -> list[TokenTree]:
    """What a side computes as trees: the padded one each conversation on its own."""
    import numpy as np

    from plaudit.types import TokenTree

    if side != "padded":
        return group
    empty = np.zeros(0, np.int32)
    return [
        TokenTree(index=0, prefix=empty, branches=(np.concatenate([tree.prefix, branch]),))
        for tree in group
        for branch in tree.branches
    ]


def padded_side(prepared: Any, groups: list[list[TokenTree]]) -> Any:
    """Plain transformers on the body's precision."""
    from benchmarks.common.sides import padded_trainer

    return padded_trainer(prepared, groups)


def flash_preference_side(prepared: Any, groups: list[list[TokenTree]]) -> Any:
    """The padded side inside flash-preference's context, forward and backward."""
    from flash_pref import shared_prefix

    from benchmarks.common.sides import padded_trainer

    trainer: Any = padded_trainer(prepared, groups)
    classifier = trainer.model.get_base_model()
    classifier.set_attn_implementation("flash_attention_2")
    plain = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *others: Any) -> Any:
        mask = inputs["attention_mask"].to(classifier.device)
        ids = inputs["input_ids"].to(classifier.device)
        with shared_prefix(classifier, input_ids=ids, attention_mask=mask, interleaved=True):
            return plain(model, inputs, *others)

    trainer.training_step = training_step
    return trainer


def predicted(shape: str, *, tiny: bool, base: Path, checkpointing: bool) -> dict[str, Any]:
    """``plaudit plan``'s memory for this step, in bytes by part."""
    from plaudit.planning.architecture import measure, read_config
    from plaudit.planning.estimate import (
        Hardware,
        Split,
        activation_dtype,
        equal_lengths,
        find_gpus,
        plan,
    )
    from plaudit.recipe.load import parse_recipe
    from plaudit.tokens.batch import MICROBATCH_TOKENS

    name = str(base) if tiny else BASE
    recipe = parse_recipe(
        {
            "model": {"base": name, "dtype": "float32" if tiny else "auto"},
            "lora": dict(LORA),
            "data": {"train": "pairs.jsonl"},
            "tokens": {"max_length": 8192},
            "train": {
                "per_device_train_batch_size": PAIRS,
                "gradient_checkpointing": checkpointing,
            },
        },
        "benchmark",
    )
    prompt, response = (int(count) for count in shape.split("+"))
    made = plan(
        recipe,
        size=measure(read_config(name), recipe.lora, activations=activation_dtype(recipe)),
        lengths=equal_lengths(prompt, response),
        split=Split(1000, 0, 0),
        hardware=Hardware(gpus=find_gpus("H100")),
        packed=True,
        auto_tokens=MICROBATCH_TOKENS,
    )
    return dict(made.as_dict()["memory"])


def peak_flops(gpu: str | None) -> float | None:
    """The published bf16 peak of the GPU here, None where plaudit's table has none."""
    from plaudit.planning.estimate import GPUS

    named = (gpu or "").replace(" ", "").replace("-", "").upper()
    known = [g for name, g in GPUS.items() if name.replace("-", "").removesuffix("GB") in named]
    return known[0].tflops * 1e12 if known else None


def side_of(arguments: argparse.Namespace, base: Path, shape: str, side: str) -> dict[str, Any]:
    """A side in its own process; where it cannot run, why."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "side.json"
        done = subprocess.run(
            [
                *(sys.executable, "-m", __spec__.name),
                *(
                    "--side",
                    side,
                    "--shape",
                    shape,
                    "--base",
                    str(base),
                ),
                *("--result", str(result), "--rounds", str(arguments.rounds)),
                *("--seed", str(arguments.seed)),
                *(["--checkpointing"] if arguments.checkpointing else []),
            ],
            check=False,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            if side == "plaudit":
                raise SystemExit(done.stderr)
            return {"not_run": done.stderr.strip().splitlines()[-1]}
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


def refuse_other_losses(sides: dict[str, dict[str, Any]]) -> None:
    """All sides that ran against plaudit's."""
    mine = sides["plaudit"]
    limit = TOLERANCE[mine["dtype"]]
    for name, side in sides.items():
        apart = [
            abs(a - b)
            for a, b in zip(mine["losses"], side.get("losses", mine["losses"]), strict=True)
        ]
        if not max(apart) <= limit:
            raise SystemExit(f"losses of {name} are {max(apart):.2g} from plaudit's, over {limit}")


def table(record: dict[str, Any]) -> Shown:
    """One line per shape and side."""
    rows: list[tuple[str, ...]] = []
    for case in record["cases"]:
        foretold = size(case["predicted"]["total"]) if case["predicted"]["activations"] else ""
        mine = median(case["sides"]["plaudit"]["seconds"])
        for name, side in case["sides"].items():
            if "not_run" in side:
                rows.append((case["shape"], name, f"not run: {side['not_run']}", "", "", "", ""))
                continue
            seconds = median(side["seconds"])
            peak = case["peak_flops"]
            rows.append(
                (
                    case["shape"],
                    name,
                    figure(PAIRS / seconds),
                    "" if name == "plaudit" else f"{seconds / mine:.2f}x",
                    size(side["peak_bytes"]),
                    foretold if name == "plaudit" else "",
                    f"{side['flops_per_step'] / seconds / peak:.1%}" if peak else "",
                )
            )
    headings = (
        "tokens",
        "side",
        "pairs/s",
        "speedup",
        "peak memory",
        "predicted memory",
        "MFU",
    )
    return Shown(headings, tuple(rows))


def main() -> None:
    """Parse, run every side on every shape, write after each shape."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--shapes", default="512+128,2048+256", help="prompt+response tokens")
    made.add_argument("--sides", default=",".join(SIDES), help=f"of {', '.join(SIDES)}")
    made.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    made.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU")
    for name in ("--side", "--shape"):
        made.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--base", "--result"):
        made.add_argument(name, type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.side:
        measure_side(arguments)
        return
    import torch

    if not arguments.tiny and not torch.cuda.is_available():
        raise SystemExit("This needs a CUDA GPU with 40 GB or more; --tiny runs without one.")
    recorder = start_recorder(
        QUESTION,
        arguments,
        settings={"lora": LORA},
    )
    peak = peak_flops(recorder.machine["gpu"])
    with tempfile.TemporaryDirectory() as folder:
        base = build(Path(folder) / "base", arguments.seed, tiny=arguments.tiny)
        for shape in listed(arguments.shapes):
            sides: dict[str, dict[str, Any]] = {}
            for side in listed(arguments.sides):
                console.log(f"{shape}: {side}")
                sides[side] = side_of(arguments, base, shape, side)
            refuse_other_losses(sides)
            foretold = predicted(
                shape, tiny=arguments.tiny, base=base, checkpointing=arguments.checkpointing
            )
            recorder.add(
                {"shape": shape, "sides": sides, "predicted": foretold, "peak_flops": peak}
            )
    show(table(recorder.record()))


if __name__ == "__main__":
    main()
