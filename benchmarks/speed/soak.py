"""Does the server stay up at twice what it can do: memory, lost requests, wrong scores?

    python -m benchmarks.speed.soak [--model embedded] [--minutes 10] [--load 2]

First the capacity is measured with 32 connections that wait for their answers. Then requests
arrive at ``--load`` times that rate at random times (Poisson), whether or not earlier ones were
answered. Every request must end with rewards within 1e-5 of the model's own or with a refusal that
says when to come back; the server's resident memory is read every second. It keeps no scores, and
so few beginnings of conversations that they are dropped all the time. At the end SIGTERM is sent
while requests are under way. Exit code 1 if anything was lost or wrong.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import plots
from benchmarks.common.models import MODELS, build_base
from benchmarks.common.results import Shown, console, figure, median, parser, show, size
from benchmarks.common.serving import Answer, Pool, Server, closed_loop, served
from benchmarks.speed.serving import pair_bodies, pair_rows

QUESTION = "soak"
TOLERANCE = 1e-5
DISTINCT = 400
REFUSALS = frozenset({503, 504})


@dataclass(slots=True)
class Tally:
    """What became of the requests, and the server's memory over time."""

    sent: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    lost_at: list[float] = field(default_factory=list)


async def capacity(port: int, bodies: Sequence[bytes]) -> float:
    """Requests a second that 32 waiting clients get answered."""
    await closed_loop(port, "/v1/rewards", bodies[:64], 32)
    seconds, answers = await closed_loop(port, "/v1/rewards", bodies, 32)
    return len(answers) / seconds


def judge(tally: Tally, answer: Answer, expected: Sequence[float]) -> None:
    """Count an answer; a refusal without a time to come back is none."""
    if answer.status == 200:
        tally.ends["answered"] += 1
        tally.seconds.append(answer.seconds)
        found = answer.json()["rewards"]
        tally.wrong += any(abs(a - b) > TOLERANCE for a, b in zip(found, expected, strict=True))
    elif answer.status in REFUSALS and answer.retry_after is not None:
        tally.ends[f"refused {answer.status}"] += 1
    else:
        tally.ends[f"failed {answer.status}"] += 1


async def arrive(
    server: Server,
    bodies: Sequence[bytes],
    expected: Sequence[Sequence[float]],
    *,
    rate: float,
    seconds: float,
    seed: int,
) -> Tally:
    """Requests at random times for so many seconds, then SIGTERM with some of them under way."""
    generator, tally, pool = random.Random(seed), Tally(), Pool(server.port)
    under_way: set[asyncio.Task[None]] = set()
    began = time.perf_counter()

    async def ask(number: int) -> None:
        try:
            async with pool.one() as connection:
                answer = await connection.post("/v1/rewards", bodies[number])
        except (OSError, asyncio.IncompleteReadError) as error:
            tally.ends[f"lost ({type(error).__name__})"] += 1
            tally.lost_at.append(time.perf_counter() - began)
        else:
            judge(tally, answer, expected[number])

    due, shown = 0.0, -1.0
    while (now := time.perf_counter() - began) < seconds:
        if now - shown >= 1:
            tally.memory.append((now, server.resident_bytes()))
            shown = now
        if now < due:
            await asyncio.sleep(min(due - now, 0.05))
            continue
        due += generator.expovariate(rate)
        tally.sent += 1
        task = asyncio.create_task(ask(generator.randrange(len(bodies))))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    server.process.terminate()
    await asyncio.gather(*under_way)
    return tally


def verdict(tally: Tally) -> dict[str, Any]:
    """The run in numbers. Memory: the medians of the second and the last quarter."""
    quarter = max(1, len(tally.memory) // 4)
    resident = [float(held) for _, held in tally.memory]
    lost = sum(n for end, n in tally.ends.items() if end.startswith(("lost", "failed")))
    ordered = sorted(tally.seconds)
    return {
        "sent": tally.sent,
        "ends": dict(tally.ends),
        "lost": lost + tally.sent - sum(tally.ends.values()),
        "lost_at_seconds": tally.lost_at,
        "wrong": tally.wrong,
        "p50_seconds": median(ordered),
        "p99_seconds": ordered[int(0.99 * (len(ordered) - 1))],
        "memory": {
            "early": median(resident[quarter : 2 * quarter] or resident),
            "late": median(resident[-quarter:]),
            "largest": max(resident),
        },
    }


def table(record: dict[str, Any]) -> Shown:
    rows = []
    for case in record["cases"]:
        refused = sum(n for end, n in case["ends"].items() if end.startswith("refused"))
        rows.append(
            (
                case["model"],
                f"{case['minutes']:g} min at {case['load']:g}x {figure(case['capacity'])}/s",
                f"{case['ends'].get('answered', 0):,}",
                f"{refused:,}",
                f"{case['lost']:,}",
                f"{case['wrong']:,}",
                f"{figure(case['p50_seconds'])} s",
                f"{size(case['memory']['early'])} to {size(case['memory']['late'])}",
            )
        )
    headings = ("model", "load", "answered", "rejected", "lost", "wrong", "p50", "memory")
    return Shown(headings, tuple(rows))


def draw(record: dict[str, Any], folder: Path) -> None:
    """Memory over time."""
    for case in record["cases"]:
        points = [(second, held / 2**20) for second, held in case["memory_over_time"]]
        plots.lines(
            folder / "memory.png",
            {"plaudit serve": points},
            x="seconds",
            y="resident memory, MiB",
        )


def main() -> None:
    """Measure the capacity, send twice as much, judge."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--model", default="embedded", help=f"of {', '.join(MODELS)}")
    made.add_argument("--minutes", type=float, default=10.0)
    made.add_argument("--load", type=float, default=2.0)
    made.add_argument("--max-requests", type=int, default=256)
    made.add_argument("--prefix-cache-mib", type=int, default=16)
    arguments = made.parse_args()

    from benchmarks.common.saved import saved_model
    from benchmarks.common.sides import begin
    from plaudit.reward_model import load

    recorder = begin(QUESTION, arguments, settings={})
    rows = pair_rows(DISTINCT, arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        base = build_base(arguments.model, work / "base", seed=arguments.seed)
        folder = saved_model(base, work / "run")
        model = load(folder)
        expected = [model.score(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows]
        limits = ("--max-requests", str(arguments.max_requests))
        kept = ("--cached-scores", "0", "--prefix-cache-mib", str(arguments.prefix_cache_mib))
        command = ("-m", "plaudit", "serve", str(folder), "--port", "0", *limits, *kept)
        # With the memory settings of a server that somebody starts: memory is the question.
        with served(*command, log=work / "serve.log", environment={}) as server:
            can = asyncio.run(capacity(server.port, pair_bodies(rows)))
            console.log(f"capacity {can:.1f} requests a second")
            tally = asyncio.run(
                arrive(
                    server,
                    pair_bodies(rows),
                    expected,
                    rate=arguments.load * can,
                    seconds=60 * arguments.minutes,
                    seed=arguments.seed,
                )
            )
            code = server.process.wait(timeout=120)
    found = verdict(tally)
    recorder.add(
        {
            "model": arguments.model,
            "minutes": arguments.minutes,
            "load": arguments.load,
            "capacity": can,
            "exit_code": code,
            **found,
            "memory_over_time": tally.memory,
        }
    )
    record = recorder.record()
    show(table(record))
    draw(record, recorder.folder)
    if found["lost"] or found["wrong"] or code != 0:
        raise SystemExit(f"lost {found['lost']}, wrong {found['wrong']}, exit code {code}")


if __name__ == "__main__":
    main()
