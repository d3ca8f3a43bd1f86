"""Two gloo ranks on this machine's CPU, started by torchrun."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file
from torch import Tensor

from tests.warm import environment_of_a_user, python

SCRIPT = Path(__file__).with_name("rank_command.py")


def torchrun() -> list[str]:
    """The beginning of a command that starts the rest of it, a script of Python, on two ranks."""
    launcher = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*launcher, "--no-python", python()]


def run_on_two_ranks(
    way: Literal["ddp", "fsdp", "deepspeed"], facts: Path, *arguments: str
) -> None:
    """``rank_command.py`` on two ranks; ``facts`` is where each writes what was engaged."""
    done = subprocess.run(
        [*torchrun(), str(SCRIPT), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={
            **environment_of_a_user(),
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
