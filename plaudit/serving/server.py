"""The server process: uvicorn around the application, its connections, signals and workers."""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.supervisors import Multiprocess

from plaudit.errors import PlauditError
from plaudit.serving.app import build_app
from plaudit.serving.engine import Engine, freeze_heap, loading_thread
from plaudit.serving.errors import RejectionError, error_response
from plaudit.serving.middleware import JsonLines, RequestMiddleware
from plaudit.serving.served_model import open_served
from plaudit.serving.settings import ServerSettings, SettingsError

KERNEL_BUFFER = 128 * 1024
"""Bytes of an answer that lie in the kernel. A slower client than about a third of it in
``body_timeout`` seconds looks like one that reads nothing."""
CLOSED_AT_ONCE = 32
"""Connections that make room together, so that a flood does not search for each."""


class BoundedConnection(H11Protocol):
    """One connection. ``waits_since`` is when the server began to wait for its client; None while a
    whole request is answered.

    - Headers, and the rest of a body that nobody reads, are there within ``body_timeout`` seconds,
      or the connection is closed (408 where something was sent).
    - A client goes on reading its answer within ``body_timeout`` seconds (``KERNEL_BUFFER`` has the
      slowest rate that is seen), or the connection is aborted.
    - Beyond ``max_connections``, those that have waited longest for their client are closed, as
      nginx does; a new connection is closed only where every other one is being answered.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The application's lifespan hands it over, in worker processes too.
        self._settings: ServerSettings = self.app_state["settings"]
        self._deadline: asyncio.TimerHandle | None = None
        self._read_deadline: asyncio.TimerHandle | None = None
        self.waits_since: float | None = time.monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and hasattr(raw, "setsockopt"):
            # The kernel would take megabytes of an answer, and hide whether the client reads them.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
        self._update()
        if len(self.connections) > self._settings.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            # The next request begins.
            self.waits_since = time.monotonic()
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_closing()
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_watching()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        # A connection that is closing is watched until the client has read the last of its answer.
        if not self.transport.is_closing():
            self._stop_watching()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_closing()

    def _watch_closing(self) -> None:
        """Closing waits until the client has read all of its answer."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._watch_reader()

    def _watch_reader(self) -> None:
        """Abort the connection as soon as ``body_timeout`` seconds pass in which nothing is read.

        Nothing is written meanwhile, so what waits to be sent shrinks where the client reads.
        """
        self._stop_watching()
        waiting = self.transport.get_write_buffer_size()
        self._read_deadline = self._later(lambda: self._check_reader(waiting))

    def _check_reader(self, waiting: int) -> None:
        if self.transport.get_write_buffer_size() < waiting:
            self._watch_reader()
        else:
            self.transport.abort()

    def _stop_watching(self) -> None:
        if self._read_deadline is not None:
            self._read_deadline.cancel()
            self._read_deadline = None

    def _update(self) -> None:
        """Start or stop waiting for the client, after something came or was answered."""
        answered = self.cycle is None or self.cycle.response_complete
        if not answered and not self.cycle.more_body:
            self.waits_since = None
        elif self.waits_since is None:
            self.waits_since = time.monotonic()
        # The middleware has a deadline for the body of a request, uvicorn one between requests.
        if not answered or self.timeout_keep_alive_task is not None:
            self._disarm()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self._later(self._give_up)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _later(self, call: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.call_later(self._settings.body_timeout, call)

    def _give_up(self) -> None:
        sent, _ = self.conn.trailing_data
        if not sent or self.conn.our_state is not h11.IDLE:
            self.transport.abort()
            return
        seconds = self._settings.body_timeout
        response = error_response(
            RejectionError("slow_body", f"The request did not arrive within {seconds:g} seconds."),
            uuid.uuid4().hex,
        )
        head = h11.Response(
            status_code=response.status_code,
            headers=[*response.raw_headers, (b"connection", b"close")],
            reason=STATUS_PHRASES[response.status_code],
        )
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._watch_closing()

    def _make_room(self) -> None:
        waiting = (
            (one.waits_since, number, one)
            for number, one in enumerate(self.connections)
            if isinstance(one, BoundedConnection)
            and one is not self
            and one.waits_since is not None
            and not one.transport.is_closing()
        )
        longest = [one for _, _, one in heapq.nsmallest(CLOSED_AT_ONCE, waiting)]
        for one in longest or [self]:
            one.transport.abort()


logger = logging.getLogger("plaudit.serving")

SETTINGS_VARIABLE = "PLAUDIT_SERVE_SETTINGS"
"""How worker processes get their settings."""
SETTINGS_JSON = TypeAdapter(ServerSettings)
TOKEN_VARIABLE = "PLAUDIT_SERVE_TOKEN"
DEVICES_VARIABLE = "PLAUDIT_SERVE_DEVICES"
JUST_ACCEPTED_SECONDS = 0.2
WORKER_START_SECONDS = 900
# Longer than the 60 s after which nginx and most balancers give up an idle connection to a server:
# who closes first must be the one who sends, or a request meets a connection that is closing.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
# Of models, logs, libraries and the listening socket.
OTHER_FILES = 256


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which on SIGTERM first says that it is going and then drains.

    For ``drain_notice`` seconds ``/ready`` is 503 and answers close their connections, so that
    balancers and clients turn away; requests are still taken. Then no more are, and those that
    were accepted are answered. A second signal ends at once.
    """

    def __init__(
        self, config: uvicorn.Config, engine: Engine, on_listening: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._engine = engine
        self._on_listening = on_listening
        self._reloads: set[asyncio.Future[None]] = set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._engine.draining:
            self.force_exit = self.should_exit = True
            return
        self._engine.draining = True
        logger.info("draining", extra={"fields": {"signal": signal.Signals(sig).name}})
        notice = 0.0 if sig == signal.SIGINT else self._engine.settings.drain_notice
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, notice, self._leave)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, then wait for requests of connections that were just accepted.

        uvicorn would close a connection whose request has not arrived yet.
        """
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        await asyncio.sleep(JUST_ACCEPTED_SECONDS)
        await super().shutdown(sockets=sockets)

    def _leave(self) -> None:
        # uvicorn's own handler would raise the signal again after draining: exit code 0 is meant.
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        self._on_listening()
        if hasattr(signal, "SIGHUP"):
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self._reload_all)

    def _reload_all(self) -> None:
        for served in self._engine.models:
            task = asyncio.ensure_future(self._reload(served.name))
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)

    async def _reload(self, name: str) -> None:
        try:
            await self._engine.reload(name)
        except PlauditError as error:
            logger.error("reload_failed", extra={"fields": {"model": name, "why": str(error)}})


class Workers(Multiprocess):
    """uvicorn's worker processes, whose death is seen at once.

    uvicorn 0.54 keeps the worker's end of the pipe over which it asks whether a worker is well. One
    that died while it was asked then looks as if it would still answer, for as long as a worker
    may take to start, and nobody replaces it. Can go when uvicorn closes that end itself.
    """

    def keep_subprocess_alive(self) -> None:
        for process in self.processes:
            process.child_conn.close()
        super().keep_subprocess_alive()


def open_engine(settings: ServerSettings) -> Engine:
    """Load every model.

    Raises:
        ModelError: one cannot be loaded.
    """
    settings = with_open_files(settings)
    with loading_thread() as thread:
        served = list(thread.map(lambda source: open_served(source, settings), settings.models))
    return Engine(settings, served)


def with_open_files(settings: ServerSettings) -> ServerSettings:
    """Raise the process's limit of open files for ``max_connections``, or lower the latter to it.

    Without a file for a new connection nobody could connect until one is closed.
    """
    if sys.platform == "win32":
        return settings
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return replace(settings, max_connections=max(1, allowed - OTHER_FILES))


def serve(
    settings: ServerSettings,
    engine: Engine,
    listening: socket.socket,
    on_listening: Callable[[str], None],
) -> None:
    """Answer requests on a bound socket until a signal says to stop.

    The socket is bound before the engine's models are loaded, so that a busy port is an error at
    once. ``on_listening`` is called with the address.
    """
    config = configure(build_app(engine, token=read_token(settings)), settings)
    log_as_json()
    freeze_heap()
    address = _address(settings, listening)
    server = DrainingServer(config, engine, lambda: on_listening(address))
    server.run(sockets=[listening])


def serve_workers(settings: ServerSettings, on_start: Callable[[str], None]) -> None:
    """Several worker processes behind one socket, each with its own copy of the models.

    uvicorn starts and watches them; SIGHUP to this process replaces them one after the other.
    ``on_start`` hears the address; requests that come before a worker is ready wait for one.

    Raises:
        SettingsError: the address cannot be listened on, or a worker cannot start.
    """
    from uvicorn.config import STARTUP_FAILURE

    log_as_json()
    read_token(settings)
    with tempfile.TemporaryDirectory(prefix="plaudit-serve-") as shared:
        os.environ[SETTINGS_VARIABLE] = SETTINGS_JSON.dump_json(settings).decode()
        os.environ[DEVICES_VARIABLE] = shared
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
        config = configure("plaudit.serving.server:worker_app", settings)
        listening = bind(settings)
        listening.listen(BACKLOG)
        supervisor = Workers(config, sockets=[listening])
        on_start(_address(settings, listening))
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise SettingsError("A worker could not start; the reason is above.")


def _address(settings: ServerSettings, listening: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listening.getsockname()[1]}"


def worker_app() -> RequestMiddleware:
    """The application of one worker process, built there."""
    settings = SETTINGS_JSON.validate_json(os.environ[SETTINGS_VARIABLE])
    log_as_json()
    device = settings.device or claim_device(Path(os.environ[DEVICES_VARIABLE]))
    settings = replace(settings, device=device)
    engine = open_engine(settings)
    app = build_app(engine, token=read_token(settings))
    _say_first_on_term(engine)
    freeze_heap()
    return app


def _say_first_on_term(engine: Engine) -> None:
    """Let uvicorn's worker, which makes a server of its own class, give notice as ours does."""
    leave = signal.getsignal(signal.SIGTERM)
    if not callable(leave):
        return

    def told(sig: int, frame: FrameType | None) -> None:
        if engine.draining:
            leave(sig, frame)
            return
        engine.draining = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(
            loop.call_later, engine.settings.drain_notice, partial(leave, sig, frame)
        )

    signal.signal(signal.SIGTERM, told)


def claim_device(folder: Path) -> str | None:
    """The first GPU that no other worker has; None without one, or with fewer GPUs than workers."""
    import torch

    for number in range(torch.cuda.device_count()):
        lock = FileLock(folder / f"device-{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        # Held until the process ends, which frees it for the worker that comes after.
        _CLAIMED.append(lock)
        return f"cuda:{number}"
    return None


_CLAIMED: list[FileLock] = []


def read_token(settings: ServerSettings) -> str | None:
    """The bearer token from its file or the environment, never from the command line.

    Raises:
        SettingsError: the file cannot be read, or it or the variable is empty.
    """
    if settings.token_file is None:
        given = os.environ.get(TOKEN_VARIABLE)
        if given is not None and not given.strip():
            # A secret that was not filled in must not open the server.
            raise SettingsError(
                f"{TOKEN_VARIABLE} is empty; set it to the token, or unset it to serve without a"
                " token."
            )
        return given and given.strip()
    try:
        token = Path(settings.token_file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--token-file {settings.token_file} cannot be read ({error}); expected a file with"
            " the token."
        ) from None
    if not token:
        raise SettingsError(
            f"--token-file {settings.token_file} is empty; write the token into the file."
        )
    return token


def log_as_json() -> None:
    """One JSON line per request and event on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def configure(app: Any, settings: ServerSettings) -> uvicorn.Config:
    """The configuration of uvicorn, for one process and for each worker."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        factory=isinstance(app, str),
        http=BoundedConnection,
        workers=settings.workers,
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=round(settings.drain_timeout),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Until a new worker has loaded its models, too.
        timeout_worker_healthcheck=WORKER_START_SECONDS,
        backlog=BACKLOG,
    )


def bind(settings: ServerSettings) -> socket.socket:
    """The socket to listen on.

    Its protocol is named, since asyncio turns Nagle's algorithm off only then: uvicorn's own socket
    leaves it 0, and an answer's body would wait 40 ms for the acknowledgement of its head.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise SettingsError(
            f"Cannot listen on {settings.host}:{settings.port} ({error.strerror or error}); use"
            " another --port, or a --host of this machine."
        ) from None
    listening.set_inheritable(True)
    return listening
