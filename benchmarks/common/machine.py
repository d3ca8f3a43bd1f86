"""The machine and the versions a benchmark ran on, and this process's memory."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from plaudit.report.record import describe_environment

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = ("trl", "llamafactory", "flash-attn")
# malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, threads, versions and the commit."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(_memory_total() / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch_threads": torch.get_num_threads(),
        "environment": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "LD_PRELOAD")},
        "versions": describe_environment(device) | {name: _version(name) for name in PEERS},
        "commit": _commit(),
    }


def command() -> str:
    """The command line as typed, without the folders of the interpreter and the data."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    module = Path(sys.argv[0]).resolve().relative_to(REPOSITORY).with_suffix("")
    return " ".join(["python", "-m", ".".join(module.parts), *words])


def keep_heap() -> None:
    """Let glibc keep memory that was freed, in one heap for all threads.

    By default it gives large blocks back to the system at once and gets them anew, page by page, in
    the next layer: seconds of a padded step, and much more of them on a virtual machine whose host
    takes free memory away. The larger a side's tensors are, the more this helps it.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_MAX, 0)
        # As an unsigned number the largest: never.
        mallopt(M_TRIM_THRESHOLD, -1)


@dataclass(frozen=True, slots=True)
class Load:
    """Seconds of processor time: of this process, and of everything on the machine."""

    own: float
    all: float

    def others_since(self, before: Load) -> float:
        """Seconds that other processes computed."""
        return max(0.0, (self.all - before.all) - (self.own - before.own))


def load() -> Load:
    """Processor time so far (Linux, proc(5), stat: all but idle and waiting)."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[:8])
    ticks = user + nice + system + irq + softirq + steal
    return Load(own=time.process_time(), all=ticks / os.sysconf("SC_CLK_TCK"))


def resident() -> int:
    """Bytes of this process in memory now."""
    return _status("VmRSS")


def peak_resident() -> int:
    """The most bytes this process had in memory since :func:`reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Start measuring :func:`peak_resident` anew (Linux, proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_total() -> int:
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    if shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
