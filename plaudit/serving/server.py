"""The server process: uvicorn around the application, signals, workers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from filelock import FileLock, Timeout
from uvicorn.supervisors import Multiprocess

from plaudit.errors import PlauditError
from plaudit.serving.app import build_app
from plaudit.serving.connections import BoundedConnection
from plaudit.serving.engine import Engine, freeze_heap, passing_thread
from plaudit.serving.middleware import Gate, JsonLines
from plaudit.serving.prometheus import Metrics
from plaudit.serving.served import open_served
from plaudit.serving.settings import Settings, SettingsError

logger = logging.getLogger("plaudit.serving")

SETTINGS_VARIABLE = "PLAUDIT_SERVE_SETTINGS"
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
        logger.info("draining", extra={"facts": {"signal": signal.Signals(sig).name}})
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
            logger.error("reload_failed", extra={"facts": {"model": name, "why": str(error)}})


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


def open_engine(settings: Settings) -> Engine:
    """Load every model.

    Raises:
        ModelError: one cannot be loaded.
    """
    settings = with_open_files(settings)
    with passing_thread() as thread:
        served = list(thread.map(lambda source: open_served(source, settings), settings.models))
    return Engine(settings, served, Metrics())


def with_open_files(settings: Settings) -> Settings:
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
    settings: Settings,
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


def serve_workers(settings: Settings, on_start: Callable[[str], None]) -> None:
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
        os.environ[SETTINGS_VARIABLE] = settings.as_json()
        os.environ[DEVICES_VARIABLE] = shared
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
        config = configure("plaudit.serving.server:worker_app", settings)
        listening = bind(settings)
        listening.listen(BACKLOG)
        supervisor = Workers(config, sockets=[listening])
        on_start(_address(settings, listening))
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise SettingsError("A worker could not start; its reason stands above.")


def _address(settings: Settings, listening: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listening.getsockname()[1]}"


def worker_app() -> Gate:
    """The application of one worker process, built there."""
    settings = Settings.from_json(os.environ[SETTINGS_VARIABLE])
    log_as_json()
    device = settings.device or claim_device(Path(os.environ[DEVICES_VARIABLE]))
    settings = replace(settings, device=device)
    engine = open_engine(settings)
    app = build_app(engine, token=read_token(settings))
    assert isinstance(app, Gate)
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


def read_token(settings: Settings) -> str | None:
    """The bearer token from its file or the environment, never from the command line.

    Raises:
        SettingsError: the file cannot be read, or it or the variable is empty.
    """
    if settings.token_file is None:
        given = os.environ.get(TOKEN_VARIABLE)
        if given is not None and not given.strip():
            # A secret that was not filled in must not open the server.
            raise SettingsError(
                f"{TOKEN_VARIABLE} is empty; put the token into it, or unset it to serve without."
            )
        return given and given.strip()
    try:
        token = Path(settings.token_file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--token-file {settings.token_file} cannot be read ({error}); name a file that holds "
            "the token."
        ) from None
    if not token:
        raise SettingsError(
            f"--token-file {settings.token_file} is empty; write the token into it."
        )
    return token


def log_as_json() -> None:
    """One JSON line per request and event on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def configure(app: Any, settings: Settings) -> uvicorn.Config:
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


def bind(settings: Settings) -> socket.socket:
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
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror or error}); "
            "choose another --port, or a --host of this machine."
        ) from None
    listening.set_inheritable(True)
    return listening
