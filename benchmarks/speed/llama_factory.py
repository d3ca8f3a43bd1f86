"""How fast is a step against LLaMA-Factory's ``stage: rm`` at batch 1, accumulation 4?

    python -m benchmarks.speed.llama_factory --data pairs.jsonl.gz --llamafactory-python PYTHON
        [--models 25m] [--vocabularies 4096,128256] [--rounds 5] [--steps 2]

LLaMA-Factory needs other versions of the libraries, so it runs in an environment of its own
(``python -m venv lf; lf/bin/pip install llamafactory``; ``--llamafactory-python lf/bin/python``),
as released, through its command line, in turn with plaudit: a round is one process of its, a
warm-up step and ``--steps`` measured ones, then as many of plaudit's. Its steps are timed by when
it appends to ``trainer_log.jsonl`` with ``logging_steps: 1``, so its start is not counted.

It gets its best on a CPU (no activation checkpointing, fp32, sdpa attention), the same token ids in
the same order (``tokenized_path``, shuffling off), and the same head (``value_head.safetensors``),
whose dropout of 10% its base's configuration turns off (``summary_dropout_prob``). Both train at a
learning rate of zero, which takes the same time: then the adapters, which start differently,
change nothing, and every step's losses must agree within 1e-4.

It computes a language model's logits for every token and reads none of them. So there is a line
with the 4k vocabulary of the embedded base's tokenizer, and one with the same model and tokens with
its vocabulary widened to 128k.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import plots
from benchmarks.common.models import LLAMAS, LORA, build_base
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

if TYPE_CHECKING:
    from plaudit.types import TokenTree

QUESTION = "llama_factory"
TOLERANCE = 1e-4
PAIRS = 4
POLL_SECONDS = 0.002
PACKAGES = ("llamafactory", "torch", "transformers", "peft", "trl", "accelerate")


def configuration(base: Path, rows: Path, out: Path, steps: int, seed: int) -> dict[str, Any]:
    """Its YAML: LoRA as plaudit's, batch 1, accumulation 4, at its best on a CPU."""
    return {
        "model_name_or_path": str(base),
        "stage": "rm",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": LORA["r"],
        "lora_alpha": LORA["lora_alpha"],
        "lora_dropout": 0.0,
        "lora_target": "all",
        "template": "empty",
        # It asks for a name, and reads the rows of tokenized_path instead.
        "dataset": "rows",
        "tokenized_path": str(rows),
        "cutoff_len": 4096,
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "flash_attn": "sdpa",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": PAIRS,
        "max_steps": steps,
        "learning_rate": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": False,
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "seed": seed,
        "output_dir": str(out),
    }


def causal_base(classifier: Path, folder: Path) -> Path:
    """The classifier's body with a language model's head, and its reward head beside it."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification

    plain = LlamaForSequenceClassification.from_pretrained(classifier, dtype=torch.float32)
    network = LlamaForCausalLM(plain.config)
    network.model.load_state_dict(plain.model.state_dict())
    network.config.summary_dropout_prob = 0.0
    network.config.architectures = ["LlamaForCausalLM"]
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(folder)
    head = plain.score.weight.detach().clone()
    save_file(
        {"v_head.summary.weight": head, "v_head.summary.bias": torch.zeros(1)},
        folder / "value_head.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def write_rows(groups: Sequence[Sequence[TokenTree]], folder: Path) -> Path:
    """The rows as LLaMA-Factory keeps them once encoded."""
    from datasets import Dataset, DatasetDict

    from benchmarks.common.sides import conversations

    rows: list[dict[str, Any]] = []
    for group in groups:
        for tree in group:
            row: dict[str, Any] = {}
            for side, ids in zip(("chosen", "rejected"), conversations(tree), strict=True):
                row[f"{side}_input_ids"] = ids
                row[f"{side}_attention_mask"] = [1] * len(ids)
                row[f"{side}_labels"] = ids
            rows.append({**row, "images": None, "videos": None, "audios": None})
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(folder))
    return folder


def run_llama_factory(python: Path, settings: dict[str, Any], steps: int) -> list[dict[str, float]]:
    """One process; seconds and loss of every step but the first, which warms up.

    Raises:
        SystemExit: it failed, with the end of what it printed.
    """
    import yaml

    out = Path(settings["output_dir"])
    out.mkdir(parents=True)
    (out / "rm.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    printed = out / "printed.txt"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [str(python), "-m", "llamafactory.cli", "train", str(out / "rm.yaml")],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        log = out / "trainer_log.jsonl"
        arrived: list[float] = []
        while process.poll() is None:
            lines = log.read_text(encoding="utf-8").count("\n") if log.is_file() else 0
            arrived += [time.perf_counter()] * (lines - len(arrived))
            time.sleep(POLL_SECONDS)
    if process.returncode or len(arrived) < steps:
        tail = printed.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"LLaMA-Factory stopped ({process.returncode}); it printed:\n{tail}")
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    return [{"seconds": arrived[i] - arrived[i - 1], "loss": losses[i]} for i in range(1, steps)]


def versions(python: Path) -> dict[str, str]:
    """What is installed in its environment."""
    code = (
        "import json, sys; from importlib.metadata import version; "
        f"print(json.dumps({{name: version(name) for name in {PACKAGES!r}}}))"
    )
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def measure(
    python: Path, base: Path, data: Path, work: Path, rounds: int, steps: int, seed: int
) -> dict[str, Any]:
    """Rounds in turn: a process of LLaMA-Factory, then as many steps of plaudit."""
    import numpy as np

    from benchmarks.common.sides import plaudit_trainer, prepare_run
    from benchmarks.common.stepper import Stepper

    prepared = prepare_run(
        base, data, work / "run", batch=PAIRS, seed=seed, options={"learning_rate": 0.0}
    )
    theirs = causal_base(base, work / "causal")
    trees = prepared.trees
    order = np.random.default_rng(seed).permutation(len(trees)).tolist()
    per_round = 1 + steps
    groups = [
        [trees[order[(g * PAIRS + i) % len(order)]] for i in range(PAIRS)]
        for g in range(rounds * per_round)
    ]
    stepper = Stepper(plaudit_trainer(prepared, groups))
    taken: dict[str, list[list[dict[str, float]]]] = {"plaudit": [], "llama_factory": []}
    try:
        for number in range(rounds):
            own = groups[number * per_round : (number + 1) * per_round]
            rows = write_rows(own, work / f"rows-{number}")
            settings = configuration(theirs, rows, work / f"out-{number}", per_round, seed)
            taken["llama_factory"].append(run_llama_factory(python, settings, per_round))
            mine = [stepper.step() for _ in own][1:]
            taken["plaudit"].append([{"seconds": s.seconds, "loss": s.loss} for s in mine])
            refuse_other_losses(taken, number)
            console.log(
                f"round {number}: "
                + ", ".join(
                    f"{k} {sum(s['seconds'] for s in v[-1]):.2f} s" for k, v in taken.items()
                )
            )
    finally:
        stepper.close()
    rates = {
        side: [PAIRS * len(r) / sum(step["seconds"] for step in r) for r in rounds_]
        for side, rounds_ in taken.items()
    }
    return {
        "pairs_per_second": {side: median(own) for side, own in rates.items()},
        "pairs_per_second_rounds": rates,
        "ratio": median(rates["plaudit"]) / median(rates["llama_factory"]),
        "raw": taken,
    }


def refuse_other_losses(taken: dict[str, list[list[dict[str, float]]]], number: int) -> None:
    """LLaMA-Factory logs its losses in full."""
    pairs = zip(taken["plaudit"][number], taken["llama_factory"][number], strict=True)
    for mine, theirs in pairs:
        if not abs(mine["loss"] - theirs["loss"]) <= TOLERANCE:
            raise SystemExit(
                f"round {number}: LLaMA-Factory's loss is {theirs['loss']:.6f}, plaudit's "
                f"{mine['loss']:.6f}; they must agree within {TOLERANCE}"
            )


def table(record: dict[str, Any]) -> Shown:
    """One line per model and vocabulary."""
    rows = [
        (
            case["model"],
            f"{case['vocabulary']:,}",
            figure(case["pairs_per_second"]["plaudit"]),
            figure(case["pairs_per_second"]["llama_factory"]),
            f"{case['ratio']:.2f}x",
        )
        for case in record["cases"]
    ]
    return Shown(
        ("model", "vocabulary", "plaudit, pairs/s", "LLaMA-Factory, pairs/s", "speedup"),
        tuple(rows),
    )


def main() -> None:
    """Parse, measure every vocabulary, write after each."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--data", type=Path, required=True, help="preference rows, JSON lines")
    made.add_argument(
        "--llamafactory-python", type=Path, required=True, help="the Python of its environment"
    )
    made.add_argument("--models", default="25m", help=f"of {', '.join(LLAMAS)}")
    made.add_argument("--vocabularies", default="4096,128256")
    made.add_argument("--steps", type=int, default=2, help="measured steps in a round")
    arguments = made.parse_args()
    from benchmarks.common.sides import begin

    python = arguments.llamafactory_python.absolute()
    recorder = begin(
        QUESTION,
        arguments,
        settings={"lora": LORA, "llamas": LLAMAS},
        peers={
            "llama_factory": {
                "versions": versions(python),
                "configuration": configuration(
                    Path("base"), Path("rows"), Path("out"), 1 + arguments.steps, arguments.seed
                ),
            }
        },
    )
    for name in words(arguments.models):
        for vocabulary in numbers(arguments.vocabularies):
            console.rule(f"{name}, vocabulary {vocabulary:,}")
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder)
                base = build_base(name, work / "base", seed=arguments.seed, vocabulary=vocabulary)
                found = measure(
                    python,
                    base,
                    arguments.data,
                    work,
                    arguments.rounds,
                    arguments.steps,
                    arguments.seed,
                )
            recorder.add({"model": name, "vocabulary": vocabulary, **found})
    record = recorder.record()
    show(table(record))
    draw(record, recorder.folder)


def draw(record: dict[str, Any], folder: Path) -> None:
    """The question's plot."""
    plots.bars(
        folder / "pairs.png",
        {
            f"{side}\n{case['vocabulary']:,}": {"pairs/s": rate}
            for case in record["cases"]
            for side, rate in case["pairs_per_second"].items()
        },
        y="pairs per second",
    )


if __name__ == "__main__":
    main()
