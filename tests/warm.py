"""A ``python`` that starts warm: a fork of a process that has imported torch and plaudit.

Most seconds of a short command are imports. :func:`python` is a program to call in place of
``sys.executable``, with ``-m``, ``-c`` or a script. As far as a test sees, it is a fresh process:
arguments, environment, folder, limits, stdin, stdout and stderr are those it was given, uncaught
errors, ``atexit`` and exit codes are the interpreter's own, and signals reach it.

What it cannot show needs ``sys.executable``: what is imported and when, what libraries say while
they are imported, and what differs between processes that import (hash seeds, threads of imports).
So each command has a test in a fresh process too. An environment whose variables libraries read at
import starts a fresh process here as well.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
SET_BY_COMMANDS = ("HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM")
"""What a command that ran in this process leaves in its environment."""


def environment_of_a_user() -> dict[str, str]:
    """The environment without what keeps libraries quiet in tests, and with every warning shown."""
    environment = {**os.environ, "PYTHONWARNINGS": "default", "COLUMNS": "100"}
    for name in ("TRANSFORMERS_VERBOSITY", *SET_BY_COMMANDS):
        environment.pop(name, None)
    return environment


@cache
def python() -> str:
    """The path of the program; its server starts on the first call and ends with this process.

    It is warm in :func:`environment_of_a_user`.
    """
    if sys.platform != "linux":
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="plaudit-warm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    environment = environment_of_a_user()
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    stub = folder / "python"
    source = (HERE / "warm_stub.py").read_text(encoding="utf-8")
    stub.write_text(f"#!{sys.executable} -IS\n{source}", encoding="utf-8")
    stub.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, str(HERE / "warm_server.py"), str(folder / "socket")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # As commands do, before huggingface_hub reads it.
        env={**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    assert server.stdout.readline() == "ready\n", "the server of warm processes did not start"
    return str(stub)


class Popen(subprocess.Popen[str]):
    """Of :func:`python`, where SIGKILL ends the process before ``wait`` returns."""

    def send_signal(self, number: int) -> None:
        super().send_signal(signal.SIGUSR1 if number == signal.SIGKILL else number)
