"""The HTTP application: the table of protocols and the models' own routes, behind the gate."""

# No `from __future__ import annotations`: FastAPI reads the endpoint's annotations, and those of a
# protocol are values of its row.

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import product
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from plaudit import __version__
from plaudit.errors import PlauditError
from plaudit.serving.body import parse_body
from plaudit.serving.engine import Engine, Outcome
from plaudit.serving.errors import documented, from_status
from plaudit.serving.middleware import Exchange, Gate, failure
from plaudit.serving.page import add_page
from plaudit.serving.prometheus import CONTENT_TYPE
from plaudit.serving.protocols.records import Ask, Dialogue, Protocol, Scored, Step
from plaudit.serving.protocols.table import PROTOCOLS
from plaudit.serving.queue import costs_of
from plaudit.serving.rejection import RefusalError
from plaudit.serving.served import Served, facts_of
from plaudit.serving.settings import Settings
from plaudit.types import IntArray

CLIENT_HEADER = "x-client-id"
TIMEOUT_HEADER = "x-request-timeout"
PARSED_ON_LOOP = 1 << 16
"""Bytes of a body up to which parsing takes less than a millisecond or two."""

Found = TypeVar("Found")


class Health(BaseModel):
    """``status`` is ``ok`` while the engine runs."""

    status: str
    models: list[str]


class ModelCard(BaseModel):
    """What OpenAI's clients read of a model."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "plaudit"


class ModelList(BaseModel):
    object: str = "list"
    data: list[ModelCard]


class ModelFacts(BaseModel):
    """A model's facts; ``evaluation`` is from its metrics.json, null where there is none."""

    id: str
    object: str
    created: int
    owned_by: str
    version: int
    loaded: str
    kind: str
    base: str
    text: str
    max_length: int
    temperature: float | None
    reward_mean: float | None
    reward_std: float | None
    layout: str
    plaudit_version: str
    origin: str | None
    evaluation: dict[str, Any] | None
    card: bool
    report: bool


def build_app(engine: Engine, *, token: str | None = None) -> Any:
    """The ASGI application. Starting it starts the engine, stopping it drains the engine."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Settings]]:
        engine.start()
        yield {"settings": engine.settings}
        await engine.stop()

    app = FastAPI(
        title="plaudit",
        summary="Rewards from a reward model, in the protocols that RLHF tools speak.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=documented(),
    )
    app.state.engine = engine
    for protocol in PROTOCOLS.values():
        _add(app, engine, protocol)
    _add_models(app, engine)
    _add_probes(app, engine)
    add_page(app, lambda name: engine.model(name, exact=True).source, token=token is not None)
    app.add_exception_handler(RefusalError, _on_refusal)
    app.add_exception_handler(PlauditError, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_defect)
    named = {path: protocol.name for protocol in PROTOCOLS.values() for path in protocol.paths}
    others = {path: path.strip("/") for path in ("/health", "/ready", "/metrics", "/v1/models")}
    return Gate(app, engine=engine, token=token, protocol_of={**named, **others})


# ---- scoring -------------------------------------------------------------------------------------


def _add(app: FastAPI, engine: Engine, protocol: Protocol) -> None:
    dump = TypeAdapter(protocol.response).dump_json
    parser = TypeAdapter(protocol.request)

    async def endpoint(request: Request, body: protocol.request, model: str | None = None) -> Any:  # type: ignore[name-defined]
        ask = await _off_loop(engine, request, partial(protocol.read, body))
        name = model or ask.model
        with engine.accepted():
            served = engine.model(name, exact=protocol.exact_model or model is not None)
            scored = await until_gone(request, scored_ask(engine, served, ask, request))
        answer = protocol.answer(body, scored)
        return Response(dump(answer, exclude_none=False), media_type="application/json")

    class ProtocolRoute(APIRoute):
        """Documented by the endpoint's signature; parsed by :func:`parse_body`, not by FastAPI,
        which parses on the event loop and accepts what JSON in UTF-8 is not.
        """

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            async def handle(request: Request) -> Response:
                content, kind = await _whole_body(request), request.headers.get("content-type", "")
                work = partial(parse_body, parser, kind, content)
                body = await _off_loop(engine, request, work)
                response: Response = await endpoint(
                    request, body, request.query_params.get("model")
                )
                return response

            return handle

    for path, method in product(protocol.paths, protocol.methods):
        app.router.add_api_route(
            path,
            endpoint,
            methods=[method],
            name=protocol.name,
            operation_id=f"{method.lower()}{path.replace('/', '_')}",
            summary=protocol.summary,
            description=f"Spoken by {protocol.spoken_by}. `?model=` names a model where the "
            "body of a client cannot.",
            response_model=protocol.response,
            openapi_extra={
                "requestBody": {"content": {"application/json": {"example": protocol.example}}}
            },
            tags=[protocol.name],
            route_class_override=ProtocolRoute,
        )


async def _whole_body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        raise RefusalError("client_gone", "The client hung up.") from None


async def _off_loop(engine: Engine, request: Request, work: Callable[[], Found]) -> Found:
    """The result of work whose time grows with the body's size."""
    if _exchange(request).body_bytes <= PARSED_ON_LOOP:
        return work()
    return await engine.parse(work, deadline=_deadline(engine, request))


async def scored_ask(engine: Engine, served: Served, ask: Ask, request: Request) -> Scored:
    """The one path from any protocol's request to rewards."""
    began = time.monotonic()
    exchange = _exchange(request)
    deadline = _deadline(engine, request)
    client = _client(request)
    limit = engine.settings.max_conversations
    asked = sum(len(p.responses) if isinstance(p, Dialogue) else 1 for p in ask.parts)
    if asked > limit:
        raise RefusalError(
            "bad_request", f"{asked} conversations are over {limit}; send fewer at once."
        )
    encoded, costs = await engine.encode(lambda: _encoded(served, ask), deadline=deadline)
    sequences = [ids for part in encoded for ids in part]
    outcome = await engine.score(served, sequences, costs, client=client, deadline=deadline)
    along = None
    if ask.along:
        along = await _along(engine, served, ask, encoded, client, deadline)
    exchange.facts = {
        "model": served.name,
        "conversations": asked,
        "tokens": sum(map(len, sequences)),
        "computed": outcome.computed,
        "cached": outcome.cached,
    }
    return _scored(served, encoded, outcome, along, time.monotonic() - began)


def _encoded(served: Served, ask: Ask) -> tuple[list[list[IntArray]], list[int]]:
    """Ids per part of the request, and the cost of every conversation; for the encoding thread."""
    encoded = served.encode(ask)
    return encoded, costs_of([ids for part in encoded for ids in part])


def _scored(
    served: Served,
    encoded: Sequence[Sequence[IntArray]],
    outcome: Outcome,
    along: tuple[tuple[Step, ...], ...] | None,
    seconds: float,
) -> Scored:
    rewards = iter(outcome.rewards)
    return Scored(
        id=uuid.uuid4().hex,
        model=served.name,
        created=int(time.time()),
        temperature=served.model.facts.temperature or 1.0,
        rewards=tuple(tuple(next(rewards) for _ in part) for part in encoded),
        tokens=tuple(tuple(len(ids) for ids in part) for part in encoded),
        computed=outcome.computed,
        seconds=seconds,
        along=along,
    )


async def _along(
    engine: Engine,
    served: Served,
    ask: Ask,
    encoded: Sequence[Sequence[IntArray]],
    client: str,
    deadline: float,
) -> tuple[tuple[Step, ...], ...]:
    found = []
    for part, sequences in zip(ask.parts, encoded, strict=True):
        assert isinstance(part, Dialogue)
        for response, ids in zip(part.responses, sequences, strict=True):

            def walk(prompt: Any = part.prompt, answer: Any = response) -> tuple[Step, ...]:
                try:
                    rewards = served.model.token_rewards(prompt, answer)
                except PlauditError as error:
                    raise RefusalError("bad_request", str(error), param="along") from None
                if not np.isfinite([step.reward for step in rewards]).all():
                    raise RefusalError("reward_not_finite", "A reward along the way is not finite.")
                return tuple(Step(text=step.text, reward=step.reward) for step in rewards)

            found.append(
                await engine.call(served, walk, cost=ids, client=client, deadline=deadline)
            )
    return tuple(found)


def _client(request: Request) -> str:
    """Who shares the engine fairly: the id a client gives itself, else its address."""
    named = request.headers.get(CLIENT_HEADER)
    return named[:128] if named else request.client.host if request.client else ""


def _deadline(engine: Engine, request: Request) -> float:
    """On the monotonic clock."""
    return _exchange(request).began + _timeout(engine, request)


def _timeout(engine: Engine, request: Request) -> float:
    """Seconds that the request may take: the server's limit, or less where the client says so."""
    most = engine.settings.request_timeout
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return most
    try:
        seconds = float(given)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise RefusalError(
            "bad_request",
            f"{TIMEOUT_HEADER} is not a positive number of seconds.",
            param=TIMEOUT_HEADER,
        )
    return min(most, seconds)


async def until_gone(request: Request, work: Awaitable[Found]) -> Found:
    """The result of ``work``, which is cancelled when the client hangs up.

    Raises:
        RefusalError: the client is gone, so that nobody reads an answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RefusalError("client_gone", "The client hung up.")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ---- models and probes ---------------------------------------------------------------------------


def _add_models(app: FastAPI, engine: Engine) -> None:
    @app.get("/v1/models", tags=["models"], operation_id="models")
    async def models() -> ModelList:
        """The models served, as OpenAI's clients list them."""
        facts = [facts_of(served) for served in engine.models]
        cards = [ModelCard(id=one["id"], created=one["created"]) for one in facts]
        return ModelList(data=cards)

    @app.get("/v1/models/{name}", tags=["models"], operation_id="model")
    async def model(name: str) -> ModelFacts:
        """One model's facts."""
        return ModelFacts(**facts_of(engine.model(name, exact=True)))

    @app.post("/v1/models/{name}/reload", tags=["models"], operation_id="reload")
    async def reload(name: str, request: Request) -> ModelFacts:
        """Load the model's folder again; the old version answers until the new one can."""
        # A browser says where a request comes from; a foreign page may not make the server work.
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise RefusalError("forbidden", "Another site's page may not reload a model.")
        if engine.settings.workers > 1:
            raise RefusalError(
                "conflict", "This server has several workers; send SIGHUP to the first process."
            )
        try:
            return ModelFacts(**facts_of(await engine.reload(name)))
        except RefusalError:
            raise
        except PlauditError as error:
            raise RefusalError("conflict", f"The old version stays: {error}") from None


def _add_probes(app: FastAPI, engine: Engine) -> None:
    @app.get("/health", tags=["server"], operation_id="health")
    async def health() -> Health:
        """Whether the process can work at all."""
        if not engine.alive:
            raise RefusalError("unavailable", "The engine has ended; restart the server.")
        return Health(status="ok", models=[served.name for served in engine.models])

    @app.get("/ready", tags=["server"], operation_id="ready")
    async def ready() -> Health:
        """Whether to send requests here; not while the server drains."""
        if engine.draining or not engine.alive:
            raise RefusalError("unavailable", "The server is stopping.", retry_after=5)
        return Health(status="ok", models=[served.name for served in engine.models])

    @app.get("/metrics", tags=["server"], operation_id="metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(engine.metrics.text(), headers={"content-type": CONTENT_TYPE})


# ---- errors --------------------------------------------------------------------------------------


def _exchange(request: Request) -> Exchange:
    exchange: Exchange = request.scope["state"]["exchange"]
    return exchange


async def _on_refusal(request: Request, error: Exception) -> Response:
    refusal = error if isinstance(error, RefusalError) else RefusalError("bad_request", str(error))
    return _exchange(request).refuse(refusal)


async def _on_defect(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer, and the gate logs it.
    return _exchange(request).refuse(failure())


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _exchange(request).refuse(from_status(error.status_code, str(error.detail)))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response
