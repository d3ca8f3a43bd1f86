"""Two gloo ranks on this machine's CPU, started by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).with_name("rank_command.py")


def run_on_two_ranks(
    way: Literal["ddp", "fsdp", "deepspeed"], facts: Path, *arguments: str
) -> None:
    """``rank_command.py`` on two ranks; ``facts`` is where each writes what was engaged."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = subprocess.run(
        [*launcher, str(SCRIPT), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "PLAUDIT_TEST_WAY": way,
            "PLAUDIT_TEST_FACTS": str(facts),
        },
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def weights(folder: Path) -> dict[str, Tensor]:
    """What a run or a checkpoint saved: those of its adapter and head, or of the whole model."""
    files = (*folder.glob("adapter_model.safetensors"), *folder.glob("model*.safetensors"))
    assert files, folder
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
