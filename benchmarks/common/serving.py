"""Servers as processes of their own, and clients that cost little of the machine they share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADDRESS = re.compile(r"http://[\d.]+:(\d+)")
START_SECONDS = 120
# What common/machine.py's keep_heap sets in its own process.
KEEPS_HEAP = {
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=18446744073709551615"
}
# As aiohttp's. A server closes connections that were idle for longer, and a request that is sent at
# that moment is lost whatever the server does.
IDLE_SECONDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server process that listens on loopback."""

    process: subprocess.Popen[str]
    port: int

    def resident_bytes(self) -> int:
        """Memory that the process holds now (Linux)."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def terminate(self) -> int:
        """Send SIGTERM and wait for the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


@contextlib.contextmanager
def served(
    *arguments: str, log: Path, environment: Mapping[str, str] = KEEPS_HEAP
) -> Iterator[Server]:
    """A command that says its address on stderr, until the block ends.

    Where speed is compared it keeps the memory it frees, as the process that measures does
    (common/machine.py).
    """
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, *arguments],
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        ) as process,
    ):
        try:
            yield Server(process=process, port=_port(process, log))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=120)


def _port(process: subprocess.Popen[str], log: Path) -> int:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        found = ADDRESS.search(log.read_text(encoding="utf-8"))
        if found is not None:
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"the server did not start: {log.read_text(encoding='utf-8')[-2000:]}")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and seconds of one exchange, and the seconds after which to come back."""

    status: int
    body: bytes
    seconds: float
    retry_after: int | None

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One kept-alive HTTP/1.1 connection; enough of HTTP for these servers' answers."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def post(self, path: str, body: bytes) -> Answer:
        began = time.perf_counter()
        idle = began - self._used
        if self._streams is not None and (idle > IDLE_SECONDS or self._streams[0].at_eof()):
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        content = await reader.readexactly(int(length[1]))
        self._used = time.perf_counter()
        if b"connection: close" in head:
            self.close()
        again = re.search(rb"retry-after: (\d+)", head)
        return Answer(
            status=int(head.split(b" ", 2)[1]),
            body=content,
            seconds=time.perf_counter() - began,
            retry_after=None if again is None else int(again[1]),
        )

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def closed_loop(
    port: int, path: str, bodies: Sequence[bytes], clients: int
) -> tuple[float, list[Answer]]:
    """Seconds until all bodies are answered by ``clients`` that each wait for their answer."""
    answers: list[Answer | None] = [None] * len(bodies)
    waiting = iter(range(len(bodies)))

    async def client() -> None:
        connection = Connection(port)
        for number in waiting:
            answers[number] = await connection.post(path, bodies[number])
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - began, [answer for answer in answers if answer is not None]


class Pool:
    """Connections for any number of requests at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Connection]:
        connection = self._idle.pop() if self._idle else Connection(self._port)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
