"""How much do large bodies and half-sent requests delay everybody else's requests?

    python -m benchmarks.speed.server_isolation [--seconds 10] [--mib 1,8] [--connections 500,2000]

A small request whose score is cached is sent again and again on one connection, first alone, then
while another process does one of these:

- it posts bodies of ``--mib`` MiB, one after the other: texts, chat messages, token ids, and a list
  of wrong types. They name a model that is not served, so that they are parsed and not scored;
- it holds ``--connections`` connections that have sent nothing, half of their headers, or half of
  their body. Afterwards it counts those that the server has closed within ``--patience`` seconds.

The time of a small request is then that of the event loop, of HTTP and of the tokenizer. Server and
clients share the machine.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.common.models import build_base
from benchmarks.common.results import (
    Shown,
    console,
    figure,
    median,
    numbers,
    parser,
    recorder,
    show,
)
from benchmarks.common.serving import Connection, Server, served

QUESTION = "server_isolation"
MIB = 1 << 20
PAUSE = 0.005
SETTLE = 1.0
SMALL = {"prompt": "Name a prime.", "responses": ["7", "8"]}
WORDS = ("fox", "hedge", "answer", "living", "né", "日本", "the", "of")
HEAD = b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALF_SENT = {
    "nothing sent": b"",
    "half of the headers": HEAD,
    "half of the body": HEAD + b"Content-Length: 1000\r\n\r\n{",
}


def words(count: int) -> str:
    return " ".join(random.Random(count).choices(WORDS, k=count))


def texts(size: int) -> dict[str, Any]:
    return {"prompt": "p", "responses": [words(200)] * (size // 1300)}


def messages(size: int) -> dict[str, Any]:
    return {
        "prompt": "p",
        "responses": [[{"role": "assistant", "content": words(20)}]] * (size // 185),
    }


def token_ids(size: int) -> dict[str, Any]:
    ids = random.Random(size).choices(range(50_000), k=500)
    return {"input": [ids] * (size // 3450)}


def wrong_types(size: int) -> dict[str, Any]:
    return {"prompt": "p", "responses": [1] * (size // 3)}


BODIES: Mapping[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "texts": ("/v1/rewards", texts),
    "messages": ("/v1/rewards", messages),
    "token ids": ("/classify?model=other", token_ids),
    "wrong types": ("/v1/rewards", wrong_types),
}


def post_again_and_again(port: int, path: str, body: bytes) -> None:
    """Runs in a process of its own until that is terminated."""

    async def post() -> None:
        connection = Connection(port)
        while True:
            await connection.post(path, body)

    asyncio.run(post())


async def small_requests(port: int, seconds: float) -> tuple[list[float], list[int]]:
    """Milliseconds and statuses of small requests, sent one after the other for ``seconds``."""
    connection = Connection(port)
    body = json.dumps(SMALL).encode()
    milliseconds: list[float] = []
    statuses: list[int] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        answer = await connection.post("/v1/rewards", body)
        milliseconds.append(1000 * answer.seconds)
        statuses.append(answer.status)
        await asyncio.sleep(PAUSE)
    connection.close()
    return milliseconds, statuses


def measured(server: Server, seconds: float) -> dict[str, Any]:
    milliseconds, statuses = asyncio.run(small_requests(server.port, seconds))
    ordered = sorted(milliseconds)
    return {
        "milliseconds": milliseconds,
        "p50": median(milliseconds),
        "p99": ordered[int(0.99 * len(ordered))],
        "max": ordered[-1],
        "requests": len(statuses),
        "not_answered": sum(status != 200 for status in statuses),
    }


def beside_bodies(server: Server, name: str, mib: int, seconds: float) -> dict[str, Any]:
    path, build = BODIES[name]
    body = json.dumps({**build(mib * MIB), "model": "other"}).encode()
    other = multiprocessing.get_context("spawn").Process(
        target=post_again_and_again, args=(server.port, path, body), daemon=True
    )
    other.start()
    time.sleep(SETTLE)
    case = measured(server, seconds)
    other.terminate()
    other.join()
    # Until the server has done with what it had read.
    measured(server, 1)
    return {"kind": f"{mib} MiB of {name}", "bytes": len(body), **case}


def beside_connections(
    server: Server, name: str, connections: int, seconds: float, patience: float
) -> dict[str, Any]:
    held = []
    for _ in range(connections):
        with suppress(OSError):
            one = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            one.sendall(HALF_SENT[name])
            held.append(one)
    try:
        case = measured(server, seconds)
        until = time.monotonic() + patience
        while (still := sum(map(is_open, held))) and time.monotonic() < until:
            time.sleep(0.5)
        waited = patience - (until - time.monotonic())
    finally:
        for one in held:
            one.close()
    more = {"opened": len(held), "open_at_the_end": still, "seconds": waited}
    return {"kind": f"{connections} connections, {name}", **more, **case}


def is_open(connection: socket.socket) -> bool:
    """Whether the server has not closed it; what it answered before is read."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def table(record: dict[str, Any]) -> Shown:
    """A line per disturbance, a column per server that was measured."""
    names = list(dict.fromkeys(case["name"] for case in record["cases"]))
    found = {(case["kind"], case["name"]): case for case in record["cases"]}
    rows = [
        (kind, *(_cell(found.get((kind, name))) for name in names))
        for kind in dict.fromkeys(case["kind"] for case in record["cases"])
    ]
    headings = ("concurrent load", *(f"{name}: p50, p99, max ms" for name in names))
    return Shown(headings, tuple(rows))


def _cell(case: dict[str, Any] | None) -> str:
    if case is None:
        return "not measured"
    times = ", ".join(figure(case[name]) for name in ("p50", "p99", "max"))
    if "opened" not in case:
        return times
    return f"{times}; {case['open_at_the_end']} open after {case['seconds']:.0f} s"


def main() -> None:
    """Parse, measure, write after each case."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--model", default="tiny")
    made.add_argument("--seconds", type=float, default=10.0, help="of each case")
    made.add_argument("--mib", default="1,8")
    made.add_argument("--connections", default="500,2000")
    made.add_argument("--name", default="now", help="of the server, beside others with --add")
    made.add_argument("--patience", type=float, default=40.0)
    arguments = made.parse_args()

    from benchmarks.common.saved import saved_model

    record = recorder(QUESTION, arguments)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        base = build_base(arguments.model, work / "base", seed=arguments.seed)
        folder = saved_model(base, work / "run")
        serve = ("-m", "plaudit", "serve", str(folder), "--port", "0")
        with served(*serve, log=work / "serve.log", environment={}) as server:
            measured(server, 1)
            record.add(
                {"name": arguments.name, "kind": "nothing", **measured(server, arguments.seconds)}
            )
            for mib in numbers(arguments.mib):
                for name in BODIES:
                    case = beside_bodies(server, name, mib, arguments.seconds)
                    record.add({"name": arguments.name, **case})
                    console.log(case["kind"], case["p99"])
            for count in numbers(arguments.connections):
                for name in HALF_SENT:
                    case = beside_connections(
                        server, name, count, arguments.seconds, arguments.patience
                    )
                    record.add({"name": arguments.name, **case})
                    console.log(case["kind"], case["p99"], case["open_at_the_end"])
    show(table(record.record()))


if __name__ == "__main__":
    main()
