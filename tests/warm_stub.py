"""Stands in for a ``python``: asks the server of ``tests/warm.py`` to fork itself in its place.

Its stdin, stdout, stderr, folder, environment, limits and arguments become those of the fork. It
hands on signals, and ends as the fork does. Few imports: each command starts one.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

READ_AT_IMPORT = ("HF_", "HOME", "LD_", "MPL", "OMP_", "PYTHON", "TRANSFORMERS_", "XDG_")
"""How the names of variables begin that are read once; another value needs a fresh process."""


def same_at_import(one: dict[str, str], two: dict[str, str]) -> bool:
    first, second = (
        {name: value for name, value in variables.items() if name.startswith(READ_AT_IMPORT)}
        for variables in (one, two)
    )
    return first == second


def ask(path: Path, arguments: list[str]) -> socket.socket:
    """A connection on which the server says the fork's id, then how it ended."""
    kinds = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    limits = [(kind, resource.getrlimit(kind)) for kind in kinds]
    request = json.dumps([str(Path.cwd()), dict(os.environ), limits, arguments]).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(request)
    return connection


def hand_on_signals(child: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        # SIGKILL cannot be handed on: tests/warm.py sends another in its place.
        sent = signal.SIGKILL if number == signal.SIGUSR1 else number
        signal.signal(number, lambda *_, sent=sent: os.kill(child, sent))


if __name__ == "__main__":
    folder, arguments = Path(__file__).parent, sys.argv[1:]
    served = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    if not same_at_import(dict(os.environ), served):
        os.execv(sys.executable, [sys.executable, *arguments])
    connection = ask(folder / "socket", arguments)
    hand_on_signals(int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big"))
    status = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big", signed=True)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
