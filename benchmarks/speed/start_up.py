"""How long until something happens: help, the first training step, the first score.

    python -m benchmarks.speed.start_up [--rounds 10]

Every measurement is a process of its own, from its start; the commands take turns, after one round
that fills the page cache. Beside them the bare import of what they stand on. The first training
step is timed from the process's start until its line appears in ``events.jsonl``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import plots
from benchmarks.common.results import Shown, console, median, parser, show
from benchmarks.common.results import recorder as start_recorder

QUESTION = "start_up"
POLL_SECONDS = 0.002

IMPORTS = "import torch, transformers, peft"
BARE = {
    "import of typer and rich": "import typer, rich.console",
    "import of torch, transformers, peft": IMPORTS,
}


def timed(command: list[str]) -> float:
    """Seconds from start to end of a process that must succeed."""
    began = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return time.perf_counter() - began


def plaudit(*words: str) -> list[str]:
    """The installed command where there is one; it starts faster than ``python -m``."""
    script = Path(sys.executable).with_name("plaudit")
    return [str(script), *words] if script.is_file() else [sys.executable, "-m", "plaudit", *words]


def first_step(recipe: Path, out: Path) -> float:
    """Seconds from the start of ``plaudit train`` to the line of its first optimizer step."""
    began = time.perf_counter()
    process = subprocess.Popen(
        plaudit("train", str(recipe), "--out", str(out)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    events = out / "events.jsonl"
    seconds = None
    while seconds is None and process.poll() is None:
        if events.is_file() and '"loss"' in events.read_text(encoding="utf-8"):
            seconds = time.perf_counter() - began
        time.sleep(POLL_SECONDS)
    if process.wait() or seconds is None:
        raise SystemExit("plaudit train failed; run it by hand to see why")
    return seconds


def commands(work: Path) -> dict[str, Callable[[int], float]]:
    """What is measured, by name; each takes the number of the round."""
    import yaml

    from benchmarks.common.models import LORA
    from benchmarks.common.saved import saved_model, write_pairs
    from plaudit.embedded import base_path

    model = saved_model(base_path(), work / "model", lora=dict(LORA))
    one = write_pairs(work / "one.jsonl", 1)
    recipe = work / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": {"base": "embedded"},
                "data": {"train": str(write_pairs(work / "pairs.jsonl", 64))},
                "train": {
                    "max_steps": 2,
                    "per_device_train_batch_size": 8,
                    "logging_steps": 1,
                    "eval_strategy": "no",
                },
                "evaluate": {"calibrate": False, "baselines": []},
                "report": {"html": False, "plots": False},
            }
        ),
        encoding="utf-8",
    )
    bare = {
        name: lambda _, code=code: timed([sys.executable, "-c", code])
        for name, code in BARE.items()
    }
    return {
        "python -c pass": lambda _: timed([sys.executable, "-c", "pass"]),
        **bare,
        "plaudit --help": lambda _: timed(plaudit("--help")),
        "plaudit score, one row": lambda number: timed(
            plaudit("score", str(model), str(one), "--out", str(work / f"{number}.jsonl"))
        ),
        "plaudit train, first step": lambda number: first_step(recipe, work / f"run-{number}"),
    }


def table(record: dict[str, Any]) -> Shown:
    """One line per command."""
    rows = [
        (
            case["name"],
            f"{median(case['seconds']):.3f} s",
            f"{min(case['seconds']):.3f} s",
            f"{max(case['seconds']):.3f} s",
        )
        for case in record["cases"]
    ]
    return Shown(("process", "median", "fastest", "slowest"), tuple(rows))


def main() -> None:
    """Parse, run all commands in turn, write after each round."""
    made = parser(__doc__, QUESTION)
    made.set_defaults(rounds=10)
    arguments = made.parse_args()
    recorder = start_recorder(
        QUESTION,
        arguments,
    )
    with tempfile.TemporaryDirectory() as folder:
        measured = commands(Path(folder))
        recorder.cases += [{"name": name, "seconds": []} for name in measured]
        for number in range(arguments.rounds + 1):
            taken = [measure(number) for measure in measured.values()]
            if number:
                for case, seconds in zip(recorder.cases, taken, strict=True):
                    case["seconds"].append(seconds)
                recorder.write()
            console.log(f"round {number}: " + ", ".join(f"{s:.2f}" for s in taken))
    record = recorder.record()
    show(table(record))
    draw(record, recorder.folder)


def draw(record: dict[str, Any], folder: Path) -> None:
    """The question's plot."""
    plots.bars(
        folder / "seconds.png",
        {
            case["name"].replace(" ", "\n"): {"seconds": median(case["seconds"])}
            for case in record["cases"]
        },
        y="seconds from the start of the process",
    )


if __name__ == "__main__":
    main()
