"""``plaudit serve`` as a process: start, signals under load, options that cannot work."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from plaudit.cli.main import main
from plaudit.reward_model import load
from tests.test_structure import MODULES, imports
from tests.warm import environment_of_a_user

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.heavy


@dataclass(frozen=True, slots=True)
class Served:
    """A server process, where it answers, and the file of its log."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@contextmanager
def served(log: Path, *arguments: str) -> Iterator[Served]:
    environment = {**environment_of_a_user(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "plaudit", "serve", *arguments, "--port", "0"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stderr=errors, env=environment) as process,
    ):
        try:
            yield Served(process, address(process, log), log)
        finally:
            process.kill()


def address(process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(1200):
        found = re.search(r"at (http://[\d.:]+)", log.read_text(encoding="utf-8"))
        if found is not None:
            return found[1]
        assert process.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.05)
    raise AssertionError("the server did not start")


def test_a_busy_port_is_said_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no model, which is what loading it would say."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert main(["serve", str(tmp_path / "gone"), "--port", str(port)]) == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_signals_under_load_lose_nothing(finished_run: Path, tmp_path: Path) -> None:
    """SIGHUP loads the new version behind the name, SIGTERM drains; every answer is a right one."""
    link, new = tmp_path / "current", tmp_path / "new"
    shutil.copytree(finished_run, new)
    link.symlink_to(finished_run)
    expected = load(finished_run).score("a fox", ["right", "wrong"])
    body = {"prompt": "a fox", "responses": ["right", "wrong"]}
    statuses: list[int] = []

    def client(server: Served, number: int) -> str:
        """Ask until the server closes; a request that was taken must be answered."""
        with httpx.Client(timeout=60) as session:
            for turn in range(100_000):
                varied = {**body, "responses": [*body["responses"], f"{number} {turn}"]}
                try:
                    response = session.post(f"{server.url}/v1/rewards", json=varied)
                except httpx.TransportError:
                    # Not accepted any more; the log below tells whether it was.
                    return "closed"
                statuses.append(response.status_code)
                assert response.json()["rewards"][:2] == pytest.approx(expected, abs=1e-5)
        return "never closed"

    with served(tmp_path / "log", f"model={link}") as server, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, server, number) for number in range(8)]
        time.sleep(0.5)
        link.unlink()
        link.symlink_to(new)
        server.process.send_signal(signal.SIGHUP)
        for _ in range(400):
            if httpx.get(f"{server.url}/v1/models/model").json()["version"] == 2:
                break
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        assert [future.result() for future in clients] == ["closed"] * 8
        assert server.process.wait(timeout=60) == 0
        lines = server.lines()
    events = {line["event"] for line in lines}
    accepted = [line["status"] for line in lines if line.get("protocol") == "rewards"]
    # Every request that the server took was answered, and its client has the answer.
    assert accepted == statuses == [200] * len(statuses)
    assert len(statuses) > 20
    assert {"model_loaded", "draining"} <= events
    (said,) = [n for n in server.log.read_text().splitlines() if n and not n.startswith("{")]
    assert said.startswith("Serving model at http://127.0.0.1:")


def ready(server: Served) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{server.url}/ready", timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("no worker is ready")


def workers_of(server: Served) -> set[int]:
    """The processes below the first one: workers, and what Python starts beside them."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return {int(word) for word in children.read_text(encoding="ascii").split()}


def answered(server: Served) -> int:
    """Requests that all workers have counted."""
    metrics = httpx.get(f"{server.url}/metrics", timeout=60).text
    found = re.search(r'plaudit_requests_total{protocol="rewards",status="200"} (\d+)', metrics)
    return 0 if found is None else int(found[1])


def alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # Dead, and nobody has asked how it ended.
    return state.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks /proc for the workers")
def test_workers_answer_are_replaced_and_leave(finished_run: Path, tmp_path: Path) -> None:
    """Two processes behind one address: a killed one is started anew, SIGTERM ends them all."""
    expected = load(finished_run).score("a fox", ["right", "wrong"])

    def ask(server: Served, number: int) -> None:
        body = {"prompt": "a fox", "responses": ["right", "wrong", str(number)]}
        answer = httpx.post(f"{server.url}/v1/rewards", json=body, timeout=60).json()
        assert answer["rewards"][:2] == pytest.approx(expected, abs=1e-5)

    with served(tmp_path / "log", f"model={finished_run}", "--workers", "2") as server:
        ready(server)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: ask(server, number), range(40)))
        # Counts of both processes together.
        metrics = httpx.get(f"{server.url}/metrics").text
        counted = re.search(
            r'plaudit_requests_total{protocol="rewards",status="200"} (\d+)', metrics
        )
        assert counted is not None
        assert int(counted[1]) == 40
        first = workers_of(server)
        os.kill(max(first), signal.SIGKILL)
        for _ in range(1200):
            if len(workers_of(server) - first) == 1:
                break
            time.sleep(0.05)
        assert len(workers_of(server) - first) == 1
        ready(server)
        ask(server, 40)
        last = workers_of(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
        for _ in range(200):
            if not any(alive(number) for number in last):
                break
            time.sleep(0.05)
        assert not any(alive(number) for number in last)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere"),
        (["a=x", "a=y"], "Two models have the name a"),
        (["x", "--token-file", "missing"], "--token-file missing cannot be read"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_token_that_was_not_filled_in_does_not_open_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLAUDIT_SERVE_TOKEN", "\n")
    assert main(["serve", "nowhere"]) == 2
    assert "PLAUDIT_SERVE_TOKEN is empty" in capsys.readouterr().err


def test_a_taken_port_is_said_in_one_sentence(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(finished_run), "--port", str(port)]) == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_without_the_extra_the_verb_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from plaudit.cli import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main(["serve", "anything"]) == 2
    assert "pip install 'plaudit[serve]'" in capsys.readouterr().err


def test_scoring_needs_no_http_library() -> None:
    """What the modules that score in Python and files import, directly or not."""
    waiting, seen = ["reward_model", "score_file"], set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports(MODULES[module])
    assert "model.load" in seen
    text = "\n".join(MODULES[module].read_text(encoding="utf-8") for module in seen)
    assert not re.findall(r"^\s*(?:import|from) (?:fastapi|starlette|uvicorn|prom)", text, re.M)
