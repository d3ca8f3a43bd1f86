"""Check plaudit on one GPU and measure it, in one call of at most eight minutes.

    python benchmarks/gpu/check.py [--only PART,…] [--out DIR] [--seconds 480]
    python benchmarks/gpu/check.py --tiny          (tiny sizes on the CPU, to see that it runs)

It needs no network and no pretrained weights: an 8B Llama with random weights is built on the
device. Each part has an allowance of the time; what does not fit is recorded as not run. After
every part check.json in the folder --out (or $OUT) is written anew. A part that fails is recorded
with its traceback and the next part runs. The exit code is 0 where no part failed, else 1.
README.md beside this file says how to carry it to a machine and what the numbers are.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parents[2]

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.record import Part, PartRecord

SECONDS = 480
"""For all parts together, unless ``--seconds`` says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A part: where its function is, its share of the time, and what it answers."""

    module: str
    function: str
    share: float
    question: str

    def load(self) -> Callable[[Bench, Part], None]:
        module = importlib.import_module(f"benchmarks.gpu.{self.module}")
        function: Callable[[Bench, Part], None] = getattr(module, self.function)
        return function


PARTS: dict[str, Row] = {
    "versions": Row(
        module="versions",
        function="check_versions",
        share=20,
        question="Which card, versions and kernels are here, and what are the card's own limits?",
    ),
    "laws": Row(
        module="laws",
        function="check_laws",
        share=100,
        question="Are packed scores and gradients those of separate sequences, by fused code?",
    ),
    "sync": Row(
        module="training",
        function="check_sync",
        share=20,
        question="Does a step make the host wait, and how many kernels does it launch?",
    ),
    "steps": Row(
        module="training",
        function="measure_steps",
        share=115,
        question="How fast is an 8B LoRA step, and how much memory does it take?",
    ),
    "peers": Row(
        module="peers",
        function="measure_peers",
        share=80,
        question="How fast are other ways to train the same weights?",
    ),
    "scoring": Row(
        module="scoring",
        function="measure_scoring",
        share=30,
        question="How fast are responses scored, compared with padded batches?",
    ),
    "profile": Row(
        module="training",
        function="profile_step",
        share=15,
        question="Where does the time of a step go?",
    ),
    "memory": Row(
        module="runs",
        function="check_memory",
        share=25,
        question="Does a run stay within the memory that it may use?",
    ),
    "roundtrip": Row(
        module="runs",
        function="check_roundtrip",
        share=30,
        question="Does a run save what it measured, and does a stopped run end as a whole one?",
    ),
    "ranks": Row(
        module="runs",
        function="check_ranks",
        share=40,
        question="Does a run under torchrun with FSDP2 shard its weights, save and load?",
    ),
    "plan": Row(
        module="plans",
        function="check_plans",
        share=25,
        question="Is the memory of those steps what plaudit plan says?",
    ),
}
"""In the order in which they run: what is worth most by the second first."""


def main() -> int:
    """Parse, run the parts, print what failed."""
    arguments = parse()
    if arguments.tiny:
        # Before torch looks for devices.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from benchmarks.common.sides import quiet
    from benchmarks.gpu.record import shown

    if not arguments.tiny and not torch.cuda.is_available():
        print("No CUDA device was found; --tiny runs on the CPU.", file=sys.stderr)
        return 2
    quiet()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        parts = run_parts(arguments, Path(work))
    print()
    for part in parts:
        counts = Counter(case.status for case in part.cases)
        cases = ", ".join(f"{count} {status}" for status, count in counts.items())
        print(f"{part.status:8} {part.name:10} {part.seconds:6.1f} s   {cases}")
        # Again here: of a long output one often has the end alone.
        for case in part.cases:
            if case.status == "failed":
                print(shown(case))
        if part.error:
            print(f"       {part.error.strip().splitlines()[-1]}")
    return int(any(part.status == "failed" for part in parts))


def parse() -> argparse.Namespace:
    """The command line.

    Raises:
        SystemExit: an unknown part.
    """
    table = "\n".join(f"  {name:10} {row.question}" for name, row in PARTS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nparts:\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--only", metavar="PART,…", help="run these parts alone")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT") or REPOSITORY / "benchmarks" / "gpu" / "results"),
        help="folder for check.json and profile.txt; $OUT or benchmarks/gpu/results by default",
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--add", action="store_true", help="keep other parts that --out has")
    arguments = parser.parse_args()
    asked = [name for name in (arguments.only or "").split(",") if name]
    unknown = sorted(set(asked) - PARTS.keys())
    if unknown:
        parser.error(f"--only {', '.join(unknown)}: expected parts of {', '.join(PARTS)}")
    arguments.only = [name for name in PARTS if not asked or name in asked]
    return arguments


def run_parts(arguments: argparse.Namespace, work: Path) -> Sequence[PartRecord]:
    """Run the parts one after another and write the record after each.

    What a part does not use of its allowance is left to those after it.
    """
    import torch

    from benchmarks.common.machine import command, describe_machine
    from benchmarks.gpu.bench import FULL, TINY, Bench
    from benchmarks.gpu.record import FORMAT, CheckRecord, Part, free_memory, read_check

    for name in arguments.only:
        # A module that does not import fails as a part.
        with suppress(Exception):
            PARTS[name].load()
    # Else each collection of a failed part's tensors would walk through all of the libraries.
    gc.freeze()
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe_machine()
    bench = Bench(
        tiny=arguments.tiny,
        device=torch.device("cpu" if arguments.tiny else "cuda"),
        sizes=TINY if arguments.tiny else FULL,
        work=work,
    )
    earlier = read_check(arguments.out) if arguments.add else None
    kept = [p for p in (earlier.parts if earlier else ()) if p.name not in arguments.only]
    waiting = list(arguments.only)
    while waiting:
        name, *waiting = waiting
        row = PARTS[name]
        left = arguments.seconds - (time.monotonic() - began)
        shares = row.share + sum(PARTS[other].share for other in waiting)
        part = Part(name, max(left, 0) * row.share / shares, arguments.out)
        print(f"\n{name}: {row.question} (at most {part.allowance:.0f} s)", flush=True)

        def run(row: Row = row, part: Part = part) -> None:
            row.load()(bench, part)

        kept.append(part.run(run))
        if not any(PARTS[other].module in LARGE for other in waiting):
            bench.drop_base()
            free_memory()
        CheckRecord(
            format=FORMAT,
            command=command(),
            tiny=arguments.tiny,
            started=started,
            seconds=round(time.monotonic() - began, 1),
            machine=machine,
            parts=tuple(kept),
        ).write(arguments.out)
        if waiting and not usable(bench.device):
            shutil.rmtree(work, ignore_errors=True)
            _start_anew(arguments, waiting, arguments.seconds - (time.monotonic() - began))
    return kept


LARGE = ("training", "peers", "scoring")
"""Modules whose parts need the large model."""


def usable(device: object) -> bool:
    """Whether the device still computes: after an illegal access nothing in this process does."""
    import torch

    try:
        return bool((torch.ones(2, device=str(device)) + 1).sum().item() == 4)
    except RuntimeError:
        return False


def _start_anew(arguments: argparse.Namespace, waiting: Sequence[str], seconds: float) -> None:
    """Go on with the parts that wait in a new process, in place of this one."""
    print("The device no longer answers this process; the other parts run in a new one.")
    sys.stdout.flush()
    options = ["--only", ",".join(waiting), "--out", str(arguments.out), "--add"]
    tiny = ["--tiny"] if arguments.tiny else []
    command = [sys.executable, __file__, *options, *tiny, "--seconds", str(max(1, int(seconds)))]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    # Python looks first in the folder of a script, where the packages are not.
    sys.path[0] = str(REPOSITORY)
    sys.exit(main())
