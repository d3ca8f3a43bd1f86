"""The client's own rules: when it asks again, how long it waits, what it says when it gives up."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import httpx2
import pytest

from plaudit.client import AsyncRewardClient, RewardClient
from plaudit.data.formats.values import check_responses, check_rows
from plaudit.errors import DataError, PlauditError, RequestRejectedError, ServerError

ANSWER = {
    "model": "first",
    "rewards": [0.5, -1.0],
    "win_probabilities": [0.8, 0.2],
    "ranks": [1, 2],
    "tokens": [7, 9],
    "usage": {"prompt_tokens": 16, "computed_tokens": 10, "total_tokens": 16},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the scripted server does with one request; status 0 hangs up."""

    status: int = 200
    body: Any = field(default_factory=lambda: ANSWER)
    headers: dict[str, str] = field(default_factory=dict)


def rejection(status: int, **headers: str) -> Reply:
    error = {"type": "any", "message": "It said no.", "param": None, "request_id": "r1"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, body={"error": error}, headers={"x-request-id": "r1", **named})


@dataclass(slots=True)
class Scripted:
    """A server on loopback that answers by a script, and what it was sent."""

    url: str
    script: list[Reply]
    seen: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def scripted(*script: Reply) -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.seen.append({"path": self.path, "headers": dict(self.headers), "body": body})
            reply = state.script.pop(0)
            if reply.status == 0:
                self.close_connection = True
                return
            content = (
                reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            )
            self.send_response(reply.status)
            for name, value in {**reply.headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Scripted(f"http://127.0.0.1:{server.server_address[1]}", list(script))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    with (
        scripted(
            rejection(429, retry_after="0"), rejection(503, retry_after="0"), Reply()
        ) as server,
        RewardClient(server.url, token="secret", model="first") as client,
    ):
        assert client.score("p", ["a", "b"]) == [0.5, -1.0]
    assert len(server.seen) == 3
    assert server.seen[0]["headers"]["Authorization"] == "Bearer secret"
    assert {seen["path"] for seen in server.seen} == {"/v1/rewards"}
    assert server.seen[2]["body"] == {
        "prompt": "p", "responses": ["a", "b"], "tools": None, "model": "first",
        "token_rewards": False, "outputs": False, "uncertainty": False,
    }  # fmt: skip


def test_another_attempt_sends_the_cookies_of_an_answer() -> None:
    """A load balancer may bind a client to one of its servers."""
    busy = rejection(503, retry_after="0", set_cookie="node=b")
    with scripted(busy, Reply()) as server, RewardClient(server.url) as client:
        client.score("p", ["a", "b"])
    assert [seen["headers"].get("Cookie") for seen in server.seen] == [None, "node=b"]


def test_a_dropped_connection_is_asked_again() -> None:
    with scripted(Reply(status=0), Reply()) as server, RewardClient(server.url) as client:
        assert client.best_of("p", ("a", "b")).index == 0
    assert len(server.seen) == 2
    assert "model" not in server.seen[0]["body"]


def test_the_asynchronous_client_asks_again_too() -> None:
    async def score(url: str) -> list[float]:
        async with AsyncRewardClient(url) as client:
            return await client.score([{"role": "user", "content": "p"}], ["a", "b"])

    with scripted(rejection(502, retry_after="0"), Reply(status=0), Reply()) as server:
        assert asyncio.run(score(server.url)) == [0.5, -1.0]
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRejectedError),
        (413, RequestRejectedError),
        (422, RequestRejectedError),
        (401, ServerError),
        (404, ServerError),
        (500, ServerError),
    ],
)
def test_what_will_not_change_is_not_asked_again(status: int, kind: type[ServerError]) -> None:
    with (
        scripted(rejection(status)) as server,
        RewardClient(server.url) as client,
        pytest.raises(PlauditError, match="It said no") as caught,
    ):
        client.score("p", ["a"])
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.request_id) == (status, "r1")
    assert isinstance(caught.value, DataError) == (kind is RequestRejectedError)
    assert "\n" not in str(caught.value)
    assert len(server.seen) == 1


def test_it_gives_up_after_the_retries() -> None:
    with (
        scripted(*[rejection(503, retry_after="0")] * 3) as server,
        RewardClient(server.url, retries=2) as client,
        pytest.raises(ServerError, match="returned HTTP 503 after 3 attempts: It said no"),
    ):
        client.prefer("p", "a", "b")
    assert server.script == []


def test_a_server_that_is_not_there() -> None:
    with scripted() as server:
        pass
    with (
        RewardClient(server.url, retries=0) as client,
        pytest.raises(ServerError, match=r"is unreachable \(.*check that the server is running"),
    ):
        client.models()


@pytest.mark.parametrize("body", [b"<html>a proxy</html>", [], {"rewards": None}, {"model": "m"}])
def test_an_answer_that_is_none_of_ours(body: Any) -> None:
    with (
        scripted(Reply(body=body)) as server,
        RewardClient(server.url) as client,
        pytest.raises(ServerError, match="an unexpected response"),
    ):
        client.score("p", ["a"])


# ---- waiting, without a clock --------------------------------------------------------------------


def waits(*replies: httpx2.Response | httpx2.TransportError, seed: int = 0) -> list[float]:
    """How long the client waits before each further attempt, where it is answered so."""
    left, pauses = iter(replies), list[float]()

    class Clockless(AsyncRewardClient):
        async def _send(self, request: httpx2.Request, wait: float) -> httpx2.Response:
            pauses.append(wait)
            reply = next(left, None)
            if not isinstance(reply, httpx2.Response):
                raise reply or httpx2.UnsupportedProtocol("no further reply")
            return reply

    client = Clockless("http://x", retries=50)
    client._chance.seed(seed)
    with pytest.raises(ServerError):
        asyncio.run(client.score("p", ["a"]))
    assert pauses[0] == 0
    return pauses[1:]


def busy(**headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(503, headers=named, json={"error": {"message": "busy"}})


@pytest.mark.parametrize("seed", range(5))
def test_waits_double_up_to_a_minute_and_differ_by_chance(seed: int) -> None:
    failures: list[Any] = [
        busy(),
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("slow"),
        *[busy()] * 7,
    ]
    pauses = waits(*failures, seed=seed)
    assert len(pauses) == 10
    for attempt, pause in enumerate(pauses):
        longest = min(60.0, 0.5 * 2.0**attempt)
        assert longest / 2 <= pause <= longest
    assert pauses != waits(*failures, seed=seed + 100)


def test_what_the_server_asks_for_counts() -> None:
    (pause,) = waits(busy(retry_after="7"))
    assert 7 <= pause <= 7.7
    (pause,) = waits(busy(retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=20))))
    assert 15 <= pause <= 22
    (pause,) = waits(busy(retry_after="Thu, 01 Jan 1970 00:00:00 GMT"))
    assert pause == 0
    (pause,) = waits(busy(retry_after="soon"))
    assert 0.25 <= pause <= 0.5
    assert waits(busy(retry_after="3600")) == []


# ---- many rows -----------------------------------------------------------------------------------


def test_many_rows_stop_at_a_server_that_fails() -> None:
    rows = [("p", ["a", "b"])] * 50
    with (
        scripted(Reply(), rejection(500), *[Reply()] * 48) as server,
        RewardClient(server.url) as client,
        pytest.raises(ServerError, match="500: It said no"),
    ):
        client.rewards_of_many(rows, concurrency=1)
    assert len(server.seen) == 2


# ---- what is rejected before anything is sent ----------------------------------------------------


TURN = {"role": "user", "content": "p"}


def test_mistakes_are_said_at_once() -> None:
    with pytest.raises(DataError, match="is not a URL"):
        RewardClient("localhost:8000")
    with pytest.raises(DataError, match="invalid URL"):
        RewardClient("http://localhost:port")
    with pytest.raises(DataError, match="retries is -1"):
        RewardClient("http://localhost:8000", retries=-1)
    with RewardClient("http://localhost:1") as client:
        with pytest.raises(DataError, match="responses is a single string"):
            client.score("p", "a")
        with pytest.raises(DataError, match="responses is empty"):
            client.score("p", [])
        unsendable = client.rewards_of_many([("\ud800", ["a"]), ([{**TURN, "seen": {1}}], ["a"])])
        assert all("cannot be encoded as JSON" in str(row) for row in unsendable)
        with pytest.raises(DataError, match="concurrency is 0"):
            client.rewards_of_many([], concurrency=0)


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ({"a": 1}, "responses is of type dict; expected a list with at least one response."),
        (None, "responses is None; expected a list with at least one response."),
        ((r for r in "ab"), "responses is of type generator; expected a list with"),
        ("a", "responses is a single string; expected a list with at least one response."),
        ((), "responses is empty; expected a list with at least one response."),
    ],
)
def test_responses_that_are_no_list_are_named(responses: Any, message: str) -> None:
    with pytest.raises(DataError) as raised:
        check_responses(responses)
    assert str(raised.value).startswith(message)
    with pytest.raises(DataError) as raised:
        check_rows([("p", ["a"]), ("p", responses)])
    assert str(raised.value).startswith(f"rows[1]: {message}")


def test_a_row_is_a_prompt_with_its_responses() -> None:
    assert check_rows([["p", ["a"]], ("p", ("a", "b"))]) == [("p", ["a"]), ("p", ("a", "b"))]
    for row in ("pq", {"prompt": "p", "responses": ["a"]}, ("p", ["a"], 1), None):
        with pytest.raises(
            DataError, match=r"^rows\[0\] is .*; expected a pair \(prompt, responses\)"
        ):
            check_rows([row])
    for rows in (None, "p", {"prompt": "p"}, 3):
        with pytest.raises(DataError, match=r"^rows is .*; expected a list of pairs"):
            check_rows(rows)


def test_both_clients_check_before_they_send() -> None:
    with RewardClient("http://localhost:1") as client:
        for ask in (client.score, client.rewards, client.best_of):
            with pytest.raises(DataError, match="responses is None"):
                ask("p", None)
            with pytest.raises(
                RequestRejectedError, match=r"^responses\[1\] is null; expected text"
            ):
                ask("p", ["a", None])
            with pytest.raises(RequestRejectedError, match=r"^tools\[0\] is text; expected an obj"):
                ask("p", ["a"], tools=cast(Any, ["clock"]))
        with pytest.raises(DataError, match=r"rows\[0\]: responses is empty"):
            client.score_many([("p", [])])
        (row,) = client.score_many([([cast(Any, {"content": "p"})], ["a"])])
        assert str(row).startswith("prompt[0] has no role")
        with pytest.raises(RequestRejectedError, match=r"^b is null; expected"):
            client.prefer("p", "a", None)
