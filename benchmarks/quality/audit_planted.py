"""Does the audit find what is known to be there, and leave the rest alone?

    python -m benchmarks.quality.audit_planted --data DIR_OF_PAIRS [--rows 2000] [--rounds 3]

Real pairs, one per prompt, drawn from all files of the folder; ``--each`` defects of each kind are
planted in them (``common/planting.py``), and the file is audited. Counted per kind: defects that
their check flags. Counted as false alarms: rows without a planted defect that a check of single
rows flags. The findings of the same rows before planting are recorded beside it, since real pairs
are not free of defects either. Tokens are counted by the embedded base's tokenizer.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common.planting import KINDS, Row, plant, ranked
from benchmarks.common.results import Shown, console, parser, show
from benchmarks.common.results import recorder as start_recorder

QUESTION = "audit_planted"
MAX_LENGTH = 2048
# Longer real rows are over the length, or even identical behind it, without being planted.
MOST_CHARACTERS = 4000
# Properties of the set, not defects of a row: clean rows may be long.
NOT_ALARMS = ("over_length", "several_votes", "nothing_compared", "ties")


def clean_rows(folder: Path, count: int, seed: int) -> list[Row]:
    """Real pairs as ranked rows, evenly of all files, one per prompt."""
    generator = random.Random(seed)
    files = sorted(folder.glob("*.jsonl.gz"))
    per_file: list[list[Row]] = []
    for file in files:
        by_prompt: dict[str, Row] = {}
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        generator.shuffle(rows)
        for row in rows:
            if len(json.dumps(row)) <= MOST_CHARACTERS:
                by_prompt.setdefault(json.dumps(row["prompt"]), ranked(row))
        per_file.append(list(by_prompt.values()))
    found: list[Row] = []
    seen: set[str] = set()
    while len(found) < count and any(per_file):
        for rows in per_file:
            if rows and len(found) < count:
                row = rows.pop()
                key = json.dumps(row["prompt"])
                if key not in seen:
                    seen.add(key)
                    found.append(row)
    generator.shuffle(found)
    return found


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def audit(data: Path, eval_: Path | None = None, suite: Path | None = None) -> dict[str, set[int]]:
    """Line numbers of the rows that each check flags."""
    from plaudit.audit_data import AuditOptions, audit_data

    options = AuditOptions(
        data=[str(data)],
        eval_data=[] if eval_ is None else [str(eval_)],
        suites=[] if suite is None else [f"pairs:{suite}"],
        max_length=MAX_LENGTH,
        tokenizer="embedded",
    )
    flagged = audit_data(options).flagged
    return {check: {row + 1 for row in rows.rows_M.tolist()} for check, rows in flagged.items()}


def one_round(folder: Path, rows: int, each: int, seed: int) -> dict[str, Any]:
    clean = clean_rows(folder, rows, seed)
    planted = plant(clean, each, seed)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        before = audit(write(work / "clean.jsonl", clean))
        began = time.perf_counter()
        found = audit(
            write(work / "planted.jsonl", planted.rows),
            write(work / "held_out.jsonl", planted.eval_),
            write(work / "suite.jsonl", planted.suite),
        )
        seconds = time.perf_counter() - began
    alarms = {
        check: sorted(lines - planted.planted)
        for check, lines in found.items()
        if check not in NOT_ALARMS and lines - planted.planted
    }
    clean_count = len(planted.rows) - len(planted.planted)
    alarmed = set().union(*alarms.values()) if alarms else set()
    return {
        "seed": seed,
        "rows": len(planted.rows),
        "clean": clean_count,
        "seconds": seconds,
        "found": {kind: len(found[kind] & set(planted.lines[kind])) for kind in KINDS},
        "planted": each,
        "false_alarms": {check: len(lines) for check, lines in alarms.items()},
        "false_alarm_rows": len(alarmed),
        "false_alarm_share": len(alarmed) / clean_count,
        "before_planting": {
            check: len(lines)
            for check, lines in before.items()
            if lines and check not in NOT_ALARMS
        },
    }


def table(record: dict[str, Any]) -> Shown:
    """Found per kind over all rounds, and false alarms."""
    cases = record["cases"]
    found: Counter[str] = Counter()
    for case in cases:
        found.update(case["found"])
    planted = sum(case["planted"] for case in cases)
    rows = [(kind.replace("_", " "), f"{found[kind]} of {planted}") for kind in KINDS]
    alarms = sum(case["false_alarm_rows"] for case in cases)
    clean = sum(case["clean"] for case in cases)
    rows.append(("clean rows flagged", f"{alarms} of {clean:,} ({alarms / clean:.2%})"))
    return Shown(("planted defect", "detected"), tuple(rows))


def main() -> None:
    """Parse, plant and look in every round, write after each."""
    made = parser(__doc__, QUESTION)
    made.set_defaults(rounds=3)
    made.add_argument("--data", type=Path, required=True, help="folder of *.jsonl.gz of pairs")
    made.add_argument("--rows", type=int, default=2000, help="clean pairs before planting")
    made.add_argument("--each", type=int, default=25, help="defects of each kind")
    arguments = made.parse_args()
    recorder = start_recorder(QUESTION, arguments)
    for number in range(arguments.rounds):
        case = one_round(arguments.data, arguments.rows, arguments.each, arguments.seed + number)
        recorder.add({"name": f"round {number}", **case})
        console.log(f"round {number}: {case['false_alarms']} false alarms, {case['seconds']:.1f} s")
    show(table(recorder.record()))


if __name__ == "__main__":
    main()
