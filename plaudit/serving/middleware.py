"""What happens to every request before and after its endpoint: id, token, body limits, log, count.

Plain ASGI, so that a body is counted while it arrives and nothing is kept of it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit.serving.engine import Engine
from plaudit.serving.errors import RejectionError, error_response
from plaudit.serving.settings import ServerSettings

logger = logging.getLogger("plaudit.serving")

_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as the log and the metrics see them.

    ``kind`` is that of the rejection it got.
    """

    request_id: str
    began: float = field(default_factory=time.monotonic)
    status: int = 0
    body_bytes: int = 0
    kind: str | None = None
    fields: dict[str, object] = field(default_factory=dict)

    def reject(self, rejection: RejectionError) -> Response:
        """The rejection as the answer."""
        self.kind = rejection.kind
        return error_response(rejection, self.request_id)


@dataclass(eq=False, kw_only=True)
class RequestMiddleware:
    """ASGI middleware around the whole application; ``open_paths`` need no token."""

    app: ASGIApp
    engine: Engine
    token: str | None
    open_paths: frozenset[str]
    protocol_of: Mapping[str, str]

    def __post_init__(self) -> None:
        self._names = None if self.token is not None else allowed_names(self.engine.settings)
        self._inflight_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        exchange = Exchange(given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex)
        scope["state"] = {**scope.get("state", {}), "exchange": exchange}
        try:
            await self._answer(scope, headers, receive, self._sender(exchange, send), exchange)
        finally:
            self._inflight_bytes -= exchange.body_bytes
            self._record(scope, exchange)

    async def _answer(
        self, scope: Scope, headers: Headers, receive: Receive, send: Send, exchange: Exchange
    ) -> None:
        try:
            self._check(scope, headers)
            await self.app(scope, self._receiver(exchange, receive), send)
            return
        except RejectionError as error:
            if exchange.status:
                # The response has started; all that is left is to close the connection.
                raise
            rejection = error
        except Exception:
            logger.exception(
                "request_failed", extra={"fields": {"request_id": exchange.request_id}}
            )
            # The framework has answered already where its error handling saw it first.
            if exchange.status:
                return
            rejection = failure()
        await exchange.reject(rejection)(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if self._names is not None and host_name(headers.get("host", "")) not in self._names:
            raise RejectionError(
                "forbidden",
                "This server has no token, so it accepts requests only for localhost; start it"
                " with --allowed-host and the host name of the request, or with --token-file.",
                param="host",
            )
        if self.token is not None and scope["path"] not in self.open_paths:
            kind, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("latin-1"), self.token.encode())
            if kind.lower() != "bearer" or not same:
                raise RejectionError(
                    "unauthorized",
                    "Missing or wrong token; send the header Authorization: Bearer TOKEN.",
                )
        announced = headers.get("content-length", "")
        if announced.isdigit():
            self._check_size(int(announced), more=int(announced))

    def _check_size(self, size: int, *, more: int = 0) -> None:
        """Reject a body of ``size``, or one whose ``more`` bytes there is no room for.

        Raises:
            RejectionError: it is too large, or too much is under way already.
        """
        settings = self.engine.settings
        if size > settings.max_body_bytes:
            raise RejectionError(
                "body_too_large",
                f"The body is larger than {settings.max_body_bytes:,} bytes; split it into"
                " several requests.",
            )
        if self._inflight_bytes + more > settings.max_inflight_bytes:
            raise RejectionError(
                "overloaded", "Too many queued bytes; try again later.", retry_after=1
            )

    def _receiver(self, exchange: Exchange, receive: Receive) -> Receive:
        """Body pieces within the limits of size and time; afterwards the plain channel."""
        settings = self.engine.settings
        complete = False

        async def limited() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            left = exchange.began + settings.body_timeout - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except TimeoutError:
                raise RejectionError(
                    "slow_body",
                    f"The body did not arrive within {settings.body_timeout:g} seconds.",
                ) from None
            if message["type"] != "http.request":
                complete = True
                return message
            size = len(message.get("body", b""))
            exchange.body_bytes += size
            self._inflight_bytes += size
            complete = not message.get("more_body", False)
            self._check_size(exchange.body_bytes)
            return message

        return limited

    def _sender(self, exchange: Exchange, send: Send) -> Send:
        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = exchange.request_id
                if self.engine.draining or exchange.status in (408, 413):
                    # Clients then come back on a new connection, to another server.
                    headers["connection"] = "close"
            await send(message)

        return sender

    def _record(self, scope: Scope, exchange: Exchange) -> None:
        seconds = time.monotonic() - exchange.began
        protocol = self.protocol_of.get(scope["path"], "other")
        self.engine.metrics.answered(protocol, exchange.status, seconds)
        why = {} if exchange.kind is None else {"rejected": exchange.kind}
        if exchange.kind is not None:
            self.engine.metrics.rejected.labels(exchange.kind).inc()
        logger.info(
            "request",
            extra={
                "fields": {
                    "request_id": exchange.request_id,
                    "method": scope["method"],
                    "protocol": protocol,
                    "status": exchange.status,
                    "ms": round(1000 * seconds, 2),
                    "bytes": exchange.body_bytes,
                    **why,
                    **exchange.fields,
                }
            },
        )


LOCAL_NAMES = frozenset({"", "localhost", "127.0.0.1", "::1"})
"""Names of this machine; a request without one (HTTP/1.0) comes from no browser."""


def allowed_names(settings: ServerSettings) -> frozenset[str] | None:
    """The names under which a server on loopback is asked; None where any will do.

    A page of any site can let its own name mean 127.0.0.1 and then read what is there (DNS
    rebinding); the name that its browser sends tells. A server for other machines, whose names
    nobody knows here, is asked under any unless some are allowed.
    """
    if not settings.allowed_hosts and not _is_loopback(settings.host):
        return None
    return LOCAL_NAMES | {name.lower() for name in (settings.host, *settings.allowed_hosts)}


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        # 127.1 is an address to the system, but not to Python.
        return host.lower() == "localhost" or host.startswith("127.")
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def host_name(header: str) -> str:
    """A ``Host`` header's name, without the port and an IPv6 address's brackets."""
    name, separator, behind = header.lower().removeprefix("[").partition("]")
    if not separator:
        return name.partition(":")[0]
    return name if not behind or behind.startswith(":") else header


def failure() -> RejectionError:
    """A defect of ours, as the client sees it."""
    return RejectionError("internal_error", "Internal server error; see the server log.")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event and fields. No field holds a client's text."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields = record.__dict__.get("fields")
        if isinstance(fields, dict):
            line.update(fields)
        if record.exc_info and record.exc_info[0] is not None:
            # The place, not the message: libraries put what they were given into theirs.
            line["error"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
        return json.dumps(line, default=str)
