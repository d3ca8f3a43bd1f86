"""The tables of a check for the docs. They choose and format what was recorded, and add nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from benchmarks.common.results import Shown, figure, size
from benchmarks.gpu.record import Case, CheckRecord

Number = Callable[[Any], str]


def steps(record: CheckRecord) -> Shown:
    """8B LoRA steps by shape, attention, checkpointing and layers."""
    columns: tuple[tuple[str, str, Number], ...] = (
        ("tokens/s", "tokens_per_second", figure),
        ("pairs/s", "pairs_per_second", figure),
        ("MFU (4N)", "mfu_4n", _percent),
        ("MFU (6N)", "mfu_6n", _percent),
        ("tokens of a micro-batch", "micro_batch_tokens", "{:,}".format),
        ("peak memory", "peak_bytes", size),
        ("`plaudit plan`", "predicted_bytes", size),
    )
    planned = {case.name: case.numbers for case in _measured(record, "plan")}
    cases = [
        replace(case, numbers={**case.numbers, **planned.get(case.name, {})})
        for case in _measured(record, "steps")
    ]
    return _table("prompt + response, setting", cases, columns)


def peers(record: CheckRecord) -> Shown:
    """Every side at its best micro-batch."""
    columns: tuple[tuple[str, str, Number], ...] = (
        ("pairs/s", "pairs_per_second", figure),
        ("seconds of a step", "seconds", figure),
        ("peak memory", "peak_bytes", size),
    )
    cases = [case for case in _measured(record, "peers") if "pairs_per_second" in case.numbers]
    return _table("side, prompt + response", cases, columns)


def scoring(record: CheckRecord) -> Shown:
    """Packed scoring against padded batches."""
    columns: tuple[tuple[str, str, Number], ...] = (
        ("responses/s", "responses_per_second", figure),
        ("tokens/s", "tokens_per_second", figure),
        ("padded / packed", "speedup", "{:.2f}x".format),
    )
    return _table("prompt + response × responses", _measured(record, "scoring"), columns)


def checks(record: CheckRecord) -> Shown:
    """How many cases of each part passed, failed and were not run."""
    counted = ("passed", "failed", "measured", "not run")
    rows = tuple(
        (part.name, *(str(sum(c.status == status for c in part.cases)) for status in counted))
        for part in record.parts
    )
    return Shown(("part", *counted), rows)


TABLES: dict[str, Callable[[CheckRecord], Shown]] = {
    "gpu_checks": checks,
    "gpu_steps": steps,
    "gpu_peers": peers,
    "gpu_scoring": scoring,
}


def _measured(record: CheckRecord, name: str) -> list[Case]:
    parts = (part for part in record.parts if part.name == name)
    return [case for part in parts for case in part.cases if case.status == "measured"]


def _table(
    heading: str, cases: Iterable[Case], columns: tuple[tuple[str, str, Number], ...]
) -> Shown:
    rows = tuple(
        (
            case.name,
            *(
                "" if case.numbers.get(key) is None else write(case.numbers[key])
                for _, key, write in columns
            ),
        )
        for case in cases
    )
    return Shown((heading, *(title for title, _, _ in columns)), rows)


def _percent(share: float) -> str:
    return f"{share:.1%}"
