"""The check of a GPU runs to its end at tiny sizes on the CPU, and its record has its shape."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.check import PARTS
from benchmarks.gpu.record import Case, CheckRecord, Part, PartRecord, Value, read_check, shown
from benchmarks.gpu.tables import TABLES
from plaudit.model.packing import PACKED_ARCHITECTURES

REPOSITORY = Path(__file__).parents[2]


def check(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/gpu/check.py", "--tiny", "--out", str(out), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> CheckRecord:
    out = tmp_path_factory.mktemp("check")
    done = check(out)
    found = read_check(out)
    assert found is not None, done.stderr
    failed = [case for part in found.parts for case in part.cases if case.status == "failed"]
    assert done.returncode == 0, (failed, done.stderr)
    return found


def cases(record: CheckRecord, name: str) -> dict[str, Case]:
    (part,) = (part for part in record.parts if part.name == name)
    return {case.name: case for case in part.cases}


def counts(case: Case, name: str) -> Counter[str]:
    value = case.numbers[name]
    assert isinstance(value, dict)
    return Counter({key: int(count) for key, count in value.items()})


@pytest.mark.heavy
@pytest.mark.slow
def test_every_part_passes(record: CheckRecord) -> None:
    assert [part.name for part in record.parts] == list(PARTS)
    assert {part.status for part in record.parts} == {"passed"}
    assert not any(part.error for part in record.parts)


@pytest.mark.heavy
@pytest.mark.slow
def test_what_needs_cuda_is_named(record: CheckRecord) -> None:
    missing = {
        case.name: case.note
        for part in record.parts
        for case in part.cases
        if case.status == "not run"
    }
    assert missing.keys() == {
        "grouped heads",
        "no wait in a step",
        "a run within a share of the memory",
    }
    assert all(note.startswith("needs CUDA: ") for note in missing.values())


@pytest.mark.heavy
@pytest.mark.slow
def test_settings_are_engaged(record: CheckRecord) -> None:
    """A setting that did nothing would be measured as if it cost and gave nothing."""
    steps = cases(record, "steps")
    (plain,) = (case for name, case in steps.items() if name.endswith("+8, default attention"))
    (saving,) = (case for name, case in steps.items() if name.endswith("checkpointing"))
    (unfused,) = (case for name, case in steps.items() if name.endswith("own layers"))
    assert counts(saving, "attention").total() > counts(plain, "attention").total()
    assert counts(plain, "fused_modules") - counts(unfused, "fused_modules")
    assert plain.numbers["losses"] == saving.numbers["losses"]


@pytest.mark.heavy
@pytest.mark.slow
def test_sides_train_the_same_model(record: CheckRecord) -> None:
    losses: dict[str, list[Value]] = {}
    for name, case in cases(record, "peers").items():
        if "pairs_per_second" in case.numbers:
            losses.setdefault(name.partition(", ")[2], []).append(case.numbers["losses"])
    assert [len(sides) for sides in losses.values()] == [4, 4]
    for first, *others in losses.values():
        for other in others:
            assert other == pytest.approx(first, abs=1e-4)


@pytest.mark.heavy
@pytest.mark.slow
def test_the_docs_tables_are_made_of_the_record(record: CheckRecord) -> None:
    for name, table in TABLES.items():
        shown = table(record)
        assert shown.rows, name
        assert {len(row) for row in shown.rows} == {len(shown.headings)}


@pytest.mark.heavy
@pytest.mark.slow
def test_a_step_has_what_was_planned_for_it(record: CheckRecord) -> None:
    (planned,) = cases(record, "plan").values()
    measured = cases(record, "steps")[planned.name]
    assert planned.numbers["micro_batch_tokens"] == measured.numbers["micro_batch_tokens"]
    steps = TABLES["gpu_steps"](record)
    filled = [row[0] for row in steps.rows if row[steps.headings.index("`plaudit plan`")]]
    assert filled == [planned.name]


def test_an_unknown_part_is_a_usage_error(tmp_path: Path) -> None:
    done = check(tmp_path, "--only", "laws,step")
    assert done.returncode == 2
    assert "--only step: expected parts of" in done.stderr


@pytest.mark.heavy
def test_a_part_that_fails_keeps_its_cases_and_its_traceback(tmp_path: Path) -> None:
    part = Part("laws", 60, tmp_path)

    def run() -> None:
        part.measured("first", seconds=1.0)
        part.attempt("second", lambda: [][1])
        part.expect("third", True, "holds")
        raise RuntimeError("the end")

    found = part.run(run)
    assert [case.status for case in found.cases] == ["measured", "failed", "passed"]
    assert "IndexError" in found.cases[1].note
    assert found.status == "failed"
    assert "the end" in found.error


@pytest.mark.heavy
def test_a_part_over_its_time_is_stopped_and_what_is_left_is_named(tmp_path: Path) -> None:
    part = Part("laws", 0.2, tmp_path)

    def run() -> None:
        part.measured("first", seconds=1.0)
        while True:
            try:
                sum(range(1000))
            except Exception:
                pytest.fail("a library's handler must not keep the alarm")

    found = part.run(run)
    assert [case.status for case in found.cases] == ["measured", "not run"]
    assert found.status == "passed"
    assert found.seconds < 5


@pytest.mark.heavy
def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    case = Case(name="one", status="measured", numbers={"seconds": 0.5, "forms": {"sdpa": 2}})
    part = PartRecord(
        name="laws", status="passed", seconds=1.0, allowance_seconds=2.0, cases=(case,)
    )
    written = CheckRecord(
        format=1, command="", tiny=True, started="", seconds=1.0, machine={}, parts=(part,)
    )
    assert read_check(tmp_path) is None
    written.write(tmp_path)
    assert read_check(tmp_path) == written
    replace(written, format=0).write(tmp_path)
    with pytest.raises(ValueError, match="format 0, expected 1"):
        read_check(tmp_path)


def test_a_case_is_one_line_with_units() -> None:
    numbers: dict[str, Value] = {
        "peak_bytes": 62.5e9,
        "tokens_per_second": 14213.4,
        "losses": [0.7],
    }
    line = shown(Case(name="1024+512", status="measured", numbers=numbers))
    assert line.split("  ")[-1].strip() == "62.5 GB"
    assert "14,213 tokens/s" in line
    assert "0.7" not in line
    failed = Case(name="1024+512", status="failed", note="Traceback:\n  …\nValueError: no\n")
    assert shown(failed) == "  FAIL 1024+512\n       ValueError: no"


@pytest.mark.heavy
def test_flex_attention_compiles_the_heads_that_the_laws_have() -> None:
    from benchmarks.gpu.laws import tiny

    for name in PACKED_ARCHITECTURES:
        config: Any = tiny(name).config
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        assert width >= 16, name


@pytest.mark.heavy
def test_no_fitting_micro_batch_leaves_the_other_sides_to_be_measured(tmp_path: Path) -> None:
    import torch

    from benchmarks.gpu.bench import TINY, Bench
    from benchmarks.gpu.peers import Run, Side, _measure

    def too_large(*_: object) -> Any:
        raise torch.OutOfMemoryError

    bench = Bench(tiny=True, device=torch.device("cpu"), sizes=TINY, work=tmp_path)
    part = Part("peers", 60, tmp_path)
    run = Run("padded", Side(too_large), [])
    unused: Any = None
    assert _measure(bench, part, unused, run, (4, 2)) == 2
    (case,) = part.record().cases
    assert (case.status, case.note) == ("not run", "no micro-batch of 4, 2 fits the memory")


@pytest.mark.heavy
def test_time_of_an_annotated_region_is_counted_once() -> None:
    import torch
    from torch.profiler import record_function
    from transformers import TrainerState

    from benchmarks.gpu.training import _Profile

    profiled = _Profile(torch.device("cpu"), step=1)
    profiled.on_step_begin(None, TrainerState(), None)
    with record_function("Optimizer.step of a gemm"):
        time.sleep(0.05)
    profiled.on_step_end(None, TrainerState(), None)
    assert profiled.by_kind()["matmul"] == 0
