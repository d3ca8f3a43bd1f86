"""A reward model behind ``plaudit serve``, used like one in this process. Loads no torch.

``RewardClient(url).score(prompt, responses)`` means what ``plaudit.load(path).score(prompt,
responses)`` means; ``AsyncRewardClient`` is the same with ``await``. Requests are written once, as
coroutines; the two clients differ in how they send and wait.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import wraps
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Self,
    TypeAlias,
    TypeVar,
    overload,
)
from urllib.parse import quote

from plaudit.data.formats.values import as_messages, as_tools, check_responses, check_rows
from plaudit.errors import DataError, PlauditError, RequestRejectedError, ServerError
from plaudit.types import Best, Prompted, RewardDetails, Text, TokenReward, Tools

try:
    import httpx2 as httpx
except ImportError:
    raise PlauditError(
        "plaudit.client needs httpx2; install it with pip install 'plaudit[client]'."
    ) from None

Answer = TypeVar("Answer")
Params = ParamSpec("Params")
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
    """The server's answer for K responses to one prompt. Lists are in the order of the responses.

    Attributes:
        model: Name of the model that scored them.
        rewards: K rewards.
        win_probabilities: K calibrated probabilities to be the best response. They sum to 1.
        ranks: K ranks from 1, the best. Equal rewards share a rank.
        tokens: K lengths in tokens, prompt and response together.
        computed_tokens: Tokens that the model computed. A shared prompt counts once.
        token_rewards: K lists of per-token rewards, if they were requested.
        outputs: K mappings of the model's outputs by name, if they were requested.
        mean: K means over the heads of an ensemble, if the uncertainty was requested.
        spread: K standard deviations over the heads, if the uncertainty was requested.
        lower_bound: K lower bounds, if the uncertainty was requested.
    """

    model: str
    rewards: tuple[float, ...]
    win_probabilities: tuple[float, ...]
    ranks: tuple[int, ...]
    tokens: tuple[int, ...]
    computed_tokens: int
    token_rewards: tuple[tuple[TokenReward, ...], ...] | None = None
    outputs: tuple[Mapping[str, float], ...] | None = None
    mean: tuple[float, ...] | None = None
    spread: tuple[float, ...] | None = None
    lower_bound: tuple[float, ...] | None = None

    def details(self) -> list[RewardDetails]:
        """K records, one per response, as :meth:`RewardModel.score` returns them."""
        columns = {
            name: getattr(self, name) or (None,) * len(self.rewards)
            for name in ("outputs", "mean", "spread", "lower_bound")
        }
        return [
            RewardDetails(reward=reward, **{name: values[k] for name, values in columns.items()})
            for k, reward in enumerate(self.rewards)
        ]


Outcome: TypeAlias = Rewards | RequestRejectedError
OnProgress: TypeAlias = Callable[[int, int], None]
Ask: TypeAlias = Callable[[Prompted], Coroutine[Any, Any, Outcome]]


class _Requests(Generic[Http]):
    """The requests of both clients, a coroutine each, with retries.

    They await :meth:`_send` and :meth:`_map` alone. Where these two block, a coroutine runs to its
    end in one step and needs no event loop (:func:`_blocking`).
    """

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
            raise DataError(f"retries is {retries}; expected 0 or more.")
        if not url.startswith(("http://", "https://")):
            raise DataError(f"{url!r} is not a URL; expected one such as http://127.0.0.1:8000.")
        url = url.rstrip("/")
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._url, self._model, self._retries = url, model, retries
        self._chance = random.Random()
        try:
            self._http: Http = self._kind(base_url=f"{url}/", headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise DataError(f"invalid URL {url!r}: {error}.") from None

    @overload
    async def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        outputs: Literal[False] = False,
        uncertainty: Literal[False] = False,
    ) -> list[float]: ...

    @overload
    async def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        outputs: Literal[True],
        uncertainty: bool = False,
    ) -> list[RewardDetails]: ...

    @overload
    async def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        outputs: bool = False,
        uncertainty: Literal[True],
    ) -> list[RewardDetails]: ...

    async def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        outputs: bool = False,
        uncertainty: bool = False,
    ) -> list[float] | list[RewardDetails]:
        """Score the responses to one prompt, as :meth:`RewardModel.score`."""
        rewards = await self.rewards(
            prompt, responses, tools=tools, outputs=outputs, uncertainty=uncertainty
        )
        return rewards.details() if outputs or uncertainty else list(rewards.rewards)

    async def prefer(self, prompt: Text, a: Text, b: Text, *, tools: Tools | None = None) -> float:
        """Calibrated probability that response ``a`` is preferred to response ``b``."""
        body = _plain({"prompt": prompt, "a": a, "b": b}, tools)
        return await self._ask("v1/compare", lambda answer: float(answer["probability"]), body)

    async def best_of(
        self, prompt: Text, responses: Sequence[Text], *, tools: Tools | None = None
    ) -> Best:
        """Choose the response with the highest reward. The first one wins a tie."""
        return Best.of(responses, await self.score(prompt, responses, tools=tools))

    async def token_rewards(
        self, prompt: Text, response: Text, *, tools: Tools | None = None
    ) -> list[TokenReward]:
        """Reward at each token of a response, as :meth:`RewardModel.token_rewards`."""
        rewards = await self.rewards(prompt, [response], tools=tools, token_rewards=True)
        assert rewards.token_rewards is not None, "asked for, so answered"
        return list(rewards.token_rewards[0])

    async def rewards(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        token_rewards: bool = False,
        outputs: bool = False,
        uncertainty: bool = False,
    ) -> Rewards:
        """Score the responses to one prompt, with probabilities, ranks and token counts.

        Args:
            prompt: The prompt.
            responses: One or more responses.
            tools: JSON schemas of the tools that the conversation may call.
            token_rewards: Also return the per-token rewards of each response.
            outputs: Also return the outputs of the model by name.
            uncertainty: Also return mean, spread and lower bound of an ensemble of heads.
        """
        check_responses(responses)
        named = {f"responses[{k}]": response for k, response in enumerate(responses)}
        plain = _plain({"prompt": prompt, **named}, tools)
        body = {
            "prompt": plain["prompt"],
            "responses": [plain[name] for name in named],
            "tools": plain["tools"],
            "token_rewards": token_rewards,
            "outputs": outputs,
            "uncertainty": uncertainty,
        }
        return await self._ask("v1/rewards", _rewards_of, body)

    @overload
    async def score_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        outputs: Literal[False] = False,
        uncertainty: Literal[False] = False,
        concurrency: int = 8,
        on_progress: OnProgress = lambda done, total: None,
    ) -> list[list[float] | RequestRejectedError]: ...

    @overload
    async def score_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        outputs: Literal[True],
        uncertainty: bool = False,
        concurrency: int = 8,
        on_progress: OnProgress = lambda done, total: None,
    ) -> list[list[RewardDetails] | RequestRejectedError]: ...

    @overload
    async def score_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        outputs: bool = False,
        uncertainty: Literal[True],
        concurrency: int = 8,
        on_progress: OnProgress = lambda done, total: None,
    ) -> list[list[RewardDetails] | RequestRejectedError]: ...

    async def score_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        outputs: bool = False,
        uncertainty: bool = False,
        concurrency: int = 8,
        on_progress: OnProgress = lambda done, total: None,
    ) -> (
        list[list[float] | RequestRejectedError] | list[list[RewardDetails] | RequestRejectedError]
    ):
        """Score many rows, as :meth:`RewardModel.score_many`.

        Args:
            rows: Pairs of a prompt and a list of responses.
            tools: JSON schemas of the tools, the same for every row.
            outputs: As for :meth:`score`.
            uncertainty: As for :meth:`score`.
            concurrency: Requests that are sent at the same time.
            on_progress: Called with the number of finished rows and of all rows.

        Returns:
            One entry per row: the list that :meth:`score` returns, or the error that says why the
            row cannot be scored.

        Raises:
            ServerError: The server cannot be reached, stays busy, or rejects the client.
        """
        outcomes = await self.rewards_of_many(
            rows,
            tools=tools,
            outputs=outputs,
            uncertainty=uncertainty,
            concurrency=concurrency,
            on_progress=on_progress,
        )
        if outputs or uncertainty:
            return [o if isinstance(o, RequestRejectedError) else o.details() for o in outcomes]
        return [o if isinstance(o, RequestRejectedError) else list(o.rewards) for o in outcomes]

    async def rewards_of_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        outputs: bool = False,
        uncertainty: bool = False,
        concurrency: int = 8,
        on_progress: OnProgress = lambda done, total: None,
    ) -> list[Outcome]:
        """Score many rows, as :meth:`score_many`, with a :class:`Rewards` for each row."""
        if concurrency < 1:
            raise DataError(f"concurrency is {concurrency}; expected 1 or more.")
        rows = check_rows(rows)
        done, order = itertools.count(1), threading.Lock()

        async def outcome_of(row: Prompted) -> Outcome:
            outcome: Outcome
            try:
                outcome = await self.rewards(
                    *row, tools=tools, outputs=outputs, uncertainty=uncertainty
                )
            except RequestRejectedError as rejected:
                outcome = rejected
            with order:
                on_progress(next(done), len(rows))
            return outcome

        return await self._map(outcome_of, rows, concurrency)

    async def models(self) -> list[str]:
        """Names of the server's models. The default model is first."""
        return await self._ask("v1/models", lambda answer: [str(m["id"]) for m in answer["data"]])

    async def describe(self) -> dict[str, Any]:
        """Metadata of the model, as the server reports it."""
        name = self._model
        if name is None:
            name, *_ = await self.models()
        return await self._ask(f"v1/models/{quote(name, safe='')}", dict)

    async def _ask(
        self,
        path: str,
        read: Callable[[dict[str, Any]], Answer],
        body: dict[str, Any] | None = None,
    ) -> Answer:
        """What ``read`` takes from the JSON of a 200, asked again while the server is away or busy.

        Raises:
            ServerError: the server is away, stays busy, or answers something else.
            RequestRejectedError: it cannot score this, or this cannot be sent.
        """
        content = None
        if body is not None:
            named = {} if self._model is None else {"model": self._model}
            content = _as_json({**body, **named})
        method = "GET" if content is None else "POST"
        attempt, wait = 0, 0.0
        while True:
            reply: httpx.Response | httpx.TransportError
            # A request of its own for each attempt: an answer may have set cookies.
            request = self._http.build_request(method, path, content=content)
            try:
                reply = await self._send(request, wait)
            except httpx.TransportError as error:
                reply = error
            if isinstance(reply, httpx.Response) and reply.is_success:
                try:
                    return read(reply.json())
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ServerError(
                        f"{self._url} sent an unexpected response ({type(error).__name__}:"
                        f" {error}); check that it is a plaudit server of the same version."
                    ) from error
            pause = self._pause(reply, attempt)
            attempt += 1
            if pause is None or attempt > self._retries:
                raise self._problem(reply, attempt)
            wait = pause

    def _pause(self, reply: httpx.Response | httpx.TransportError, attempt: int) -> float | None:
        """Seconds until another attempt makes sense; None where none does.

        Exponential, between half and all of it by chance, so that clients that failed together do
        not come back together. What the server asks for in Retry-After counts instead.
        """
        own = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(attempt, 16)) * self._chance.uniform(
            0.5, 1.0
        )
        if isinstance(reply, httpx.TransportError):
            return None if isinstance(reply, httpx.UnsupportedProtocol) else own
        if reply.status_code not in BUSY:
            return None
        asked = _retry_after(reply.headers.get("retry-after"))
        if asked is None:
            return own
        return asked * self._chance.uniform(1.0, 1.1) if asked <= _LONGEST_WAIT else None

    def _problem(
        self, reply: httpx.Response | httpx.TransportError, attempts: int
    ) -> ServerError | RequestRejectedError:
        tried = f" after {attempts} attempts" if attempts > 1 else ""
        if isinstance(reply, httpx.TransportError):
            why = str(reply) or type(reply).__name__
            return ServerError(
                f"{self._url} is unreachable{tried} ({why.rstrip('.')}); check that the server is"
                " running there."
            )
        said = _message(reply)
        status, request_id = reply.status_code, reply.headers.get("x-request-id")
        if status in REJECTED:
            return RequestRejectedError(
                f"{self._url} rejected the request: {said}.", status=status, request_id=request_id
            )
        advice = {
            401: "; pass the server's token to the client",
            404: "; see models() for the models that it serves",
        }
        return ServerError(
            f"{self._url} returned HTTP {status}{tried}: {said}{advice.get(status, '')}.",
            status=status,
            request_id=request_id,
        )

    @abstractmethod
    async def _send(self, request: httpx.Request, wait: float) -> httpx.Response:
        """The response to ``request``, which is sent after ``wait`` seconds."""

    @abstractmethod
    async def _map(self, ask: Ask, rows: list[Prompted], concurrency: int) -> list[Outcome]:
        """What ``ask`` gives for each row, ``concurrency`` rows at a time; its error ends all."""


class AsyncRewardClient(_Requests[httpx.AsyncClient]):
    """Score with a reward model behind ``plaudit serve``, with ``await``.

    Use it with ``async with``, or call :meth:`close`. Its arguments are those of
    :class:`RewardClient`.

    Examples:
        >>> async with AsyncRewardClient("http://127.0.0.1:8000") as model:
        ...     rewards = await model.score("Name a prime.", ["7", "8"])
    """

    _kind = httpx.AsyncClient

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, request: httpx.Request, wait: float) -> httpx.Response:
        await asyncio.sleep(wait)
        return await self._http.send(request)

    async def _map(self, ask: Ask, rows: list[Prompted], concurrency: int) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        left = iter(enumerate(rows))

        async def work() -> None:
            for place, row in left:
                outcomes[place] = await ask(row)

        # Not a TaskGroup, whose ExceptionGroup would hide the one sentence.
        tasks = [asyncio.ensure_future(work()) for _ in range(min(concurrency, len(rows)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [outcomes[place] for place in range(len(rows))]


class _BlockingRequests(_Requests[httpx.Client]):
    _kind = httpx.Client

    async def _send(self, request: httpx.Request, wait: float) -> httpx.Response:
        time.sleep(wait)
        return self._http.send(request)

    async def _map(self, ask: Ask, rows: list[Prompted], concurrency: int) -> list[Outcome]:
        stop = threading.Event()

        def work(row: Prompted) -> Outcome:
            if stop.is_set():
                raise ServerError("Another row of the same call failed.")
            try:
                return _run(ask(row))
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(concurrency, thread_name_prefix="plaudit-client") as pool:
            try:
                # Rows start in their order, so the first error met here is the one that stopped it.
                return list(pool.map(work, rows))
            finally:
                stop.set()


def _run(request: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of a coroutine that blocks and never awaits an event loop."""
    try:
        request.send(None)
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    raise AssertionError("a coroutine of a blocking client waits")


def _blocking(
    ask: Callable[Concatenate[_BlockingRequests, Params], Coroutine[Any, Any, Answer]],
) -> Callable[Concatenate[RewardClient, Params], Answer]:
    """The method of :class:`RewardClient` that waits for an answer."""

    @wraps(ask)
    def wait(client: RewardClient, /, *args: Params.args, **options: Params.kwargs) -> Answer:
        return _run(ask(client._requests, *args, **options))

    return wait


class RewardClient:
    """Score with a reward model behind ``plaudit serve``. Loads no torch.

    Use it with ``with``, or call :meth:`close`. Threads may share a client. It has the methods of
    :class:`AsyncRewardClient`, without ``await``. No method calls another one, so a subclass that
    overrides one method changes no other.

    Args:
        url: Address of the server, for example ``http://127.0.0.1:8000``.
        token: Bearer token of the server.
        model: Name of one of the server's models. By default, its first.
        timeout: Seconds that one attempt may take, 60 by default.
        retries: Further attempts if the server cannot be reached or is busy, 5 by default.

    Raises:
        DataError: ``url`` is not a URL, or ``retries`` is negative.
        RequestRejectedError: By every method: the server cannot score the request.
        ServerError: By every method: the server cannot be reached, stays busy, or rejects the
            client.

    Examples:
        >>> from plaudit.client import RewardClient
        >>> with RewardClient("http://127.0.0.1:8000") as model:
        ...     rewards = model.score("Name a prime.", ["7", "8"])
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        model: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
    ) -> None:
        self._requests = _BlockingRequests(url, token, model, timeout, retries)

    score = _blocking(_BlockingRequests.score)
    prefer = _blocking(_BlockingRequests.prefer)
    best_of = _blocking(_BlockingRequests.best_of)
    token_rewards = _blocking(_BlockingRequests.token_rewards)
    rewards = _blocking(_BlockingRequests.rewards)
    score_many = _blocking(_BlockingRequests.score_many)
    rewards_of_many = _blocking(_BlockingRequests.rewards_of_many)
    models = _blocking(_BlockingRequests.models)
    describe = _blocking(_BlockingRequests.describe)

    def close(self) -> None:
        """Close the connections."""
        self._requests._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- shapes on the wire --------------------------------------------------------------------------


def _plain(texts: Mapping[str, Text], tools: Tools | None) -> dict[str, Any]:
    """Texts or messages by their names in errors, and the tools, as JSON has them.

    Raises:
        RequestRejectedError: one is neither; what this process finds wrong is named as the server
            would.
    """
    plain: dict[str, Any] = {}
    try:
        for name, text in texts.items():
            if not isinstance(text, str):
                as_messages(text, name)
            plain[name] = text if isinstance(text, str) else [dict(message) for message in text]
        checked = as_tools(tools)
    except DataError as error:
        raise RequestRejectedError(str(error)) from None
    return {**plain, "tools": None if checked is None else [dict(tool) for tool in checked]}


def _as_json(body: Mapping[str, Any]) -> bytes:
    """The body of a request.

    Raises:
        RequestRejectedError: a message holds what JSON or UTF-8 has no form for.
    """
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RequestRejectedError(
            f"The request cannot be encoded as JSON ({error}); use valid Unicode text, and"
            " messages with plain JSON values."
        ) from None


def _rewards_of(answer: Mapping[str, Any]) -> Rewards:
    token_rewards, outputs = answer.get("token_rewards"), answer.get("outputs")
    numbers = {name: answer.get(name) for name in ("mean", "spread", "lower_bound")}
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
        outputs=None
        if outputs is None
        else tuple({name: float(value) for name, value in one.items()} for one in outputs),
        **{
            name: None if values is None else tuple(map(float, values))
            for name, values in numbers.items()
        },
    )


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
