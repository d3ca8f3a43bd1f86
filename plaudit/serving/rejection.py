"""Why a request is not answered with rewards: one shape for every protocol."""

from __future__ import annotations

from dataclasses import dataclass

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
"""Kinds of refusals. 4xx is the caller's to put right; 5xx may be tried again.

``overloaded`` is not 429: verl gives up on every 4xx, and with it the training run.
"""


@dataclass(eq=False)
class RefusalError(PlauditError):
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
