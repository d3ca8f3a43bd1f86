"""The server under bad requests, limits, hang-ups and reloads; each test is real HTTP."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import resource
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cohere
import httpx
import pytest

from plaudit.errors import ModelError
from plaudit.model.attention import kv_cache
from plaudit.reward_model import RewardModel
from plaudit.serving import app as app_module
from plaudit.serving import engine as engine_module
from plaudit.serving import server as server_module
from plaudit.serving.middleware import LOCAL_NAMES, JsonLines, allowed_names
from plaudit.serving.protocols.records import parse_body
from plaudit.serving.protocols.table import PROTOCOLS
from plaudit.serving.scheduler import score_slices
from plaudit.serving.server import BoundedConnection, with_open_files
from plaudit.serving.settings import ModelSource, ServerSettings, SettingsError, host_names
from tests.servers import Running, running

pytestmark = pytest.mark.heavy
BODY = PROTOCOLS["rewards"].example


@pytest.fixture(scope="module")
def server(finished_run: Path) -> Iterator[Running]:
    with running(finished_run, max_body_bytes=200_000, body_timeout=1.0) as found:
        yield found


def error(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"type", "message", "param", "request_id"}
    assert body["error"]["type"] == kind
    assert response.headers["x-request-id"] == body["error"]["request_id"]
    found: dict[str, Any] = body["error"]
    return found


def still_answers(server: Running) -> None:
    assert server.post("/v1/rewards", BODY).status_code == 200


@pytest.mark.parametrize("cached_scores", [0, 1 << 16])
def test_equal_responses_of_a_long_request_have_one_reward(
    finished_run: Path, cached_scores: int
) -> None:
    """They are computed in several batches: each turn takes only a part of the request."""
    responses = [r for n in range(40) for r in ("it is right", f"no {'because ' * n}{n}")]
    with running(finished_run, cached_scores=cached_scores, max_batch_tokens=64) as server:
        answer = server.post("/v1/rewards", {"prompt": "fox", "responses": responses}).json()
        assert len(set(answer["rewards"][::2])) == 1
        assert len(set(answer["ranks"][::2])) == 1


# ---- bad requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "words"),
    [
        ("/v1/rewards", {"prompt": "p", "responses": []}, 422, "invalid_request", "responses"),
        ("/v1/rewards", {"prompt": 3, "responses": ["a"]}, 422, "invalid_request", "prompt"),
        (
            "/v1/rewards",
            {"prompt": "p", "responses": ["a"], "system": "s"},
            422,
            "invalid_request",
            "system: looks like a system message",
        ),
        ("/v1/rewards", ["p"], 422, "invalid_request", "not a JSON object"),
        ("/classify", ["p"], 422, "invalid_request", "not a JSON object"),
        ("/score", "p", 422, "invalid_request", "not a JSON object"),
        ("/v1/embeddings", None, 422, "invalid_request", "not a JSON object"),
        ("/classify", {"text": None, "input": [], "messages": None}, 200, "", ""),
        ("/v1/rewards", {**BODY, "model": "other"}, 404, "model_not_found", "lora"),
        ("/v1/rewards", {"prompt": "p " * 400, "responses": ["a"]}, 400, "over_length", "256"),
        ("/v1/rewards", {"prompt": "\ud800", "responses": ["a"]}, 400, "bad_request", "surrogate"),
        ("/classify", {"text": "a", "rid": "\udc00"}, 400, "bad_request", "surrogate"),
        (
            "/v1/rewards",
            {"prompt": [{"role": "user", "content": [{"t": "\ud800"}]}], "responses": ["a"]},
            400,
            "bad_request",
            "surrogate",
        ),
        (
            "/v1/rewards",
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "responses": ["a"]},
            422,
            "invalid_request",
            "images",
        ),
        ("/get_reward", {"query": [""]}, 400, "bad_request", "no tokens"),
        ("/classify", {"input": [10**6]}, 400, "bad_request", "token id"),
        ("/classify", {"input": []}, 200, "", ""),
        ("/v1/score/evaluation", {"messages": []}, 400, "bad_request", "messages"),
        ("/nowhere", {}, 404, "not_found", ""),
        ("/health", {}, 405, "method_not_allowed", ""),
    ],
)
def test_bad_requests_are_told_what_is_wrong(
    server: Running, path: str, body: Any, status: int, kind: str, words: str
) -> None:
    response = httpx.post(
        f"{server.url}{path}",
        content=json.dumps(body),
        headers={"content-type": "application/json"},
    )
    if status == 200:
        assert response.status_code == 200
    else:
        assert words in error(response, status, kind)["message"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 50_000, b'{"prompt": ' + b"1" * 5000 + b"}", b"null"]
)
def test_a_body_that_is_not_json(server: Running, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server.url}/v1/rewards", content=content, headers=headers)
    assert response.status_code in (400, 422)
    error(response, response.status_code, response.json()["error"]["type"])
    still_answers(server)


def test_a_defect_has_the_shape_of_every_error(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(finished_run) as server:
        monkeypatch.setattr(type(server.model), "encode", lambda *_: 1 / 0)
        error(server.post("/v1/rewards", BODY), 500, "internal_error")


def test_no_error_repeats_what_was_sent(server: Running) -> None:
    secret = "the prompt of a client"
    response = server.post("/v1/rewards", {"prompt": {"x": secret}, "responses": secret})
    assert secret not in response.text


@pytest.mark.parametrize(
    "long", [{"input": "p " * 400}, {"messages": [{"role": "user", "content": "p " * 400}]}]
)
def test_minus_one_keeps_as_many_tokens_as_the_model_reads(
    server: Running, long: dict[str, Any]
) -> None:
    error(server.post("/classify", long), 400, "over_length")
    cut = server.post("/classify", {**long, "truncate_prompt_tokens": -1})
    assert cut.json()["usage"]["prompt_tokens"] == 256


def test_any_name_will_do_where_one_model_is_served(server: Running) -> None:
    assert server.post("/get_reward", {"query": ["a"], "model": "policy"}).status_code == 200
    assert server.post("/get_reward?model=lora", {"query": ["a"]}).status_code == 200
    error(server.post("/get_reward?model=x", {"query": ["a"]}), 404, "model_not_found")


def test_another_name_for_this_machine_is_rejected(finished_run: Path) -> None:
    """A page whose own name was made to mean 127.0.0.1 reads neither rewards nor the report."""
    foreign = (
        "evil.example",
        "localhost.evil.example:80",
        "[::1].evil.example",
        "127.0.0.1.nip.io",
    )
    own = ("localhost", "LOCALHOST:8000", "[::1]:8000", "rewards.internal:443")
    with running(finished_run, allowed_hosts=("rewards.internal",)) as server:
        for name in (*own, *foreign):
            for response in (
                server.post("/v1/rewards", BODY, headers={"host": name}),
                server.get("/v1/models", headers={"host": name}),
                server.get("/", headers={"host": name}),
            ):
                assert response.status_code == (403 if name in foreign else 200), name
        response = server.get("/health", headers={"host": foreign[0]})
        assert "--allowed-host" in error(response, 403, "forbidden")["message"]
    with running(finished_run, token="secret") as server:
        assert server.get("/health", headers={"host": foreign[0]}).status_code == 200


def test_a_server_for_other_machines_takes_any_name() -> None:
    models = (ModelSource(name="a", path="a"),)
    assert allowed_names(ServerSettings(models=models, host="0.0.0.0")) is None
    assert allowed_names(ServerSettings(models=models, host="rewards.internal")) is None
    assert allowed_names(ServerSettings(models=models, host="127.0.0.2")) == {
        "127.0.0.2",
        *LOCAL_NAMES,
    }
    for host in ("127.1", "::1", "::ffff:127.0.0.1", "LocalHost"):
        assert allowed_names(ServerSettings(models=models, host=host)) is not None
    container = ServerSettings(models=models, host="0.0.0.0", allowed_hosts=("localhost",))
    assert allowed_names(container) == {"0.0.0.0", *LOCAL_NAMES}


@pytest.mark.parametrize("word", ["rewards.internal:443", "http://rewards", "[::1]", ""])
def test_what_is_no_name_cannot_be_allowed(word: str) -> None:
    with pytest.raises(SettingsError, match="allowed-host"):
        host_names([word])


# ---- what is kept from batch to batch ------------------------------------------------------------

PROMPT = [{"role": "user", "content": "what do you know of foxes and of the hedges they live in"}]


def scored(server: Running, prompt: list[dict[str, str]], *responses: str) -> Any:
    body = {"prompt": prompt, "responses": responses}
    response = server.post("/v1/rewards", body)
    assert response.status_code == 200, response.text
    answer = response.json()
    expected = server.model.model.score(prompt, responses)
    assert answer["rewards"] == pytest.approx(expected, abs=1e-5)
    return answer["usage"]


def test_a_later_response_to_a_prompt_is_all_that_is_computed(finished_run: Path) -> None:
    with running(finished_run, cached_scores=0) as server:
        first = scored(server, PROMPT, "a long answer about them", "none")
        assert first["computed_tokens"] > 20
        for later in ("red", "none of that", "a long answer about hens"):
            usage = scored(server, PROMPT, later)
            assert usage["computed_tokens"] < usage["total_tokens"] - 15
        # The next turn of the conversation has read all before it.
        turns = [
            *PROMPT,
            {"role": "assistant", "content": "red"},
            {"role": "user", "content": "and what do they eat"},
        ]
        usage = scored(server, turns, "hens")
        assert usage["computed_tokens"] < usage["total_tokens"] - 20
        metrics = server.get("/metrics").text
    (reused,) = re.findall(r"^plaudit_tokens_reused_total (\S+)$", metrics, re.MULTILINE)
    assert float(reused) > 60


def test_a_store_smaller_than_a_batch_keeps_what_fits(finished_run: Path) -> None:
    with running(finished_run, cached_scores=0, prefix_cache_bytes=30_000) as server:
        states = server.model.prefix_cache
        assert states is not None
        assert 8 < states.room < 100
        for number in range(20):
            prompt = [{"role": "user", "content": f"{number} " * 30}]
            for response in ("red", "none", "hens"):
                usage = scored(server, prompt, response)
                assert 0 < states.bytes <= 30_000
            assert usage["computed_tokens"] < usage["total_tokens"] - 20


def test_nothing_is_kept_where_that_is_off(finished_run: Path) -> None:
    with running(finished_run, cached_scores=0, prefix_cache_bytes=0) as server:
        assert server.model.prefix_cache is None
        for response in ("red", "none of that"):
            usage = scored(server, PROMPT, response)
            assert usage["computed_tokens"] == usage["total_tokens"]


def test_a_model_that_must_not_resume_does_not(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept states that change a reward are found before anybody asks."""
    extend = kv_cache.PassKV.extend

    def wrong(self: Any, key: Any, value: Any) -> Any:
        key, value = extend(self, key, value)
        return key, value + (1.0 if self._cached else 0.0)

    monkeypatch.setattr(kv_cache.PassKV, "extend", wrong)
    with running(finished_run) as server:
        assert server.model.prefix_cache is None


def test_a_batch_that_fails_is_tried_again_with_nothing_kept(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory runs out: of no model is anything kept, and a whole pass is made."""
    other = finished_run.parent / "again"
    if not other.exists():
        other.symlink_to(finished_run)
    with running(finished_run, other, cached_scores=0) as server:
        both = [served.prefix_cache for served in server.engine.models]
        for name in (finished_run.name, "again"):
            body = {"prompt": PROMPT, "responses": ["red"], "model": name}
            assert server.post("/v1/rewards", body).status_code == 200
        assert all(states is not None and states.bytes for states in both)
        raw = type(server.model.model.module).raw
        failures = []

        def no_memory(self: Any, batch: Any) -> Any:
            if batch.layout.prefix_kv is not None:
                failures.append(batch)
                raise MemoryError
            return raw(self, batch)

        monkeypatch.setattr(type(server.model.model.module), "raw", no_memory)
        usage = scored(server, PROMPT, "a", "b")
        assert len(failures) == 1
        assert usage["computed_tokens"] > 20
        assert not any(states is not None and states.bytes for states in both)


@pytest.mark.parametrize(("failures", "status"), [(1, 200), (2, 500)])
def test_per_token_rewards_are_tried_again_with_nothing_kept(
    failures: int, status: int, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(finished_run, cached_scores=0) as server:
        states = server.model.prefix_cache
        assert states is not None
        compute = RewardModel.token_rewards
        tries: list[int] = []

        def no_memory(self: RewardModel, *arguments: Any) -> Any:
            tries.append(states.bytes)
            if len(tries) <= failures:
                raise MemoryError
            return compute(self, *arguments)

        monkeypatch.setattr(RewardModel, "token_rewards", no_memory)
        body = {"prompt": PROMPT, "responses": ["red"], "token_rewards": True}
        assert server.post("/v1/rewards", body).status_code == status
        assert tries[0] > 0
        assert tries[1] == 0


# ---- limits --------------------------------------------------------------------------------------


def test_a_huge_body_is_rejected_before_it_is_read(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(
            b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 999999999\r\n\r\n{"
        )
        raw.settimeout(10)
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    still_answers(server)


def test_a_huge_body_without_a_length_is_cut_off(server: Running) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 10_000

    try:
        response = httpx.post(f"{server.url}/v1/rewards", content=pieces(), timeout=20)
    except httpx.WriteError:
        # The server hung up before all of it was sent.
        response = None
    if response is not None:
        error(response, 413, "body_too_large")
    still_answers(server)


def test_a_slow_body_is_given_up(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        raw.settimeout(10)
        assert raw.recv(100).startswith(b"HTTP/1.1 408")
    still_answers(server)


def test_connections_that_send_nothing_or_half_of_it(server: Running) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    for number, raw in enumerate(idle):
        raw.sendall(
            b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"[:number]
        )
    body = json.dumps(BODY).encode()
    half = socket.create_connection(("127.0.0.1", server.port))
    half.sendall(
        b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    half.sendall(body)
    half.shutdown(socket.SHUT_WR)
    still_answers(server)
    for raw in (*idle, half):
        raw.close()
    still_answers(server)


def read_until_closed(raw: socket.socket) -> bytes:
    """What the server sends until it closes the connection, which must be within ten seconds."""
    raw.settimeout(10)
    received = b""
    try:
        while piece := raw.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"POST /v1/rew", b"HTTP/1.1 408"),
        (b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"HTTP/1.1 408"),
        # A body that no route reads.
        (
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n",
            b"HTTP/1.1 200",
        ),
    ],
    ids=["nothing", "half a line", "half of the headers", "a body after the answer"],
)
def test_a_client_that_dribbles_is_closed(server: Running, sent: bytes, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(sent)
        stop = threading.Event()

        def dribble() -> None:
            while sent and not stop.wait(0.2):
                try:
                    raw.sendall(b"x")
                except OSError:
                    return

        slowly = threading.Thread(target=dribble)
        slowly.start()
        answer = read_until_closed(raw)
        stop.set()
        slowly.join()
    assert answer.startswith(status)
    if status.endswith(b"408"):
        head, body = answer.split(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert json.loads(body)["error"]["type"] == "slow_body"
    still_answers(server)


def test_a_client_may_read_slowly_but_must_read(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "KEEP_ALIVE_SECONDS", 1)
    body = json.dumps({"text": "a", "rid": "r" * (6 << 20)}).encode()

    def ask(raw: socket.socket, receive_buffer: int) -> None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.connect(("127.0.0.1", impatient.port))
        raw.sendall(
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        raw.sendall(body)

    with running(finished_run, body_timeout=1.0) as impatient:
        with socket.socket() as reads_nothing, socket.socket() as reads_slowly:
            ask(reads_nothing, 4096)
            ask(reads_slowly, 1 << 16)
            read = bytearray()
            # About six seconds, several times body_timeout and the keep-alive time, and slower than
            # a kernel's own choice of buffer would let the server see.
            while part := reads_slowly.recv(1 << 16):
                read += part
                time.sleep(6 * len(part) / len(body))
            assert len(read) > len(body)
            assert len(read_until_closed(reads_nothing)) < len(body)
        still_answers(impatient)


def test_a_closing_connection_is_not_kept_for_a_client_that_reads_nothing(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of the answer waits: less than what pauses the writing, or more."""
    made: list[BoundedConnection] = []
    lost: list[BoundedConnection] = []
    for calls, method in ((made, "connection_made"), (lost, "connection_lost")):

        def counted(
            self: BoundedConnection,
            argument: Any,
            calls: list[BoundedConnection] = calls,
            original: Any = getattr(BoundedConnection, method),
        ) -> None:
            calls.append(self)
            original(self, argument)

        monkeypatch.setattr(BoundedConnection, method, counted)
    with running(finished_run, body_timeout=1.0) as server:
        held = []
        for number in range(48):
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", server.port))
            body = json.dumps({"text": "a", "rid": "r" * (8 << 10) * (number + 1)}).encode()
            raw.sendall(
                b"POST /classify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            raw.sendall(body)
            held.append(raw)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (len(made) < 48 or set(made) - set(lost)):
            time.sleep(0.1)
        assert len(made) >= 48
        assert not set(made) - set(lost)
        for raw in held:
            raw.close()


def test_who_waits_longest_for_its_client_makes_room(finished_run: Path) -> None:
    half = b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with running(finished_run, max_connections=40) as server:
        held = []
        for number in range(60):
            raw = socket.create_connection(("127.0.0.1", server.port))
            raw.sendall(half[: number * 2])
            held.append(raw)
        still_answers(server)
        # Not those that came last.
        assert read_until_closed(held[0]) == b""
        held[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            held[-1].recv(1)
        for raw in held:
            raw.close()


def test_the_limit_of_open_files_bounds_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServerSettings(models=(ModelSource(name="a", path="a"),))
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    for limits, connections in (
        ((1024, 1 << 20), 8192),
        ((1024, 4096), 4096 - 256),
        ((1 << 20, 1 << 20), 8192),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        assert with_open_files(settings).max_connections == connections
    assert raised == [(8192 + 256, 1 << 20), (4096, 4096)]


def test_a_large_body_is_parsed_beside_the_event_loop(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    parse = parse_body

    def waits(parser: Any, kind: str, body: bytes) -> Any:
        assert len(body) < 1000 or go.wait(20)
        return parse(parser, kind, body)

    monkeypatch.setattr(app_module, "parse_body", waits)
    with running(finished_run) as server, ThreadPoolExecutor(1) as pool:
        large = pool.submit(server.post, "/v1/rewards", {**BODY, "unread": "x" * 200_000})
        still_answers(server)
        late = server.post(
            "/v1/rewards", {**BODY, "unread": "x" * 200_000}, headers={"x-request-timeout": "0.2"}
        )
        error(late, 504, "deadline_exceeded")
        go.set()
        assert large.result().status_code == 200


def test_garbage_instead_of_http(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        raw.settimeout(10)
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    still_answers(server)


@pytest.fixture
def slow_model(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The model's thread waits for the event before each batch."""
    go = threading.Event()
    real = score_slices

    def waits(*arguments: Any) -> Any:
        go.wait(20)
        return real(*arguments)

    monkeypatch.setattr(engine_module, "score_slices", waits)
    return go


def until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within ten seconds")


def test_what_is_over_the_limits_is_told_when_to_come_back(
    finished_run: Path, slow_model: threading.Event
) -> None:
    with (
        running(finished_run, max_requests=2) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [pool.submit(server.post, "/v1/rewards", BODY) for _ in range(2)]
        until(server.engine.places.locked)
        rejected = server.post("/v1/rewards", BODY)
        error(rejected, 503, "overloaded")
        assert int(rejected.headers["retry-after"]) >= 1
        slow_model.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
        still_answers(server)


def test_a_deadline_is_kept(finished_run: Path, slow_model: threading.Event) -> None:
    with running(finished_run) as server:
        late = server.post("/v1/rewards", BODY, headers={"x-request-timeout": "0.2"})
        error(late, 504, "deadline_exceeded")
        bad = server.post("/v1/rewards", BODY, headers={"x-request-timeout": "-1"})
        assert error(bad, 400, "bad_request")["param"] == "x-request-timeout"
        slow_model.set()
        still_answers(server)


def test_a_client_that_hangs_up_is_taken_out_of_the_queue(
    finished_run: Path, slow_model: threading.Event
) -> None:
    with running(finished_run, max_requests=1) as server:

        async def hang_up() -> None:
            async with httpx.AsyncClient() as client:
                call = asyncio.create_task(client.post(f"{server.url}/v1/rewards", json=BODY))
                while not server.engine.places.locked():
                    await asyncio.sleep(0.01)
                call.cancel()

        asyncio.run(hang_up())
        until(lambda: not server.engine.places.locked())
        slow_model.set()
        still_answers(server)


# ---- token, several models, new versions ---------------------------------------------------------


def test_the_token_guards_all_but_the_probes(finished_run: Path) -> None:
    with running(finished_run, token="secret-ö") as server:
        assert server.get("/health").status_code == 200
        assert server.get("/ready").status_code == 200
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "secret-ö".encode()},
        ):
            response = server.post("/v1/rewards", BODY, headers=headers)
            error(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/v1/models", "/openapi.json"):
            assert server.get(path).status_code == 401
        good = {"authorization": "Bearer secret-ö".encode()}
        assert server.post("/v1/rewards", BODY, headers=good).status_code == 200


def test_several_models_answer_by_name_and_a_new_version_takes_over(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "second"
    shutil.copytree(finished_run, second)
    with running(finished_run, second) as server:
        names = [model["id"] for model in server.get("/v1/models").json()["data"]]
        assert names == ["lora", "second"]
        before = server.post("/v1/rewards", {**BODY, "model": "second"}).json()
        assert before["model"] == "second"
        double_the_head(second)
        with ThreadPoolExecutor(5) as pool:
            calls = [
                pool.submit(server.post, "/get_reward", {"query": [f"a {n}"]}) for n in range(60)
            ]
            elsewhere = {"sec-fetch-site": "cross-site"}
            error(server.post("/v1/models/second/reload", {}, headers=elsewhere), 403, "forbidden")
            # As ``plaudit serve`` does, which would keep the old version for ever.
            gc.freeze()
            reloaded = server.post("/v1/models/second/reload", {})
            assert reloaded.status_code == 200, reloaded.text
            assert gc.get_freeze_count() == 0
            assert {call.result().status_code for call in calls} == {200}
        assert (reloaded.status_code, reloaded.json()["version"]) == (200, 2)
        after = server.post("/v1/rewards", {**BODY, "model": "second"}).json()
        assert after["rewards"] == pytest.approx([2 * r for r in before["rewards"]], abs=1e-5)
        assert server.post("/v1/rewards", BODY).json()["rewards"] == pytest.approx(
            before["rewards"]
        )

        def broken(*_: Any, **__: Any) -> Any:
            raise ModelError("its weights are gone; restore them.")

        monkeypatch.setattr(engine_module, "open_served", broken)
        assert (
            "old version keeps running"
            in error(server.post("/v1/models/second/reload", {}), 409, "conflict")["message"]
        )
        assert server.post("/v1/rewards", {**BODY, "model": "second"}).json() != before


def double_the_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    save_file(
        {name: 2 * t if "score" in name else t for name, t in state.items()},
        path,
        metadata={"format": "pt"},
    )
    # Which would call the change damage.
    (folder / "manifest.json").unlink()


def test_a_models_facts_are_the_recorded_ones(server: Running, finished_run: Path) -> None:
    facts = server.get("/v1/models/lora").json()
    recorded = json.loads((finished_run / "metrics.json").read_text())["eval"]
    assert facts["evaluation"]["accuracy"] == recorded["accuracy"]
    assert facts["evaluation"]["accuracy_ci95"] == recorded["accuracy_ci95"]
    assert (facts["kind"], facts["max_length"], facts["layout"]) == ("adapter", 256, "packed")
    assert facts["dtype"] == "float32"
    assert str(finished_run.parent) not in json.dumps(facts)


# ---- sharing, measuring, logging -----------------------------------------------------------------


def test_prompts_are_shared_within_and_across_requests(finished_run: Path) -> None:
    prompt = "what is the answer to this question " * 5
    with running(finished_run) as server:
        first = server.post(
            "/v1/rewards", {"prompt": prompt, "responses": ["a", "b", "c d"]}
        ).json()
        usage = first["usage"]
        assert usage["computed_tokens"] < 0.5 * usage["total_tokens"]
        again = server.post("/v1/rewards", {"prompt": prompt, "responses": ["b", "a"]}).json()
        assert again["usage"]["computed_tokens"] == 0
        assert again["rewards"] == [first["rewards"][1], first["rewards"][0]]


def test_metrics_count_every_request(finished_run: Path) -> None:
    with running(finished_run) as server:
        for _ in range(3):
            still_answers(server)
        server.post("/v1/rewards", {})
        text = server.get("/metrics").text
    assert 'plaudit_requests_total{protocol="rewards",status="200"} 3.0' in text
    assert 'plaudit_requests_total{protocol="rewards",status="422"} 1.0' in text
    assert 'plaudit_rejected_total{reason="invalid_request"} 1.0' in text
    assert 'plaudit_conversations_total{source="cache"} 6.0' in text
    assert "plaudit_queue_requests 0.0" in text


def test_the_log_is_json_and_holds_no_prompt(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="plaudit.serving"):
        server.post("/v1/rewards", {"prompt": "secret words", "responses": ["more secret"]})
        until(lambda: any(r.getMessage() == "request" for r in caplog.records))
    lines = [JsonLines().format(record) for record in caplog.records]
    facts = json.loads(next(line for line in lines if '"event": "request"' in line))
    assert facts["protocol"] == "rewards"
    assert facts["status"] == 200
    assert facts["conversations"] == 1
    assert "secret" not in "".join(lines)


# ---- other tools' clients ------------------------------------------------------------------------


def test_coheres_own_client_reranks(server: Running) -> None:
    documents = ["a fox right", "the dog wrong", "forty two"]
    expected = server.post("/v1/rewards", {"prompt": "what is it", "responses": documents}).json()[
        "rewards"
    ]
    order = sorted(range(3), key=lambda i: -expected[i])
    with cohere.ClientV2(api_key="unused", base_url=server.url) as newer:
        found = newer.rerank(model="lora", query="what is it", documents=documents, top_n=2)
    assert [result.index for result in found.results] == order[:2]
    assert [result.relevance_score for result in found.results] == pytest.approx(
        [expected[i] for i in order[:2]], abs=1e-5
    )
    texts = [{"text": text} for text in documents]
    with cohere.Client(api_key="unused", base_url=server.url) as older:
        again = older.rerank(query="what is it", documents=texts, return_documents=True)
    assert [result.index for result in again.results] == order
    assert again.results[0].document is not None
    assert again.results[0].document.text == documents[order[0]]
