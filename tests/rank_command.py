"""One rank of a plaudit command: ``torchrun tests/rank_command.py train …``.

``PLAUDIT_TEST_WAY`` is how the ranks share the work (``ddp`` or ``fsdp``), and
``PLAUDIT_TEST_FACTS`` a folder where each rank writes what was engaged, as ``rank-N.json``.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
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
    """accelerate engages FSDP for GPUs alone and trains with DDP on CPUs, without a word."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__

    def as_gpus(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_gpus


def record_facts(folder: Path) -> None:
    """What accelerate and torch say of the model once training has wrapped it."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from plaudit.training.trainer import RewardTrainer

    wrap = RewardTrainer._prepare_for_training

    def wrap_and_record(self: Any, *args: Any, **options: Any) -> Any:
        prepared = wrap(self, *args, **options)
        model = prepared[0]
        optimized = [p for group in self.optimizer.param_groups for p in group["params"]]
        facts = {
            "type": self.accelerator.distributed_type.value,
            "wrapper": type(model).__name__,
            "sharded_modules": [
                name for name, child in model.named_modules() if isinstance(child, FSDPModule)
            ],
            "whole_parameters": [
                name for name, p in model.named_parameters() if not isinstance(p, DTensor)
            ],
            "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
            "trained": len([p for p in model.parameters() if p.requires_grad]),
            "optimized": len({id(p) for p in optimized if p.requires_grad}),
        }
        (folder / f"rank-{RANK}.json").write_text(json.dumps(facts))
        return prepared

    RewardTrainer._prepare_for_training = wrap_and_record  # type: ignore[method-assign]


def run() -> int:
    try:
        runpy.run_module("plaudit", run_name="__main__")
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    return 0


if __name__ == "__main__":
    if RANK > 0:
        sys.addaudithook(forbid_model_files)
    record_facts(Path(os.environ["PLAUDIT_TEST_FACTS"]))
    if os.environ["PLAUDIT_TEST_WAY"] == "fsdp":
        take_cpus_for_gpus()
        code = run()
        sys.stdout.flush()
        sys.stderr.flush()
        # Once there was a DTensor, gloo's threads outlive their group (torch 2.13).
        os._exit(code)
    atexit.register(find_surviving_threads)
    sys.exit(run())
