"""uvicorn's HTTP/1.1 connections, bounded in number and in how long they wait for their client.

uvicorn closes a connection that is idle between two requests. It waits without end for one that has
sent nothing, half of its headers or the rest of a body that was refused, and for a client that
reads nothing of its answer.
"""

from __future__ import annotations

import asyncio
import heapq
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from plaudit.serving.errors import error_response
from plaudit.serving.rejection import RefusalError
from plaudit.serving.settings import Settings

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
        self._settings: Settings = self.app_state["settings"]
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
            RefusalError("slow_body", f"No whole request in {seconds:g} seconds."), uuid.uuid4().hex
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
