"""Rejected requests: their kinds and statuses, and one JSON body for all of them.

``{"error": {"type", "message", "param", "request_id"}}``, in every protocol.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from plaudit.errors import PlauditError

STATUS = {
    "bad_request": 400,
    "over_length": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "slow_body": 408,
    "conflict": 409,
    "body_too_large": 413,
    "invalid_request": 422,
    "reward_not_finite": 422,
    "client_gone": 499,
    "internal_error": 500,
    "unavailable": 503,
    "overloaded": 503,
    "deadline_exceeded": 504,
}
"""Kinds of rejections. 4xx is an error of the client; 5xx may be tried again.

``overloaded`` is not 429: verl gives up on every 4xx, and with it the training run.
"""


@dataclass(eq=False)
class RejectionError(PlauditError):
    """A request that gets no rewards: ``kind`` is a row of :data:`STATUS`.

    ``param`` names the part of the request, ``retry_after`` the seconds after which another try
    makes sense.
    """

    kind: str
    message: str
    param: str | None = None
    retry_after: int | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def status(self) -> int:
        return STATUS[self.kind]


class ErrorDetail(BaseModel):
    """``type`` is for programs, ``message`` for people; ``param`` names a part of the request."""

    type: str
    message: str
    param: str | None
    request_id: str


class ErrorBody(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail


def error_response(rejection: RejectionError, request_id: str) -> Response:
    """The rejection as an HTTP answer."""
    error = {
        "type": rejection.kind,
        "message": rejection.message,
        "param": rejection.param,
        "request_id": request_id,
    }
    headers = {}
    if rejection.retry_after is not None:
        headers["retry-after"] = str(rejection.retry_after)
    if rejection.kind == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    # ASCII: a message may name a key that UTF-8 has no form for.
    body = json.dumps({"error": error})
    return Response(body, rejection.status, headers, media_type="application/json")


def from_status(status: int, detail: str) -> RejectionError:
    """What the framework rejected: no such path, wrong method."""
    kinds = {code: kind for kind, code in reversed(STATUS.items())}
    kind = kinds.get(status, "bad_request" if status < 500 else "internal_error")
    return RejectionError(kind, detail)


def from_validation(error: ValidationError) -> RejectionError:
    """The first thing wrong with a body. What was sent is never repeated: it may be a prompt."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    place = [str(part) for part in first["loc"]]
    param = ".".join(place)[:200] or None
    more = len(errors) - 1
    also = f" ({more} more)" if more else ""
    return RejectionError(
        "invalid_request", f"{param or 'body'}: {first['msg']}{also}.", param=param
    )


def documented() -> dict[int | str, dict[str, Any]]:
    """Every error status for the OpenAPI document."""
    kinds: dict[int, list[str]] = {}
    for kind, status in STATUS.items():
        if kind not in ("client_gone", "conflict", "not_found", "method_not_allowed"):
            kinds.setdefault(status, []).append(kind)
    return {
        status: {"model": ErrorBody, "description": ", ".join(names).replace("_", " ")}
        for status, names in sorted(kinds.items())
    }
