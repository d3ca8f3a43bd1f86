"""Imports what commands import, then forks itself for every ``python`` that a stub asks for.

``tests/warm.py`` starts it with the path of a socket, and says what a fork has in common with a
fresh process. It ends when its stdin is closed.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ON_FIRST_USE = (
    "datasets.arrow_dataset",
    "matplotlib.pyplot",
    "peft.tuners.lora.model",
    "scipy.stats",
    "sklearn.linear_model",
    "torch.distributed.run",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
)
"""What plaudit imports inside functions, and transformers by the type of a model."""


class Request(NamedTuple):
    """What a process inherits from the one that starts it, and the arguments of ``python``."""

    folder: str
    environment: dict[str, str]
    limits: list[tuple[int, tuple[int, int]]]
    arguments: list[str]


def preload() -> None:
    import plaudit

    ours = (module.name for module in pkgutil.walk_packages(plaudit.__path__, "plaudit."))
    for name in (*ours, *ON_FIRST_USE):
        if not name.endswith("__main__"):
            importlib.import_module(name)


def receive(connection: socket.socket) -> tuple[Request, list[int]]:
    """What a stub asks for, and its stdin, stdout and stderr."""
    size, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        return Request(*json.loads(stream.read(int.from_bytes(size, "big")))), descriptors


def serve(listener: socket.socket) -> tuple[Request, list[int]]:
    """Fork until stdin is closed; returns in the forks alone, with what they are to run."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            sys.exit()
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return supervise(connection)
        connection.close()
        while any(os.waitpid(-1, os.WNOHANG)):
            pass


def supervise(connection: socket.socket) -> tuple[Request, list[int]]:
    """Fork once more; returns in the child, and else tells the stub how the child ended."""
    request, descriptors = receive(connection)
    child = os.fork()
    if child == 0:
        connection.close()
        return request, descriptors
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (*descriptors, 0, 1, 2):
        os.close(descriptor)
    connection.sendall(child.to_bytes(8, "big"))
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([connection.fileno(), ended], [], [])
    if connection.fileno() in ready:
        os.kill(child, signal.SIGKILL)  # as the stub was
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):
        connection.sendall(status.to_bytes(8, "big", signed=True))
    os._exit(0)


def take_over(request: Request, descriptors: list[int]) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    for kind, limits in request.limits:
        resource.setrlimit(kind, limits)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        lines = stream is sys.stderr or stream.isatty()
        stream.reconfigure(line_buffering=lines, write_through=request.arguments[0] == "-u")


def run(arguments: list[str]) -> None:
    """As ``python`` does, with its ``sys.argv`` and its first entry of ``sys.path``."""
    what, *rest = arguments
    if what == "-u":
        run(rest)
    elif what == "-m":
        sys.argv, sys.path[0] = rest, str(Path.cwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = arguments, str(Path(what).parent.absolute())
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    preload()
    # A fork has none of the threads, and would wait forever for a lock that one holds; the thread
    # of pyarrow's allocator lets go of its own at a fork.
    threads = {path.read_text() for path in Path("/proc/self/task").glob("*/comm")}
    assert threads - {"jemalloc_bg_thd\n"} == {Path("/proc/self/comm").read_text()}, threads
    # Objects that no collection visits stay in pages that the forks share.
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        print("ready", flush=True)
        request, descriptors = serve(listener)
    take_over(request, descriptors)
    run(request.arguments)
