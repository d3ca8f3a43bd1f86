"""A reward model behind ``plaudit serve``, used like one in this process. Loads no torch.

``RewardClient(url).score(prompt, responses)`` means what ``plaudit.load(path).score(prompt,
responses)`` means; ``AsyncRewardClient`` is the same with ``await``. What is said over the wire is
written once, as generators that yield what to send or how long to wait; the two clients differ in
who sends and who waits.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, Self, TypeAlias, TypeVar
from urllib.parse import quote

from plaudit.data.formats.values import as_messages, as_tools, check_responses, check_rows
from plaudit.errors import DataError, PlauditError, RequestRejectedError, ServerError
from plaudit.types import Best, Prompted, Text, TokenReward, Tools

try:
    import httpx2 as httpx
except ImportError:
    raise PlauditError(
        "plaudit.client needs httpx2; install it with pip install 'plaudit[client]'."
    ) from None

Answer = TypeVar("Answer")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)

TIMEOUT = 60.0
RETRIES = 5
BUSY = (429, 502, 503, 504)
"""Statuses that pass by themselves."""
REJECTED = (400, 413, 422)
"""Statuses that say the request itself cannot be scored."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """Everything the server says of K responses to one prompt, in their order.

    ``win_probabilities`` are calibrated, of being the best of them; ``ranks`` count from 1, equals
    share one. ``tokens`` are of each whole conversation; ``computed_tokens`` those that the model
    computed, a shared prompt once. ``token_rewards`` are those of
    each response, if asked for.
    """

    model: str
    rewards: tuple[float, ...]
    win_probabilities: tuple[float, ...]
    ranks: tuple[int, ...]
    tokens: tuple[int, ...]
    computed_tokens: int
    token_rewards: tuple[tuple[TokenReward, ...], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """A request to send after ``wait`` seconds.

    A client answers with the response, or the error in its place.
    """

    method: str
    path: str
    content: bytes | None = None
    wait: float = 0.0


Reply: TypeAlias = "httpx.Response | httpx.TransportError | None"
Talk: TypeAlias = Generator[Send, Reply, Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What is said to a server, one method per question, whoever carries it there.

    ``model`` names one of the server's models, None is its default. ``retries`` counts further
    attempts after the first.
    """

    url: str
    model: str | None
    retries: int
    chance: random.Random = field(default_factory=random.Random)

    def rewards(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        token_rewards: bool,
    ) -> Talk[Rewards]:
        check_responses(responses)
        body = {
            "prompt": _plain(prompt, "prompt"),
            "responses": [_plain(r, f"responses[{k}]") for k, r in enumerate(responses)],
            "tools": _plain_tools(tools),
            "token_rewards": token_rewards,
        }
        return self._ask("POST", "v1/rewards", _rewards_of, body)

    def prefer(self, prompt: Text, a: Text, b: Text, *, tools: Tools | None = None) -> Talk[float]:
        body = {
            "prompt": _plain(prompt, "prompt"),
            "a": _plain(a, "a"),
            "b": _plain(b, "b"),
            "tools": _plain_tools(tools),
        }
        return self._ask("POST", "v1/compare", lambda answer: float(answer["probability"]), body)

    def models(self) -> Talk[list[str]]:
        return self._ask("GET", "v1/models", lambda answer: [str(m["id"]) for m in answer["data"]])

    def describe(self) -> Talk[dict[str, Any]]:
        name = self.model
        if name is None:
            name, *_ = yield from self.models()
        return (yield from self._ask("GET", f"v1/models/{quote(name, safe='')}", dict))

    def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[dict[str, Any]], Answer],
        body: dict[str, Any] | None = None,
    ) -> Talk[Answer]:
        """What ``read`` takes from the JSON of a 200, asked again while the server is away or busy.

        Raises:
            ServerError: the server is away, stays busy, or answers something else.
            RequestRejectedError: it cannot score this, or this cannot be sent.
        """
        if body is not None and self.model is not None:
            body["model"] = self.model
        send = Send(method=method, path=path, content=None if body is None else _as_json(body))
        attempt = 0
        while True:
            reply = yield send
            assert reply is not None
            if isinstance(reply, httpx.Response) and reply.is_success:
                try:
                    return read(reply.json())
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ServerError(
                        f"{self.url} answered something that plaudit serve does not "
                        f"({type(error).__name__}: {error}); see whether it is one, of this "
                        "version."
                    ) from error
            pause = self._pause(reply, attempt)
            attempt += 1
            if pause is None or attempt > self.retries:
                raise self._problem(reply, attempt)
            send = replace(send, wait=pause)

    def _pause(self, reply: httpx.Response | httpx.TransportError, attempt: int) -> float | None:
        """Seconds until another attempt makes sense; None where none does.

        Exponential, between half and all of it by chance, so that clients that failed together do
        not come back together. What the server asks for in Retry-After counts instead.
        """
        own = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(attempt, 16)) * self.chance.uniform(
            0.5, 1.0
        )
        if isinstance(reply, httpx.TransportError):
            return None if isinstance(reply, httpx.UnsupportedProtocol) else own
        if reply.status_code not in BUSY:
            return None
        asked = _retry_after(reply.headers.get("retry-after"))
        if asked is None:
            return own
        return asked * self.chance.uniform(1.0, 1.1) if asked <= _LONGEST_WAIT else None

    def _problem(
        self, reply: httpx.Response | httpx.TransportError, attempts: int
    ) -> ServerError | RequestRejectedError:
        tried = f" after {attempts} attempts" if attempts > 1 else ""
        if isinstance(reply, httpx.TransportError):
            why = str(reply) or type(reply).__name__
            return ServerError(
                f"{self.url} does not answer{tried} ({why.rstrip('.')}); see whether the server is "
                "running there."
            )
        said = _message(reply)
        status, request_id = reply.status_code, reply.headers.get("x-request-id")
        if status in REJECTED:
            return RequestRejectedError(
                f"{self.url} cannot score this: {said}.", status=status, request_id=request_id
            )
        advice = {401: "; give the client its token", 404: "; see models() for what it serves"}
        return ServerError(
            f"{self.url} answered {status}{tried}: {said}{advice.get(status, '')}.",
            status=status,
            request_id=request_id,
        )


class _Connection(Generic[Http]):
    """How a client is opened."""

    _kind: type[Http]

    def __init__(
        self,
        url: str,
        token: str | None = None,
        model: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
    ) -> None:
        if retries < 0:
            raise DataError(f"retries is {retries}; give 0 or more.")
        if not url.startswith(("http://", "https://")):
            raise DataError(f"{url!r} is not a URL; give one like http://127.0.0.1:8000.")
        url = url.rstrip("/")
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._protocol = Protocol(url=url, model=model, retries=retries)
        try:
            self._http: Http = self._kind(base_url=f"{url}/", headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise DataError(f"invalid URL {url!r}: {error}.") from None


class RewardClient(_Connection[httpx.Client]):
    """A served reward model. Use it with ``with``, or call :meth:`close`; threads may share it.

    ``token`` is the server's bearer token, ``model`` one of its models (None: its first),
    ``timeout`` the seconds one attempt may take, ``retries`` the further attempts where the server
    cannot be reached or is busy. Scoring has no side effects, so another attempt does no harm.

    All methods raise RequestRejectedError (a DataError) for what cannot be scored, and ServerError
    for a server that is away, stays busy or rejects the client.
    """

    _kind = httpx.Client

    def score(
        self, prompt: Text, responses: Sequence[Text], *, tools: Tools | None = None
    ) -> list[float]:
        """One reward per response, as :meth:`RewardModel.score`."""
        return list(self.rewards(prompt, responses, tools=tools).rewards)

    def prefer(self, prompt: Text, a: Text, b: Text, *, tools: Tools | None = None) -> float:
        """Calibrated probability that ``a`` is preferred to ``b``."""
        return self._run(self._protocol.prefer(prompt, a, b, tools=tools))

    def best_of(
        self, prompt: Text, responses: Sequence[Text], *, tools: Tools | None = None
    ) -> Best:
        """The highest-scored response; the first of equals."""
        return Best.of(responses, self.rewards(prompt, responses, tools=tools).rewards)

    def token_rewards(
        self, prompt: Text, response: Text, *, tools: Tools | None = None
    ) -> list[TokenReward]:
        """The reward at each token of a response, as :meth:`RewardModel.token_rewards`."""
        return _only(self.rewards(prompt, [response], tools=tools, token_rewards=True))

    def rewards(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        token_rewards: bool = False,
    ) -> Rewards:
        """Rewards with probabilities, ranks and token counts; ``token_rewards`` adds those
        of each response.
        """
        return self._run(
            self._protocol.rewards(prompt, responses, tools=tools, token_rewards=token_rewards)
        )

    def score_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        concurrency: int = 8,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[float] | RequestRejectedError]:
        """One reward per response of every row, as :meth:`RewardModel.score_many`."""
        rewards = self.rewards_of_many(
            rows, tools=tools, concurrency=concurrency, on_progress=on_progress
        )
        return list(map(_only_rewards, rewards))

    def rewards_of_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        concurrency: int = 8,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Rewards | RequestRejectedError]:
        """Every row's rewards in the order of the rows, ``concurrency`` of them asked at a time.

        A row that cannot be scored has the error in its place. ``on_progress`` is called with
        rows done and rows in all. ServerError ends all of it.
        """
        _check_concurrency(concurrency)
        rows = check_rows(rows)
        done, order, stop = itertools.count(1), threading.Lock(), threading.Event()

        def one(row: Prompted) -> Rewards | RequestRejectedError:
            if stop.is_set():
                raise ServerError("Another row of the same call failed.")
            rewards: Rewards | RequestRejectedError
            try:
                rewards = self.rewards(*row, tools=tools)
            except RequestRejectedError as rejected:
                rewards = rejected
            except BaseException:
                stop.set()
                raise
            with order:
                on_progress(next(done), len(rows))
            return rewards

        with ThreadPoolExecutor(concurrency, thread_name_prefix="plaudit-client") as pool:
            try:
                # Rows start in their order, so the first error met here is the one that stopped it.
                return list(pool.map(one, rows))
            finally:
                stop.set()

    def models(self) -> list[str]:
        """Names of the models that the server has, its default first."""
        return self._run(self._protocol.models())

    def describe(self) -> dict[str, Any]:
        """What the server says of the model."""
        return self._run(self._protocol.describe())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, talk: Talk[Answer]) -> Answer:
        reply: Reply = None
        try:
            while True:
                send = talk.send(reply)
                time.sleep(send.wait)
                try:
                    reply = self._http.request(send.method, send.path, content=send.content)
                except httpx.TransportError as error:
                    reply = error
        except StopIteration as done:
            answer: Answer = done.value
            return answer


class AsyncRewardClient(_Connection[httpx.AsyncClient]):
    """:class:`RewardClient` with ``await``; use it with ``async with``, or call :meth:`close`."""

    _kind = httpx.AsyncClient

    async def score(
        self, prompt: Text, responses: Sequence[Text], *, tools: Tools | None = None
    ) -> list[float]:
        """One reward per response."""
        return list((await self.rewards(prompt, responses, tools=tools)).rewards)

    async def prefer(self, prompt: Text, a: Text, b: Text, *, tools: Tools | None = None) -> float:
        """Calibrated probability that ``a`` is preferred to ``b``."""
        return await self._run(self._protocol.prefer(prompt, a, b, tools=tools))

    async def best_of(
        self, prompt: Text, responses: Sequence[Text], *, tools: Tools | None = None
    ) -> Best:
        """The highest-scored response; the first of equals."""
        return Best.of(responses, (await self.rewards(prompt, responses, tools=tools)).rewards)

    async def token_rewards(
        self, prompt: Text, response: Text, *, tools: Tools | None = None
    ) -> list[TokenReward]:
        """The reward at each token of a response."""
        return _only(await self.rewards(prompt, [response], tools=tools, token_rewards=True))

    async def rewards(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        token_rewards: bool = False,
    ) -> Rewards:
        """Rewards with probabilities, ranks and token counts."""
        return await self._run(
            self._protocol.rewards(prompt, responses, tools=tools, token_rewards=token_rewards)
        )

    async def score_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        concurrency: int = 8,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[float] | RequestRejectedError]:
        """One reward per response of every row."""
        rewards = await self.rewards_of_many(
            rows, tools=tools, concurrency=concurrency, on_progress=on_progress
        )
        return list(map(_only_rewards, rewards))

    async def rewards_of_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        concurrency: int = 8,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Rewards | RequestRejectedError]:
        """Every row's rewards in the order of the rows, ``concurrency`` of them asked at a time."""
        _check_concurrency(concurrency)
        rows = check_rows(rows)
        done = itertools.count(1)
        rewards: list[Rewards | RequestRejectedError | None] = [None] * len(rows)
        left = iter(enumerate(rows))

        async def work() -> None:
            for place, row in left:
                try:
                    rewards[place] = await self.rewards(*row, tools=tools)
                except RequestRejectedError as rejected:
                    rewards[place] = rejected
                on_progress(next(done), len(rows))

        # Not a TaskGroup, whose ExceptionGroup would hide the one sentence.
        tasks = [asyncio.ensure_future(work()) for _ in range(min(concurrency, len(rows)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [one for one in rewards if one is not None]

    async def models(self) -> list[str]:
        """Names of the models that the server has, its default first."""
        return await self._run(self._protocol.models())

    async def describe(self) -> dict[str, Any]:
        """What the server says of the model."""
        return await self._run(self._protocol.describe())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, talk: Talk[Answer]) -> Answer:
        reply: Reply = None
        try:
            while True:
                send = talk.send(reply)
                await asyncio.sleep(send.wait)
                try:
                    reply = await self._http.request(send.method, send.path, content=send.content)
                except httpx.TransportError as error:
                    reply = error
        except StopIteration as done:
            answer: Answer = done.value
            return answer


# ---- shapes on the wire --------------------------------------------------------------------------


def _check_concurrency(concurrency: int) -> None:
    if concurrency < 1:
        raise DataError(f"concurrency is {concurrency}; give 1 or more.")


@contextmanager
def _as_rejection() -> Iterator[None]:
    """What this process finds wrong is named as the server would."""
    try:
        yield
    except DataError as error:
        raise RequestRejectedError(str(error)) from None


def _plain(text: Text, what: str) -> str | list[dict[str, Any]]:
    """A text or messages as JSON has them; ``what`` names them in errors.

    Raises:
        RequestRejectedError: they are neither.
    """
    if isinstance(text, str):
        return text
    with _as_rejection():
        as_messages(text, what)
    return [dict(message) for message in text]


def _plain_tools(tools: Tools | None) -> list[dict[str, Any]] | None:
    with _as_rejection():
        checked = as_tools(tools)
    return None if checked is None else [dict(tool) for tool in checked]


def _as_json(body: Mapping[str, Any]) -> bytes:
    """The body of a request.

    Raises:
        RequestRejectedError: a message holds what JSON or UTF-8 has no form for.
    """
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RequestRejectedError(
            f"This cannot be sent as JSON ({error}); give texts of whole characters, and messages "
            "of plain values."
        ) from None


def _rewards_of(answer: Mapping[str, Any]) -> Rewards:
    token_rewards = answer.get("token_rewards")
    return Rewards(
        model=answer["model"],
        rewards=tuple(map(float, answer["rewards"])),
        win_probabilities=tuple(map(float, answer["win_probabilities"])),
        ranks=tuple(map(int, answer["ranks"])),
        tokens=tuple(map(int, answer["tokens"])),
        computed_tokens=int(answer["usage"]["computed_tokens"]),
        token_rewards=None
        if token_rewards is None
        else tuple(
            tuple(TokenReward(text=step["text"], reward=float(step["reward"])) for step in steps)
            for steps in token_rewards
        ),
    )


def _only_rewards(rewards: Rewards | RequestRejectedError) -> list[float] | RequestRejectedError:
    return rewards if isinstance(rewards, RequestRejectedError) else list(rewards.rewards)


def _only(rewards: Rewards) -> list[TokenReward]:
    assert rewards.token_rewards is not None, "asked for, so answered"
    return list(rewards.token_rewards[0])


def _message(response: httpx.Response) -> str:
    """What the server says of its rejection; a proxy's page says no more than its status."""
    try:
        said = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = response.reason_phrase or "no reason given"
    return said.rstrip(".")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
