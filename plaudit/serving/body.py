"""The bytes of a body become a protocol's request: here, for every route."""

from __future__ import annotations

import codecs
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from plaudit.serving.errors import from_validation
from plaudit.serving.rejection import RefusalError

NO_OBJECT = "The body is not a JSON object; send one, with Content-Type: application/json."


def parse_body(request: TypeAdapter[Any], content_type: str, body: bytes) -> Any:
    """The request in a body of JSON, which is UTF-8 (RFC 8259); a byte order mark is ignored.

    A foreign page cannot send ``application/json`` without asking first, so no other type is read.

    Raises:
        RefusalError: it is not JSON, holds half of a surrogate pair, which no text can, or does not
            fit ``request``.
    """
    if not body or not _is_json(content_type):
        raise RefusalError("invalid_request", NO_OBJECT)
    try:
        value = from_json(body.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise RefusalError("bad_request", _why(body, str(error))) from None
    if not isinstance(value, dict):
        raise RefusalError("invalid_request", NO_OBJECT)
    try:
        return request.validate_python(value)
    except ValidationError as error:
        raise from_validation(error) from None


def _is_json(content_type: str) -> bool:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _why(body: bytes, detail: str) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "The body is not UTF-8."
    if "\0" in text:
        return "The body is not JSON in UTF-8: it holds NUL bytes, as UTF-16 and UTF-32 do."
    if "hex escape" in detail:
        return f"A text holds half of a UTF-16 surrogate pair; send whole characters ({detail})."
    return f"The body is not JSON: {detail}."
