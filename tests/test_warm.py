"""A fork stands in for a fresh process: each check compares the two, or says what it must be."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import Popen, environment_of_a_user, python

pytestmark = pytest.mark.heavy

SEEN = """
import atexit, json, os, resource, signal, sys
atexit.register(print, "at exit")
print("to stderr", file=sys.stderr)
signals = [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)]
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
print(json.dumps([sys.argv, sys.stdin.read(), os.getcwd(), dict(os.environ), signals, limit]))
print([__name__, sys.path[0], sys.stdout.isatty(), sys.stdout.line_buffering, sys.stdout.encoding])
raise SystemExit(int(sys.argv[1]))
"""


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_345_678, 12_345_678))


@pytest.mark.parametrize("way", ["script", "module", "code"])
def test_a_process_gets_what_it_is_given(way: str, tmp_path: Path) -> None:
    (tmp_path / "seen.py").write_text(SEEN)
    start = {"script": ["seen.py"], "module": ["-m", "seen"], "code": ["-c", SEEN]}[way]
    fork, fresh = (
        subprocess.run(
            [program, *start, "3", "a b"],
            input="typed",
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**environment_of_a_user(), "OWN": "1"},
            preexec_fn=limit_files,
        )
        for program in (python(), sys.executable)
    )
    assert fork.returncode == fresh.returncode == 3
    assert fork.stdout == fresh.stdout
    assert fork.stderr == fresh.stderr == "to stderr\n"
    assert json.loads(fork.stdout.splitlines()[0])[0][1:] == ["3", "a b"]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python(), "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**environment_of_a_user(), **environment},
    )


def test_it_is_warm_unless_libraries_read_another_environment() -> None:
    code = "import sys; print('torch' in sys.modules)"
    assert run(code, OWN="1").stdout == f"{sys.platform == 'linux'}\n"
    assert run(code, HF_HUB_OFFLINE="0").stdout == "False\n"


def test_an_error_has_a_traceback_and_a_signal_ends_it() -> None:
    failed = run("[][1]")
    assert failed.returncode == 1
    assert failed.stderr.endswith("\nIndexError: list index out of range\n")
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGABRT):
        assert run(f"import os; os.kill(os.getpid(), {number})").returncode == -number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it(number: signal.Signals) -> None:
    """And it is gone when ``wait`` returns."""
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    process = Popen(
        [python(), "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment_of_a_user(),
    )
    assert process.stdout is not None
    own_id = process.stdout.readline().strip()
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    assert not Path("/proc", own_id).exists()
    process.stdout.close()
