"""Whole runs on the device: within a share of its memory, saved and resumed, and under torchrun.

They train small models on a small corpus, through ``plaudit.train`` and what it writes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

import plaudit
from benchmarks.common.machine import REPOSITORY
from benchmarks.common.models import build_base
from benchmarks.common.saved import write_pairs
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import Part, free_memory
from plaudit.embedded import NAME
from plaudit.errors import InterruptedRunError

NOISE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Between a score and the same one computed in another batch, by the precision of the body."""


def recipe_of(
    data: Path, held_out: Path, *, base: str = NAME, steps: int, **train: Any
) -> dict[str, Any]:
    """A short LoRA run; what is measured is the rewards of the held-out pairs."""
    return {
        "model": {"base": base},
        "lora": {"r": 8, "target_modules": "all-linear"},
        "data": {"train": str(data), "eval": str(held_out)},
        "tokens": {"max_length": 4096},
        "train": {
            "max_steps": steps,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_steps": steps // 3,
            "learning_rate": 5e-4,
            **train,
        },
        "evaluate": {"calibrate": False, "baselines": [], "perturbation_tests": 0},
        "report": {"html": False, "plots": False},
    }


def losses(run: Path) -> list[float]:
    """The logged loss of every step."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return [event["loss"] for event in events if "loss" in event]


def rewards(run: Path) -> np.ndarray:
    """Of the held-out pairs, as the run measured them."""
    found: np.ndarray = pq.read_table(run / "predictions.parquet")["reward"].to_numpy()
    return found


def weights(run: Path) -> torch.Tensor:
    """Everything that was trained, in one row."""
    state = load_file(run / "adapter_model.safetensors")
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


# ---- memory


def check_memory(bench: Bench, part: Part) -> None:
    """A measured budget, one that is far too large, and a small one give the same run."""
    steps = 3 if bench.tiny else 6
    data = long_pairs(bench.work / "long.jsonl", 8 * steps, words=12 if bench.tiny else 500)
    held_out = write_pairs(bench.work / "held-out.jsonl", 4)
    base = build_base("tiny" if bench.tiny else "110m", bench.work / "small", seed=bench.seed)
    recipe = recipe_of(data, held_out, base=str(base), steps=steps, save_strategy="no")
    small = 64 if bench.tiny else 4096
    budgets: dict[str, int | str] = {"auto": "auto", "too large": 1 << 20, "small": small}
    runs: dict[str, Path] = {}
    cuda = bench.device.type == "cuda"
    for name, tokens in budgets.items():
        recipe["tokens"]["max_tokens_per_microbatch"] = tokens

        def run(name: str = name, asked: int | str = tokens) -> None:
            # Where the recipe sets both, nothing is measured before the first step.
            recipe["train"]["gradient_checkpointing"] = None if asked == "auto" else False
            out = bench.work / f"memory-{name.replace(' ', '-')}"
            with limited_memory(bench, MEMORY_BYTES if asked != "small" else None):
                plaudit.train(recipe, out)
            runs[name] = out
            peak = bench.peak_bytes()
            found = json.loads((out / "micro_batches.json").read_text(encoding="utf-8"))
            changes = [
                json.loads(line)["max_tokens_per_microbatch"]
                for line in (out / "events.jsonl").read_text().splitlines()
                if "max_tokens_per_microbatch" in line
            ]
            part.measured(
                f"budget {name}",
                asked=asked,
                micro_batch_tokens=found["tokens"],
                checkpointed_layers=found["checkpointed_layers"],
                halved_to_tokens=[float(tokens) for tokens in changes],
                peak_bytes=peak,
                limit_bytes=MEMORY_BYTES if cuda else None,
            )
            if cuda and name == "too large":
                part.expect("a step is computed again", bool(changes), "its budget is halved")

        part.attempt(f"budget {name}", run)
    if not cuda:
        part.not_run("a run within a share of the memory", "needs CUDA: a memory fraction")
    if "small" in runs:
        for name in ("auto", "too large"):
            if name not in runs:
                continue
            one, two = losses(runs[name]), losses(runs["small"])
            apart = max(abs(a - b) for a, b in zip(one, two, strict=True))
            part.expect(
                f"losses of budget {name}",
                apart <= LOSS_NOISE[bench.tiny],
                f"within {LOSS_NOISE[bench.tiny]:g} of those of small micro-batches",
                largest_difference=apart,
            )


MEMORY_BYTES = 3 << 30
LOSS_NOISE = {True: 1e-5, False: 2e-2}
"""Under ``--tiny`` in fp32 on a CPU, else in bf16 on a GPU. A wrong divisor is off by a third."""


@contextmanager
def limited_memory(bench: Bench, limit: int | None) -> Iterator[None]:
    """At most ``limit`` bytes of the card may be allocated in the block."""
    if bench.device.type != "cuda":
        yield
        return
    free_memory()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else limit / total)
    bench.reset_peak()
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def long_pairs(path: Path, count: int, *, words: int) -> Path:
    """Pairs of made-up words, prompts of one to two times ``words``."""
    draw = np.random.default_rng(count)

    def text(most: int) -> str:
        return " ".join(f"w{n}" for n in draw.integers(0, 999, draw.integers(most // 2, most)))

    rows = [
        {"prompt": text(words), "chosen": text(words // 3), "rejected": text(words // 3)}
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- saved, loaded, resumed


def check_roundtrip(bench: Bench, part: Part) -> None:
    """Save, load and score again; stop, resume and compare with a run that was not stopped."""
    steps = 6 if bench.tiny else 12
    data = write_pairs(bench.work / "train.jsonl", 8 * steps)
    held_out = write_pairs(bench.work / "scored.jsonl", 16)
    recipe = recipe_of(data, held_out, steps=steps)
    whole, again, stopped = (bench.work / name for name in ("whole", "again", "stopped"))
    part.attempt("train", lambda: _trained(part, recipe, whole))
    part.attempt("load and score", lambda: _scored_again(part, whole, held_out))
    part.attempt("train again", lambda: _compared(part, "train again", recipe, again, whole))
    part.attempt("stop and resume", lambda: _resumed(part, recipe, stopped, whole))


def _trained(part: Part, recipe: dict[str, Any], out: Path) -> None:
    plaudit.train(recipe, out)
    found = losses(out)
    part.expect("train", found[-1] < found[0], "the loss falls", losses=found)


def _scored_again(part: Part, run: Path, held_out: Path) -> None:
    rows = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()]
    model = plaudit.load(run)
    prompted = [(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows]
    again = np.array([model.score(prompt, responses) for prompt, responses in prompted]).flatten()
    recorded = rewards(run)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.module.parameters()})
    limit = max(NOISE[name] for name in dtypes) * max(1.0, float(np.abs(recorded).max()))
    apart = float(np.abs(again - recorded).max())
    part.expect(
        "load and score",
        apart <= limit,
        f"within {limit:.2g} of what the run measured",
        largest_difference=apart,
        dtypes=", ".join(dtypes),
    )


def _compared(part: Part, name: str, recipe: dict[str, Any], out: Path, whole: Path) -> None:
    """The same run once more; on a CPU bit for bit, on a GPU as far as its atomics allow."""
    if not out.exists():
        plaudit.train(recipe, out)
    one, two = weights(out), weights(whole)
    apart = float((one - two).norm() / two.norm())
    steps = len(losses(out)), len(losses(whole))
    exact = not torch.cuda.is_available()
    part.expect(
        name,
        steps[0] == steps[1] and apart <= (0.0 if exact else NOISE["bfloat16"]),
        "the same steps, and equal weights"
        if exact
        else "the same steps, and weights within noise",
        steps=steps[0],
        weights_difference=apart,
        rewards_difference=float(np.abs(rewards(out) - rewards(whole)).max()),
        losses_difference=max(abs(a - b) for a, b in zip(losses(out), losses(whole), strict=True)),
    )


def _resumed(part: Part, recipe: dict[str, Any], out: Path, whole: Path) -> None:
    """Interrupt this process's training after its first steps, and resume it."""
    done = threading.Event()
    steps = recipe["train"]["max_steps"]

    def interrupt() -> None:
        events = out / "events.jsonl"
        while not done.is_set():
            if events.is_file() and events.read_text(encoding="utf-8").count("\n") >= steps // 3:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.001)

    watcher = threading.Thread(target=interrupt)
    # plaudit listens while it trains; a signal that comes later is for nobody.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    watcher.start()
    try:
        plaudit.train(recipe, out)
        interrupted = False
    except InterruptedRunError:
        interrupted = True
    finally:
        done.set()
        watcher.join()
        signal.signal(signal.SIGINT, before)
    stopped_after = len(losses(out))
    plaudit.train(recipe, out, resume=True)
    part.expect(
        "stopped",
        interrupted and stopped_after < steps,
        f"after fewer than {steps} steps",
        steps=stopped_after,
    )
    _compared(part, "stop and resume", recipe, out, whole)


# ---- torchrun


def check_ranks(bench: Bench, part: Part) -> None:
    """One process under torchrun with FSDP2: what is engaged, saved and loaded."""
    data = write_pairs(bench.work / "ranks.jsonl", 32)
    held_out = write_pairs(bench.work / "ranks-held-out.jsonl", 4)
    recipe = recipe_of(data, held_out, steps=3, fsdp="full_shard")
    path, out = bench.work / "ranks.yaml", bench.work / "ranks"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    launcher = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        # A machine without network may not resolve its own name.
        *("--nproc_per_node", "1", "--local_addr", "127.0.0.1"),
    )
    process = subprocess.Popen(
        [*launcher, str(REPOSITORY / "tests" / "rank_command.py"), str(path), str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), *sys.path[1:]])),
            "PLAUDIT_TEST_WAY": "fsdp",
            "PLAUDIT_TEST_FACTS": str(bench.work),
        },
    )
    try:
        _, errors = process.communicate(timeout=max(part.left, 1))
    except subprocess.TimeoutExpired:
        part.not_run("torchrun", f"out of time after {part.allowance:.0f} s")
        return
    finally:
        # The launcher ends its processes at this signal, and would leave them alone if killed.
        process.terminate()
        process.wait()
    ended = process.returncode == 0
    part.expect("torchrun", ended, "it ends without an error" if ended else errors[-4000:])
    if not ended:
        return
    facts = json.loads((bench.work / "ranks-rank-0.json").read_text(encoding="utf-8"))
    part.expect(
        "FSDP2 is engaged",
        facts["type"] == "FSDP" and not facts["whole_parameters"] and facts["sharded_modules"],
        "accelerate says FSDP, and every parameter is a DTensor",
        distributed_type=facts["type"],
        whole_parameters=len(facts["whole_parameters"]),
        sharded_modules=len(facts["sharded_modules"]),
    )
    part.attempt("load what it saved", lambda: _scored_again(part, out, held_out))
