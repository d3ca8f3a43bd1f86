"""The HTTP application: protocols, models, probes and the page, behind the request middleware."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints, and those of
# a protocol are values of its row.

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response

from plaudit import __version__
from plaudit.errors import ModelError, PlauditError
from plaudit.serving.engine import Engine
from plaudit.serving.errors import RejectionError, documented, from_status
from plaudit.serving.middleware import Exchange, RequestMiddleware, failure
from plaudit.serving.protocols.records import (
    Dialogue,
    Protocol,
    ScoreRequest,
    ScoreResult,
    parse_body,
)
from plaudit.serving.protocols.table import PROTOCOLS
from plaudit.serving.scheduler import Job, token_costs
from plaudit.serving.served_model import ModelCard, ModelMetadata, ServedModel, metadata_of
from plaudit.serving.settings import ServerSettings
from plaudit.types import IntArray, Text, TokenReward

CLIENT_HEADER = "x-client-id"
TIMEOUT_HEADER = "x-request-timeout"
PARSED_ON_LOOP = 1 << 16
"""Bytes of a body up to which parsing takes less than a millisecond or two."""

Result = TypeVar("Result")


class Health(BaseModel):
    """The state of the server; ``status`` is ``ok`` while it can score."""

    status: str
    models: list[str]


class ModelList(BaseModel):
    object: str = "list"
    data: list[ModelCard]


def build_app(engine: Engine, *, token: str | None = None) -> RequestMiddleware:
    """The ASGI application. Starting it starts the engine, stopping it drains the engine."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, ServerSettings]]:
        engine.start()
        yield {"settings": engine.settings}
        await engine.stop()

    app = FastAPI(
        title="plaudit",
        summary="Rewards from a reward model, in the protocols of RLHF tools.",
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
    app.add_exception_handler(PlauditError, _on_rejection)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_defect)
    named = {path: protocol.name for protocol in PROTOCOLS.values() for path in protocol.paths}
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        named[path] = path.strip("/")
    return RequestMiddleware(
        app=app, engine=engine, token=token, open_paths=OPEN_PATHS, protocol_of=named
    )


# ---- scoring -------------------------------------------------------------------------------------


def _add(app: FastAPI, engine: Engine, protocol: Protocol) -> None:
    dump = TypeAdapter(protocol.response).dump_json
    parser = TypeAdapter(protocol.request)

    async def endpoint(request: Request, body: protocol.request, model: str | None = None) -> Any:  # type: ignore[name-defined]
        wanted = await _off_loop(engine, request, body.read)
        name = model or body.model
        if engine.places.locked():
            raise engine.overloaded("requests")
        async with engine.places:
            served = engine.model(name, exact=protocol.exact_model or model is not None)
            scored = await until_gone(request, score_request(engine, served, wanted, request))
        answer = protocol.answer(body, scored)
        return Response(dump(answer, exclude_none=False), media_type="application/json")

    class ProtocolRoute(APIRoute):
        """Documented by the endpoint's signature; parsed by :func:`parse_body`, not by FastAPI,
        which parses on the event loop and accepts what JSON in UTF-8 is not.
        """

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            async def handle(request: Request) -> Response:
                try:
                    content = await request.body()
                except ClientDisconnect:
                    raise RejectionError(
                        "client_gone", "The client closed the connection."
                    ) from None
                kind = request.headers.get("content-type", "")
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
            description=f"Used by {protocol.spoken_by}. Set `?model=` where a client cannot set "
            "`model` in the body.",
            response_model=protocol.response,
            openapi_extra={
                "requestBody": {"content": {"application/json": {"example": protocol.example}}}
            },
            tags=[protocol.name],
            route_class_override=ProtocolRoute,
        )


async def _off_loop(engine: Engine, request: Request, work: Callable[[], Result]) -> Result:
    """The result of work whose time grows with the body's size."""
    if _exchange(request).body_bytes <= PARSED_ON_LOOP:
        return work()
    return await engine.in_thread(engine.parser, work, _deadline(engine, request))


async def score_request(
    engine: Engine, served: ServedModel, wanted: ScoreRequest, request: Request
) -> ScoreResult:
    """The one path from any protocol's request to rewards."""
    began = time.monotonic()
    deadline = _deadline(engine, request)
    limit = engine.settings.max_conversations
    count = sum(len(p.responses) if isinstance(p, Dialogue) else 1 for p in wanted.parts)
    if count > limit:
        raise RejectionError(
            "bad_request",
            f"The request has {count} conversations; the limit is {limit}. Send fewer"
            " conversations per request.",
        )

    _check_details(served, wanted)

    def encode() -> tuple[list[IntArray], list[int]]:
        encoded = served.encode(wanted)
        return encoded, token_costs(encoded)

    sequences, costs = await engine.in_thread(engine.encoder, encode, deadline)
    job = Job(
        owner=served,
        client=_client(request),
        sequences=sequences,
        costs=costs,
        deadline=deadline,
    )
    await engine.run(job)
    outputs_KO = np.asarray(job.outputs, np.float64).reshape(-1, served.model.output_count)
    token_rewards, details = None, None
    if wanted.outputs or wanted.uncertainty:
        details = served.model.details(
            outputs_KO, outputs=wanted.outputs, uncertainty=wanted.uncertainty
        )
    if wanted.token_rewards:
        token_rewards = await _token_rewards(engine, wanted, job)
    _exchange(request).fields = {
        "model": served.name,
        "conversations": count,
        "tokens": sum(map(len, sequences)),
        "computed": job.computed,
        "cached": job.cached,
    }
    return ScoreResult(
        id=uuid.uuid4().hex,
        model=served.name,
        created=int(time.time()),
        temperature=served.model.metadata.probability_temperature,
        rewards=served.model.rewards_of(outputs_KO).tolist(),
        tokens=[len(ids) for ids in sequences],
        computed=job.computed,
        seconds=time.monotonic() - began,
        token_rewards=token_rewards,
        details=details,
    )


def _check_details(served: ServedModel, wanted: ScoreRequest) -> None:
    for name in ("outputs", "uncertainty"):
        asked = {one: getattr(wanted, one) and one == name for one in ("outputs", "uncertainty")}
        try:
            served.model.check_details(**asked)
        except ModelError as error:
            raise RejectionError("bad_request", str(error), param=name) from None


async def _token_rewards(
    engine: Engine, wanted: ScoreRequest, scored: Job[ServedModel]
) -> tuple[tuple[TokenReward, ...], ...]:
    """Per-token rewards of every response, each computed in the model's thread."""

    def compute(prompt: Text, response: Text) -> tuple[TokenReward, ...]:
        try:
            steps = tuple(scored.owner.model.token_rewards(prompt, response))
        except PlauditError as error:
            raise RejectionError("bad_request", str(error), param="token_rewards") from None
        if not np.isfinite([step.reward for step in steps]).all():
            raise RejectionError("reward_not_finite", "A per-token reward is NaN or infinite.")
        return steps

    computed, left = [], iter(scored.sequences)
    for part in wanted.parts:
        assert isinstance(part, Dialogue)
        for response in part.responses:
            ids = next(left)
            job = Job(
                owner=scored.owner,
                client=scored.client,
                sequences=[ids],
                costs=[len(ids)],
                deadline=scored.deadline,
                action=partial(compute, part.prompt, response),
            )
            await engine.run(job)
            computed.append(job.result)
    return tuple(computed)


def _client(request: Request) -> str:
    """Who shares the engine fairly: the id a client gives itself, else its address."""
    named = request.headers.get(CLIENT_HEADER)
    return named[:128] if named else request.client.host if request.client else ""


def _deadline(engine: Engine, request: Request) -> float:
    """When the request's time is over, on the monotonic clock: at the server's limit, or earlier
    where the client says so.
    """
    began, limit = _exchange(request).began, engine.settings.request_timeout
    if TIMEOUT_HEADER not in request.headers:
        return began + limit
    try:
        seconds = float(request.headers[TIMEOUT_HEADER])
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise RejectionError(
            "bad_request",
            f"{TIMEOUT_HEADER} is not a positive number of seconds.",
            param=TIMEOUT_HEADER,
        )
    return began + min(limit, seconds)


async def until_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled when the client hangs up.

    Raises:
        RejectionError: the client is gone, so that nobody reads an answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RejectionError("client_gone", "The client closed the connection.")
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
        """List the served models, in the format of OpenAI's API."""
        return ModelList(
            data=[ModelCard(id=served.name, created=served.created) for served in engine.models]
        )

    @app.get("/v1/models/{name}", tags=["models"], operation_id="model")
    async def model(name: str) -> ModelMetadata:
        """Metadata of a model."""
        return metadata_of(engine.model(name, exact=True))

    @app.post("/v1/models/{name}/reload", tags=["models"], operation_id="reload")
    async def reload(name: str, request: Request) -> ModelMetadata:
        """Load the folder of a model again. The old version serves until the new one is ready."""
        # A browser says where a request comes from; a foreign page may not make the server work.
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise RejectionError("forbidden", "A page of another site must not reload a model.")
        if engine.settings.workers > 1:
            raise RejectionError(
                "conflict",
                "This server has several workers, so reload it with SIGHUP to the first process.",
            )
        try:
            return metadata_of(await engine.reload(name))
        except RejectionError:
            raise
        except PlauditError as error:
            raise RejectionError("conflict", f"The old version keeps running: {error}") from None


def _add_probes(app: FastAPI, engine: Engine) -> None:
    @app.get("/health", tags=["server"], operation_id="health")
    async def health() -> Health:
        """Liveness: whether the server can score."""
        if not engine.alive:
            raise RejectionError("unavailable", "The engine has stopped; restart the server.")
        return Health(status="ok", models=[served.name for served in engine.models])

    @app.get("/ready", tags=["server"], operation_id="ready")
    async def ready() -> Health:
        """Readiness: whether to send requests; 503 while the server shuts down."""
        if engine.draining or not engine.alive:
            raise RejectionError("unavailable", "The server is shutting down.", retry_after=5)
        return Health(status="ok", models=[served.name for served in engine.models])

    @app.get("/metrics", tags=["server"], operation_id="metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        text = engine.metrics.text(engine.queue)
        return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


# ---- errors --------------------------------------------------------------------------------------


def _exchange(request: Request) -> Exchange:
    exchange: Exchange = request.scope["state"]["exchange"]
    return exchange


async def _on_rejection(request: Request, error: Exception) -> Response:
    rejection = (
        error if isinstance(error, RejectionError) else RejectionError("bad_request", str(error))
    )
    return _exchange(request).reject(rejection)


async def _on_defect(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer, and the middleware logs it.
    return _exchange(request).reject(failure())


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _exchange(request).reject(from_status(error.status_code, str(error.detail)))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


STATIC = Path(__file__).parent / "static"

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Read once: what a package holds does not change while it runs.
_FILES = {path.name: path for path in sorted(STATIC.iterdir()) if path.suffix in _KINDS}

PAGE_PATHS = frozenset({"/", "/docs", "/page.json", *(f"/static/{name}" for name in _FILES)})
"""What a browser loads before it can ask for a token. None of it says anything of a model."""

OPEN_PATHS = frozenset({"/health", "/ready"}) | PAGE_PATHS
"""Answered without the token: probes of a supervisor, and the page, which holds no data."""

PAPERS = {"report": ("report.html", "text/html"), "card": ("README.md", "text/plain")}
"""What may lie beside a model: its file, and as what it is sent."""

_NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_ITS_OWN = "script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
PAGE_POLICY = f"{_NOTHING_ELSE}; {_ITS_OWN}"
PAPER_POLICY = (
    f"{_NOTHING_ELSE}; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "sandbox allow-scripts allow-popups"
)
"""A report has its styles, pictures and one script inside it; its own policy allows that script by
its hash. Scripts there have no origin, so they reach neither the server nor the page's token.
"""


def add_page(app: FastAPI, source_of: Callable[[str], str], *, token: bool) -> None:
    """Add the page's routes.

    ``source_of`` gives the folder or Hub id of a served model and raises for other names; ``token``
    says whether requests need one, so that the page asks for it before it is rejected.
    """

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file(_FILES["index.html"])

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _file(_FILES["docs.html"])

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in _FILES:
            raise HTTPException(404, "File not found.")
        return _file(_FILES[name])

    @app.get("/page.json", include_in_schema=False)
    async def settings() -> Response:
        return JSONResponse({"token": token}, headers=_headers(PAGE_POLICY))

    @app.get("/models/{name}/{paper}", include_in_schema=False)
    async def paper(name: str, paper: str) -> Response:
        """What lies beside a model: ``report`` is its HTML report, ``card`` its model card."""
        folder = Path(source_of(name))
        if paper not in PAPERS:
            raise HTTPException(404, f"Expected one of {', '.join(PAPERS)}.")
        file, kind = PAPERS[paper]
        if not (folder / file).is_file():
            raise HTTPException(404, f"The folder of this model has no {file}.")
        return FileResponse(folder / file, media_type=kind, headers=_headers(PAPER_POLICY))


def _file(path: Path) -> Response:
    return FileResponse(path, media_type=_KINDS[path.suffix], headers=_headers(PAGE_POLICY))


def _headers(policy: str) -> dict[str, Any]:
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        # Asked for again each time, answered 304 while it has not changed.
        "cache-control": "no-cache",
    }
