"""Error bodies: ``{"error": {"type", "message", "param", "request_id"}}``, whatever went wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from plaudit.serving.rejection import STATUS, RefusalError


class ErrorFacts(BaseModel):
    """``type`` is for programs, ``message`` for people; ``param`` names a part of the request."""

    type: str
    message: str
    param: str | None
    request_id: str


class ErrorBody(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorFacts


def error_response(refusal: RefusalError, request_id: str) -> Response:
    """The refusal as an HTTP answer."""
    facts = {
        "type": refusal.kind,
        "message": refusal.message,
        "param": refusal.param,
        "request_id": request_id,
    }
    headers = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.kind == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    # ASCII: a message may name a key that UTF-8 has no form for.
    body = json.dumps({"error": facts})
    return Response(body, refusal.status, headers, media_type="application/json")


def from_status(status: int, detail: str) -> RefusalError:
    """What the framework refused: no such path, wrong method."""
    kinds = {code: kind for kind, code in reversed(STATUS.items())}
    kind = kinds.get(status, "bad_request" if status < 500 else "internal_error")
    return RefusalError(kind, detail)


def from_validation(error: ValidationError) -> RefusalError:
    """The first thing wrong with a body. What was sent is never repeated: it may be a prompt."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    place = [str(part) for part in first["loc"]]
    param = _named(place)
    more = len(errors) - 1
    also = f" ({more} more)" if more else ""
    return RefusalError("invalid_request", f"{param or 'body'}: {first['msg']}{also}.", param=param)


def _named(place: Sequence[str]) -> str | None:
    return ".".join(place)[:200] or None


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
