"""What one of torchrun's processes does in a test (``tests/ranks.py`` starts them).

``PLAUDIT_TEST_WAY`` is ``ddp``: the arguments are those of a plaudit command. Or it is ``fsdp``:
they are runs, ``RECIPE OUT then …``, in one process since its imports take longer than they do;
with ``--resume`` after it, OUT is first made a copy of the recipe's run that stopped in its middle.
``PLAUDIT_TEST_FACTS`` is a folder for what was engaged in each run, ``OUT-rank-N.json``.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

RANK = int(os.environ["RANK"])


def find_surviving_threads() -> None:
    """A thread of gloo that outlives the command can abort the interpreter's finalization."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if any("gloo" in name for name in names):
        print("threads that outlive the command:", *names, file=sys.stderr, flush=True)
        os._exit(7)


def forbid_model_files(event: str, arguments: tuple[Any, ...]) -> None:
    """The first rank alone writes a model; a file written by two is a race."""
    if event != "open" or not isinstance(arguments[0], str) or not isinstance(arguments[1], str):
        return
    name = Path(arguments[0]).name
    if "w" in arguments[1] and name in ("adapter_config.json", "config.json", "tokenizer.json"):
        print(f"rank {RANK} writes {arguments[0]}", file=sys.stderr, flush=True)
        os._exit(8)


def take_cpus_for_gpus() -> None:
    """accelerate 1.15 engages FSDP for GPUs alone; on CPUs it trains with DDP, without a word."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__

    def as_gpus(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_gpus


def let_deepspeed_run_on_cpus() -> None:
    """accelerate 1.15 engages DeepSpeed off the CPU alone, and finds no backend for it there."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


def record_facts(folder: Path) -> None:
    """What accelerate and torch say of a model once training has wrapped it."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from plaudit.training.trainer import RewardTrainer

    wrap = RewardTrainer._prepare_for_training

    def wrap_and_record(self: Any, *args: Any, **options: Any) -> Any:
        prepared = wrap(self, *args, **options)
        model = prepared[0]
        parts = [name for name, child in model.named_modules() if isinstance(child, FSDPModule)]
        whole = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
        optimized = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        facts = {
            "type": self.accelerator.distributed_type.value,
            "wrapper": type(model).__name__,
            "sharded_modules": parts,
            "whole_parameters": whole,
            "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
            "trained": len(trained),
            "optimized": len(optimized & trained),
        }
        run = Path(self.args.output_dir).parent.name
        (folder / f"{run}-rank-{RANK}.json").write_text(json.dumps(facts))
        return prepared

    RewardTrainer._prepare_for_training = wrap_and_record  # type: ignore[method-assign]


def run_with_fsdp(recipe: Path, out: Path, *options: str) -> None:
    from accelerate.state import AcceleratorState
    from torch import distributed

    from plaudit.training.run import train

    resume = "--resume" in options
    if resume:
        if RANK == 0:
            copy_stopped(recipe.parent, out)
        distributed.barrier()
    train(recipe, out, resume=resume)
    # As in a process of its own: this holds the settings of FSDP and the precision.
    AcceleratorState._reset_state()


def copy_stopped(run: Path, out: Path) -> None:
    """The run as it was before its last checkpoint was whole."""
    shutil.copytree(run, out)
    for path in (*out.glob("*.json"), *out.glob("*.safetensors")):
        if path.name not in ("data.json", "environment.json"):
            path.unlink()
    (out / "checkpoints" / "checkpoint-8" / "counters-1.pt").unlink()


if __name__ == "__main__":
    if RANK > 0:
        sys.addaudithook(forbid_model_files)
    record_facts(Path(os.environ["PLAUDIT_TEST_FACTS"]))
    if os.environ["PLAUDIT_TEST_WAY"] == "deepspeed":
        let_deepspeed_run_on_cpus()
        runpy.run_module("plaudit", run_name="__main__")
    elif os.environ["PLAUDIT_TEST_WAY"] == "ddp":
        atexit.register(find_surviving_threads)
        runpy.run_module("plaudit", run_name="__main__")
    else:
        take_cpus_for_gpus()
        for run in " ".join(sys.argv[1:]).split(" then "):
            name, out, *options = run.split()
            run_with_fsdp(Path(name), Path(out), *options)
        sys.stdout.flush()
        sys.stderr.flush()
        # Once there was a DTensor, gloo's threads outlive their group (torch 2.11 to 2.13).
        os._exit(0)
